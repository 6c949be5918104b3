//! Deletes are final: what an acknowledged delete removed is not read again.
//!
//! By versions, where the read's level meets the delete's; and by real time alone, where writes are
//! promised to keep it, so that no wrong version can hide a resurrection.

use super::{
    Context, Violation,
    acked::Floors,
    key::{self, Event, KeyHistory},
    tell,
};
use crate::{
    discipline::Discipline,
    history::{Action, Operation},
};

const NAME: &str = "deletes";

pub(super) fn check(key: &KeyHistory<'_>, context: &Context) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut floors = Floors::default();
    let mut last_called: Option<&Operation> = None;
    for event in key.events() {
        match event {
            Event::Returned(operation) => {
                let version = key::acknowledged(operation);
                let Some(version) = version.filter(|_| operation.action == Action::Delete) else {
                    continue;
                };
                floors.raise(operation, version);
                let later = last_called.is_none_or(|it| it.called_us < operation.called_us);
                if key.is_own(operation) && later {
                    last_called = Some(operation);
                }
            }
            Event::Called(operation) => {
                let Some(read) = key::read_of(operation) else { continue };
                let Some(put) = read.value.and_then(|it| key.put(it)) else { continue };
                let version = read.version.or(key::acknowledged(put));
                let by_version = floors
                    .of(operation, context)
                    .filter(|(floor, _)| version.is_some_and(|version| version < *floor));
                let by_time = last_called.filter(|delete| {
                    orders_writes(key.discipline)
                        && key.is_own(operation)
                        && key.is_own(put)
                        // An earlier try may still take effect.
                        && put.tries == 1
                        && key::acknowledged(put).is_some()
                        && put.returned_us.is_some_and(|it| it < delete.called_us)
                });
                if let Some(delete) = by_version.map(|(_, delete)| delete).or(by_time) {
                    let (read, put, delete) = (tell(operation), tell(put), tell(delete));
                    let what = format!("{read} reads {put}, which {delete} has removed");
                    violations.push(Violation::broken(NAME, Some(key.name), what));
                }
            }
        }
    }
    violations
}

/// True if a write acknowledged before another was called is below it.
fn orders_writes(discipline: Discipline) -> bool {
    use Discipline as D;
    match discipline {
        D::Quorum | D::LocalQuorum { .. } | D::EachQuorum | D::EachThenLocal | D::AllThenOne => {
            true
        }
        D::LocalThenEach | D::QuorumThenOne | D::Mixed => false,
    }
}
