//! Every failure that has a name, and the rules without which it would end badly.

use sim::{
    guarantees,
    scenario::{self, Plot, tell},
};

#[test]
fn datacenters_fail_and_every_promise_is_kept() {
    for scenario in scenario::all().iter().filter(|it| matches!(it.plot, Plot::Failure(_))) {
        let told = tell(scenario, None);
        let timeline = told.timeline.join("\n");
        assert!(
            told.violations.is_empty(),
            "{}: {:#?}\n{timeline}",
            scenario.name,
            told.violations
        );
        assert!(!told.availability.is_empty(), "{} judges no level", scenario.name);
    }
}

#[test]
fn executions_end_well_with_their_rule_and_badly_without() {
    for scenario in scenario::all().iter().filter(|it| matches!(it.plot, Plot::Steps { .. })) {
        let told = tell(scenario, None);
        let timeline = told.timeline.join("\n");
        assert!(
            told.violations.is_empty(),
            "{}: {:#?}\n{timeline}",
            scenario.name,
            told.violations
        );
        for shown in scenario.shows {
            let told = tell(scenario, Some(shown.mutant));
            assert!(
                shown.find(&told.violations).is_some(),
                "{} with {}: nobody says {:?}: {:#?}",
                scenario.name,
                shown.mutant.as_str(),
                shown.says,
                told.violations
            );
        }
    }
}

#[test]
fn the_page_of_guarantees_is_that_of_the_runs() {
    let written = include_str!("../../../docs/guarantees.md");
    let found = guarantees::page();
    assert!(written == found, "docs/guarantees.md is stale: run `make guarantees`\n{found}");
}

#[test]
fn judges_catch_what_the_page_of_guarantees_says() {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let stale = guarantees::evidence::stale(threads);
    assert!(
        stale.is_empty(),
        "stale evidence; `make evidence guarantees` looks for new:\n{}",
        stale.join("\n")
    );
}
