//! Plans the next layout from the nodes there are and the layout before.
//!
//! Pure and deterministic: the same arguments give the same plan, and the same nodes no moves. For
//! each datacenter and partition it makes an ordered list of nodes so that for every length of its
//! prefix, which is the number of replicas of some keyspace:
//! - replicas are spread over racks as evenly as the racks have nodes: a rack gets its second
//!   replica of a key only when no rack without one is left;
//! - nodes hold partitions by capacity, as far as the racks allow: each within one partition of its
//!   share for one and two replicas, and for any number where nodes and racks are equal; from three
//!   on, where racks of few nodes leave little choice, within a tenth of all partitions;
//! - replicas move only where one of the two above asks for it.
//!
//! Nothing is agreed or moved here. Source: Dynamo (DeCandia et al. 2007), 6.2, strategy 3; balance
//! by cost-reducing paths as in Harvey et al., "Semi-matchings for bipartite graphs" (2003).

use crate::{
    Layout, LayoutError, NodeDescription, NodeId, NodeIndex,
    layout::{Assignment, check_nodes, check_partitions, datacenters_of, node_index},
};

mod place;
mod shares;

/// A layout that could be next, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The layout.
    pub layout: Layout,
    /// What it means for each node of the layout and of the one before, in order of their ids.
    pub moves: Vec<NodeMoves>,
    /// What is not as it should be, in words. None of it keeps the layout from being used.
    pub violations: Vec<String>,
    /// Names the plan: the layout and the one that it was planned from. Whoever commits it says
    /// this, and is refused if the plan has become another.
    pub hash: u64,
}

/// What a plan means for one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMoves {
    /// The node.
    pub node: NodeId,
    /// Its datacenter; for a node that leaves, the one it leaves.
    pub datacenter: String,
    by_replicas: [Moves; Layout::LIST_MAX],
}

/// Partitions that a node holds, for keyspaces with some number of replicas in its datacenter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Moves {
    /// How many it will hold.
    pub partitions: u32,
    /// How many of them it did not hold before.
    pub gains: u32,
    /// How many it held before and will not.
    pub losses: u32,
}

impl NodeMoves {
    /// The node's part in keyspaces with so many replicas in its datacenter. More than there are
    /// nodes count as all, more than `Layout::LIST_MAX` as so many. Panics with none.
    pub fn with_replicas(&self, replicas: u8) -> Moves {
        assert!(replicas > 0, "a keyspace has at least one replica in a datacenter it uses");
        self.by_replicas[usize::from(replicas).min(Layout::LIST_MAX) - 1]
    }
}

/// Why nothing can be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The nodes or the number of partitions make no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The number of partitions is fixed when a cluster is made.
    #[error("{actual} partitions asked for; the cluster was made with {required}")]
    Partitions {
        /// The cluster's number.
        required: u32,
        /// The number asked for.
        actual: u32,
    },
}

/// Plans a layout for these nodes, in any order. `partitions` must be that of the previous layout,
/// if there is one.
pub fn plan(
    members: &[NodeDescription],
    previous: Option<&Layout>,
    partitions: u32,
) -> Result<Plan, PlanError> {
    check_partitions(partitions)?;
    if let Some(required) = previous.map(Layout::partitions).filter(|it| *it != partitions) {
        return Err(PlanError::Partitions { required, actual: partitions });
    }
    let mut nodes = members.to_vec();
    nodes.sort_by_key(|it| it.id);
    check_nodes(&nodes)?;

    let mut assignment = Assignment::new();
    let mut violations = Vec::new();
    for name in datacenters_of(&nodes)? {
        let datacenter = Datacenter::new(&name, &nodes, previous, partitions);
        let lists = place::place(&datacenter);
        violations.extend(datacenter.violations(&lists));
        let global = |list: Vec<usize>| list.iter().map(|it| datacenter.nodes[*it].index).collect();
        assignment.push(lists.into_iter().map(global).collect());
    }
    let version = previous.map_or(1, |it| it.version() + 1);
    let layout = Layout::new(version, partitions, nodes, assignment)?;
    let moves = moves(&layout, previous);
    let before = previous.map_or(0, Layout::hash);
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&layout.encode(), before);
    Ok(Plan { layout, moves, violations, hash })
}

/// One datacenter's part of the planning. Nodes are known by their index in here.
struct Datacenter<'a> {
    name: &'a str,
    nodes: Vec<Node<'a>>,
    /// How many nodes each rack has.
    rack_sizes: Vec<usize>,
    /// For each partition the nodes that held it, in order; `None` for those that have left.
    before: Vec<Vec<Option<usize>>>,
}

struct Node<'a> {
    index: NodeIndex,
    description: &'a NodeDescription,
    rack: usize,
}

