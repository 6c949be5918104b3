//! What a replica answers to a mutation. Rule P2: only after the state it reports is durable, and
//! from one serialization point per key.

use crate::Version;

/// A replica's answer to one stamped mutation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriteAnswer {
    /// The version is the newest here now, or already was.
    Applied,
    /// The version was the newest here once, and has been replaced. Counts as applied.
    Held,
    /// A newer version is here, and nothing was written.
    Superseded {
        /// The newest version here.
        newest: Version,
        /// True if the replica can prove that the mutation's version was never the newest here.
        never: bool,
    },
    /// The replica did not judge the mutation. Counts as nothing.
    Refused(Refusal),
}

/// Why a replica did not judge a mutation or a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The version is at or below the replica's fence: an old or a broken coordinator. Never a
    /// reason to stamp again.
    BelowFence,
    /// The request was planned by another layout or phase than the replica's.
    StaleLayout,
    /// The replica is starting or filling, and answers no reads.
    NotReady,
    /// A clock reading in the request lies further ahead than this replica merges.
    ClockAhead,
    /// The stored record of this key fails its checksum: an error, never "absent".
    Corrupt,
    /// The disk failed, or the node is stopping.
    Failed,
    /// A queue or budget of the replica is full.
    Overloaded,
    /// The disk is full. Nothing was applied; reads go on.
    DiskFull,
}
