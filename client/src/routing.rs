//! Chooses the node that a call goes to.
//!
//! Pure: what is known of the nodes' load and health is an argument, and so is the draw that breaks
//! ties. Among equals the node with the fewest calls of this client in flight wins, which also turns
//! calls away from a node that hangs.

use model::{NodeIndex, Token};

use crate::topology::Topology;

/// What a call needs of its node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    /// The keyspace, whose replicas are preferred; empty if any node serves equally.
    pub(crate) keyspace: &'a str,
    /// The key's token.
    pub(crate) token: Token,
    /// The client's own datacenter.
    pub(crate) datacenter: &'a str,
    /// True if a node of another datacenter would give the call's level another meaning.
    pub(crate) stays_local: bool,
    /// A random number.
    pub(crate) draw: u64,
}

/// What a client knows of a node at the moment of the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeState {
    /// Calls sent there and not yet answered.
    pub(crate) in_flight: usize,
    /// True if its connection broke, or could not be made, and it has not answered since.
    pub(crate) broken: bool,
    /// True if it has answered, and its connection has not broken since.
    pub(crate) answering: bool,
    /// True if this call was tried there.
    pub(crate) tried: bool,
    /// True if it cannot be reached at all: its address is none.
    pub(crate) unusable: bool,
}

/// The best node for a call; `None` if no node may serve it.
///
/// Local replicas first, then other local nodes, then replicas elsewhere, then others. A node that was
/// tried comes after all that were not, and one whose connection broke after those. That some other
/// node believes a node down counts only while this client has not heard of it itself.
pub(crate) fn choose(
    topology: &Topology,
    query: &Query<'_>,
    state: impl Fn(NodeIndex) -> NodeState,
) -> Option<NodeIndex> {
    // Nearly every call ends here, with a look at two or three nodes.
    local_replica(topology, query, &state).or_else(|| any_node(topology, query, &state))
}

/// The least loaded of the local replicas that nothing speaks against.
fn local_replica(
    topology: &Topology,
    query: &Query<'_>,
    state: &impl Fn(NodeIndex) -> NodeState,
) -> Option<NodeIndex> {
    if query.keyspace.is_empty() {
        return None;
    }
    let mut lists = topology.preference_lists(query.keyspace, query.token);
    let (_, list) = lists.find(|(datacenter, _)| *datacenter == query.datacenter)?;
    let candidates = rotated(list.len(), query.draw).map(|it| list[it]);
    candidates
        .filter_map(|node| {
            let NodeState { in_flight, broken, answering, tried, unusable } = state(node);
            let is_up = answering || topology.node(node).is_some_and(|it| it.up);
            (is_up && !broken && !tried && !unusable).then_some((in_flight, node))
        })
        .min_by_key(|(in_flight, _)| *in_flight)
        .map(|(_, node)| node)
}

/// The best of all nodes, whatever speaks against them.
fn any_node(
    topology: &Topology,
    query: &Query<'_>,
    state: &impl Fn(NodeIndex) -> NodeState,
) -> Option<NodeIndex> {
    let nodes = topology.nodes();
    let is_local = |it: usize| nodes[it].datacenter == query.datacenter;
    // Where the datacenter has no nodes, its levels mean nothing, and any node can say so.
    let only_local = query.stays_local && (0..nodes.len()).any(is_local);
    let lists = topology.preference_lists(query.keyspace, query.token);
    let replicas: Vec<NodeIndex> = lists.flat_map(|(_, list)| list.iter().copied()).collect();
    rotated(nodes.len(), query.draw)
        .filter(|it| !only_local || is_local(*it))
        .filter_map(|position| {
            let node = NodeIndex(u16::try_from(position).ok()?);
            let NodeState { in_flight, broken, answering, tried, unusable } = state(node);
            let down = !answering && !nodes[position].up;
            let is_replica = replicas.contains(&node);
            let rank = (broken, tried, down, !is_local(position), !is_replica, in_flight);
            (!unusable).then_some((rank, node))
        })
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, node)| node)
}

