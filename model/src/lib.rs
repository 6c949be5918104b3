//! The words of the field as types: tokens, versions, records, consistency levels, layouts.
//!
//! Pure: nothing here reads a clock, draws randomness or does I/O. Time, randomness and the
//! state of the cluster are arguments; what to do next is a return value.

mod answer;
mod clock;
mod codec;
mod consistency;
mod ids;
mod key;
mod keyspace;
mod layout;
mod limits;
mod metadata;
mod mutant;
mod plan;
mod quorum;
mod record;
mod replicas;
mod token;
mod version;

pub use answer::{Refusal, WriteAnswer};
pub use clock::{ClockError, HybridClock};
pub use codec::{DecodeError, Reader, Writer};
pub use consistency::{
    ConsistencyLevel, LevelError, Requirement, ScopeRequirement, UnknownLevel, overlaps,
    satisfies_require_overlap,
};
pub use ids::{ClusterId, KeyspaceId, NodeId, NodeIndex, OperationId, StorageId};
pub use key::{Key, KeyError, StorageKey};
pub use keyspace::{ConflictType, Keyspace, KeyspaceError};
pub use layout::{Layout, LayoutError, NodeDescription};
pub use limits::Limits;
pub use metadata::{Change, ChangeError, FollowError, KeyspaceChange, Metadata, MetadataHash};
pub use mutant::Mutant;
pub use plan::{Moves, NodeMoves, Plan, PlanError, plan};
pub use quorum::{Outcome, ReadTally, Round, Vote, WriteTally};
pub use record::{EXPIRY_MARGIN_MS, Record, RecordError, RecordKind};
pub use replicas::{DcIndex, ReplicaIndex, ReplicaMask, ReplicaSet};
pub use token::{PartitionIndex, Token};
pub use version::{Hlc, RequestId, Timestamp, Version};
