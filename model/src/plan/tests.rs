//! Plans: spread, balance and few moves, for random clusters and random histories of them.

use proptest::prelude::*;

use super::*;
use crate::{DcIndex, PartitionIndex};

/// "dc rack capacity" for each node; ids count from 1.
fn nodes(text: &str) -> Vec<NodeDescription> {
    let describe = |(at, line): (usize, &str)| {
        let mut words = line.split_whitespace();
        let (dc, rack) = (words.next().unwrap(), words.next().unwrap());
        node(at as u128 + 1, dc, rack, words.next().map_or(1, |it| it.parse().unwrap()))
    };
    text.split(',').map(str::trim).enumerate().map(describe).collect()
}

fn node(id: u128, datacenter: &str, rack: &str, capacity: u32) -> NodeDescription {
    let address = "127.0.0.1:1".parse().unwrap();
    NodeDescription {
        id: NodeId(id),
        datacenter: datacenter.into(),
        rack: rack.into(),
        client_address: address,
        peer_address: address,
        capacity,
    }
}

const PARTITIONS: u32 = 256;

fn planned(members: &[NodeDescription], previous: Option<&Layout>) -> Plan {
    plan(members, previous, PARTITIONS).unwrap()
}

fn list(layout: &Layout, partition: PartitionIndex) -> &[NodeIndex] {
    layout.list(DcIndex(0), partition)
}

/// Partitions that a node of the only datacenter holds.
fn held(layout: &Layout, node: usize, replicas: usize) -> usize {
    let holds = |it: &PartitionIndex| list(layout, *it)[..replicas].contains(&node_index(node));
    layout.partition_indexes().filter(holds).count()
}

/// The shares of a layout of one datacenter.
fn shares_of(layout: &Layout, replicas: usize) -> Vec<f64> {
    let dc = &layout.datacenters()[0];
    shares::shares(&Datacenter::new(dc, layout.nodes(), None, PARTITIONS), replicas)
}

/// Every prefix has as many of each rack as an even spread gives it.
fn assert_spread(layout: &Layout) {
    for (partition, dc) in layout.partition_indexes().flat_map(|it| {
        (0..layout.datacenters().len()).map(move |dc| (it, crate::layout::dc_index(dc)))
    }) {
        let rack = |it: &NodeIndex| layout.node(*it).rack.as_str();
        let here: Vec<_> = (0..layout.nodes().len())
            .map(node_index)
            .filter(|it| layout.datacenter_of(*it) == dc)
            .collect();
        let list = layout.list(dc, partition);
        for length in 1..=list.len() {
            let count = |name: &str, nodes: &[NodeIndex]| {
                nodes.iter().filter(|it| rack(it) == name).count()
            };
            for full in list[..length].iter().map(rack) {
                for other in here.iter().map(rack) {
                    let (a, b) = (count(full, &list[..length]), count(other, &list[..length]));
                    assert!(a <= b + 1 || b == count(other, &here), "{partition:?}: {list:?}");
                }
            }
        }
    }
}

fn gains(plan: &Plan, replicas: u8) -> u32 {
    plan.moves.iter().map(|it| it.with_replicas(replicas).gains).sum()
}

#[derive(Clone, Debug)]
struct Growth {
    start: Vec<NodeDescription>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug)]
enum Step {
    Add(NodeDescription),
    Remove(usize),
}

impl Growth {
    /// The members before and after each step; never fewer than three.
    fn play(&self, mut each: impl FnMut(&[NodeDescription], &Step)) {
        let mut members = self.start.clone();
        for step in &self.steps {
            match step {
                Step::Add(node) => members.push(node.clone()),
                Step::Remove(_) if members.len() <= 3 => continue,
                Step::Remove(at) => drop(members.remove(at % members.len())),
            }
            members.sort_by_key(|it| it.id);
            each(&members, step);
        }
    }
}

/// Clusters of one datacenter with at most so many racks and so much capacity per node.
fn growth(racks: usize, capacity: u32) -> impl Strategy<Value = Growth> {
    let described = move |range: std::ops::Range<usize>| {
        let parts = (any::<u64>(), 0..racks, 1..=capacity, any::<bool>(), any::<usize>());
        proptest::collection::vec(parts, range)
    };
    (described(3..14), described(0..8)).prop_map(|(start, steps)| {
        let node = |(id, rack, capacity, ..): &(u64, usize, u32, bool, usize)| {
            node(u128::from(*id), "dc", &format!("rack{rack}"), *capacity)
        };
        let step = |it: &(u64, usize, u32, bool, usize)| {
            if it.3 { Step::Add(node(it)) } else { Step::Remove(it.4) }
        };
        Growth { start: start.iter().map(node).collect(), steps: steps.iter().map(step).collect() }
    })
}

