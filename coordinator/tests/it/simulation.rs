//! Random executions of the machines on one key: coordinators with any stamps, replicas that obey
//! P2, and a network that delays, reorders, repeats and loses. Histories at quorum levels must be
//! linearizable, and when nothing is lost every operation must be answered.

use std::sync::Arc;

use coordinator::{
    Read, ReadEffect, ReadEvent, ReadRequest, Write, WriteEffect, WriteEvent, WriteRequest,
};
use model::{
    ConsistencyLevel, DcIndex, Hlc, Key, KeyspaceId, NodeIndex, Record, ReplicaIndex, ReplicaMask,
    ReplicaSet, RequestId, Requirement, StorageKey, Version, WriteAnswer,
};
use proptest::{collection::vec, prelude::*};

use crate::history::{Action, Operation, is_linearizable};

/// One operation to come.
#[derive(Clone, Copy, Debug)]
struct Plan {
    write: bool,
    delete: bool,
    query_first: bool,
    /// A write's stamp: any, which is any clock skew.
    stamp: u64,
    /// How far a second stamp is above what is asked for, less one.
    ahead: u64,
    /// The replica that a read prefers.
    preferred: u8,
    /// Replicas taken for down.
    dead: u32,
}

/// Where an execution takes place.
#[derive(Clone, Debug)]
struct Setting {
    sizes: &'static [usize],
    write: ConsistencyLevel,
    read: ConsistencyLevel,
    /// Replicas remember the last versions, beyond the one replaced.
    memory: bool,
}

/// A replica of rule P2.
struct Replica {
    record: Option<Record>,
    /// The clock of the version that the record replaced.
    previous: Hlc,
    /// The versions that were newest here, in order, without gaps; empty without a memory.
    remembered: Vec<Version>,
}

const REMEMBERED_MAX: usize = 8;

impl Replica {
    fn new(memory: bool) -> Self {
        let remembered = if memory { vec![Version::ABSENT] } else { Vec::new() };
        Self { record: None, previous: Hlc::ZERO, remembered }
    }

    fn version(&self) -> Version {
        self.record.as_ref().map_or(Version::ABSENT, Record::version)
    }

    fn write(&mut self, record: &Record) -> WriteAnswer {
        let (version, newest) = (record.version(), self.version());
        if version > newest {
            self.previous = newest.hlc;
            self.record = Some(record.clone());
            if !self.remembered.is_empty() {
                self.remembered.push(version);
                let surplus = self.remembered.len().saturating_sub(REMEMBERED_MAX);
                self.remembered.drain(..surplus);
            }
        }
        if version >= newest {
            return WriteAnswer::Applied;
        }
        match self.remembered.first() {
            _ if self.remembered.contains(&version) => WriteAnswer::Held,
            Some(oldest) if version > *oldest => WriteAnswer::Superseded { newest, never: true },
            _ => WriteAnswer::Superseded { newest, never: version.hlc > self.previous },
        }
    }
}

/// What is under way.
#[derive(Clone, Debug)]
enum Message {
    /// To a replica. Without an operation nobody awaits the answer: a hint or a repair.
    Request {
        to: ReplicaIndex,
        operation: Option<usize>,
        body: Body,
    },
    ToWrite(usize, WriteEvent),
    ToRead(usize, ReadEvent),
}

impl Message {
    fn operation(&self) -> Option<usize> {
        match self {
            Self::Request { operation, .. } => *operation,
            Self::ToWrite(it, _) | Self::ToRead(it, _) => Some(*it),
        }
    }
}

#[derive(Clone, Debug)]
enum Body {
    Mutation { record: Record, pass_on: ReplicaMask },
    WriteBack { record: Record },
    VersionQuery,
    Query { read_at: Hlc },
}

enum Machine {
    Write(Write),
    Read(Read),
    /// Finished, or refused at once.
    Gone,
}

struct World {
    replicas: Vec<Replica>,
    replica_set: Arc<ReplicaSet>,
    setting: Setting,
    plans: Vec<Plan>,
    machines: Vec<Machine>,
    /// What is certain of each operation that was started; `None` if it did nothing, or told nothing.
    history: Vec<Option<Operation>>,
    replied: Vec<bool>,
    messages: Vec<Message>,
    /// The operation that is fast just now: bursts of one while others stand still find more than
    /// an even choice.
    focus: usize,
    now: u64,
}

impl World {
    fn new(setting: Setting, plans: Vec<Plan>) -> Self {
        let mut nodes = (0..).map(NodeIndex);
        let dcs = (0..).map(DcIndex).zip(setting.sizes);
        let replica_set =
            ReplicaSet::new(dcs.map(|(dc, n)| (dc, nodes.by_ref().take(*n).collect())));
        Self {
            replicas: replica_set.all().iter().map(|_| Replica::new(setting.memory)).collect(),
            replica_set: Arc::new(replica_set),
            setting,
            plans,
            machines: Vec::new(),
            history: Vec::new(),
            replied: Vec::new(),
            messages: Vec::new(),
            focus: 0,
            now: 0,
        }
    }

