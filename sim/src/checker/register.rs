//! A key's history as that of a register: writes of states and reads of states, in real time.
//!
//! Invariant: each state but absence is written by one step only. A put is one, because it has one
//! stamp that reads can see; each stamp of a put that was made elsewhere, or sent several times, is
//! one of its own, told apart by its version. A read of an expired value is a read of that value.

use std::collections::BTreeMap;

use model::Version;

use super::{
    Context, expiry,
    key::{self, KeyHistory, Read},
};
use crate::history::{Action, Operation};

/// What the register holds.
pub(super) type State = usize;

/// No value: never written, deleted, or expired.
pub(super) const ABSENT: State = 0;

/// The end of a step that may take effect at any later time.
pub(super) const PENDING: u64 = u64::MAX;

/// The history of one register.
pub(super) struct Register<'a> {
    /// Complete and pending steps.
    pub(super) steps: Vec<Step<'a>>,
    /// From when on a state may read as absent, by state; `PENDING` for never.
    pub(super) absent_from: Vec<u64>,
}

/// One access to a register, at some time from `call` to `ret`, both included.
#[derive(Clone, Copy)]
pub(super) struct Step<'a> {
    /// Never 0, which is before all steps.
    pub(super) call: u64,
    pub(super) ret: u64,
    pub(super) access: Access,
    /// A write's version as far as it is known; for a read of absence the version it told.
    pub(super) version: Option<Version>,
    pub(super) operation: &'a Operation,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Write(State),
    /// A read of `ABSENT` may also have seen a state that has expired.
    Read(State),
}

/// A history without unknown outcomes: what is pending has become complete, or is gone.
pub(super) struct Resolved<'a> {
    /// Complete steps by call, and puts that may have expired unseen, which need not be taken.
    pub(super) steps: Vec<Step<'a>>,
    /// From `Register`.
    pub(super) absent_from: Vec<u64>,
    /// When each pending deletion was called, in order. One that is never used does no harm.
    pub(super) erasers: Vec<u64>,
}

impl<'a> Register<'a> {
    /// The operations that count for the key's promise; of others only writes, which may take effect
    /// at any time, once for each stamp.
    pub(super) fn of(key: &KeyHistory<'a>, context: &Context) -> Self {
        let mut states = States::default();
        let mut steps = Vec::new();
        for read in key.reads().filter(|it| key.is_own(it.operation)) {
            let (state, version) = states.seen(key, &read);
            let operation = read.operation;
            let (call, ret) = (operation.called_us + 1, read.returned_us + 1);
            steps.push(Step { call, ret, access: Access::Read(state), version, operation });
        }
        for &operation in &key.operations {
            if !operation.is_write() || key::is_refused(operation) {
                continue;
            }
            if is_split(key, operation) {
                let lives = if key.is_own(operation) { 1 } else { 2 };
                let stamps = lives * operation.tries as usize;
                steps.extend(states.split_write(operation, stamps, key.is_own(operation), context));
            } else {
                steps.push(states.own_write(operation, context));
            }
        }
        steps.sort_by_key(|it| (it.call, it.operation.id));
        Self { steps, absent_from: states.absent_from }
    }

    /// Settles what is pending. A put that nobody has seen is left out, as it may come after
    /// everything else; one that was seen took effect before the first who saw it returned. That is
    /// sound because only one step writes its state. A deletion may be any of several: it stays, as
    /// an eraser. A put that may have expired unseen stays as it is.
    pub(super) fn resolve(&self) -> Resolved<'a> {
        let mut seen = vec![PENDING; self.absent_from.len()];
        for step in &self.steps {
            if let Access::Read(state) = step.access {
                seen[state] = seen[state].min(step.ret);
            }
        }
        let mut steps = Vec::with_capacity(self.steps.len());
        let mut erasers = Vec::new();
        for step in &self.steps {
            match step.access {
                Access::Write(ABSENT) if step.ret == PENDING => erasers.push(step.call),
                Access::Write(state) if step.ret == PENDING => match seen[state] {
                    PENDING if self.absent_from[state] == PENDING => {}
                    ret => steps.push(Step { ret, ..*step }),
                },
                _ => steps.push(*step),
            }
        }
        erasers.sort_unstable();
        Resolved { steps, absent_from: self.absent_from.clone(), erasers }
    }
}

