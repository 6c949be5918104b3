use std::cell::RefCell;
use std::sync::mpsc;

use model::{Hlc, Key, KeyspaceId, OperationId, Record, RequestId, StorageKey, Version};

use super::*;
use crate::commit::{CommitAnswerKind, CommitSettings, Origin, QueueLimits, SystemDone};
use crate::storage::memory::{Access, Fault, MemoryStorage};
use crate::storage::{Durability, Space, TryGet};

fn key(number: u64) -> StorageKey {
    let key = Key::new(number.to_string().into_bytes());
    StorageKey::encode(KeyspaceId(1), key.token(), &key)
}

fn put(number: u64) -> CommitItem<u64> {
    let version = Version { hlc: Hlc(1), request: RequestId(number) };
    let (key, operation) = (key(number), OperationId(number));
    let record = Record::encode(&key, version, 0, None);
    CommitItem::Mutation {
        destination: number,
        operation,
        slot: 0,
        key,
        record,
        origin: Origin::Fresh,
        want_newest: false,
    }
}

type Setup = (MemoryStorage, Arc<CommitQueue<u64>>, Committer<MemoryStorage>);

fn setup() -> Setup {
    let storage = MemoryStorage::new();
    let committer = Committer::open(Arc::new(storage.clone()), CommitSettings::default()).unwrap();
    (storage, Arc::new(CommitQueue::new(QueueLimits::default())), committer)
}

#[test]
fn the_thread_answers_everything_and_only_what_is_durable() {
    const WRITERS: u64 = 4;
    const FRAMES: u64 = 200;
    let (storage, queue, committer) = setup();
    let counters = committer.counters();
    let (sender, receiver) = mpsc::channel();
    let deliver = move |answers: &mut Vec<(u64, CommitAnswer)>| {
        assert_eq!(storage.unsynced(), 0);
        for (number, answer) in answers.drain(..) {
            assert_eq!(answer.operation, OperationId(number));
            let found = storage.try_get(Space::Data, key(number).as_bytes()).unwrap();
            assert!(matches!(found, TryGet::Hit(_)), "{number} is answered before it is stored");
            sender.send(number).unwrap();
        }
    };
    let failed = |error: &StorageError| panic!("{error}");
    let thread = run_on_thread(Arc::clone(&queue), committer, deliver, failed).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let queue = &queue;
            scope.spawn(move || {
                for frame in 0..FRAMES {
                    let first = (writer * FRAMES + frame) * 2;
                    let pushed = queue.push(|it| it.extend([put(first), put(first + 1)]));
                    assert!(pushed.is_ok());
                }
            });
        }
    });
    queue.close();
    drop(thread.join().unwrap());
    let mut answered: Vec<u64> = receiver.into_iter().collect();
    answered.sort_unstable();
    assert_eq!(answered, Vec::from_iter(0..WRITERS * FRAMES * 2));
    let items = counters.items.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(items, WRITERS * FRAMES * 2);
}

#[test]
fn a_thread_that_panics_closes_its_queue() {
    let (_, queue, committer) = setup();
    let deliver = |_: &mut Vec<(u64, CommitAnswer)>| panic!("told to");
    let thread = run_on_thread(Arc::clone(&queue), committer, deliver, |_| {}).unwrap();
    assert!(queue.push(|it| it.push_back(put(1))).is_ok());
    assert!(thread.join().is_err());
    assert!(queue.push(|it| it.push_back(put(2))).is_err(), "nobody would answer it");
}

#[test]
fn a_failed_disk_is_reported_and_everything_is_refused() {
    let (storage, queue, committer) = setup();
    storage.set_faults(Some(Box::new(|it| (it == Access::Sync).then_some(Fault::Error))));
    let (sender, receiver) = mpsc::channel();
    let failures = sender.clone();
    let deliver = move |answers: &mut Vec<(u64, CommitAnswer)>| {
        for (number, answer) in answers.drain(..) {
            sender.send(format!("{number} {:?}", answer.kind)).unwrap();
        }
    };
    let failed = move |error: &StorageError| {
        assert!(matches!(error, StorageError::Failed { .. }));
        failures.send("failed".to_owned()).unwrap();
    };
    let thread = run_on_thread(Arc::clone(&queue), committer, deliver, failed).unwrap();
    for number in [1, 2] {
        assert!(queue.push(|it| it.push_back(put(number))).is_ok());
        let refused = format!("{number} Mutation(Refused(Failed))");
        assert_eq!(
            [receiver.recv().unwrap(), receiver.recv().unwrap()],
            ["failed".to_owned(), refused]
        );
    }
    queue.close();
    drop(thread.join().unwrap());
}

