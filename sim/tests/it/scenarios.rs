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
        for mutant in scenario.shows {
            let told = tell(scenario, Some(*mutant));
            let name = mutant.as_str();
            assert!(!told.violations.is_empty(), "{} does not notice {name}", scenario.name);
        }
    }
}

#[test]
fn the_page_of_guarantees_is_that_of_the_runs() {
    let written = include_str!("../../../docs/guarantees.md");
    let found = guarantees::page();
    assert!(written == found, "docs/guarantees.md is stale: run `make guarantees`\n{found}");
}
