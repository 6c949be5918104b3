use std::collections::BTreeMap;

use model::{Hlc, Key, KeyspaceId, Record, RequestId, StorageKey, Version};
use proptest::prelude::*;

use super::*;

const PARTITIONS: u32 = 4;

fn partition() -> PartitionIndex {
    PartitionIndex(2)
}

fn hash_of(value: u64) -> TreeHash {
    let key = StorageKey::encode(KeyspaceId(1), Token(value), &Key::new("k"));
    let version = Version { hlc: Hlc(value), request: RequestId(1) };
    RecordHasher::new([7; 16]).hash(&key, &Record::encode(&key, version, 0, Some(b"v")))
}

/// A token of the partition.
fn token(random: u64) -> Token {
    Token(partition().first_token(PARTITIONS).0 | random >> 2)
}

#[test]
fn hashes_are_frozen() {
    let key = StorageKey::encode(KeyspaceId(3), Token(5), &Key::with_sort_key("p", "s"));
    let version = Version { hlc: Hlc(0x0102), request: RequestId(0xabcd) };
    let record = Record::encode(&key, version, 9, Some(b"value"));
    let hash = RecordHasher::new(*b"sixteen bytes ok").hash(&key, &record);
    assert_eq!(hash.to_string(), GOLDEN);
    assert_eq!(TreeHash::from_bytes(hash.to_bytes()), hash);
}

const GOLDEN: &str = "70b02021e252ccc57215e357d1d38e6c";

#[test]
fn everything_but_nothing_else_is_hashed() {
    let key = |sort: &'static str| {
        StorageKey::encode(KeyspaceId(3), Token(5), &Key::with_sort_key("p", sort))
    };
    let record = |sort: &'static str, hlc, request, expiry_ms, value| {
        let version = Version { hlc: Hlc(hlc), request: RequestId(request) };
        (key(sort), Record::encode(&key(sort), version, expiry_ms, value))
    };
    let records = [
        record("s", 1, 1, 0, Some(&b"v"[..])),
        record("t", 1, 1, 0, Some(b"v")),
        record("s", 2, 1, 0, Some(b"v")),
        record("s", 1, 2, 0, Some(b"v")),
        record("s", 1, 1, 9, Some(b"v")),
        record("s", 1, 1, 0, Some(b"w")),
        record("s", 1, 1, 0, Some(b"")),
        record("s", 1, 1, 0, None),
    ];
    let mut hashes = BTreeMap::new();
    for cluster_key in [[1; 16], [2; 16]] {
        for (key, record) in &records {
            let hash = RecordHasher::new(cluster_key).hash(key, record);
            assert_eq!(hashes.insert(hash, record), None, "{record:?}");
        }
    }
}

#[test]
fn leaves_that_do_not_tile_are_refused() {
    let whole = Tree::root(partition(), PARTITIONS);
    let halves = [
        Leaf::empty(whole.first, whole.bits + 1),
        Leaf::empty(Token(whole.first.0 | 1 << 61), whole.bits + 1),
    ];
    let tree = |leaves: &[Leaf]| Tree::from_leaves(partition(), PARTITIONS, leaves.to_vec());
    assert!(tree(&[whole]).is_ok());
    assert!(tree(&halves).is_ok());
    for bad in
        [&[][..], &halves[..1], &halves[1..], &[halves[0]; 2], &[halves[0], halves[1], halves[1]]]
    {
        assert!(tree(bad).is_err(), "{bad:?}");
    }
    let last = PartitionIndex(3);
    let whole = Tree::root(last, PARTITIONS);
    assert!(Tree::from_leaves(last, PARTITIONS, vec![whole]).is_ok(), "up to the last token");
    assert!(Tree::from_leaves(PartitionIndex(0), 1, vec![Leaf::empty(Token(0), 0)]).is_ok());
}

#[test]
fn the_rows_of_one_token_stay_together() {
    let leaf = Tree::root(partition(), PARTITIONS);
    let one = vec![(token(12), hash_of(1)); 1_000];
    assert_eq!(leaf.cut(&one).len(), 1);
    let mut two = one.clone();
    two.push((Token(one[0].0.0 + 1), hash_of(2)));
    let cut = leaf.cut(&two);
    assert_eq!(
        cut.iter().map(|it| it.records).filter(|it| *it > 0).collect::<Vec<_>>(),
        [1_000, 1]
    );
    assert!(Tree::from_leaves(partition(), PARTITIONS, cut).is_ok());
}

proptest! {
    /// Whatever is written in whatever order, and whenever leaves are cut, a tree is what its records
    /// say, and two trees agree on every range that both have.
    #[test]
    fn trees_are_exact(
        writes in prop::collection::vec((0..600u64, any::<u64>(), any::<bool>()), 0..2_000),
        cuts_after in 1..400usize,
    ) {
        let mut tree = Tree::empty(partition(), PARTITIONS);
        let mut rows: BTreeMap<Token, TreeHash> = BTreeMap::new();
        for (at, (row, value, gone)) in writes.into_iter().enumerate() {
            let [first, ..] = hash_of(row).to_bytes();
            let token = token(u64::from(first) << 56 | row);
            let new = if gone { None } else { Some(hash_of(value)) };
            let old = match new {
                Some(new) => rows.insert(token, new),
                None => rows.remove(&token),
            };
            let records = i32::from(new.is_some()) - i32::from(old.is_some());
            let hash = old.unwrap_or_default() ^ new.unwrap_or_default();
            let (place, leaf) = tree.leaf(token);
            tree.replace_at(place, leaf.after(LeafChange { hash, records }));
            let (_, leaf) = tree.leaf(token);
            prop_assert!(leaf.first <= token && token <= leaf.last());
            if at % cuts_after == 0 && leaf.is_overfull() {
                let inside: Vec<_> = rows.range(leaf.first..=leaf.last()).map(|it| (*it.0, *it.1)).collect();
                tree.replace(&leaf.cut(&inside));
            }
        }
        let all: Vec<_> = rows.iter().map(|it| (*it.0, *it.1)).collect();
        let fresh = Tree::root(partition(), PARTITIONS).cut(&all);
        let fresh = Tree::from_leaves(partition(), PARTITIONS, fresh).unwrap();
        prop_assert_eq!(tree.hash(), fresh.hash());
        prop_assert_eq!(tree.records(), all.len() as u64);
        for leaf in tree.leaves() {
            let inside = rows.range(leaf.first..=leaf.last());
            let hash = inside.clone().fold(TreeHash::ZERO, |sum, it| sum ^ *it.1);
            prop_assert_eq!((leaf.hash, leaf.records as usize), (hash, inside.count()));
        }
        prop_assert!(Tree::from_leaves(partition(), PARTITIONS, tree.leaves().to_vec()).is_ok());
        prop_assert!(fresh.leaves().iter().all(|it| it.records <= LEAF_RECORDS_MAX / 2));
    }
}
