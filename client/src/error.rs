//! The error of a call: what happened, where, whether it was applied, and what to try.
//!
//! Decides nothing about retries; `retry` does. Outcomes follow X4 of `docs/protocol.md`: what is
//! not proved not to have happened may have happened.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use proto::{CallError, CallOutcome, Reason};
use tonic::Code;

/// Why a call failed. Cheap to clone and to pass on.
///
/// Look at [`reason`](Self::reason) to decide what to do, and for writes at
/// [`outcome`](Self::outcome) first: after [`CallOutcome::Unknown`] the write may have been applied,
/// or may take effect at any later time, even over later writes.
#[derive(Clone)]
pub struct Error(Arc<Details>);

#[derive(Debug)]
struct Details {
    call: &'static str,
    writes: bool,
    node: Option<Arc<str>>,
    attempts: u32,
    answered: bool,
    cause: CallError,
}

impl Error {
    pub(crate) fn new(
        call: &'static str,
        writes: bool,
        node: Option<Arc<str>>,
        attempts: u32,
        cause: CallError,
    ) -> Self {
        Self(Arc::new(Details { call, writes, node, attempts, answered: false, cause }))
    }

    /// Marks an error that came back from a node, when it is made.
    pub(crate) fn answered(mut self) -> Self {
        if let Some(details) = Arc::get_mut(&mut self.0) {
            details.answered = true;
        }
        self
    }

    /// An error of the caller's input, found before anything was sent.
    pub(crate) fn refused(call: &'static str, cause: CallError) -> Self {
        Self::new(call, false, None, 0, cause)
    }

    /// Why, by a stable name.
    pub fn reason(&self) -> Reason {
        self.0.cause.reason
    }

    /// Whether a write happened. Reads change nothing, whatever is said here.
    pub fn outcome(&self) -> CallOutcome {
        self.0.cause.outcome
    }

    /// True if the call was a write that may have been applied, or may take effect later.
    pub fn is_unknown_write(&self) -> bool {
        self.0.writes && self.outcome() == CallOutcome::Unknown
    }

    /// The call: `put`, `get`, `scan` and so on.
    pub fn call(&self) -> &'static str {
        self.0.call
    }

    /// What happened, without the rest.
    pub fn message(&self) -> &str {
        &self.0.cause.message
    }

    /// The numbers behind the reason, by stable names: `required`, `alive`, `limit` and so on.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.cause.metadata
    }

    /// One number behind the reason; `None` if it is absent or no number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.metadata().get(name)?.parse().ok()
    }

    /// The field of the request that is at fault, if one is.
    pub fn field(&self) -> Option<&str> {
        self.0.cause.field.as_deref()
    }

    /// When the node suggests to try again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.cause.retry_after
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.0.cause.code
    }

    /// The address of the node that answered, or did not; `None` if nothing was sent anywhere.
    pub fn node(&self) -> Option<&str> {
        self.0.node.as_deref()
    }

    /// True if a node, or something between, answered with this error. False if this client made it:
    /// no connection could be made, it broke, or the time was up without an answer.
    pub fn is_answer(&self) -> bool {
        self.0.answered
    }

    /// How often the call was tried, on whatever nodes; 0 if nothing was sent anywhere.
    pub fn attempts(&self) -> u32 {
        self.0.attempts
    }

    /// The error as it came over the wire, or as the client would have received it.
    pub fn cause(&self) -> &CallError {
        &self.0.cause
    }

    /// What to try, in a sentence without its full stop.
    pub fn advice(&self) -> &'static str {
        if self.is_unknown_write() {
            return "read the key to see whether it was applied; \
                    writing it again makes a new write";
        }
        Self::advice_about(self.reason())
    }

    /// What to try about a reason, where nothing is known of the call.
    pub fn advice_about(reason: Reason) -> &'static str {
        advice(reason)
    }
}

fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::KeyEmpty | Reason::InvalidField | Reason::MalformedMessage => "correct the request",
        Reason::KeyTooLarge => "make the key shorter: its limit is fixed",
        Reason::ValueTooLarge => "split the value, or raise --value-bytes-max of every node",
        Reason::MessageTooLarge => "send less in one message",
        Reason::BatchTooLarge => "split the batch",
        Reason::DuplicateKey => "name each row once in a batch",
        Reason::InvalidConsistency => "choose a level that this keyspace can give",
        Reason::TtlOutOfBounds => "choose a TTL within the limit",
        Reason::ClockAhead => "check the clocks of the nodes, and make a new client",
        Reason::ClockSkew => "ask another node, and set this one's clock right",
        Reason::TokenMalformed | Reason::TokenForeign => "start the scan again without its token",
        Reason::RangeReversed => "exchange the range's start and end",
        Reason::KeyspaceNotFound => "check the name, or create the keyspace",
        Reason::KeyspaceExists => "choose another name, or alter the keyspace",
        Reason::KeyspaceInvalid => "correct the keyspace's definition",
        Reason::OverlapRequired => "choose a higher level: the keyspace requires R + W > N",
        Reason::NotEnoughReplicas => "bring nodes back, or choose a lower level",
        Reason::WriteTimeout | Reason::WriteFailed => "read the key before writing it again",
        Reason::ReadTimeout | Reason::ReadFailed | Reason::DeadlinePassed => {
            "try again, with a longer timeout, up to the nodes' --request-timeout, or a lower level"
        }
        Reason::ChecksumMismatch => "read at a higher level, and check the disks of the replicas",
        Reason::NoLayout => "plan and commit the cluster's first layout",
        Reason::Starting | Reason::Draining | Reason::Overloaded => "try again in a moment",
        Reason::AnyHintsFull => "bring back a replica of the key, or raise --any-hint-bytes-max",
        Reason::DiskFull => "make room on the node's disk",
        Reason::StorageFailed => "replace the node's disk; other nodes go on",
        Reason::ClusterMismatch => "connect to nodes of one cluster only",
        Reason::VersionMismatch => "run the same release on both sides",
        Reason::NodeIsUp => {
            "stop the other process first; a node of its own needs an empty data directory, and no --replace"
        }
        Reason::NotAPeer => "connect to the node's address for clients",
        Reason::PlanChanged => "plan again, and commit the new plan",
        Reason::LayoutInvalid => "look at what the message says of the members",
        Reason::AgreementFailed => "look at the present state, and try again",
        Reason::SnapshotExists => "choose another name, or delete that snapshot",
        Reason::SnapshotNotFound => "list the snapshots",
        Reason::SnapshotLimit => "delete a snapshot, or raise the limit of the node",
        Reason::SnapshotUnsupported => "ask a node that keeps its data on disk",
        Reason::SnapshotFailed => "look at the node's disk",
        Reason::ConnectionLost => "check that the nodes run and can be reached",
        Reason::Other => "look at the message, and at the node's log",
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Details { call, writes, node, attempts, answered: _, cause } = &*self.0;
        f.write_str(call)?;
        if let Some(node) = node {
            write!(f, " on {node}")?;
        }
        write!(f, ": {cause}")?;
        if *attempts > 1 {
            write!(f, " (attempt {attempts})")?;
        }
        match (*writes, cause.outcome) {
            (true, CallOutcome::NotApplied) => f.write_str("; nothing was applied")?,
            (true, CallOutcome::Unknown) => {
                f.write_str("; it may have been applied, or may still take effect")?;
            }
            (false, _) => {}
        }
        write!(f, "; {}", self.advice())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_happened_whether_it_was_applied_and_what_to_try() {
        let cause = CallError::new(Reason::NotEnoughReplicas, "QUORUM requires 2, 1 is alive")
            .with("required", 2)
            .with("alive", 1);
        let error = Error::new("put", true, Some("10.0.0.1:7400".into()), 3, cause);
        assert_eq!(
            error.to_string(),
            "put on 10.0.0.1:7400: NOT_ENOUGH_REPLICAS: QUORUM requires 2, 1 is alive (attempt 3); \
             nothing was applied; bring nodes back, or choose a lower level"
        );
        assert_eq!((error.number("required"), error.number("alive")), (Some(2), Some(1)));
        assert!(!error.is_unknown_write());
    }

    #[test]
    fn an_unknown_write_says_so_and_a_read_does_not() {
        let cause = CallError::new(Reason::ConnectionLost, "broken pipe");
        let write = Error::new("put", true, None, 1, cause.clone());
        assert_eq!(
            write.to_string(),
            "put: CONNECTION_LOST: broken pipe; it may have been applied, or may still take effect; \
             read the key to see whether it was applied; writing it again makes a new write"
        );
        let read = Error::new("get", false, None, 1, cause);
        assert_eq!(
            read.to_string(),
            "get: CONNECTION_LOST: broken pipe; check that the nodes run and can be reached"
        );
    }
}
