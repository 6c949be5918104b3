//! The last versions that were newest here, for keys that are being fought over.
//!
//! `previous` alone leaves races of three writers undecided (CX2). A key gets a list when a version
//! replaces one that is only seconds older, and the list then follows every change of that key
//! without gaps. Evicting a list is always safe: judgement falls back to `previous`.

use model::{Hlc, Version};

/// The versions a list keeps: a stamp is still decided after so many newer ones have passed it, as
/// they do where every batch of every client writes one popular key.
const VERSIONS_MAX: usize = 64;

/// A replacement counts as contended when the clocks are less than this apart: somewhat more than
/// the longest request, whose retries are what the list has to recognise.
const CONTENDED_MS: u64 = 10_000;

const SETS: usize = 512;
const WAYS: usize = 8;
const _: () = assert!(size_of::<List>() == 64 && size_of::<Set>() * SETS == 320 << 10);

/// Lists for at most 4,096 contended keys. A set-associative table: a new key replaces the least
/// recently used of the eight it shares its place with. It takes 320 KiB from the first contended write,
/// and up to 1 KiB more for each list of more than two versions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecentVersions {
    sets: Vec<Set>,
    sets_max: usize,
    uses: u64,
}

/// What decides stands together: most keys have no list, and to see that must touch no list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct Set {
    hashes: [u64; WAYS],
    /// Zero where there is no list.
    used: [u64; WAYS],
    lists: [List; WAYS],
}

/// Two versions or more. It does not name its key: it is used for what it ends in, which another key of
/// the same hash would have to hold too, written in the same batch under the same request id.
///
/// A store under uniform load begins one for nearly every write, and hardly any of them grows: they lie
/// in the table, each in one line of the processor's cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
#[repr(align(64))]
struct List {
    /// The clock of the version that the oldest of them replaced.
    before: Hlc,
    /// All of them, while `many` is empty.
    two: [Version; 2],
    many: Vec<Version>,
}

/// What is remembered of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered<'a> {
    /// Versions, oldest first; empty if there is no list.
    pub versions: &'a [Version],
    /// The clock of the version that the oldest of them replaced; zero if it was the first.
    pub before: Hlc,
}

impl Default for RecentVersions {
    fn default() -> Self {
        Self::new()
    }
}

impl RecentVersions {
    /// An empty table.
    pub fn new() -> Self {
        Self::with_sets(SETS)
    }

    /// An empty table of so many sets of eight lists: a power of two.
    pub fn with_sets(sets: usize) -> Self {
        assert!(sets.is_power_of_two(), "{sets} sets");
        Self { sets: Vec::new(), sets_max: sets, uses: 0 }
    }

    /// The versions remembered for a key; none unless they end in `current`, the version stored for
    /// it: a write that did not become durable leaves a list that does not, and so does another key of
    /// the same hash. `hash` is a hash of the key that nobody outside can foresee.
    pub fn of(&self, hash: u64, current: Version) -> Remembered<'_> {
        let list = self.find(hash).filter(|it| it.newest() == current);
        list.map_or(Remembered { versions: &[], before: Hlc::ZERO }, |it| Remembered {
            versions: it.versions(),
            before: it.before,
        })
    }

    /// Notes that `newest` replaces `replaced`, the version stored until now, as the newest of a key;
    /// `previous` is the clock of what `replaced` itself had replaced, as it is stored.
    pub fn replace(&mut self, hash: u64, previous: Hlc, replaced: Version, newest: Version) {
        self.uses += 1;
        let (uses, at) = (self.uses, self.set_of(hash));
        let set = self.sets.get_mut(at);
        if let Some((set, way)) = set.and_then(|it| it.way(hash).map(|way| (it, way))) {
            set.used[way] = uses;
            let list = &mut set.lists[way];
            if list.newest() == replaced {
                list.push(newest);
            } else {
                list.begin(previous, [replaced, newest]);
            }
        } else if contended(replaced.hlc, newest.hlc) {
            if self.sets.is_empty() {
                self.sets.resize_with(self.sets_max, Default::default);
            }
            let set = &mut self.sets[at];
            let oldest = (0..WAYS).min_by_key(|way| set.used[*way]).expect("a set has ways");
            (set.hashes[oldest], set.used[oldest]) = (hash, uses);
            set.lists[oldest].begin(previous, [replaced, newest]);
        }
    }

    fn find(&self, hash: u64) -> Option<&List> {
        let set = self.sets.get(self.set_of(hash))?;
        set.way(hash).map(|it| &set.lists[it])
    }

    fn set_of(&self, hash: u64) -> usize {
        // The low bits choose the place in the overlay; any others do here.
        usize::try_from(hash >> 32).expect("32 bits") & (self.sets_max - 1)
    }
}

