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

/// Keys longer than this get no list, which bounds the memory: at most 4,096 lists of up to 1 KiB
/// and a key, 5 MiB in all, and nothing before the first contended write.
const KEY_BYTES_MAX: usize = 256;
/// What most lists never outgrow.
const VERSIONS_USUAL: usize = 8;
const SETS: usize = 512;
const WAYS: usize = 8;

/// Lists for at most 4,096 contended keys. A set-associative table: a new key replaces the least
/// recently used of the eight it shares its place with.
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
    used: [u64; WAYS],
    lists: [Option<Box<List>>; WAYS],
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct List {
    key: Vec<u8>,
    versions: Vec<Version>,
    /// The clock of the version that the oldest of them replaced.
    before: Hlc,
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
    /// it: a write that did not become durable leaves a list that does not. `hash` is any fixed hash
    /// of the key.
    pub fn of(&self, hash: u64, key: &[u8], current: Version) -> Remembered<'_> {
        let list = self.find(hash, key).filter(|it| it.versions.last() == Some(&current));
        list.map_or(Remembered { versions: &[], before: Hlc::ZERO }, |it| Remembered {
            versions: &it.versions,
            before: it.before,
        })
    }

    /// Notes that `newest` replaces `replaced`, the version stored until now, as the newest of a key;
    /// `previous` is the clock of what `replaced` itself had replaced, as it is stored.
    pub fn replace(
        &mut self,
        hash: u64,
        key: &[u8],
        previous: Hlc,
        replaced: Version,
        newest: Version,
    ) {
        self.uses += 1;
        let uses = self.uses;
        if let Some((list, used)) = self.find_mut(hash, key) {
            *used = uses;
            if list.versions.last() != Some(&replaced) {
                list.versions.clear();
                list.versions.push(replaced);
                list.before = previous;
            }
            if list.versions.len() == VERSIONS_MAX {
                list.before = list.versions.remove(0).hlc;
            }
            list.versions.push(newest);
        } else if key.len() <= KEY_BYTES_MAX && contended(replaced.hlc, newest.hlc) {
            self.start(hash, key, previous, [replaced, newest]);
        }
    }

    fn start(&mut self, hash: u64, key: &[u8], before: Hlc, versions: [Version; 2]) {
        if self.sets.is_empty() {
            self.sets.resize_with(self.sets_max, Default::default);
        }
        let used = self.uses;
        let at = self.set_of(hash);
        let set = &mut self.sets[at];
        let oldest = (0..WAYS).min_by_key(|way| set.used[*way]).expect("a set has ways");
        (set.hashes[oldest], set.used[oldest]) = (hash, used);
        match &mut set.lists[oldest] {
            Some(list) => {
                list.key.clear();
                list.key.extend_from_slice(key);
                list.versions.clear();
                list.versions.shrink_to(VERSIONS_USUAL);
                list.versions.extend(versions);
                list.before = before;
            }
            free => {
                let mut list = List { key: key.to_vec(), versions: Vec::new(), before };
                list.versions.reserve_exact(VERSIONS_USUAL);
                list.versions.extend(versions);
                *free = Some(Box::new(list));
            }
        }
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<&List> {
        let set = self.sets.get(self.set_of(hash))?;
        let found = (0..WAYS).find(|way| set.holds(*way, hash, key))?;
        set.lists[found].as_deref()
    }

    /// A key's list, and when it was last used.
    fn find_mut(&mut self, hash: u64, key: &[u8]) -> Option<(&mut List, &mut u64)> {
        let at = self.set_of(hash);
        let set = self.sets.get_mut(at)?;
        let found = (0..WAYS).find(|way| set.holds(*way, hash, key))?;
        Some((set.lists[found].as_deref_mut()?, &mut set.used[found]))
    }

    fn set_of(&self, hash: u64) -> usize {
        // The low bits choose the place in the overlay; any others do here.
        usize::try_from(hash >> 32).expect("32 bits") & (self.sets_max - 1)
    }
}

impl Set {
    fn holds(&self, way: usize, hash: u64, key: &[u8]) -> bool {
        self.hashes[way] == hash && self.lists[way].as_ref().is_some_and(|it| it.key == key)
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

    fn remembered(recent: &RecentVersions, key: &[u8], current: u64) -> Vec<u64> {
        recent.of(1, key, version(current)).versions.iter().map(|it| it.hlc.ms()).collect()
    }

    fn replace(recent: &mut RecentVersions, key: &[u8], replaced: u64, newest: u64) {
        let previous = Hlc::from_ms(replaced / 2);
        recent.replace(1, key, previous, version(replaced), version(newest));
    }

    #[test]
    fn follows_a_contended_key_without_gaps() {
        let mut recent = RecentVersions::new();
        replace(&mut recent, b"k", 0, 10_000);
        assert_eq!(remembered(&recent, b"k", 10_000), [0; 0], "not contended");
        replace(&mut recent, b"k", 10_000, 19_999);
        assert_eq!(remembered(&recent, b"k", 19_999), [10_000, 19_999]);
        replace(&mut recent, b"k", 19_999, 99_999);
        assert_eq!(remembered(&recent, b"k", 99_999), [10_000, 19_999, 99_999], "once begun");
        assert_eq!(remembered(&recent, b"k", 19_999), [0; 0], "not what is stored");
        assert_eq!(remembered(&recent, b"l", 99_999), [0; 0], "same hash, other key");

        for ms in 100_000..100_100 {
            replace(&mut recent, b"k", ms - 1, ms);
        }
        assert_eq!(remembered(&recent, b"k", 100_099), Vec::from_iter(100_036..=100_099));
        let before = recent.of(1, b"k", version(100_099)).before;
        assert_eq!(before, version(100_035).hlc, "the last that was dropped");
        replace(&mut recent, b"k", 200_000, 300_000);
        assert_eq!(remembered(&recent, b"k", 300_000), [200_000, 300_000], "a gap begins anew");
        let before = recent.of(1, b"k", version(300_000)).before;
        assert_eq!(before, Hlc::from_ms(100_000), "with what its first version had replaced");
    }

    #[test]
    fn evicts_whole_lists_and_stays_bounded() {
        let mut recent = RecentVersions::new();
        for key in 0..100_u8 {
            replace(&mut recent, &[key], 1, 2);
            replace(&mut recent, &[0], 1, 2);
        }
        let kept: Vec<u8> =
            (0..100).filter(|it| !remembered(&recent, &[*it], 2).is_empty()).collect();
        assert_eq!(kept, [0, 93, 94, 95, 96, 97, 98, 99]);
        replace(&mut recent, &[7; KEY_BYTES_MAX + 1], 1, 2);
        assert!(remembered(&recent, &[7; KEY_BYTES_MAX + 1], 2).is_empty());
    }
}
