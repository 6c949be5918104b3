//! Descriptions of clusters, honest and hostile.

use proptest::prelude::*;

use super::*;

/// Two datacenters, `a` with nodes 0 to 2 and `b` with nodes 3 and 4; four partitions; keyspace `k`
/// with two replicas in `a` and one in `b`, keyspace `local` with two in `a` alone.
pub(crate) fn description() -> v1::GetTopologyResponse {
    let node = |index: u8, datacenter: &str| v1::NodeInfo {
        node_id: vec![index; 16].into(),
        datacenter: datacenter.to_owned(),
        rack: format!("r{index}"),
        client_address: format!("10.0.0.{index}:7400"),
        up: true,
        in_layout: true,
        ..v1::NodeInfo::default()
    };
    let level = |level: ConsistencyLevel| Some(v1::Consistency::from(level));
    let replicas = |list: &[(&str, u32)]| {
        let each = |(datacenter, replicas): &(&str, u32)| v1::DatacenterReplicas {
            datacenter: (*datacenter).to_owned(),
            replicas: *replicas,
        };
        list.iter().map(each).collect()
    };
    v1::GetTopologyResponse {
        cluster_id: vec![7; 16].into(),
        layout_version: 1,
        layout_hash: 0xfeed,
        partitions: 4,
        nodes: [(0, "a"), (1, "a"), (2, "a"), (3, "b"), (4, "b")].map(|it| node(it.0, it.1)).into(),
        assignments: vec![
            v1::Assignment {
                datacenter: "a".to_owned(),
                nodes: vec![0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 2, 1],
                list_length: 3,
            },
            v1::Assignment {
                datacenter: "b".to_owned(),
                nodes: vec![3, 4, 4, 3, 3, 4, 4, 3],
                list_length: 2,
            },
        ],
        keyspaces: vec![
            v1::Keyspace {
                name: "k".to_owned(),
                replicas: replicas(&[("a", 2), ("b", 1)]),
                read_consistency: level(ConsistencyLevel::LocalQuorum),
                write_consistency: level(ConsistencyLevel::Quorum),
                ..v1::Keyspace::default()
            },
            v1::Keyspace {
                name: "local".to_owned(),
                replicas: replicas(&[("a", 2)]),
                ..v1::Keyspace::default()
            },
        ],
        local_datacenter: "a".to_owned(),
        metadata_sequence: 5,
        answered_by: Some(1),
    }
}

fn replicas(topology: &Topology, keyspace: &str, partition: u16) -> Vec<u16> {
    let token = model::PartitionIndex(partition).first_token(4);
    let lists = topology.preference_lists(keyspace, token);
    lists.flat_map(|it| it.1.iter().map(|it| it.0)).collect()
}

#[test]
fn a_keyspace_uses_the_first_of_each_list() {
    let topology = Topology::parse(description(), None).unwrap();
    assert_eq!(replicas(&topology, "k", 0), [0, 1, 3]);
    assert_eq!(replicas(&topology, "k", 1), [1, 2, 4]);
    assert_eq!(replicas(&topology, "k", 3), [0, 2, 4]);
    assert_eq!(replicas(&topology, "local", 2), [2, 0]);
    assert_eq!(replicas(&topology, "unknown", 0), [0, 1, 2, 3, 4], "whoever may hold it");
    assert_eq!(topology.default_level("k", false), Some(ConsistencyLevel::LocalQuorum));
    assert_eq!(topology.default_level("k", true), Some(ConsistencyLevel::Quorum));
    assert_eq!(topology.default_level("local", true), None);
    assert_eq!(topology.datacenters(), ["a", "b"]);
    assert_eq!(topology.answered_by(), Some(NodeIndex(1)));
}

#[test]
fn before_the_first_layout_nobody_holds_anything() {
    let description = v1::GetTopologyResponse {
        local_datacenter: "a".to_owned(),
        ..v1::GetTopologyResponse::default()
    };
    let topology = Topology::parse(description, None).unwrap();
    assert_eq!(topology.replicas("k", &Key::new("x")), []);
    assert_eq!(topology.local_datacenter(), "a");
}

#[test]
fn assignments_left_out_are_those_known_by_the_same_hash() {
    let known = Topology::parse(description(), None).unwrap();
    let mut again = description();
    again.assignments.clear();
    again.nodes[3].up = false;
    let topology = Topology::parse(again.clone(), Some(&known)).unwrap();
    assert_eq!(replicas(&topology, "k", 1), [1, 2, 4]);
    assert!(!topology.nodes()[3].up);
    let missing = TopologyError::AssignmentsMissing(0xfeed);
    assert_eq!(Topology::parse(again.clone(), None).unwrap_err(), missing);
    let mut other = again;
    other.layout_hash = 1;
    assert_eq!(
        Topology::parse(other.clone(), Some(&known)).unwrap_err(),
        TopologyError::AssignmentsMissing(1)
    );
    other.layout_hash = 0xfeed;
    other.partitions = 8; // The same hash with another ring: a lie, and the lists would be too short.
    assert_eq!(Topology::parse(other, Some(&known)).unwrap_err(), missing);
}

