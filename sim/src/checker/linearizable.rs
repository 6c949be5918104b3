//! Linearizability of one key: some total order of its operations fits real time and a register.
//!
//! Three ways to know, the cheapest first: the versions that the answers told give such an order;
//! what reads return shows that there is none; or a search finds one, or runs out of states. Only
//! values decide: versions are a hint where to look.

mod order;
mod search;
#[cfg(test)]
mod tests;
mod zones;

use super::{
    Context, Violation,
    key::KeyHistory,
    register::{Access, Register},
    regular,
};
use crate::discipline::Discipline;

const NAME: &str = "linearizable";

/// What is known of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none, and this shows it.
    Violated(String),
    /// Not known after so many states.
    Undecided(usize),
}

/// True where the promise is made.
pub(super) fn is_promised(discipline: Discipline) -> bool {
    use Discipline as D;
    match discipline {
        D::Quorum | D::LocalQuorum { .. } | D::EachQuorum => true,
        D::EachThenLocal | D::LocalThenEach | D::AllThenOne | D::QuorumThenOne | D::Mixed => false,
    }
}

pub(super) fn check(key: &KeyHistory<'_>, context: &Context) -> Vec<Violation> {
    if !is_promised(key.discipline) {
        return Vec::new();
    }
    match judge(&Register::of(key, context), context.states_max) {
        Verdict::Linearizable => Vec::new(),
        Verdict::Violated(what) => vec![Violation::broken(NAME, Some(key.name), what)],
        Verdict::Undecided(states) => {
            let what = format!("no linearization within {states} states");
            vec![Violation::undecided(NAME, Some(key.name), what)]
        }
    }
}

/// Judges a register's history.
pub(super) fn judge(register: &Register<'_>, states_max: usize) -> Verdict {
    let resolved = register.resolve();
    if !resolved.steps.iter().any(|it| matches!(it.access, Access::Read(_))) {
        return Verdict::Linearizable;
    }
    if order::proves(&resolved) {
        return Verdict::Linearizable;
    }
    if let Some(what) = regular::irregular(register) {
        return Verdict::Violated(what);
    }
    zones::judge(&resolved).unwrap_or_else(|| search::judge(&resolved, states_max))
}
