//! Runs every deliberate bug until it is caught: what survives is a hole in the simulator.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use model::Mutant;

use crate::{
    protocol_check::DEPARTURES,
    run::{RunSettings, run},
    scenario::{self, tell},
};

/// How long to look for each.
#[derive(Clone, Debug)]
pub struct HuntSettings {
    /// The mutants.
    pub mutants: Vec<Mutant>,
    /// How often each is hunted, with other seeds each time.
    pub hunts: u64,
    /// A hunt is given up after so many seeds.
    pub seeds_max: u64,
    /// Runs at a time.
    pub threads: usize,
}

/// What became of one mutant.
#[derive(Clone, Debug, Default)]
pub struct Hunted {
    /// What came of each hunt; `None` for one that was given up.
    pub hunts: Vec<Option<Catch>>,
}

/// A mutant that was caught.
#[derive(Clone, Debug)]
pub struct Catch {
    /// Who showed it.
    pub by: CatchBy,
    /// The judge, and what it said.
    pub what: String,
    /// The judge.
    pub judge: &'static str,
}

/// What has shown a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CatchBy {
    /// A random run.
    Seed {
        /// Its seed.
        seed: u64,
        /// How many runs it took, this one among them.
        runs: u64,
    },
    /// A failure that has a name.
    Scenario(&'static str),
    /// The exhaustive search.
    Search,
}

impl Hunted {
    /// The runs that a hunt needed on average, of those that a random run ended.
    pub fn mean_runs(&self) -> Option<f64> {
        let runs = |it: &Catch| match it.by {
            CatchBy::Seed { runs, .. } => Some(runs as f64),
            CatchBy::Scenario(_) | CatchBy::Search => None,
        };
        let runs: Vec<f64> = self.hunts.iter().flatten().filter_map(runs).collect();
        (!runs.is_empty()).then(|| runs.iter().sum::<f64>() / runs.len() as f64)
    }

    /// True if every hunt ended with a catch.
    pub fn is_caught(&self) -> bool {
        !self.hunts.is_empty() && self.hunts.iter().all(Option::is_some)
    }
}

impl Catch {
    /// The command that shows it again.
    pub fn replay(&self, mutant: Mutant) -> String {
        let name = mutant.as_str();
        match self.by {
            CatchBy::Seed { seed, .. } => format!("quorate-sim run --seed {seed} --mutant {name}"),
            CatchBy::Scenario(it) => format!("quorate-sim scenario {it} --mutant {name}"),
            CatchBy::Search => "quorate-sim check --departures".to_owned(),
        }
    }
}

/// Hunts the mutants. `tell` hears of each when all its hunts are over.
pub fn hunt(
    settings: &HuntSettings,
    mut tell: impl FnMut(Mutant, &Hunted) + Send,
) -> BTreeMap<Mutant, Hunted> {
    let hunts =
        settings.mutants.iter().flat_map(|it| (0..settings.hunts).map(move |hunt| (*it, hunt)));
    let hunts: Vec<_> = hunts.collect();
    let next = AtomicUsize::new(0);
    let all = Mutex::new((BTreeMap::<Mutant, Hunted>::new(), &mut tell));
    std::thread::scope(|scope| {
        for _ in 0..settings.threads.max(1) {
            scope.spawn(|| {
                while let Some((mutant, number)) = hunts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let caught = hunt_once(*mutant, *number, settings.seeds_max);
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    let (all, tell) = &mut *all;
                    let hunted = all.entry(*mutant).or_default();
                    hunted.hunts.push(caught);
                    if hunted.hunts.len() as u64 == settings.hunts {
                        tell(*mutant, hunted);
                    }
                }
            });
        }
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner).0
}

/// Hunts with random seeds; what none of them shows, with the failures that were written to show it,
/// and with the exhaustive search. What only the search can find is left to it.
fn hunt_once(mutant: Mutant, number: u64, seeds_max: u64) -> Option<Catch> {
    if Mutant::EXHAUSTIVE.contains(&mutant) {
        return hunt_by_search(mutant);
    }
    let by_seed = hunt_by_seed(mutant, number, seeds_max);
    by_seed.or_else(|| hunt_by_scenario(mutant)).or_else(|| hunt_by_search(mutant))
}

fn hunt_by_search(mutant: Mutant) -> Option<Catch> {
    let mut cases = DEPARTURES.iter().filter(|it| it.mutant == Some(mutant));
    let what = cases.find_map(|it| it.check(1).ok())?;
    Some(Catch { by: CatchBy::Search, judge: "search", what })
}

fn hunt_by_scenario(mutant: Mutant) -> Option<Catch> {
    let shown = scenario::all().into_iter().filter(|it| it.shows.contains(&mutant));
    let mut told = shown.map(|it| (it.name, tell(&it, Some(mutant))));
    let found = told.find_map(|(name, told)| Some((name, told.violations.into_iter().next()?)));
    let (name, violation) = found?;
    let (by, what) = (CatchBy::Scenario(name), violation.to_string());
    Some(Catch { by, judge: violation.checker, what })
}

fn hunt_by_seed(mutant: Mutant, number: u64, seeds_max: u64) -> Option<Catch> {
    let first = FIRST_SEED + number * SEEDS_APART;
    for seed in first..first + seeds_max {
        let settings = RunSettings { mutant: Some(mutant), ..RunSettings::of_seed(seed) };
        let report = run(&settings);
        let Some(violation) = report.violations.first() else { continue };
        // A seed that fails without the bug too says nothing about the bug.
        if !run(&RunSettings::of_seed(seed)).violations.is_empty() {
            continue;
        }
        let by = CatchBy::Seed { seed, runs: seed - first + 1 };
        return Some(Catch { by, judge: violation.checker, what: violation.to_string() });
    }
    None
}

/// Far from the seeds of sweeps.
const FIRST_SEED: u64 = 1 << 40;
const SEEDS_APART: u64 = 1 << 20;
