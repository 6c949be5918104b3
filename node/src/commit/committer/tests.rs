use std::collections::BTreeMap;
use std::sync::mpsc;

use bytes::Bytes;
use model::{Hlc, Key, NodeId, OperationId, RequestId, Version};
use proptest::prelude::*;

use super::*;
use crate::commit::{HintClass, KeptHints, dirty_marks, hints_for};
use crate::replica::decode_stored;
use crate::storage::RangeRequest;
use crate::storage::memory::{Access, Fault, MemoryStorage};

mod hints;

const TARGET: NodeId = NodeId(77);

fn key(name: &str) -> StorageKey {
    key_in(KeyspaceId(1), name)
}

fn key_in(keyspace: KeyspaceId, name: &str) -> StorageKey {
    let key = Key::new(name.as_bytes().to_vec());
    StorageKey::encode(keyspace, key.token(), &key)
}

/// "12a" is the version with the clock 12 s and the request a.
fn version(text: &str) -> Version {
    let (seconds, request) = text.split_at(text.len() - 1);
    let hlc = Hlc::from_ms(seconds.parse::<u64>().unwrap() * 1_000);
    Version { hlc, request: RequestId(u64::from(request.as_bytes()[0])) }
}

fn put(name: &str, at: &str) -> CommitItem<usize> {
    put_value(name, at, at)
}

fn put_value(name: &str, at: &str, value: &str) -> CommitItem<usize> {
    mutation(&key(name), version(at), value)
}

fn mutation(key: &StorageKey, version: Version, value: &str) -> CommitItem<usize> {
    let record = Record::encode(key, version, 0, Some(value.as_bytes()));
    let (key, operation) = (key.clone(), OperationId(5));
    CommitItem::Mutation {
        destination: 0,
        operation,
        slot: 9,
        key,
        record,
        origin: Origin::Fresh,
        want_newest: true,
    }
}

fn hint(name: &str, at: &str, replaces: Option<&str>) -> CommitItem<usize> {
    hint_of(HintClass::Ordinary, name, at, replaces)
}

fn hint_of(class: HintClass, name: &str, at: &str, replaces: Option<&str>) -> CommitItem<usize> {
    let key = key(name);
    let record = Record::encode(&key, version(at), 0, Some(&[b'v'; 100]));
    let replaces = replaces.map(version);
    let (operation, target) = (OperationId(5), TARGET);
    CommitItem::Hint { destination: 0, operation, slot: 9, target, key, record, class, replaces }
}

fn drop_hint(name: &str, at: &str) -> CommitItem<usize> {
    CommitItem::DropHint { target: TARGET, key: key(name), version: version(at) }
}

struct Replica {
    storage: MemoryStorage,
    committer: Committer<MemoryStorage>,
}

impl Replica {
    fn new() -> Self {
        Self::open(MemoryStorage::new())
    }

    fn open(storage: MemoryStorage) -> Self {
        // Four hints of this file fit, and two of ANY.
        let settings = CommitSettings {
            hint_bytes_per_target_max: 920,
            any_hint_bytes_max: 460,
            ..CommitSettings::default()
        };
        let committer = Committer::open(Arc::new(storage.clone()), settings).unwrap();
        Self { storage, committer }
    }

    fn restart(&mut self) {
        *self = Self::open(self.storage.clone());
    }

    fn answers(&mut self, items: Vec<CommitItem<usize>>) -> Vec<CommitAnswer> {
        let (mut group, mut answers) = (items, Vec::new());
        let result = self.committer.commit(&mut group, &mut answers);
        let refused = answers.iter().any(|(_, it)| it.is_refused());
        assert!(result.is_ok() || refused || answers.is_empty());
        assert!(group.is_empty());
        answers.into_iter().map(|(_, it)| it).collect()
    }

