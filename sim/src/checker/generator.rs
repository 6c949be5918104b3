//! Histories that are right by construction, and ways to spoil them: what the checkers and their
//! referee are tested with.
//!
//! Each operation takes effect at one instant between its call and its answer; a write of unknown
//! outcome at any later instant, or never. Versions are those instants. A spoiled history is mostly
//! wrong, not always: a change may make no difference.

use std::{collections::BTreeMap, sync::Arc};

use model::{ConsistencyLevel, Hlc, RequestId, Version};
use proto::Reason;
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::linearizable;
use crate::{
    discipline::Discipline,
    history::{Action, Operation, Outcome, Via},
};

/// What a generated history looks like.
#[derive(Clone, Debug)]
pub struct HistoryShape {
    /// What all its keys promise. Judges reads as of one register, whatever it is.
    pub discipline: Discipline,
    /// How many keys share the operations.
    pub keys: usize,
    /// Clients at home, which read and write one call after another.
    pub sessions: u32,
    /// Clients elsewhere, which only write, and whose stamps each take effect by themselves.
    pub foreign_sessions: u32,
    /// Calls of each client.
    pub calls: usize,
    /// The share of calls that are deletes.
    pub deletes: f64,
    /// The share of calls without a certain answer.
    pub unknown: f64,
    /// The share of reads that are scans: they tell no version of what is absent.
    pub scans: f64,
    /// The longest time to live in milliseconds; 0 for none.
    pub ttl_ms_max: u64,
    /// How far the clock of whoever judges expiry may be off.
    pub clock_offset_max_ms: u64,
    /// What the wall clock tells at the beginning.
    pub epoch_ms: u64,
}

impl Default for HistoryShape {
    /// Five clients on one key at QUORUM, with deletes, scans and unknown outcomes.
    fn default() -> Self {
        Self {
            discipline: Discipline::Quorum,
            keys: 1,
            sessions: 5,
            foreign_sessions: 0,
            calls: 12,
            deletes: 0.1,
            unknown: 0.1,
            scans: 0.1,
            ttl_ms_max: 0,
            clock_offset_max_ms: 0,
            epoch_ms: 1_700_000_000_000,
        }
    }
}

/// One instant at which an operation takes effect, under the stamp of that instant or an earlier one.
struct Effect {
    at_us: u64,
    stamped_us: u64,
    operation: usize,
}

/// What a key holds.
#[derive(Clone, Copy, Default)]
struct Held {
    value: Option<u64>,
    version: Version,
    expiry_ms: Option<u64>,
    /// True once a read has found it expired.
    expired: bool,
}

/// A history that keeps every promise.
pub fn history(seed: u64, shape: &HistoryShape) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut operations = Vec::new();
    let mut effects = Vec::new();
    for session in 0..shape.sessions + shape.foreign_sessions {
        let mut now_us = random.random_range(1..60);
        for _ in 0..shape.calls {
            let mut operation = call(operations.len(), session, now_us, shape, &mut random);
            let returned_us = operation.returned_us.unwrap_or(now_us);
            let place = operations.len();
            effects.extend(match session < shape.sessions {
                true => effect_at_home(&operation, place, &mut random),
                false => effects_elsewhere(&mut operation, place, shape, &mut random),
            });
            operations.push(operation);
            now_us = returned_us + random.random_range(0..30);
        }
    }
    effects.sort_by_key(|it| (it.at_us, it.operation));
    let mut held = BTreeMap::<Arc<str>, Held>::new();
    for effect in effects {
        let operation = &mut operations[effect.operation];
        let held = held.entry(operation.key.clone()).or_default();
        take_effect(operation, held, &effect, shape, &mut random);
    }
    operations.sort_by_key(|it| (it.called_us, it.id));
    for (id, operation) in (1..).zip(&mut operations) {
        operation.id = id;
    }
    operations
}

