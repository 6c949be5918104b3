//! Keyspaces: what is refused, with which numbers.

use super::*;
use crate::{NodeDescription, NodeId, plan};

/// Nodes per datacenter: "a3 b1" has three in a and one in b.
pub(crate) fn layout(text: &str) -> Layout {
    let address = "127.0.0.1:1".parse().unwrap();
    let names = text
        .split(' ')
        .flat_map(|it| std::iter::repeat_n(it[..1].to_owned(), it[1..].parse().unwrap()));
    let describe = |(id, datacenter)| NodeDescription {
        id: NodeId(id),
        datacenter,
        rack: "r".into(),
        client_address: address,
        peer_address: address,
        capacity: 1,
    };
    let nodes: Vec<_> = (1..).zip(names).map(describe).collect();
    plan(&nodes, None, 8).unwrap().layout
}

pub(crate) fn keyspace(name: &str, replicas: &str, read: &str, write: &str) -> Keyspace {
    let replicas = replicas.split_whitespace();
    Keyspace {
        id: KeyspaceId(0),
        name: name.into(),
        replicas: replicas.map(|it| (it[..1].to_owned(), it[1..].parse().unwrap())).collect(),
        read_level: read.parse().unwrap(),
        write_level: write.parse().unwrap(),
        default_ttl_seconds: None,
        require_overlap: false,
        allow_any: false,
        conflict: ConflictType::LastWriterWins,
    }
}

fn validate(it: &Keyspace, accept_weak: bool) -> Result<(), KeyspaceError> {
    it.validate(&layout("a3 b1 c9"), &Limits::default(), accept_weak)
}

fn check(it: &Keyspace, expected: &str) {
    let found = validate(it, false).map_or_else(|it| it.to_string(), |()| "fine".into());
    assert_eq!(found, expected, "{it:?}");
}

#[test]
fn names() {
    let named = |name: &str| keyspace(name, "a3", "QUORUM", "QUORUM");
    for name in ["a", "a_1", &"x".repeat(48)] {
        check(&named(name), "fine");
    }
    for name in ["", "1a", "_a", "A", "a-b", "ä"] {
        check(&named(name), &format!("{name:?} is no keyspace name: a-z first, then a-z 0-9 _"));
    }
    let long = "the keyspace name has 49 bytes; at most 48 are allowed";
    check(&named(&"x".repeat(49)), long);
}

#[test]
fn replicas() {
    let with = |replicas: &str| keyspace("k", replicas, "QUORUM", "QUORUM");
    for fine in ["a3", "b1", "a1 c7", "a3 b1 c7"] {
        check(&with(fine), "fine");
    }
    check(&with(""), "the keyspace has no replicas in any datacenter");
    check(&with("d1"), "datacenter \"d\" is not in the layout, which has a, b, c");
    check(&with("a4"), "4 replicas in datacenter \"a\", where 3 nodes can hold one");
    check(&with("c8"), "8 replicas in datacenter \"c\", where 7 nodes can hold one");
    check(&with("a0"), "0 replicas in datacenter \"a\": leave it out instead");
    check(&with("a1 a1"), "datacenter \"a\" is named twice or out of order");
    check(&with("b1 a1"), "datacenter \"a\" is named twice or out of order");

    let wide = layout("a7 b7 c7 d7 e7");
    let it = with("a7 b7 c7 d7 e7");
    let error = KeyspaceError::TooManyReplicasInTotal { limit: 32, actual: 35 };
    assert_eq!(it.validate(&wide, &Limits::default(), false), Err(error));
}

