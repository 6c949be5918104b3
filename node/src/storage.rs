//! What a node keeps on disk, behind one small synchronous trait, so that the same replica code
//! runs on RocksDB and on the simulator's memory.
//!
//! An engine orders keys by their bytes, applies a batch whole or not at all, and shows readers
//! only what it has accepted: a batch written with [`Durability::Synced`] becomes visible after it
//! is durable, never before (rule G4). It knows nothing of versions or records.
//!
//! Invariant: once a synced write has failed for another reason than a full disk, the engine
//! refuses every later write until it is opened again. After a failed fsync nobody knows what the
//! disk holds, and a repeated one may report success for pages that the kernel has dropped
//! (Rebello et al., "Can Applications Recover from fsync Failures?", 2020). Reads may go on.

mod announced;
mod batch;
pub mod cached;
#[cfg(test)]
mod conformance;
mod format;
pub mod memory;
pub mod rocks;

use std::{path::Path, sync::Arc};

use bytes::Bytes;

pub use announced::announce_first;
pub use batch::{Change, WriteBatch};
pub use format::{FORMAT_VERSION, LANES, OpenError, check_format};

/// One node's storage. Calls block for as long as the disk does, except [`Storage::try_get`].
pub trait Storage: Send + Sync + 'static {
    /// Reads one value if that needs no disk: safe to call where blocking is not.
    fn try_get(&self, space: Space, key: &[u8]) -> Result<TryGet, StorageError>;

    /// Reads one value, from disk if need be.
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// Reads one page of neighbouring rows, all from one moment.
    fn range(&self, request: &RangeRequest) -> Result<RangePage, StorageError>;

    /// Applies a batch whole or not at all; see the module about what a failure means. With
    /// [`StorageError::Full`] nothing was applied, and a later write may succeed.
    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), StorageError>;

    /// Writes a copy of everything, openable on its own, to a folder that does not exist yet.
    fn checkpoint(&self, path: &Path) -> Result<(), StorageError>;

    /// Makes every accepted write durable and the next open fast.
    fn flush(&self) -> Result<(), StorageError>;

    /// Sizes, cheap enough to ask for every second.
    fn statistics(&self) -> StorageStatistics;

    /// Forgets rows that are kept in memory before the engine: the disk was found to hold other ones.
    fn forget_rows(&self) {}

    /// Says that rows of [`Space::Data`] are about to be read: whoever keeps rows in memory may have the
    /// processor look for all of them at once. Changes nothing.
    fn announce(&self, _keys: &[&[u8]]) {}
}

/// A shared engine is an engine.
impl<S: Storage + ?Sized> Storage for Arc<S> {
    fn try_get(&self, space: Space, key: &[u8]) -> Result<TryGet, StorageError> {
        (**self).try_get(space, key)
    }

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        (**self).get(space, key)
    }

    fn range(&self, request: &RangeRequest) -> Result<RangePage, StorageError> {
        (**self).range(request)
    }

    fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<(), StorageError> {
        (**self).write(batch, durability)
    }

    fn checkpoint(&self, path: &Path) -> Result<(), StorageError> {
        (**self).checkpoint(path)
    }

    fn flush(&self) -> Result<(), StorageError> {
        (**self).flush()
    }

    fn statistics(&self) -> StorageStatistics {
        (**self).statistics()
    }

    fn forget_rows(&self) {
        (**self).forget_rows();
    }

    fn announce(&self, keys: &[&[u8]]) {
        (**self).announce(keys);
    }
}

/// The separate key spaces of a node. Keys of different spaces never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// Storage key -> record and what it replaced ([`crate::replica::Stored`]).
    Data,
    /// Target node (16 bytes), then storage key -> record ([`crate::commit::Hint`]).
    Hints,
    /// Keyspace and first token -> a leaf of a Merkle tree, and behind them a journal of leaves
    /// ([`crate::commit::Trees`]).
    Trees,
    /// Keyspace, partition and floor, then storage key: what may be purged when
    /// ([`crate::commit::due_keys`]).
    Dues,
    /// What the node knows about itself. Keys that begin with a zero byte belong to `storage` and
    /// `commit`; the rest are the caller's.
    System,
}

impl Space {
    /// Every space.
    pub const ALL: [Self; 5] = [Self::Data, Self::Hints, Self::Trees, Self::Dues, Self::System];
}

/// The answer of a read that must not block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TryGet {
    /// The value.
    Hit(Bytes),
    /// There is no such key.
    Absent,
    /// Only the disk knows. Ask again with [`Storage::get`], where blocking is allowed.
    WouldBlock,
}

/// Whether a write waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// Durable, with all earlier writes, before the call returns.
    #[default]
    Synced,
    /// Survives the process, not a power cut, until a later synced write or flush.
    Buffered,
}

/// Asks for the rows from `start` up to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeRequest {
    /// Where the rows are.
    pub space: Space,
    /// The first key, inclusive.
    pub start: Bytes,
    /// The end, exclusive; `None` for the end of the space.
    pub end: Option<Bytes>,
    /// From the end backwards.
    pub reverse: bool,
    /// The most rows to return.
    pub rows_max: usize,
    /// Stop after the row that reaches so many bytes of keys and values. One row always fits.
    pub bytes_max: usize,
}

impl RangeRequest {
    /// Every row whose key starts with `prefix`, forward and without limits.
    pub fn prefix(space: Space, prefix: impl Into<Bytes>) -> Self {
        let start = prefix.into();
        let end = model::StorageKey::prefix_end(&start);
        Self { space, start, end, reverse: false, rows_max: usize::MAX, bytes_max: usize::MAX }
    }
}

/// One page of rows, in the order asked for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RangePage {
    /// Keys and values.
    pub rows: Vec<(Bytes, Bytes)>,
    /// True if a limit ended the page and at least one row is left.
    pub more: bool,
}

impl RangePage {
    /// The request for the page after this one; `None` if this was the last.
    pub fn following(&self, request: &RangeRequest) -> Option<RangeRequest> {
        let (last, _) = self.rows.last().filter(|_| self.more)?;
        let mut next = request.clone();
        if request.reverse {
            next.end = Some(last.clone());
        } else {
            next.start = [last, &[0][..]].concat().into();
        }
        Some(next)
    }
}

/// Sizes of an engine. Estimates, except for the simulator's engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct StorageStatistics {
    /// Rows of [`Space::Data`].
    pub data_rows: u64,
    /// Rows of [`Space::Hints`].
    pub hint_rows: u64,
    /// Bytes of data files.
    pub file_bytes: u64,
    /// Bytes of writes not yet moved to data files.
    pub memory_bytes: u64,
    /// Bytes of rows cached before the engine.
    pub row_cache_bytes: u64,
}

/// Why an engine refused or failed, by what to do about it. The engine's own words are kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// The data asked for is damaged or cannot be read: an error for the keys concerned, never
    /// "absent". Other keys may be fine.
    #[error("stored data is damaged or unreadable: {message}")]
    Corruption {
        /// What the engine said.
        message: String,
    },
    /// The disk is full. Nothing of this write was applied. Reads go on, and writes do too once
    /// there is room.
    #[error("the disk is full: {message}")]
    Full {
        /// What the engine said.
        message: String,
    },
    /// What the disk holds of this write is unknown, and no further write is accepted. Stop the
    /// node; opening it again tells.
    #[error("storage has failed: {message}")]
    Failed {
        /// What the engine said.
        message: String,
    },
}
