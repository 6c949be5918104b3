//! One client request on its way through the replicas of its key: the foreground of the database.
//!
//! Each request is a small state machine of its own, fed with events and answering with effects. Its
//! steps are those of every module here: prepare, validate, execute, collect, finish.
//!
//! Invariant: nothing here reads a clock, draws randomness, waits or does I/O. Stamps, the replicas,
//! who is up and which is fast are arguments.

mod error;
mod order;
mod read;
mod scan;
mod write;

pub use error::{ReadError, WriteError};
pub use read::{Read, ReadEffect, ReadEvent, ReadReply, ReadRequest};
pub use scan::{Covered, Direction, MergedPage, MergedRow, PageLimits, ReplicaPage, merge_pages};
pub use write::{Write, WriteEffect, WriteEvent, WriteReply, WriteRequest};
