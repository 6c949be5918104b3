//! Versions tell the truth: one never names two contents, and where a key is linearizable they rise
//! with real time, for all sessions together and so for each.

use std::collections::BTreeMap;

use model::Version;

use super::{
    Context, Violation,
    key::{self, Event, KeyHistory, Newest},
    linearizable, tell,
};
use crate::history::{Action, Operation};

const NAME: &str = "monotonic";

pub(super) fn check(key: &KeyHistory<'_>, _context: &Context) -> Vec<Violation> {
    let mut found = two_contents(key);
    if linearizable::is_promised(key.discipline) {
        found.extend(falling(key));
    }
    found.into_iter().map(|what| Violation::broken(NAME, Some(key.name), what)).collect()
}

/// Whatever succeeded strictly before an operation was called is not above it, and below it if that
/// operation is a write.
fn falling(key: &KeyHistory<'_>) -> Vec<String> {
    let mut found = Vec::new();
    let mut newest = Newest::default();
    for event in key.events() {
        match event {
            Event::Returned(operation) if key.is_own(operation) => {
                newest.raise(operation, key::version_seen(operation).unwrap_or_default());
            }
            Event::Called(operation) if key.is_own(operation) => {
                let (Some((floor, earlier)), Some(version)) =
                    (newest.0, key::version_seen(operation))
                else {
                    continue;
                };
                if version < floor || (version == floor && operation.is_write()) {
                    let (earlier, later) = (tell(earlier), tell(operation));
                    found.push(format!("{later} falls behind {earlier}"));
                }
            }
            _ => {}
        }
    }
    found
}

/// Every answer that names a version has to agree with the others on what it holds.
fn two_contents(key: &KeyHistory<'_>) -> Vec<String> {
    let mut contents = BTreeMap::<Version, (Option<u64>, &Operation)>::new();
    let mut found = Vec::new();
    for &operation in &key.operations {
        let Some(version) = key::version_seen(operation).filter(|it| !it.is_absent()) else {
            continue;
        };
        let content = match operation.action {
            Action::Put { value, .. } => Some(value),
            Action::Delete => None,
            Action::Get => key::read_of(operation).and_then(|it| it.value),
        };
        let (first, by) = *contents.entry(version).or_insert((content, operation));
        let expired = match (first, content) {
            (None, Some(it)) | (Some(it), None) => {
                let write = key.put(it).map(|it| it.action);
                matches!(write, Some(Action::Put { ttl_ms: Some(_), .. }))
                    && by.action != Action::Delete
                    && operation.action != Action::Delete
            }
            _ => false,
        };
        let same_write = by.id != operation.id && by.is_write() && operation.is_write();
        if (first != content && !expired) || same_write {
            found.push(format!("{version} names two: {} and {}", tell(by), tell(operation)));
        }
    }
    found
}
