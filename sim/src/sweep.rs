//! Many seeds on many cores. Each run has a thread to itself.

use std::{
    fmt, io,
    ops::Range,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use model::Mutant;

use crate::{
    checker::Violation,
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
    /// Where the logs of failed seeds are written, each as soon as its seed has failed.
    pub logs: Option<PathBuf>,
}

/// A seed with broken promises.
#[derive(Debug)]
pub struct Failure {
    /// What it was, without its lines if they have been written.
    pub report: Report,
    /// Where its log is, or why it is not there; `None` if nobody wants it.
    pub log: Option<Result<PathBuf, String>>,
}

/// How far a sweep is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// Seeds done.
    pub done: u64,
    /// Of so many.
    pub total: u64,
    /// Seeds with broken promises.
    pub failed: usize,
    /// Seeds done in a second.
    pub per_second: f64,
    /// A seed that has just failed.
    pub just_failed: Option<&'a Failure>,
}

/// What came of a sweep.
#[derive(Debug, Default)]
pub struct SweepOutcome {
    /// Seeds done.
    pub done: u64,
    /// What they exercised.
    pub coverage: Coverage,
    /// Seeds with broken promises, run again for their logs.
    pub failures: Vec<Failure>,
    /// Operations of all clients.
    pub operations: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Runs seeds until they are done, time is up or too many have failed.
#[expect(clippy::disallowed_methods, reason = "how long a sweep takes is of the real world")]
pub fn sweep(settings: &SweepSettings, mut tell: impl FnMut(&Progress<'_>) + Send) -> SweepOutcome {
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
                    let (report, failure) = run_seed(settings, seed);
                    add(&mut lock(&outcome), settings, &report, failure, began.elapsed(), &tell);
                }
            });
        }
    });
    let (mut outcome, _) = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.elapsed = began.elapsed();
    outcome
}

/// Runs a seed, and a second time for its log if it failed. What the first run found counts, whatever
/// the second one does.
fn run_seed(settings: &SweepSettings, seed: u64) -> (Report, Option<Failure>) {
    let mut run_settings = RunSettings { mutant: settings.mutant, ..RunSettings::of_seed(seed) };
    let first = run(&run_settings);
    if first.violations.is_empty() {
        return (first, None);
    }
    run_settings.keep = true;
    let mut again = run(&run_settings);
    let differences = determinism(&first, &again);
    again.lines.extend(differences.iter().map(|it| format!("VIOLATION {it}")));
    let log = settings.logs.as_ref().map(|folder| {
        let path = folder.join(format!("seed-{seed}.log"));
        let wrong = |error: io::Error| format!("{}: {error}", path.display());
        std::fs::create_dir_all(folder).map_err(wrong)?;
        std::fs::write(&path, again.lines.join("\n")).map_err(wrong)?;
        again.lines = Vec::new();
        Ok(path.clone())
    });
    again.violations = first.violations.clone();
    again.violations.extend(differences);
    (first, Some(Failure { report: again, log }))
}

/// Two runs of a seed are one: whatever differs between them is a fault of its own.
pub(crate) fn determinism(first: &Report, second: &Report) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut differ = |what: &str, one: &dyn fmt::Display, other: &dyn fmt::Display| {
        let what =
            format!("two runs of seed {} differ in their {what}: {one}, {other}", first.seed);
        violations.push(Violation::broken("determinism", None, what));
    };
    let [one, other] = [first, second].map(|it| format!("{:016x}", it.log_hash));
    if one != other {
        differ("logs", &one, &other);
    }
    let [one, other] = [first, second].map(|it| format!("{:016x}", it.state_hash));
    if one != other {
        differ("disks", &one, &other);
    }
    if first.violations != second.violations {
        let [one, other] = [first, second].map(|it| it.violations.len());
        differ("violations", &one, &other);
    }
    violations
}

fn add(
    (outcome, told): &mut (SweepOutcome, Duration),
    settings: &SweepSettings,
    report: &Report,
    failure: Option<Failure>,
    elapsed: Duration,
    tell: &Mutex<impl FnMut(&Progress<'_>)>,
) {
    outcome.done += 1;
    outcome.coverage.merge(&report.coverage);
    outcome.operations += report.operations;
    outcome.simulated_ms += report.simulated_ms;
    let has_failed = failure.is_some();
    outcome.failures.extend(failure);
    if !has_failed && elapsed < *told + TELL_INTERVAL {
        return;
    }
    *told = elapsed;
    lock(tell)(&Progress {
        done: outcome.done,
        total: settings.seeds.end - settings.seeds.start,
        failed: outcome.failures.len(),
        per_second: outcome.done as f64 / elapsed.as_secs_f64(),
        just_failed: outcome.failures.last().filter(|_| has_failed),
    });
}

const TELL_INTERVAL: Duration = Duration::from_secs(5);

fn lock<T>(it: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_that_differ_are_a_failure() {
        let settings = RunSettings { faults: Some(Vec::new()), ..RunSettings::of_seed(1) };
        let first = run(&settings);
        assert_eq!(determinism(&first, &first.clone()), Vec::new());
        let mut second = first.clone();
        second.log_hash ^= 1;
        second.state_hash ^= 1;
        second.violations.push(Violation::broken("test", None, "once".to_owned()));
        let found = determinism(&first, &second);
        assert_eq!(found.iter().filter(|it| it.checker == "determinism").count(), 3, "{found:?}");
    }
}
