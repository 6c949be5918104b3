//! Consistency levels mean what they say, with all nodes up and with some of them killed.

mod defaults;
mod expected;
mod outages;
mod silence;
mod sweep;
