//! Simulated worlds: node's own code, gRPC included, on a simulated network, clock and disk, all
//! from one seed.
//!
//! A run ([`run`]) is a world with clients and faults, and ends with the verdicts of the checkers.
//! Clients and the checkers of what they saw ([`checker`]) know the database from outside. Three look
//! inside: [`inspect`] at disks and gauges, scripts of [`scenario`] at what single nodes hold, and
//! [`protocol_check`], which drives the machines and the replica's judgement themselves.

#[cfg(not(any(tokio_unstable, doc)))]
compile_error!(
    "the simulator needs RUSTFLAGS=\"--cfg tokio_unstable\", as .cargo/config.toml sets it: without it \
     turmoil can neither seed tokio, so that two runs of a seed differ, nor see that a task has panicked"
);

pub mod checker;
pub mod coverage;
pub mod discipline;
pub mod fault;
pub mod guarantees;
pub mod history;
pub mod inspect;
pub mod log;
pub mod mutants;
pub mod protocol_check;
mod raw;
pub mod recorder;
pub mod replay;
pub mod run;
pub mod scenario;
pub mod shape;
pub mod sweep;
mod workload;
pub mod world;
