//! Snapshots of one node: copies of its database at one moment, which share their files with it.
//!
//! A snapshot is a folder of `snapshots/` in the data directory: a RocksDB checkpoint, and a manifest
//! that says of what, and lists every file with its digest. It is made under another name and renamed
//! when all of it is durable, so a crash leaves nothing that looks whole.
//!
//! Invariant: a folder whose name is that of a snapshot was complete once. Whoever wants to know whether
//! it still is compares it with its manifest.

mod compare;
mod digest;
mod folder;
mod manifest;
mod name;
mod restore;

use std::{io, path::PathBuf};

pub use compare::{Comparison, Finding, Problem, compare, compare_digest};
pub use digest::{DIGEST_PREFIX, digest_file, digest_of};
pub use folder::{Draft, Listed, Opened, SnapshotFolder};
pub use manifest::{FORMAT, FileEntry, KeyspaceEntry, Manifest, ManifestError, Origin};
pub use name::SnapshotName;
pub use restore::{RestoreError, forget_restored, is_restored, restore};

use crate::storage::StorageError;

/// Why a snapshot could not be made, looked at or deleted.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The node's storage has no files.
    #[error("this node's storage keeps no snapshots: it has no files")]
    Unsupported,
    /// Another snapshot is being worked on.
    #[error("a snapshot of this node is being made, verified or deleted: one at a time")]
    Busy,
    /// There is one of this name.
    #[error("there is a snapshot {name} already")]
    Exists {
        /// The name.
        name: String,
    },
    /// There is none of this name.
    #[error("there is no snapshot {name}")]
    NotFound {
        /// The name.
        name: String,
    },
    /// There are as many as there may be.
    #[error("there are {actual} snapshots, and at most {limit} are kept: delete one first")]
    TooMany {
        /// How many there may be.
        limit: usize,
        /// How many there are.
        actual: usize,
    },
    /// It has more files than are listed.
    #[error("{} has more than {limit} files", path.display())]
    TooManyFiles {
        /// The folder.
        path: PathBuf,
        /// The most files listed.
        limit: usize,
    },
    /// The database refused to be copied.
    #[error("the database cannot be copied: {0}")]
    Storage(#[from] StorageError),
    /// A file or a folder cannot be read, written or removed.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The node is ending.
    #[error("the node is stopping")]
    Ended,
}

impl SnapshotError {
    /// True if the disk had no room.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Storage(error) => matches!(error, StorageError::Full { .. }),
            Self::File { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
