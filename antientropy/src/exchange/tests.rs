use std::collections::BTreeMap;

use model::{Hlc, Key, KeyspaceId, PartitionIndex, Record, RequestId, StorageKey, Version};
use proptest::prelude::*;

use super::*;
use crate::merkle::{RecordHasher, Tree};

const PARTITIONS: u32 = 4;

fn whole() -> TokenRange {
    TokenRange::of(&Tree::root(PartitionIndex(1), PARTITIONS))
}

fn hasher() -> RecordHasher {
    RecordHasher::new([7; 16])
}

/// A row of the partition, spread over it by `number`.
fn storage_key(number: u64) -> StorageKey {
    let token = Token(whole().first.0 | (number << 50) >> 2);
    StorageKey::encode(KeyspaceId(1), token, &Key::new(number.to_be_bytes().to_vec()))
}

fn record(key: &StorageKey, hlc: u64) -> Record {
    let version = Version { hlc: Hlc(hlc), request: RequestId(hlc) };
    Record::encode(key, version, 0, Some(&hlc.to_be_bytes()))
}

/// A replica: the clock of each key's version.
type Replica = BTreeMap<u64, u64>;

fn digests(replica: &Replica, salt: u64) -> (Vec<u64>, Vec<RecordDigest>) {
    let digest = |(number, hlc): (&u64, &u64)| {
        let key = storage_key(*number);
        (*number, RecordDigest::new(salt, &hasher(), &key, &record(&key, *hlc)))
    };
    replica.iter().map(digest).unzip()
}

/// The leaves of a replica's tree, cut down to `bits` bits, or only where `cut` says so.
fn leaves(replica: &Replica, range: TokenRange, cut: u64) -> Vec<Leaf> {
    let inside = |it: &&u64| {
        range.first <= storage_key(**it).token() && storage_key(**it).token() <= range.last()
    };
    let mut leaf = Leaf::empty(range.first, range.bits);
    for number in replica.keys().filter(inside) {
        let key = storage_key(*number);
        leaf.hash ^= hasher().hash(&key, &record(&key, replica[number]));
        leaf.records += 1;
    }
    if range.bits < 14 && cut.rotate_left(u32::from(range.bits) * 7) & 3 != 0 {
        let middle = Token(range.first.0 | 1 << (63 - range.bits));
        return [range.first, middle]
            .into_iter()
            .flat_map(|first| {
                leaves(
                    replica,
                    TokenRange { first, bits: range.bits + 1 },
                    cut.rotate_left(5) ^ first.0 >> 49,
                )
            })
            .collect();
    }
    vec![leaf]
}

/// One exchange of everything, as two nodes do it: how many were pushed and fetched.
fn exchange(ours: &mut Replica, theirs: &mut Replica, salt: u64, cutoff: u64) -> (usize, usize) {
    let (our_keys, our_digests) = digests(ours, salt);
    let sketch = Sketch::decode(&Sketch::new(&our_digests).encode()).unwrap();
    let (their_keys, their_digests) = digests(theirs, salt);
    let (buckets, records) = compare(&sketch, &their_digests, true).encode();
    let differences = Differences::decode(&buckets, &records, Width::Short).unwrap();
    let moves = decide(&our_digests, &sketch, &differences, Hlc(cutoff));
    let (before_ours, before_theirs) = (ours.clone(), theirs.clone());
    let newer = |replica: &mut Replica, key: u64, hlc: u64| {
        let held = replica.entry(key).or_default();
        *held = hlc.max(*held);
    };
    for at in &moves.push {
        newer(theirs, our_keys[*at], before_ours[&our_keys[*at]]);
    }
    for name in &moves.fetch {
        for (key, _) in
            their_keys.iter().zip(&their_digests).filter(|it| it.1.name(Width::Short) == *name)
        {
            newer(ours, *key, before_theirs[key]);
        }
    }
    (moves.push.len(), moves.fetch.len())
}

fn newest(a: &Replica, b: &Replica) -> Replica {
    let mut all = a.clone();
    b.iter().for_each(|(key, hlc)| {
        let held = all.entry(*key).or_default();
        *held = (*hlc).max(*held);
    });
    all
}

