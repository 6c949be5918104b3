//! What to try after a call failed: the commands and options of this binary where one helps, and what
//! the client says of the reason where none does.

use model::ConsistencyLevel;
use proto::{CallError, Reason};

use super::Attempt;
use crate::values::spell_word;

/// What to try about a call that failed so, the best first. `unknown` says that it was a write which
/// may have happened. Never empty.
pub(super) fn advice(error: &CallError, attempt: &Attempt, unknown: bool) -> Vec<String> {
    let retry = match error.retry_after {
        Some(delay) => format!("the same again in {} ms", delay.as_millis()),
        None => "the same again in a moment".to_owned(),
    };
    let mut advice: Vec<String> = Vec::new();
    match error.reason {
        Reason::NotEnoughReplicas => {
            advice.extend(lower_level(error, attempt).map(|it| format!("--consistency {it}")));
            advice.push("quorate admin status".to_owned());
            advice.push(retry);
        }
        Reason::ConnectionLost if !unknown => {
            advice.push("quorate admin status".to_owned());
            advice.push("--node ADDRESS of a node that is up".to_owned());
        }
        Reason::ClockSkew => {
            advice.push("quorate admin status".to_owned());
            advice.push("--node ADDRESS of another node".to_owned());
        }
        Reason::NoLayout => {
            advice.push("quorate admin layout plan".to_owned());
        }
        Reason::KeyspaceNotFound => {
            advice.push("quorate admin keyspace list".to_owned());
            advice.push("quorate admin keyspace create NAME".to_owned());
        }
        Reason::OverlapRequired => {
            advice.push("without --consistency, at the keyspace's default".to_owned());
            advice.push("quorate admin keyspace alter, for other defaults".to_owned());
        }
        Reason::KeyspaceInvalid => advice.extend(attempt.help.map(ToOwned::to_owned)),
        Reason::SnapshotNotFound => advice.push("quorate admin snapshot list".to_owned()),
        Reason::SnapshotLimit => {
            advice.push("quorate admin snapshot delete NAME".to_owned());
            advice.push("a higher --snapshots-max of the node".to_owned());
        }
        Reason::PlanChanged => advice.push("quorate admin layout plan".to_owned()),
        Reason::ReadTimeout | Reason::ReadFailed | Reason::DeadlinePassed if !unknown => {
            advice.push(retry);
            advice.push("a longer --timeout, up to the nodes' --request-timeout".to_owned());
        }
        Reason::Overloaded | Reason::Starting | Reason::Draining => advice.push(retry),
        _ => {}
    }
    if unknown {
        match (&attempt.keyspace, &attempt.key) {
            (Some(keyspace), Some(key)) => {
                let keyspace = spell_word(keyspace);
                advice.push(format!("quorate get {keyspace} {key}"));
                advice.push(format!("quorate admin explain {keyspace} {key}"));
                advice.push("the same write again: it gets a newer version".to_owned());
            }
            _ => advice.push("look before doing it again".to_owned()),
        }
    }
    if advice.is_empty() {
        advice.push(client::Error::advice_about(error.reason).to_owned());
    }
    advice
}

/// The next level that needs fewer replicas, or only those of this datacenter, unless the numbers say
/// that it cannot be had either. Nothing below a local quorum is suggested: it would promise less than its
/// caller relies on.
fn lower_level(error: &CallError, attempt: &Attempt) -> Option<ConsistencyLevel> {
    use ConsistencyLevel::{All, EachQuorum, LocalQuorum, Quorum};
    let number = |name: &str| error.metadata.get(name)?.parse::<u32>().ok();
    let level = attempt.level.or_else(|| error.metadata.get("level")?.parse().ok());
    let (required, alive) = (number("required")?, number("alive")?);
    let lacks_replicas = error.metadata.get("datacenter");
    let local = attempt.local_datacenter.as_ref().filter(|it| lacks_replicas != Some(*it));
    match level? {
        // ALL requires as many as there are.
        All if required / 2 < alive => Some(Quorum),
        All | Quorum if alive > 0 => local.map(|_| LocalQuorum),
        EachQuorum => local.map(|_| LocalQuorum),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_something_to_try() {
        for reason in Reason::ALL {
            for unknown in [false, true] {
                let error = CallError::new(*reason, "x");
                let tried = advice(&error, &Attempt::default(), unknown);
                assert!(tried.iter().all(|it| !it.is_empty()) && !tried.is_empty(), "{reason}");
            }
        }
        let disk = CallError::new(Reason::DiskFull, "x");
        let tried = advice(&disk, &Attempt::default(), false);
        assert_eq!(tried, [client::Error::advice_about(Reason::DiskFull)]);
    }

    #[test]
    fn an_unknown_write_is_looked_for_under_its_own_name() {
        let attempt = Attempt {
            keyspace: Some("shop".to_owned()),
            key: Some("00ff --hex".to_owned()),
            writes: true,
            ..Attempt::default()
        };
        let tried = advice(&CallError::new(Reason::WriteTimeout, "x"), &attempt, true);
        assert_eq!(
            tried[..2],
            ["quorate get shop 00ff --hex", "quorate admin explain shop 00ff --hex"]
        );
    }
    #[test]
    fn a_level_that_cannot_be_had_is_not_suggested() {
        use ConsistencyLevel::{All, EachQuorum, LocalQuorum, Quorum};
        let suggested = |level: ConsistencyLevel, required, alive, place: &str, local: &str| {
            let error = CallError::new(Reason::NotEnoughReplicas, "x")
                .with("level", level)
                .with("required", required)
                .with("alive", alive)
                .with("datacenter", place);
            let local_datacenter = Some(local.to_owned()).filter(|it| !it.is_empty());
            lower_level(&error, &Attempt { local_datacenter, ..Attempt::default() })
        };
        assert_eq!(suggested(All, 3, 2, "", ""), Some(Quorum));
        assert_eq!(suggested(All, 3, 1, "", ""), None, "a quorum takes two");
        assert_eq!(suggested(All, 6, 3, "", "dc1"), Some(LocalQuorum), "a quorum takes four");
        assert_eq!(suggested(Quorum, 2, 1, "", ""), None, "one datacenter: the same again");
        assert_eq!(suggested(Quorum, 4, 3, "", "dc1"), Some(LocalQuorum));
        assert_eq!(suggested(Quorum, 4, 0, "", "dc1"), None);
        assert_eq!(suggested(EachQuorum, 2, 0, "dc2", "dc1"), Some(LocalQuorum));
        assert_eq!(
            suggested(EachQuorum, 2, 1, "dc1", "dc1"),
            None,
            "it is this one that lacks them"
        );
        assert_eq!(suggested(LocalQuorum, 2, 1, "dc1", "dc1"), None);
    }
}
