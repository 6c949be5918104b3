//! An engine in memory with an explicit synced prefix, for tests and the simulator.
//!
//! A handle is a disk: clones share it, and what was written stays when the node that wrote it is
//! gone. Power loss drops the batches that were not synced, but for as many as the caller lets
//! survive. Faults come from a closure that the caller seeds. Nothing here knows time or chance.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::{
    Change, Durability, RangePage, RangeRequest, Space, Storage, StorageError, StorageStatistics,
    TryGet, WriteBatch,
};

/// What an engine is about to do, for a fault closure to decide about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access<'a> {
    /// A read that must not block.
    TryGet(Space, &'a [u8]),
    /// A read of one key.
    Get(Space, &'a [u8]),
    /// A read of a page.
    Range(&'a RangeRequest),
    /// The append of a batch of so many bytes to the log.
    Append(usize),
    /// The sync of the log.
    Sync,
}

/// A fault at one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The device fails the access.
    Error,
    /// What the device gives back is damaged; only meant for reads.
    Corrupt,
    /// The answer is not in memory; only meant for [`Access::TryGet`].
    WouldBlock,
    /// The device has no room; only meant for [`Access::Append`].
    Full,
}

/// Decides about every access.
pub type FaultPlan = Box<dyn FnMut(Access<'_>) -> Option<Fault> + Send>;

/// A disk and the engine on it. Cloning gives another handle to the same disk.
#[derive(Clone)]
pub struct MemoryStorage {
    disk: Arc<Mutex<Disk>>,
}

/// What was on a disk at one moment.
#[derive(Clone)]
pub struct MemoryImage {
    rows: BTreeMap<(Space, Bytes), Bytes>,
    bytes: usize,
}

impl MemoryImage {
    /// One row.
    pub fn get(&self, space: Space, key: &[u8]) -> Option<&Bytes> {
        self.rows.get(&(space, Bytes::copy_from_slice(key)))
    }
}

#[derive(Default)]
struct Disk {
    /// What readers see.
    rows: BTreeMap<(Space, Bytes), Bytes>,
    /// Batches in the log behind its synced part, oldest first; the last may be one whose write or sync
    /// failed.
    unsynced: Vec<Batch>,
    bytes: usize,
    bytes_max: Option<usize>,
    /// Set by a failed write; cleared by opening the disk again.
    failure: Option<StorageError>,
    /// What was applied since it was last taken, if anybody takes it.
    kept: Option<Vec<WriteBatch>>,
    faults: Option<FaultPlan>,
}

/// A batch in the log. It has been applied, but for one whose write or sync failed.
struct Batch {
    changes: WriteBatch,
    undo: Option<Undo>,
}

/// What the rows were before a batch, in the order of its changes.
type Undo = Vec<((Space, Bytes), Option<Bytes>)>;

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = self.disk();
        let (rows, unsynced) = (disk.rows.len(), disk.unsynced.len());
        f.debug_struct("MemoryStorage").field("rows", &rows).field("unsynced", &unsynced).finish()
    }
}

impl MemoryStorage {
    /// An empty disk without faults or bounds.
    pub fn new() -> Self {
        Self { disk: Arc::default() }
    }

    /// Asks `plan` before every access from now on; `None` ends all faults.
    pub fn set_faults(&self, plan: Option<FaultPlan>) {
        self.disk().faults = plan;
    }

    /// Refuses to grow beyond so many bytes of keys and values.
    pub fn set_bytes_max(&self, bytes_max: Option<usize>) {
        self.disk().bytes_max = bytes_max;
    }

    /// The power goes off and on. `keep` is told how many batches were not synced, and says how
    /// many of the oldest reached the disk anyway; a torn one is recognised by its checksum and
    /// lost whole. Then the disk can be opened again.
    pub fn power_loss(&self, keep: impl FnOnce(usize) -> usize) {
        let mut disk = self.disk();
        let unsynced = std::mem::take(&mut disk.unsynced);
        for undo in unsynced.iter().rev().filter_map(|it| it.undo.as_ref()) {
            for ((space, key), old) in undo.iter().rev() {
                disk.set(*space, key.clone(), old.clone());
            }
        }
        let kept = keep(unsynced.len()).min(unsynced.len());
        for batch in &unsynced[..kept] {
            disk.apply(&batch.changes);
            if batch.undo.is_none() {
                disk.keep(&batch.changes);
            }
        }
        disk.failure = None;
    }

    /// The process ends and what it wrote stays, synced or not. A batch whose write or sync failed is
    /// found in the log, or is not, as the caller says. Then the disk can be opened again.
    pub fn process_crash(&self, failed_survives: bool) {
        let mut disk = self.disk();
        if let Some(failed) = disk.unsynced.pop_if(|it| it.undo.is_none())
            && failed_survives
        {
            let undo = disk.apply(&failed.changes);
            disk.keep(&failed.changes);
            disk.unsynced.push(Batch { undo: Some(undo), ..failed });
        }
        disk.failure = None;
    }

