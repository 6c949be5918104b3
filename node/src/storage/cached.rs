//! Keeps recently read and written rows of [`Space::Data`] in memory, before any engine.
//!
//! Two things ask for rows that were touched a moment ago: gets, and the read that precedes every
//! write. An engine finds them by a search through memtables, filters and blocks, which costs ten
//! times a hash lookup; a hit here copies nothing and verifies as any other read does.
//!
//! Invariant: a row is answered from here only while the engine would answer the same. A write shuts
//! the doors of its keys before the engine sees it, and opens each once the new rows behind it are
//! in. Behind a shut door no row is found and none is kept: else a reader could be answered the old
//! row after another was answered the new one. A door is shut as often as changes are pending behind
//! it, for several keys may share it, and a key may stand in a batch twice: each change puts its row
//! in and takes one of them back under one lock, and only the last one opens.

mod joined;
mod near;

use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use model::Mutant;
use quick_cache::Weighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};
use xxhash_rust::xxh3::xxh3_64;

use joined::joined;
use near::bring_near;

use super::{
    Change, Durability, RangePage, RangeRequest, Space, Storage, StorageError, StorageStatistics,
    TryGet, WriteBatch,
};

/// An engine behind a cache of rows.
pub struct CachedStorage<S> {
    inner: S,
    shards: Vec<Mutex<Shard>>,
}

/// Rows are spread over shards so that loops and the commit thread hardly ever meet in one, but for the
/// microseconds in which one of them brings rows near.
const SHARDS: usize = 64;

/// Of more rows than these some are no longer near when the engine has written them: so many at a time are
/// brought near again before they are replaced.
const NEAR_UNTIL_WRITTEN: usize = 128;

/// Doors of one shard. A key shares its door with every 4,096th other.
const DOORS: usize = 64;

type Rows = Cache<u64, Row, RowBytes, BuildHasherDefault<Prehashed>>;

struct Shard {
    rows: Rows,
    doors: [Door; DOORS],
}

/// Says whether the rows of some keys are those of the engine.
#[derive(Clone, Copy, Default)]
struct Door {
    /// Changes that the engine may have seen, and the rows behind the door have not. Open at none.
    pending: u32,
    /// Rises with each that has ended: a reader who finds it as it was has missed no write.
    ended: u32,
}

impl Door {
    fn shut(&mut self) {
        self.pending += 1;
    }

    fn end(&mut self) {
        self.pending -= 1;
        self.ended = self.ended.wrapping_add(1);
    }

    /// What a reader has to see again before it keeps what it has read; `None` while shut.
    fn seen(self) -> Option<u32> {
        (self.pending == 0).then_some(self.ended)
    }
}

/// Key and value behind each other in one allocation.
#[derive(Clone)]
struct Row {
    bytes: Bytes,
    key_bytes: usize,
}

impl<S: Storage> CachedStorage<S> {
    /// Puts a cache of at most `bytes_max` bytes before an engine; zero is no cache. Rows larger
    /// than a 64th of that are not kept.
    pub fn new(inner: S, bytes_max: usize) -> Self {
        let shards = if bytes_max == 0 { 0 } else { SHARDS };
        let shard_bytes = bytes_max as u64 / SHARDS as u64;
        let rows = usize::try_from(shard_bytes / ROW_BYTES_USUAL).unwrap_or(usize::MAX);
        let shard = || {
            let hasher = BuildHasherDefault::default();
            let lifecycle = DefaultLifecycle::default();
            let rows = Cache::with(rows, shard_bytes, RowBytes, hasher, lifecycle);
            Mutex::new(Shard { rows, doors: [Door::default(); DOORS] })
        };
        Self { inner, shards: std::iter::repeat_with(shard).take(shards).collect() }
    }

    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard>> {
        self.shards.get(shard_of(hash)).map(lock)
    }

    /// Looks a row up; `Err` with what its door shows if it is not here.
    fn find(&self, hash: u64, key: &[u8]) -> Result<Bytes, Option<u32>> {
        let shard = self.shard(hash).ok_or(None)?;
        let seen = shard.doors[door(hash)].seen();
        let row = seen.and_then(|_| shard.rows.get(&hash));
        row.and_then(|it| it.value_of(key)).ok_or(seen)
    }

    /// Keeps a row that was read, unless it may have been written since its door was looked at.
    fn keep(&self, hash: u64, key: &[u8], value: &Bytes, seen: Option<u32>) {
        if seen.is_none() {
            return;
        }
        let row = Row::new(key, value);
        if let Some(mut shard) = self.shard(hash)
            && shard.doors[door(hash)].seen() == seen
        {
            shard.rows.insert(hash, row);
        }
    }

    /// Shuts the doors of a batch, once for each change. The hashes of its keys come back, in order.
    fn before_write(&self, batch: &WriteBatch) -> Vec<u64> {
        let mut hashes = Vec::with_capacity(batch.len());
        for change in self.changes(batch) {
            match change {
                Change::Put { key, .. } | Change::Delete { key } => {
                    let hash = xxh3_64(key);
                    self.change(hash, |_, door| door.shut());
                    hashes.push(hash);
                }
                Change::DeleteRange { .. } => self.change_doors(Door::shut),
            }
        }
        hashes
    }

