//! A version of who holds which partition.
//!
//! For every datacenter and partition an ordered list of nodes; a keyspace with k replicas in a
//! datacenter uses the first k. A layout is immutable and always valid: whatever builds or decodes
//! one checks it whole. How one is chosen is `plan`'s business, how one is agreed on the metadata's.
//! Source: Dynamo (DeCandia et al. 2007), 6.2, strategy 3.

use std::{net::SocketAddr, sync::Arc};

use crate::{DcIndex, DecodeError, NodeId, NodeIndex, PartitionIndex, ReplicaSet};

mod encoding;

/// A version of who holds which partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    version: u64,
    partitions: u32,
    nodes: Vec<NodeDescription>,
    datacenters: Vec<String>,
    assignment: Assignment,
    hash: u64,
}

/// The preference lists: by datacenter, then by partition.
pub(crate) type Assignment = Vec<Vec<Vec<NodeIndex>>>;

/// What a layout says of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeDescription {
    /// The node.
    pub id: NodeId,
    /// The name of its datacenter.
    pub datacenter: String,
    /// The name of its rack: what fails together within a datacenter. Racks of different
    /// datacenters are different, whatever their names.
    pub rack: String,
    /// Where it served clients when the layout was planned. What gossip says later takes precedence.
    pub client_address: SocketAddr,
    /// Where it listened to other nodes when the layout was planned. What gossip says later takes
    /// precedence.
    pub peer_address: SocketAddr,
    /// Its weight: a node of capacity 2 holds twice as many partitions as one of capacity 1. At
    /// least 1, at most `Layout::CAPACITY_MAX`.
    pub capacity: u32,
}

/// Why there is no such layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No nodes.
    #[error("a layout has at least one node")]
    NoNodes,
    /// Too many of something.
    #[error("{actual} {what}; at most {limit} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The most allowed.
        limit: usize,
        /// The number given.
        actual: usize,
    },
    /// The number of partitions is none that a ring can be cut into.
    #[error("{actual} partitions; a power of two of at most {limit} is needed")]
    Partitions {
        /// The most allowed.
        limit: u32,
        /// The number given.
        actual: u32,
    },
    /// A node is listed twice.
    #[error("node {0} is listed twice")]
    DuplicateNode(NodeId),
    /// A node's datacenter or rack has no proper name.
    #[error(
        "node {node}: {name:?} is no name of a datacenter or rack: 1 to {limit} of a-z A-Z 0-9 . _ -"
    )]
    Name {
        /// The node.
        node: NodeId,
        /// The most bytes allowed.
        limit: usize,
        /// The name given.
        name: String,
    },
    /// A node's capacity is zero or too large.
    #[error("node {node} has capacity {actual}; 1 to {limit} are allowed")]
    Capacity {
        /// The node.
        node: NodeId,
        /// The most allowed.
        limit: u32,
        /// The capacity given.
        actual: u32,
    },
    /// A preference list is not one: wrong length, a node twice or of another datacenter. No planner
    /// makes such a list.
    #[error("the preference list of partition {partition} in datacenter {datacenter:?} is broken")]
    List {
        /// The datacenter.
        datacenter: String,
        /// The partition.
        partition: usize,
    },
    /// There is not one list for each datacenter and partition, nodes are not in order, or the version
    /// is none.
    #[error("the layout is incomplete, not in canonical order or without a version")]
    Shape,
}

impl Layout {
    /// The most nodes.
    pub const NODES_MAX: usize = 1_024;
    /// The most datacenters: each that holds replicas holds one of at most 32.
    pub const DATACENTERS_MAX: usize = ReplicaSet::REPLICAS_MAX;
    /// The most partitions. Each is a tree per keyspace, a list per datacenter and a stream per
    /// move, so that more would cost more than they spread.
    pub const PARTITIONS_MAX: u32 = 4_096;
    /// The length of a preference list where a datacenter has that many nodes: the most replicas of
    /// a key in one datacenter.
    pub const LIST_MAX: usize = 7;
    /// The most bytes of a datacenter's or rack's name.
    pub const NAME_BYTES_MAX: usize = 63;
    /// The largest capacity.
    pub const CAPACITY_MAX: u32 = 1_000_000;
    /// The most bytes of an encoded layout.
    pub const BYTES_MAX: usize = 4 << 20;

