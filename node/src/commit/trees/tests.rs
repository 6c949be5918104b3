use std::sync::Arc;

use model::{Hlc, Key, OperationId, Record, RequestId, Version, WriteAnswer};
use proptest::prelude::*;

use bytes::Bytes;

use super::*;
use crate::commit::{
    CommitAnswer, CommitAnswerKind, CommitItem, CommitSettings, Committer, Origin,
};
use crate::storage::Durability;
use crate::storage::memory::{Access, Fault, MemoryStorage};

const KEYSPACE: KeyspaceId = KeyspaceId(1);
const SETTINGS: TreeSettings = TreeSettings { cluster_key: [7; 16], partitions: 4 };

struct Replica {
    storage: MemoryStorage,
    trees: Arc<Trees>,
    committer: Committer<MemoryStorage>,
}

impl Replica {
    fn new() -> Self {
        Self::open(MemoryStorage::new())
    }

    fn open(storage: MemoryStorage) -> Self {
        Self::open_with(storage, Durability::Synced)
    }

    fn open_with(storage: MemoryStorage, durability: Durability) -> Self {
        let trees = Arc::new(Trees::default());
        trees.configure(SETTINGS);
        let trees_of = Some(Arc::clone(&trees));
        let settings = CommitSettings { trees: trees_of, durability, ..CommitSettings::default() };
        let committer = Committer::open(Arc::new(storage.clone()), settings).unwrap();
        Self { storage, trees, committer }
    }

    fn restart(&mut self) {
        *self = Self::open(self.storage.clone());
    }

    fn commit(&mut self, mut items: Vec<CommitItem<usize>>) -> Vec<CommitAnswer> {
        let (mut answers, count) = (Vec::new(), items.len());
        // Refusals are in the answers.
        let _ = self.committer.commit(&mut items, &mut answers);
        let _ = self.committer.tend(count);
        answers.into_iter().map(|it| it.1).collect()
    }

    fn wrong(&self) -> Vec<WrongTree> {
        self.trees.verify(&self.storage, KEYSPACE).unwrap()
    }

    fn counted(&self, name: &str) -> u64 {
        let values = self.committer.counters().values();
        values.into_iter().find(|it| it.0 == name).expect("a counter").1
    }
}

fn is_refused(answer: &CommitAnswer) -> bool {
    matches!(answer.kind, CommitAnswerKind::Mutation(WriteAnswer::Refused(_)))
}

fn key_in(keyspace: KeyspaceId, number: u64) -> StorageKey {
    let key = Key::new(number.to_string());
    StorageKey::encode(keyspace, key.token(), &key)
}

fn put(number: u64, at: u64, value: Option<&[u8]>) -> CommitItem<usize> {
    put_in(KEYSPACE, number, at, value)
}

fn put_in(keyspace: KeyspaceId, number: u64, at: u64, value: Option<&[u8]>) -> CommitItem<usize> {
    let key = key_in(keyspace, number);
    let version = Version { hlc: Hlc(at), request: RequestId(1) };
    let record = Record::encode(&key, version, 0, value);
    let operation = OperationId(1);
    CommitItem::Mutation {
        destination: 0,
        operation,
        slot: 0,
        key,
        record,
        origin: Origin::Fresh,
        want_newest: false,
    }
}

#[test]
fn leaves_are_cut_as_they_grow_and_small_again_after_a_restart() {
    let mut replica = Replica::new();
    for group in 0..100 {
        replica.commit((0..30).map(|it| put(group * 30 + it, 1, Some(b"v"))).collect());
    }
    let statistics = replica.trees.statistics();
    assert_eq!(statistics.records, 3_000);
    assert!((24..=80).contains(&statistics.leaves), "{statistics:?}");
    assert!(statistics.memory_bytes < 3_000, "less than a byte a record: {statistics:?}");
    assert_eq!((replica.counted("leaves_mended"), replica.wrong()), (0, vec![]));
    replica.restart();
    assert_eq!((replica.trees.statistics(), replica.wrong()), (statistics, vec![]));
    assert_ne!(replica.trees.partition(KEYSPACE, PartitionIndex(0)), Some((TreeHash::ZERO, 0)));
}

