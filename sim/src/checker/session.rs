//! A client that carries its clock keeps its own writes in order (P1): each is stamped above all
//! that the client has read or written before, on any key, at any level, in any datacenter.

use std::collections::BTreeMap;

use super::{
    Context, Violation,
    key::{self, Event},
    tell,
};
use crate::history::Operation;

const NAME: &str = "session";

pub(super) fn check(history: &[Operation], _context: &Context) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut highest = BTreeMap::new();
    for event in key::timeline(history.iter()) {
        match event {
            Event::Returned(operation) => {
                let seen = (key::version_seen(operation).unwrap_or_default().hlc, operation);
                let highest = highest.entry(operation.session).or_insert(seen);
                if highest.0 < seen.0 {
                    *highest = seen;
                }
            }
            Event::Called(operation) => {
                let Some(version) = key::acknowledged(operation) else { continue };
                let behind = highest.get(&operation.session);
                let behind = behind.filter(|(clock, _)| version.hlc <= *clock);
                violations.extend(behind.map(|(_, earlier)| {
                    let what = format!(
                        "{} is not stamped above {} on key {:?}",
                        tell(operation),
                        tell(earlier),
                        earlier.key
                    );
                    Violation::broken(NAME, Some(&operation.key), what)
                }));
            }
        }
    }
    violations
}
