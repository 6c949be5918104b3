//! Metadata: changes, encoding, succession.

use proptest::prelude::*;

use super::*;
use crate::{
    ConsistencyLevel,
    keyspace::tests::{keyspace, layout},
    plan,
};

fn genesis() -> Metadata {
    Metadata::genesis(ClusterId(7), [9; 16], layout("a3 b2")).unwrap()
}

fn change(it: &Metadata, change: Change) -> Result<Metadata, ChangeError> {
    it.successor(change, &Limits::default())
}

fn create(it: &Metadata, name: &str) -> Result<Metadata, ChangeError> {
    let keyspace = keyspace(name, "b2 a3", "LOCAL_QUORUM", "3");
    change(it, Change::CreateKeyspace { keyspace, accept_weak: true })
}

fn dropped(it: &Metadata, name: &str) -> Result<Metadata, ChangeError> {
    change(it, Change::DropKeyspace { name: name.into() })
}

fn altered(it: &Metadata, name: &str, to: KeyspaceChange) -> Result<Metadata, ChangeError> {
    change(it, Change::AlterKeyspace { name: name.into(), change: to, accept_weak: false })
}

fn names(it: &Metadata) -> String {
    let each = it.keyspaces().iter().map(|it| format!("{}={}", it.name, it.id.0));
    each.collect::<Vec<_>>().join(" ")
}

#[test]
fn each_names_its_parent() {
    let first = genesis();
    assert_eq!((first.sequence(), first.parent()), (1, MetadataHash::NONE));
    let second = create(&first, "k").unwrap();
    assert_eq!((second.sequence(), second.parent()), (2, first.hash()));
    assert_ne!(first.hash(), second.hash());
    assert_eq!((second.cluster(), second.cluster_key()), (ClusterId(7), [9; 16]));
    assert!(Arc::ptr_eq(first.layout(), second.layout()));
}

#[test]
fn keyspace_ids_are_never_used_again() {
    let it = create(&create(&genesis(), "b").unwrap(), "a").unwrap();
    assert_eq!(names(&it), "a=2 b=1");
    let it = dropped(&dropped(&it, "a").unwrap(), "b").unwrap();
    let it = create(&it, "a").unwrap();
    assert_eq!(names(&it), "a=3");
    assert_eq!(it.keyspace("a"), it.keyspace_of_id(KeyspaceId(3)));
    assert_eq!((it.keyspace("b"), it.keyspace_of_id(KeyspaceId(1))), (None, None));
    assert_eq!(it.next_keyspace_id(), KeyspaceId(4));
    assert!(it.dropped_keyspaces().eq([KeyspaceId(1), KeyspaceId(2)]));
    let told = [0, 2, 3, 4].map(|id| it.was_dropped(KeyspaceId(id)));
    assert_eq!(told, [false, true, false, false], "never given, dropped, there, to come");
}

#[test]
fn keyspaces_are_created_and_dropped_by_name() {
    let it = create(&genesis(), "k").unwrap();
    let replicas = [("a".to_owned(), 3), ("b".to_owned(), 2)];
    assert_eq!(it.keyspace("k").unwrap().replicas, replicas, "in order");
    assert_eq!(create(&it, "k"), Err(ChangeError::Exists { name: "k".into() }));
    assert_eq!(dropped(&it, "j"), Err(ChangeError::NotFound { name: "j".into() }));
    assert!(matches!(create(&it, "No"), Err(ChangeError::Keyspace(KeyspaceError::Name { .. }))));
    let full =
        (0..Metadata::KEYSPACES_MAX).try_fold(genesis(), |it, at| create(&it, &format!("k{at}")));
    let limit = Metadata::KEYSPACES_MAX;
    assert_eq!(create(&full.unwrap(), "k"), Err(ChangeError::TooManyKeyspaces { limit }));
}

