//! Layouts: validation, encoding, replica sets.

use proptest::prelude::*;

use super::*;

fn node(id: u128, datacenter: &str) -> NodeDescription {
    NodeDescription {
        id: NodeId(id),
        datacenter: datacenter.into(),
        rack: "r".into(),
        client_address: "10.0.0.1:80".parse().unwrap(),
        peer_address: "[fe80::1%3]:81".parse().unwrap(),
        capacity: 5,
    }
}

fn lists<const N: usize>(nodes: [&[u16]; N]) -> Vec<Vec<NodeIndex>> {
    nodes.map(|it| it.iter().copied().map(NodeIndex).collect()).to_vec()
}

/// Two datacenters: nodes 1 and 3 in a, node 2 in b; two partitions.
fn layout() -> Layout {
    let nodes = vec![node(1, "a"), node(2, "b"), node(3, "a")];
    Layout::new(9, 2, nodes, vec![lists([&[0, 2], &[2, 0]]), lists([&[1], &[1]])]).unwrap()
}

#[test]
fn lookups() {
    let it = layout();
    assert_eq!((it.version(), it.partitions(), it.datacenters().len()), (9, 2, 2));
    assert_eq!(
        [1, 2, 3, 4].map(|id| it.node_index(NodeId(id)).map(|it| it.0)),
        [Some(0), Some(1), Some(2), None]
    );
    assert_eq!(
        ["a", "b", "c"].map(|name| it.datacenter_index(name).map(|it| it.0)),
        [Some(0), Some(1), None]
    );
    assert_eq!([0, 1, 2].map(|at| it.datacenter_of(NodeIndex(at)).0), [0, 1, 0]);
    assert_eq!([0, 1].map(|dc| it.nodes_in(DcIndex(dc))), [2, 1]);
}

#[test]
fn replica_sets() {
    let it = layout();
    let nodes = |replicas: &[(DcIndex, u8)], partition| {
        let set = it.replica_set(replicas, PartitionIndex(partition));
        set.nodes().iter().map(|it| it.0).collect::<Vec<_>>()
    };
    let (a, b) = (DcIndex(0), DcIndex(1));
    assert_eq!(nodes(&[(a, 1)], 0), [0]);
    assert_eq!(nodes(&[(a, 1)], 1), [2]);
    assert_eq!(nodes(&[(a, 2), (b, 1)], 1), [2, 0, 1]);
    let set = it.replica_set(&[(a, 2), (b, 1)], PartitionIndex(1));
    assert_eq!(set.in_datacenter(b).len(), 1);

    let sets = it.replica_sets(&[(a, 2), (b, 1)]);
    let each = it.partition_indexes().map(|it| layout().replica_set(&[(a, 2), (b, 1)], it));
    assert!(sets.iter().map(|it| &**it).eq(&each.collect::<Vec<_>>()));
    let shared = it.replica_sets(&[(b, 1)]);
    assert!(Arc::ptr_eq(&shared[0], &shared[1]));
}

#[test]
fn golden() {
    let bytes = layout().encode();
    let hex: String = bytes.iter().map(|it| format!("{it:02x}")).collect();
    let tail = "00000005";
    let v4 = "040a0000010050";
    let v6 = "06fe80000000000000000000000000000100510000000000000003";
    let describe = |id: u8, dc: char| {
        format!("{id:032x}00000001{:02x}0000000172{v4}{v6}{tail}", u32::from(dc))
    };
    let nodes = [describe(1, 'a'), describe(2, 'b'), describe(3, 'a')].concat();
    let lists = "0200000002000200000100010001";
    assert_eq!(hex, format!("0100000000000000090000000200000003{nodes}{lists}"));
    assert_eq!(format!("{:016x}", layout().hash()), "5874aea478868c48");
}

#[test]
fn refusals() {
    let check = |error: LayoutError, version, partitions, nodes: &[NodeDescription], assignment| {
        assert_eq!(Layout::new(version, partitions, nodes.to_vec(), assignment), Err(error));
    };
    let one = || vec![lists([&[0]])];
    let a = |id| node(id, "a");
    check(LayoutError::NoNodes, 1, 1, &[], one());
    check(LayoutError::Shape, 0, 1, &[a(1)], one());
    check(LayoutError::Partitions { limit: 4_096, actual: 0 }, 1, 0, &[a(1)], vec![vec![]]);
    check(LayoutError::Partitions { limit: 4_096, actual: 3 }, 1, 3, &[a(1)], one());
    check(LayoutError::Shape, 1, 2, &[a(1)], one());
    check(LayoutError::Shape, 1, 1, &[a(1)], vec![]);
    check(LayoutError::Shape, 1, 1, &[a(2), a(1)], vec![lists([&[0, 1]])]);
    check(LayoutError::DuplicateNode(NodeId(1)), 1, 1, &[a(1), a(1)], vec![lists([&[0, 1]])]);
    let many: Vec<_> = (0..1_025).map(a).collect();
    check(LayoutError::TooMany { what: "nodes", limit: 1_024, actual: 1_025 }, 1, 1, &many, one());
    let far: Vec<_> = (0..33).map(|it| node(it, &format!("dc{it}"))).collect();
    check(LayoutError::TooMany { what: "datacenters", limit: 32, actual: 33 }, 1, 1, &far, one());
    let none = NodeDescription { capacity: 0, ..a(1) };
    check(
        LayoutError::Capacity { node: NodeId(1), limit: 1_000_000, actual: 0 },
        1,
        1,
        &[none],
        one(),
    );
    for name in ["", "a b", "ä", &"x".repeat(64)] {
        let unnamed = NodeDescription { rack: name.into(), ..a(1) };
        let error = LayoutError::Name { node: NodeId(1), limit: 63, name: name.into() };
        check(error, 1, 1, &[unnamed], one());
    }
    let broken: [&[u16]; 6] = [&[], &[0], &[0, 0], &[0, 1], &[0, 9], &[0, 2, 0]];
    for list in broken {
        let nodes = [a(1), node(2, "b"), a(3)];
        let error = LayoutError::List { datacenter: "a".into(), partition: 0 };
        check(error, 1, 1, &nodes, vec![lists([list]), lists([&[1]])]);
    }
}

proptest! {
    #[test]
    fn decoding_never_panics_and_takes_only_what_was_encoded(
        cut: usize,
        flips in proptest::collection::vec((any::<usize>(), 0..8u8), 0..4),
    ) {
        let whole = layout().encode();
        prop_assert_eq!(Layout::decode(&whole).unwrap(), layout());
        prop_assert!(Layout::decode(&whole[..cut % whole.len()]).is_err());
        prop_assert!(Layout::decode(&[&whole[..], &[0]].concat()).is_err());
        let mut flipped = whole;
        for (at, bit) in flips {
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
        }
        if let Ok(it) = Layout::decode(&flipped) {
            prop_assert_eq!(it.encode(), flipped, "one encoding for each layout");
        }
    }

    #[test]
    fn garbage_never_panics(bytes: Vec<u8>) {
        prop_assert!(Layout::decode(&bytes).is_err());
    }
}
