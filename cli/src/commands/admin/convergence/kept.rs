//! What a node keeps for others, added up over all of them.

use proto::v1;
use serde::Serialize;

/// Hints, those of writes at ANY too, and dirty marks.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Kept {
    pub(super) hints: u64,
    pub(super) hint_bytes: u64,
    pub(super) oldest_hint_age_ms: Option<u64>,
    pub(super) dirty_marks: u64,
}

impl Kept {
    /// Adds up what a node says of its targets.
    pub(super) fn of(hints: &v1::GetHintsResponse) -> Self {
        let targets = hints.targets.iter();
        let sums: Vec<_> = targets.clone().flat_map(|it| [it.ordinary, it.any]).flatten().collect();
        Self {
            hints: sums.iter().map(|it| it.hints).sum(),
            hint_bytes: sums.iter().map(|it| it.bytes).sum(),
            oldest_hint_age_ms: sums.iter().filter_map(|it| it.oldest_age_ms).max(),
            dirty_marks: targets.map(|it| it.dirty_marks).sum(),
        }
    }
}
