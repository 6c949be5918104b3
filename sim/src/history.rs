//! What clients asked and what they were told: all that most checkers look at.
//!
//! Batches and scans are taken apart: each key of them is an operation of its own, because each
//! promises by itself and nothing is promised of them together.

use std::sync::Arc;

use model::{ConsistencyLevel, Version};
use proto::Reason;

use crate::discipline::Discipline;

/// One operation on one key, as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Rises with the calls of a run.
    pub id: u64,
    /// The client: it carries the clock that it has seen from call to call. One client may have
    /// several calls under way.
    pub session: u32,
    /// The client's datacenter.
    pub datacenter: u8,
    /// The key's name.
    pub key: Arc<str>,
    /// What the key promises.
    pub discipline: Discipline,
    /// The level of this call.
    pub level: ConsistencyLevel,
    /// What was asked.
    pub action: Action,
    /// By which call.
    pub via: Via,
    /// The write's request id, if its client chose one: whatever version it has carries it.
    pub request: Option<u64>,
    /// How often its client sent it, at least once, under one request id. Each is a write of its own
    /// (X2); the outcome is that of the last.
    pub tries: u32,
    /// When the call began, the first if there were several, in microseconds of the run.
    pub called_us: u64,
    /// By when it had to be answered, if its client said so.
    pub deadline_us: Option<u64>,
    /// When its answer came, or its client gave up; `None` if the run ended first.
    pub returned_us: Option<u64>,
    /// What came of it.
    pub outcome: Outcome,
    /// Tombstones are purged in this run: a key that is absent without a version may have been deleted.
    pub purges: bool,
}

/// What was asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes a value, which no other operation of the run writes.
    Put {
        /// The value.
        value: u64,
        /// Its time to live, if it has one.
        ttl_ms: Option<u64>,
    },
    /// Deletes.
    Delete,
    /// Reads.
    Get,
}

/// The call that an operation was part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Via {
    /// A call of its own.
    Single,
    /// A batch.
    Batch,
    /// A scan: a read of each key that the page covered, present or not.
    Scan,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write was acknowledged.
    Written {
        /// Its version.
        version: Version,
    },
    /// The read was answered.
    Found {
        /// The value; `None` for absent.
        value: Option<u64>,
        /// The newest version, of a deletion too; `None` if the answer does not tell, as of rows that
        /// a scan did not find. Other reads always tell, so that `None` then means a key that was
        /// never written.
        version: Option<Version>,
    },
    /// Refused: nothing was applied, and nothing will be.
    NotApplied {
        /// Why.
        reason: Reason,
    },
    /// The write may have been applied, or may take effect later; for a read: no answer.
    Unknown {
        /// Why; `None` if the client gave up by itself.
        reason: Option<Reason>,
        /// True if a node said so, and not the client: at its own timer, or as the connection broke.
        answered: bool,
        /// Every version under which it was sent to replicas, if the answer told.
        versions: Option<Vec<Version>>,
    },
}

impl Outcome {
    /// The client gave up by itself.
    pub const GIVEN_UP: Self = Self::Unknown { reason: None, answered: false, versions: None };
}

impl Operation {
    /// True for puts and deletes.
    pub fn is_write(&self) -> bool {
        !matches!(self.action, Action::Get)
    }

    /// True if it was acknowledged, or answered.
    pub fn succeeded(&self) -> bool {
        matches!(self.outcome, Outcome::Written { .. } | Outcome::Found { .. })
    }
}
