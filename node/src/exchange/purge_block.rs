//! Why tombstones and expired records stay.

use model::NodeId;

use super::board::RoundEnd;

/// What stands in the way of purging a keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PurgeBlock {
    /// Nothing, or there is nothing to purge.
    Nothing,
    /// A replica cannot be reached.
    Away(NodeId),
    /// The exchange with a replica ended so.
    Ended(NodeId, RoundEnd),
    /// Some replica did not sign for some partition.
    Unsigned,
    /// This node cannot read or write what it has to.
    Stuck,
}

impl PurgeBlock {
    /// The replica that stands in the way, if it is one.
    pub(crate) fn waits_for(self) -> Option<NodeId> {
        match self {
            Self::Away(node) | Self::Ended(node, _) => Some(node),
            Self::Nothing | Self::Unsigned | Self::Stuck => None,
        }
    }
}