    /// Batches that a power loss may take.
    pub fn unsynced(&self) -> usize {
        self.disk().unsynced.len()
    }

    /// Flips one bit of a stored value, unnoticed; false if there is no such bit.
    pub fn flip_bit(&self, space: Space, key: &[u8], bit: usize) -> bool {
        let mut disk = self.disk();
        let Some(value) = disk.rows.get_mut(&(space, Bytes::copy_from_slice(key))) else {
            return false;
        };
        let mut bytes = value.to_vec();
        let Some(byte) = bytes.get_mut(bit / 8) else { return false };
        *byte ^= 1 << (bit % 8);
        *value = bytes.into();
        true
    }

    /// Loses a stored row, unnoticed: a write that the device acknowledged and never made. False
    /// if there is no such row.
    pub fn lose_row(&self, space: Space, key: &[u8]) -> bool {
        self.disk().set(space, Bytes::copy_from_slice(key), None).is_some()
    }

    /// The disk is replaced by an empty one. Whoever has it open goes on with that.
    pub fn wipe(&self) {
        let mut disk = self.disk();
        (disk.rows, disk.unsynced) = <_>::default();
        (disk.bytes, disk.failure) = <_>::default();
    }

    /// A copy of what is on the disk, as a snapshot of a file system takes it.
    pub fn image(&self) -> MemoryImage {
        let disk = self.disk();
        MemoryImage { rows: disk.rows.clone(), bytes: disk.bytes }
    }

    /// The disk is put back to what it was.
    pub fn put_back(&self, image: &MemoryImage) {
        let mut disk = self.disk();
        (disk.rows, disk.bytes) = (image.rows.clone(), image.bytes);
        (disk.unsynced, disk.failure) = <_>::default();
    }

    /// Puts a stored row under another key, unnoticed, in the place of what is there: a write that the
    /// device made in a wrong place. False if there is no such row.
    pub fn move_row(&self, space: Space, from: &[u8], to: &[u8]) -> bool {
        let mut disk = self.disk();
        let row = disk.set(space, Bytes::copy_from_slice(from), None);
        let moved = row.is_some();
        if moved {
            disk.set(space, Bytes::copy_from_slice(to), row);
        }
        moved
    }

    /// Reads a page past all faults: for whoever looks at the disk from outside.
    pub fn peek(&self, request: &RangeRequest) -> RangePage {
        self.disk().range(request)
    }

    /// Keeps every batch from now on, when it is applied for the first time, until it is taken.
    pub fn keep_batches(&self) {
        self.disk().kept.get_or_insert_default();
    }

