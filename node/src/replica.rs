//! A replica's judgement of a stamped mutation (rule P2), and the form in which it keeps records.
//!
//! Pure. What was newest here only rises, so a replica that knows the version it holds, and the
//! clock of the one before, can prove for most versions that they never were the newest here. Such
//! proofs let a coordinator abandon a stamp safely (rule P4); when in doubt nothing is proved.

mod recent;
mod stored;

use model::{Hlc, Mutant, Version, WriteAnswer};

pub use recent::{RecentVersions, Remembered};
pub use stored::{Stored, decode_stored};

/// What a replica knows of a key whose record it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History<'a> {
    /// The newest version here.
    pub current: Version,
    /// The clock of the version that `current` replaced here; zero if there was none. Equal to
    /// `current.hlc` where the local history is lost: then it proves nothing below `current`.
    pub previous: Hlc,
    /// The latest versions that were the newest here, oldest first, without gaps and ending in
    /// `current`. Empty if not remembered.
    pub recent: &'a [Version],
    /// With `recent`: the clock of the version before the oldest of them, as `previous` is for
    /// `current`.
    pub before_recent: Hlc,
}

/// Takes in a mutation: judges its version and, if it is the newest, notes that it replaces what is
/// stored. Then the caller has to store it, with the clock that comes back as its `previous`.
/// `hash` is a hash of the key that nobody outside can foresee.
pub fn receive(
    hash: u64,
    stored: Option<&Stored>,
    incoming: Version,
    recent: &mut RecentVersions,
) -> (WriteAnswer, Option<Hlc>) {
    let Some(Stored { record, previous }) = stored else {
        return (WriteAnswer::Applied, Some(Hlc::ZERO));
    };
    let current = record.version();
    let Remembered { versions, before } = recent.of(hash, current);
    let history = History { current, previous: *previous, recent: versions, before_recent: before };
    let answer = judge(Some(history), incoming);
    if incoming <= current {
        return (answer, None);
    }
    if Mutant::PreviousLost.is_on() {
        return (answer, Some(Hlc::ZERO));
    }
    recent.replace(hash, *previous, current, incoming);
    (answer, Some(current.hlc))
}

/// Judges an incoming version. `Applied` for a version above `current` means that the caller has
/// to write it.
pub fn judge(stored: Option<History<'_>>, incoming: Version) -> WriteAnswer {
    let Some(History { current, previous, recent, before_recent }) = stored else {
        return WriteAnswer::Applied;
    };
    if incoming >= current {
        return WriteAnswer::Applied;
    }
    if Mutant::NeverAlways.is_on() {
        return WriteAnswer::Superseded { newest: current, never: true };
    }
    if recent.contains(&incoming) || Mutant::HeldByClock.is_on() && previous == incoming.hlc {
        return match Mutant::HeldUnsaid.is_on() {
            true => WriteAnswer::Superseded { newest: current, never: false },
            false => WriteAnswer::Held,
        };
    }
    // An equal clock is not an equal version: without the request id it proves neither that the
    // version was here nor that it was not.
    let skipped =
        recent.first().is_some_and(|oldest| *oldest < incoming || before_recent < incoming.hlc);
    let said = Mutant::NeverAtPrevious.is_on() && previous == incoming.hlc;
    WriteAnswer::Superseded { newest: current, never: skipped || previous < incoming.hlc || said }
}

#[cfg(test)]
mod tests {
    use model::RequestId;
    use proptest::prelude::*;

    use super::*;

    /// "12a" is the version with clock 12 and request a.
    fn version(text: &str) -> Version {
        let (hlc, request) = text.split_at(text.len() - 1);
        let request = RequestId(u64::from(request.as_bytes()[0]));
        Version { hlc: Hlc(hlc.parse().unwrap()), request }
    }

