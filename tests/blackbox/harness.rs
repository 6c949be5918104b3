//! Starts real nodes, speaks to them, waits for what must come true, and cleans up.
//!
//! Knows nothing of what the tests want. Never sleeps for a fixed time to wait for something, and
//! ends only processes that it started itself.

mod api;
mod binary;
mod cluster;
mod machine;
mod process;
mod random;
mod wait;

pub(crate) use api::{Api, Called, count, level};
pub(crate) use binary::{command, quorate, run, run_ok};
pub(crate) use cluster::{Cluster, Keyspace, Options, datacenters};
pub(crate) use machine::{Slots, copy_folder};
pub(crate) use process::{Process, Signal};
pub(crate) use random::Random;
pub(crate) use wait::{PATIENCE, eventually, within};