    /// The batches kept since this was last called, oldest first.
    pub fn take_batches(&self) -> Vec<WriteBatch> {
        self.disk().kept.as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for MemoryStorage {
    fn try_get(&self, space: Space, key: &[u8]) -> Result<TryGet, StorageError> {
        let mut disk = self.disk();
        match disk.fault(Access::TryGet(space, key)) {
            None => Ok(disk.get(space, key).map_or(TryGet::Absent, TryGet::Hit)),
            Some(Fault::WouldBlock) => Ok(TryGet::WouldBlock),
            Some(fault) => Err(unreadable(fault)),
        }
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let mut disk = self.disk();
        match disk.fault(Access::Get(space, key)) {
            None => Ok(disk.get(space, key)),
            Some(fault) => Err(unreadable(fault)),
        }
    }

    fn range(&self, request: &RangeRequest) -> Result<RangePage, StorageError> {
        let mut disk = self.disk();
        if let Some(fault) = disk.fault(Access::Range(request)) {
            return Err(unreadable(fault));
        }
        Ok(disk.range(request))
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), StorageError> {
        self.disk().write(batch, durability)
    }

    /// Not for this engine: a clone of the handle is the same disk.
    fn checkpoint(&self, path: &Path) -> Result<(), StorageError> {
        let message = format!("storage in memory writes no checkpoint to {}", path.display());
        Err(StorageError::Failed { message })
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.disk().write(&WriteBatch::new(), Durability::Synced)
    }

    fn statistics(&self) -> StorageStatistics {
        let disk = self.disk();
        let count = |space| disk.rows.keys().filter(|it| it.0 == space).count() as u64;
        StorageStatistics {
            data_rows: count(Space::Data),
            hint_rows: count(Space::Hints),
            file_bytes: 0,
            memory_bytes: disk.bytes as u64,
            row_cache_bytes: 0,
        }
    }
}

impl Disk {
    fn fault(&mut self, access: Access<'_>) -> Option<Fault> {
        self.faults.as_mut().and_then(|plan| plan(access))
    }

    fn get(&self, space: Space, key: &[u8]) -> Option<Bytes> {
        self.rows.get(&(space, Bytes::copy_from_slice(key))).cloned()
    }

    fn range(&self, request: &RangeRequest) -> RangePage {
        let RangeRequest { space, start, end, reverse, rows_max, bytes_max } = request.clone();
        if end.as_ref().is_some_and(|end| *end <= start) {
            return RangePage::default();
        }
        let upper = end.map_or(Bound::Unbounded, |it| Bound::Excluded((space, it)));
        let mut rows = self.rows.range((Bound::Included((space, start)), upper));
        let mut page = RangePage::default();
        let mut bytes = 0;
        loop {
            let row = if reverse { rows.next_back() } else { rows.next() };
            match row {
                // Without an end, the rows of the spaces behind follow.
                Some(((it, _), _)) if *it != space && reverse => continue,
                Some(((it, key), value)) if *it == space => {
                    if page.rows.len() >= rows_max || bytes >= bytes_max.max(1) {
                        page.more = true;
                        return page;
                    }
                    bytes += key.len() + value.len();
                    page.rows.push((key.clone(), value.clone()));
                }
                _ => return page,
            }
        }
    }

    fn write(&mut self, batch: &WriteBatch, durability: Durability) -> Result<(), StorageError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        let grown = self.bytes + batch.bytes();
        let no_room = !batch.is_empty() && self.bytes_max.is_some_and(|it| grown > it);
        match self.fault(Access::Append(batch.bytes())) {
            Some(Fault::Full) => return Err(full(grown)),
            None if no_room => return Err(full(grown)),
            None => {}
            Some(_) => {
                return Err(self.fail(batch, "the log cannot be written"));
            }
        }
        if durability == Durability::Synced && self.fault(Access::Sync).is_some() {
            return Err(self.fail(batch, "the log cannot be synced"));
        }
        let undo = self.apply(batch);
        self.keep(batch);
        match durability {
            Durability::Synced => self.unsynced.clear(),
            Durability::Buffered => {
                self.unsynced.push(Batch { changes: batch.clone(), undo: Some(undo) })
            }
        }
        Ok(())
    }

    fn keep(&mut self, batch: &WriteBatch) {
        if let Some(kept) = &mut self.kept {
            kept.push(batch.clone());
        }
    }

    fn apply(&mut self, batch: &WriteBatch) -> Undo {
        let mut undo = Vec::new();
        for (space, change) in batch.changes() {
            match change {
                Change::Put { key, value } => {
                    let key = Bytes::copy_from_slice(key);
                    let old = self.set(space, key.clone(), Some(Bytes::copy_from_slice(value)));
                    undo.push(((space, key), old));
                }
                Change::Delete { key } => {
                    let key = Bytes::copy_from_slice(key);
                    let old = self.set(space, key.clone(), None);
                    undo.push(((space, key), old));
                }
                Change::DeleteRange { start, end } if start < end => {
                    let [start, end] = [start, end].map(|it| (space, Bytes::copy_from_slice(it)));
                    let keys: Vec<_> = self.rows.range(start..end).map(|it| it.0.clone()).collect();
                    for (space, key) in keys {
                        let old = self.set(space, key.clone(), None);
                        undo.push(((space, key), old));
                    }
                }
                Change::DeleteRange { .. } => {}
            }
        }
        undo
    }

    /// Sets or removes a row and gives back what was there.
    fn set(&mut self, space: Space, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
        let key_bytes = key.len();
        let new_bytes = value.as_ref().map_or(0, |it| key_bytes + it.len());
        let old = match value {
            Some(value) => self.rows.insert((space, key), value),
            None => self.rows.remove(&(space, key)),
        };
        let old_bytes = old.as_ref().map_or(0, |it| key_bytes + it.len());
        self.bytes = self.bytes + new_bytes - old_bytes;
        old
    }

    /// Readers do not see the batch; the log may hold it.
    fn fail(&mut self, batch: &WriteBatch, message: &str) -> StorageError {
        self.unsynced.push(Batch { changes: batch.clone(), undo: None });
        let failure = StorageError::Failed { message: message.to_owned() };
        self.failure = Some(failure.clone());
        failure
    }
}

fn unreadable(fault: Fault) -> StorageError {
    match fault {
        Fault::Corrupt => StorageError::Corruption { message: "a block is damaged".to_owned() },
        _ => StorageError::Failed { message: "the device cannot read".to_owned() },
    }
}

fn full(wanted: usize) -> StorageError {
    StorageError::Full { message: format!("{wanted} bytes do not fit") }
}

#[cfg(test)]
mod tests;
