//! Many seeds on many cores. Each run has a thread to itself.

use std::{
    fmt,
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
    replay,
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
    pub failed_max: usize,
    /// Where the logs of failed seeds are written, each as soon as its seed has failed.
    pub logs: Option<PathBuf>,
}

/// A seed with broken promises.
#[derive(Debug)]
pub struct FailedSeed {
    /// What it was, without its lines if they have been written.
    pub report: Report,
    /// The deliberate bug that it had.
    pub mutant: Option<Mutant>,
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
    pub just_failed: Option<&'a FailedSeed>,
}

impl fmt::Display for FailedSeed {
    /// The command that shows it again, some of what was broken, and where its log is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seed = self.report.seed;
        let command = replay::command(Some(seed), None, self.mutant);
        writeln!(f, "seed {seed} FAILED; replay it with: {command}")?;
        for violation in self.report.violations.iter().take(VIOLATIONS_TOLD) {
            writeln!(f, "  {violation}")?;
        }
        match &self.log {
            Some(log) => writeln!(f, "  {}", replay::tell_log(log)),
            None => Ok(()),
        }
    }
}

/// What came of a sweep.
#[derive(Debug, Default)]
pub struct SweepOutcome {
    /// Seeds done.
    pub done: u64,
    /// What they exercised.
    pub coverage: Coverage,
    /// Seeds with broken promises, run again for their logs.
    pub failed: Vec<FailedSeed>,
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
                    let failed = lock(&outcome).0.failed.len();
                    let late = settings.time.is_some_and(|it| elapsed >= it);
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if late || failed >= settings.failed_max || !settings.seeds.contains(&seed) {
                        return;
                    }
                    let (report, failed) = run_seed(settings, seed);
                    add(&mut lock(&outcome), settings, &report, failed, began.elapsed(), &tell);
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
fn run_seed(settings: &SweepSettings, seed: u64) -> (Report, Option<FailedSeed>) {
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
        let name = replay::log_name(seed, settings.mutant);
        let path = replay::keep_log(folder, &name, &again.lines)?;
        again.lines = Vec::new();
        Ok(path)
    });
    again.violations = first.violations.clone();
    again.violations.extend(differences);
    (first, Some(FailedSeed { report: again, mutant: settings.mutant, log }))
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
    failed: Option<FailedSeed>,
    elapsed: Duration,
    tell: &Mutex<impl FnMut(&Progress<'_>)>,
) {
    outcome.done += 1;
    outcome.coverage.merge(&report.coverage);
    outcome.operations += report.operations;
    outcome.simulated_ms += report.simulated_ms;
    let has_failed = failed.is_some();
    outcome.failed.extend(failed);
    if !has_failed && elapsed < *told + TELL_INTERVAL {
        return;
    }
    *told = elapsed;
    lock(tell)(&Progress {
        done: outcome.done,
        total: settings.seeds.end - settings.seeds.start,
        failed: outcome.failed.len(),
        per_second: outcome.done as f64 / elapsed.as_secs_f64(),
        just_failed: outcome.failed.last().filter(|_| has_failed),
    });
}

/// Of each failed seed; its log has all.
const VIOLATIONS_TOLD: usize = 5;
/// How often a sweep tells how far it is.
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
