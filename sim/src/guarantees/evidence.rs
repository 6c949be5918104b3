//! Who catches which deliberate bug for which promise. The page of guarantees does not claim it, it
//! is run: every line of `evidence.txt` names a seed or a scenario that a test plays, and
//! [`hunt`] looks for new ones where runs have changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use model::Mutant;

use super::promise::{PROMISES, Promise};
use crate::{
    checker::Violation,
    run::{RunSettings, run},
    scenario::{self, Scenario, tell},
};

/// What was found last.
const WRITTEN: &str = include_str!("evidence.txt");

/// The first lines of `evidence.txt`.
const HEAD: &str = "\
# What shows the mutants of each promise: the promise, the mutant, the judge who catches it, and the
# seed or scenario. Written by `make evidence`; a test plays every line.
";

/// A mutant of a promise, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The promise's name.
    pub promise: &'static str,
    /// The mutant.
    pub mutant: Mutant,
    /// Who catches it.
    pub judge: String,
    /// Where.
    pub shown: ShownBy,
}

/// A run in which a mutant is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShownBy {
    /// The random run of a seed.
    Seed(u64),
    /// A scenario.
    Scenario(&'static str),
}

impl fmt::Display for ShownBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(seed) => write!(f, "seed {seed}"),
            Self::Scenario(name) => write!(f, "scenario {name}"),
        }
    }
}

impl ShownBy {
    fn violations(self, mutant: Option<Mutant>) -> Vec<Violation> {
        match self {
            Self::Seed(seed) => {
                run(&RunSettings { mutant, ..RunSettings::of_seed(seed) }).violations
            }
            Self::Scenario(name) => {
                scenario::find(name).map_or(Vec::new(), |it| tell(&it, mutant).violations)
            }
        }
    }

    /// Which of a promise's judges catch a mutant here, the most telling first. A scenario that is an
    /// exact execution judges by itself; what it has to say then, it says in `shows`.
    fn judges(
        self,
        promise: &Promise,
        mutant: Mutant,
        violations: &[Violation],
    ) -> Vec<&'static str> {
        if let Self::Scenario(name) = self {
            let scenario = scenario::find(name);
            let shown =
                scenario.and_then(|it| it.shows.iter().find(|it| it.mutant == mutant).copied());
            return shown
                .and_then(|it| it.find(violations))
                .map(|it| it.checker)
                .into_iter()
                .collect();
        }
        let catches = |judge: &&'static str| {
            violations.iter().any(|it| it.checker == *judge && promise.is_broken_by(it))
        };
        promise.judges.iter().copied().filter(catches).collect()
    }
}

impl Evidence {
    fn parse(line: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("{line:?} names {what}");
        let [promise, mutant, judge, kind, place] = line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            return Err(wrong("too much or too little"));
        };
        let promise = PROMISES.iter().find(|it| it.name == promise);
        let mutant = Mutant::ALL.iter().find(|it| it.as_str() == mutant);
        let shown = match kind {
            "seed" => place.parse().ok().map(ShownBy::Seed),
            "scenario" => scenario::find(place).map(|it| ShownBy::Scenario(it.name)),
            _ => None,
        };
        Ok(Self {
            promise: promise.ok_or_else(|| wrong("an unknown promise"))?.name,
            mutant: *mutant.ok_or_else(|| wrong("an unknown mutant"))?,
            judge: judge.to_owned(),
            shown: shown.ok_or_else(|| wrong("no seed and no scenario"))?,
        })
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { promise, mutant, judge, shown } = self;
        write!(f, "{promise} {} {judge} {shown}", mutant.as_str())
    }
}

/// The evidence as it is written, with the lines that cannot be read.
fn written() -> (Vec<Evidence>, Vec<String>) {
    let lines = WRITTEN.lines().filter(|it| !it.is_empty() && !it.starts_with('#'));
    let (read, unreadable): (Vec<_>, Vec<_>) = lines.map(Evidence::parse).partition(Result::is_ok);
    (read.into_iter().flatten().collect(), unreadable.into_iter().filter_map(Result::err).collect())
}

/// What is written to show a mutant of a promise.
pub(super) fn of(promise: &str, mutant: Mutant) -> Option<Evidence> {
    written().0.into_iter().find(|it| it.promise == promise && it.mutant == mutant)
}

/// Every mutant of every promise.
fn pairs() -> Vec<(&'static Promise, Mutant)> {
    PROMISES
        .iter()
        .flat_map(|promise| promise.mutants.iter().map(move |it| (promise, *it)))
        .collect()
}