    /// One step, chosen by a number.
    fn step(&mut self, choice: u32) {
        self.now += 1;
        let (kind, pick) = (choice % 100, usize::try_from(choice / 100).unwrap());
        let operation = pick % self.machines.len().max(1);
        let of_focus = |it: &usize| self.messages[*it].operation() == Some(self.focus);
        let mut eligible: Vec<_> = (0..self.messages.len()).filter(of_focus).collect();
        if eligible.is_empty() {
            eligible = (0..self.messages.len()).collect();
        }
        let at = eligible.get(pick % eligible.len().max(1)).copied();
        match (kind, at) {
            (0..66, Some(at)) => {
                let message = self.messages.swap_remove(at);
                self.deliver(message);
            }
            (66..69, Some(at)) => self.deliver(self.messages[at].clone()),
            (69..72, Some(at)) => drop(self.messages.swap_remove(at)),
            (72..86, _) => self.focus = operation,
            (86..89, _) => {
                let mask = ReplicaMask::only(self.replica(pick / 16));
                self.tell_both(operation, &WriteEvent::Unreachable { replicas: mask }, || {
                    ReadEvent::Unreachable { replicas: mask }
                });
            }
            (89..91, _) => self.tell_read(operation, ReadEvent::Slow),
            (91, _) => self.tell_both(operation, &WriteEvent::Deadline, || ReadEvent::Deadline),
            (92, _) => self.tell_both(operation, &WriteEvent::DirectoryReplaced, || {
                ReadEvent::DirectoryReplaced
            }),
            (93, _) => self.ask_again(pick),
            _ => self.start_next(),
        }
    }

    fn ask_again(&mut self, pick: usize) {
        let operation = pick % self.machines.len().max(1);
        let replicas = ReplicaMask::only(self.replica(pick / 16));
        self.tell_both(operation, &WriteEvent::AskAgain { replicas }, || ReadEvent::AskAgain {
            replicas,
        });
    }

    fn replica(&self, pick: usize) -> ReplicaIndex {
        ReplicaIndex(u8::try_from(pick % self.replicas.len()).unwrap())
    }

    fn tell_both(
        &mut self,
        operation: usize,
        write: &WriteEvent,
        read: impl FnOnce() -> ReadEvent,
    ) {
        match self.machines.get(operation) {
            Some(Machine::Write(_)) => self.tell_write(operation, write.clone()),
            Some(Machine::Read(_)) => self.tell_read(operation, read()),
            _ => {}
        }
    }

    fn start_next(&mut self) {
        let id = self.machines.len();
        self.focus = id;
        let Some(plan) = self.plans.get(id).copied() else { return };
        let replicas = self.replica_set.clone();
        let alive = replicas.all().without(ReplicaMask(plan.dead));
        let local = DcIndex(0);
        let value = if plan.delete { 0 } else { u64::try_from(id).unwrap() + 1 };
        let action = if plan.write { Action::Write(value) } else { Action::Read(0) };
        self.history.push(plan.write.then_some(Operation {
            action,
            called: self.now,
            returned: None,
        }));
        self.replied.push(false);
        if plan.write {
            let request = WriteRequest {
                key: storage_key(),
                value: (!plan.delete).then(|| value.to_be_bytes().to_vec().into()),
                request: RequestId(u64::try_from(id).unwrap() + 1),
                ttl_ms: None,
                requirement: Requirement::for_write(self.setting.write, &replicas, local, false)
                    .unwrap(),
                query_first: plan.query_first,
            };
            let mut effects = Vec::new();
            match Write::start(request, replicas, alive, local, Hlc(plan.stamp), &mut effects) {
                Ok(it) => self.machines.push(Machine::Write(it)),
                Err(_) => {
                    self.machines.push(Machine::Gone);
                    self.history[id] = None;
                }
            }
            self.perform_write(id, effects);
        } else {
            let requirement = Requirement::for_read(self.setting.read, &replicas, local).unwrap();
            let request = ReadRequest { requirement, read_at: Hlc(1) };
            let mut preferred: Vec<_> = replicas.all().iter().collect();
            let first = usize::from(plan.preferred) % preferred.len();
            preferred.rotate_left(first);
            let mut effects = Vec::new();
            let started = Read::start(request, replicas, alive, &preferred, &mut effects);
            self.machines.push(started.map_or(Machine::Gone, Machine::Read));
            self.history[id] = Some(Operation { action, called: self.now, returned: None });
            self.perform_read(id, effects);
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::ToWrite(id, event) => self.tell_write(id, event),
            Message::ToRead(id, event) => self.tell_read(id, event),
            Message::Request { to, operation, body } => self.serve(to, operation, body),
        }
    }

