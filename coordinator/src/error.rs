//! Why a request failed, by what its client can do next. Every error carries both numbers.

use model::{DcIndex, Mutant, Refusal, ReplicaIndex, ReplicaMask, Version};

/// Why a write was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Too few replicas are up. Nothing was sent and nothing was applied: retrying is safe.
    #[error("unavailable: {required} replicas are required, {alive} are up; nothing was applied")]
    Unavailable {
        /// The datacenter that lacks replicas; `None` if all of them count together.
        datacenter: Option<DcIndex>,
        /// How many must be up there.
        required: u8,
        /// How many are.
        alive: u8,
    },
    /// The deadline passed. Unless `versions` is empty the write may have happened, may still
    /// happen, and may then win over writes acknowledged later (CE8).
    #[error(
        "timeout: {acked} of {required} required replicas acknowledged in time; stamped {versions:?}"
    )]
    Timeout {
        /// How many replicas are required.
        required: u8,
        /// How many acknowledged the last stamp.
        acked: u8,
        /// The stamps that were sent, in order: the versions to look for. None if only a version
        /// query was sent, so that nothing was applied.
        versions: Vec<Version>,
    },
    /// The requirement can no longer be met, and waiting for the deadline would not help. The write
    /// may have happened and may still happen, as for `Timeout`.
    #[error(
        "failed: {acked} of {required} required replicas acknowledged, refused by {refusals:?}; stamped {versions:?}"
    )]
    Failed {
        /// How many replicas are required.
        required: u8,
        /// How many acknowledged the last stamp.
        acked: u8,
        /// The replicas that refused, and why. Those missing here were unreachable, or held a newer
        /// version without a proof that this one was never visible.
        refusals: Vec<(ReplicaIndex, Refusal)>,
        /// The stamps that were sent, in order, as for `Timeout`.
        versions: Vec<Version>,
    },
}

impl WriteError {
    /// True if the write may have happened or may still happen. False: it did not and will not.
    pub fn outcome_unknown(&self) -> bool {
        !self.versions().is_empty() && !Mutant::UnknownSaidNotApplied.is_on()
    }

    /// The stamps that were sent, in order.
    pub fn versions(&self) -> &[Version] {
        match self {
            Self::Unavailable { .. } => &[],
            Self::Timeout { versions, .. } | Self::Failed { versions, .. } => versions,
        }
    }
}

/// Why a read has no answer. A read changes nothing that a client can see, so retrying is safe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Too few replicas are up. Nothing was sent.
    #[error("unavailable: {required} replicas are required, {alive} are up")]
    Unavailable {
        /// The datacenter that lacks replicas; `None` if all of them count together.
        datacenter: Option<DcIndex>,
        /// How many must be up there.
        required: u8,
        /// How many are.
        alive: u8,
    },
    /// The deadline passed.
    #[error("timeout: {answered} of {required} required replicas answered in time")]
    Timeout {
        /// How many replicas are required.
        required: u8,
        /// How many answered; where they disagreed, how many confirmed the newest version.
        answered: u8,
    },
    /// Too few replicas are left that could still answer.
    #[error("failed: {answered} of {required} required replicas answered, refused by {refusals:?}")]
    Failed {
        /// How many replicas are required.
        required: u8,
        /// How many answered; where they disagreed, how many confirmed the newest version.
        answered: u8,
        /// The replicas that refused, and why. Those missing here were unreachable.
        refusals: Vec<(ReplicaIndex, Refusal)>,
    },
    /// As `Failed`, where a replica's record of the key fails its checksum: the key may have a value
    /// that cannot be read.
    #[error(
        "corrupt: {answered} of {required} required replicas answered, the records of {corrupt:?} fail their checksum"
    )]
    Corrupt {
        /// How many replicas are required.
        required: u8,
        /// How many answered; where they disagreed, how many confirmed the newest version.
        answered: u8,
        /// The replicas whose record is corrupt.
        corrupt: ReplicaMask,
    },
}
