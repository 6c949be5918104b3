//! The checkers of what clients saw: a file for each promise. Those of what lies inside the nodes are
//! in [`crate::inspect`].
//!
//! A checker here looks at a history alone, and knows nothing of how the cluster works. Invariant: a
//! checker that cannot decide says so, and never "fine".

mod acked;
mod convergence;
mod deletes;
mod errors;
mod expiry;
pub mod generator;
mod key;
mod linearizable;
mod monotonic;
pub mod porcupine;
mod register;
mod regular;
mod session;
#[cfg(test)]
mod tests;
mod unknown;

use std::fmt;

use key::KeyHistory;

use crate::history::{Action, Operation, Outcome};

/// A promise that was broken, or that could not be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The checker that found it.
    pub checker: &'static str,
    /// Whether the promise was broken.
    pub finding: Finding,
    /// The key, if it is about one.
    pub key: Option<String>,
    /// What was promised and what happened, with the operations concerned.
    pub what: String,
}

/// How sure a checker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// The promise was broken.
    Violated,
    /// The checker ran out of its budget, or lacks what it would have to see.
    Undecided,
}

/// What the checkers must know of a run besides its history.
#[derive(Clone, Debug)]
pub struct Context {
    /// The cluster's datacenters.
    pub datacenters: u8,
    /// The first operation of the final read-back, which reads every key after all faults; `None`
    /// if the run had none.
    pub read_back_from: Option<u64>,
    /// True if all hints had time to arrive before the read-back: reads at ALL then find what was
    /// acknowledged at ANY, too.
    pub converges: bool,
    /// Until when disks were lost, or put back to what they were, in microseconds of the run: the only copy
    /// of a write that nobody acknowledged may have gone with one, whoever was shown it at ONE before.
    pub disks_lost_until_us: u64,
    /// From when on nothing was wrong any more, in microseconds of the run: calls made later have
    /// to be answered.
    pub healed_us: Option<u64>,
    /// How far a clock of the cluster may be off.
    pub clock_offset_max_ms: u64,
    /// What a wall clock told when the run began, in milliseconds since the Unix epoch.
    pub epoch_ms: u64,
    /// How much later than its deadline a call may be answered.
    pub deadline_slack_us: u64,
    /// How many states the search for a linearization may visit, for each key.
    pub states_max: usize,
}

type OfKey = fn(&KeyHistory<'_>, &Context) -> Vec<Violation>;
type OfRun = fn(&[Operation], &Context) -> Vec<Violation>;

/// The checkers of one key's history.
const OF_KEYS: &[OfKey] = &[
    acked::check,
    convergence::check,
    deletes::check,
    expiry::check,
    linearizable::check,
    monotonic::check,
    regular::check,
    unknown::check,
];

/// The checkers that look at all keys together.
const OF_RUNS: &[OfRun] = &[errors::check, session::check];

/// All that is wrong with a history. Empty means: every promise was judged, and kept.
pub fn check(history: &[Operation], context: &Context) -> Vec<Violation> {
    let mut violations = Vec::new();
    for key in KeyHistory::all(history) {
        violations.extend(OF_KEYS.iter().flat_map(|check| check(&key, context)));
    }
    violations.extend(OF_RUNS.iter().flat_map(|check| check(history, context)));
    violations
}

impl Violation {
    /// A broken promise.
    pub fn broken(checker: &'static str, key: Option<&str>, what: String) -> Self {
        Self { checker, finding: Finding::Violated, key: key.map(str::to_owned), what }
    }

    /// A promise that could not be judged.
    pub fn undecided(checker: &'static str, key: Option<&str>, what: String) -> Self {
        Self { checker, finding: Finding::Undecided, key: key.map(str::to_owned), what }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.checker)?;
        if self.finding == Finding::Undecided {
            write!(f, "undecided: ")?;
        }
        match &self.key {
            Some(key) => write!(f, "key {key:?}: {}", self.what),
            None => write!(f, "{}", self.what),
        }
    }
}

impl Default for Context {
    /// One datacenter, no read-back, clocks from the beginning of the epoch.
    fn default() -> Self {
        Self {
            datacenters: 1,
            read_back_from: None,
            converges: false,
            disks_lost_until_us: 0,
            healed_us: None,
            clock_offset_max_ms: 500,
            epoch_ms: 0,
            deadline_slack_us: 0,
            states_max: 200_000,
        }
    }
}

impl Context {
    /// True for operations of the final read-back.
    fn is_read_back(&self, operation: &Operation) -> bool {
        self.read_back_from.is_some_and(|from| operation.id >= from)
    }
}

/// An operation in one line: `#7 put 3 at QUORUM by session 2 of dc 0, 10..25 us: version 1.0@02`.
fn tell(operation: &Operation) -> String {
    let Operation { id, session, datacenter, level, called_us, .. } = operation;
    let action = match operation.action {
        Action::Put { value, ttl_ms: None } => format!("put {value}"),
        Action::Put { value, ttl_ms: Some(ttl_ms) } => format!("put {value} for {ttl_ms} ms"),
        Action::Delete => "delete".to_owned(),
        Action::Get => "get".to_owned(),
    };
    let returned = operation.returned_us.map_or("end".to_owned(), |it| it.to_string());
    let outcome = match &operation.outcome {
        Outcome::Written { version } => format!("version {version}"),
        Outcome::Found { value, version } => {
            let value = value.map_or("absent".to_owned(), |it| it.to_string());
            format!("{value}{}", version.map_or(String::new(), |it| format!(", version {it}")))
        }
        Outcome::NotApplied { reason } => format!("not applied, {}", reason.as_str()),
        Outcome::Unknown { reason, answered, versions } => {
            let reason = reason.map_or("gave up", |it| it.as_str());
            let by = if *answered { "a node" } else { "the client" };
            let versions =
                versions.as_ref().map_or(String::new(), |it| format!(", sent as {it:?}"));
            format!("unknown, {reason} by {by}{versions}")
        }
    };
    let tries =
        if operation.tries > 1 { format!(", {} times", operation.tries) } else { String::new() };
    format!(
        "#{id} {action}{tries} at {level} by session {session} of dc {datacenter}, \
         {called_us}..{returned} us: {outcome}"
    )
}
