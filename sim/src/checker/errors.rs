//! Errors are honest about time and about what they are: answers come by the deadline, and what says
//! `UNAVAILABLE` says that nothing was applied (X4). That what was refused is never read is judged
//! with the other unknown outcomes. A client that stopped waiting at its own timer was not answered:
//! nodes that stay silent are looked at from inside.

use proto::{CallOutcome, Reason};

use super::{Context, Violation, tell};
use crate::history::{Operation, Outcome};

const NAME: &str = "errors";

pub(super) fn check(history: &[Operation], context: &Context) -> Vec<Violation> {
    let times = history.iter().flat_map(|it| [Some(it.called_us), it.returned_us]);
    let ended_us = times.flatten().max().unwrap_or_default();
    let found = history.iter().flat_map(|operation| {
        let late = late(operation, ended_us, context);
        [late, dishonest(operation)].into_iter().flatten().map(|what| {
            let what = format!("{what}: {}", tell(operation));
            Violation::broken(NAME, Some(&operation.key), what)
        })
    });
    found.collect()
}

/// Answered too late; or, with nothing wrong any more, not answered to a client that waited longer.
fn late(operation: &Operation, ended_us: u64, context: &Context) -> Option<String> {
    let due_us = operation.deadline_us? + context.deadline_slack_us;
    let healed = context.healed_us.is_some_and(|it| it <= operation.called_us);
    let waited = operation.returned_us.unwrap_or(ended_us) > due_us;
    let late = waited && (healed || is_answered(operation));
    late.then(|| format!("no answer by {due_us} us"))
}

/// A write that may have happened, with a reason that always means that it did not. The client
/// library's own word for a broken connection is the only one of that code to be unknown.
fn dishonest(operation: &Operation) -> Option<String> {
    let Outcome::Unknown { reason: Some(reason), .. } = operation.outcome else { return None };
    let means_nothing_applied = reason.outcome() == CallOutcome::NotApplied
        && reason.code() == Reason::NotEnoughReplicas.code();
    let dishonest = operation.is_write() && means_nothing_applied;
    dishonest.then(|| format!("{} always means that nothing was applied", reason.as_str()))
}

fn is_answered(operation: &Operation) -> bool {
    operation.returned_us.is_some()
        && match operation.outcome {
            Outcome::Written { .. } | Outcome::Found { .. } | Outcome::NotApplied { .. } => true,
            Outcome::Unknown { answered, .. } => answered,
        }
}
