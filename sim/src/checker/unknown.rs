//! Unknown outcomes are honest, and nothing is read that nobody wrote: a value comes from a put of
//! its key that was called before, was not refused, and has no more stamps than the rules allow.

use std::collections::{BTreeMap, BTreeSet};

use model::Version;

use super::{
    Context, Violation,
    key::{self, KeyHistory, Read},
    tell,
};
use crate::{
    discipline::Discipline,
    history::{Operation, Outcome},
};

const NAME: &str = "unknown";

pub(super) fn check(key: &KeyHistory<'_>, _context: &Context) -> Vec<Violation> {
    let invented = key.reads().filter_map(|it| invented(key, &it));
    let found = invented.chain(too_many_stamps(key));
    found.map(|what| Violation::broken(NAME, Some(key.name), what)).collect()
}

fn invented(key: &KeyHistory<'_>, read: &Read<'_>) -> Option<String> {
    let value = read.value?;
    let told = tell(read.operation);
    let Some(put) = key.put(value) else {
        return Some(format!("{told}: nobody put {value}"));
    };
    if matches!(put.outcome, Outcome::NotApplied { .. }) {
        return Some(format!("{told} reads what was refused: {}", tell(put)));
    }
    let early = read.returned_us < put.called_us;
    early.then(|| format!("{told} reads what was put later: {}", tell(put)))
}

/// A put has at most two stamps (P4). Where the first can only be replaced when no quorum that reads
/// ask will ever hold it, a put has one that is read, and it is the one acknowledged.
fn too_many_stamps(key: &KeyHistory<'_>) -> Vec<String> {
    let mut read = BTreeMap::<u64, BTreeSet<Version>>::new();
    let mut live = BTreeMap::<u64, BTreeSet<Version>>::new();
    for it in key.reads() {
        let (Some(value), Some(version)) = (it.value, it.version) else { continue };
        let Some(put) = key.put(value) else { continue };
        let versions = read.entry(value).or_default();
        versions.insert(version);
        match &put.outcome {
            Outcome::Written { version } => drop(versions.insert(*version)),
            Outcome::Unknown { versions: sent, .. } => versions.extend(sent),
            _ => {}
        }
        if one_lives(key, put, it.operation) {
            let versions = live.entry(value).or_default();
            versions.insert(version);
            versions.extend(key::acknowledged(put));
        }
    }
    let found = read.iter().filter(|(_, versions)| versions.len() > 2);
    let found = found.chain(live.iter().filter(|(_, versions)| versions.len() > 1));
    found.map(|(value, versions)| format!("{value} was read or told as {versions:?}")).collect()
}

/// True if reads such as this one cannot see a stamp of the put that was replaced.
fn one_lives(key: &KeyHistory<'_>, put: &Operation, read: &Operation) -> bool {
    use Discipline as D;
    match key.discipline {
        D::Quorum | D::EachQuorum | D::EachThenLocal | D::LocalThenEach | D::LocalQuorum { .. } => {
            key.is_own(put) && key.is_own(read)
        }
        D::AllThenOne | D::QuorumThenOne | D::Mixed => false,
    }
}
