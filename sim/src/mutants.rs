//! Runs every deliberate bug until it is caught: what survives is a hole in the simulator.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use model::Mutant;

use crate::run::{RunSettings, run};

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
    /// A seed that shows it, and what it shows.
    pub example: Option<(u64, String)>,
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
    seed: u64,
    by: &'static str,
    what: String,
}

fn hunt_once(mutant: Mutant, number: u64, seeds_max: u64) -> Option<Caught> {
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
        return Some(Caught { seeds, seed, by: violation.checker, what });
    }
    None
}

/// Far from the seeds of sweeps.
const FIRST_SEED: u64 = 1 << 40;
const SEEDS_APART: u64 = 1 << 20;
