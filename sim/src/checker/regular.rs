//! Regular registers: a read returns the last write acknowledged before it, or one that was under
//! way meanwhile, or one that may still take effect; and writes keep the order of real time.

use super::{
    Context, Violation,
    key::{self, Event, KeyHistory, Newest},
    register::{ABSENT, Access, PENDING, Register, Step},
    tell,
};
use crate::discipline::Discipline;

const NAME: &str = "regular";

pub(super) fn check(key: &KeyHistory<'_>, context: &Context) -> Vec<Violation> {
    if !matches!(key.discipline, Discipline::EachThenLocal | Discipline::AllThenOne) {
        return Vec::new();
    }
    let found = irregular(&Register::of(key, context)).into_iter().chain(disordered(key));
    found.map(|what| Violation::broken(NAME, Some(key.name), what)).collect()
}

/// The first read that returns what was overwritten before it began, or what nobody had written.
pub(super) fn irregular(register: &Register<'_>) -> Option<String> {
    let intervals = Intervals::of(register);
    register.steps.iter().find_map(|read| intervals.judge(read))
}

/// A write that was acknowledged before another was called, and is not below it.
fn disordered(key: &KeyHistory<'_>) -> Option<String> {
    let mut newest = Newest::default();
    for event in key.events() {
        match event {
            Event::Returned(operation) if key.is_own(operation) => {
                newest.raise(operation, key::acknowledged(operation).unwrap_or_default());
            }
            Event::Called(operation) if key.is_own(operation) => {
                let (Some((floor, earlier)), Some(version)) =
                    (newest.0, key::acknowledged(operation))
                else {
                    continue;
                };
                if version <= floor {
                    return Some(format!("{} falls behind {}", tell(operation), tell(earlier)));
                }
            }
            _ => {}
        }
    }
    None
}

/// The writes of a register, as its reads are judged against them.
struct Intervals<'a, 'r> {
    register: &'r Register<'a>,
    /// The write of each state but absence.
    writers: Vec<Option<&'r Step<'a>>>,
    /// Writes that may leave the register absent.
    erasing: Vec<&'r Step<'a>>,
    /// Complete writes by return, each with the latest called of those up to it.
    complete: Vec<(u64, &'r Step<'a>)>,
}

impl<'a, 'r> Intervals<'a, 'r> {
    fn of(register: &'r Register<'a>) -> Self {
        let mut writers = vec![None; register.absent_from.len()];
        let mut erasing = Vec::new();
        let mut complete = Vec::new();
        for step in &register.steps {
            let Access::Write(state) = step.access else { continue };
            if state != ABSENT {
                writers[state] = Some(step);
            }
            if register.absent_from[state] != PENDING {
                erasing.push(step);
            }
            if step.ret != PENDING {
                complete.push((step.ret, step));
            }
        }
        complete.sort_by_key(|(ret, step)| (*ret, step.call));
        for at in 1..complete.len() {
            if complete[at].1.call < complete[at - 1].1.call {
                complete[at].1 = complete[at - 1].1;
            }
        }
        Self { register, writers, erasing, complete }
    }

    fn judge(&self, read: &Step<'_>) -> Option<String> {
        let Access::Read(state) = read.access else { return None };
        let before = self.complete.partition_point(|(ret, _)| *ret < read.call);
        let last = before.checked_sub(1).map(|it| self.complete[it].1);
        let read_told = tell(read.operation);
        if state == ABSENT {
            let last = last?;
            let explained = self.erasing.iter().any(|it| self.may_show_absent(it, read, last));
            let last = tell(last.operation);
            return (!explained).then(|| format!("{read_told} finds nothing after {last}"));
        }
        let Some(write) = self.writers[state] else {
            return Some(format!("{read_told} reads what nobody wrote"));
        };
        if write.call > read.ret {
            return Some(format!("{read_told} comes before {}", tell(write.operation)));
        }
        let last = last.filter(|it| it.call > write.ret)?;
        let (write, last) = (tell(write.operation), tell(last.operation));
        Some(format!("{read_told} reads {write}, overwritten by {last}"))
    }

    /// True if a read may have found what `write` left, although `last` was complete.
    fn may_show_absent(&self, write: &Step<'_>, read: &Step<'_>, last: &Step<'_>) -> bool {
        let Access::Write(state) = write.access else { return false };
        write.call <= read.ret
            && write.ret >= last.call
            && self.register.absent_from[state] <= read.ret
    }
}
