//! The last versions that were newest here, for keys that are being fought over.
//!
//! `previous` alone leaves races of three writers undecided (CX2). A key gets a list when a version
//! replaces one that is only seconds older, and the list then follows every change of that key
//! without gaps. Evicting a list is always safe: judgement falls back to `previous`.

use model::{Hlc, Version};

/// The versions a list keeps. Eight writers racing for one key are still decided.
const VERSIONS_MAX: usize = 8;

/// A replacement counts as contended when the clocks are less than this apart: somewhat more than
/// the longest request, whose retries are what the list has to recognise.
const CONTENDED_MS: u64 = 10_000;

/// Keys longer than this get no list, which bounds the memory: at most 4,096 lists of about 200
/// bytes and a key, under 2 MiB in all, and nothing before the first contended write.
const KEY_BYTES_MAX: usize = 256;
const SETS: usize = 512;
const WAYS: usize = 8;

/// Lists for at most 4,096 contended keys. A set-associative table: a new key replaces the least
/// recently used of the eight it shares its place with.
pub struct RecentVersions {
    sets: Vec<Set>,
    uses: u64,
}

/// What decides stands together: most keys have no list, and to see that must touch no list.
#[derive(Default)]
struct Set {
    hashes: [u64; WAYS],
    used: [u64; WAYS],
    lists: [Option<Box<List>>; WAYS],
}

struct List {
    key: Vec<u8>,
    versions: Vec<Version>,
}

impl Default for RecentVersions {
    fn default() -> Self {
        Self::new()
    }
}

impl RecentVersions {
    /// An empty table.
    pub fn new() -> Self {
        Self { sets: Vec::new(), uses: 0 }
    }

    /// The versions remembered for a key, oldest first; empty unless they end in `current`, the
    /// version stored for it: a write that did not become durable leaves a list that does not.
    /// `hash` is any fixed hash of the key.
    pub fn of(&self, hash: u64, key: &[u8], current: Version) -> &[Version] {
        let list = self.find(hash, key).map(|it| it.versions.as_slice());
        list.filter(|it| it.last() == Some(&current)).unwrap_or_default()
    }

    /// Notes that `newest` replaces `replaced`, the version stored until now, as the newest of a key.
    pub fn replace(&mut self, hash: u64, key: &[u8], replaced: Version, newest: Version) {
        self.uses += 1;
        let uses = self.uses;
        if let Some((list, used)) = self.find_mut(hash, key) {
            *used = uses;
            if list.versions.last() != Some(&replaced) {
                list.versions.clear();
                list.versions.push(replaced);
            }
            if list.versions.len() == VERSIONS_MAX {
                list.versions.remove(0);
            }
            list.versions.push(newest);
        } else if key.len() <= KEY_BYTES_MAX && contended(replaced.hlc, newest.hlc) {
            self.start(hash, key, [replaced, newest]);
        }
    }

    fn start(&mut self, hash: u64, key: &[u8], versions: [Version; 2]) {
        if self.sets.is_empty() {
            self.sets.resize_with(SETS, Default::default);
        }
        let used = self.uses;
        let set = &mut self.sets[set_of(hash)];
        let oldest = (0..WAYS).min_by_key(|way| set.used[*way]).expect("a set has ways");
        (set.hashes[oldest], set.used[oldest]) = (hash, used);
        match &mut set.lists[oldest] {
            Some(list) => {
                list.key.clear();
                list.key.extend_from_slice(key);
                list.versions.clear();
                list.versions.extend(versions);
            }
            free => {
                let mut list = List { key: key.to_vec(), versions: Vec::new() };
                list.versions.reserve_exact(VERSIONS_MAX);
                list.versions.extend(versions);
                *free = Some(Box::new(list));
            }
        }
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<&List> {
        let set = self.sets.get(set_of(hash))?;
        let found = (0..WAYS).find(|way| set.holds(*way, hash, key))?;
        set.lists[found].as_deref()
    }

    /// A key's list, and when it was last used.
    fn find_mut(&mut self, hash: u64, key: &[u8]) -> Option<(&mut List, &mut u64)> {
        let set = self.sets.get_mut(set_of(hash))?;
        let found = (0..WAYS).find(|way| set.holds(*way, hash, key))?;
        Some((set.lists[found].as_deref_mut()?, &mut set.used[found]))
    }
}

impl Set {
    fn holds(&self, way: usize, hash: u64, key: &[u8]) -> bool {
        self.hashes[way] == hash && self.lists[way].as_ref().is_some_and(|it| it.key == key)
    }
}

fn set_of(hash: u64) -> usize {
    // The low bits choose the place in the overlay; any others do here.
    usize::try_from((hash >> 32) % SETS as u64).expect("below SETS")
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
        recent.of(1, key, version(current)).iter().map(|it| it.hlc.ms()).collect()
    }

    #[test]
    fn follows_a_contended_key_without_gaps() {
        let mut recent = RecentVersions::new();
        recent.replace(1, b"k", version(0), version(10_000));
        assert_eq!(remembered(&recent, b"k", 10_000), [0; 0], "not contended");
        recent.replace(1, b"k", version(10_000), version(19_999));
        assert_eq!(remembered(&recent, b"k", 19_999), [10_000, 19_999]);
        recent.replace(1, b"k", version(19_999), version(99_999));
        assert_eq!(remembered(&recent, b"k", 99_999), [10_000, 19_999, 99_999], "once begun");
        assert_eq!(remembered(&recent, b"k", 19_999), [0; 0], "not what is stored");
        assert_eq!(remembered(&recent, b"l", 99_999), [0; 0], "same hash, other key");

        for ms in 100_000..100_010 {
            recent.replace(1, b"k", version(ms - 1), version(ms));
        }
        assert_eq!(remembered(&recent, b"k", 100_009), Vec::from_iter(100_002..=100_009));
        recent.replace(1, b"k", version(200_000), version(300_000));
        assert_eq!(remembered(&recent, b"k", 300_000), [200_000, 300_000], "a gap begins anew");
    }

    #[test]
    fn evicts_whole_lists_and_stays_bounded() {
        let mut recent = RecentVersions::new();
        for key in 0..100_u8 {
            recent.replace(1, &[key], version(1), version(2));
            recent.replace(1, &[0], version(1), version(2));
        }
        let kept: Vec<u8> =
            (0..100).filter(|it| !recent.of(1, &[*it], version(2)).is_empty()).collect();
        assert_eq!(kept, [0, 93, 94, 95, 96, 97, 98, 99]);
        recent.replace(1, &[7; KEY_BYTES_MAX + 1], version(1), version(2));
        assert!(recent.of(1, &[7; KEY_BYTES_MAX + 1], version(2)).is_empty());
    }
}
