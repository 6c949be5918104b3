//! Replicas converge to the highest version, and nothing that anybody was shown is lost: a read at ALL
//! finds what any answer has told before, at whatever level, or something newer. What one replica alone has shown
//! may have gone with its disk since.

use model::ConsistencyLevel;

use super::{
    Context, Operation, Violation,
    key::{self, Event, KeyHistory, Newest},
    tell,
};

const NAME: &str = "convergence";

pub(super) fn check(key: &KeyHistory<'_>, context: &Context) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut newest = Newest::default();
    for event in key.events() {
        match event {
            Event::Returned(it) if is_of_one(it) && may_be_lost(it, context) => {}
            Event::Returned(operation) => {
                let read = key::read_of(operation);
                newest.raise(operation, read.and_then(|it| it.version).unwrap_or_default());
            }
            Event::Called(operation) if operation.level == ConsistencyLevel::All => {
                let lost = |read: key::Read<'_>, floor| match (read.version, read.value) {
                    (Some(version), _) => version < floor,
                    (None, None) => !key.explains_absence(&read, floor, context),
                    (None, Some(_)) => false,
                };
                if let (Some(read), Some((floor, earlier))) = (key::read_of(operation), newest.0)
                    && lost(read, floor)
                {
                    let what = format!("{} has lost {}", tell(operation), tell(earlier));
                    violations.push(Violation::broken(NAME, Some(key.name), what));
                }
            }
            Event::Called(_) => {}
        }
    }
    violations
}

/// True for a call that one replica has answered. Acknowledged writes are judged by another checker.
fn is_of_one(operation: &Operation) -> bool {
    matches!(operation.level, ConsistencyLevel::One | ConsistencyLevel::LocalOne)
}

/// True if a disk has been lost since it was called, and may have answered it before.
fn may_be_lost(operation: &Operation, context: &Context) -> bool {
    operation.called_us < context.disks_lost_until_us
}
