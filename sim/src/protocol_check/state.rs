//! A moment of an execution: the replicas of one key, the operations on it, and what is under way.
//!
//! The network is the set of records ever sent: each may reach each replica at any time, again, or
//! never. That is loss, duplication, delay, reordering, hints, repairs and late write-backs at once.
//! A coordinator that takes no more steps is one that has died.

use std::{
    array,
    hash::{DefaultHasher, Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

use coordinator::{ReadEvent, WriteEvent};
use model::{Hlc, Record, Refusal, ReplicaIndex, ReplicaMask, Version, WriteAnswer};
use node::replica::{RecentVersions, Stored, receive};

use super::{
    Bounds, Memory,
    operation::{Event, Machine, READ_AT, Reply, Running},
};

/// The replicas of the key: a quorum is two.
pub(super) const REPLICAS: usize = 3;
/// The most operations of an execution.
pub(super) const OPERATIONS_MAX: usize = 5;

/// A value that many states share, hashed once.
#[derive(Clone, Debug)]
pub(super) struct Hashed<T> {
    value: Arc<T>,
    hash: u64,
}

impl<T: Hash> Hashed<T> {
    pub(super) fn new(value: T) -> Self {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        Self { value: Arc::new(value), hash: hasher.finish() }
    }
}

impl<T> Deref for Hashed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: PartialEq> PartialEq for Hashed<T> {
    fn eq(&self, other: &Self) -> bool {
        let same = Arc::ptr_eq(&self.value, &other.value);
        same || self.hash == other.hash && self.value == other.value
    }
}

impl<T: Eq> Eq for Hashed<T> {}

impl<T> Hash for Hashed<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// What a replica has: a record on its disk, and its memory of contended keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held {
    stored: Option<Stored>,
    recent: RecentVersions,
}

impl Held {
    fn without_memory(stored: Option<Stored>) -> Self {
        Self { stored, recent: RecentVersions::with_sets(1) }
    }

    fn record(&self) -> Option<&Record> {
        self.stored.as_ref().map(|it| &it.record)
    }

    fn version(&self) -> Version {
        self.record().map_or(Version::ABSENT, Record::version)
    }

    fn previous(&self) -> Hlc {
        self.stored.as_ref().map_or(Hlc::ZERO, |it| it.previous)
    }
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Replica {
    pub(super) held: Hashed<Held>,
    /// Its place in each operation's list of replicas. None until an operation has heard of it: then
    /// it is still any of those that are left.
    pub(super) places: [Option<ReplicaIndex>; OPERATIONS_MAX],
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Status {
    Waiting,
    Running(Hashed<Running>),
    /// With the number that it wrote or read; 0 for an absent key.
    Returned(u8),
    /// Its client was told that nothing is known.
    Failed,
}

/// An operation, and those that had returned when it began, a bit each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Operation {
    pub(super) status: Status,
    pub(super) after: u8,
}

/// One moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// Sorted: replicas are alike, and their names do not matter.
    pub(super) replicas: [Replica; REPLICAS],
    /// Puts before gets.
    pub(super) operations: [Operation; OPERATIONS_MAX],
    /// The records ever sent, by version.
    pub(super) sent: Hashed<Vec<Record>>,
}

/// A replica by its present number, and the place that it has, or gets, in an operation's list.
pub(super) type At = (usize, ReplicaIndex);

impl State {
    pub(super) fn start() -> Self {
        let held = Hashed::new(Held::without_memory(None));
        let replica = || Replica { held: held.clone(), places: [None; OPERATIONS_MAX] };
        Self {
            replicas: array::from_fn(|_| replica()),
            operations: array::from_fn(|_| Operation { status: Status::Waiting, after: 0 }),
            sent: Hashed::new(Vec::new()),
        }
    }

    pub(super) fn running(&self, operation: usize) -> Option<&Running> {
        match &self.operations[operation].status {
            Status::Running(it) => Some(it),
            _ => None,
        }
    }

    pub(super) fn version(&self, replica: usize) -> Version {
        self.replicas[replica].held.version()
    }

    /// The clocks of all stamps, in order.
    pub(super) fn clocks(&self) -> Vec<Hlc> {
        let unsent = |it| self.running(it).and_then(|it| it.unsent);
        let mut clocks: Vec<_> = self.sent.iter().map(|it| it.version().hlc).collect();
        clocks.extend((0..OPERATIONS_MAX).filter_map(unsent));
        clocks.sort_unstable();
        clocks.dedup();
        clocks
    }

    /// An operation begins, and one replica takes its first message.
    pub(super) fn begin(&mut self, bounds: &Bounds, operation: usize, running: Running, at: At) {
        let returned = |it: &usize| matches!(self.operations[*it].status, Status::Returned(_));
        let after = (0..OPERATIONS_MAX).filter(returned).map(|it| 1 << it).sum();
        self.send(running.record.as_ref());
        let status = Status::Running(Hashed::new(running));
        self.operations[operation] = Operation { status, after };
        self.first_message(bounds, operation, at);
    }

    /// A put gets the stamp that it asked for, and one replica takes it.
    pub(super) fn stamp(&mut self, bounds: &Bounds, operation: usize, stamp: Hlc, at: At) {
        self.tell(operation, Event::Put(WriteEvent::Stamped(stamp)));
        self.first_message(bounds, operation, at);
    }

    /// Where a mutation is the newest its answer is not heard: it may come again, and then be heard.
    fn first_message(&mut self, bounds: &Bounds, operation: usize, at: At) {
        match self.running(operation).and_then(|it| it.record.clone()) {
            None => self.query(bounds, operation, at),
            Some(record) if record.version() > self.version(at.0) => {
                self.deliver(bounds, at.0, &record);
            }
            Some(_) => self.mutate(bounds, operation, at, false),
        }
    }

    /// A record reaches a replica. Tells the answer, and the record that was there.
    pub(super) fn deliver(
        &mut self,
        bounds: &Bounds,
        replica: usize,
        record: &Record,
    ) -> (WriteAnswer, Option<Record>) {
        let before = &self.replicas[replica].held;
        let (there, mut recent) = (before.record().cloned(), before.recent.clone());
        let version = record.version();
        let (answer, newest) = receive(0, before.stored.as_ref(), version, &mut recent);
        if let Some(previous) = newest {
            let stored = Some(Stored { record: record.clone(), previous });
            self.replicas[replica].held = Hashed::new(match bounds.memory {
                Memory::Previous => Held::without_memory(stored),
                Memory::Recent | Memory::Lossy => Held { stored, recent },
            });
        }
        (answer, there)
    }

    /// A replica forgets what it knew of contended keys: it restarts, or needs the room.
    pub(super) fn forget(&mut self, replica: usize) {
        let held = &mut self.replicas[replica].held;
        *held = Hashed::new(Held::without_memory(held.stored.clone()));
    }

    /// A replica answers an operation's query.
    pub(super) fn query(&mut self, bounds: &Bounds, operation: usize, at: At) {
        let Some(running) = self.running(operation) else { return };
        let (from, held) = (at.1, &self.replicas[at.0].held);
        let event = match &running.machine {
            Machine::Put(_) => Event::Put(WriteEvent::Queried { from, newest: held.version() }),
            Machine::Get(_) => Event::Get(ReadEvent::Answer {
                from,
                read_at: READ_AT,
                record: held.record().cloned(),
                clock: READ_AT,
                floor: Hlc::ZERO,
            }),
        };
        self.answer(bounds, operation, at, event);
    }

    /// A replica takes a put's mutation, maybe that of its dead stamp, or a get's write-back, and
    /// answers.
    pub(super) fn mutate(&mut self, bounds: &Bounds, operation: usize, at: At, dead: bool) {
        let Some(running) = self.running(operation) else { return };
        let is_put = matches!(running.machine, Machine::Put(_));
        let record = if dead { &running.dead } else { &running.record };
        let Some(record) = record.clone() else { return };
        let (answer, there) = self.deliver(bounds, at.0, &record);
        let (from, version) = (at.1, record.version());
        let event = if is_put {
            Event::Put(WriteEvent::Answer { from, hlc: version.hlc, answer })
        } else {
            let newest = there.filter(|_| matches!(answer, WriteAnswer::Superseded { .. }));
            Event::Get(ReadEvent::WroteBack { from, version, answer, newest })
        };
        self.answer(bounds, operation, at, event);
    }

    /// An answer is heard at once, or is under way. Without delays it may as well come again.
    fn answer(&mut self, bounds: &Bounds, operation: usize, (replica, from): At, event: Event) {
        let place = &mut self.replicas[replica].places[operation];
        if bounds.delays {
            *place = Some(from);
            self.change(operation, |it| it.answer_later(from, event));
        } else {
            let before = place.replace(from);
            if !self.tell(operation, event) {
                self.replicas[replica].places[operation] = before;
            }
        }
    }

    /// An operation hears an answer that was under way.
    pub(super) fn hear(&mut self, operation: usize, from: ReplicaIndex) {
        let mut event = None;
        self.change(operation, |it| event = it.late[from.index()].take());
        if let Some(event) = event {
            self.tell(operation, *event);
        }
    }

    /// A replica gives no answer, and says so.
    pub(super) fn fail(&mut self, operation: usize, from: ReplicaIndex) {
        let event = match self.running(operation).map(|it| &it.machine) {
            Some(Machine::Put(_)) => {
                Event::Put(WriteEvent::Unreachable { replicas: ReplicaMask::only(from) })
            }
            _ => Event::Get(ReadEvent::Refused { from, refusal: Refusal::NotReady }),
        };
        self.tell(operation, event);
    }

    /// Hands an event to an operation's machine; false if that changes nothing.
    pub(super) fn tell(&mut self, operation: usize, event: Event) -> bool {
        let Some(running) = self.running(operation) else { return false };
        let mut next = running.clone();
        let reply = next.handle(operation, event);
        if reply.is_none() && next == *running {
            return false;
        }
        let anew = matches!(next.machine, Machine::Put(_)) && next.record != running.record;
        self.send(next.record.as_ref());
        self.operations[operation].status = match reply {
            None => Status::Running(Hashed::new(next)),
            Some(Reply::Done(value)) => Status::Returned(value),
            Some(Reply::Failed) => Status::Failed,
        };
        // To a put with another stamp all replicas are new.
        if anew || reply.is_some() {
            self.replicas.iter_mut().for_each(|it| it.places[operation] = None);
        }
        true
    }

    fn change(&mut self, operation: usize, change: impl FnOnce(&mut Running)) {
        if let Status::Running(running) = &mut self.operations[operation].status {
            let mut next = Running::clone(running);
            change(&mut next);
            *running = Hashed::new(next);
        }
    }

    fn send(&mut self, record: Option<&Record>) {
        let Some(record) = record else { return };
        if let Err(at) = self.sent.binary_search_by_key(&record.version(), Record::version) {
            let mut sent = self.sent.to_vec();
            sent.insert(at, record.clone());
            self.sent = Hashed::new(sent);
        }
    }

    /// Makes states equal that differ in the names of replicas.
    pub(super) fn settle(&mut self) {
        let rank = |it: &Replica| (it.held.version(), it.held.previous(), it.places, it.held.hash);
        self.replicas.sort_unstable_by_key(rank);
    }
}
