//! The judges of a run: a file for each promise.
//!
//! A checker looks at what clients saw, or at what lies on the disks at the end, and knows nothing
//! of how the cluster works. Invariant: a checker that cannot decide says so, and never "fine".

use std::fmt;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The checker that found it.
    pub checker: &'static str,
    /// The key, if it is about one.
    pub key: Option<String>,
    /// What was promised and what happened, with the operations concerned.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "{}: key {key:?}: {}", self.checker, self.what),
            None => write!(f, "{}: {}", self.checker, self.what),
        }
    }
}