    /// A replica's part.
    fn serve(&mut self, from: ReplicaIndex, operation: Option<usize>, body: Body) {
        let replica = &mut self.replicas[from.index()];
        let answer = match body {
            Body::Mutation { record, pass_on } => {
                for to in pass_on.iter() {
                    let body =
                        Body::Mutation { record: record.clone(), pass_on: ReplicaMask::EMPTY };
                    self.messages.push(Message::Request { to, operation, body });
                }
                let hlc = record.version().hlc;
                let answer = replica.write(&record);
                operation.map(|it| Message::ToWrite(it, WriteEvent::Answer { from, hlc, answer }))
            }
            Body::WriteBack { record } => {
                let version = record.version();
                let answer = replica.write(&record);
                let superseded = matches!(answer, WriteAnswer::Superseded { .. });
                let newest = replica.record.clone().filter(|_| superseded);
                operation.map(|it| {
                    Message::ToRead(it, ReadEvent::WroteBack { from, version, answer, newest })
                })
            }
            Body::VersionQuery => {
                let newest = replica.version();
                operation.map(|it| Message::ToWrite(it, WriteEvent::Queried { from, newest }))
            }
            Body::Query { read_at } => {
                let (record, clock) = (replica.record.clone(), read_at);
                operation.map(|it| {
                    Message::ToRead(
                        it,
                        ReadEvent::Answer { from, read_at, record, clock, floor: Hlc::ZERO },
                    )
                })
            }
        };
        self.messages.extend(answer);
    }

    fn tell_write(&mut self, id: usize, event: WriteEvent) {
        if let Machine::Write(it) = &mut self.machines[id] {
            let mut effects = Vec::new();
            it.handle(event, &mut effects);
            if it.is_finished() {
                self.machines[id] = Machine::Gone;
            }
            self.perform_write(id, effects);
        }
    }

    fn tell_read(&mut self, id: usize, event: ReadEvent) {
        if let Some(Machine::Read(it)) = self.machines.get_mut(id) {
            let mut effects = Vec::new();
            it.handle(event, &mut effects);
            if it.is_finished() {
                self.machines[id] = Machine::Gone;
            }
            self.perform_read(id, effects);
        }
    }

    fn perform_write(&mut self, id: usize, effects: Vec<WriteEffect>) {
        let operation = Some(id);
        for effect in effects {
            match effect {
                WriteEffect::Send { to, pass_on, record } => {
                    let body = Body::Mutation { record, pass_on };
                    self.messages.push(Message::Request { to, operation, body });
                }
                WriteEffect::Query { to } => self.send(to, operation, || Body::VersionQuery),
                WriteEffect::NeedStamp { above } => {
                    let stamp = Hlc(above.0 + 1 + self.plans[id].ahead);
                    self.messages.push(Message::ToWrite(id, WriteEvent::Stamped(stamp)));
                }
                WriteEffect::Hint { to, record, .. } => {
                    let body = Body::Mutation { record, pass_on: ReplicaMask::EMPTY };
                    self.messages.push(Message::Request { to, operation: None, body });
                }
                WriteEffect::Reply(reply) => {
                    assert!(!std::mem::replace(&mut self.replied[id], true), "two replies");
                    match (reply, &mut self.history[id]) {
                        (Ok(_), Some(it)) => it.returned = Some(self.now),
                        (Err(error), it) if !error.outcome_unknown() => *it = None,
                        _ => {}
                    }
                }
            }
        }
    }

    fn perform_read(&mut self, id: usize, effects: Vec<ReadEffect>) {
        for effect in effects {
            match effect {
                ReadEffect::Query { to, read_at } => {
                    self.send(to, Some(id), || Body::Query { read_at })
                }
                ReadEffect::WriteBack { to, record, .. } => {
                    self.send(to, Some(id), || Body::WriteBack { record: record.clone() });
                }
                ReadEffect::Repair { to, record, .. } => {
                    self.send(to, None, || Body::WriteBack { record: record.clone() });
                }
                ReadEffect::Reply(reply) => {
                    assert!(!std::mem::replace(&mut self.replied[id], true), "two replies");
                    if let (Ok(reply), Some(it)) = (reply, &mut self.history[id]) {
                        let value = reply
                            .value
                            .map_or(0, |it| u64::from_be_bytes(it[..].try_into().unwrap()));
                        it.action = Action::Read(value);
                        it.returned = Some(self.now);
                    }
                }
            }
        }
    }

    fn send(&mut self, to: ReplicaMask, operation: Option<usize>, body: impl Fn() -> Body) {
        self.messages.extend(to.iter().map(|to| Message::Request { to, operation, body: body() }));
    }

