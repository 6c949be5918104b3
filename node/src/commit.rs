//! The commit path of a replica: the one writer of a node's storage.
//!
//! Everything that changes the disk is an item in a [`CommitQueue`]. One [`Committer`] takes what
//! is queued as a group (no timer: groups form by themselves while the disk is busy), judges every
//! mutation against what is stored and against the items before it, writes one batch, waits for
//! the disk once, and only then answers the group (rules P2 and G4). It is the serialization point
//! per key, and there is never a second one: two writers on one database cost more than they give.
//!
//! It also keeps fences and floors. Decides nothing about levels or clocks: who enqueues a mutation has
//! checked these.

mod committer;
mod dirty;
mod driver;
mod dues;
mod floors;
mod hint_ledger;
mod hints;
mod mend;
mod overlay;
mod queue;
mod trees;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use model::{
    KeyspaceId, NodeId, OperationId, PartitionIndex, Record, Refusal, StorageKey, Version,
    WriteAnswer,
};

use crate::{
    counters::counters,
    damage::DamageBoard,
    storage::{Durability, StorageError},
};

pub use committer::Committer;
pub use dirty::{DIRTY_PREFIX, DirtyMark, dirty_marks};
pub use driver::{CommitStage, run_as_task, run_on_thread};
pub use dues::{DuePage, due_keys};
pub(crate) use floors::fill_row;
pub use floors::{FloorChange, FloorTable, Floors, Origin, PartitionFloor};
pub use hint_ledger::{AGE_STEP_MS, HintSum, HintTotals, KeptHints};
pub use hints::{Hint, HintClass, HintPage, hint_bytes_of, hints_for};
pub use mend::{Healing, Mend, MendDone, Mended};
pub use queue::{CommitQueue, QueueLimits, Rejected};
pub use trees::{TreeSettings, TreeStatistics, Trees, WrongTree};

/// Called once a change of [`CommitItem::System`] is durable, or has failed. Runs on the commit
/// thread: hand the news on and return.
pub type SystemDone = Box<dyn FnOnce(Result<(), StorageError>) + Send>;

/// One change of a node's storage. `D` says where the answer goes.
pub enum CommitItem<D> {
    /// A stamped write of one key, from a client's coordinator, a write-back or a repair.
    Mutation {
        /// Where the answer goes.
        destination: D,
        /// Given back in the answer.
        operation: OperationId,
        /// Given back in the answer.
        slot: u32,
        /// The key.
        key: StorageKey,
        /// The record, checked when it entered the process.
        record: Record,
        /// By which right it comes.
        origin: Origin,
        /// A write-back: an answer `Superseded` carries the record stored here (rule G1).
        want_newest: bool,
    },
    /// A change of what the node knows about itself: metadata, clock ceiling, agreement.
    System {
        /// The key in [`crate::storage::Space::System`]; it does not begin with a zero byte.
        key: Bytes,
        /// The new value; `None` removes the key.
        value: Option<Bytes>,
        /// Hears of the outcome.
        done: SystemDone,
    },
    /// A write kept for a replica that is away.
    Hint {
        /// Where the answer goes.
        destination: D,
        /// Given back in the answer.
        operation: OperationId,
        /// Given back in the answer.
        slot: u32,
        /// The replica that is away.
        target: NodeId,
        /// The key.
        key: StorageKey,
        /// The record.
        record: Record,
        /// What may become of it.
        class: HintClass,
        /// The dead stamp that this record's stamp replaces: its hint must not stay (rule H2).
        replaces: Option<Version>,
    },
    /// The target durably holds `version` or a newer one: its hint is no longer needed.
    DropHint {
        /// The replica that was away.
        target: NodeId,
        /// The key.
        key: StorageKey,
        /// What the target holds. A newer hint stays.
        version: Version,
    },
    /// A hint is given up: nothing happens to one of ANY, or to one that is newer than `version`.
    EndHint {
        /// The replica that is away.
        target: NodeId,
        /// The key.
        key: StorageKey,
        /// The hint's version, as it was found.
        version: Version,
        /// Why.
        why: HintEnd,
    },
    /// A replica that is away lacks writes for which no hints are kept.
    MarkDirty {
        /// What covers them.
        mark: DirtyMark,
    },
    /// Marks that are owed for hints which a full disk has refused: now there may be room.
    MarkOwed,
    /// What a dirty mark covers has been compared with its target.
    DropDirtyMark {
        /// The mark.
        mark: DirtyMark,
        /// Its generation when that began. A later one stays.
        generation: u64,
    },
    /// A node has left the cluster: nothing is compared with it any more.
    ForgetDirtyMarks {
        /// The node.
        target: NodeId,
    },
    /// A partition's step on the way to purging.
    Floor {
        /// The keyspace.
        keyspace: KeyspaceId,
        /// The partition.
        partition: PartitionIndex,
        /// The step. One that is not allowed changes nothing.
        change: FloorChange,
    },
    /// Removes a key's record, if the partition's floor covers it.
    Purge {
        /// The key.
        key: StorageKey,
    },
    /// Removes a record that none of the sources holds by which a replica is being filled (F7).
    Discard {
        /// The key.
        key: StorageKey,
        /// The record's version. Another one stays.
        version: Version,
    },
    /// The directory is to be filled by others from now on, or has been (F7).
    Fill {
        /// Its generation; `None` once it was filled.
        generation: Option<u64>,
        /// Without one: the generation that was filled.
        ends: Option<u64>,
        /// Who the node is, if the directory gets another id with that.
        identity: Option<Bytes>,
        /// Hears of the outcome.
        done: SystemDone,
    },
    /// Puts something right that a disk has done wrong.
    Mend(Mend),
    /// Changes nothing: what was queued before it is durable, or was refused.
    Settled {
        /// Hears of it.
        done: SystemDone,
    },
    /// Removes every row of a dropped keyspace. Its hints go when they are replayed.
    DropKeyspace {
        /// The keyspace's id, which is never used again.
        keyspace: KeyspaceId,
    },
}

