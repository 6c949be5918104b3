//! The protocol, checked exhaustively in bounds of seconds. `quorate-sim check` has larger ones.

use model::Mutant;
use sim::protocol_check::{Case, DEPARTURES, LARGE, SMALL};

/// Fails with every case that does not come out as it has to. With one thread a search that finds
/// something finds the same each time.
fn check(cases: &[Case], threads: usize) {
    let mut wrong = Vec::new();
    for case in cases {
        match case.check(threads) {
            Ok(told) => println!("{told}"),
            Err(told) => wrong.push(told),
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn what_is_written_holds() {
    check(SMALL, 2);
}

#[test]
fn every_departure_breaks_what_is_promised() {
    check(DEPARTURES, 1);
}

#[test]
fn what_only_this_can_catch_is_caught() {
    let caught = |it: &&Mutant| DEPARTURES.iter().any(|case| case.mutant == Some(**it));
    assert_eq!(Mutant::EXHAUSTIVE.iter().find(|it| !caught(it)), None);
    let written = |it: &Case| it.mutant.is_none() && it.breaks.is_none();
    assert!(SMALL.iter().chain(LARGE).all(written));
}
