//! Decides whether a call that failed is tried again. Pure.
//!
//! Reads change nothing, so they are tried again unless the answer would be the same. A write is tried
//! again only if it is certain that it did not happen and will not (X4 of `docs/protocol.md`): no node
//! has taken it, or a node said so, with a reason that another node or a moment may cure. A write of
//! unknown outcome is never sent twice: that would be a second write (X2).

use std::time::Duration;

use proto::{CallError, CallOutcome, Reason};
use tonic::Code;

/// How far a call got before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// No node has taken it: no connection could be made, or the one it went by was being closed.
    NeverTaken,
    /// It may have been sent, and nothing came back: the connection broke, or the time was up.
    NoAnswer,
    /// A node, or something between, answered with an error.
    Answered,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Report it.
    GiveUp,
    /// Try another node, at once if there is one that was not tried.
    Elsewhere,
    /// Try again after a pause of at least this long: all nodes are likely to say the same now.
    After(Duration),
}

/// Decides. `expected_to_exist` tells that the keyspace was there when the client last looked.
pub(crate) fn decide(
    writes: bool,
    progress: Progress,
    error: &CallError,
    expected_to_exist: bool,
) -> Decision {
    if progress == Progress::NeverTaken {
        return Decision::Elsewhere;
    }
    if writes && error.outcome == CallOutcome::Unknown {
        return Decision::GiveUp;
    }
    let pause = Decision::After(error.retry_after.unwrap_or_default());
    match error.reason {
        // The node's own state: another one is as good.
        Reason::Starting | Reason::Draining | Reason::StorageFailed => Decision::Elsewhere,
        Reason::DiskFull | Reason::AnyHintsFull => Decision::Elsewhere,
        Reason::ClockAhead | Reason::ClockSkew => Decision::Elsewhere,
        // The cluster's state, or how this node sees it.
        Reason::NotEnoughReplicas | Reason::NoLayout => pause,
        Reason::Overloaded if !writes || error.retry_after.is_some() => pause,
        // Metadata reach some nodes later than others.
        Reason::KeyspaceNotFound if expected_to_exist => pause,
        Reason::ReadTimeout | Reason::ReadFailed | Reason::ChecksumMismatch => Decision::Elsewhere,
        Reason::DeadlinePassed | Reason::ConnectionLost if !writes => Decision::Elsewhere,
        // Not of ours. What a broken connection or an overloaded proxy says is worth another try.
        Reason::Other if !writes && is_transient(error.code) => Decision::Elsewhere,
        _ => Decision::GiveUp,
    }
}

fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::Internal
            | Code::Unavailable
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
    )
}

/// The pause before the next attempt: doubling from `first` up to `max`, less up to a half of it by
/// the draw; then at least what the node asked for, plus up to a half of that.
pub(crate) fn pause(
    first: Duration,
    max: Duration,
    attempt: u32,
    asked_for: Duration,
    draw: u64,
) -> Duration {
    let doubled = first.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(max);
    let own = doubled - jitter(doubled / 2, draw);
    if asked_for.is_zero() { own } else { own.max(asked_for + jitter(asked_for / 2, draw)) }
}

