//! What makes replicas agree in the background.
//!
//! Pure: no clock, no network, no files. So far it decides when a record is logically gone; hints,
//! trees and exchanges join it here.

mod tombstone;

pub use tombstone::purgeable;
