//! The engine of a real node: one RocksDB database.
//!
//! Decides RocksDB's settings, the order in which a batch is written and what its errors mean, nothing
//! else. Settings that are not named here are RocksDB's defaults, because measurements showed no gain from
//! others. The database's own log of events goes to the file `LOG` in its folder.

mod settings;

use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBPinnableSlice, ErrorKind, FlushOptions,
    ReadOptions, ReadTier, WriteOptions, properties,
};

pub use settings::{RocksLimits, RocksShared};

use super::{
    Change, Durability, OpenError, RangePage, RangeRequest, Space, Storage, StorageError,
    StorageStatistics, TryGet, WriteBatch, check_format,
};

/// One open database. Dropping it closes it, and loses nothing that was accepted.
pub struct RocksStorage {
    db: DB,
    in_memory: ReadOptions,
    anywhere: ReadOptions,
    synced: WriteOptions,
    buffered: WriteOptions,
    /// Set by the first write whose outcome is unknown; every later one is refused.
    failure: OnceLock<StorageError>,
}

/// Data rows are in the default column family: it alone is reached without looking up a name.
const HINTS: &str = "hints";
const TREES: &str = "trees";
const DUES: &str = "dues";
const SYSTEM: &str = "system";

impl RocksStorage {
    /// Opens the database in a folder, or makes one there, and checks its format mark. Errors if
    /// another process has it open, or if its log has a hole: acknowledged writes may be behind it.
    pub fn open(path: &Path, shared: &RocksShared) -> Result<Self, OpenError> {
        let options = shared.options();
        let families = [
            ("default", shared.row_options()),
            (HINTS, shared.row_options()),
            (TREES, shared.tree_options()),
            (DUES, shared.row_options()),
            (SYSTEM, shared.options()),
        ]
        .map(|(name, options)| ColumnFamilyDescriptor::new(name, options));
        let db = DB::open_cf_descriptors(&options, path, families).map_err(|it| open_error(&it))?;
        let mut in_memory = ReadOptions::default();
        in_memory.set_read_tier(ReadTier::BlockCache);
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let (anywhere, buffered) = (ReadOptions::default(), WriteOptions::default());
        let storage = Self { db, in_memory, anywhere, synced, buffered, failure: OnceLock::new() };
        check_format(&storage)?;
        Ok(storage)
    }

    fn family(&self, space: Space) -> Option<&ColumnFamily> {
        let name = match space {
            Space::Data => return None,
            Space::Hints => HINTS,
            Space::Trees => TREES,
            Space::Dues => DUES,
            Space::System => SYSTEM,
        };
        Some(self.db.cf_handle(name).expect("opened with every column family"))
    }

    fn pinned(
        &self,
        space: Space,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        match self.family(space) {
            None => self.db.get_pinned_opt(key, options),
            Some(family) => self.db.get_pinned_cf_opt(family, key, options),
        }
    }

    fn count(&self, space: Space, name: &properties::PropName) -> u64 {
        let count = match self.family(space) {
            None => self.db.property_int_value(name),
            Some(family) => self.db.property_int_value_cf(family, name),
        };
        // A property that cannot be read now is shown as zero: it decides nothing.
        count.ok().flatten().unwrap_or(0)
    }
}

impl Storage for RocksStorage {
    fn try_get(&self, space: Space, key: &[u8]) -> Result<TryGet, StorageError> {
        match self.pinned(space, key, &self.in_memory) {
            Ok(Some(value)) => Ok(TryGet::Hit(Bytes::copy_from_slice(&value))),
            Ok(None) => Ok(TryGet::Absent),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(TryGet::WouldBlock),
            Err(error) => Err(read_error(&error)),
        }
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.pinned(space, key, &self.anywhere).map_err(|it| read_error(&it))?;
        Ok(value.map(|it| Bytes::copy_from_slice(&it)))
    }