/// Plays all evidence. What no longer shows what it is written to show is told; nothing else is.
pub fn stale(threads: usize) -> Vec<String> {
    let (written, mut stale) = written();
    for (promise, mutant) in pairs() {
        if of(promise.name, mutant).is_none() {
            stale.push(format!("{} {}: nothing shows it", promise.name, mutant.as_str()));
        }
    }
    let mut plays = BTreeMap::<(Mutant, ShownBy), Vec<Evidence>>::new();
    for it in written {
        plays.entry((it.mutant, it.shown)).or_default().push(it);
    }
    let plays: Vec<_> = plays.into_iter().collect();
    let judged = each(&plays, threads, |((mutant, shown), claims)| {
        let violations = shown.violations(Some(*mutant));
        let wrong = claims.iter().filter_map(|it| {
            let promise = PROMISES.iter().find(|promise| promise.name == it.promise)?;
            if !promise.mutants.contains(mutant) {
                return Some(format!("{it}: the promise does not name this mutant"));
            }
            let judges = shown.judges(promise, *mutant, &violations);
            (!judges.contains(&it.judge.as_str())).then(|| {
                let first: Vec<_> = violations.iter().take(3).map(ToString::to_string).collect();
                format!("{it}: now these judges catch it there: {judges:?}; {first:#?}")
            })
        });
        wrong.collect::<Vec<_>>()
    });
    stale.extend(judged.into_iter().flatten());
    stale
}

/// Writes `evidence.txt` anew: keeps what still shows its mutant, and looks for the rest in so many
/// seeds, then in scenarios. `tell` hears of each mutant that is done. The second list is of what was
/// not found.
pub fn hunt(seeds_max: u64, threads: usize, tell: impl Fn(&str) + Sync) -> (String, Vec<String>) {
    let mutants: Vec<Mutant> =
        Mutant::ALL.iter().copied().filter(|it| pairs().iter().any(|pair| pair.1 == *it)).collect();
    let found = each(&mutants, threads, |mutant| {
        let found = hunt_mutant(*mutant, seeds_max);
        let told: Vec<_> = found.iter().map(ToString::to_string).collect();
        tell(&format!("{}: {}", mutant.as_str(), told.join("; ")));
        found
    });
    let found: Vec<Evidence> = found.into_iter().flatten().collect();
    let (mut page, mut missing) = (HEAD.to_owned(), Vec::new());
    for (promise, mutant) in pairs() {
        match found.iter().find(|it| it.promise == promise.name && it.mutant == mutant) {
            Some(it) => page.push_str(&format!("{it}\n")),
            None => missing.push(format!("{} {}", promise.name, mutant.as_str())),
        }
    }
    (page, missing)
}

/// Evidence of one mutant for all promises that name it: where the judge who stands first in the
/// promise's list catches it, or else another one.
fn hunt_mutant(mutant: Mutant, seeds_max: u64) -> Vec<Evidence> {
    let promises: Vec<&Promise> =
        PROMISES.iter().filter(|it| it.mutants.contains(&mutant)).collect();
    let mut best = BTreeMap::<&str, (usize, Evidence)>::new();
    let kept: BTreeSet<ShownBy> =
        promises.iter().filter_map(|it| Some(of(it.name, mutant)?.shown)).collect();
    let mut runs_since = 0;
    for shown in kept.into_iter().chain((1..=seeds_max).map(ShownBy::Seed)) {
        let all = |place_max| {
            promises.iter().all(|it| best.get(it.name).is_some_and(|it| it.0 <= place_max))
        };
        runs_since += u64::from(all(usize::MAX));
        if all(0) || runs_since > BETTER_RUNS {
            break;
        }
        improve(&mut best, &promises, mutant, shown);
    }
    let shows = |it: &Scenario| it.shows.iter().any(|it| it.mutant == mutant);
    for it in scenario::all().into_iter().filter(shows) {
        let lacking = promises.iter().copied().filter(|it| !best.contains_key(it.name));
        let lacking: Vec<_> = lacking.collect();
        improve(&mut best, &lacking, mutant, ShownBy::Scenario(it.name));
    }
    best.into_values().map(|it| it.1).collect()
}

/// Notes for each promise whether a run shows the mutant, and by a judge who stands further to the
/// front of its list than what was found before.
fn improve(
    best: &mut BTreeMap<&'static str, (usize, Evidence)>,
    promises: &[&'static Promise],
    mutant: Mutant,
    shown: ShownBy,
) {
    if promises.is_empty() {
        return;
    }
    let violations = shown.violations(Some(mutant));
    let mut better = Vec::new();
    for promise in promises {
        let Some(judge) = shown.judges(promise, mutant, &violations).first().copied() else {
            continue;
        };
        let place = promise.judges.iter().position(|it| *it == judge).unwrap_or(usize::MAX);
        if best.get(promise.name).is_none_or(|it| place < it.0) {
            let judge = judge.to_owned();
            better.push((place, Evidence { promise: promise.name, mutant, judge, shown }));
        }
    }
    // What ends badly without the bug too says nothing about the bug.
    if !better.is_empty() && shown.violations(None).is_empty() {
        best.extend(better.into_iter().map(|it| (it.1.promise, it)));
    }
}

/// How many runs are made in the hope of a judge further to the front, once all promises have some.
const BETTER_RUNS: u64 = 10;

/// Does something with each of many, some at a time. The results are in order.
fn each<T: Sync, R: Send>(all: &[T], threads: usize, what: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let Some(it) = all.get(place) else { break };
                    let result = what(it);
                    results.lock().unwrap_or_else(PoisonError::into_inner).insert(place, result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
}
