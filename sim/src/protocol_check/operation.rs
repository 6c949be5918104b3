//! One put or get: the coordinator's own machine, and what it wants of the world just now.

use std::sync::{Arc, LazyLock};

use coordinator::{
    Read, ReadEffect, ReadEvent, ReadReply, ReadRequest, Write, WriteEffect, WriteEvent,
    WriteRequest,
};
use model::{
    ConsistencyLevel, DcIndex, Hlc, Key, KeyspaceId, NodeIndex, Record, ReplicaIndex, ReplicaMask,
    ReplicaSet, Requirement, StorageKey, Version,
};

use super::state::REPLICAS;

/// What happens to an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    Put(WriteEvent),
    Get(ReadEvent),
}

/// A coordinator's machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Machine {
    Put(Write),
    Get(Read),
}

/// What a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The number written or read; 0 for an absent key.
    Done(u8),
    Failed,
}

/// An operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Running {
    pub(super) machine: Machine,
    /// Those that were sent a query.
    pub(super) queried: ReplicaMask,
    /// Those that were sent `record`.
    pub(super) written: ReplicaMask,
    /// A put's mutation with the stamp in force, or what a get writes back.
    pub(super) record: Option<Record>,
    /// A put's mutation with the stamp that was replaced.
    pub(super) dead: Option<Record>,
    /// How many stamps a put was given.
    pub(super) stamps: u8,
    /// A put's stamp that is at hand while it asks for versions.
    pub(super) unsent: Option<Hlc>,
    /// Above which clock a put needs a stamp.
    pub(super) needs_above: Option<Hlc>,
    /// The latest answer under way from each replica, if delays are among the bounds.
    pub(super) late: [Option<Box<Event>>; REPLICAS],
}

impl Running {
    /// Starts put number `operation`, which writes the number that follows.
    pub(super) fn put(operation: usize, stamp: Version, query_first: bool) -> Self {
        let set = Arc::clone(&REPLICA_SET);
        let requirement = Requirement::for_write(ConsistencyLevel::Quorum, &set, LOCAL, false);
        let request = WriteRequest {
            key: storage_key().clone(),
            value: Some(vec![number(operation)].into()),
            request: stamp.request,
            ttl_ms: None,
            requirement: requirement.expect("QUORUM suits every keyspace"),
            query_first,
        };
        let (alive, mut effects) = (set.all(), Vec::new());
        let machine = Write::start(request, set, alive, LOCAL, stamp.hlc, &mut effects);
        let mut it = Self::new(Machine::Put(machine.expect("all replicas are alive")));
        it.stamps = 1;
        it.unsent = query_first.then_some(stamp.hlc);
        let reply = it.perform_put(operation, effects);
        assert_eq!(reply, None, "a put is answered before it was sent");
        it
    }

    /// Starts a get, which prefers its replicas in the order of their places.
    pub(super) fn get() -> Self {
        let set = Arc::clone(&REPLICA_SET);
        let requirement = Requirement::for_read(ConsistencyLevel::Quorum, &set, LOCAL);
        let requirement = requirement.expect("QUORUM suits every keyspace");
        let request = ReadRequest { requirement, read_at: READ_AT };
        let (alive, mut effects) = (set.all(), Vec::new());
        let machine = Read::start(request, set, alive, &[], &mut effects);
        let mut it = Self::new(Machine::Get(machine.expect("all replicas are alive")));
        let reply = it.perform_get(effects);
        assert_eq!(reply, None, "a get is answered before it has asked");
        it
    }

    fn new(machine: Machine) -> Self {
        Self {
            machine,
            queried: ReplicaMask::EMPTY,
            written: ReplicaMask::EMPTY,
            record: None,
            dead: None,
            stamps: 0,
            unsent: None,
            needs_above: None,
            late: [const { None }; REPLICAS],
        }
    }

