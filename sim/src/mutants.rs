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
    checker::{Finding, Violation},
    protocol_check::DEPARTURES,
    replay,
    run::{RunSettings, run},
    scenario::{self, tell},
};

/// Mutants that random runs show seldom or never, and scenarios always: they need clocks, restarts,
/// damage or a configuration that a random run comes by once in hundreds, if at all.
pub const STAGED: &[Mutant] = &[
    Mutant::LocalCountsRemote,
    Mutant::HintCountsAsAnswer,
    Mutant::OverlapWithoutWrites,
    Mutant::PromiseForgotten,
    Mutant::HintsNotSynced,
    Mutant::HintForgottenWhenSent,
    Mutant::DeadHintKept,
    Mutant::AnyHintsGivenUp,
    Mutant::AgedHintsUnmarked,
    Mutant::RefusedHintsUnmarked,
    Mutant::OrphansKept,
    Mutant::BarrierPassedEarly,
    Mutant::FenceIgnored,
    Mutant::AnyHintsUnasked,
    Mutant::SignedBlindly,
    Mutant::PurgedWithoutAll,
    Mutant::PurgesUnexpired,
    Mutant::FenceAheadTaken,
    Mutant::SourceFloorIgnored,
    Mutant::FilledFromOne,
    Mutant::FillOrderIgnored,
    Mutant::FillKeepsExtras,
    Mutant::FillMeetsUnswept,
    Mutant::OldVotesCount,
    Mutant::NotAskedAgain,
    Mutant::RollbackUnseen,
    Mutant::DoubleLetIn,
    Mutant::DoubleUnfilled,
    Mutant::FarUncompressed,
    Mutant::HealsFromOne,
    Mutant::ScrubOff,
    Mutant::CorruptIsAbsent,
    Mutant::ScanLiveRowsOnly,
    Mutant::ScanBeyondCovered,
    Mutant::ExpiryByOwnClock,
    Mutant::MajorityClockIgnored,
    Mutant::CeilingAwaited,
];

/// What a mutant is meant to be shown by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// Random runs, within few seeds.
    Seeds,
    /// A scenario.
    Scenario,
    /// The exhaustive search of the protocol.
    Search,
}

impl Means {
    /// What is to show this mutant.
    pub fn of(mutant: Mutant) -> Self {
        match mutant {
            it if Mutant::EXHAUSTIVE.contains(&it) => Self::Search,
            it if STAGED.contains(&it) => Self::Scenario,
            _ => Self::Seeds,
        }
    }
}

/// How long to look for each.
#[derive(Clone, Debug)]
pub struct HuntSettings {
    /// The mutants.
    pub mutants: Vec<Mutant>,
    /// How often each is hunted, with other seeds each time.
    pub hunts: u64,
    /// Random runs end without a catch after so many seeds.
    pub seeds_max: u64,
    /// Random runs for all, even for those that are not meant for them.
    pub seeds_for_all: bool,
    /// Runs at a time.
    pub threads: usize,
}

/// What became of one mutant.
#[derive(Clone, Debug, Default)]
pub struct Hunted {
    /// Its hunts, in any order.
    pub hunts: Vec<Hunt>,
}

/// One hunt for a mutant.
#[derive(Clone, Debug)]
pub struct Hunt {
    /// Random runs that it took: all that were allowed, if none of them was a catch. None where the
    /// mutant is not meant for them.
    pub runs: u64,
    /// How it ended; `None` if it was given up.
    pub catch: Option<Catch>,
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
    /// A random run of this seed.
    Seed(u64),
    /// A failure that has a name.
    Scenario(&'static str),
    /// The exhaustive search.
    Search,
}

impl Hunted {
    /// The random runs that a hunt took on average. Hunts that no seed ended are among them, with
    /// all the runs that they were allowed. `None` if there were no random runs.
    pub fn mean_runs(&self) -> Option<f64> {
        let runs: u64 = self.hunts.iter().map(|it| it.runs).sum();
        (runs > 0).then(|| runs as f64 / self.hunts.len() as f64)
    }

    /// How many hunts a random run ended.
    pub fn by_seed(&self) -> usize {
        self.catches().filter(|it| matches!(it.by, CatchBy::Seed(_))).count()
    }

    /// What was caught.
    pub fn catches(&self) -> impl Iterator<Item = &Catch> {
        self.hunts.iter().filter_map(|it| it.catch.as_ref())
    }