    /// Commits one group and writes down its answers.
    fn commit(&mut self, items: Vec<CommitItem<usize>>) -> String {
        let answers = self.answers(items);
        let words = answers.iter().map(|it| match it.kind {
            CommitAnswerKind::Mutation(WriteAnswer::Applied) => "applied".to_owned(),
            CommitAnswerKind::Mutation(WriteAnswer::Held) => "held".to_owned(),
            CommitAnswerKind::Mutation(WriteAnswer::Superseded { newest, never }) => {
                assert_eq!(it.newest.as_ref().map(Record::version), Some(newest));
                format!("{}:{}", if never { "never" } else { "superseded" }, seconds(newest.hlc))
            }
            CommitAnswerKind::Mutation(WriteAnswer::Refused(refusal)) => format!("{refusal:?}"),
            kind => format!("{kind:?}"),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        let bytes = self.storage.get(Space::Data, key(name).as_bytes()).unwrap()?;
        Some(decode_stored(&key(name), bytes).unwrap())
    }

    /// Clock and previous clock, in seconds.
    fn clocks(&self, name: &str) -> Option<(u64, u64)> {
        self.stored(name).map(|it| (seconds(it.record.version().hlc), seconds(it.previous)))
    }

    /// What the ledger says of the hints, as readers see it.
    fn kept(&self) -> KeptHints {
        self.committer.hint_totals().of(TARGET)
    }

    fn hints(&self) -> String {
        let page = hints_for(&self.storage, TARGET, None, usize::MAX).unwrap();
        let mut hints: Vec<_> = page
            .hints
            .iter()
            .map(|it| {
                let name = it.key.key().unwrap().partition_key;
                format!("{}{}", String::from_utf8_lossy(&name), seconds(it.record.version().hlc))
            })
            .collect();
        hints.sort();
        format!("{} +{}", hints.join(" "), dirty_marks(&self.storage, TARGET).unwrap().len())
    }
}

impl CommitAnswer {
    fn is_refused(&self) -> bool {
        matches!(
            self.kind,
            CommitAnswerKind::Mutation(WriteAnswer::Refused(_)) | CommitAnswerKind::HintRefused(_)
        )
    }
}

fn seconds(hlc: Hlc) -> u64 {
    hlc.ms() / 1_000
}

fn fault_at(access: fn(Access<'_>) -> bool, fault: Fault) -> crate::storage::memory::FaultPlan {
    Box::new(move |it| access(it).then_some(fault))
}

#[test]
fn mutations_are_judged_against_what_is_stored() {
    let mut replica = Replica::new();
    assert_eq!(replica.commit(vec![put("k", "100a")]), "applied");
    assert_eq!(replica.commit(vec![put("k", "100a")]), "applied", "already here");
    assert_eq!(replica.commit(vec![put("k", "90a")]), "never:100", "nothing was here before");
    assert_eq!(replica.commit(vec![put("k", "200a")]), "applied");
    assert_eq!(replica.clocks("k"), Some((200, 100)));
    assert_eq!(replica.commit(vec![put("k", "150a")]), "never:200");
    assert_eq!(
        replica.commit(vec![put("k", "100a")]),
        "superseded:200",
        "too long ago to remember"
    );
    assert_eq!(replica.commit(vec![put("k", "100b")]), "superseded:200", "an equal clock: CX1");
    assert_eq!(replica.clocks("k"), Some((200, 100)), "nothing of this was written");
    assert_eq!(replica.clocks("l"), None);
}

#[test]
fn races_are_remembered_until_a_restart() {
    let mut replica = Replica::new();
    for at in ["100a", "102a", "104a", "106a"] {
        assert_eq!(replica.commit(vec![put("k", at)]), "applied");
    }
    let judged = |replica: &mut Replica| {
        let mut judge = |it| replica.commit(vec![put("k", it)]);
        [judge("102a"), judge("103a"), judge("104b"), judge("105a"), judge("99a")].join(" ")
    };
    // With `previous` alone, CX2 leaves 102a to 104b undecided.
    assert_eq!(judged(&mut replica), "held never:106 never:106 never:106 never:106");
    replica.restart();
    assert_eq!(
        judged(&mut replica),
        "superseded:106 superseded:106 superseded:106 never:106 superseded:106"
    );
}

#[test]
fn a_group_sees_its_own_writes() {
    let mut replica = Replica::new();
    let group = ["10a", "30a", "20a", "10a", "30a", "40a"].map(|it| put("k", it));
    let mut group = Vec::from(group);
    group.insert(1, put("other", "15a"));
    let expected = "applied applied applied never:30 superseded:30 applied applied";
    assert_eq!(replica.commit(group), expected);
    assert_eq!(
        replica.clocks("k"),
        Some((40, 30)),
        "the one replaced here, not the one stored before"
    );
    assert_eq!(replica.clocks("other"), Some((15, 0)));
    assert_eq!(replica.committer.counters().groups.load(Ordering::Relaxed), 1);
    assert_eq!(replica.committer.counters().group_items_max.load(Ordering::Relaxed), 7);
    assert_eq!(
        replica.commit(vec![put("k", "35a"), put("k", "50a")]),
        "never:40 applied",
        "no leftovers"
    );
}

#[test]
fn one_version_with_two_contents_ends_the_same_everywhere() {
    let contents = ["x", "y"];
    let winners = [[0, 1], [1, 0]].map(|order| {
        let mut replica = Replica::new();
        replica.commit(vec![put("k", "5a")]);
        for it in order {
            assert_eq!(replica.commit(vec![put_value("k", "10a", contents[it])]), "applied");
        }
        assert_eq!(replica.committer.counters().conflicting_records.load(Ordering::Relaxed), 1);
        assert_eq!(replica.clocks("k"), Some((10, 5)), "the testimony stays");
        replica.stored("k").unwrap().record
    });
    assert_eq!(winners[0], winners[1]);
}

#[test]
fn answers_name_their_items() {
    let mut replica = Replica::new();
    replica.commit(vec![put_value("k", "20a", "newest")]);
    let answers = replica.answers(vec![put("k", "10a"), hint("k", "11a", None)]);
    for (answer, at) in answers.iter().zip(["10a", "11a"]) {
        assert_eq!((answer.operation, answer.slot), (OperationId(5), 9));
        assert_eq!(answer.version, version(at));
    }
    assert_eq!(answers[0].newest.as_ref().unwrap().value(), "newest");
}

#[test]
fn a_damaged_record_is_refused_and_left_alone() {
    let mut replica = Replica::new();
    replica.commit(vec![put("bad", "10a"), put("good", "10a")]);
    for bit in [0, 300, 8 * 33 + 8 * 10] {
        replica.storage.flip_bit(Space::Data, key("bad").as_bytes(), bit);
        let before = replica.storage.get(Space::Data, key("bad").as_bytes());
        let items = vec![put("bad", "20a"), put("good", "20a"), put("bad", "20a")];
        assert_eq!(replica.commit(items), "Corrupt applied Corrupt", "bit {bit}");
        assert_eq!(replica.storage.get(Space::Data, key("bad").as_bytes()), before);
        replica.storage.flip_bit(Space::Data, key("bad").as_bytes(), bit);
    }
    assert_eq!(replica.committer.counters().corrupt.load(Ordering::Relaxed), 6);

    let unreadable =
        fault_at(|it| it == Access::Get(Space::Data, key("bad").as_bytes()), Fault::Corrupt);
    replica.storage.set_faults(Some(unreadable));
    assert_eq!(replica.commit(vec![put("bad", "20a"), put("good", "30a")]), "Corrupt applied");
    replica.storage.set_faults(None);
    assert_eq!(replica.commit(vec![put("bad", "20a")]), "applied");
}

#[test]
fn system_changes_are_reported_once_durable() {
    let mut replica = Replica::new();
    let (sender, receiver) = mpsc::channel();
    let set = |replica: &mut Replica, value: Option<&'static str>| {
        let (sender, storage) = (sender.clone(), replica.storage.clone());
        let done: SystemDone = Box::new(move |result| {
            let found = storage.get(Space::System, b"ceiling").unwrap();
            sender.send((result.is_ok(), storage.unsynced(), found)).unwrap();
        });
        let item =
            CommitItem::System { key: "ceiling".into(), value: value.map(Bytes::from), done };
        assert_eq!(
            replica.commit(vec![item, put("k", "10a")]),
            if value == Some("4") { "Failed" } else { "applied" }
        );
        receiver.try_recv().unwrap()
    };
    assert_eq!(set(&mut replica, Some("3")), (true, 0, Some("3".into())));
    assert_eq!(set(&mut replica, None), (true, 0, None));
    replica.storage.set_faults(Some(fault_at(|it| it == Access::Sync, Fault::Error)));
    assert_eq!(set(&mut replica, Some("4")), (false, 1, None));
}

#[test]
fn after_a_failed_sync_nothing_is_accepted() {
    let mut replica = Replica::new();
    replica.commit(vec![put("k", "10a")]);
    replica.storage.set_faults(Some(fault_at(|it| it == Access::Sync, Fault::Error)));
    let items = vec![put("k", "20a"), put("k", "5a"), hint("k", "20a", None), put("l", "1a")];
    assert_eq!(replica.commit(items), "Failed Failed HintRefused(Failed) Failed");
    replica.storage.set_faults(None);
    assert_eq!(replica.commit(vec![put("k", "10a")]), "Failed", "not even what it holds");
    assert_eq!(replica.commit(vec![]), "");
    assert_eq!(replica.clocks("k"), Some((10, 0)), "readers see what is durable");
    assert_eq!(replica.committer.counters().groups_failed.load(Ordering::Relaxed), 3);

    replica.storage.power_loss(|unsynced| unsynced);
    replica.restart();
    assert_eq!(replica.clocks("k"), Some((20, 10)), "it was unknown, and may have happened");
    assert_eq!(replica.commit(vec![put("k", "30a")]), "applied");
}

#[test]
fn a_full_disk_refuses_and_recovers() {
    let mut replica = Replica::new();
    replica.commit(vec![put("k", "10a"), hint("h", "10a", None)]);
    assert_eq!(replica.commit(vec![put("k", "12a")]), "applied");
    let kept = replica.kept();
    replica.storage.set_bytes_max(Some(0));
    let items =
        vec![put("k", "14a"), put("k", "16a"), hint("i", "20a", None), hint("j", "20a", None)];
    assert_eq!(
        replica.commit(items),
        "DiskFull DiskFull HintRefused(DiskFull) HintRefused(DiskFull)"
    );
    assert_eq!(replica.commit(vec![put("k", "12a")]), "applied", "what is here needs no room");
    assert_eq!((replica.clocks("k"), replica.hints().as_str()), (Some((12, 10)), "h10 +0"));
    replica.storage.set_bytes_max(None);

    // Nothing in memory testifies for the group that was refused.
    assert_eq!(replica.kept(), kept);
    assert_eq!(replica.commit(vec![put("k", "18a")]), "applied", "alone: there may be little room");
    assert_eq!(replica.hints().as_str(), "h10 +0");
    let owed = |it: &Replica| it.committer.counters().marks_owed.load(Ordering::Relaxed);
    assert_eq!(owed(&replica), 2);
    replica.storage.set_bytes_max(Some(0));
    assert_eq!(replica.commit(vec![CommitItem::MarkOwed]), "");
    replica.storage.set_bytes_max(None);
    assert_eq!(owed(&replica), 2, "still");
    assert_eq!(replica.commit(vec![CommitItem::MarkOwed]), "");
    assert_eq!(owed(&replica), 0);
    // Two parts of the ring are marked dirty instead of the hints.
    assert_eq!(replica.hints().as_str(), "h10 +2");
    let kept = KeptHints { dirty_marks: 2, ..kept };
    assert_eq!(replica.kept(), kept);
    assert_eq!(replica.clocks("k"), Some((18, 12)));
    assert_eq!(replica.commit(vec![put("k", "14a")]), "never:18");
    assert_eq!(replica.commit(vec![put("k", "12a")]), "held");
    assert_eq!(replica.committer.counters().groups_full.load(Ordering::Relaxed), 2);
    replica.restart();
    assert_eq!(replica.kept(), kept);
}

#[test]
fn a_dropped_keyspace_is_gone_and_no_other() {
    let mut replica = Replica::new();
    let keyspaces = [1, 2, 3, u32::MAX].map(KeyspaceId);
    let items = keyspaces.map(|it| mutation(&key_in(it, "k"), version("10a"), "v"));
    replica.commit(items.into());
    let mut group: Vec<_> =
        [2, u32::MAX].map(|it| CommitItem::DropKeyspace { keyspace: KeyspaceId(it) }).into();
    group.insert(0, mutation(&key_in(KeyspaceId(1), "k"), version("20a"), "v"));
    group.push(mutation(&key_in(KeyspaceId(1), "k"), version("15a"), "v"));
    assert_eq!(replica.commit(group), "applied never:20");
    let rows = replica.storage.range(&RangeRequest::prefix(Space::Data, "")).unwrap().rows;
    let left: Vec<_> = rows.iter().map(|(key, _)| key[3]).collect();
    assert_eq!(left, [1, 3]);
}

#[derive(Clone, Debug)]
enum Step {
    Group(Vec<(u8, u64, u64)>),
    Restart,
    PowerLoss,
    FullDisk,
    FailedSync { survives: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let write = (0u8..3, 1u64..30, 0u64..2);
    let group = proptest::collection::vec(write, 0..6);
    let step = prop_oneof![
        12 => group.prop_map(Step::Group),
        1 => Just(Step::Restart),
        1 => Just(Step::PowerLoss),
        1 => Just(Step::FullDisk),
        1 => any::<bool>().prop_map(|survives| Step::FailedSync { survives }),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Every version that was ever the newest of a key, in order: what the replica may only testify to.
type Histories = BTreeMap<u8, Vec<Version>>;

fn run_group(replica: &mut Replica, histories: &mut Histories, writes: &[(u8, u64, u64)]) {
    let named = |name: u8| key(&name.to_string());
    let stamp = |(_, clock, request): (u8, u64, u64)| {
        // Steps of three seconds: some neighbours are contended, some are not.
        Version { hlc: Hlc::from_ms(clock * 3_000), request: RequestId(request) }
    };
    let items = writes.iter().map(|it| mutation(&named(it.0), stamp(*it), "v")).collect();
    let answers = replica.answers(items);
    assert_eq!(answers.len(), writes.len());
    for (write, answer) in writes.iter().zip(answers) {
        let (history, incoming) = (histories.entry(write.0).or_default(), stamp(*write));
        let current = history.last().copied();
        match answer.kind {
            CommitAnswerKind::Mutation(WriteAnswer::Applied) => {
                assert!(current.is_none_or(|it| it <= incoming));
                if current != Some(incoming) {
                    history.push(incoming);
                }
            }
            CommitAnswerKind::Mutation(WriteAnswer::Held) => assert!(history.contains(&incoming)),
            CommitAnswerKind::Mutation(WriteAnswer::Superseded { newest, never }) => {
                assert_eq!(Some(newest), current);
                assert!(incoming < newest);
                assert!(!never || !history.contains(&incoming), "{incoming} was here: {history:?}");
                let before = history.iter().rev().nth(1).map_or(Hlc::ZERO, |it| it.hlc);
                assert!(never || incoming.hlc <= before, "{incoming} is provable: {history:?}");
            }
            kind => panic!("{kind:?}"),
        }
    }
    for (name, history) in histories {
        let stored = replica.stored(&name.to_string()).map(|it| (it.record.version(), it.previous));
        let before = history.iter().rev().nth(1).map_or(Hlc::ZERO, |it| it.hlc);
        assert_eq!(
            stored,
            history.last().map(|it| (*it, before)),
            "all that was acknowledged, no more"
        );
    }
}

proptest! {
    /// Against full histories, over crashes, power cuts, a full disk and a failed sync.
    #[test]
    fn agrees_with_full_histories(steps in steps()) {
        let mut replica = Replica::new();
        let mut histories = Histories::new();
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Group(writes) => run_group(&mut replica, &mut histories, &writes),
                Step::Restart => replica.restart(),
                Step::PowerLoss => {
                    replica.storage.power_loss(|_| 0);
                    replica.restart();
                }
                Step::FullDisk => {
                    replica.storage.set_bytes_max(Some(0));
                    prop_assert_eq!(replica.commit(vec![put("0", "500a")]), "DiskFull");
                    replica.storage.set_bytes_max(None);
                }
                Step::FailedSync { survives } => {
                    replica.storage.set_faults(Some(fault_at(|it| it == Access::Sync, Fault::Error)));
                    let fresh = put("new", &format!("{}a", 500 + number));
                    prop_assert_eq!(replica.commit(vec![fresh, put("0", "0a")]), "Failed Failed");
                    replica.storage.set_faults(None);
                    replica.storage.power_loss(|unsynced| if survives { unsynced } else { 0 });
                    replica.restart();
                    // "0" may now have a first version that no answer has told of.
                    if survives && histories.get(&0).is_none_or(Vec::is_empty) {
                        histories.insert(0, vec![version("0a")]);
                    }
                }
            }
        }
    }
}