    /// Builds a layout from nodes in order of their ids and preference lists in order of their
    /// datacenters' names. Fails unless everything about it is valid.
    pub fn new(
        version: u64,
        partitions: u32,
        nodes: Vec<NodeDescription>,
        assignment: Vec<Vec<Vec<NodeIndex>>>,
    ) -> Result<Self, LayoutError> {
        if version == 0 || version == u64::MAX {
            return Err(LayoutError::Shape);
        }
        check_partitions(partitions)?;
        check_nodes(&nodes)?;
        let datacenters = datacenters_of(&nodes)?;
        let mut it = Self { version, partitions, nodes, datacenters, assignment, hash: 0 };
        it.check_assignment()?;
        it.hash = xxhash_rust::xxh3::xxh3_64(&it.encode());
        Ok(it)
    }

    /// 1 for the first layout of a cluster, and one more for each that follows.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The number of partitions, Q: a power of two, fixed when the cluster is made.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// The nodes, in order of their ids: a `NodeIndex` is an index into this.
    pub fn nodes(&self) -> &[NodeDescription] {
        &self.nodes
    }

    /// A node. Panics with an index of another layout that is out of range here.
    pub fn node(&self, it: NodeIndex) -> &NodeDescription {
        &self.nodes[it.index()]
    }

    /// The names of the datacenters, in order: a `DcIndex` is an index into this.
    pub fn datacenters(&self) -> &[String] {
        &self.datacenters
    }

    /// Names this layout in requests: xxh3-64 of its encoding.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The place of a node, if it has one.
    pub fn node_index(&self, id: NodeId) -> Option<NodeIndex> {
        let at = self.nodes.binary_search_by_key(&id, |it| it.id).ok()?;
        Some(node_index(at))
    }

    /// The place of a datacenter, if it has nodes.
    pub fn datacenter_index(&self, name: &str) -> Option<DcIndex> {
        let at = self.datacenters.binary_search_by(|it| it.as_str().cmp(name)).ok()?;
        Some(dc_index(at))
    }

    /// The datacenter of a node. Panics with an index of another layout that is out of range here.
    pub fn datacenter_of(&self, node: NodeIndex) -> DcIndex {
        let name = &self.node(node).datacenter;
        self.datacenter_index(name).expect("the datacenters are those of the nodes")
    }

    /// How many nodes a datacenter has. Panics with an index of another layout that is out of range.
    pub fn nodes_in(&self, dc: DcIndex) -> usize {
        let name = &self.datacenters[usize::from(dc.0)];
        self.nodes.iter().filter(|it| it.datacenter == *name).count()
    }

    /// In how many partitions' preference lists a node stands, for the longest of them.
    pub fn partitions_of(&self, node: NodeIndex) -> u32 {
        let lists = self.assignment.iter().flatten();
        let count = lists.filter(|it| it.contains(&node)).count();
        u32::try_from(count).expect("a node stands once in each partition's list")
    }

    /// The preference list of a partition in a datacenter: `LIST_MAX` distinct nodes, or all that
    /// are there. Panics with indexes out of range.
    pub fn list(&self, dc: DcIndex, partition: PartitionIndex) -> &[NodeIndex] {
        &self.assignment[usize::from(dc.0)][partition.index()]
    }

    /// The replicas of a partition, for a keyspace with so many in each datacenter.
    ///
    /// Panics with more than 32 replicas, more in a datacenter than its lists hold, or a datacenter
    /// named twice: keyspaces that ask for such are refused when they are made.
    pub fn replica_set(&self, replicas: &[(DcIndex, u8)], partition: PartitionIndex) -> ReplicaSet {
        ReplicaSet::new(replicas.iter().map(|(dc, count)| {
            let list = self.list(*dc, partition);
            (*dc, list[..usize::from(*count)].to_vec())
        }))
    }

    /// The replicas of every partition, in order; equal sets are shared. Panics like `replica_set`.
    pub fn replica_sets(&self, replicas: &[(DcIndex, u8)]) -> Vec<Arc<ReplicaSet>> {
        let mut previous = Vec::<Arc<ReplicaSet>>::new();
        let mut sets = Vec::with_capacity(self.partition_indexes().len());
        for partition in self.partition_indexes() {
            let set = self.replica_set(replicas, partition);
            let known = previous.binary_search_by(|it| it.nodes().cmp(set.nodes()));
            sets.push(match known {
                Ok(at) => Arc::clone(&previous[at]),
                Err(at) => {
                    let set = Arc::new(set);
                    previous.insert(at, Arc::clone(&set));
                    set
                }
            });
        }
        sets
    }

