//! What goes into the machine of a write and what comes out. Decides nothing.

use bytes::Bytes;
use model::{
    Hlc, Record, ReplicaIndex, ReplicaMask, RequestId, Requirement, StorageKey, Version,
    WriteAnswer,
};

use crate::WriteError;

/// What a client wants written.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WriteRequest {
    /// The key, encoded once.
    pub key: StorageKey,
    /// The value; `None` is a delete.
    pub value: Option<Bytes>,
    /// Names the request in every version it is given.
    pub request: RequestId,
    /// How long the value lives after its stamp, in milliseconds. A delete ignores it.
    pub ttl_ms: Option<u64>,
    /// What the level requires of the replicas.
    pub requirement: Requirement,
    /// Ask a quorum for its versions before stamping (P5). Without effect below quorum levels.
    pub query_first: bool,
}

/// What happened to a write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WriteEvent {
    /// A replica answered a mutation; or refused a version query, then `hlc` does not matter.
    Answer {
        /// Who answers.
        from: ReplicaIndex,
        /// The clock of the stamp that it answers.
        hlc: Hlc,
        /// The answer.
        answer: WriteAnswer,
    },
    /// A replica answered a version query.
    Queried {
        /// Who answers.
        from: ReplicaIndex,
        /// The newest version there.
        newest: Version,
    },
    /// Nothing can be sent to these replicas, and no answer comes: a connection was lost, a queue is
    /// full, or a node was found down.
    Unreachable {
        /// The replicas.
        replicas: ReplicaMask,
    },
    /// A replica's database directory has been replaced: a vote of the one before may have been counted (F12).
    DirectoryReplaced,
    /// Some of what these replicas have answered was not taken: what is missing is asked for again (F12).
    AskAgain {
        /// The replicas.
        replicas: ReplicaMask,
    },
    /// A replica could not pass the mutation on to some of its neighbours.
    NotPassedOn {
        /// Who was to pass it on.
        from: ReplicaIndex,
    },
    /// A hint is durable at this coordinator.
    HintStored {
        /// The replica it is kept for.
        replica: ReplicaIndex,
        /// The clock of its stamp.
        hlc: Hlc,
    },
    /// No hint is kept for a replica.
    HintNotKept {
        /// The replica.
        replica: ReplicaIndex,
        /// The clock of its stamp.
        hlc: Hlc,
    },
    /// A stamp above the one asked for by `NeedStamp`.
    Stamped(Hlc),
    /// The client's time is over.
    Deadline,
}

/// What a write wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteEffect {
    /// Send the mutation to a replica, which passes it on.
    Send {
        /// The replica.
        to: ReplicaIndex,
        /// Its neighbours in its datacenter to which it must pass the mutation on.
        pass_on: ReplicaMask,
        /// The mutation.
        record: Record,
    },
    /// Ask replicas for the newest version they hold.
    Query {
        /// The replicas.
        to: ReplicaMask,
    },
    /// Give a stamp above this one, as `WriteEvent::Stamped`.
    NeedStamp {
        /// The highest clock among the versions answered.
        above: Hlc,
    },
    /// Keep the mutation for a replica until it can be reached.
    Hint {
        /// The replica.
        to: ReplicaIndex,
        /// The mutation.
        record: Record,
        /// The dead stamp whose hint for this replica is to be dropped.
        replaces: Option<Version>,
    },
    /// Answer the client. Comes exactly once.
    Reply(Result<WriteReply, WriteError>),
}

/// What an acknowledged write can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteReply {
    /// The version of the write.
    pub version: Version,
    /// How many replicas were required.
    pub required: u8,
    /// The replicas that have judged the version so far.
    pub answered: ReplicaMask,
    /// Those of them where it is or was the newest.
    pub applied: ReplicaMask,
    /// True if a replica already held a version that wins over this one.
    pub superseded_concurrent: bool,
}