#[test]
fn the_task_gives_others_their_turn_after_each_group() {
    let (storage, queue, committer) = setup();
    let log = RefCell::new(Vec::new());
    let deliver = |answers: &mut Vec<(u64, CommitAnswer)>| {
        let next = answers.iter().map(|it| it.0).max().unwrap() + 1;
        let numbers = answers.drain(..).map(|(number, answer)| {
            assert!(matches!(answer.kind, CommitAnswerKind::Mutation(_)));
            number.to_string()
        });
        log.borrow_mut().push(numbers.collect::<Vec<_>>().join("+"));
        if next < 6 {
            // There is always more to do, and still the others run.
            assert!(queue.push(|it| it.extend([put(next), put(next + 1)])).is_ok());
        } else {
            queue.close();
        }
    };
    let task = run_as_task(
        Arc::clone(&queue),
        committer,
        async |_| {},
        deliver,
        |error| panic!("{error}"),
    );
    let other = async {
        for _ in 0..3 {
            log.borrow_mut().push("other".to_owned());
            tokio::task::yield_now().await;
        }
    };
    assert!(queue.push(|it| it.extend([put(0), put(1)])).is_ok());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(futures_util::future::join(task, other));
    assert_eq!(*log.borrow(), ["0+1", "other", "2+3", "other", "4+5", "other"]);
    assert_eq!(storage.unsynced(), 0);
}

#[test]
fn the_task_sleeps_until_it_is_woken() {
    let (_, queue, committer) = setup();
    let answered = RefCell::new(Vec::new());
    let deliver = |answers: &mut Vec<(u64, CommitAnswer)>| {
        answered.borrow_mut().extend(answers.drain(..).map(|it| it.0));
    };
    let task = run_as_task(
        Arc::clone(&queue),
        committer,
        async |_| {},
        deliver,
        |error| panic!("{error}"),
    );
    let other = async {
        for number in 0..3 {
            assert!(queue.push(|it| it.push_back(put(number))).is_ok());
            while !answered.borrow().contains(&number) {
                tokio::task::yield_now().await;
            }
        }
        queue.close();
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(futures_util::future::join(task, other));
    assert_eq!(*answered.borrow(), [0, 1, 2]);
}

/// The process loses its power between two groups, at every point: what was answered is there.
#[test]
fn no_answered_write_is_lost() {
    for crash_after in 0..6 {
        let (storage, queue, mut committer) = setup();
        let mut answered = Vec::new();
        let failing = storage.clone();
        let mut syncs = 0;
        failing.set_faults(Some(Box::new(move |it| {
            syncs += u64::from(it == Access::Sync);
            (it == Access::Sync && syncs > crash_after).then_some(Fault::Error)
        })));
        for number in 0..6 {
            let done: SystemDone = Box::new(|_| {});
            let system = CommitItem::System { key: "k".into(), value: None, done };
            assert!(queue.push(|it| it.extend([put(number), system, put(number + 100)])).is_ok());
            let (mut group, mut answers) = (Vec::new(), Vec::new());
            assert!(queue.take_blocking(&mut group));
            if committer.commit(&mut group, &mut answers).is_ok() {
                answered.extend(answers.drain(..).map(|it| it.0));
            }
        }
        storage.set_faults(None);
        storage.power_loss(|_| 0);
        assert_eq!(answered.len() as u64, 2 * crash_after);
        for number in answered {
            assert!(
                storage.get(Space::Data, key(number).as_bytes()).unwrap().is_some(),
                "{number}"
            );
        }
        storage.write(&crate::storage::WriteBatch::new(), Durability::Synced).unwrap();
    }
}