proptest! {
    // Each case is a history of several plans.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn spread_and_balance_hold_through_any_history(history in growth(4, 3)) {
        let mut layout = planned(&history.start, None).layout;
        let check = |layout: &Layout| {
            assert_spread(layout);
            // Two replicas: within one partition of the share. Three: where single-node racks bind
            // all freedom, a tenth of the ring is the most seen.
            for (replicas, limit) in [(1, 1.0), (2, 1.0), (3, 26.0)] {
                for (node, share) in shares_of(layout, replicas).into_iter().enumerate() {
                    let held = held(layout, node, replicas) as f64;
                    assert!((held - share).abs() <= limit, "{replicas}: {held} of {share}");
                }
            }
        };
        check(&layout);
        history.play(|members, _| {
            layout = planned(members, Some(&layout)).layout;
            check(&layout);
        });
    }

    #[test]
    fn equal_nodes_hold_equal_numbers(history in growth(1, 1)) {
        let mut layout = planned(&history.start, None).layout;
        let check = |layout: &Layout| {
            for replicas in 1..=layout.nodes().len().min(Layout::LIST_MAX) {
                let each = (0..layout.nodes().len()).map(|it| held(layout, it, replicas));
                let (least, most) = (each.clone().min().unwrap(), each.max().unwrap());
                assert!(most - least <= 1, "{replicas} replicas: {least} to {most} partitions");
            }
        };
        check(&layout);
        history.play(|members, _| {
            layout = planned(members, Some(&layout)).layout;
            check(&layout);
        });
    }

    #[test]
    fn equal_nodes_move_only_what_they_must(history in growth(1, 1)) {
        let mut layout = planned(&history.start, None).layout;
        history.play(|members, step| {
            let plan = planned(members, Some(&layout));
            for replicas in 1..=3 {
                let moved = gains(&plan, replicas);
                let limit = match step {
                    // What the new node is to hold: 1/n of all.
                    Step::Add(_) => (PARTITIONS * u32::from(replicas)).div_ceil(u32::try_from(members.len()).unwrap()),
                    // What the node that left has held.
                    Step::Remove(_) => {
                        let gone = plan.moves.iter().find(|it| plan.layout.node_index(it.node).is_none());
                        gone.unwrap().with_replicas(replicas).losses
                    }
                };
                assert!(moved <= limit, "{step:?}, {replicas} replicas: {moved} of {limit}");
            }
            layout = plan.layout;
        });
    }

    #[test]
    fn racks_and_capacities_move_little_more(history in growth(4, 3)) {
        let mut layout = planned(&history.start, None).layout;
        history.play(|members, step| {
            let plan = planned(members, Some(&layout));
            for replicas in 1..=3u8 {
                // What the shares say that the nodes gain, at the least.
                let (now, before) = (shares_of(&plan.layout, replicas.into()), shares_of(&layout, replicas.into()));
                let gain = |(at, share): (usize, &f64)| {
                    let id = plan.layout.node(node_index(at)).id;
                    let had = layout.node_index(id).map_or(0.0, |it| before[it.index()]);
                    (share - had).max(0.0)
                };
                let needed: f64 = now.iter().enumerate().map(gain).sum();
                let moved = f64::from(gains(&plan, replicas));
                assert!(moved <= 2.0 * needed + 26.0, "{step:?}, {replicas}: {moved} of {needed}");
            }
            layout = plan.layout;
        });
    }

    #[test]
    fn the_same_nodes_move_nothing(history in growth(4, 3), shift in 0..5usize) {
        let mut layout = planned(&history.start, None).layout;
        history.play(|members, _| layout = planned(members, Some(&layout)).layout);
        let mut members = layout.nodes().to_vec();
        let turn = shift % members.len();
        members.rotate_left(turn);
        let plan = planned(&members, Some(&layout));
        for partition in layout.partition_indexes() {
            prop_assert_eq!(list(&layout, partition), list(&plan.layout, partition));
        }
        prop_assert_eq!((1..8).map(|it| gains(&plan, it)).sum::<u32>(), 0);
        prop_assert_eq!(&plan, &planned(layout.nodes(), Some(&layout)), "in any order");
    }

    #[test]
    fn moves_count_what_changes(history in growth(3, 2), replicas in 1..4u8) {
        let mut layout = planned(&history.start, None).layout;
        history.play(|members, _| {
            let plan = planned(members, Some(&layout));
            for it in &plan.moves {
                let moves = it.with_replicas(replicas);
                let count = |layout: &Layout| {
                    let node = layout.node_index(it.node);
                    node.map_or(0, |node| u32::try_from(held(layout, node.index(), replicas.into())).unwrap())
                };
                assert_eq!(moves.partitions, count(&plan.layout));
                assert_eq!(moves.partitions + moves.losses, count(&layout) + moves.gains);
            }
            layout = plan.layout;
        });
    }
}

#[test]
fn three_datacenters_of_three_racks() {
    let cluster = nodes("a 1, a 2, a 3, b 1, b 2, b 3, c 1, c 2, c 3");
    let Plan { layout, moves, violations, .. } = planned(&cluster, None);
    assert_spread(&layout);
    assert_eq!(violations, Vec::<String>::new());
    assert_eq!(
        (layout.version(), layout.datacenters()),
        (1, &["a", "b", "c"].map(String::from)[..])
    );
    for it in &moves {
        assert!((85..=86).contains(&it.with_replicas(1).partitions), "{it:?}");
        let all = Moves { partitions: 256, gains: 256, losses: 0 };
        assert_eq!([3, 4, 7, 200].map(|replicas| it.with_replicas(replicas)), [all; 4]);
    }
}

