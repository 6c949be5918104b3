use std::sync::{Arc, Mutex};

use antientropy::heal::Heir;
use model::{Hlc, Key, OperationId, RequestId, Version, WriteAnswer};
use proptest::prelude::*;

use super::*;
use crate::commit::{
    CommitAnswer, CommitAnswerKind, CommitItem, CommitSettings, PartitionFloor, TreeSettings,
    Trees, due_keys,
};
use crate::storage::cached::CachedStorage;
use crate::storage::memory::MemoryStorage;

const KEYSPACE: KeyspaceId = KeyspaceId(1);
const PARTITION: PartitionIndex = PartitionIndex(0);

struct Replica {
    disk: MemoryStorage,
    trees: Arc<Trees>,
    committer: Committer<CachedStorage<MemoryStorage>>,
}

fn key(number: u64) -> StorageKey {
    let key = Key::new(number.to_string());
    StorageKey::encode(KEYSPACE, key.token(), &key)
}

fn record(number: u64, at: u64, value: Option<&[u8]>) -> Record {
    Record::encode(&key(number), Version { hlc: Hlc(at), request: RequestId(1) }, 0, value)
}

fn put(number: u64, at: u64) -> CommitItem<usize> {
    mutation(number, record(number, at, Some(&at.to_be_bytes())))
}

fn mutation(number: u64, record: Record) -> CommitItem<usize> {
    CommitItem::Mutation {
        destination: 0,
        operation: OperationId(1),
        slot: 0,
        key: key(number),
        record,
        origin: Origin::Fresh,
        want_newest: false,
    }
}

impl Replica {
    fn new(cache_bytes: usize) -> Self {
        let (disk, trees) = (MemoryStorage::new(), Arc::new(Trees::default()));
        trees.configure(TreeSettings { cluster_key: [7; 16], partitions: 1 });
        let settings =
            CommitSettings { trees: Some(Arc::clone(&trees)), ..CommitSettings::default() };
        let storage = Arc::new(CachedStorage::new(disk.clone(), cache_bytes));
        Self { disk, trees, committer: Committer::open(storage, settings).unwrap() }
    }

    fn commit(&mut self, mut items: Vec<CommitItem<usize>>) -> Vec<CommitAnswer> {
        let (mut answers, count) = (Vec::new(), items.len());
        self.committer.commit(&mut items, &mut answers).unwrap();
        self.committer.tend(count).unwrap();
        answers.into_iter().map(|it| it.1).collect()
    }

    fn mend(&mut self, mend: impl FnOnce(crate::commit::MendDone) -> Mend) -> Mended {
        let heard = Arc::new(Mutex::new(None));
        let done = {
            let heard = Arc::clone(&heard);
            Box::new(move |it: Result<Mended, StorageError>| *heard.lock().unwrap() = Some(it))
        };
        self.commit(vec![CommitItem::Mend(mend(done))]);
        heard.lock().unwrap().take().expect("told").unwrap()
    }

    fn recount(&mut self, number: u64) -> Mended {
        let token = key(number).token();
        self.mend(|done| Mend::Leaf { keyspace: KEYSPACE, token, done })
    }

    fn heal(&mut self, number: u64, by: Option<Box<Healing>>) -> Mended {
        self.mend(|done| Mend::Record { key: key(number), by, done })
    }

    /// What the others hold takes the place of the record as it is damaged now.
    fn heal_by(&mut self, number: u64, record: Option<Record>) -> Mended {
        let Mended::Damaged(damaged) = self.heal(number, None) else { panic!("not damaged") };
        let asked_at = self.floor();
        let heir = Heir { record, floor: Hlc::ZERO };
        self.heal(number, Some(Box::new(Healing { heir, damaged, asked_at })))
    }

    fn floor(&self) -> PartitionFloor {
        self.committer.floors.of(KEYSPACE, PARTITION)
    }

    fn floor_step(&mut self, change: FloorChange) {
        self.commit(vec![CommitItem::Floor { keyspace: KEYSPACE, partition: PARTITION, change }]);
    }

    fn rot(&mut self, number: u64) {
        assert!(self.disk.flip_bit(Space::Data, key(number).as_bytes(), 9));
    }

    fn stored(&self, number: u64) -> Option<Stored> {
        let key = key(number);
        let bytes = self.disk.get(Space::Data, key.as_bytes()).unwrap()?;
        Some(decode_stored(&key, bytes).unwrap())
    }

