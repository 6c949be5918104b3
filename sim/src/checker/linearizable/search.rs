//! The search for a linearization, which tries the possible first steps and remembers what has failed.
//!
//! Sources: Wing and Gong (1993), Lowe (2017), who added the memory; the list of calls and returns is
//! that of Horn and Kroening (2015) and of Porcupine. Pending deletions are taken when a read needs
//! one, in the order of their calls: they are alike and have no end, so that nothing is lost.

use std::collections::BTreeSet;

use super::Verdict;
use crate::checker::{
    register::{ABSENT, Access, PENDING, Resolved, State},
    tell,
};

/// Searches for an order, in at most so many states.
pub(super) fn judge(resolved: &Resolved<'_>, states_max: usize) -> Verdict {
    Search::new(resolved).run(states_max)
}

/// What the register holds, and how many pending deletions were used.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    state: State,
    erased: usize,
}

/// A call or a return.
#[derive(Clone, Copy)]
struct Entry {
    at: u64,
    is_return: bool,
    step: usize,
}

/// Which steps have been taken: all before `first`, and those of `words` from there.
type Taken = (usize, Vec<u64>);

struct Search<'a, 'r> {
    resolved: &'r Resolved<'a>,
    /// By time, calls before returns.
    entries: Vec<Entry>,
    /// The list of entries of steps not taken. Place 0 is its head, place n + 1 is entry n.
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Where each step returns.
    return_places: Vec<usize>,
    taken: Vec<u64>,
    held: Held,
    visited: BTreeSet<(Taken, Held)>,
    /// The calls taken, each with what the register held before.
    path: Vec<(usize, Held)>,
    /// The longest path, and the step that none was found to take.
    deepest: (usize, usize),
}

impl<'a, 'r> Search<'a, 'r> {
    fn new(resolved: &'r Resolved<'a>) -> Self {
        let steps = &resolved.steps;
        let mut entries = Vec::with_capacity(2 * steps.len());
        for (step, it) in steps.iter().enumerate() {
            entries.push(Entry { at: it.call, is_return: false, step });
            entries.push(Entry { at: it.ret, is_return: true, step });
        }
        entries.sort_by_key(|it| (it.at, it.is_return));
        let mut return_places = vec![0; steps.len()];
        for (at, entry) in entries.iter().enumerate().filter(|(_, it)| it.is_return) {
            return_places[entry.step] = at + 1;
        }
        let places = entries.len() + 1;
        Self {
            resolved,
            entries,
            next: (1..=places).map(|it| it % places).collect(),
            previous: (0..places).map(|it| (it + places - 1) % places).collect(),
            return_places,
            taken: vec![0; steps.len().div_ceil(64)],
            held: Held { state: ABSENT, erased: 0 },
            visited: BTreeSet::new(),
            path: Vec::new(),
            deepest: (0, 0),
        }
    }

    fn run(&mut self, states_max: usize) -> Verdict {
        let mut place = self.next[0];
        // What has no end may come behind everything.
        while self.next[0] != 0 && self.first_return(self.next[0]) != PENDING {
            if self.visited.len() > states_max {
                return Verdict::Undecided(states_max);
            }
            let entry = self.entries[place - 1];
            if !entry.is_return {
                place = if self.take(place) { self.next[0] } else { self.next[place] };
                continue;
            }
            if self.path.len() >= self.deepest.0 {
                self.deepest = (self.path.len(), entry.step);
            }
            let Some((call_place, held)) = self.path.pop() else { return self.violated() };
            self.give_back(call_place, held);
            place = self.next[call_place];
        }
        Verdict::Linearizable
    }

    /// Takes the step called at a place, if the register allows it and this was not tried before.
    fn take(&mut self, place: usize) -> bool {
        let step = self.entries[place - 1].step;
        let Some(held) = self.after(step, place) else { return false };
        self.taken[step / 64] |= 1 << (step % 64);
        if !self.visited.insert((self.taken(), held)) {
            self.taken[step / 64] &= !(1 << (step % 64));
            return false;
        }
        self.path.push((place, self.held));
        self.held = held;
        for place in [place, self.return_places[step]] {
            let (previous, next) = (self.previous[place], self.next[place]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
        true
    }

    fn give_back(&mut self, call_place: usize, held: Held) {
        let step = self.entries[call_place - 1].step;
        self.taken[step / 64] &= !(1 << (step % 64));
        self.held = held;
        for place in [self.return_places[step], call_place] {
            let (previous, next) = (self.previous[place], self.next[place]);
            self.next[previous] = place;
            self.previous[next] = place;
        }
    }

    /// What the register holds after a step, if the step is possible now.
    fn after(&self, step: usize, place: usize) -> Option<Held> {
        let held = self.held;
        let it = &self.resolved.steps[step];
        match it.access {
            Access::Write(state) => Some(Held { state, ..held }),
            Access::Read(ABSENT) if self.resolved.absent_from[held.state] <= it.ret => Some(held),
            Access::Read(ABSENT) => {
                let call = self.resolved.erasers.get(held.erased)?;
                let erased = held.erased + 1;
                (*call <= self.first_return(place)).then_some(Held { state: ABSENT, erased })
            }
            Access::Read(state) => (state == held.state).then_some(held),
        }
    }

    /// The first return of all steps not taken. Whatever is taken now happens before it.
    fn first_return(&self, mut place: usize) -> u64 {
        while !self.entries[place - 1].is_return {
            place = self.next[place];
        }
        self.entries[place - 1].at
    }

    fn taken(&self) -> Taken {
        let first = self.taken.iter().take_while(|it| **it == u64::MAX).count();
        let end = self.taken.iter().rposition(|it| *it != 0).map_or(first, |it| it + 1);
        (first, self.taken[first..end.max(first)].to_vec())
    }

    fn violated(&self) -> Verdict {
        let (taken, step) = self.deepest;
        let step = tell(self.resolved.steps[step].operation);
        Verdict::Violated(format!("after {taken} operations no order leaves a place for {step}"))
    }
}
