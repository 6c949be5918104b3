//! What makes replicas agree in the background.
//!
//! Pure: no clock, no network, no files. It decides what trees of records look like that replicas
//! compare, and what moves between two of them.

pub mod exchange;
pub mod heal;
pub mod merkle;
