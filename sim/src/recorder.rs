//! Writes down what clients ask and are told: the history that checkers read, and the log.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, sync::Arc, time::Duration};

use model::ConsistencyLevel;

use crate::{
    discipline::Discipline,
    history::{Action, Operation, Outcome, Via},
    log::Log,
};

/// A key by its parts: rows of four to a partition key, so that scans have something to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyName {
    /// What it promises.
    pub discipline: Discipline,
    /// How it is used.
    pub kind: KeyKind,
    /// Which of its kind.
    pub number: u32,
}

/// How a key is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// Overwritten and deleted by many.
    Hot,
    /// Written once: an overwrite would hide its loss.
    Once,
    /// Written with a time to live.
    Expiring,
}

impl KeyName {
    /// Rows of one partition key.
    pub const ROWS: u32 = 4;

    /// The partition key.
    pub fn partition(&self) -> String {
        let kind = match self.kind {
            KeyKind::Hot => "hot",
            KeyKind::Once => "once",
            KeyKind::Expiring => "expiring",
        };
        format!("{}/{kind}/{}", self.discipline.prefix(), self.number / Self::ROWS)
    }

    /// The sort key.
    pub fn sort(&self) -> String {
        (self.number % Self::ROWS).to_string()
    }

    /// As the database knows it.
    pub fn key(&self) -> model::Key {
        model::Key::with_sort_key(self.partition(), self.sort())
    }

    /// As histories name it.
    pub fn name(&self) -> Arc<str> {
        format!("{}/{}", self.partition(), self.sort()).into()
    }
}

/// One client's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who {
    /// The client.
    pub session: u32,
    /// Its datacenter.
    pub datacenter: u8,
}

/// The history of a run and its log. Clones share them.
#[derive(Clone)]
pub struct Recorder {
    inner: Rc<RefCell<Inner>>,
    /// Tombstones are purged in this run.
    purges: bool,
    /// The log.
    pub log: Log,
}

#[derive(Default)]
struct Inner {
    operations: Vec<Operation>,
    keys: BTreeMap<KeyName, Arc<str>>,
    once: BTreeMap<Discipline, u32>,
    values: u64,
}

impl Inner {
    fn operation(&mut self, id: u64) -> &mut Operation {
        &mut self.operations[usize::try_from(id).expect("few operations")]
    }
}

impl Recorder {
    /// An empty history.
    pub fn new(log: Log, purges: bool) -> Self {
        Self { inner: Rc::default(), purges, log }
    }

    /// A value that was never written.
    pub fn value(&self) -> u64 {
        let mut inner = self.inner.borrow_mut();
        inner.values += 1;
        inner.values
    }

    /// A key that was never written.
    pub fn fresh_key(&self, discipline: Discipline) -> KeyName {
        let mut inner = self.inner.borrow_mut();
        let next = inner.once.entry(discipline).or_default();
        let number = *next;
        *next += 1;
        KeyName { discipline, kind: KeyKind::Once, number }
    }

    /// How many keys of a discipline were written once.
    pub fn fresh_keys(&self, discipline: Discipline) -> u32 {
        self.inner.borrow().once.get(&discipline).copied().unwrap_or(0)
    }

    /// Every key that anything was asked of.
    pub fn keys(&self) -> Vec<KeyName> {
        self.inner.borrow().keys.keys().cloned().collect()
    }

    /// The key that the database knows as this one, if anything was asked of it.
    pub fn named_key(&self, key: &model::Key) -> Option<KeyName> {
        let text = |it: &[u8]| String::from_utf8_lossy(it).into_owned();
        let name = format!("{}/{}", text(&key.partition_key), text(&key.sort_key));
        let inner = self.inner.borrow();
        inner.keys.iter().find(|(_, it)| ***it == *name).map(|(key, _)| key.clone())
    }

    /// Notes a call.
    pub fn call(
        &self,
        who: Who,
        key: &KeyName,
        level: ConsistencyLevel,
        action: Action,
        via: Via,
        deadline: Option<Duration>,
    ) -> u64 {
        let now = now();
        let mut inner = self.inner.borrow_mut();
        let name = inner.keys.entry(key.clone()).or_insert_with(|| key.name()).clone();
        let id = inner.operations.len() as u64;
        self.log
            .say(now, format_args!("s{} #{id} {action:?} {name} at {level} {via:?}", who.session));
        inner.operations.push(Operation {
            id,
            session: who.session,
            datacenter: who.datacenter,
            key: name,
            discipline: key.discipline,
            level,
            action,
            via,
            request: None,
            tries: 1,
            called_us: micros(now),
            returned_us: None,
            deadline_us: deadline.map(|it| micros(now + it)),
            outcome: Outcome::GIVEN_UP,
            purges: self.purges,
        });
        id
    }

    /// Notes under which request id a write is sent; 0 lets the node draw one.
    pub fn named(&self, id: u64, request: u64) {
        let mut inner = self.inner.borrow_mut();
        inner.operation(id).request = Some(request).filter(|it| *it != 0);
    }

    /// Notes that a write is sent once more, after an outcome that is unknown.
    pub fn sent_again(&self, id: u64, deadline: Option<Duration>) {
        let now = now();
        self.log.say(now, format_args!("   #{id} again"));
        let mut inner = self.inner.borrow_mut();
        let operation = inner.operation(id);
        operation.tries += 1;
        operation.deadline_us = deadline.map(|it| micros(now + it));
    }

    /// Notes what came of a call.
    pub fn returned(&self, id: u64, outcome: Outcome) {
        let now = now();
        self.log.say(now, format_args!("   #{id} {outcome:?}"));
        let mut inner = self.inner.borrow_mut();
        let operation = inner.operation(id);
        operation.returned_us = Some(micros(now));
        operation.outcome = outcome;
    }

    /// Notes a read that a page of a scan answered: the call began before its keys were known.
    pub fn scanned(
        &self,
        who: Who,
        key: &KeyName,
        level: ConsistencyLevel,
        called: Duration,
        outcome: Outcome,
    ) {
        let id = self.call(who, key, level, Action::Get, Via::Scan, None);
        self.inner.borrow_mut().operation(id).called_us = micros(called);
        self.returned(id, outcome);
    }

    /// Looks at the history so far.
    pub fn look<T>(&self, look: impl FnOnce(&[Operation]) -> T) -> T {
        look(&self.inner.borrow().operations)
    }

    /// How many operations there were.
    pub fn len(&self) -> u64 {
        self.inner.borrow().operations.len() as u64
    }

    /// True if there were none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the history.
    pub fn take(&self) -> Vec<Operation> {
        std::mem::take(&mut self.inner.borrow_mut().operations)
    }
}

/// Simulated time, in a simulated host.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

fn micros(it: Duration) -> u64 {
    u64::try_from(it.as_micros()).unwrap_or(u64::MAX)
}
