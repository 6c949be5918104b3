//! What makes replicas agree in the background.
//!
//! Pure: no clock, no network, no files. It decides when a record is logically gone, and what trees of
//! records look like that replicas compare, and what moves between two of them.

pub mod exchange;
pub mod merkle;
mod tombstone;

pub use tombstone::purgeable;
