//! The protocol, checked exhaustively: every execution of a few puts and gets of one key, with the
//! code that a node runs.
//!
//! The machines are `coordinator`'s, the judgement is `node`'s; three replicas, QUORUM both ways.
//! Whatever may differ from run to run is a choice of the search: the order of stamps, which message
//! arrives where and when, again or never, whom a get asks, and where a coordinator dies. What a
//! search says is exact within its bounds, and nothing beyond them.
//! Source: the model of rules P2 to P5, G1 and G2, of which this is the executable half.

mod cases;
mod history;
mod operation;
mod state;
mod steps;

use model::Mutant;
use stateright::{Checker, HasDiscoveries, Model, Path};

pub use cases::{Case, DEPARTURES, LARGE, SMALL};
use state::State;
use steps::{Protocol, Step};

/// How much is searched. Nothing is lost for good: disks and what they hold outlive every restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How many puts, each of another number.
    pub puts: usize,
    /// How many gets. Five operations at most.
    pub gets: usize,
    /// From where.
    pub start: Start,
    /// What replicas remember.
    pub memory: Memory,
    /// Puts ask for versions before they stamp (P5).
    pub query_first: bool,
    /// Stamps may have the same clock.
    pub ties: bool,
    /// Gets may find a replica slow, and ask one more.
    pub speculation: bool,
    /// Replicas may refuse, or be found unreachable.
    pub failures: bool,
    /// Answers may be heard long after they were given; each is given once then.
    pub delays: bool,
    /// Asks for [`DECIDED`], too: nothing may be lost for good then.
    pub decided: bool,
}

/// Where a search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing was ever written.
    Nothing,
    /// A shortcut: the first put is at two replicas, whose answers were lost, and the first get has
    /// returned it.
    Read,
    /// A shortcut: a replica told the first get of nothing, just before it took the first put, which
    /// was then acknowledged.
    Stale,
}

/// What a replica remembers of the versions that were the newest there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The clock that the record replaced, and no more.
    Previous,
    /// The latest versions, without gaps.
    Recent,
    /// As `Recent`, but all of it may be forgotten at any time.
    Lossy,
}

impl Bounds {
    /// So many puts and gets, with replicas that remember recent versions, and nothing else.
    pub const fn of(puts: usize, gets: usize) -> Self {
        Self {
            puts,
            gets,
            start: Start::Nothing,
            memory: Memory::Recent,
            query_first: false,
            ties: false,
            speculation: false,
            failures: false,
            delays: false,
            decided: false,
        }
    }
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The different states that were reached.
    pub states: usize,
    /// The longest execution, in steps.
    pub depth: usize,
    /// The property that does not hold, and an execution that breaks it.
    pub broken: Option<(&'static str, Vec<String>)>,
    /// What happened in some execution: [`ALL_RETURN`], [`SECOND_STAMP`], [`WRITE_BACK`]. A search
    /// that never saw them has said little.
    pub reached: Vec<&'static str>,
}

/// What gets return is explained by one order of the operations that is true to real time.
pub const LINEARIZABLE: &str = "linearizable";
/// No put ends undecided, or needs a third stamp.
pub const DECIDED: &str = "decided";
/// Every operation returns.
pub const ALL_RETURN: &str = "all return";
/// A put is stamped again.
pub const SECOND_STAMP: &str = "a second stamp";
/// A get writes back.
pub const WRITE_BACK: &str = "a write-back";

/// Searches all executions within the bounds, breadth first, until one breaks a property.
///
/// With one thread the outcome is the same each time. Panics beyond five operations.
pub fn run(bounds: Bounds, mutant: Option<Mutant>, threads: usize) -> Outcome {
    assert!(bounds.puts + bounds.gets <= state::OPERATIONS_MAX, "{bounds:?}");
    let search = Protocol { bounds, mutant }.checker().threads(threads);
    let search = search.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let (mut broken, mut reached) = (None, Vec::new());
    for (name, path) in search.discoveries() {
        match name {
            LINEARIZABLE | DECIDED => broken = Some((name, told(path))),
            other => reached.push(other),
        }
    }
    // Telling the executions has run the machines on this thread.
    Mutant::choose(None);
    reached.sort_unstable();
    Outcome { states: search.unique_state_count(), depth: search.max_depth(), broken, reached }
}

/// Each step, and what the replicas hold after it.
fn told(path: Path<State, Step>) -> Vec<String> {
    let path = path.into_vec();
    let steps = path.iter().zip(path.iter().skip(1)).filter_map(|(before, after)| {
        let versions: Vec<_> = (0..state::REPLICAS).map(|it| after.0.version(it)).collect();
        Some(format!("{:?}: {versions:?}", before.1?))
    });
    steps.collect()
}