/// A part of `of`, by the draw.
fn jitter(of: Duration, draw: u64) -> Duration {
    let thousandths = u32::try_from(draw % 1_000).expect("below 1000");
    of / 1_000 * thousandths
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of each reason: of a read, of a write with the reason's own outcome. `e` is
    /// elsewhere, `a` after a pause, `-` is given up.
    const TABLE: &[(Reason, &str)] = &[
        (Reason::KeyEmpty, "--"),
        (Reason::KeyTooLarge, "--"),
        (Reason::ValueTooLarge, "--"),
        (Reason::BatchTooLarge, "--"),
        (Reason::DuplicateKey, "--"),
        (Reason::MessageTooLarge, "--"),
        (Reason::MalformedMessage, "--"),
        (Reason::InvalidField, "--"),
        (Reason::InvalidConsistency, "--"),
        (Reason::TtlOutOfBounds, "--"),
        (Reason::ClockAhead, "ee"),
        (Reason::ClockSkew, "ee"),
        (Reason::TokenMalformed, "--"),
        (Reason::TokenForeign, "--"),
        (Reason::RangeReversed, "--"),
        (Reason::KeyspaceNotFound, "--"),
        (Reason::KeyspaceExists, "--"),
        (Reason::KeyspaceInvalid, "--"),
        (Reason::OverlapRequired, "--"),
        (Reason::NotEnoughReplicas, "aa"),
        (Reason::WriteTimeout, "--"),
        (Reason::WriteFailed, "--"),
        (Reason::ReadTimeout, "ee"),
        (Reason::ReadFailed, "ee"),
        (Reason::ChecksumMismatch, "ee"),
        (Reason::DeadlinePassed, "e-"),
        (Reason::NoLayout, "aa"),
        (Reason::Starting, "ee"),
        (Reason::Draining, "ee"),
        (Reason::Overloaded, "a-"),
        (Reason::AnyHintsFull, "ee"),
        (Reason::DiskFull, "ee"),
        (Reason::StorageFailed, "ee"),
        (Reason::ClusterMismatch, "--"),
        (Reason::VersionMismatch, "--"),
        (Reason::NodeIsUp, "--"),
        (Reason::NotAPeer, "--"),
        (Reason::PlanChanged, "--"),
        (Reason::LayoutInvalid, "--"),
        (Reason::AgreementFailed, "--"),
        (Reason::SnapshotExists, "--"),
        (Reason::SnapshotNotFound, "--"),
        (Reason::SnapshotLimit, "--"),
        (Reason::SnapshotUnsupported, "--"),
        (Reason::SnapshotFailed, "--"),
        (Reason::ConnectionLost, "e-"),
        (Reason::Other, "e-"),
    ];

    fn initial(decision: Decision) -> char {
        match decision {
            Decision::GiveUp => '-',
            Decision::Elsewhere => 'e',
            Decision::After(_) => 'a',
        }
    }

    #[test]
    fn every_reason_has_its_decision() {
        let listed: Vec<_> = TABLE.iter().map(|it| it.0).collect();
        assert_eq!(listed, Reason::ALL, "the table names every reason, in order");
        for (reason, expected) in TABLE {
            let error = CallError::new(*reason, "");
            let of = |writes| initial(decide(writes, Progress::Answered, &error, false));
            assert_eq!(format!("{}{}", of(false), of(true)), *expected, "{reason}");
        }
    }

    #[test]
    fn a_write_of_unknown_outcome_is_never_repeated() {
        for reason in Reason::ALL {
            for retry_after in [None, Some(Duration::from_millis(1))] {
                for progress in [Progress::NoAnswer, Progress::Answered] {
                    let mut error = CallError::new(*reason, "");
                    (error.outcome, error.retry_after) = (CallOutcome::Unknown, retry_after);
                    let decision = decide(true, progress, &error, true);
                    assert_eq!(decision, Decision::GiveUp, "{reason}");
                }
            }
        }
    }

    #[test]
    fn what_was_never_taken_is_sent_elsewhere() {
        for writes in [false, true] {
            let error = CallError::new(Reason::ConnectionLost, "");
            assert_eq!(decide(writes, Progress::NeverTaken, &error, false), Decision::Elsewhere);
        }
    }

    #[test]
    fn the_nodes_own_wish_is_honoured() {
        let wish = Duration::from_millis(300);
        let error = CallError::new(Reason::Overloaded, "").retry_after(wish);
        for writes in [false, true] {
            assert_eq!(decide(writes, Progress::Answered, &error, false), Decision::After(wish));
        }
        let (first, max) = (Duration::from_millis(10), Duration::from_millis(100));
        for draw in 0..2_000 {
            let pause = pause(first, max, 1, wish, draw);
            assert!((wish..=wish + wish / 2).contains(&pause), "{pause:?}");
        }
    }

    #[test]
    fn a_keyspace_that_should_exist_is_looked_for_again() {
        let error = CallError::new(Reason::KeyspaceNotFound, "");
        assert_eq!(initial(decide(true, Progress::Answered, &error, true)), 'a');
    }

    #[test]
    fn errors_of_others_are_repeated_by_their_code() {
        let check = |code, expected| {
            let mut error = CallError::new(Reason::Other, "");
            error.code = code;
            assert_eq!(initial(decide(false, Progress::Answered, &error, false)), expected);
            assert_eq!(initial(decide(true, Progress::Answered, &error, false)), '-');
        };
        check(Code::Internal, 'e');
        check(Code::DeadlineExceeded, 'e');
        check(Code::Unimplemented, '-');
        check(Code::PermissionDenied, '-');
        check(Code::Unauthenticated, '-');
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_differ() {
        let (first, max) = (Duration::from_millis(10), Duration::from_millis(100));
        let at = |attempt, draw| pause(first, max, attempt, Duration::ZERO, draw);
        assert_eq!([1, 2, 3, 4, 5, 40].map(|it| at(it, 0).as_millis()), [10, 20, 40, 80, 100, 100]);
        for draw in 0..2_000 {
            assert!((first / 2..=first).contains(&at(1, draw)));
        }
        assert_ne!(at(1, 1), at(1, 500));
    }
}