    /// Writes of unknown outcome included, reads without an answer left out.
    fn operations(&self) -> Vec<Operation> {
        let told = |it: &&Operation| it.returned.is_some() || matches!(it.action, Action::Write(_));
        self.history.iter().flatten().filter(told).copied().collect()
    }
}

fn storage_key() -> StorageKey {
    let key = Key::new(&b"key"[..]);
    StorageKey::encode(KeyspaceId(1), key.token(), &key)
}

fn plans(operations_max: usize) -> impl Strategy<Value = Vec<Plan>> {
    let dead = prop_oneof![6 => Just(0u32), 1 => 0u32..8];
    let plan = (any::<bool>(), 0u8..8, 0u8..5, 1u64..12, 0u64..4, 0u8..6, dead);
    let plan = plan.prop_map(|(write, delete, query_first, stamp, ahead, preferred, dead)| Plan {
        write,
        delete: delete == 0,
        query_first: query_first == 0,
        stamp,
        ahead,
        preferred,
        dead,
    });
    let any = vec(plan.clone(), 2..=operations_max);
    // Two writes that race with reads: what most executions that break the rules need.
    let race = (vec(plan, 5..=operations_max.max(6)), 1usize..4);
    let race = race.prop_map(|(plans, second)| {
        let is_write = |at: usize| at == 0 || at == second;
        let plan = |(at, it)| Plan { write: is_write(at), query_first: false, dead: 0, ..it };
        plans.into_iter().enumerate().map(plan).collect()
    });
    prop_oneof![any, race]
}

fn settings() -> impl Strategy<Value = Setting> {
    use ConsistencyLevel::{All, EachQuorum, LocalQuorum, Quorum};
    const NARROW: &[(&[usize], ConsistencyLevel, ConsistencyLevel)] = &[(&[3], Quorum, Quorum)];
    const WIDE: &[(&[usize], ConsistencyLevel, ConsistencyLevel)] = &[
        (&[1], Quorum, Quorum),
        (&[2], Quorum, Quorum),
        (&[4], Quorum, Quorum),
        (&[5], Quorum, Quorum),
        (&[3], All, Quorum),
        (&[3], Quorum, All),
        (&[2, 1], Quorum, Quorum),
        (&[1, 3], Quorum, Quorum),
        (&[3, 2], LocalQuorum, LocalQuorum),
        (&[3, 1], EachQuorum, EachQuorum),
        (&[3, 3], EachQuorum, EachQuorum),
    ];
    let choice = prop_oneof![3 => (0..NARROW.len()).prop_map(|it| NARROW[it]), 2 => (0..WIDE.len()).prop_map(|it| WIDE[it])];
    (choice, any::<bool>()).prop_map(|((sizes, write, read), memory)| Setting {
        sizes,
        write,
        read,
        memory,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150_000, ..ProptestConfig::default() })]

    #[test]
    fn quorum_operations_are_linearizable(
        setting in settings(),
        plans in plans(7),
        choices in vec(any::<u32>(), 20..180),
    ) {
        let mut world = World::new(setting, plans);
        for choice in choices {
            world.step(choice);
        }
        let operations = world.operations();
        prop_assert!(is_linearizable(&operations), "{:#?}", operations);
    }

    #[test]
    fn all_are_answered_when_nothing_is_lost(
        setting in settings(),
        plans in plans(5),
        choices in vec(any::<u32>(), 40..80),
    ) {
        let setting = Setting { memory: true, ..setting };
        // Replicas remember eight versions: those that three writes stamp, and "absent".
        let mut writes = 0;
        let mut harmless = |it: Plan| {
            writes += u32::from(it.write);
            Plan { dead: 0, write: it.write && writes <= 3, ..it }
        };
        let plans: Vec<_> = plans.into_iter().map(&mut harmless).collect();
        let mut world = World::new(setting, plans);
        let (mut choices, mut starts) = (choices.iter().cycle(), 0);
        while starts < world.plans.len() || !world.messages.is_empty() {
            let choice = usize::try_from(*choices.next().unwrap()).unwrap();
            world.now += 1;
            if world.messages.is_empty() || choice.is_multiple_of(5) {
                world.start_next();
                starts += 1;
            } else if choice.is_multiple_of(7) {
                world.ask_again(choice / 7);
            } else {
                let at = choice / 5 % world.messages.len();
                let message = world.messages.swap_remove(at);
                world.deliver(message);
            }
        }
        let operations = world.operations();
        prop_assert_eq!(operations.len(), world.plans.len());
        prop_assert!(operations.iter().all(|it| it.returned.is_some()), "{:#?}", operations);
        prop_assert!(world.machines.iter().all(|it| matches!(it, Machine::Gone)));
        prop_assert!(is_linearizable(&operations), "{:#?}", operations);
    }
}
