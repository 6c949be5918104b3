//! The cluster as a node described it: who holds which partition, and each keyspace's replicas.
//!
//! Everything is checked as it comes in: what is inconsistent is refused whole, so that routing can
//! index without doubt. Nothing here waits or sends.

use std::{collections::BTreeMap, sync::Arc};

use model::{ConsistencyLevel, Key, NodeId, NodeIndex, Token};
use proto::v1;

/// The most partitions that a ring has.
const PARTITIONS_MAX: u32 = 1 << 16;
/// The most replicas that a key has: a level counts no more.
const REPLICAS_MAX: usize = 32;

/// The layout and the keyspaces, as one node knew them.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    cluster_id: Vec<u8>,
    layout_version: u64,
    layout_hash: u64,
    metadata_sequence: u64,
    partitions: u32,
    nodes: Vec<TopologyNode>,
    assignments: Arc<Vec<Assignment>>,
    keyspaces: BTreeMap<String, KeyspaceRouting>,
    local_datacenter: String,
    answered_by: Option<NodeIndex>,
}

/// One node of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyNode {
    /// Its id; nil if the description had none.
    pub node_id: NodeId,
    /// Its datacenter's name.
    pub datacenter: String,
    /// Its rack's name.
    pub rack: String,
    /// Where clients connect, as `host:port`.
    pub address: String,
    /// True if the node that described the cluster could reach it.
    pub up: bool,
}

/// One datacenter's replicas of every partition.
#[derive(Debug, PartialEq, Eq)]
struct Assignment {
    datacenter: String,
    list_length: usize,
    nodes: Vec<NodeIndex>,
}

/// What routing needs of a keyspace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct KeyspaceRouting {
    /// Replicas in the datacenter of each assignment, in the assignments' order.
    replicas: Vec<usize>,
    read_level: Option<ConsistencyLevel>,
    write_level: Option<ConsistencyLevel>,
}

/// Why a description of a cluster is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TopologyError {
    /// The number of partitions is none that a ring has.
    #[error("{0} partitions: a ring has a power of two of them, at most 65536")]
    Partitions(u32),
    /// More nodes than an index can name.
    #[error("{0} nodes: a layout has at most 65536")]
    Nodes(usize),
    /// The preference lists of a datacenter have not the length that they claim.
    #[error("datacenter {datacenter}: {actual} indexes for {partitions} lists of {list_length}")]
    ListLength { datacenter: String, partitions: u32, list_length: u32, actual: usize },
    /// A datacenter is described twice.
    #[error("datacenter {0} is assigned twice")]
    Repeated(String),
    /// A preference list names a node that is not there, or one of another datacenter.
    #[error("datacenter {datacenter}: a list names node {index}, which is not one of its nodes")]
    Stranger { datacenter: String, index: u32 },
    /// The assignments were left out, and are not known from before.
    #[error("the assignments of layout {0:016x} were left out, and are not known")]
    AssignmentsMissing(u64),
}

impl Topology {
    /// Checks a node's description. `known` stands in for assignments that were left out.
    pub(crate) fn parse(
        response: v1::GetTopologyResponse,
        known: Option<&Self>,
    ) -> Result<Self, TopologyError> {
        if u16::try_from(response.nodes.len().saturating_sub(1)).is_err() {
            return Err(TopologyError::Nodes(response.nodes.len()));
        }
        let nodes: Vec<_> = response.nodes.into_iter().map(TopologyNode::from).collect();
        let has_layout = response.layout_version > 0;
        let partitions = if has_layout { response.partitions } else { 0 };
        if has_layout && !(partitions.is_power_of_two() && partitions <= PARTITIONS_MAX) {
            return Err(TopologyError::Partitions(partitions));
        }
        let assignments = if !has_layout {
            Arc::default()
        } else if response.assignments.is_empty() && !nodes.is_empty() {
            let same = |it: &&Self| {
                it.layout_hash == response.layout_hash
                    && it.partitions == partitions
                    && it.nodes.len() == nodes.len()
                    && !it.assignments.is_empty()
            };
            let missing = TopologyError::AssignmentsMissing(response.layout_hash);
            known.filter(same).ok_or(missing)?.assignments.clone()
        } else {
            Arc::new(parse_assignments(response.assignments, &nodes, partitions)?)
        };
        let keyspaces = response.keyspaces.into_iter();
        let keyspaces =
            keyspaces.map(|it| (it.name.clone(), KeyspaceRouting::new(&it, &assignments)));
        let answered_by = response.answered_by.and_then(|it| u16::try_from(it).ok());
        Ok(Self {
            cluster_id: response.cluster_id.to_vec(),
            layout_version: response.layout_version,
            layout_hash: response.layout_hash,
            metadata_sequence: response.metadata_sequence,
            partitions,
            keyspaces: keyspaces.collect(),
            assignments,
            answered_by: answered_by.map(NodeIndex).filter(|it| it.index() < nodes.len()),
            nodes,
            local_datacenter: response.local_datacenter,
        })
    }

    /// The nodes of the layout. `answered` of a reply holds indexes into it.
    pub fn nodes(&self) -> &[TopologyNode] {
        &self.nodes
    }

    /// A node of the layout; `None` if this layout has no such index: the reply was of a newer one.
    pub fn node(&self, index: NodeIndex) -> Option<&TopologyNode> {
        self.nodes.get(index.index())
    }

