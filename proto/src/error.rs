//! Errors of calls: one value that becomes a gRPC status, one key's error in a batch, and back.
//!
//! A call's error always tells a stable reason, the numbers behind it, and whether a write happened.
//! Conventions: google.rpc details as AIP-193 has them.

mod details;

use std::{collections::BTreeMap, fmt, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::v1;
use details::DOMAIN;

/// Whether a write happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// Nothing was applied anywhere, and nothing will be.
    NotApplied,
    /// It may have been applied, or may take effect at any later time.
    Unknown,
}

impl CallOutcome {
    /// As errors spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotApplied => "not_applied",
            Self::Unknown => "unknown",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident;)*) => {
        /// Why a call failed. The names on the wire are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The name on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The gRPC code that goes with it.
            pub fn code(self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                }
            }
        }
    };
}

reasons! {
    /// The partition key is empty.
    KeyEmpty = "KEY_EMPTY", InvalidArgument;
    /// The partition or sort key is too long: `limit`, `actual`.
    KeyTooLarge = "KEY_TOO_LARGE", InvalidArgument;
    /// The value is too long: `limit`, `actual`.
    ValueTooLarge = "VALUE_TOO_LARGE", InvalidArgument;
    /// A batch has too many keys, or too many bytes: `limit`, `actual`.
    BatchTooLarge = "BATCH_TOO_LARGE", InvalidArgument;
    /// A batch names a row twice.
    DuplicateKey = "DUPLICATE_KEY", InvalidArgument;
    /// The message is larger than the node reads: `limit`.
    MessageTooLarge = "MESSAGE_TOO_LARGE", ResourceExhausted;
    /// The message is no valid protobuf of its type.
    MalformedMessage = "MALFORMED_MESSAGE", InvalidArgument;
    /// A field's value is none of those allowed, or a required field is missing.
    InvalidField = "INVALID_FIELD", InvalidArgument;
    /// The consistency level is unknown, or impossible for this keyspace.
    InvalidConsistency = "INVALID_CONSISTENCY", InvalidArgument;
    /// The TTL is out of bounds: `limit`, `actual`.
    TtlOutOfBounds = "TTL_OUT_OF_BOUNDS", InvalidArgument;
    /// The client's clock token lies too far ahead: `limit_ms`.
    ClockAhead = "CLOCK_AHEAD", InvalidArgument;
    /// The node's own wall clock is not to be stamped by; nothing was sent: `limit_ms`, maybe `offset_ms`.
    ClockSkew = "CLOCK_SKEW", Unavailable;
    /// The page token is damaged, or belongs to another scan.
    TokenMalformed = "TOKEN_MALFORMED", InvalidArgument;
    /// The page token is of another cluster.
    TokenForeign = "TOKEN_FOREIGN", FailedPrecondition;
    /// The end of a range lies before its start.
    RangeReversed = "RANGE_REVERSED", InvalidArgument;
    /// No such keyspace: `keyspace`.
    KeyspaceNotFound = "KEYSPACE_NOT_FOUND", NotFound;
    /// The keyspace exists already.
    KeyspaceExists = "KEYSPACE_EXISTS", AlreadyExists;
    /// The keyspace's definition is refused.
    KeyspaceInvalid = "KEYSPACE_INVALID", InvalidArgument;
    /// The keyspace requires R + W > N, 2W > N and 2R > N, which this level does not give.
    OverlapRequired = "OVERLAP_REQUIRED", FailedPrecondition;
    /// Too few replicas are up; nothing was sent: `required`, `alive`, `level`, maybe `datacenter`.
    NotEnoughReplicas = "NOT_ENOUGH_REPLICAS", Unavailable;
    /// The deadline passed before enough replicas answered a write: `required`, `received`.
    WriteTimeout = "WRITE_TIMEOUT", DeadlineExceeded;
    /// Too many replicas failed for a write to reach its level: `required`, `received`.
    WriteFailed = "WRITE_FAILED", Aborted;
    /// The deadline passed before enough replicas answered a read: `required`, `received`.
    ReadTimeout = "READ_TIMEOUT", DeadlineExceeded;
    /// Too many replicas failed for a read to reach its level: `required`, `received`.
    ReadFailed = "READ_FAILED", Unavailable;
    /// Every copy that could be read fails its checksum.
    ChecksumMismatch = "CHECKSUM_MISMATCH", DataLoss;
    /// The call's deadline had passed before any work was done.
    DeadlinePassed = "DEADLINE_PASSED", DeadlineExceeded;
    /// The cluster has no layout yet.
    NoLayout = "NO_LAYOUT", Unavailable;
    /// The node is starting.
    Starting = "STARTING", Unavailable;
    /// The node is stopping.
    Draining = "DRAINING", Unavailable;
    /// The node has as much work as it takes: `limit`.
    Overloaded = "OVERLOADED", ResourceExhausted;
    /// No replica is up for a write at ANY, and its hints have reached their bound: `limit`, `actual`.
    AnyHintsFull = "ANY_HINTS_FULL", ResourceExhausted;
    /// The disk is full: writes are refused, reads go on.
    DiskFull = "DISK_FULL", ResourceExhausted;
    /// The node's disk has failed, and it takes no writes.
    StorageFailed = "STORAGE_FAILED", Unavailable;
    /// The peer belongs to another cluster.
    ClusterMismatch = "CLUSTER_MISMATCH", FailedPrecondition;
    /// The peer speaks a protocol that this node does not.
    VersionMismatch = "VERSION_MISMATCH", FailedPrecondition;
    /// A node would take the place of one that is up.
    NodeIsUp = "NODE_IS_UP", FailedPrecondition;
    /// A client called the interface between nodes.
    NotAPeer = "NOT_A_PEER", PermissionDenied;
    /// The members or the metadata changed since the plan was made.
    PlanChanged = "PLAN_CHANGED", FailedPrecondition;
    /// The layout cannot be planned or changed so.
    LayoutInvalid = "LAYOUT_INVALID", FailedPrecondition;
    /// Another change of layout or keyspaces won, or too few members took part to decide.
    AgreementFailed = "AGREEMENT_FAILED", Aborted;
    /// The node has a snapshot of this name: `name`.
    SnapshotExists = "SNAPSHOT_EXISTS", AlreadyExists;
    /// The node has no snapshot of this name: `name`.
    SnapshotNotFound = "SNAPSHOT_NOT_FOUND", NotFound;
    /// The node has as many snapshots as it keeps: `limit`, `actual`.
    SnapshotLimit = "SNAPSHOT_LIMIT", ResourceExhausted;
    /// The node's storage keeps no snapshots.
    SnapshotUnsupported = "SNAPSHOT_UNSUPPORTED", Unimplemented;
    /// The node could not read, write or remove the files of a snapshot.
    SnapshotFailed = "SNAPSHOT_FAILED", Internal;
    /// The connection broke or could not be made: nothing is known of the call's fate. Client only.
    ConnectionLost = "CONNECTION_LOST", Unavailable;
    /// An error that carries no reason of ours.
    Other = "OTHER", Unknown;
}