#[test]
fn an_older_description_or_one_of_another_cluster_replaces_nothing() {
    let parse = |change: fn(&mut v1::GetTopologyResponse)| {
        let mut it = description();
        change(&mut it);
        Topology::parse(it, None).unwrap()
    };
    let held = parse(|_| ());
    assert!(parse(|_| ()).may_replace(&held));
    assert!(parse(|it| it.metadata_sequence = 6).may_replace(&held));
    assert!(!parse(|it| it.metadata_sequence = 4).may_replace(&held));
    assert!(!parse(|it| it.layout_version = 0).may_replace(&held));
    assert!(!parse(|it| it.cluster_id = vec![8; 16].into()).may_replace(&held));
    assert!(held.may_replace(&Topology::default()));
}

#[test]
fn hostile_descriptions_are_refused() {
    let check = |change: fn(&mut v1::GetTopologyResponse), expected: TopologyError| {
        let mut it = description();
        change(&mut it);
        assert_eq!(Topology::parse(it, None).unwrap_err(), expected);
    };
    let a = || "a".to_owned();
    check(|it| it.partitions = 0, TopologyError::Partitions(0));
    check(|it| it.partitions = 3, TopologyError::Partitions(3));
    check(|it| it.partitions = 1 << 17, TopologyError::Partitions(1 << 17));
    check(|it| it.nodes = vec![v1::NodeInfo::default(); 65_537], TopologyError::Nodes(65_537));
    let length = |list_length, actual| TopologyError::ListLength {
        datacenter: a(),
        partitions: 4,
        list_length,
        actual,
    };
    check(|it| it.assignments[0].list_length = 2, length(2, 12));
    check(|it| it.assignments[0].list_length = u32::MAX, length(u32::MAX, 12));
    check(|it| it.assignments[0].list_length = 0, length(0, 12));
    check(|it| it.assignments[0].nodes.truncate(11), length(3, 11));
    let many = |it: &mut v1::GetTopologyResponse| {
        it.assignments[0] =
            v1::Assignment { datacenter: "a".to_owned(), nodes: vec![0; 132], list_length: 33 };
    };
    check(many, length(33, 132));
    let stranger = |index| TopologyError::Stranger { datacenter: a(), index };
    check(|it| it.assignments[0].nodes[5] = 5, stranger(5));
    check(|it| it.assignments[0].nodes[0] = u32::MAX, stranger(u32::MAX));
    check(|it| it.assignments[0].nodes[0] = 3, stranger(3)); // A node of the other datacenter.
    check(|it| it.assignments[1].datacenter = "a".to_owned(), TopologyError::Repeated(a()));
}

#[test]
fn harmless_oddities_are_accepted() {
    let mut it = description();
    it.answered_by = Some(9);
    it.keyspaces[0].replicas[0].replicas = u32::MAX; // More than the list has.
    it.keyspaces[0].read_consistency =
        Some(v1::Consistency { choice: Some(v1::consistency::Choice::Level(77)) });
    it.nodes[0].client_address = "\0".to_owned();
    let topology = Topology::parse(it, None).unwrap();
    assert_eq!(topology.answered_by(), None);
    assert_eq!(replicas(&topology, "k", 0), [0, 1, 2, 3]);
    assert_eq!(topology.default_level("k", false), None);
}

proptest! {
    #[test]
    fn whatever_is_accepted_can_be_routed_by(
        partitions in prop_oneof![Just(0u32), Just(1), Just(2), Just(4), Just(8), any::<u32>()],
        nodes in 0usize..4,
        list_length in 0u32..4,
        indexes in proptest::collection::vec(0u32..5, 0..16),
        layout_version in 0u64..2,
        replicas in any::<u32>(),
        token in any::<u64>(),
    ) {
        let it = v1::GetTopologyResponse {
            layout_version,
            partitions,
            nodes: vec![v1::NodeInfo::default(); nodes],
            assignments: vec![v1::Assignment { datacenter: String::new(), nodes: indexes, list_length }],
            keyspaces: vec![v1::Keyspace {
                name: "k".to_owned(),
                replicas: vec![v1::DatacenterReplicas { datacenter: String::new(), replicas }],
                ..v1::Keyspace::default()
            }],
            ..v1::GetTopologyResponse::default()
        };
        if let Ok(topology) = Topology::parse(it, None) {
            for keyspace in ["k", "unknown"] {
                for (_, list) in topology.preference_lists(keyspace, Token(token)) {
                    prop_assert!(list.iter().all(|it| topology.node(*it).is_some()));
                }
            }
        }
    }
}