#[test]
fn ranges_are_of_leading_bits() {
    assert_eq!(TokenRange::new(Token(1), 63), None);
    assert_eq!(TokenRange::new(Token(1), 65), None);
    let one = TokenRange::new(Token(1), 64).unwrap();
    assert_eq!((one.last(), one.widened(62).first), (Token(1), Token(0)));
    let all = TokenRange::new(Token(0), 0).unwrap();
    assert!(all.contains(one) && !one.contains(all) && all.last() == Token(u64::MAX));
}

#[test]
fn what_does_not_tile_the_range_is_refused() {
    let tiles = tiling(whole(), &leaves(&(0..500).map(|it| (it, 1)).collect(), whole(), u64::MAX));
    let bytes = encode_tiling(&tiles);
    assert!(tiles.len() > 2);
    assert_eq!(decode_tiling(whole(), &bytes), Some(tiles));
    for cut in 0..bytes.len() {
        assert_eq!(decode_tiling(whole(), &bytes[..cut]), None, "{cut} bytes");
    }
    assert_eq!(decode_tiling(whole(), &[&bytes[..], &[9; 9]].concat()), None);
    let mut wide = bytes;
    wide[0] = 0;
    assert_eq!(decode_tiling(whole(), &wide), None);
}

#[test]
fn deep_leaves_are_taken_together() {
    let token = |low: u64| Token(whole().first.0 | low);
    let mut leaves: Vec<Leaf> = (2..64)
        .rev()
        .map(|bits| {
            let mut leaf = Leaf::empty(token(1 << (63 - bits)), bits + 1);
            leaf.hash = hasher().hash(&storage_key(u64::from(bits)), &record(&storage_key(0), 1));
            leaf
        })
        .collect();
    leaves.insert(0, Leaf::empty(token(0), 64));
    let tiles = tiling(whole(), &leaves);
    assert_eq!(tiles.len(), usize::from(TILING_DEPTH) + 1);
    let sum = leaves.iter().fold(0, |sum, it| sum ^ it.hash.short());
    assert_eq!(super::sum(&tiles), sum);
    assert_eq!(decode_tiling(whole(), &encode_tiling(&tiles)), Some(tiles));
}

#[test]
fn sketches_and_answers_of_strangers_are_checked() {
    assert_eq!(Sketch::decode(&[]), None, "no buckets");
    assert_eq!(Sketch::decode(&[0; 3]), None);
    assert_eq!(Sketch::decode(&[0; 6]), None, "not a power of two");
    assert_eq!(Sketch::decode(&[0; 1_024]), None);
    assert_eq!(Differences::decode(&[], &[0; 13], Width::Short), None);
    // Fewer buckets than the sketch has: those that are missing do not differ.
    let replica: Replica = (0..100).map(|it| (it, 1)).collect();
    let (_, ours) = digests(&replica, 1);
    let differences = Differences::decode(&[0xff], &[], Width::Short).unwrap();
    let moves = decide(&ours, &Sketch::new(&ours), &differences, Hlc(9));
    assert!(moves.push.len() < 50, "{}", moves.push.len());
}

#[test]
fn nothing_is_named_where_nothing_differs() {
    let replica: Replica = (0..1_000).map(|it| (it, it)).collect();
    let (_, digests) = digests(&replica, 3);
    let says_same = |differences: Differences| {
        let (buckets, records) = differences.encode();
        records.is_empty() && !buckets.is_empty() && buckets.iter().all(|it| *it == 0)
    };
    assert!(says_same(compare(&Sketch::new(&digests), &digests, true)));
    assert!(says_same(compare(&Sketch::new(&[]), &[], true)));
    assert!(!says_same(compare(&Sketch::new(&[]), &[], false)), "who knows what is behind it");
}

#[test]
fn few_records_are_named_for_few_differences() {
    let ours: Replica = (0..128).map(|it| (it, 1)).collect();
    let mut theirs = ours.clone();
    theirs.insert(77, 2);
    let (sketch, theirs) = (Sketch::new(&digests(&ours, 5).1), digests(&theirs, 5).1);
    let named = compare(&sketch, &theirs, true).records.len();
    assert!(named <= 16, "{named}");
}

fn replica(hlcs: impl Strategy<Value = u64>) -> impl Strategy<Value = Replica> {
    proptest::collection::btree_map(0u64..600, hlcs, 0..300)
}