    fn is_exact(&self) -> bool {
        self.trees.verify(&self.disk, KEYSPACE).unwrap().is_empty()
    }

    fn counted(&self, name: &str) -> u64 {
        let values = self.committer.counters().values();
        values.into_iter().find(|it| it.0 == name).expect("a counter").1
    }
}

#[test]
fn a_lost_write_that_a_cut_finds_is_taken_again() {
    let mut replica = Replica::new(1 << 20);
    replica.commit((0..100).map(|it| put(it, 10)).collect());
    assert!(replica.disk.lose_row(Space::Data, key(1).as_bytes()));
    replica.commit((100..150).map(|it| put(it, 10)).collect());
    assert_eq!((replica.counted("leaves_mended"), replica.is_exact()), (1, true));
    replica.commit(vec![put(1, 10)]);
    assert!(replica.stored(1).is_some(), "it is not in memory alone");
    assert!(replica.is_exact());
}

#[test]
fn a_lost_write_is_found_and_nothing_in_memory_outlives_it() {
    for cache_bytes in [0, 1 << 20] {
        let mut replica = Replica::new(cache_bytes);
        replica.commit(vec![put(1, 10), put(2, 10)]);
        assert_eq!(replica.recount(1), Mended::Nothing);
        assert!(replica.disk.lose_row(Space::Data, key(1).as_bytes()));
        assert_eq!(replica.recount(2), Mended::Done, "its leaf");
        assert!(replica.is_exact());
        // From memory the old row would be taken out of a leaf that does not count it.
        replica.commit(vec![put(1, 20)]);
        assert!(replica.is_exact());
        assert_eq!(replica.counted("leaves_recounted"), 1);
    }
}

#[test]
fn what_others_hold_takes_the_place_of_what_is_damaged() {
    let mut replica = Replica::new(0);
    replica.commit(vec![put(1, 10), put(2, 10), put(3, 10)]);
    assert_eq!(replica.heal(1, None), Mended::Nothing);
    replica.rot(1);
    replica.rot(2);
    let newer = record(1, 30, Some(b"newer"));
    assert_eq!(replica.heal_by(1, Some(newer.clone())), Mended::Done);
    assert_eq!(replica.stored(1), Some(Stored { record: newer, previous: Hlc(30) }));
    assert_eq!(replica.heal_by(2, None), Mended::Done);
    assert_eq!(replica.stored(2), None, "nobody holds it");
    assert!(replica.is_exact());
    assert_eq!(replica.counted("records_healed"), 2);
    replica.commit(vec![put(1, 40), put(2, 40), put(3, 40)]);
    assert!(replica.is_exact());
}

#[test]
fn bytes_that_were_not_asked_for_stay() {
    let mut replica = Replica::new(0);
    replica.commit(vec![put(1, 10)]);
    replica.rot(1);
    let Mended::Damaged(damaged) = replica.heal(1, None) else { panic!("not damaged") };
    // What was asked about is gone, and something newer is damaged since.
    assert!(replica.disk.flip_bit(Space::Data, key(1).as_bytes(), 50));
    let heir = Heir { record: Some(record(1, 5, None)), floor: Hlc::ZERO };
    let by = Box::new(Healing { heir, damaged, asked_at: replica.floor() });
    assert!(matches!(replica.heal(1, Some(by)), Mended::Damaged(it) if it != damaged));
}

#[test]
fn a_sound_copy_in_memory_is_the_record() {
    let mut replica = Replica::new(1 << 20);
    replica.commit(vec![put(1, 10), put(2, 10)]);
    let before = replica.stored(1);
    replica.rot(1);
    assert_eq!(replica.heal(1, None), Mended::Done);
    assert_eq!(replica.stored(1), before);
    assert!(replica.is_exact());
}