    /// True if every hunt ended with a catch.
    pub fn is_caught(&self) -> bool {
        !self.hunts.is_empty() && self.hunts.iter().all(|it| it.catch.is_some())
    }
}

impl Catch {
    fn new(by: CatchBy, violation: &Violation) -> Self {
        Self { by, judge: violation.checker, what: violation.to_string() }
    }

    /// The command that shows it again.
    pub fn replay(&self, mutant: Mutant) -> String {
        match self.by {
            CatchBy::Seed(seed) => replay::command(Some(seed), None, Some(mutant)),
            CatchBy::Scenario(it) => replay::command(None, Some(it), Some(mutant)),
            CatchBy::Search => "make protocol-check".to_owned(),
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
                    let hunt = hunt_once(*mutant, *number, settings);
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    let (all, tell) = &mut *all;
                    let hunted = all.entry(*mutant).or_default();
                    hunted.hunts.push(hunt);
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
/// and with the exhaustive search. What is not meant for seeds is left to these at once.
fn hunt_once(mutant: Mutant, number: u64, settings: &HuntSettings) -> Hunt {
    let random = settings.seeds_for_all || Means::of(mutant) == Means::Seeds;
    let (runs, catch) = match random {
        true => hunt_by_seed(mutant, number, settings.seeds_max),
        false => (0, None),
    };
    let catch = catch.or_else(|| hunt_by_scenario(mutant)).or_else(|| hunt_by_search(mutant));
    Hunt { runs, catch }
}

fn hunt_by_search(mutant: Mutant) -> Option<Catch> {
    let mut cases = DEPARTURES.iter().filter(|it| it.mutant == Some(mutant));
    let what = cases.find_map(|it| it.check(1).ok())?;
    Some(Catch { by: CatchBy::Search, judge: "search", what })
}

fn hunt_by_scenario(mutant: Mutant) -> Option<Catch> {
    scenario::all().iter().find_map(|scenario| {
        let shown = scenario.shows.iter().find(|it| it.mutant == mutant)?;
        let told = tell(scenario, Some(mutant));
        Some(Catch::new(CatchBy::Scenario(scenario.name), shown.find(&told.violations)?))
    })
}

/// Also says how many runs it took.
fn hunt_by_seed(mutant: Mutant, number: u64, seeds_max: u64) -> (u64, Option<Catch>) {
    let first = FIRST_SEED + number * SEEDS_APART;
    for seed in first..first + seeds_max {
        let settings = RunSettings { mutant: Some(mutant), ..RunSettings::of_seed(seed) };
        let report = run(&settings);
        let Some(violation) = report.violations.iter().find(|it| it.finding == Finding::Violated)
        else {
            continue;
        };
        // A seed that fails without the bug too says nothing about the bug.
        if run(&RunSettings::of_seed(seed)).violations.is_empty() {
            return (seed - first + 1, Some(Catch::new(CatchBy::Seed(seed), violation)));
        }
    }
    (seeds_max, None)
}

/// Far from the seeds of sweeps.
const FIRST_SEED: u64 = 1 << 40;
const SEEDS_APART: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hunts_that_no_seed_ended_count_with_all_their_runs() {
        let catch = |by| Some(Catch { by, what: String::new(), judge: "acked" });
        let hunt = |runs, catch| Hunt { runs, catch };
        let by_seed = hunt(2, catch(CatchBy::Seed(7)));
        let staged = hunt(150, catch(CatchBy::Scenario("rot-is-never-served")));
        let hunted = Hunted { hunts: vec![by_seed, staged, hunt(150, None)] };
        assert_eq!(hunted.mean_runs(), Some(302.0 / 3.0));
        assert_eq!((hunted.by_seed(), hunted.is_caught()), (1, false));
        let searched = Hunted { hunts: vec![hunt(0, catch(CatchBy::Search))] };
        assert_eq!((searched.mean_runs(), searched.is_caught()), (None, true));
    }

    #[test]
    fn what_is_left_to_scenarios_and_the_search_is_shown_there() {
        let scenarios = scenario::all();
        for mutant in STAGED {
            let shows = |it: &scenario::Scenario| it.shows.iter().any(|it| it.mutant == *mutant);
            assert!(scenarios.iter().any(shows), "no scenario shows {}", mutant.as_str());
        }
        for mutant in Mutant::EXHAUSTIVE {
            let searched = DEPARTURES.iter().any(|it| it.mutant == Some(*mutant));
            assert!(searched, "no search is for {}", mutant.as_str());
        }
    }
}
