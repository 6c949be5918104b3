//! Acknowledged writes survive: a read whose level meets theirs finds them, or something newer.
//!
//! Online at every read, and at the read-back, where a cluster that was left alone long enough has to
//! show at ALL even what was acknowledged at ANY. This is also all that LOCAL_QUORUM writes promise to
//! EACH_QUORUM reads.

use std::collections::BTreeMap;

use model::{ConsistencyLevel, Version};

use super::{
    Context, Violation,
    key::{self, Event, KeyHistory, Newest, Read},
    tell,
};
use crate::history::Operation;

const NAME: &str = "acked";

/// The newest acknowledged write of each level and datacenter, so far.
#[derive(Default)]
pub(super) struct Floors<'a> {
    newest: BTreeMap<(ConsistencyLevel, u8), Newest<'a>>,
}

impl<'a> Floors<'a> {
    /// Counts a write that was acknowledged.
    pub(super) fn raise(&mut self, operation: &'a Operation, version: Version) {
        let class = (operation.level, operation.datacenter);
        self.newest.entry(class).or_default().raise(operation, version);
    }

    /// The newest write that a read made now cannot miss.
    pub(super) fn of(
        &self,
        read: &Operation,
        context: &Context,
    ) -> Option<(Version, &'a Operation)> {
        let at_all = read.level == ConsistencyLevel::All;
        let all = at_all && context.converges && context.is_read_back(read);
        let met = |it: &&(ConsistencyLevel, u8)| key::meets(**it, read, context.datacenters);
        let floors = self.newest.iter().filter(|(class, _)| all || met(class));
        floors.filter_map(|(_, floor)| floor.0).max_by_key(|(version, _)| *version)
    }
}

pub(super) fn check(key: &KeyHistory<'_>, context: &Context) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut floors = Floors::default();
    let mut read_back = false;
    let mut newest = Newest::default();
    for event in key.events() {
        match event {
            Event::Returned(operation) => {
                if let Some(version) = key::acknowledged(operation) {
                    floors.raise(operation, version);
                    newest.raise(operation, version);
                }
            }
            Event::Called(operation) => {
                let Some(read) = key::read_of(operation) else { continue };
                read_back |= context.is_read_back(operation);
                let missed = floors.of(operation, context);
                let missed = missed.filter(|(floor, _)| misses(key, &read, *floor, context));
                violations.extend(missed.map(|(_, write)| {
                    let what = format!("{} does not see {}", tell(operation), tell(write));
                    Violation::broken(NAME, Some(key.name), what)
                }));
            }
        }
    }
    if let (Some(_), false, Some((_, write))) = (context.read_back_from, read_back, newest.0) {
        let what = format!("no answer of the read-back shows what became of {}", tell(write));
        violations.push(Violation::undecided(NAME, Some(key.name), what));
    }
    violations
}

/// True if a read shows something older than `floor`.
fn misses(key: &KeyHistory<'_>, read: &Read<'_>, floor: Version, context: &Context) -> bool {
    match (read.version, read.value) {
        (Some(version), _) => version < floor,
        (None, None) => !key.explains_absence(read, floor, context),
        (None, Some(value)) => {
            key.put(value).and_then(key::acknowledged).is_some_and(|it| it < floor)
        }
    }
}