impl Reason {
    /// The reason of a name on the wire; `Other` for one that this build does not know.
    pub fn from_name(name: &str) -> Self {
        Self::ALL.iter().copied().find(|it| it.as_str() == name).unwrap_or(Self::Other)
    }

    /// Whether a write that failed so happened.
    pub fn outcome(self) -> CallOutcome {
        match self {
            Self::WriteTimeout
            | Self::WriteFailed
            | Self::ConnectionLost
            | Self::AgreementFailed
            | Self::Other => CallOutcome::Unknown,
            _ => CallOutcome::NotApplied,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A call's failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// Why.
    pub reason: Reason,
    /// For people: what happened, with the numbers.
    pub message: String,
    /// The numbers, by stable names. `outcome` is added on the wire.
    pub metadata: BTreeMap<String, String>,
    /// The field of the request that is at fault, if one is.
    pub field: Option<String>,
    /// When a retry is worth its while, if it is safe.
    pub retry_after: Option<Duration>,
    /// Whether a write happened.
    pub outcome: CallOutcome,
    /// The highest clock that the answering node has seen; 0 if it did not say.
    pub clock: u64,
    /// The code as it came over the wire, or as it will go.
    pub code: Code,
}

impl CallError {
    /// An error with the reason's own code and outcome.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            metadata: BTreeMap::new(),
            field: None,
            retry_after: None,
            outcome: reason.outcome(),
            clock: 0,
            code: reason.code(),
        }
    }