/// All of `0..length`, from a drawn place on: equals take turns.
fn rotated(length: usize, draw: u64) -> impl Iterator<Item = usize> {
    let modulus = u64::try_from(length).unwrap_or(u64::MAX).max(1);
    let start = usize::try_from(draw % modulus).unwrap_or_default();
    (start..length).chain(0..start)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::topology::tests::description;

    /// Routes a call for the keyspace's partition 0, whose replicas are 0, 1 in `a` and 3 in `b` (of
    /// nodes 0 to 2 in `a`, 3 and 4 in `b`). `states` says what is known: "0x" broken, "0t" tried,
    /// "0d" believed down, "0a" answering, "0u" unusable, "0+" one call in flight. Tries every draw,
    /// and returns all nodes that were chosen.
    fn check(query: Query<'_>, states: &str) -> String {
        let mut description = description();
        let mut known: BTreeMap<NodeIndex, NodeState> = BTreeMap::new();
        for word in states.split_whitespace() {
            let node = word[..1].parse().unwrap();
            let state = known.entry(NodeIndex(node)).or_default();
            for letter in word[1..].chars() {
                match letter {
                    'x' => state.broken = true,
                    't' => state.tried = true,
                    'a' => state.answering = true,
                    'd' => description.nodes[usize::from(node)].up = false,
                    'u' => state.unusable = true,
                    '+' => state.in_flight += 1,
                    _ => panic!("{word}"),
                }
            }
        }
        let topology = Topology::parse(description, None).unwrap();
        let mut chosen: Vec<_> = (0..60)
            .filter_map(|draw| {
                let query = Query { draw, ..query };
                choose(&topology, &query, |it| known.get(&it).copied().unwrap_or_default())
            })
            .map(|it| it.0.to_string())
            .collect();
        chosen.sort();
        chosen.dedup();
        chosen.join(" ")
    }

    const ANYWHERE: Query<'_> =
        Query { keyspace: "k", token: Token(0), datacenter: "a", stays_local: false, draw: 0 };
    const LOCAL: Query<'_> = Query { stays_local: true, ..ANYWHERE };

    #[test]
    fn local_replicas_share_the_calls_by_load() {
        assert_eq!(check(ANYWHERE, ""), "0 1");
        assert_eq!(check(ANYWHERE, "0+"), "1");
        assert_eq!(check(ANYWHERE, "0+ 1++"), "0");
        assert_eq!(check(ANYWHERE, "0++ 1++"), "0 1");
        assert_eq!(check(Query { datacenter: "b", ..ANYWHERE }, "3+++"), "3", "still a replica");
    }

    #[test]
    fn the_next_best_is_local_then_a_replica() {
        assert_eq!(check(ANYWHERE, "0x 1x"), "2");
        assert_eq!(check(ANYWHERE, "0t 1d"), "2");
        assert_eq!(check(ANYWHERE, "0t 1da"), "1", "it answers, whatever others believe");
        assert_eq!(check(ANYWHERE, "0x 1x 2d 3da 4d"), "3");
        assert_eq!(check(ANYWHERE, "0x 1x 2x"), "3");
        assert_eq!(check(ANYWHERE, "0u 1u 2u 3u"), "4");
        assert_eq!(check(ANYWHERE, "0x 1t 2x 3d 4x"), "3", "down by hearsay goes before tried");
        assert_eq!(check(ANYWHERE, "0x 1t 2x 3x 4x"), "1", "tried goes before broken");
        assert_eq!(check(ANYWHERE, "0x 1xt 2x 3x 4x"), "0", "broken ones are better than none");
        assert_eq!(check(ANYWHERE, "0u 1u 2u 3u 4u"), "");
    }

    #[test]
    fn a_local_level_stays_in_its_datacenter() {
        assert_eq!(
            check(LOCAL, "0x 1x 2x"),
            "0 1",
            "another datacenter's quorum is another promise"
        );
        assert_eq!(check(LOCAL, "0x 1x 2t"), "2");
        assert_eq!(check(LOCAL, "0u 1u 2u"), "");
        let nowhere = Query { datacenter: "", ..LOCAL };
        assert_eq!(check(nowhere, ""), "0 1 3", "no local nodes at all: replicas anywhere");
    }

    #[test]
    fn without_a_keyspace_any_local_node_serves() {
        let query = Query { keyspace: "", ..ANYWHERE };
        assert_eq!(check(query, ""), "0 1 2");
        assert_eq!(check(query, "0+ 1x"), "2");
        assert_eq!(check(Query { keyspace: "unknown", ..ANYWHERE }, ""), "0 1 2");
    }
}