#[test]
fn defaults_are_altered_and_checked_again() {
    let it = create(&genesis(), "k").unwrap();
    let to = KeyspaceChange {
        read_level: Some(ConsistencyLevel::Quorum),
        write_level: Some(ConsistencyLevel::All),
        default_ttl_seconds: Some(Some(60)),
        require_overlap: Some(true),
        ..KeyspaceChange::default()
    };
    let it = altered(&it, "k", to).unwrap();
    let found = it.keyspace("k").unwrap();
    assert_eq!(
        (found.read_level, found.write_level),
        (ConsistencyLevel::Quorum, ConsistencyLevel::All)
    );
    assert_eq!((found.default_ttl_seconds, found.require_overlap), (Some(60), true));
    let never = KeyspaceChange { default_ttl_seconds: Some(None), ..KeyspaceChange::default() };
    let same = altered(&it, "k", never).unwrap();
    assert_eq!(same.keyspace("k").unwrap().default_ttl_seconds, None);
    assert_eq!(same.keyspace("k").unwrap().read_level, ConsistencyLevel::Quorum, "left as it was");

    let weak =
        KeyspaceChange { write_level: Some(ConsistencyLevel::One), ..KeyspaceChange::default() };
    let refused = altered(&it, "k", weak);
    assert!(matches!(refused, Err(ChangeError::Keyspace(KeyspaceError::RequiresOverlap { .. }))));
    let missing = altered(&it, "j", KeyspaceChange::default());
    assert_eq!(missing, Err(ChangeError::NotFound { name: "j".into() }));
}

#[test]
fn replication_is_no_setting() {
    let it = create(&genesis(), "k").unwrap();
    let to = |replicas: [(&str, u8); 2]| KeyspaceChange {
        replicas: Some(replicas.map(|it| (it.0.to_owned(), it.1)).to_vec()),
        read_level: Some(ConsistencyLevel::All),
        ..KeyspaceChange::default()
    };
    let fixed = ChangeError::ReplicasFixed { name: "k".into() };
    assert_eq!(altered(&it, "k", to([("a", 2), ("b", 2)])), Err(fixed));
    assert!(altered(&it, "k", to([("b", 2), ("a", 3)])).is_ok(), "the same, in other order");
}

#[test]
fn layouts_follow_each_other() {
    let it = create(&genesis(), "k").unwrap();
    let next = |nodes: &str, partitions| {
        let nodes = layout(nodes).nodes().to_vec();
        let before = Some(&**it.layout()).filter(|it| it.partitions() == partitions);
        plan(&nodes, before, partitions).unwrap().layout
    };
    let set = |layout| change(&it, Change::SetLayout(layout));
    let larger = set(next("a4 b2", 8)).unwrap();
    assert_eq!((larger.layout().version(), names(&larger).as_str()), (2, "k=1"));

    let old = ChangeError::LayoutVersion { required: 2, actual: 1 };
    assert_eq!(set(layout("a4 b2")), Err(old));
    let Err(ChangeError::LayoutTooSmall { name, source }) = set(next("a2 b2", 8)) else { panic!() };
    let too_many = KeyspaceError::TooManyReplicas { datacenter: "a".into(), replicas: 3, limit: 2 };
    assert_eq!((name.as_str(), source), ("k", too_many));

    let other = next("a4 b2", 4);
    let other = plan(other.nodes(), Some(&other), 4).unwrap().layout;
    assert_eq!(set(other), Err(ChangeError::Partitions { required: 8, actual: 4 }));
    let later = plan(layout("a1").nodes(), Some(it.layout()), 8).unwrap().layout;
    let first = ChangeError::LayoutVersion { required: 1, actual: 2 };
    assert_eq!(Metadata::genesis(ClusterId(7), [9; 16], later), Err(first));
}

