//! The order of versions as a proof: if it fits real time, the history is linearizable.
//!
//! Each write stands at its version, each read right behind the write that it has seen. That order is
//! one of a register by construction; it fits real time if no step ends before one in front of it
//! begins. Steps without a version are few: deletions of unknown outcome, and absences that a scan
//! found.

use std::collections::BTreeSet;

use model::Version;

use crate::checker::register::{ABSENT, Access, PENDING, Resolved};

/// A step at its place: writes before reads of the same version, then by call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Placed {
    version: Version,
    is_read: bool,
    call: u64,
    ret: u64,
}

/// A place at which the register is absent, for reads that return at `absent_from` or later.
struct Gap {
    version: Version,
    absent_from: u64,
    /// The first return of all that stands behind it.
    next_ret: u64,
}

/// True if the order of versions is a linearization. False proves nothing.
pub(super) fn proves(resolved: &Resolved<'_>) -> bool {
    let Some((mut placed, mut gaps, unplaced)) = place(resolved) else { return false };
    placed.sort_unstable();
    let writes = placed.iter().filter(|it| !it.is_read);
    let twice = writes.clone().zip(writes.skip(1)).any(|(one, next)| one.version == next.version);
    if twice || !fits(&placed) {
        return false;
    }
    if unplaced.is_empty() {
        return true;
    }
    measure(&mut gaps, &placed);
    for (call, ret) in unplaced {
        // The first gap that is not over: a later one could only lie behind more steps.
        let from = gaps.partition_point(|it| it.next_ret < call);
        let Some(gap) = gaps[from..].iter().find(|it| it.absent_from <= ret) else { return false };
        placed.push(Placed { version: gap.version, is_read: true, call, ret });
    }
    placed.sort_unstable();
    fits(&placed)
}

type Parts = (Vec<Placed>, Vec<Gap>, Vec<(u64, u64)>);

/// Places what has a version; returns the gaps, and the reads of absence that told none.
fn place(resolved: &Resolved<'_>) -> Option<Parts> {
    let mut versions = vec![None; resolved.absent_from.len()];
    let mut placed = Vec::with_capacity(resolved.steps.len());
    let mut gaps = vec![gap(Version::ABSENT, 0)];
    let mut deleted = BTreeSet::from([Version::ABSENT]);
    for step in &resolved.steps {
        let Access::Write(state) = step.access else { continue };
        if step.ret == PENDING && step.version.is_none() {
            // It may come behind everything.
            continue;
        }
        let version = step.version?;
        placed.push(Placed { version, is_read: false, call: step.call, ret: step.ret });
        versions[state] = Some(version);
        match resolved.absent_from[state] {
            PENDING => {}
            absent_from => gaps.push(gap(version, absent_from)),
        }
        if state == ABSENT {
            deleted.insert(version);
        }
    }
    let mut unplaced = Vec::new();
    let mut erased = BTreeSet::new();
    for step in &resolved.steps {
        let version = match step.access {
            Access::Write(_) => continue,
            Access::Read(ABSENT) => match step.version {
                None => {
                    unplaced.push((step.call, step.ret));
                    continue;
                }
                Some(version) => {
                    if !deleted.contains(&version) {
                        erased.insert(version);
                    }
                    version
                }
            },
            Access::Read(state) => versions[state]?,
        };
        placed.push(Placed { version, is_read: true, call: step.call, ret: step.ret });
    }
    if erased.len() > resolved.erasers.len() {
        return None;
    }
    // Pending deletions are alike, so that those called first may be the ones that were seen first.
    for (&version, &call) in erased.iter().zip(&resolved.erasers) {
        placed.push(Placed { version, is_read: false, call, ret: PENDING });
        gaps.push(gap(version, 0));
    }
    gaps.sort_by_key(|it| it.version);
    Some((placed, gaps, unplaced))
}

fn gap(version: Version, absent_from: u64) -> Gap {
    Gap { version, absent_from, next_ret: PENDING }
}

/// Tells each gap the first return behind it.
fn measure(gaps: &mut [Gap], placed: &[Placed]) {
    let mut behind = placed.iter().rev().peekable();
    let mut next_ret = PENDING;
    for gap in gaps.iter_mut().rev() {
        while let Some(step) = behind.next_if(|it| it.version > gap.version) {
            next_ret = next_ret.min(step.ret);
        }
        gap.next_ret = next_ret;
    }
}

/// True if no step ends before one in front of it begins.
fn fits(placed: &[Placed]) -> bool {
    let mut last_call = 0;
    placed.iter().all(|it| {
        last_call = last_call.max(it.call);
        it.ret >= last_call
    })
}
