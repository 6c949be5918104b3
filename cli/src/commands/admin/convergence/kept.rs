//! What nodes keep for others, added up over all of them.

use std::iter::Sum;

use proto::v1;
use serde::Serialize;

/// Hints, those of writes at ANY too, and dirty marks.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Kept {
    pub(super) hints: u64,
    pub(super) hint_bytes: u64,
    pub(super) oldest_hint_age_ms: Option<u64>,
    pub(super) dirty_marks: u64,
}

impl Kept {
    /// What a node keeps, of all keyspaces.
    pub(super) fn of(hints: &v1::GetHintsResponse) -> Self {
        let sums = hints.targets.iter().flat_map(|it| [it.ordinary, it.any]).flatten();
        let dirty_marks = hints.targets.iter().map(|it| it.dirty_marks).sum();
        Self { dirty_marks, ..sums.map(Self::of_sum).sum() }
    }

    /// What a node keeps of one keyspace.
    pub(super) fn of_keyspace(keyspace: &v1::KeyspaceConvergence) -> Self {
        let hints = keyspace.hints.map(Self::of_sum).unwrap_or_default();
        Self { dirty_marks: keyspace.dirty_marks, ..hints }
    }

    fn of_sum(sum: v1::HintSum) -> Self {
        Self {
            hints: sum.hints,
            hint_bytes: sum.bytes,
            oldest_hint_age_ms: sum.oldest_age_ms,
            dirty_marks: 0,
        }
    }

    /// True if it is nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.hints + self.dirty_marks == 0
    }
}

impl Sum for Kept {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, it| Self {
            hints: sum.hints + it.hints,
            hint_bytes: sum.hint_bytes + it.hint_bytes,
            oldest_hint_age_ms: sum.oldest_hint_age_ms.max(it.oldest_hint_age_ms),
            dirty_marks: sum.dirty_marks + it.dirty_marks,
        })
    }
}