    /// Judges after applying `history` in order, with or without remembering it.
    fn check(history: &str, incoming: &str, remembered: bool) -> &'static str {
        let versions: Vec<Version> = history.split_whitespace().map(version).collect();
        let stored = versions.last().map(|current| History {
            current: *current,
            previous: versions.iter().rev().nth(1).map_or(Hlc::ZERO, |it| it.hlc),
            recent: if remembered { &versions } else { &[] },
            before_recent: Hlc(8),
        });
        match judge(stored, version(incoming)) {
            WriteAnswer::Applied => "applied",
            WriteAnswer::Held => "held",
            WriteAnswer::Superseded { never: true, newest }
                if newest == versions[versions.len() - 1] =>
            {
                "never"
            }
            WriteAnswer::Superseded { never: false, .. } => "superseded",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn by_previous_alone() {
        assert_eq!(check("", "10a", false), "applied");
        assert_eq!(check("10a", "10a", false), "applied", "already here");
        assert_eq!(check("10a", "10b", false), "applied", "the request breaks the tie");
        assert_eq!(check("10b", "10a", false), "never", "nothing was here before");
        assert_eq!(check("20a", "10a", false), "never", "nothing was here before");
        assert_eq!(check("10a 20b", "15c", false), "never", "between the two");
        assert_eq!(check("10a 20b", "20a", false), "never", "below by request alone");
        assert_eq!(check("10a 20b", "9c", false), "superseded", "before what is remembered");
        assert_eq!(check("5c 10a 20b", "7c", false), "superseded");
    }

    #[test]
    fn an_equal_clock_proves_nothing() {
        // CX1: 10b was never here, 10a was; `previous` says 10 for both.
        assert_eq!(check("10a 20b", "10a", false), "superseded");
        assert_eq!(check("10a 20b", "10b", false), "superseded");
    }

    #[test]
    fn lost_history_proves_nothing_below() {
        // CX4: a record installed from elsewhere has its own clock as `previous`.
        let current = version("20b");
        let stored =
            History { current, previous: current.hlc, recent: &[], before_recent: Hlc::ZERO };
        for below in ["1a", "19z", "20a"] {
            let expected = WriteAnswer::Superseded { newest: current, never: false };
            assert_eq!(judge(Some(stored), version(below)), expected);
        }
    }

    #[test]
    fn by_recent_versions() {
        assert_eq!(check("10a 20b 30c", "10a", true), "held");
        assert_eq!(check("10a 20b 30c", "20b", true), "held");
        assert_eq!(check("10a 20b 30c", "10b", true), "never", "same clock, other request");
        assert_eq!(check("10a 20b 30c", "20a", true), "never");
        assert_eq!(check("10a 20b 30c", "15x", true), "never", "further back than `previous`");
        assert_eq!(check("10a 20b 30c", "9x", true), "never", "after what the list began with");
        assert_eq!(check("10a 20b 30c", "8x", true), "superseded", "an equal clock");
        assert_eq!(check("10a 20b 30c", "7x", true), "superseded", "before the list");
    }

    proptest! {
        /// Against a replica that remembers everything: the answers that claim something are true.
        #[test]
        fn proofs_are_true(writes in proptest::collection::vec((1u64..8, 0u64..3), 1..20), kept in 0usize..9) {
            let version = |(hlc, request): (u64, u64)| Version { hlc: Hlc(hlc), request: RequestId(request) };
            let mut ever: Vec<Version> = Vec::new();
            for incoming in writes.into_iter().map(version) {
                let first = ever.len().saturating_sub(kept);
                let recent = &ever[first..];
                let before_recent = first.checked_sub(1).map_or(Hlc::ZERO, |it| ever[it].hlc);
                let stored = ever.last().map(|current| History {
                    current: *current,
                    previous: ever.iter().rev().nth(1).map_or(Hlc::ZERO, |it| it.hlc),
                    recent,
                    before_recent,
                });
                match judge(stored, incoming) {
                    WriteAnswer::Applied => {
                        if ever.last() != Some(&incoming) {
                            prop_assert!(ever.last().is_none_or(|it| *it < incoming));
                            ever.push(incoming);
                        }
                    }
                    WriteAnswer::Held => prop_assert!(ever.contains(&incoming)),
                    WriteAnswer::Superseded { newest, never } => {
                        prop_assert_eq!(Some(&newest), ever.last());
                        prop_assert!(incoming < newest);
                        prop_assert!(!never || !ever.contains(&incoming));
                    }
                    WriteAnswer::Refused(_) => prop_assert!(false),
                }
            }
        }
    }
}
