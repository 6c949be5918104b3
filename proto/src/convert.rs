//! Wire messages from and to the model's types. What cannot be converted is refused, never guessed.

use model::{
    ConsistencyLevel, Hlc, Key, NodeId, Refusal, RequestId, StorageId, Version, WriteAnswer,
};

use crate::{internal, v1};

/// What is wrong with a message of a peer or a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// An enum has a value that this build does not know.
    #[error("{field} has the unknown value {value}")]
    UnknownValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
    /// A number is out of its range.
    #[error("{field} is {value}, above {limit}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The highest value.
        limit: u64,
    },
}

impl From<Version> for v1::Version {
    fn from(it: Version) -> Self {
        Self { clock: it.hlc.0, request_id: it.request.0 }
    }
}

impl From<v1::Version> for Version {
    fn from(it: v1::Version) -> Self {
        Self { hlc: Hlc(it.clock), request: RequestId(it.request_id) }
    }
}

impl From<v1::Key> for Key {
    fn from(it: v1::Key) -> Self {
        Self { partition_key: it.partition_key, sort_key: it.sort_key }
    }
}

impl From<Key> for v1::Key {
    fn from(it: Key) -> Self {
        Self { partition_key: it.partition_key, sort_key: it.sort_key }
    }
}

impl v1::Consistency {
    /// The level asked for; `None` for the keyspace's default.
    pub fn level(&self) -> Result<Option<ConsistencyLevel>, ConvertError> {
        use v1::ConsistencyLevel as Wire;
        let value = match self.choice {
            None => return Ok(None),
            Some(v1::consistency::Choice::Replicas(count)) => {
                let narrowed = u8::try_from(count).ok().filter(|it| *it <= 32);
                let limit = 32;
                return match narrowed {
                    Some(count) => Ok(Some(ConsistencyLevel::Count(count))),
                    None => Err(ConvertError::OutOfRange {
                        field: "consistency.replicas",
                        value: count.into(),
                        limit,
                    }),
                };
            }
            Some(v1::consistency::Choice::Level(value)) => value,
        };
        let field = "consistency.level";
        let wire = Wire::try_from(value)
            .ok()
            .ok_or(ConvertError::UnknownValue { field, value: value.into() })?;
        Ok(match wire {
            Wire::Unspecified => None,
            Wire::Any => Some(ConsistencyLevel::Any),
            Wire::One => Some(ConsistencyLevel::One),
            Wire::Two => Some(ConsistencyLevel::Two),
            Wire::Three => Some(ConsistencyLevel::Three),
            Wire::Quorum => Some(ConsistencyLevel::Quorum),
            Wire::All => Some(ConsistencyLevel::All),
            Wire::LocalOne => Some(ConsistencyLevel::LocalOne),
            Wire::LocalQuorum => Some(ConsistencyLevel::LocalQuorum),
            Wire::EachQuorum => Some(ConsistencyLevel::EachQuorum),
        })
    }
}

impl From<ConsistencyLevel> for v1::Consistency {
    fn from(level: ConsistencyLevel) -> Self {
        use v1::ConsistencyLevel as Wire;
        let wire = match level {
            ConsistencyLevel::Any => Wire::Any,
            ConsistencyLevel::One => Wire::One,
            ConsistencyLevel::Two => Wire::Two,
            ConsistencyLevel::Three => Wire::Three,
            ConsistencyLevel::Quorum => Wire::Quorum,
            ConsistencyLevel::All => Wire::All,
            ConsistencyLevel::LocalOne => Wire::LocalOne,
            ConsistencyLevel::LocalQuorum => Wire::LocalQuorum,
            ConsistencyLevel::EachQuorum => Wire::EachQuorum,
            ConsistencyLevel::Count(count) => {
                let choice = Some(v1::consistency::Choice::Replicas(count.into()));
                return Self { choice };
            }
        };
        Self { choice: Some(v1::consistency::Choice::Level(wire.into())) }
    }
}

/// Reads a node's id; nil if the bytes are not sixteen.
pub fn node_id(bytes: &[u8]) -> NodeId {
    NodeId::from_slice(bytes).unwrap_or_default()
}

/// Reads a storage id; nil if the bytes are not sixteen.
pub fn storage_id(bytes: &[u8]) -> StorageId {
    StorageId::from_slice(bytes).unwrap_or_default()
}

impl From<Refusal> for internal::Refusal {
    fn from(it: Refusal) -> Self {
        match it {
            Refusal::BelowFence => Self::BelowFence,
            Refusal::StaleLayout => Self::StaleLayout,
            Refusal::NotReady => Self::NotReady,
            Refusal::ClockAhead => Self::ClockAhead,
            Refusal::Corrupt => Self::Corrupt,
            Refusal::Failed => Self::Failed,
            Refusal::Overloaded => Self::Overloaded,
            Refusal::DiskFull => Self::DiskFull,
        }
    }
}

/// Reads a refusal; `None` for "not refused". One that this build does not know is a failure.
pub fn refusal(value: i32) -> Option<Refusal> {
    use internal::Refusal as Wire;
    match Wire::try_from(value) {
        Ok(Wire::Unspecified) => None,
        Ok(Wire::BelowFence) => Some(Refusal::BelowFence),
        Ok(Wire::StaleLayout) => Some(Refusal::StaleLayout),
        Ok(Wire::NotReady) => Some(Refusal::NotReady),
        Ok(Wire::ClockAhead) => Some(Refusal::ClockAhead),
        Ok(Wire::Corrupt) => Some(Refusal::Corrupt),
        Ok(Wire::Overloaded) => Some(Refusal::Overloaded),
        Ok(Wire::DiskFull) => Some(Refusal::DiskFull),
        Ok(Wire::Failed) | Err(_) => Some(Refusal::Failed),
    }
}

impl internal::MutationAnswer {
    /// Builds the answer to a mutation; `Applied` ones travel in `Frame.applied` instead.
    pub fn from_answer(operation: u64, answer: WriteAnswer, newest_record: bytes::Bytes) -> Self {
        let mut it = Self { operation, newest_record, ..Self::default() };
        match answer {
            WriteAnswer::Applied | WriteAnswer::Held => it.held = true,
            WriteAnswer::Superseded { newest, never } => {
                it.newest_clock = newest.hlc.0;
                it.newest_request = newest.request.0;
                it.never = never;
            }
            WriteAnswer::Refused(refusal) => it.refusal = internal::Refusal::from(refusal).into(),
        }
        it
    }

    /// The answer.
    pub fn answer(&self) -> WriteAnswer {
        if let Some(refusal) = refusal(self.refusal) {
            return WriteAnswer::Refused(refusal);
        }
        if self.held {
            return WriteAnswer::Held;
        }
        let newest =
            Version { hlc: Hlc(self.newest_clock), request: RequestId(self.newest_request) };
        WriteAnswer::Superseded { newest, never: self.never }
    }
}