    fn range(&self, request: &RangeRequest) -> Result<RangePage, StorageError> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(&request.start[..]);
        if let Some(end) = &request.end {
            if *end <= request.start {
                return Ok(RangePage::default());
            }
            options.set_iterate_upper_bound(&end[..]);
        }
        let mut rows = match self.family(request.space) {
            None => self.db.raw_iterator_opt(options),
            Some(family) => self.db.raw_iterator_cf_opt(family, options),
        };
        if request.reverse {
            rows.seek_to_last()
        } else {
            rows.seek_to_first()
        }
        let mut page = RangePage::default();
        let mut bytes = 0;
        while let Some((key, value)) = rows.item() {
            if page.rows.len() >= request.rows_max || bytes >= request.bytes_max.max(1) {
                page.more = true;
                return Ok(page);
            }
            bytes += key.len() + value.len();
            page.rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            if request.reverse { rows.prev() } else { rows.next() }
        }
        // The end of the rows and a damaged block look the same until asked.
        rows.status().map_err(|it| read_error(&it))?;
        Ok(page)
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), StorageError> {
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        let mut encoded =
            rocksdb::WriteBatch::with_capacity_bytes(batch.bytes() + 16 * batch.len() + 12);
        let [hints, trees, dues, system] =
            [Space::Hints, Space::Trees, Space::Dues, Space::System].map(|it| self.family(it));
        for (space, change) in in_key_order(batch) {
            let family = match space {
                Space::Data => None,
                Space::Hints => hints,
                Space::Trees => trees,
                Space::Dues => dues,
                Space::System => system,
            };
            match (change, family) {
                (Change::Put { key, value }, None) => encoded.put(key, value),
                (Change::Put { key, value }, Some(family)) => encoded.put_cf(family, key, value),
                (Change::Delete { key }, None) => encoded.delete(key),
                (Change::Delete { key }, Some(family)) => encoded.delete_cf(family, key),
                (Change::DeleteRange { start, end }, _) if start >= end => {}
                (Change::DeleteRange { start, end }, None) => encoded.delete_range(start, end),
                (Change::DeleteRange { start, end }, Some(family)) => {
                    encoded.delete_range_cf(family, start, end);
                }
            }
        }
        let options = match durability {
            Durability::Synced => &self.synced,
            Durability::Buffered => &self.buffered,
        };
        self.db.write_opt(encoded, options).map_err(|it| self.note_failure(write_error(&it)))
    }

    fn checkpoint(&self, path: &Path) -> Result<(), StorageError> {
        let checkpoint = Checkpoint::new(&self.db).map_err(|it| write_error(&it))?;
        checkpoint.create_checkpoint(path).map_err(|it| write_error(&it))
    }

    fn flush(&self) -> Result<(), StorageError> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_wal(true).map_err(|it| self.note_failure(write_error(&it)))?;
        for space in Space::ALL {
            let flushed = match self.family(space) {
                None => self.db.flush_opt(&options),
                Some(family) => self.db.flush_cf_opt(family, &options),
            };
            flushed.map_err(|it| write_error(&it))?;
        }
        Ok(())
    }

    fn statistics(&self) -> StorageStatistics {
        let sum = |name| Space::ALL.into_iter().map(|it| self.count(it, name)).sum();
        StorageStatistics {
            data_rows: self.count(Space::Data, properties::ESTIMATE_NUM_KEYS),
            hint_rows: self.count(Space::Hints, properties::ESTIMATE_NUM_KEYS),
            file_bytes: sum(properties::TOTAL_SST_FILES_SIZE),
            memory_bytes: sum(properties::CUR_SIZE_ALL_MEM_TABLES),
            row_cache_bytes: 0,
        }
    }
}

/// The changes of a batch in the order of their keys, those of one key in their own: RocksDB's skip list
/// looks for a key's place from where it put the last one. A batch that removes a range stays as it is, for
/// that concerns keys it does not name.
fn in_key_order(batch: &WriteBatch) -> Vec<(Space, Change<'_>)> {
    let mut changes: Vec<_> = batch.changes().collect();
    if changes.iter().all(|it| !matches!(it.1, Change::DeleteRange { .. })) {
        changes.sort_by_cached_key(|(space, change)| {
            let (Change::Put { key, .. }
            | Change::Delete { key }
            | Change::DeleteRange { start: key, .. }) = *change;
            // Most keys differ in their first bytes, which are compared as a number.
            let mut first = [0; 16];
            let length = key.len().min(first.len());
            first[..length].copy_from_slice(&key[..length]);
            (*space, u128::from_be_bytes(first), key)
        });
    }
    changes
}

impl RocksStorage {
    fn note_failure(&self, error: StorageError) -> StorageError {
        if !matches!(error, StorageError::Full { .. }) {
            // Of two failures at once, the one that came first is kept.
            let _ = self.failure.set(error.clone());
        }
        error
    }
}

/// A read that fails concerns its keys alone, whether the bytes are damaged or out of reach.
fn read_error(error: &rocksdb::Error) -> StorageError {
    StorageError::Corruption { message: error.to_string() }
}

/// A log that cannot grow because the disk is full holds at most a torn tail, which opening
/// recognises; RocksDB goes on by itself once there is room. A sync that fails, for whatever reason,
/// leaves the outcome unknown.
fn write_error(error: &rocksdb::Error) -> StorageError {
    classify_write_error(error.to_string())
}

fn classify_write_error(message: String) -> StorageError {
    // "IO error: No space left on device: While appending to file: PATH: No space left on device".
    let doing = message.split("While ").nth(1).and_then(|it| it.split(':').next());
    let syncing = doing.is_none_or(|it| it.contains("sync"));
    if message.contains("No space left on device") && !syncing {
        StorageError::Full { message }
    } else {
        StorageError::Failed { message }
    }
}

fn open_error(error: &rocksdb::Error) -> StorageError {
    match error.kind() {
        ErrorKind::Corruption => read_error(error),
        _ => write_error(error),
    }
}

#[cfg(test)]
mod tests;