/// A call, with an answer that is filled in as it takes effect.
fn call(
    number: usize,
    session: u32,
    called_us: u64,
    shape: &HistoryShape,
    random: &mut StdRng,
) -> Operation {
    let foreign = session >= shape.sessions;
    let id = number as u64 + 1;
    let action = if !foreign && random.random_bool(0.5) {
        Action::Get
    } else if random.random_bool((2.0 * shape.deletes).min(1.0)) {
        Action::Delete
    } else {
        let expires = shape.ttl_ms_max > 0 && random.random_bool(0.7);
        let ttl_ms = expires.then(|| random.random_range(1..=shape.ttl_ms_max));
        Action::Put { value: id, ttl_ms }
    };
    let scan = action == Action::Get && random.random_bool(shape.scans);
    let key = random.random_range(0..shape.keys);
    let home = match shape.discipline {
        Discipline::LocalQuorum { home } => home,
        _ => 0,
    };
    let levels = match action {
        Action::Get => shape.discipline.read_levels(),
        _ => shape.discipline.write_levels(),
    };
    let long_us = if random.random_bool(0.05) { 2_000 } else { 80 };
    let outcome = match random.random_bool(shape.unknown) {
        true if random.random_bool(0.3) => {
            Outcome::NotApplied { reason: Reason::NotEnoughReplicas }
        }
        true => {
            Outcome::Unknown { reason: Some(Reason::WriteTimeout), answered: true, versions: None }
        }
        false if action == Action::Get => Outcome::Found { value: None, version: None },
        false => Outcome::Written { version: Version::ABSENT },
    };
    Operation {
        id,
        session,
        datacenter: home + u8::from(foreign),
        key: format!("{}-{key}", shape.discipline.prefix()).into(),
        discipline: shape.discipline,
        level: *levels.choose(random).unwrap_or(&ConsistencyLevel::Quorum),
        action,
        via: if scan { Via::Scan } else { Via::Single },
        request: (action != Action::Get).then_some(id),
        tries: 1,
        called_us,
        deadline_us: Some(called_us + 10_000),
        returned_us: Some(called_us + random.random_range(2..long_us)),
        outcome,
        purges: false,
    }
}

/// An operation at home takes effect before it is answered; if it is not, later or not at all.
fn effect_at_home(operation: &Operation, place: usize, random: &mut StdRng) -> Vec<Effect> {
    let returned_us = operation.returned_us.unwrap_or_default();
    let until_us = match operation.outcome {
        Outcome::NotApplied { .. } => return Vec::new(),
        Outcome::Unknown { .. } if random.random_bool(0.5) => return Vec::new(),
        Outcome::Unknown { .. } => returned_us + 500,
        _ => returned_us,
    };
    let at_us = random.random_range(operation.called_us + 1..until_us);
    vec![Effect { at_us, stamped_us: at_us, operation: place }]
}

/// A write made elsewhere has up to two stamps, each of which may arrive, at any time.
fn effects_elsewhere(
    operation: &mut Operation,
    place: usize,
    shape: &HistoryShape,
    random: &mut StdRng,
) -> Vec<Effect> {
    if matches!(operation.outcome, Outcome::NotApplied { .. }) {
        return Vec::new();
    }
    let (called_us, returned_us) = (operation.called_us, operation.returned_us.unwrap_or_default());
    let first_us = random.random_range(called_us + 1..returned_us);
    let mut stamps = vec![first_us];
    if random.random_bool(0.3) {
        stamps.push(random.random_range(first_us + 1..=returned_us));
    }
    let last_us = stamps.last().copied().unwrap_or(first_us);
    let told = random.random_bool(0.5);
    match &mut operation.outcome {
        Outcome::Written { version } => *version = stamp(operation.id, last_us, shape),
        Outcome::Unknown { versions, .. } if told => {
            *versions = Some(stamps.iter().map(|it| stamp(operation.id, *it, shape)).collect());
        }
        _ => {}
    }
    stamps.retain(|_| random.random_bool(0.8));
    let effect = |stamped_us| {
        let at_us = random.random_range(stamped_us..returned_us + 500);
        Effect { at_us, stamped_us, operation: place }
    };
    stamps.into_iter().map(effect).collect()
}

fn stamp(id: u64, at_us: u64, shape: &HistoryShape) -> Version {
    let ms = Hlc::from_ms(shape.epoch_ms + at_us / 1_000);
    Version { hlc: Hlc(ms.0 + at_us % 1_000), request: RequestId(id) }
}