    /// Adds a number, or a name.
    pub fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.metadata.insert(name.to_owned(), value.to_string());
        self
    }

    /// Names the request's field at fault.
    pub fn at_field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Says when to try again.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Adds the answering node's clock (P1: errors carry it too).
    pub fn with_clock(mut self, clock: u64) -> Self {
        self.clock = clock;
        self
    }

    fn wire_metadata(&self) -> BTreeMap<String, String> {
        let mut metadata = self.metadata.clone();
        metadata.insert("outcome".to_owned(), self.outcome.as_str().to_owned());
        if self.clock != 0 {
            metadata.insert("clock".to_owned(), self.clock.to_string());
        }
        metadata
    }

    /// As one key's error in the answer to a batch.
    pub fn into_key_error(self) -> v1::KeyError {
        v1::KeyError {
            code: self.code.into(),
            reason: self.reason.as_str().to_owned(),
            metadata: self.wire_metadata(),
            message: self.message,
        }
    }

    /// From one key's error in the answer to a batch.
    pub fn from_key_error(error: v1::KeyError) -> Self {
        Self::assemble(Code::from_i32(error.code), error.message, &error.reason, error.metadata)
    }

    fn assemble(
        code: Code,
        message: String,
        reason: &str,
        mut metadata: BTreeMap<String, String>,
    ) -> Self {
        let mut it = Self::new(Reason::from_name(reason), message);
        it.code = code;
        it.outcome = match metadata.remove("outcome").as_deref() {
            Some("not_applied") => CallOutcome::NotApplied,
            Some(_) => CallOutcome::Unknown,
            None => it.reason.outcome(),
        };
        it.clock = metadata.remove("clock").and_then(|it| it.parse().ok()).unwrap_or_default();
        it.metadata = metadata;
        it
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let details = details::encode(&error);
        Self::with_details(error.code, error.message, details)
    }
}

impl From<&Status> for CallError {
    /// A status without our `ErrorInfo` is a broken connection or a foreign error: its outcome is
    /// unknown, whatever its code (X4).
    fn from(status: &Status) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info().filter(|it| it.domain == DOMAIN) else {
            let lost = matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::Unknown);
            let reason = if lost { Reason::ConnectionLost } else { Reason::Other };
            let mut it = Self::new(reason, status.message());
            it.code = status.code();
            return it;
        };
        let metadata = info.metadata.clone().into_iter().collect();
        let message = status.message().to_owned();
        let mut it = Self::assemble(status.code(), message, &info.reason, metadata);
        it.retry_after = details.retry_info().and_then(|it| it.retry_delay);
        let violations = details.bad_request().map(|it| it.field_violations.as_slice());
        it.field = violations.unwrap_or_default().first().map(|it| it.field.clone());
        it
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire() {
        for reason in Reason::ALL {
            let error = CallError::new(*reason, "what happened")
                .with("limit", 3)
                .at_field("key")
                .retry_after(Duration::from_millis(250))
                .with_clock(77);
            let status = Status::from(error.clone());
            assert_eq!(CallError::from(&status), error);
            let mut in_batch = CallError::from_key_error(error.clone().into_key_error());
            (in_batch.field, in_batch.retry_after) = (error.field.clone(), error.retry_after);
            assert_eq!(in_batch, error);
        }
    }

    #[test]
    fn an_error_has_one_encoding() {
        let error = (0..8)
            .fold(CallError::new(Reason::Overloaded, "what happened"), |error, it| {
                error.with(&format!("name-{it}"), it)
            });
        let first = Status::from(error.clone());
        for _ in 0..8 {
            assert_eq!(Status::from(error.clone()).details(), first.details());
        }
    }

    #[test]
    fn unavailable_of_ours_means_not_applied() {
        for reason in Reason::ALL {
            if reason.code() == Code::Unavailable && *reason != Reason::ConnectionLost {
                assert_eq!(reason.outcome(), CallOutcome::NotApplied, "{reason}: clients retry it");
            }
        }
    }

    #[test]
    fn a_broken_connection_is_unknown() {
        let error = CallError::from(&Status::unavailable("tcp connect error"));
        assert_eq!(error.reason, Reason::ConnectionLost);
        assert_eq!(error.outcome, CallOutcome::Unknown);
    }
}