    /// The layout's version; 0 before the first.
    pub fn layout_version(&self) -> u64 {
        self.layout_version
    }

    /// The layout's hash.
    pub fn layout_hash(&self) -> u64 {
        self.layout_hash
    }

    /// How often layout or keyspaces had changed.
    pub fn metadata_sequence(&self) -> u64 {
        self.metadata_sequence
    }

    /// The number of partitions of the ring; 0 before the first layout.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// The datacenter of the node that described the cluster.
    pub fn local_datacenter(&self) -> &str {
        &self.local_datacenter
    }

    /// The node that described the cluster; `None` if the layout does not name it.
    pub fn answered_by(&self) -> Option<NodeIndex> {
        self.answered_by
    }

    /// The names of the datacenters of the layout, each once, in order.
    pub fn datacenters(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.nodes.iter().map(|it| it.datacenter.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The names of the keyspaces, in order.
    pub fn keyspaces(&self) -> impl Iterator<Item = &str> {
        self.keyspaces.keys().map(String::as_str)
    }

    /// True if the keyspace exists, as far as is known.
    pub fn has_keyspace(&self, name: &str) -> bool {
        self.keyspaces.contains_key(name)
    }

    /// The replicas of a key, datacenter by datacenter, each in preference order. Empty before the
    /// first layout. For a keyspace that is not known: every node that may hold the key.
    pub fn replicas(&self, keyspace: &str, key: &Key) -> Vec<NodeIndex> {
        let lists = self.preference_lists(keyspace, key.token());
        lists.flat_map(|(_, list)| list.iter().copied()).collect()
    }

    /// The preference lists of a token, each with its datacenter.
    pub(crate) fn preference_lists(
        &self,
        keyspace: &str,
        token: Token,
    ) -> impl Iterator<Item = (&str, &[NodeIndex])> {
        let routing = self.keyspaces.get(keyspace);
        let partition =
            if self.partitions == 0 { 0 } else { token.partition(self.partitions).index() };
        self.assignments.iter().enumerate().map(move |(position, assignment)| {
            let Assignment { datacenter, list_length, nodes } = assignment;
            let list = &nodes[partition * list_length..][..*list_length];
            let used = routing.map_or(*list_length, |it| it.replicas[position]);
            (datacenter.as_str(), &list[..used.min(*list_length)])
        })
    }

    /// The level of calls that name none; `None` if it is not known.
    pub(crate) fn default_level(&self, keyspace: &str, writes: bool) -> Option<ConsistencyLevel> {
        let routing = self.keyspaces.get(keyspace)?;
        if writes { routing.write_level } else { routing.read_level }
    }

    /// True if this description may replace `other`: of the same cluster, and not older.
    pub(crate) fn may_replace(&self, other: &Self) -> bool {
        let same_cluster = other.cluster_id.is_empty() || self.cluster_id == other.cluster_id;
        same_cluster
            && self.layout_version >= other.layout_version
            && self.metadata_sequence >= other.metadata_sequence
    }
}

fn parse_assignments(
    assignments: Vec<v1::Assignment>,
    nodes: &[TopologyNode],
    partitions: u32,
) -> Result<Vec<Assignment>, TopologyError> {
    let mut parsed: Vec<Assignment> = Vec::new();
    for v1::Assignment { datacenter, nodes: indexes, list_length } in assignments {
        if parsed.iter().any(|it| it.datacenter == datacenter) {
            return Err(TopologyError::Repeated(datacenter));
        }
        let length = usize::try_from(list_length).ok().filter(|it| *it <= REPLICAS_MAX);
        let expected = u64::from(partitions) * u64::from(list_length);
        let actual = indexes.len();
        let Some(length) = length.filter(|_| u64::try_from(actual) == Ok(expected)) else {
            return Err(TopologyError::ListLength { datacenter, partitions, list_length, actual });
        };
        let mut list = Vec::with_capacity(actual);
        for index in indexes {
            let known = u16::try_from(index).ok().map(NodeIndex);
            let own = |it: &NodeIndex| {
                nodes.get(it.index()).is_some_and(|node| node.datacenter == datacenter)
            };
            let Some(node) = known.filter(own) else {
                return Err(TopologyError::Stranger { datacenter, index });
            };
            list.push(node);
        }
        parsed.push(Assignment { datacenter, list_length: length, nodes: list });
    }
    Ok(parsed)
}

impl KeyspaceRouting {
    fn new(keyspace: &v1::Keyspace, assignments: &[Assignment]) -> Self {
        // A level that this build does not know is as good as none: the node knows it.
        let level = |it: &Option<v1::Consistency>| it.as_ref().and_then(|it| it.level().ok()?);
        let replicas = assignments.iter().map(|assignment| {
            let own = keyspace.replicas.iter().find(|it| it.datacenter == assignment.datacenter);
            usize::try_from(own.map_or(0, |it| it.replicas)).unwrap_or(usize::MAX)
        });
        Self {
            replicas: replicas.collect(),
            read_level: level(&keyspace.read_consistency),
            write_level: level(&keyspace.write_consistency),
        }
    }
}

impl From<v1::NodeInfo> for TopologyNode {
    fn from(it: v1::NodeInfo) -> Self {
        Self {
            node_id: proto::node_id(&it.node_id),
            datacenter: it.datacenter,
            rack: it.rack,
            address: it.client_address,
            up: it.up,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