/// True if several stamps of a write may be seen, each by itself.
fn is_split(key: &KeyHistory<'_>, write: &Operation) -> bool {
    !key.is_own(write) || write.tries > 1
}

/// Numbers the states of a key.
struct States {
    /// By value, and by version where each stamp is a state of its own.
    numbers: BTreeMap<(u64, Option<Version>), State>,
    /// A version under which a state was read, by state.
    versions: Vec<Option<Version>>,
    absent_from: Vec<u64>,
}

impl Default for States {
    fn default() -> Self {
        Self { numbers: BTreeMap::new(), versions: vec![None], absent_from: vec![0] }
    }
}

impl States {
    fn fresh(&mut self) -> State {
        self.versions.push(None);
        self.absent_from.push(PENDING);
        self.versions.len() - 1
    }

    fn number(&mut self, value: u64, stamp: Option<Version>) -> State {
        if let Some(state) = self.numbers.get(&(value, stamp)) {
            return *state;
        }
        let state = self.fresh();
        self.numbers.insert((value, stamp), state);
        state
    }

    /// What a read has seen, and the version it told of an absence.
    fn seen(&mut self, key: &KeyHistory<'_>, read: &Read<'_>) -> (State, Option<Version>) {
        let put = match (read.value, read.version) {
            (Some(value), _) => Some((value, key.put(value))),
            (None, Some(version)) => match key.writer(version) {
                Some(put) => match put.action {
                    Action::Put { value, ttl_ms: Some(_) } => Some((value, Some(put))),
                    _ => None,
                },
                None => None,
            },
            (None, None) => None,
        };
        let Some((value, put)) = put else { return (ABSENT, read.version) };
        let split = put.is_some_and(|it| is_split(key, it));
        let state = self.number(value, read.version.filter(|_| split));
        self.versions[state] = self.versions[state].or(read.version);
        (state, read.version)
    }

    fn own_write<'a>(&mut self, operation: &'a Operation, context: &Context) -> Step<'a> {
        let acknowledged = key::acknowledged(operation);
        let state = match operation.action {
            Action::Put { value, .. } => self.number(value, None),
            _ => ABSENT,
        };
        let version = acknowledged.or(self.versions[state]);
        self.expires(state, operation, version, context);
        let returned = operation.returned_us.filter(|_| acknowledged.is_some());
        let ret = returned.map_or(PENDING, |it| it + 1);
        let access = Access::Write(state);
        Step { call: operation.called_us + 1, ret, access, version, operation }
    }

    /// A step for each stamp that was seen, and no fewer than a write may have. The one acknowledged at
    /// home has taken effect; the others may at any time.
    fn split_write<'a>(
        &mut self,
        operation: &'a Operation,
        stamps: usize,
        is_own: bool,
        context: &Context,
    ) -> Vec<Step<'a>> {
        let acknowledged = key::acknowledged(operation).filter(|_| is_own);
        let mut done = None;
        let mut written = Vec::new();
        if let Action::Put { value, .. } = operation.action {
            done = acknowledged.map(|it| self.number(value, Some(it)));
            let seen = (value, None)..(value + 1, None);
            written.extend(self.numbers.range(seen).map(|(_, state)| *state));
            written.retain(|it| Some(*it) != done);
        }
        let pending = stamps - usize::from(acknowledged.is_some());
        while written.len() < pending {
            let is_put = matches!(operation.action, Action::Put { .. });
            written.push(if is_put { self.fresh() } else { ABSENT });
        }
        let mut steps = Vec::with_capacity(stamps);
        for state in written {
            let version = self.versions[state].filter(|_| state != ABSENT);
            self.expires(state, operation, version, context);
            let access = Access::Write(state);
            let call = operation.called_us + 1;
            steps.push(Step { call, ret: PENDING, access, version, operation });
        }
        if let Some(version) = acknowledged {
            let state = done.unwrap_or(ABSENT);
            self.expires(state, operation, Some(version), context);
            let (call, version) = (operation.called_us + 1, Some(version));
            let ret = operation.returned_us.map_or(PENDING, |it| it + 1);
            steps.push(Step { call, ret, access: Access::Write(state), version, operation });
        }
        steps
    }

    fn expires(
        &mut self,
        state: State,
        operation: &Operation,
        version: Option<Version>,
        context: &Context,
    ) {
        if let Some(window) = expiry::window(operation, version, context) {
            self.absent_from[state] = window.from_us + 1;
        }
    }
}
