//! One node: a replica of its partitions, and a coordinator for whoever asks.
//!
//! `io` is the only place with sockets, timers and threads; everything else takes time, randomness
//! and messages as arguments. The simulator runs all of it on a simulated world.

pub mod agreement;
mod call_bytes;
mod clock;
mod clock_watch;
pub mod commit;
pub mod config;
mod counters;
pub mod damage;
mod exchange;
mod foreground;
pub mod io;
mod latency;
mod liveness;
mod local_read;
mod membership;
mod metrics;
mod operation;
mod outbox;
pub mod replica;
mod reply;
mod scrub;
mod shared;
pub mod snapshot;
pub mod storage;
mod view;
mod wheel;
pub mod witness;