#[test]
fn capacity_is_shared_by() {
    let held_with = |cluster: &str, replicas: u8| {
        let moves = planned(&nodes(cluster), None).moves;
        moves.iter().map(|it| it.with_replicas(replicas).partitions).collect::<Vec<_>>()
    };
    // 256 places for a capacity of 8, then 512; and no node holds a partition twice.
    assert_eq!(held_with("a 1 1, a 1 1, a 1 2, a 1 4", 1), [32, 32, 64, 128]);
    assert_eq!(held_with("a 1 1, a 1 1, a 1 2, a 1 4", 2), [64, 64, 128, 256]);
    assert_eq!(held_with("a 1 1, a 1 1, a 1 2, a 1 4", 4), [256; 4]);
    // A rack holds at most one of two replicas, however large it is.
    assert_eq!(held_with("a 1 9, a 1 3, a 2 1, a 3 1", 2), [192, 64, 128, 128]);
}

#[test]
fn the_partitions_of_a_node_are_shared_with_all_others() {
    let cluster: Vec<_> = (0..9).map(|it| node(it, "dc", "rack", 1)).collect();
    let layout = planned(&cluster, None).layout;
    for node in 0..9 {
        let mine =
            layout.partition_indexes().filter(|it| list(&layout, *it)[0] == node_index(node));
        let mut second: Vec<_> = mine.map(|it| list(&layout, it)[1]).collect();
        second.sort();
        second.dedup();
        assert_eq!(second.len(), 8, "all others take over where node {node} is first and fails");
    }
}

#[test]
fn violations() {
    let check = |cluster: &str, expected: &[&str]| {
        assert_eq!(planned(&nodes(cluster), None).violations, expected, "{cluster}");
    };
    check("a 1, a 2, a 3", &[]);
    check("a 1", &["datacenter a has 1 node: at most 1 replica of a key there"]);
    check(
        "a 1, a 1",
        &[
            "datacenter a has 2 nodes: at most 2 replicas of a key there",
            "datacenter a has 1 rack: its nodes can fail together",
        ],
    );
    check(
        "a 1, a 1, a 2, b 1, b 2, b 3",
        &["datacenter a has 2 racks: of 3 replicas of a key there, 2 share one"],
    );
    check(
        "a 1, a 2, a 2, a 3, a 3",
        &["node 00000000-0000-0000-0000-000000000001 (datacenter a, rack 1) holds 256 of 256 \
           partitions with 3 replicas, 153 by capacity: too few nodes or racks to share with"],
    );
}

#[test]
fn refusals() {
    let two = nodes("a 1, a 2");
    let layout = planned(&two, None).layout;
    let fixed = PlanError::Partitions { required: 256, actual: 64 };
    assert_eq!(plan(&two, Some(&layout), 64), Err(fixed));
    let refused = |members: &[NodeDescription], partitions| match plan(members, None, partitions) {
        Err(PlanError::Layout(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&[], 256), LayoutError::NoNodes);
    assert_eq!(refused(&two, 100), LayoutError::Partitions { limit: 4_096, actual: 100 });
    assert_eq!(refused(&two, 8_192), LayoutError::Partitions { limit: 4_096, actual: 8_192 });
    let twice = [two[0].clone(), two[0].clone()];
    assert_eq!(refused(&twice, 256), LayoutError::DuplicateNode(NodeId(1)));
    let nothing = LayoutError::Capacity { node: NodeId(1), limit: 1_000_000, actual: 0 };
    assert_eq!(refused(&nodes("a 1 0"), 256), nothing);
}

#[test]
fn the_hash_names_the_plan_and_what_it_was_planned_from() {
    let (two, three) = (nodes("a 1, a 2"), nodes("a 1, a 2, a 3"));
    let first = planned(&two, None);
    assert_ne!(first.hash, planned(&three, None).hash);
    assert_eq!(first, planned(&two, None));
    // The same layout, planned from two that differ only in an address.
    let mut elsewhere = two.clone();
    elsewhere[0].client_address = "127.0.0.1:9".parse().unwrap();
    let moved = planned(&elsewhere, None);
    let (a, b) = (planned(&two, Some(&first.layout)), planned(&two, Some(&moved.layout)));
    assert_eq!(a.layout, b.layout);
    assert_ne!(a.hash, b.hash);
}

/// Frozen: nodes of different builds plan the same from the same.
#[test]
fn golden() {
    let plan = plan(&nodes("a 1, a 1, a 2 2, a 3, b 1"), None, 8).unwrap();
    let lists = plan.layout.partition_indexes().map(|it| {
        let digits = list(&plan.layout, it).iter().map(|it| it.0.to_string());
        digits.collect::<String>()
    });
    assert_eq!(lists.collect::<Vec<_>>().join(" "), "0231 2130 3201 1230 0231 2130 3021 2310");
}
