//! Random failures: as many seeds as a test has time for. `make sweep` runs more.

use std::path::Path;

use sim::sweep::{SweepSettings, sweep};

#[test]
fn a_hundred_seeds_are_clean() {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let settings = SweepSettings {
        seeds: 0..120,
        time: None,
        threads,
        mutant: None,
        failed_max: 3,
        logs: Some(Path::new(crate::LOGS).to_owned()),
    };
    let outcome = sweep(&settings, |_| {});
    let failed: Vec<_> = outcome.failed.iter().map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{}", failed.concat());
    let missing = outcome.coverage.missing();
    assert!(missing.is_empty(), "never exercised: {missing:?}");
}