#[test]
fn what_follows_what() {
    let first = genesis();
    let second = create(&first, "k").unwrap();
    let third = altered(
        &second,
        "k",
        KeyspaceChange { read_level: Some(ConsistencyLevel::All), ..KeyspaceChange::default() },
    );
    let third = third.unwrap();
    assert_eq!(first.check_follows(None), Ok(()));
    assert_eq!(second.check_follows(Some(&first)), Ok(()));
    assert_eq!(third.check_follows(Some(&second)), Ok(()));
    assert_eq!(dropped(&third, "k").unwrap().check_follows(Some(&third)), Ok(()));

    let parent = FollowError::Parent { required: first.hash(), actual: second.hash() };
    assert_eq!(third.check_follows(Some(&first)), Err(parent));
    assert!(matches!(second.check_follows(None), Err(FollowError::Parent { .. })));
    let refused = |forge: &dyn Fn(&mut Metadata)| {
        let mut it = third.clone();
        forge(&mut it);
        match it.check_follows(Some(&second)) {
            Err(FollowError::Fixed { what }) => what.to_owned(),
            Err(FollowError::Sequence { required, actual }) => format!("{actual}, not {required}"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&|it| it.sequence = 5), "5, not 3");
    assert_eq!(refused(&|it| it.cluster = ClusterId(8)), "cluster id");
    assert_eq!(refused(&|it| it.cluster_key = [0; 16]), "cluster key");
    assert_eq!(refused(&|it| it.next_keyspace_id = 1), "keyspace ids given");
    let renamed = "name or replicas of a keyspace id";
    assert_eq!(refused(&|it| it.keyspaces[0].name = "j".into()), renamed);
    assert_eq!(refused(&|it| it.keyspaces[0].replicas[0].1 = 2), renamed);
}

fn every_kind() -> Metadata {
    let mut it = genesis();
    let levels = ConsistencyLevel::NAMED.into_iter().chain([ConsistencyLevel::Count(2)]);
    for (at, level) in levels.enumerate() {
        let mut keyspace = keyspace(&format!("k{at}"), "a3 b2", "ONE", "ONE");
        keyspace.write_level = level;
        keyspace.read_level =
            if level == ConsistencyLevel::Any { ConsistencyLevel::One } else { level };
        keyspace.allow_any = at % 2 == 0;
        keyspace.default_ttl_seconds = (at % 3 == 0).then_some(1 << at);
        let change = Change::CreateKeyspace { keyspace, accept_weak: true };
        it = it.successor(change, &Limits::default()).unwrap();
    }
    it
}

#[test]
fn golden() {
    let it = create(&genesis(), "k").unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
    let layout = it.layout().encode();
    let head = format!("01{:032x}{}{:016x}{}", 7, "09".repeat(16), 2, it.parent());
    let layout = format!("{:08x}{}", layout.len(), hex(&layout));
    let replicas = "00000002000000016103000000016202";
    // LOCAL_QUORUM, 3, no TTL, no overlap required, no ANY, last writer wins.
    let keyspace = format!("00000001000000016b{replicas}08000a030000000000000000000000 01");
    let expected = format!("{head}{layout}0000000200000001{keyspace}").replace(' ', "");
    assert_eq!(hex(&it.encode()), expected);
    assert_eq!(it.hash().to_string(), "0235dce4487c16e41eee3e650d6517c3");

    // Levels, in the order of their names' list, then a count.
    let every = every_kind();
    let bytes = every.encode();
    for (at, level) in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].into_iter().enumerate() {
        let name = format!("k{at}");
        let start = bytes.windows(2).rposition(|it| it == name.as_bytes()).unwrap() + 2 + 16;
        assert_eq!(bytes[start + 2], level, "{name}");
    }
}

proptest! {
    #[test]
    fn decoding_never_panics_and_takes_only_what_was_encoded(
        cut: usize,
        flips in proptest::collection::vec((any::<usize>(), 0..8u8), 0..4),
    ) {
        let it = every_kind();
        let whole = it.encode();
        let decoded = Metadata::decode(&whole).unwrap();
        prop_assert_eq!(decoded.hash(), it.hash());
        prop_assert_eq!(decoded, it);
        prop_assert!(Metadata::decode(&whole[..cut % whole.len()]).is_err());
        prop_assert!(Metadata::decode(&[&whole[..], &[0]].concat()).is_err());
        let mut flipped = whole;
        for (at, bit) in flips {
            let at = at % flipped.len();
            flipped[at] ^= 1 << bit;
        }
        if let Ok(it) = Metadata::decode(&flipped) {
            prop_assert_eq!(it.encode(), flipped, "one encoding for each metadata");
        }
    }

    #[test]
    fn garbage_never_panics(bytes: Vec<u8>) {
        prop_assert!(Metadata::decode(&bytes).is_err());
    }
}

#[test]
fn decoded_metadata_is_as_valid_as_made() {
    let refused = |forge: &dyn Fn(&mut Metadata)| {
        let mut it = create(&create(&genesis(), "a").unwrap(), "b").unwrap();
        forge(&mut it);
        assert_eq!(Metadata::decode(&it.encode()), Err(DecodeError::Invalid { what: "metadata" }));
    };
    refused(&|it| it.keyspaces.swap(0, 1));
    refused(&|it| it.keyspaces[1].id = KeyspaceId(1));
    refused(&|it| it.keyspaces[1].id = KeyspaceId(3));
    refused(&|it| it.keyspaces[1].id = KeyspaceId(0));
    refused(&|it| it.keyspaces[1].name = "c!".into());
    refused(&|it| it.keyspaces[1].replicas[0].1 = 9);
    refused(&|it| it.keyspaces[1].replicas.clear());
    refused(&|it| it.sequence = 0);
    refused(&|it| it.sequence = 1);
    refused(&|it| it.sequence = u64::MAX);
    refused(&|it| it.parent = MetadataHash::NONE);
}
