//! Quorate from outside: real processes of `quorate start` on loopback and temporary folders, spoken
//! to over real connections, killed, paused and lied to.
//!
//! A test passes by what clients and operators can see. Waits have an end but no test measures time.

mod admin;
mod bad_input;
mod commands;
mod dataset;
mod doubles;
mod durability;
mod exchange;
mod harness;
mod hints;
mod levels;
mod load;
mod lost_data;
mod metrics;
mod python;
mod restart;
mod scans;
mod snapshots;
mod space;
