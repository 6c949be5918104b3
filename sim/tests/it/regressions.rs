//! What once broke a promise, in the smallest run that shows it. `docs/simulation.md` tells the
//! stories.

use sim::{
    fault::{Fault, TimedFault},
    replay,
    run::{RunSettings, run},
    shape::{Bounds, Shape},
};

fn clean(test: &str, shape: Shape, faults: Vec<TimedFault>) {
    let (shape, faults) = (Some(shape), Some(faults));
    let report = run(&RunSettings { shape, faults, keep: true, ..RunSettings::of_seed(1) });
    if !report.violations.is_empty() {
        let log = replay::keep_log(crate::LOGS.as_ref(), &format!("{test}.log"), &report.lines);
        panic!(
            "FAILED; replay it with: make replay TEST=regressions::{test}\n  {}\n{:#?}",
            replay::tell_log(&log),
            report.violations
        );
    }
}

/// Each address to join was greeted every ten seconds over a connection that never closed.
#[test]
fn streams_that_have_said_hello_end() {
    let shape = Shape { drains: true, faults_ms: 100, ..Shape::default() };
    clean("streams_that_have_said_hello_end", shape, Vec::new());
}

/// A node that had jumped an hour ahead merged its own clock, and nobody believed it for an hour.
#[test]
fn a_clock_that_jumped_is_not_merged() {
    let fault = Fault::ClockJump { node: 1, jump_ms: 3_600_000 };
    let faults = vec![TimedFault { at_ms: 500, for_ms: 2_000, fault }];
    clean("a_clock_that_jumped_is_not_merged", Shape::default(), faults);
}

/// The next page of a scan merged a wall clock that had jumped since the scan began.
#[test]
fn every_reading_looks_whether_the_clock_has_jumped() {
    let shape = Shape { sessions: 6, think_ms: 5, ..Shape::grid(2, 2) };
    let jump = |node, at_ms| {
        let fault = Fault::ClockJump { node, jump_ms: 3_600_000 };
        TimedFault { at_ms, for_ms: 700, fault }
    };
    // Neighbours in time are in different datacenters: with two nodes in one, what is still known of the
    // clock that jumped before would make this one's jump a majority there.
    let nodes = [0, 2, 1, 3, 0, 2].into_iter().zip(0..);
    let faults = nodes.map(|(node, nth)| jump(node, nth * 900)).collect();
    clean("every_reading_looks_whether_the_clock_has_jumped", shape, faults);
}

/// A lost disk was filled by blocks of records; what of a block found no room in the queue of commits was
/// refused, and the whole partition tried again a second later.
#[test]
fn a_fill_waits_for_room_in_a_small_queue() {
    let bounds = Bounds { commit_queue_items: 19, exchange_interval_ms: 900, ..Bounds::default() };
    let load = Shape { sessions: 4, think_ms: 10, loses_disk: true, ..Shape::default() };
    let shape = Shape { datacenters: vec![3, 2], partitions: 16, bounds, ..load };
    let fault = Fault::Wipe { node: 0 };
    let faults = vec![TimedFault { at_ms: 4_300, for_ms: 1_200, fault }];
    clean("a_fill_waits_for_room_in_a_small_queue", shape, faults);
}