proptest! {
    /// Ranges that are found hold every key that differs, and other ranges hold none.
    #[test]
    fn differing_leaves_are_found_whatever_their_cuts(
        ours in replica(1..3u64), theirs in replica(1..3u64), cuts in any::<(u64, u64)>(),
    ) {
        let ours_tiles = tiling(whole(), &leaves(&ours, whole(), cuts.0));
        let theirs_tiles = tiling(whole(), &leaves(&theirs, whole(), cuts.1));
        let found = differing(&ours_tiles, &theirs_tiles);
        for number in 0..600 {
            let token = storage_key(number).token();
            let is_found = found.iter().any(|it| it.first <= token && token <= it.last());
            prop_assert!(is_found || ours.get(&number) == theirs.get(&number), "key {number}");
        }
        prop_assert!(found.windows(2).all(|it| it[0].last() < it[1].first));
        prop_assert!(ours != theirs || found.is_empty());
    }

    /// Both sides end with the newest of each key, and a second exchange moves nothing. A mistaken
    /// name costs another round with another salt.
    #[test]
    fn replicas_agree_afterwards(ours in replica(1..9u64), theirs in replica(1..9u64), salt: u64) {
        let expected = newest(&ours, &theirs);
        let (mut ours, mut theirs) = (ours, theirs);
        exchange(&mut ours, &mut theirs, salt, u64::MAX);
        exchange(&mut ours, &mut theirs, salt ^ 1, u64::MAX);
        prop_assert_eq!(&ours, &expected);
        prop_assert_eq!(&theirs, &expected);
        prop_assert_eq!(exchange(&mut ours, &mut theirs, salt ^ 2, u64::MAX), (0, 0));
    }

    /// So they do when everything is named, at once.
    #[test]
    fn replicas_agree_exactly(ours in replica(1..9u64), theirs in replica(1..9u64), salt: u64) {
        let (our_digests, their_digests) = (digests(&ours, salt).1, digests(&theirs, salt).1);
        let (buckets, records) = name_all(&their_digests).encode();
        let named = Differences::decode(&buckets, &records, Width::Exact).unwrap();
        let moves = decide(&our_digests, &Sketch::new(&[]), &named, Hlc(u64::MAX));
        let newer = |a: &Replica, b: &Replica| {
            a.iter().filter(|(key, hlc)| b.get(key).is_none_or(|it| it < hlc)).count()
        };
        prop_assert_eq!((moves.push.len(), moves.fetch.len()), (newer(&ours, &theirs), newer(&theirs, &ours)));
    }

    /// What is younger than the cutoff stays where it is.
    #[test]
    fn young_records_do_not_move(ours in replica(1..9u64), theirs in replica(1..9u64), salt: u64) {
        let before = (ours.clone(), theirs.clone());
        let (mut ours, mut theirs) = (ours, theirs);
        for round in 0..2 {
            exchange(&mut ours, &mut theirs, salt ^ round, 4);
        }
        prop_assert_eq!(exchange(&mut ours, &mut theirs, salt ^ 2, 4), (0, 0));
        for key in 0..600 {
            let (our, their) = (before.0.get(&key).copied(), before.1.get(&key).copied());
            let (our, their) = (our.unwrap_or(0), their.unwrap_or(0));
            let moved = if our.max(their) <= 4 { our.max(their) } else { 0 };
            prop_assert_eq!(ours.get(&key).copied().unwrap_or(0), our.max(moved), "key {}", key);
            prop_assert_eq!(theirs.get(&key).copied().unwrap_or(0), their.max(moved), "key {}", key);
        }
    }

    /// Nothing that is sent is taken for what it is not, and nothing panics.
    #[test]
    fn any_bytes_are_taken_or_refused(a in proptest::collection::vec(any::<u8>(), 0..600), b in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Some(tiles) = decode_tiling(whole(), &a) {
            prop_assert_eq!(encode_tiling(&tiles), a.clone());
        }
        let (_, ours) = digests(&(0..50).map(|it| (it, it)).collect(), 1);
        if let Some(sketch) = Sketch::decode(&a) {
            compare(&sketch, &ours, b.len() % 2 == 0);
        }
        if let Some(differences) = Differences::decode(&b, &a, if b.len() % 3 == 0 { Width::Short } else { Width::Exact }) {
            decide(&ours, &Sketch::new(&ours), &differences, Hlc(20));
        }
    }
}
