//! The replicas of one partition in one keyspace, in preference order.

use crate::NodeIndex;

/// A datacenter's place in the (sorted) list of datacenters of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DcIndex(pub u8);

/// A replica's place in its `ReplicaSet`: at most 32 replicas hold a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaIndex(pub u8);

impl ReplicaIndex {
    /// As an index into slices.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of replicas, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ReplicaMask(pub u32);

impl ReplicaMask {
    /// No replica.
    pub const EMPTY: Self = Self(0);

    /// The set of one.
    pub fn only(it: ReplicaIndex) -> Self {
        Self(1 << it.0)
    }

    /// The first `n` replicas of a set.
    pub fn first(n: usize) -> Self {
        Self(u32::try_from((1u64 << n) - 1).expect("at most 32 replicas"))
    }

    /// True if the replica is in the set.
    pub fn contains(self, it: ReplicaIndex) -> bool {
        self.0 & (1 << it.0) != 0
    }

    /// Adds a replica; true if it was not in the set.
    pub fn insert(&mut self, it: ReplicaIndex) -> bool {
        let was = self.contains(it);
        self.0 |= 1 << it.0;
        !was
    }

    /// Removes a replica.
    pub fn remove(&mut self, it: ReplicaIndex) {
        self.0 &= !(1 << it.0);
    }

    /// How many replicas.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// True for no replica.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in both sets.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those in either set.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of this set that are not in the other.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The replicas of the set, in preference order.
    pub fn iter(self) -> impl Iterator<Item = ReplicaIndex> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let next = u8::try_from(left.trailing_zeros()).expect("at most 32");
            (left != 0).then(|| {
                left &= left - 1;
                ReplicaIndex(next)
            })
        })
    }
}

/// Who holds a partition, for one keyspace's replication: datacenter by datacenter, each in
/// preference order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct ReplicaSet {
    nodes: Vec<NodeIndex>,
    datacenters: Vec<(DcIndex, ReplicaMask)>,
}

impl ReplicaSet {
    /// The most replicas that a key may have, over all datacenters.
    pub const REPLICAS_MAX: usize = 32;

    /// Builds a set from each datacenter's nodes, in preference order.
    ///
    /// Panics with more than 32 replicas, or with a node named twice: layouts and keyspaces with
    /// such replicas are refused before they are agreed on.
    pub fn new(by_datacenter: impl IntoIterator<Item = (DcIndex, Vec<NodeIndex>)>) -> Self {
        let mut it = Self::default();
        for (dc, nodes) in by_datacenter {
            let before = ReplicaMask::first(it.nodes.len());
            for node in nodes {
                assert!(!it.nodes.contains(&node), "{node:?} named twice in {:?}", it.nodes);
                it.nodes.push(node);
            }
            let mask = ReplicaMask::first(it.nodes.len()).without(before);
            if !mask.is_empty() {
                it.datacenters.push((dc, mask));
            }
        }
        assert!(it.nodes.len() <= Self::REPLICAS_MAX, "{} replicas", it.nodes.len());
        it
    }

    /// All replicas' nodes, in preference order.
    pub fn nodes(&self) -> &[NodeIndex] {
        &self.nodes
    }

    /// The node of a replica.
    pub fn node(&self, it: ReplicaIndex) -> NodeIndex {
        self.nodes[it.index()]
    }

    /// The replica that a node is, if it is one.
    pub fn replica(&self, node: NodeIndex) -> Option<ReplicaIndex> {
        let at = self.nodes.iter().position(|it| *it == node)?;
        Some(ReplicaIndex(u8::try_from(at).expect("at most 32 replicas")))
    }

    /// All replicas.
    pub fn all(&self) -> ReplicaMask {
        ReplicaMask::first(self.nodes.len())
    }

    /// The datacenters that hold replicas, each with its own.
    pub fn datacenters(&self) -> &[(DcIndex, ReplicaMask)] {
        &self.datacenters
    }

    /// The replicas in a datacenter.
    pub fn in_datacenter(&self, dc: DcIndex) -> ReplicaMask {
        let found = self.datacenters.iter().find(|it| it.0 == dc);
        found.map_or(ReplicaMask::EMPTY, |it| it.1)
    }

    /// The replicas that a predicate on their nodes keeps.
    pub fn select(&self, mut keep: impl FnMut(NodeIndex) -> bool) -> ReplicaMask {
        let mut mask = ReplicaMask::EMPTY;
        for it in self.all().iter() {
            if keep(self.node(it)) {
                mask.insert(it);
            }
        }
        mask
    }
}
