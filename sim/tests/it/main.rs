//! The simulator's own suite: determinism first, then failures with a name, then random ones.

mod determinism;
mod mutants;
mod protocol_check;
mod regressions;
mod scenarios;
mod sweep;

/// Where the logs of failed runs are kept.
const LOGS: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/sim");