impl<D> CommitItem<D> {
    /// What the item counts against the queue's bytes.
    fn bytes(&self) -> usize {
        let held = match self {
            Self::Mutation { key, record, .. } | Self::Hint { key, record, .. } => {
                key.as_bytes().len() + record.as_bytes().len()
            }
            Self::System { key, value, .. } => key.len() + value.as_ref().map_or(0, Bytes::len),
            Self::DropHint { key, .. }
            | Self::EndHint { key, .. }
            | Self::Purge { key }
            | Self::Discard { key, .. } => key.as_bytes().len(),
            Self::Mend(mend) => mend.bytes(),
            Self::MarkDirty { .. }
            | Self::MarkOwed
            | Self::DropDirtyMark { .. }
            | Self::ForgetDirtyMarks { .. }
            | Self::Floor { .. }
            | Self::Fill { .. }
            | Self::Settled { .. }
            | Self::DropKeyspace { .. } => 0,
        };
        held + size_of::<Self>()
    }

    /// True for what clients cause, and a full queue refuses. The rest is bounded by who enqueues
    /// it, and refusing it would not help: a node that cannot raise its clock's ceiling stops.
    fn is_refusable(&self) -> bool {
        matches!(self, Self::Mutation { .. } | Self::Hint { .. } | Self::MarkDirty { .. })
    }
}

/// Why a hint is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HintEnd {
    /// It is too old: a dirty mark takes its place.
    Aged,
    /// Its target is no replica of the key any more (CE26).
    Orphaned,
}

/// What became of one mutation or hint. What it reports is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitAnswer {
    /// As in the item.
    pub operation: OperationId,
    /// As in the item.
    pub slot: u32,
    /// The version of the item's record.
    pub version: Version,
    /// The outcome.
    pub kind: CommitAnswerKind,
    /// The record stored here, if the item asked for it and a newer one is.
    pub newest: Option<Record>,
}

/// The outcome of one mutation or hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitAnswerKind {
    /// The judgement of a mutation.
    Mutation(WriteAnswer),
    /// The hint, or a newer one for the same key, is kept.
    HintStored,
    /// The target's hints have reached their bound: the hint was not kept, and a durable mark says
    /// which part of the ring the target must be compared for (rule H3).
    HintMarkedDirty,
    /// The hint is not kept. A mark takes its place once there is room (rule H3).
    HintRefused(Refusal),
}