#[test]
fn equal_data_have_equal_trees_however_they_came() {
    let (mut one, mut other) = (Replica::new(), Replica::new());
    let (old, new) = (Some(&b"old"[..]), Some(&b"new"[..]));
    for number in 0..1_000 {
        one.commit(vec![put(number, 1, old), put(number, 2, new), put(number, 1, old)]);
    }
    for number in (0..1_000).rev() {
        other.commit(vec![put(number, 2, new)]);
    }
    for partition in partitions(SETTINGS) {
        let of = |it: &Replica| it.trees.partition(KEYSPACE, partition);
        assert_eq!(of(&one), of(&other), "{partition:?}");
    }
    other.commit(vec![put(500, 3, None)]);
    let differs = |it: &PartitionIndex| {
        one.trees.partition(KEYSPACE, *it) != other.trees.partition(KEYSPACE, *it)
    };
    let token = key_in(KEYSPACE, 500).token();
    let expected = [token.partition(SETTINGS.partitions)];
    assert_eq!(partitions(SETTINGS).filter(differs).collect::<Vec<_>>(), expected);
}

#[test]
fn a_group_that_is_not_written_changes_no_tree() {
    let mut replica = Replica::new();
    replica.commit(vec![put(1, 1, Some(b"v"))]);
    let before = replica.trees.partition(KEYSPACE, key_in(KEYSPACE, 1).token().partition(4));
    let is_append = |access: Access<'_>| matches!(access, Access::Append(_));
    replica.storage.set_faults(Some(Box::new(move |it| is_append(it).then_some(Fault::Full))));
    let answers = replica.commit(vec![put(1, 2, Some(b"w")), put(2, 2, Some(b"w"))]);
    assert!(answers.iter().all(is_refused));
    let after = replica.trees.partition(KEYSPACE, key_in(KEYSPACE, 1).token().partition(4));
    assert_eq!((before, replica.wrong()), (after, vec![]));
    replica.storage.set_faults(None);
    replica.commit(vec![put(1, 2, Some(b"w")), put(2, 2, Some(b"w"))]);
    assert_eq!(replica.wrong(), []);
}

#[test]
fn a_dropped_keyspace_leaves_no_tree() {
    let mut replica = Replica::new();
    let other = KeyspaceId(2);
    let items = (0..200).flat_map(|it| [put(it, 1, None), put_in(other, it, 1, None)]).collect();
    replica.commit(items);
    replica.commit(vec![
        put_in(other, 1, 9, None),
        CommitItem::DropKeyspace { keyspace: other },
        put(1, 9, None),
    ]);
    for _ in 0..2 {
        assert_eq!(replica.trees.statistics().records, 200);
        assert_eq!(replica.wrong(), []);
        replica.restart();
    }
}

#[test]
fn a_damaged_tree_is_made_again() {
    let mut replica = Replica::new();
    replica.commit((0..600).map(|it| put(it, 1, Some(b"v"))).collect());
    let before = replica.trees.statistics().records;
    // All leaves are under their own keys then.
    replica.restart();
    assert_eq!(journal(&replica.storage), []);
    let leaves = replica.storage.range(&RangeRequest::prefix(Space::Trees, "")).unwrap().rows;
    for (at, (key, value)) in leaves.iter().enumerate() {
        match at % 3 {
            0 => assert!(replica.storage.flip_bit(Space::Trees, key, at % (value.len() * 8))),
            1 => assert!(replica.storage.lose_row(Space::Trees, key)),
            _ => {}
        }
    }
    replica.restart();
    assert_eq!((replica.trees.statistics().records, replica.wrong()), (before, vec![]));
    replica.commit((0..600).map(|it| put(it, 2, Some(b"w"))).collect());
    replica.restart();
    assert_eq!((replica.trees.statistics().records, replica.wrong()), (before, vec![]));
}

#[test]
fn nothing_is_written_before_the_cluster_is_known() {
    let storage = MemoryStorage::new();
    let settings = CommitSettings { trees: Some(Arc::default()), ..CommitSettings::default() };
    let mut committer = Committer::open(Arc::new(storage.clone()), settings).unwrap();
    let (mut items, mut answers) = (vec![put(1, 1, None)], Vec::new());
    committer.commit(&mut items, &mut answers).unwrap();
    assert!(is_refused(&answers[0].1));
    assert_eq!(storage.range(&RangeRequest::prefix(Space::Data, "")).unwrap().rows, []);
}

/// All rows of trees, as they lie on disk.
fn rows(storage: &MemoryStorage) -> Vec<(Bytes, Bytes)> {
    storage.range(&RangeRequest::prefix(Space::Trees, "")).unwrap().rows
}

