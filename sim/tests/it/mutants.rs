//! A simulator that catches nothing proves nothing: some deliberate bugs, each within few seeds.
//! `make mutants` hunts all of them.

use model::Mutant;
use sim::mutants::{HuntSettings, hunt};

#[test]
fn deliberate_bugs_are_caught() {
    let settings = HuntSettings {
        mutants: vec![
            Mutant::HalfIsAQuorum,
            Mutant::ClockForgetsCeiling,
            Mutant::FailedSyncIgnored,
            Mutant::RowCacheStale,
            Mutant::UnknownSaidNotApplied,
        ],
        hunts: 1,
        seeds_max: 50,
        seeds_for_all: false,
        threads: std::thread::available_parallelism().map_or(1, Into::into),
    };
    for (mutant, hunted) in hunt(&settings, |_, _| {}) {
        assert!(hunted.is_caught(), "{} survives {hunted:?}", mutant.as_str());
    }
}