    /// All partitions, in order.
    pub fn partition_indexes(&self) -> impl ExactSizeIterator<Item = PartitionIndex> + use<> {
        (0..u16::try_from(self.partitions).expect("at most 4,096")).map(PartitionIndex)
    }

    /// Decodes a layout and checks it whole.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        encoding::decode(bytes)
    }

    /// The one encoding of this layout.
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(self)
    }

    fn check_assignment(&self) -> Result<(), LayoutError> {
        let partitions = self.partition_indexes().len();
        let complete = self.assignment.iter().all(|lists| lists.len() == partitions);
        if self.assignment.len() != self.datacenters.len() || !complete {
            return Err(LayoutError::Shape);
        }
        for (name, lists) in self.datacenters.iter().zip(&self.assignment) {
            let is_here = |it: &&NodeDescription| it.datacenter == *name;
            let length = self.nodes.iter().filter(is_here).count().min(Self::LIST_MAX);
            for (partition, list) in lists.iter().enumerate() {
                let known =
                    |it: &NodeIndex| self.nodes.get(it.index()).is_some_and(|it| is_here(&it));
                let distinct = (1..list.len()).all(|at| !list[..at].contains(&list[at]));
                if list.len() != length || !distinct || !list.iter().all(known) {
                    return Err(LayoutError::List { datacenter: name.clone(), partition });
                }
            }
        }
        Ok(())
    }
}

/// Fails unless a ring can be cut into so many partitions.
pub(crate) fn check_partitions(actual: u32) -> Result<(), LayoutError> {
    let limit = Layout::PARTITIONS_MAX;
    if actual.is_power_of_two() && actual <= limit {
        Ok(())
    } else {
        Err(LayoutError::Partitions { limit, actual })
    }
}

/// Fails unless the nodes are some, not too many, each valid, and in order of their ids.
pub(crate) fn check_nodes(nodes: &[NodeDescription]) -> Result<(), LayoutError> {
    let (actual, limit) = (nodes.len(), Layout::NODES_MAX);
    if actual == 0 {
        return Err(LayoutError::NoNodes);
    }
    if actual > limit {
        return Err(LayoutError::TooMany { what: "nodes", limit, actual });
    }
    for pair in nodes.windows(2) {
        if pair[0].id == pair[1].id {
            return Err(LayoutError::DuplicateNode(pair[0].id));
        }
        if pair[0].id > pair[1].id {
            return Err(LayoutError::Shape);
        }
    }
    for it in nodes {
        let limit = Layout::NAME_BYTES_MAX;
        for name in [&it.datacenter, &it.rack] {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if name.is_empty() || name.len() > limit || !name.bytes().all(allowed) {
                return Err(LayoutError::Name { node: it.id, limit, name: name.clone() });
            }
        }
        let limit = Layout::CAPACITY_MAX;
        if it.capacity == 0 || it.capacity > limit {
            return Err(LayoutError::Capacity { node: it.id, limit, actual: it.capacity });
        }
    }
    Ok(())
}

/// The datacenters of nodes, in order. Fails with too many.
pub(crate) fn datacenters_of(nodes: &[NodeDescription]) -> Result<Vec<String>, LayoutError> {
    let mut names: Vec<_> = nodes.iter().map(|it| it.datacenter.clone()).collect();
    names.sort();
    names.dedup();
    let (actual, limit) = (names.len(), Layout::DATACENTERS_MAX);
    if actual > limit {
        return Err(LayoutError::TooMany { what: "datacenters", limit, actual });
    }
    Ok(names)
}

pub(crate) fn node_index(at: usize) -> NodeIndex {
    NodeIndex(u16::try_from(at).expect("at most 1,024 nodes"))
}

pub(crate) fn dc_index(at: usize) -> DcIndex {
    DcIndex(u8::try_from(at).expect("at most 32 datacenters"))
}

#[cfg(test)]
mod tests;
