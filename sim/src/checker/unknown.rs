//! Unknown outcomes are honest, and nothing is read that nobody wrote: a value comes from a put of
//! its key that was called before, was not refused, and has no more stamps than the rules allow; and
//! an absence that tells a version comes from such a delete, or from a put that expires.

use std::collections::{BTreeMap, BTreeSet};

use model::Version;

use super::{
    Context, Violation,
    key::{self, KeyHistory, Read},
    tell,
};
use crate::history::{Operation, Outcome};

const NAME: &str = "unknown";

pub(super) fn check(key: &KeyHistory<'_>, _context: &Context) -> Vec<Violation> {
    let invented = key.reads().filter_map(|it| invented(key, &it));
    let found = invented.chain(too_many_stamps(key));
    found.map(|what| Violation::broken(NAME, Some(key.name), what)).collect()
}

fn invented(key: &KeyHistory<'_>, read: &Read<'_>) -> Option<String> {
    let told = tell(read.operation);
    let Some(value) = read.value else {
        let version = read.version.filter(|it| !it.is_absent())?;
        let erased = key.erases(version, read);
        return (!erased).then(|| format!("{told}: nobody deleted it under that version"));
    };
    let Some(put) = key.put(value) else {
        return Some(format!("{told}: nobody put {value}"));
    };
    if key::is_refused(put) {
        return Some(format!("{told} reads what was refused: {}", tell(put)));
    }
    if let Some(version) = read.version.filter(|it| is_foreign(put, *it)) {
        return Some(format!("{told} reads under {version}, which is none of {}", tell(put)));
    }
    let early = read.returned_us < put.called_us;
    early.then(|| format!("{told} reads what was put later: {}", tell(put)))
}

/// True for a version that a put was never sent under: of another request, not among those that its
/// error named, or above the one acknowledged, which is the last (P3).
fn is_foreign(put: &Operation, version: Version) -> bool {
    let renamed = put.request.is_some_and(|it| it != version.request.0);
    let unsent = put.tries == 1
        && match &put.outcome {
            Outcome::Written { version: last } => version > *last,
            Outcome::Unknown { versions: Some(sent), .. } => !sent.contains(&version),
            _ => false,
        };
    renamed || unsent
}

/// A put has at most two stamps (P4). Where the first can only be replaced when no quorum that reads
/// ask will ever hold it, a put has one that is read, and it is the one acknowledged. All that for
/// each time that its client sent it (X2).
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
            Outcome::Unknown { versions: sent, .. } => versions.extend(sent.iter().flatten()),
            _ => {}
        }
        if key::one_lives(key, put, it.operation) {
            let versions = live.entry(value).or_default();
            versions.insert(version);
            versions.extend(key::acknowledged(put));
        }
    }
    let tries = |value: &u64| key.put(*value).map_or(1, |it| it.tries as usize);
    let found = read.iter().filter(|(value, versions)| versions.len() > 2 * tries(value));
    let lived = live.iter().filter(|(value, versions)| versions.len() > tries(value));
    found
        .chain(lived)
        .map(|(value, versions)| format!("{value} was read or told as {versions:?}"))
        .collect()
}