impl<'a> Datacenter<'a> {
    fn new(
        name: &'a str,
        all: &'a [NodeDescription],
        previous: Option<&Layout>,
        partitions: u32,
    ) -> Self {
        let here: Vec<_> = all.iter().enumerate().filter(|it| it.1.datacenter == name).collect();
        let mut racks: Vec<_> = here.iter().map(|it| it.1.rack.as_str()).collect();
        racks.sort_unstable();
        racks.dedup();
        let mut rack_sizes = vec![0; racks.len()];
        let mut nodes = Vec::with_capacity(here.len());
        for (at, description) in here {
            let found = racks.binary_search(&description.rack.as_str());
            let rack = found.expect("the racks are those of the nodes");
            rack_sizes[rack] += 1;
            nodes.push(Node { index: node_index(at), description, rack });
        }
        let mut it = Self { name, nodes, rack_sizes, before: Vec::new() };
        it.before = match previous.and_then(|layout| Some((layout, layout.datacenter_index(name)?)))
        {
            None => vec![Vec::new(); usize::try_from(partitions).expect("at most 4,096")],
            Some((layout, dc)) => {
                let here = |node: &NodeIndex| it.position(layout.node(*node).id);
                let before = |partition| layout.list(dc, partition).iter().map(here).collect();
                layout.partition_indexes().map(before).collect()
            }
        };
        it
    }

    fn position(&self, id: NodeId) -> Option<usize> {
        self.nodes.binary_search_by_key(&id, |it| it.description.id).ok()
    }

    fn partitions(&self) -> usize {
        self.before.len()
    }

    fn list_length(&self) -> usize {
        self.nodes.len().min(Layout::LIST_MAX)
    }

    /// What an operator should know: three replicas are what most keyspaces have.
    fn violations(&self, lists: &[Vec<usize>]) -> Vec<String> {
        let (name, nodes, racks) = (self.name, self.nodes.len(), self.rack_sizes.len());
        let mut violations = Vec::new();
        if nodes < 3 {
            let limit = if nodes == 1 { "1 replica" } else { "2 replicas" };
            let has = if nodes == 1 { "1 node" } else { "2 nodes" };
            violations.push(format!("datacenter {name} has {has}: at most {limit} of a key there"));
        }
        if racks == 1 && nodes > 1 {
            violations.push(format!("datacenter {name} has 1 rack: its nodes can fail together"));
        } else if racks < nodes.min(3) {
            violations.push(format!(
                "datacenter {name} has {racks} racks: of 3 replicas of a key there, 2 share one"
            ));
        }
        let replicas = self.list_length().min(3);
        let capacity: u64 = self.nodes.iter().map(|it| u64::from(it.description.capacity)).sum();
        for (at, node) in self.nodes.iter().enumerate() {
            let held = lists.iter().filter(|list| list[..replicas].contains(&at)).count();
            let places = u64::try_from(lists.len() * replicas).expect("at most 12,288 places");
            let share = places * u64::from(node.description.capacity) / capacity;
            let limit = share + share / 4 + 1;
            if u64::try_from(held).expect("at most 4,096 partitions") > limit {
                let (id, rack) = (node.description.id, &node.description.rack);
                violations.push(format!(
                    "node {id} (datacenter {name}, rack {rack}) holds {held} of {} partitions with \
                     {replicas} replicas, {share} by capacity: too few nodes or racks to share with",
                    lists.len()
                ));
            }
        }
        violations
    }
}

fn moves(layout: &Layout, previous: Option<&Layout>) -> Vec<NodeMoves> {
    let mut found: Vec<NodeMoves> = Vec::new();
    for (at, it) in [Some(layout), previous].into_iter().enumerate() {
        for node in it.map(Layout::nodes).unwrap_or_default() {
            // A node that changes its datacenter leaves one and joins the other.
            let known =
                found.iter().any(|it| it.node == node.id && it.datacenter == node.datacenter);
            if at == 0 || !known {
                let by_replicas = [Moves::default(); Layout::LIST_MAX];
                let datacenter = node.datacenter.clone();
                found.push(NodeMoves { node: node.id, datacenter, by_replicas });
            }
        }
    }
    found.sort_by(|a, b| (a.node, &a.datacenter).cmp(&(b.node, &b.datacenter)));
    for it in &mut found {
        let (now, before) = (places(layout, it), previous.map(|layout| places(layout, it)));
        for (replicas, moves) in (1..).zip(&mut it.by_replicas) {
            for partition in layout.partition_indexes() {
                let holds = |at: &[usize]| at[partition.index()] < replicas;
                let (now, before) = (holds(&now), before.as_deref().is_some_and(holds));
                moves.partitions += u32::from(now);
                moves.gains += u32::from(now && !before);
                moves.losses += u32::from(before && !now);
            }
        }
    }
    found
}

/// A node's place in each partition's list; beyond any list where it has none.
fn places(layout: &Layout, it: &NodeMoves) -> Vec<usize> {
    let dc = layout.datacenter_index(&it.datacenter);
    let found = dc.zip(layout.node_index(it.node));
    let place = |partition| {
        let (dc, node) = found?;
        layout.list(dc, partition).iter().position(|it| *it == node)
    };
    layout.partition_indexes().map(|it| place(it).unwrap_or(usize::MAX)).collect()
}

#[cfg(test)]
mod tests;
