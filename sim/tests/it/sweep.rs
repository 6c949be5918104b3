//! Random failures: as many seeds as a test has time for. `make sweep` runs more.

use sim::sweep::{SweepSettings, sweep};

#[test]
fn a_hundred_seeds_are_clean() {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let settings = SweepSettings {
        seeds: 0..120,
        time: None,
        threads,
        mutant: None,
        failures_max: 3,
        logs: None,
    };
    let outcome = sweep(&settings, |_| {});
    for failure in &outcome.failures {
        println!("replay with: quorate-sim run --seed {}", failure.report.seed);
        failure.report.violations.iter().for_each(|it| println!("  {it}"));
    }
    assert!(outcome.failures.is_empty(), "{} seeds failed", outcome.failures.len());
    let missing = outcome.coverage.missing();
    assert!(missing.is_empty(), "never exercised: {missing:?}");
}
