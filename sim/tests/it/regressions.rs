//! What once broke a promise, in the smallest run that shows it. `docs/simulation.md` tells the
//! stories.

use sim::{
    fault::{Fault, TimedFault},
    run::{RunSettings, run},
    shape::Shape,
};

fn clean(shape: Shape, faults: Vec<TimedFault>) {
    let settings =
        RunSettings { shape: Some(shape), faults: Some(faults), ..RunSettings::of_seed(1) };
    let report = run(&settings);
    assert!(report.violations.is_empty(), "{:#?}", report.violations);
}

/// Each address to join was greeted every ten seconds over a connection that never closed.
#[test]
fn streams_that_have_said_hello_end() {
    clean(Shape { drains: true, faults_ms: 100, ..Shape::default() }, Vec::new());
}

/// A node that had jumped an hour ahead merged its own clock, and nobody believed it for an hour.
#[test]
fn a_clock_that_jumped_is_not_merged() {
    let fault = Fault::ClockJump { node: 1, jump_ms: 3_600_000 };
    clean(Shape::default(), vec![TimedFault { at_ms: 500, for_ms: 2_000, fault }]);
}

/// The next page of a scan merged a wall clock that had jumped since the scan began.
#[test]
fn every_reading_looks_whether_the_clock_has_jumped() {
    let shape = Shape { sessions: 6, think_ms: 5, ..Shape::grid(2, 2) };
    let jump = |node, at_ms| {
        let fault = Fault::ClockJump { node, jump_ms: 3_600_000 };
        TimedFault { at_ms, for_ms: 700, fault }
    };
    clean(shape, (0..6).map(|it| jump(it % 4, u64::try_from(it).unwrap() * 900)).collect());
}
