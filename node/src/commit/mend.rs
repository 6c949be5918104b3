//! What puts right on disk what a disk has done wrong: leaves of Merkle trees that are not what the data
//! say (M6), and records that are damaged (F9).

use antientropy::heal::Heir;
use bytes::Bytes;
use model::{KeyspaceId, StorageKey, Token};

use super::PartitionFloor;
use crate::storage::StorageError;

/// Hears what came of a [`Mend`]. Runs on the commit thread: hand the news on and return.
pub type MendDone = Box<dyn FnOnce(Result<Mended, StorageError>) + Send>;

/// Something to be put right, between two groups.
pub enum Mend {
    /// Counts a leaf of a Merkle tree again.
    Leaf {
        /// The keyspace.
        keyspace: KeyspaceId,
        /// A token of its range.
        token: Token,
        /// Hears what came of it.
        done: MendDone,
    },
    /// Replaces a damaged record.
    Record {
        /// The key.
        key: StorageKey,
        /// What takes its place; `None` while that is not known. Then a sound copy in memory does.
        by: Option<Box<Healing>>,
        /// Hears what came of it.
        done: MendDone,
    },
    /// Removes a row of the index of what may be purged, if it stands for no record.
    Due {
        /// The row.
        row: Bytes,
        /// Its key.
        key: StorageKey,
    },
}

/// What takes the place of a damaged record, and what that was found out by.
pub struct Healing {
    /// What the other replicas hold.
    pub heir: Heir,
    /// A hash of the damaged bytes when they were asked: others may have been newer since.
    pub damaged: u64,
    /// Where the partition stood when they were asked.
    pub asked_at: PartitionFloor,
}

/// What came of a [`Mend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mended {
    /// Nothing was wrong.
    Nothing,
    /// It is right again.
    Done,
    /// A record is damaged still, and this is a hash of its bytes.
    Damaged(u64),
    /// What storage itself cannot read cannot be put right.
    Unreadable,
}

impl Mend {
    /// What it counts against the queue's bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Leaf { .. } => 0,
            Self::Record { key, by, .. } => {
                let record = by.as_ref().and_then(|it| it.heir.record.as_ref());
                key.as_bytes().len() + record.map_or(0, |it| it.as_bytes().len())
            }
            Self::Due { row, key } => row.len() + key.as_bytes().len(),
        }
    }
}
