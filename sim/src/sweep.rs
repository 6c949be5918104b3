//! Many seeds on many cores. Each run has a thread to itself.

use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use model::Mutant;

use crate::{
    coverage::Coverage,
    run::{Report, RunSettings, run},
};

/// Which seeds to run.
#[derive(Clone, Debug)]
pub struct SweepSettings {
    /// The seeds.
    pub seeds: Range<u64>,
    /// No seed is begun after so long.
    pub time: Option<Duration>,
    /// Runs at a time.
    pub threads: usize,
    /// A deliberate bug in all of them.
    pub mutant: Option<Mutant>,
    /// No seed is begun after so many have failed.
    pub failures_max: usize,
}

/// How far a sweep is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Seeds done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Seeds with broken promises.
    pub failed: usize,
    /// Seeds done in a second.
    pub per_second: f64,
    /// A seed that has just failed.
    pub just_failed: Option<u64>,
}

/// What came of a sweep.
#[derive(Debug, Default)]
pub struct SweepOutcome {
    /// Seeds done.
    pub done: u64,
    /// What they exercised.
    pub coverage: Coverage,
    /// Seeds with broken promises, run again with their logs.
    pub failures: Vec<Report>,
    /// Operations of all clients.
    pub operations: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Runs seeds until they are done, time is up or too many have failed.
#[expect(clippy::disallowed_methods, reason = "how long a sweep takes is of the real world")]
pub fn sweep(settings: &SweepSettings, mut tell: impl FnMut(&Progress) + Send) -> SweepOutcome {
    let began = Instant::now();
    let next = AtomicU64::new(settings.seeds.start);
    let outcome = Mutex::new((SweepOutcome::default(), Duration::ZERO));
    let tell = Mutex::new(&mut tell);
    std::thread::scope(|scope| {
        for _ in 0..settings.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let elapsed = began.elapsed();
                    let failed = lock(&outcome).0.failures.len();
                    let late = settings.time.is_some_and(|it| elapsed >= it);
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if late || failed >= settings.failures_max || !settings.seeds.contains(&seed) {
                        return;
                    }
                    let report = run_seed(settings, seed);
                    let progress = add(&mut lock(&outcome), settings, report, began.elapsed());
                    if let Some(progress) = progress {
                        lock(&tell)(&progress);
                    }
                }
            });
        }
    });
    let (mut outcome, _) = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.elapsed = began.elapsed();
    outcome
}

/// Runs a seed, and a second time with its log if it failed.
fn run_seed(settings: &SweepSettings, seed: u64) -> Report {
    let mut run_settings = RunSettings { mutant: settings.mutant, ..RunSettings::of_seed(seed) };
    let report = run(&run_settings);
    if report.violations.is_empty() {
        return report;
    }
    run_settings.keep = true;
    run(&run_settings)
}

fn add(
    (outcome, told): &mut (SweepOutcome, Duration),
    settings: &SweepSettings,
    report: Report,
    elapsed: Duration,
) -> Option<Progress> {
    outcome.done += 1;
    outcome.coverage.merge(&report.coverage);
    outcome.operations += report.operations;
    outcome.simulated_ms += report.simulated_ms;
    let just_failed = (!report.violations.is_empty()).then_some(report.seed);
    if just_failed.is_some() {
        outcome.failures.push(report);
    } else if elapsed < *told + TELL_INTERVAL {
        return None;
    }
    *told = elapsed;
    Some(Progress {
        done: outcome.done,
        total: settings.seeds.end - settings.seeds.start,
        failed: outcome.failures.len(),
        per_second: outcome.done as f64 / elapsed.as_secs_f64(),
        just_failed,
    })
}

const TELL_INTERVAL: Duration = Duration::from_secs(5);

fn lock<T>(it: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}