/// The journal's rows, as they lie on disk.
fn journal(storage: &MemoryStorage) -> Vec<(Bytes, rows::JournalRow)> {
    let journal =
        rows(storage).into_iter().filter_map(|(key, value)| match rows::parse(&key, &value) {
            Some(rows::Row::Journal(_, row)) => Some((key, row.expect("not damaged"))),
            _ => None,
        });
    journal.collect()
}

#[test]
fn the_journal_is_bounded_and_empty_after_a_start() {
    let mut replica = Replica::new();
    let mut longest = 0;
    for group in 0..400_u64 {
        replica.commit((0..50).map(|it| put(group * 7 + it * 31, group, Some(b"v"))).collect());
        let journal = journal(&replica.storage);
        longest = longest.max(journal.iter().map(|it| it.1.changes.len()).sum());
    }
    let leaves = usize::try_from(replica.trees.statistics().leaves).unwrap();
    assert!((32..=2 * 8 * leaves + 4 * 50).contains(&longest), "{longest} of {leaves} leaves");
    assert!(journal(&replica.storage).len() > 4);
    for _ in 0..2 {
        replica.restart();
        assert_eq!((journal(&replica.storage), replica.wrong()), (vec![], vec![]));
    }
}

#[test]
fn what_goes_from_the_journal_is_in_the_leaves() {
    let mut replica = Replica::new();
    replica.commit((0..4_000).map(|it| put(it, 1, Some(b"v"))).collect());
    let mut number = 0;
    for round in 0..5 {
        let mut rows = 0;
        for group in 0.. {
            assert!(group < 1_000, "no round ends");
            // Scattered, so that most leaves are changed long before a round ends and not again.
            let mut next = || (number += 2_654_435_761_u64, number >> 7 & 0xfff).1;
            replica.commit((0..4).map(|it| put(next(), 2 + round * 4 + it, Some(b"w"))).collect());
            let before = std::mem::replace(&mut rows, journal(&replica.storage).len());
            if rows < before {
                break;
            }
        }
        replica.restart();
        assert_eq!(replica.wrong(), vec![], "after round {round}");
    }
}

#[test]
fn all_trees_are_made_again_when_the_journal_is_damaged() {
    let other = KeyspaceId(2);
    for at in [0, 3, 7] {
        for is_lost in [true, false] {
            let mut replica = Replica::new();
            for group in 0..9 {
                replica.commit((0..20).map(|it| put(group * 20 + it, 1, Some(b"v"))).collect());
                // Known from this row alone.
                replica
                    .commit((group == at).then(|| put_in(other, 1, 1, None)).into_iter().collect());
            }
            let before = replica.trees.statistics().records;
            let journal = journal(&replica.storage);
            let (row, _) =
                journal.iter().rfind(|it| it.1.changes.len() == 1).expect("of the other");
            assert!(match is_lost {
                true => replica.storage.lose_row(Space::Trees, row),
                false => replica.storage.flip_bit(Space::Trees, row, 99),
            });
            replica.restart();
            assert_eq!((replica.trees.statistics().records, replica.wrong()), (before, vec![]));
            assert_eq!(replica.trees.verify(&replica.storage, other), Ok(vec![]));
        }
    }
}

#[test]
fn a_lost_row_is_missed_until_all_trees_are_on_disk() {
    let (mut replica, other) = (Replica::new(), KeyspaceId(2));
    // The journal's first row alone says anything of this one.
    replica.commit(vec![put_in(other, 1, 1, None)]);
    for group in 0..5 {
        replica.commit((0..5).map(|it| put(group * 20 + it, 1, Some(b"v"))).collect());
    }
    let (first, _) = &journal(&replica.storage)[0];
    assert!(replica.storage.lose_row(Space::Trees, first));
    for _ in 0..2 {
        let is_append = |access: Access<'_>| matches!(access, Access::Append(_));
        replica.storage.set_faults(Some(Box::new(move |it| is_append(it).then_some(Fault::Full))));
        replica.restart();
        assert_eq!(replica.trees.verify(&replica.storage, other), Ok(vec![]));
        replica.storage.set_faults(None);
        replica.commit(vec![put(1, 2, Some(b"w"))]);
    }
    replica.restart();
    assert_eq!((journal(&replica.storage), replica.wrong()), (vec![], vec![]));
    assert_eq!(replica.trees.verify(&replica.storage, other), Ok(vec![]));
}

