//! Zones: what a value's own operations force upon all others, in O(n log n).
//!
//! If a value is surely held from one time to another, no other value can be held within. With one
//! write for each state that decides, unless a read of absence could have seen several deletions.
//! Source: Gibbons and Korach, "Testing Shared Memories" (1997).

use super::Verdict;
use crate::{
    checker::{
        register::{ABSENT, Access, PENDING, Resolved, Step},
        tell,
    },
    history::Operation,
};

/// A state's first return and last call. If the return comes first, the state is held in between;
/// otherwise all its steps overlap, and one instant between the two is enough for them.
#[derive(Clone, Copy)]
struct Zone<'a> {
    ret: u64,
    call: u64,
    /// When it may read as absent.
    absent_from: u64,
    /// `None` for the absence at the beginning.
    operation: Option<&'a Operation>,
}

impl<'a> Zone<'a> {
    fn of(step: &Step<'a>, absent_from: u64) -> Self {
        Self { ret: step.ret, call: step.call, absent_from, operation: Some(step.operation) }
    }

    fn extend(&mut self, step: &Step<'_>) {
        self.ret = self.ret.min(step.ret);
        self.call = self.call.max(step.call);
    }

    fn tell(&self) -> String {
        self.operation.map_or("the beginning".to_owned(), tell)
    }
}

/// The verdict, if zones give one. Panics if a read precedes its write's call: that is seen before.
pub(super) fn judge(resolved: &Resolved<'_>) -> Option<Verdict> {
    let mut states: Vec<Option<Zone<'_>>> = vec![None; resolved.absent_from.len()];
    let mut alone = Vec::new();
    let mut absences = Vec::new();
    for step in &resolved.steps {
        match step.access {
            Access::Write(ABSENT) => alone.push(Zone::of(step, PENDING)),
            Access::Write(state) => {
                states[state] = Some(Zone::of(step, resolved.absent_from[state]));
            }
            Access::Read(ABSENT) => absences.push(step),
            Access::Read(_) => {}
        }
    }
    for step in &resolved.steps {
        if let Access::Read(state) = step.access
            && let Some(zone) = &mut states[state]
        {
            zone.extend(step);
        }
    }
    let expires = states.iter().flatten().any(|it| it.absent_from != PENDING);
    let one_absence = alone.is_empty() && resolved.erasers.is_empty() && !expires;
    if let Some(first) = absences.first().filter(|_| one_absence) {
        let mut beginning = Zone { ret: 0, operation: None, ..Zone::of(first, PENDING) };
        absences.iter().for_each(|it| beginning.extend(it));
        beginning.ret = 0;
        alone.push(beginning);
    } else {
        alone.extend(absences.iter().map(|it| Zone::of(it, PENDING)));
    }
    let violated = clash(states.into_iter().flatten().chain(alone));
    let decided = absences.is_empty() || one_absence;
    violated.or(decided.then_some(Verdict::Linearizable))
}

/// Two zones of which one has to hold its state within the other's.
fn clash<'a>(zones: impl Iterator<Item = Zone<'a>>) -> Option<Verdict> {
    let (mut held, short): (Vec<_>, Vec<_>) = zones.partition(|it| it.ret < it.call);
    held.sort_by_key(|it| it.ret);
    let overlap = held.iter().zip(held.iter().skip(1)).find(|(one, next)| next.ret < one.call);
    if let Some((one, next)) = overlap {
        return Some(violated(one, next));
    }
    for inner in short {
        let at = held.partition_point(|it| it.ret < inner.call);
        let Some(outer) = at.checked_sub(1).map(|it| &held[it]) else { continue };
        let is_absence = inner.operation.is_some_and(|it| !it.is_write());
        let may_be_expired = is_absence && outer.absent_from <= inner.ret;
        if inner.ret < outer.call && !may_be_expired {
            return Some(violated(outer, &inner));
        }
    }
    None
}

fn violated(one: &Zone<'_>, other: &Zone<'_>) -> Verdict {
    let held = |it: &Zone<'_>| match it.ret < it.call {
        true => {
            format!("{} is in force from {} to {} us", it.tell(), before(it.ret), before(it.call))
        }
        false => it.tell(),
    };
    Verdict::Violated(format!("{}, and meanwhile {}", held(one), held(other)))
}

/// Steps count from 1.
fn before(at: u64) -> u64 {
    at.saturating_sub(1)
}
