//! Simulated worlds: node's own code, gRPC included, on a simulated network, clock and disk, all
//! from one seed.
//!
//! Holds the seams and the first property that everything else rests on: the same seed gives the
//! same run. Faults, workloads and checkers join it here.

pub mod checker;
pub mod discipline;
pub mod history;
mod host;
mod network;
#[cfg(test)]
mod tests;

pub use host::{HostError, HostSettings, run_host};
pub use network::{SimClock, SimNetwork, channel};