    /// Takes over what was written, if it was accepted, and opens the doors.
    fn after_write(&self, batch: &WriteBatch, hashes: Vec<u64>, accepted: bool) {
        let accepted = accepted && !Mutant::RowCacheStale.is_on();
        let far = hashes.len() > NEAR_UNTIL_WRITTEN;
        let (mut hashes, mut near) = (hashes.into_iter(), 0_usize);
        let mut hash = || {
            if far && near == 0 {
                let next = hashes.as_slice();
                near = next.len().min(NEAR_UNTIL_WRITTEN);
                bring_near(&self.shards, &next[..near]);
            }
            near = near.saturating_sub(1);
            hashes.next().expect("one for each key")
        };
        for change in self.changes(batch) {
            match change {
                Change::Put { key, value } if accepted => {
                    let (hash, row) = (hash(), Row::new(key, value));
                    self.change(hash, |rows, door| {
                        rows.insert(hash, row);
                        door.end();
                    });
                }
                Change::Delete { .. } if accepted => {
                    let hash = hash();
                    self.change(hash, |rows, door| {
                        rows.remove(&hash);
                        door.end();
                    });
                }
                Change::Put { .. } | Change::Delete { .. } => {
                    self.change(hash(), |_, door| door.end());
                }
                Change::DeleteRange { .. } => {
                    if accepted {
                        self.shards.iter().for_each(|it| lock(it).rows.clear());
                    }
                    self.change_doors(Door::end);
                }
            }
        }
    }

    /// The changes of a batch that concern the rows kept here.
    fn changes<'a>(&self, batch: &'a WriteBatch) -> impl Iterator<Item = Change<'a>> {
        let cached = !self.shards.is_empty();
        batch.changes().filter(move |it| cached && it.0 == Space::Data).map(|it| it.1)
    }

    /// Changes a key's door and the rows behind it, under one lock.
    fn change(&self, hash: u64, change: impl FnOnce(&mut Rows, &mut Door)) {
        if let Some(mut shard) = self.shard(hash) {
            let Shard { rows, doors } = &mut *shard;
            change(rows, &mut doors[door(hash)]);
        }
    }

    fn change_doors(&self, mut change: impl FnMut(&mut Door)) {
        for mut shard in self.shards.iter().map(lock) {
            shard.doors.iter_mut().for_each(&mut change);
        }
    }
}

impl<S: Storage> Storage for CachedStorage<S> {
    fn try_get(&self, space: Space, key: &[u8]) -> Result<TryGet, StorageError> {
        if space != Space::Data {
            return self.inner.try_get(space, key);
        }
        let hash = xxh3_64(key);
        match self.find(hash, key) {
            Ok(value) => Ok(TryGet::Hit(value)),
            Err(seen) => {
                let read = self.inner.try_get(space, key)?;
                if let TryGet::Hit(value) = &read {
                    self.keep(hash, key, value, seen);
                }
                Ok(read)
            }
        }
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        if space != Space::Data {
            return self.inner.get(space, key);
        }
        let hash = xxh3_64(key);
        match self.find(hash, key) {
            Ok(value) => Ok(Some(value)),
            Err(seen) => {
                let read = self.inner.get(space, key)?;
                if let Some(value) = &read {
                    self.keep(hash, key, value, seen);
                }
                Ok(read)
            }
        }
    }

    /// Straight from the engine: a scan would push out what is asked for again.
    fn range(&self, request: &RangeRequest) -> Result<RangePage, StorageError> {
        self.inner.range(request)
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let hashes = self.before_write(batch);
        let written = self.inner.write(batch, durability);
        self.after_write(batch, hashes, written.is_ok());
        written
    }

    fn checkpoint(&self, path: &Path) -> Result<(), StorageError> {
        self.inner.checkpoint(path)
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.inner.flush()
    }

    fn statistics(&self) -> StorageStatistics {
        let row_cache_bytes = self.shards.iter().map(|it| lock(it).rows.weight()).sum();
        StorageStatistics { row_cache_bytes, ..self.inner.statistics() }
    }

    fn forget_rows(&self) {
        self.shards.iter().for_each(|it| lock(it).rows.clear());
        self.inner.forget_rows();
    }

    fn announce(&self, keys: &[&[u8]]) {
        if !self.shards.is_empty() {
            let hashes: Vec<u64> = keys.iter().map(|it| xxh3_64(it)).collect();
            bring_near(&self.shards, &hashes);
        }
    }
}

impl Row {
    fn new(key: &[u8], value: &[u8]) -> Self {
        Self { bytes: joined(key, value), key_bytes: key.len() }
    }

    /// The value, if the row is this key's and not another's with the same hash.
    fn value_of(&self, key: &[u8]) -> Option<Bytes> {
        (self.bytes[..self.key_bytes] == *key).then(|| self.bytes.slice(self.key_bytes..))
    }
}

#[derive(Clone)]
struct RowBytes;

impl Weighter<u64, Row> for RowBytes {
    fn weight(&self, _: &u64, row: &Row) -> u64 {
        row.bytes.len() as u64 + ROW_BYTES_BESIDES
    }
}

/// The keys of the table are hashes already.
#[derive(Clone, Copy, Default)]
struct Prehashed(u64);

impl Hasher for Prehashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxh3_64(bytes);
    }

    fn write_u64(&mut self, hash: u64) {
        // The upper bits are the same for a whole shard, and the table looks at both ends.
        self.0 = hash.rotate_left(32);
    }
}

fn shard_of(hash: u64) -> usize {
    usize::try_from(hash >> 58).expect("six bits")
}

fn door(hash: u64) -> usize {
    usize::try_from(hash >> 52 & 63).expect("six bits")
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a row takes besides its bytes: its place in the table, and the allocations' own.
const ROW_BYTES_BESIDES: u64 = 112;

/// Sizes the table's memory of rows it has dropped, nothing else.
const ROW_BYTES_USUAL: u64 = 400;

#[cfg(test)]
mod tests;
