//! What goes into the machine of a read and what comes out. Decides nothing.

use bytes::Bytes;
use model::{Hlc, Record, Refusal, ReplicaIndex, ReplicaMask, Requirement, Version, WriteAnswer};

use crate::ReadError;

/// What a client wants read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// What the level requires of the replicas.
    pub requirement: Requirement,
    /// The coordinator's clock: queries carry it, replicas merge it, expiry is judged at it (G3).
    pub read_at: Hlc,
}

/// What happened to a read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReadEvent {
    /// A replica answered a query.
    Answer {
        /// Who answers.
        from: ReplicaIndex,
        /// The clock that the query carried.
        read_at: Hlc,
        /// The newest record there, tombstones and expired ones too; `None` for a key never written.
        record: Option<Record>,
        /// The replica's clock.
        clock: Hlc,
        /// The replica's floor (F8).
        floor: Hlc,
    },
    /// A replica answered a write-back.
    WroteBack {
        /// Who answers.
        from: ReplicaIndex,
        /// The version written back.
        version: Version,
        /// The answer.
        answer: WriteAnswer,
        /// The newest record there, if the answer is Superseded.
        newest: Option<Record>,
    },
    /// A replica did not answer the query or the write-back: no answer, whatever the reason.
    Refused {
        /// Who refuses.
        from: ReplicaIndex,
        /// Why.
        refusal: Refusal,
    },
    /// Nothing can be sent to these replicas, and no answer comes.
    Unreachable {
        /// The replicas.
        replicas: ReplicaMask,
    },
    /// A replica's database directory has been replaced: an answer of the one before may have been counted
    /// (F12).
    DirectoryReplaced,
    /// Some of what these replicas have answered was not taken: what is missing is asked for again (F12).
    AskAgain {
        /// The replicas.
        replicas: ReplicaMask,
    },
    /// A replica takes unusually long: ask one more.
    Slow,
    /// The client's time is over.
    Deadline,
}

/// What a read wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadEffect {
    /// Ask replicas for their newest record.
    Query {
        /// The replicas.
        to: ReplicaMask,
        /// The clock to carry.
        read_at: Hlc,
    },
    /// Write a record to replicas, and tell what they answer.
    WriteBack {
        /// The replicas.
        to: ReplicaMask,
        /// The record.
        record: Record,
        /// The floor of a replica that holds it (F8).
        floor: Hlc,
    },
    /// Write a record to replicas. Behind the reply: no answer is awaited.
    Repair {
        /// The replicas.
        to: ReplicaMask,
        /// The record.
        record: Record,
        /// The floor of a replica that holds it (F8).
        floor: Hlc,
    },
    /// Answer the client. Comes exactly once.
    Reply(Result<ReadReply, ReadError>),
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadReply {
    /// The newest record, be it a tombstone or expired; `None` if the key was never written.
    pub record: Option<Record>,
    /// The value; `None` if the key is absent.
    pub value: Option<Bytes>,
    /// The version of the newest record; `Version::ABSENT` if the key was never written.
    pub version: Version,
    /// How many replicas were required.
    pub required: u8,
    /// The replicas that answered.
    pub answered: ReplicaMask,
    /// The replicas to which the newest record was or is written, because they held an older one.
    pub repaired: ReplicaMask,
}