#[test]
fn levels() {
    let with = |replicas: &str, read: &str, write: &str| keyspace("k", replicas, read, write);
    for (replicas, read, write) in [
        ("a3", "QUORUM", "QUORUM"),
        ("a3", "ONE", "ALL"),
        ("a3", "2", "2"),
        ("a3 c3", "LOCAL_QUORUM", "LOCAL_QUORUM"),
        ("a3 c3", "LOCAL_QUORUM", "EACH_QUORUM"),
        ("a3 c3", "EACH_QUORUM", "LOCAL_QUORUM"),
    ] {
        check(&with(replicas, read, write), "fine");
    }
    let weak = |read: &str, write: &str, numbers: &str| {
        format!("reads at {read} may miss writes at {write}: R + W > N does not hold for {numbers}")
    };
    check(&with("a3", "ONE", "ONE"), &weak("ONE", "ONE", "R = 1, W = 1, N = 3"));
    check(&with("a3", "1", "QUORUM"), &weak("1", "QUORUM", "R = 1, W = 2, N = 3"));
    let local = weak("LOCAL_ONE", "LOCAL_QUORUM", "R = 1, W = 2, N = 3");
    check(&with("a3 c3", "LOCAL_ONE", "LOCAL_QUORUM"), &local);
    let mixed = weak("LOCAL_QUORUM", "QUORUM", "R = 2, W = 4, N = 6");
    check(&with("a3 c3", "LOCAL_QUORUM", "QUORUM"), &mixed);
    assert_eq!(validate(&with("a3", "ONE", "ONE"), true), Ok(()), "accepted as it is");

    let impossible = "the default read level of the keyspace is impossible: THREE requires 3 replicas, \
                      and the keyspace has 1";
    check(&with("b1", "THREE", "ONE"), impossible);
    let zero = "the default write level of the keyspace is impossible: a count of 0 replicas promises \
                nothing: give 1 to 3";
    check(&with("a3", "ALL", "0"), zero);
    assert!(validate(&with("a3", "ANY", "ALL"), true).is_err(), "a hint cannot be read");
    assert!(validate(&with("a3", "ALL", "ANY"), true).is_err(), "not without allow_any");
}

#[test]
fn any() {
    let any = Keyspace { allow_any: true, ..keyspace("k", "a3", "ALL", "ANY") };
    check(
        &any,
        "reads at ALL may miss writes at ANY: R + W > N does not hold for R = 3, W = 0, N = 3",
    );
    assert_eq!(validate(&any, true), Ok(()));
    let both = Keyspace { require_overlap: true, ..any };
    assert_eq!(validate(&both, true), Err(KeyspaceError::OverlapOrAny));
}

#[test]
fn require_overlap_is_never_waived() {
    let strict = |read: &str, write: &str| Keyspace {
        require_overlap: true,
        ..keyspace("k", "a3 c3", read, write)
    };
    check(&strict("QUORUM", "QUORUM"), "fine");
    check(&strict("LOCAL_QUORUM", "LOCAL_QUORUM"), "fine");
    // Reads meet writes, but writes do not meet writes.
    let error = "require_overlap needs R + W > N, 2W > N and 2R > N, and ALL and ONE give R = 6, W = 1, \
                 N = 6";
    check(&strict("ALL", "ONE"), error);
    assert!(validate(&strict("ALL", "ONE"), true).is_err());
    assert_eq!(validate(&keyspace("k", "a3 c3", "ALL", "ONE"), false), Ok(()));
}

#[test]
fn ttl() {
    let with = |seconds| Keyspace {
        default_ttl_seconds: Some(seconds),
        ..keyspace("k", "a3", "QUORUM", "QUORUM")
    };
    let limit = Limits::default().ttl_seconds_max;
    check(&with(1), "fine");
    check(&with(limit), "fine");
    for actual in [0, limit + 1] {
        assert_eq!(validate(&with(actual), true), Err(KeyspaceError::Ttl { limit, actual }));
    }
}

#[test]
fn replicas_are_resolved_by_the_layout() {
    let it = keyspace("k", "a2 c3", "QUORUM", "QUORUM");
    let resolved = Some(vec![(DcIndex(0), 2), (DcIndex(2), 3)]);
    assert_eq!(it.replicas_in(&layout("a3 b1 c9")), resolved);
    assert_eq!(it.replicas_in(&layout("a3")), None);
}
