//! What is searched: what has to hold, and each departure from it that has to be caught.

use std::fmt;

use model::Mutant;

use super::{
    ALL_RETURN, Bounds, DECIDED, LINEARIZABLE, Memory, Outcome, SECOND_STAMP, Start, WRITE_BACK,
    run,
};

/// One search, and what it has to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// How far to search.
    pub bounds: Bounds,
    /// The bug to search with.
    pub mutant: Option<Mutant>,
    /// The property that breaks; `None` if all hold.
    pub breaks: Option<&'static str>,
}

impl Case {
    /// Searches. Tells in a line what came of it; an error if that is not what it had to be, with
    /// the execution that breaks a property.
    pub fn check(&self, threads: usize) -> Result<String, String> {
        let outcome = run(self.bounds, self.mutant, threads);
        let told = format!("{self}: {outcome}");
        let (broken, steps) = outcome.broken.clone().unzip();
        if broken != self.breaks {
            let expected = self.breaks.unwrap_or("nothing");
            let steps = steps.into_iter().flatten().map(|it| format!("\n  {it}"));
            return Err(format!("{told}; {expected} had to break{}", steps.collect::<String>()));
        }
        match self.missed(&outcome) {
            Some(missed) if broken.is_none() => Err(format!("{told}; but never: {missed}")),
            _ => Ok(told),
        }
    }

    /// What a search of these bounds has to have seen, and has not.
    fn missed(&self, outcome: &Outcome) -> Option<&'static str> {
        let Bounds { puts, gets, query_first, .. } = self.bounds;
        let expected =
            [(ALL_RETURN, true), (SECOND_STAMP, puts > 1 && !query_first), (WRITE_BACK, gets > 0)];
        let mut missed = expected.iter().filter(|it| it.1 && !outcome.reached.contains(&it.0));
        missed.next().map(|it| it.0)
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.mutant.map_or("as written", Mutant::as_str), self.bounds)
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { puts, gets, start, memory, .. } = self;
        write!(f, "{puts} puts, {gets} gets, memory {memory:?}")?;
        if *start != Start::Nothing {
            write!(f, ", from {start:?}")?;
        }
        let also = [
            ("query first", self.query_first),
            ("ties", self.ties),
            ("speculation", self.speculation),
            ("failures", self.failures),
            ("delays", self.delays),
            (DECIDED, self.decided),
        ];
        also.iter().filter(|it| it.1).try_for_each(|it| write!(f, ", {}", it.0))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.broken {
            None => write!(f, "holds")?,
            Some((broken, steps)) => write!(f, "not {broken} after {} steps", steps.len())?,
        }
        write!(f, ", {} states, {} deep", self.states, self.depth)
    }
}

const fn holds(bounds: Bounds) -> Case {
    Case { bounds, mutant: None, breaks: None }
}

const fn fails(mutant: Mutant, breaks: &'static str, bounds: Bounds) -> Case {
    Case { bounds, mutant: Some(mutant), breaks: Some(breaks) }
}

/// What has to hold, in bounds of seconds.
pub const SMALL: &[Case] = &[
    holds(Bounds::of(2, 2)),
    holds(Bounds { decided: true, ..Bounds::of(2, 1) }),
    holds(Bounds { decided: true, query_first: true, ..Bounds::of(2, 1) }),
    holds(Bounds { memory: Memory::Previous, ties: true, ..Bounds::of(2, 1) }),
    holds(Bounds { memory: Memory::Lossy, ..Bounds::of(2, 1) }),
    holds(Bounds { ties: true, ..Bounds::of(2, 1) }),
    holds(Bounds { ties: true, ..FROM_STALE }),
    holds(Bounds { speculation: true, ..Bounds::of(2, 1) }),
    holds(Bounds { failures: true, ..Bounds::of(2, 1) }),
    holds(Bounds { speculation: true, failures: true, ..Bounds::of(1, 2) }),
    holds(Bounds { delays: true, ..Bounds::of(2, 0) }),
    holds(Bounds { delays: true, ..Bounds::of(1, 2) }),
];

/// What has to hold, in bounds of minutes and gigabytes.
pub const LARGE: &[Case] = &[
    holds(Bounds { memory: Memory::Previous, ..Bounds::of(2, 2) }),
    holds(Bounds { query_first: true, ..Bounds::of(2, 2) }),
    holds(Bounds { ties: true, ..Bounds::of(2, 2) }),
    holds(Bounds { memory: Memory::Lossy, ..Bounds::of(2, 2) }),
    holds(Bounds { speculation: true, failures: true, ..Bounds::of(2, 1) }),
    holds(Bounds { delays: true, ..Bounds::of(2, 1) }),
    holds(Bounds { decided: true, ..Bounds::of(3, 0) }),
    holds(Bounds { decided: true, query_first: true, ..Bounds::of(3, 0) }),
];

/// Every rule switched off, one at a time: what is promised breaks.
pub const DEPARTURES: &[Case] = &[
    fails(Mutant::HalfIsAQuorum, LINEARIZABLE, Bounds::of(1, 1)),
    fails(Mutant::NoConfirmation, LINEARIZABLE, Bounds::of(1, 2)),
    fails(Mutant::RefusalCountsAsAnswer, LINEARIZABLE, WITH_FAILURES),
    fails(Mutant::WriteBackFirstAnswer, LINEARIZABLE, Bounds::of(2, 1)),
    fails(Mutant::SupersededConfirms, LINEARIZABLE, FROM_STALE),
    fails(Mutant::ReadTiesReversed, LINEARIZABLE, Bounds { ties: true, ..Bounds::of(2, 1) }),
    fails(Mutant::CountOverStamps, LINEARIZABLE, Bounds::of(2, 1)),
    fails(Mutant::RestampAnywhere, LINEARIZABLE, Bounds::of(2, 1)),
    fails(Mutant::RestampOnSuperseded, LINEARIZABLE, FROM_READ),
    fails(Mutant::NeverAlways, LINEARIZABLE, FROM_READ),
    fails(Mutant::PreviousLost, LINEARIZABLE, FROM_READ),
    fails(Mutant::NeverAtPrevious, LINEARIZABLE, Bounds { memory: Memory::Previous, ..FROM_READ }),
    fails(Mutant::HeldByClock, LINEARIZABLE, Bounds { ties: true, ..FROM_STALE }),
    fails(Mutant::HeldUnsaid, DECIDED, Bounds { decided: true, ..Bounds::of(2, 0) }),
    fails(Mutant::DeadNotReplaced, DECIDED, Bounds { decided: true, ..Bounds::of(2, 0) }),
    fails(Mutant::EndlessRestamp, DECIDED, Bounds { decided: true, ..Bounds::of(3, 0) }),
    // Why there is a memory of recent versions (CX2): without it a race may stay undecided.
    Case {
        bounds: Bounds { decided: true, memory: Memory::Previous, ..Bounds::of(2, 0) },
        mutant: None,
        breaks: Some(DECIDED),
    },
];

const FROM_READ: Bounds = Bounds { start: Start::Read, ..Bounds::of(2, 2) };
const FROM_STALE: Bounds = Bounds { start: Start::Stale, ..Bounds::of(2, 2) };
const WITH_FAILURES: Bounds = Bounds { failures: true, ..Bounds::of(1, 1) };