#[test]
fn a_round_that_was_open_is_not_signed_and_one_that_was_signed_is_not_undone() {
    let mut replica = Replica::new(0);
    replica.commit(vec![put(1, 10)]);
    replica.floor_step(FloorChange::Fence(Hlc(20)));
    replica.rot(1);
    let Mended::Damaged(damaged) = replica.heal(1, None) else { panic!("not damaged") };
    let (heir, asked_at) = (Heir { record: None, floor: Hlc::ZERO }, replica.floor());
    replica.floor_step(FloorChange::Sign { up_to: Hlc(15), round: 1 });
    let by = Box::new(Healing { heir, damaged, asked_at });
    assert_eq!(replica.heal(1, Some(by)), Mended::Damaged(damaged), "signed since they were asked");
    assert_eq!(replica.heal_by(1, None), Mended::Done);
    replica.floor_step(FloorChange::Sign { up_to: Hlc(20), round: 2 });
    assert_eq!(replica.floor().signed, Hlc(15), "opened before the record was replaced");
    replica.floor_step(FloorChange::Fence(Hlc(30)));
    replica.floor_step(FloorChange::Sign { up_to: Hlc(30), round: 3 });
    assert_eq!(replica.floor().signed, Hlc(30));
}

#[test]
fn what_a_floor_covers_does_not_come_back() {
    let mut replica = Replica::new(0);
    replica.commit(vec![put(1, 10), put(2, 10)]);
    for change in [
        FloorChange::Fence(Hlc(20)),
        FloorChange::Sign { up_to: Hlc(20), round: 1 },
        FloorChange::Adopt { up_to: Hlc(20), round: 1 },
    ] {
        replica.floor_step(change);
    }
    replica.rot(1);
    replica.rot(2);
    assert_eq!(replica.heal_by(1, Some(record(1, 12, None))), Mended::Done);
    assert_eq!(replica.stored(1), None, "a tombstone that is purged");
    let behind = replica.heal_by(2, Some(record(2, 12, Some(b"v"))));
    assert!(matches!(behind, Mended::Damaged(_)), "from a replica with a lower floor");
}

#[test]
fn rows_of_the_index_that_stand_for_nothing_go() {
    let mut replica = Replica::new(0);
    replica.commit(vec![mutation(1, record(1, 10, None)), mutation(2, record(2, 10, None))]);
    assert!(replica.disk.lose_row(Space::Data, key(1).as_bytes()));
    let due = |it: &Replica| due_keys(&it.disk, KEYSPACE, PARTITION, Hlc(99), None, 9).unwrap();
    let page = due(&replica);
    assert_eq!(page.keys.len(), 2);
    let mends = page.rows.into_iter().zip(page.keys);
    let mends = mends.map(|(row, key)| CommitItem::Mend(Mend::Due { row, key }));
    replica.commit(mends.collect());
    assert_eq!(due(&replica).keys, [key(2)]);
}

proptest! {
    /// Whatever is lost, put in a wrong place or damaged: once it is found, trees are those of the data.
    #[test]
    fn trees_are_those_of_the_data_again(
        steps in proptest::collection::vec((0u8..6, 0u64..400, 0u64..400), 1..60),
        cache_bytes in prop_oneof![Just(0usize), Just(64 << 10)],
    ) {
        let mut replica = Replica::new(cache_bytes);
        replica.commit((0..300).map(|it| put(it, 10)).collect());
        for (at, (what, one, other)) in (20..).zip(steps) {
            match what {
                0 | 1 => {
                    for answer in replica.commit(vec![put(one, at), put(other, at)]) {
                        let refused = CommitAnswerKind::Mutation(WriteAnswer::Refused(model::Refusal::Corrupt));
                        prop_assert!(answer.kind == refused || answer.kind == CommitAnswerKind::Mutation(WriteAnswer::Applied));
                    }
                }
                2 => {
                    replica.disk.lose_row(Space::Data, key(one).as_bytes());
                }
                3 => {
                    replica.disk.move_row(Space::Data, key(one).as_bytes(), key(other).as_bytes());
                }
                4 => {
                    replica.disk.flip_bit(Space::Data, key(one).as_bytes(), 40);
                }
                _ => {
                    replica.recount(one);
                    if let Mended::Damaged(_) = replica.heal(one, None) {
                        let record = (other % 2 == 0).then(|| record(one, at, Some(b"healed")));
                        replica.heal_by(one, record);
                    }
                }
            }
        }
        for number in 0..400 {
            if let Mended::Damaged(_) = replica.heal(number, None) {
                replica.heal_by(number, None);
            }
            replica.recount(number);
        }
        prop_assert!(replica.is_exact());
        replica.commit((0..400).map(|it| put(it, 1_000)).collect());
        prop_assert!(replica.is_exact());
    }
}