impl Set {
    fn way(&self, hash: u64) -> Option<usize> {
        (0..WAYS).find(|way| self.hashes[*way] == hash && self.used[*way] > 0)
    }
}

impl List {
    fn begin(&mut self, before: Hlc, versions: [Version; 2]) {
        (self.before, self.two) = (before, versions);
        self.many = Vec::new();
    }

    fn push(&mut self, newest: Version) {
        if self.many.is_empty() {
            self.many.extend(self.two);
        }
        if self.many.len() == VERSIONS_MAX {
            self.before = self.many.remove(0).hlc;
        }
        self.many.push(newest);
    }

    fn versions(&self) -> &[Version] {
        if self.many.is_empty() { &self.two } else { &self.many }
    }

    fn newest(&self) -> Version {
        self.many.last().copied().unwrap_or(self.two[1])
    }
}

fn contended(replaced: Hlc, newest: Hlc) -> bool {
    newest.ms().saturating_sub(replaced.ms()) < CONTENDED_MS
}

#[cfg(test)]
mod tests {
    use model::RequestId;

    use super::*;

    fn version(ms: u64) -> Version {
        Version { hlc: Hlc::from_ms(ms), request: RequestId(ms) }
    }

    fn remembered(recent: &RecentVersions, hash: u64, current: u64) -> Vec<u64> {
        recent.of(hash, version(current)).versions.iter().map(|it| it.hlc.ms()).collect()
    }

    fn replace(recent: &mut RecentVersions, hash: u64, replaced: u64, newest: u64) {
        let previous = Hlc::from_ms(replaced / 2);
        recent.replace(hash, previous, version(replaced), version(newest));
    }

    #[test]
    fn follows_a_contended_key_without_gaps() {
        let mut recent = RecentVersions::new();
        replace(&mut recent, 1, 0, 10_000);
        assert_eq!(remembered(&recent, 1, 10_000), [0; 0], "not contended");
        replace(&mut recent, 1, 10_000, 19_999);
        assert_eq!(remembered(&recent, 1, 19_999), [10_000, 19_999]);
        replace(&mut recent, 1, 19_999, 99_999);
        assert_eq!(remembered(&recent, 1, 99_999), [10_000, 19_999, 99_999], "once begun");
        assert_eq!(remembered(&recent, 1, 19_999), [0; 0], "not what is stored");
        assert_eq!(remembered(&recent, 2, 99_999), [0; 0], "another key");

        for ms in 100_000..100_100 {
            replace(&mut recent, 1, ms - 1, ms);
        }
        assert_eq!(remembered(&recent, 1, 100_099), Vec::from_iter(100_036..=100_099));
        let before = recent.of(1, version(100_099)).before;
        assert_eq!(before, version(100_035).hlc, "the last that was dropped");
        replace(&mut recent, 1, 200_000, 300_000);
        assert_eq!(remembered(&recent, 1, 300_000), [200_000, 300_000], "a gap begins anew");
        let before = recent.of(1, version(300_000)).before;
        assert_eq!(before, Hlc::from_ms(100_000), "with what its first version had replaced");
    }

    #[test]
    fn keys_of_one_hash_have_no_list_in_common() {
        let mut recent = RecentVersions::new();
        replace(&mut recent, 1, 10, 20);
        assert_eq!(remembered(&recent, 1, 25), [0; 0], "the other key's version is not in it");
        replace(&mut recent, 1, 25, 30);
        assert_eq!(remembered(&recent, 1, 30), [25, 30]);
        assert_eq!(remembered(&recent, 1, 20), [0; 0]);
    }

    #[test]
    fn evicts_whole_lists_and_stays_bounded() {
        let mut recent = RecentVersions::new();
        for hash in 0..100 {
            replace(&mut recent, hash, 1, 2);
            replace(&mut recent, 0, 1, 2);
        }
        let kept: Vec<u64> =
            (0..100).filter(|it| !remembered(&recent, *it, 2).is_empty()).collect();
        assert_eq!(kept, [0, 93, 94, 95, 96, 97, 98, 99]);
    }
}