    /// Hands an event to the machine, and does what it wants. The reply ends the operation: what a
    /// machine wants behind it are repairs and hints, records that are under way anyway.
    pub(super) fn handle(&mut self, operation: usize, event: Event) -> Option<Reply> {
        match (&mut self.machine, event) {
            (Machine::Put(machine), Event::Put(event)) => {
                if let WriteEvent::Stamped(_) = event {
                    self.stamps += 1;
                    self.needs_above = None;
                }
                let mut effects = Vec::new();
                machine.handle(event, &mut effects);
                self.perform_put(operation, effects)
            }
            (Machine::Get(machine), Event::Get(event)) => {
                let mut effects = Vec::new();
                machine.handle(event, &mut effects);
                self.perform_get(effects)
            }
            (machine, event) => unreachable!("{event:?} for {machine:?}"),
        }
    }

    /// A replica has answered, once for each message, and the answer is under way.
    pub(super) fn answer_later(&mut self, from: ReplicaIndex, event: Event) {
        match event {
            Event::Put(WriteEvent::Queried { .. }) | Event::Get(ReadEvent::Answer { .. }) => {
                self.queried.remove(from);
            }
            _ => self.written.remove(from),
        }
        self.late[from.index()] = Some(Box::new(event));
    }

    fn perform_put(&mut self, operation: usize, effects: Vec<WriteEffect>) -> Option<Reply> {
        let mut reply = None;
        for effect in effects {
            match effect {
                WriteEffect::Send { to, pass_on, record } => {
                    if self.record.as_ref() != Some(&record) {
                        self.dead = self.record.replace(record);
                        self.queried = ReplicaMask::EMPTY;
                        self.written = ReplicaMask::EMPTY;
                        self.unsent = None;
                    }
                    self.written = self.written.or(ReplicaMask::only(to)).or(pass_on);
                }
                WriteEffect::Query { to } => self.queried = to,
                WriteEffect::NeedStamp { above } => {
                    self.needs_above = Some(above);
                    self.unsent = None;
                }
                WriteEffect::Hint { .. } => {}
                WriteEffect::Reply(Ok(_)) => reply = Some(Reply::Done(number(operation))),
                WriteEffect::Reply(Err(_)) => reply = Some(Reply::Failed),
            }
        }
        reply
    }

    fn perform_get(&mut self, effects: Vec<ReadEffect>) -> Option<Reply> {
        let mut reply = None;
        for effect in effects {
            match effect {
                ReadEffect::Query { to, .. } => self.queried = self.queried.or(to),
                ReadEffect::WriteBack { to, record, .. } => {
                    if self.record.as_ref() != Some(&record) {
                        self.written = ReplicaMask::EMPTY;
                    }
                    self.record = Some(record);
                    self.written = self.written.or(to);
                }
                ReadEffect::Repair { .. } => {}
                ReadEffect::Reply(Ok(it)) => reply = Some(Reply::Done(found(&it))),
                ReadEffect::Reply(Err(_)) => reply = Some(Reply::Failed),
            }
        }
        reply
    }
}

static REPLICA_SET: LazyLock<Arc<ReplicaSet>> = LazyLock::new(|| {
    let nodes = (0..).map(NodeIndex).take(REPLICAS).collect();
    Arc::new(ReplicaSet::new([(LOCAL, nodes)]))
});

static STORAGE_KEY: LazyLock<StorageKey> = LazyLock::new(|| {
    let key = Key::new(&b"key"[..]);
    StorageKey::encode(KeyspaceId(1), key.token(), &key)
});

const LOCAL: DcIndex = DcIndex(0);

/// The clock that gets carry: no record here expires.
pub(super) const READ_AT: Hlc = Hlc(1);

/// The key that all operations are about.
pub(super) fn storage_key() -> &'static StorageKey {
    &STORAGE_KEY
}

/// What a put writes.
pub(super) fn number(operation: usize) -> u8 {
    u8::try_from(operation).expect("few operations") + 1
}

fn found(reply: &ReadReply) -> u8 {
    reply.value.as_ref().map_or(0, |it| it[0])
}