fn take_effect(
    operation: &mut Operation,
    held: &mut Held,
    effect: &Effect,
    shape: &HistoryShape,
    random: &mut StdRng,
) {
    let version = stamp(operation.id, effect.stamped_us, shape);
    let late = version < held.version;
    let at_home = operation.session < shape.sessions;
    match operation.action {
        Action::Put { .. } | Action::Delete if late => {}
        Action::Put { value, ttl_ms } => {
            let expiry_ms = ttl_ms.map(|it| version.hlc.ms() + it);
            *held = Held { value: Some(value), version, expiry_ms, expired: false };
        }
        Action::Delete => *held = Held { version, ..Held::default() },
        Action::Get if matches!(operation.outcome, Outcome::Unknown { .. }) => {}
        Action::Get => {
            let early_ms = random.random_range(0..=2 * shape.clock_offset_max_ms);
            let now_ms = shape.epoch_ms + effect.at_us / 1_000 + shape.clock_offset_max_ms;
            let due = held.expiry_ms.is_some_and(|it| it <= now_ms.saturating_sub(early_ms));
            // What one read has found expired is gone for all that follow, where they have one order.
            let gone = held.expired && linearizable::is_promised(shape.discipline);
            held.expired |= due;
            let value = held.value.filter(|_| !due && !gone);
            let told = value.is_some() || operation.via != Via::Scan;
            let version = told.then_some(held.version);
            operation.outcome = Outcome::Found { value, version };
        }
    }
    match &mut operation.outcome {
        Outcome::Written { version: told } if told.is_absent() => *told = version,
        Outcome::Unknown { versions, .. }
            if operation.action != Action::Get && versions.is_none() && at_home =>
        {
            *versions = random.random_bool(0.5).then(|| vec![version]);
        }
        _ => {}
    }
}

/// Spoils a history in one way, and tells how. `None` if there was nothing to spoil.
pub fn spoil(history: &mut [Operation], seed: u64) -> Option<&'static str> {
    let mut random = StdRng::seed_from_u64(seed);
    let answered: Vec<_> = (0..history.len()).filter(|it| is_answered(&history[*it])).collect();
    let read = *answered.choose(&mut random)?;
    let other = *answered.choose(&mut random)?;
    match random.random_range(0..6) {
        0 => {
            history[read].outcome = history[other].outcome.clone();
            Some("a read returned what another one had read")
        }
        1 => {
            let (one, two) = (history[read].outcome.clone(), history[other].outcome.clone());
            (history[read].outcome, history[other].outcome) = (two, one);
            Some("two reads exchanged their answers")
        }
        2 => {
            history[read].outcome = Outcome::Found { value: None, version: Some(Version::ABSENT) };
            Some("a read found nothing")
        }
        3 => {
            let back_us = random.random_range(1..300);
            for time in [Some(&mut history[read].called_us), history[read].returned_us.as_mut()] {
                time.into_iter().for_each(|it| *it += back_us);
            }
            Some("a read came too late for what it returned")
        }
        4 => {
            let value = found(&history[read])?;
            let put = history.iter_mut().find(|it| puts(it, value))?;
            put.outcome = Outcome::NotApplied { reason: Reason::NotEnoughReplicas };
            Some("a put that was read was said to be refused")
        }
        _ => {
            let writes = (0..history.len()).filter(|it| is_acknowledged(&history[*it]));
            let write = *writes.collect::<Vec<_>>().choose(&mut random)?;
            let early_us = random.random_range(1..60);
            let write = &mut history[write];
            let latest_us = write.returned_us?.saturating_sub(early_us).max(write.called_us);
            write.returned_us = Some(latest_us);
            Some("a write was acknowledged before it took effect")
        }
    }
}

/// Takes away every version that a read has told: what is left are values.
pub fn forget_versions(history: &mut [Operation]) {
    for operation in history {
        match &mut operation.outcome {
            Outcome::Found { version, .. } => {
                *version = None;
                operation.via = Via::Scan;
            }
            Outcome::Unknown { versions, .. } => *versions = None,
            _ => {}
        }
    }
}

fn is_answered(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Found { .. })
}

fn is_acknowledged(operation: &Operation) -> bool {
    matches!(operation.outcome, Outcome::Written { .. })
}

fn found(operation: &Operation) -> Option<u64> {
    match operation.outcome {
        Outcome::Found { value, .. } => value,
        _ => None,
    }
}

fn puts(operation: &Operation, wanted: u64) -> bool {
    matches!(operation.action, Action::Put { value, .. } if value == wanted)
}