impl CommitAnswer {
    /// Turns the answer of a group that was not written into a refusal.
    fn refuse(&mut self, refusal: Refusal) {
        self.newest = None;
        self.kind = match self.kind {
            CommitAnswerKind::Mutation(_) => {
                CommitAnswerKind::Mutation(WriteAnswer::Refused(refusal))
            }
            _ => CommitAnswerKind::HintRefused(refusal),
        };
    }
}

/// What a [`Committer`] is told once.
#[derive(Clone)]
pub struct CommitSettings {
    /// How groups are written. `Buffered` gives up rule G4 for keyspaces that agree to that.
    pub durability: Durability,
    /// The most bytes of hints kept for one target. Beyond it the exchange does the work, which
    /// moves less than a replay of many overwrites would.
    pub hint_bytes_per_target_max: u64,
    /// The most bytes of hints kept for writes at ANY, of all targets together. Beyond it a hint
    /// acknowledges no write.
    pub any_hint_bytes_max: u64,
    /// The Merkle trees to keep; `None` keeps none, which only measurements do.
    pub trees: Option<Arc<Trees>>,
    /// Where partitions stand on the way to purging.
    pub floors: Arc<Floors>,
    /// Which records are known to be damaged.
    pub damage: Arc<DamageBoard>,
    /// Another one in each life of a node: then nobody can choose keys that share a hash.
    pub hash_seed: u64,
}

impl Default for CommitSettings {
    /// Synced; 128 MiB of hints per target: some minutes of a replica's share of full load, which
    /// covers a restart, and little against the data of a node. As much again for all of ANY. No
    /// trees.
    fn default() -> Self {
        Self {
            durability: Durability::Synced,
            hint_bytes_per_target_max: 128 << 20,
            any_hint_bytes_max: 128 << 20,
            trees: None,
            floors: Arc::default(),
            damage: Arc::default(),
            hash_seed: 0,
        }
    }
}

counters! {
    /// What a commit path has done since it was opened.
    CommitCounters;

    /// Groups written or judged.
    groups = "commit_groups",
    /// Items in them.
    items = "commit_items",
    /// The most items of one group.
    group_items_max = "commit_group_items_max" as Gauge,
    /// Records written.
    records_written,
    /// Tombstones and expired records removed because every replica has proven that nothing older is left.
    records_purged,
    /// Records removed because no source held them by which this replica was filled.
    records_discarded,
    /// Mutations refused as below a fence or a floor.
    below_fence = "mutations_below_fence",
    /// Mutations answered `Superseded`.
    superseded = "mutations_superseded",
    /// Items refused because the stored bytes of their key are damaged. Alarm.
    corrupt = "records_corrupt",
    /// Records of one version with different contents: a request id was used twice. Alarm.
    conflicting_records = "records_conflicting",
    /// Leaves of Merkle trees that were cut because they had grown.
    leaves_cut,
    /// Leaves that were not what the data say, and are again. Alarm.
    leaves_mended,
    /// Leaves that the scrub has found not to be what the data say: a write was lost, or a record is damaged. Alarm.
    leaves_recounted,
    /// Damaged records that were replaced by what the other replicas hold.
    records_healed,
    /// Hints kept.
    hints_stored,
    /// Times that a dirty mark was put in place of a hint, or was to be put and found no room.
    hints_marked_dirty,
    /// Dirty marks that are owed until the disk has room for them.
    marks_owed = "dirty_marks_owed" as Gauge,
    /// Hints replaced by a dirty mark because they were too old.
    hints_aged,
    /// Hints given up because their target is no replica of their key any more.
    hints_orphaned,
    /// Groups refused because the disk was full.
    groups_full = "commit_groups_full",
    /// Groups refused because the storage had failed.
    groups_failed = "commit_groups_failed",
}

impl CommitCounters {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The lane (database, log, commit thread) of a partition. One lane serves some sixteen cores; the
/// number of lanes is on disk, so more of them is a migration and not a format.
pub fn lane(_partition: PartitionIndex) -> usize {
    0
}
