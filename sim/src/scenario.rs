//! Failures with a name: the loss of datacenters in all its forms, and the executions that forced
//! the protocol's rules. Each can be read, run and told as a timeline.

mod damage;
mod datacenters;
mod disks;
mod executions;
mod hints;
mod hybrid_clocks;
mod late;
mod levels;
mod metadata;
mod purge;
mod script;
mod story;

use model::{ConsistencyLevel, Mutant};

pub use story::{Availability, Told, tell, tell_seed};

use crate::{
    checker::{Finding, Violation},
    fault::TimedFault,
    shape::Shape,
};
use script::Script;

/// A failure with a name.
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens, in a sentence or two.
    pub story: &'static str,
    /// How it is played.
    pub plot: Plot,
    /// Rules whose absence it shows.
    pub shows: &'static [Shown],
}

/// A rule without which a scenario has to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The bug that switches it off.
    pub mutant: Mutant,
    /// What a violation then says, among other things: any other failure shows nothing of this rule.
    pub says: &'static str,
}

impl Shown {
    /// The violation by which the mutant is noticed.
    pub fn find<'a>(&self, violations: &'a [Violation]) -> Option<&'a Violation> {
        let says =
            |it: &&Violation| it.finding == Finding::Violated && it.to_string().contains(self.says);
        violations.iter().find(says)
    }
}

/// How a scenario is played.
pub enum Plot {
    /// Clients in every datacenter work at every level while something fails.
    Failure(Failure),
    /// An exact execution, step by step.
    Steps {
        /// The cluster.
        shape: Shape,
        /// The steps.
        script: fn(Script) -> script::Playing,
    },
}

/// Something fails under load.
pub struct Failure {
    /// The cluster.
    pub shape: Shape,
    /// What fails, and when.
    pub faults: Vec<TimedFault>,
    /// When everybody has noticed it, and until when it lasts: the levels are judged between.
    pub judged_ms: (u64, u64),
    /// Datacenters on the wrong side.
    pub inside: &'static [u8],
    /// What goes on there.
    pub inside_goes_on: &'static [ConsistencyLevel],
    /// What goes on in all others.
    pub outside_goes_on: &'static [ConsistencyLevel],
    /// False where a level may work now and fail then: only what goes on is judged.
    pub others_are_refused: bool,
}

/// All scenarios.
pub fn all() -> Vec<Scenario> {
    let mut all = datacenters::all();
    all.extend(executions::all());
    all.extend(hints::all());
    all.extend(purge::all());
    all.extend(late::all());
    all.extend(disks::all());
    all.extend(damage::all());
    all.extend(hybrid_clocks::all());
    all.extend(levels::all());
    all.extend(metadata::all());
    all
}

/// The scenario of this name.
pub fn find(name: &str) -> Option<Scenario> {
    all().into_iter().find(|it| it.name == name)
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}