#[test]
fn trees_that_are_missing_altogether_are_made_again_even_bit_by_bit() {
    let mut replica = Replica::new();
    replica.commit((0..2_000).map(|it| put(it, 1, Some(b"v"))).collect());
    let before = replica.trees.statistics().records;
    for (key, _) in rows(&replica.storage) {
        assert!(replica.storage.lose_row(Space::Trees, &key));
    }
    for room in 0..4 {
        let mut left = room;
        let is_append = |access: Access<'_>| matches!(access, Access::Append(_));
        let plan = move |access: Access<'_>| {
            let is_full = is_append(access) && left == 0;
            left -= usize::from(is_append(access) && left > 0);
            is_full.then_some(Fault::Full)
        };
        replica.storage.set_faults(Some(Box::new(plan)));
        replica.restart();
        assert_eq!((replica.trees.statistics().records, replica.wrong()), (before, vec![]));
        replica.storage.set_faults(None);
        if room == 3 {
            replica.commit(vec![put(1, 2, Some(b"w"))]);
        }
    }
    replica.restart();
    assert_eq!((journal(&replica.storage), replica.wrong()), (vec![], vec![]));
    replica.restart();
    assert_eq!((replica.trees.statistics().records, replica.wrong()), (before, vec![]));
}

#[test]
fn a_full_disk_at_a_start_leaves_the_journal() {
    let mut replica = Replica::new();
    for group in 0..9 {
        replica.commit((0..20).map(|it| put(group * 20 + it, 1, Some(b"v"))).collect());
    }
    let before = journal(&replica.storage).len();
    let is_append = |access: Access<'_>| matches!(access, Access::Append(_));
    replica.storage.set_faults(Some(Box::new(move |it| is_append(it).then_some(Fault::Full))));
    replica.restart();
    assert_eq!((journal(&replica.storage).len(), replica.wrong()), (before, vec![]));
    replica.storage.set_faults(None);
    replica.commit((0..20).map(|it| put(it, 2, Some(b"w"))).collect());
    assert_eq!(journal(&replica.storage).len(), before + 1);
    replica.restart();
    assert_eq!((journal(&replica.storage).len(), replica.wrong()), (0, vec![]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Any groups, with restarts, full disks and the power lost in between: the trees on disk are those of
    /// the data on disk.
    #[test]
    fn trees_are_exact_after_a_power_loss(
        groups in prop::collection::vec(
            (prop::collection::vec((0..4_000u64, 1..9u64, any::<bool>()), 1..120), 0..12_u8), 1..24),
        filled in 0..1_500u64,
        keep in 0..6usize,
        synced in any::<bool>(),
    ) {
        let durability = if synced { Durability::Synced } else { Durability::Buffered };
        let mut replica = Replica::open_with(MemoryStorage::new(), durability);
        for first in (0..filled).step_by(100) {
            replica.commit((first..first + 100).map(|it| put(it, 1, Some(b"v"))).collect());
        }
        for (group, then) in groups {
            let item = |(number, at, gone): (u64, u64, bool)| {
                put(number, at * 2 + u64::from(gone), (!gone).then_some(&b"v"[..]))
            };
            let mut items: Vec<_> = group.into_iter().map(item).collect();
            match then {
                0 => items.push(CommitItem::DropKeyspace { keyspace: KEYSPACE }),
                1 => replica.storage.power_loss(|unsynced| keep.min(unsynced)),
                2 => {
                    let mut left = keep;
                    let plan = move |access: Access<'_>| {
                        let is_append = matches!(access, Access::Append(_));
                        let is_full = is_append && left == 0;
                        left = left.saturating_sub(usize::from(is_append));
                        is_full.then_some(Fault::Full)
                    };
                    replica.storage.set_faults(Some(Box::new(plan)));
                }
                _ => {}
            }
            if then <= 3 {
                replica = Replica::open_with(replica.storage.clone(), durability);
                prop_assert_eq!(replica.wrong(), vec![]);
                replica.storage.set_faults(None);
            }
            replica.commit(items);
            prop_assert_eq!(replica.wrong(), vec![]);
        }
        replica.storage.power_loss(|unsynced| keep.min(unsynced));
        replica.restart();
        prop_assert_eq!(replica.wrong(), vec![]);
        prop_assert_eq!(replica.counted("leaves_mended"), 0);
    }
}
