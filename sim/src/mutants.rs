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
    /// The seeds that each hunt needed; `None` for one that was given up.
    pub seeds: Vec<Option<u64>>,
    /// Who caught it, and how often.
    pub by: BTreeMap<&'static str, u64>,
    /// A seed that shows it, if it was a seed, and what it shows.
    pub example: Option<(Option<u64>, String)>,
}

impl Hunted {
    /// The seeds that a hunt needs on average; one that was given up counts as all its seeds.
    pub fn mean(&self, seeds_max: u64) -> f64 {
        let sum: u64 = self.seeds.iter().map(|it| it.unwrap_or(seeds_max)).sum();
        sum as f64 / self.seeds.len().max(1) as f64
    }

    /// True if every hunt ended with a catch.
    pub fn is_caught(&self) -> bool {
        !self.seeds.is_empty() && self.seeds.iter().all(Option::is_some)
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
                    hunted.seeds.push(caught.as_ref().map(|it| it.seeds));
                    if let Some(caught) = caught {
                        *hunted.by.entry(caught.by).or_default() += 1;
                        hunted.example.get_or_insert((caught.seed, caught.what));
                    }
                    if hunted.seeds.len() as u64 == settings.hunts {
                        tell(*mutant, hunted);
                    }
                }
            });
        }
    });
    all.into_inner().unwrap_or_else(PoisonError::into_inner).0
}

struct Caught {
    seeds: u64,
    seed: Option<u64>,
    by: &'static str,
    what: String,
}

/// Hunts with random seeds; what none of them shows, with the failures that were written to show it,
/// and with the exhaustive search. What only the search can find is left to it.
fn hunt_once(mutant: Mutant, number: u64, seeds_max: u64) -> Option<Caught> {
    if Mutant::EXHAUSTIVE.contains(&mutant) {
        return hunt_by_search(mutant);
    }
    let by_seed = hunt_by_seed(mutant, number, seeds_max);
    by_seed.or_else(|| hunt_by_scenario(mutant)).or_else(|| hunt_by_search(mutant))
}

fn hunt_by_search(mutant: Mutant) -> Option<Caught> {
    let mut cases = DEPARTURES.iter().filter(|it| it.mutant == Some(mutant));
    let what = cases.find_map(|it| it.check(1).ok())?;
    Some(Caught { seeds: 1, seed: None, by: "protocol-check", what })
}

fn hunt_by_scenario(mutant: Mutant) -> Option<Caught> {
    let shown = scenario::all().into_iter().filter(|it| it.shows.contains(&mutant));
    let mut told = shown.map(|it| (it.name, tell(&it, Some(mutant))));
    let (by, told) = told.find(|it| !it.1.violations.is_empty())?;
    let what = told.violations.first().map(ToString::to_string).unwrap_or_default();
    Some(Caught { seeds: 1, seed: None, by, what })
}

fn hunt_by_seed(mutant: Mutant, number: u64, seeds_max: u64) -> Option<Caught> {
    let first = FIRST_SEED + number * SEEDS_APART;
    for seed in first..first + seeds_max {
        let settings = RunSettings { mutant: Some(mutant), ..RunSettings::of_seed(seed) };
        let report = run(&settings);
        let Some(violation) = report.violations.first() else { continue };
        // A seed that fails without the bug too says nothing about the bug.
        if !run(&RunSettings::of_seed(seed)).violations.is_empty() {
            continue;
        }
        let (seeds, what) = (seed - first + 1, violation.to_string());
        return Some(Caught { seeds, seed: Some(seed), by: violation.checker, what });
    }
    None
}

/// Far from the seeds of sweeps.
const FIRST_SEED: u64 = 1 << 40;
const SEEDS_APART: u64 = 1 << 20;
