//! Where handoff stands with each target: for those who serve it, and for those who ask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use model::{NodeId, Refusal};
use tokio::sync::Notify;

use super::pace::Pace;

/// Why a pass over a target's hints has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PassEnd {
    /// It has met every hint, and none is left of those.
    Clean,
    /// It has met every hint, and some stay: the target refuses these for their own sake, the last
    /// for this reason.
    Kept(Refusal),
    /// The target takes no hints just now.
    Refused(Refusal),
    /// The target did not answer, or was lost.
    Silent,
    /// The hints could not be read here, or no replica can be reached that takes them.
    Stuck,
}

/// Where handoff stands with one target.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TargetState {
    /// A pass is under way.
    pub(crate) delivering: bool,
    /// The number of the last clean pass; 0 for none.
    pub(crate) clean: u64,
    /// How the last pass has ended.
    pub(crate) last: Option<PassEnd>,
}

/// The passes of a node, numbered as they begin.
///
/// Invariant: a clean pass has met every hint that was durable before it began, and all of them are
/// delivered or given up. So a barrier needs no list of hints: a pass that began behind it suffices.
#[derive(Default)]
pub(crate) struct HandoffBoard {
    board: Mutex<Board>,
    /// Wakes who begins passes.
    pub(crate) wanted: Notify,
}

#[derive(Default)]
struct Board {
    begun: u64,
    targets: BTreeMap<NodeId, Entry>,
}

#[derive(Default)]
struct Entry {
    state: TargetState,
    /// Its hints are looked through for those that are too old.
    aging: bool,
    pace: Pace,
}

impl HandoffBoard {
    /// How many passes have begun.
    pub(crate) fn begun(&self) -> u64 {
        self.lock().begun
    }

    /// Where handoff stands with a target.
    pub(crate) fn target(&self, target: NodeId) -> TargetState {
        self.lock().targets.get(&target).map(|it| it.state).unwrap_or_default()
    }

    /// Begins a pass: its number and the target's pace; `None` if one is under way.
    pub(super) fn begin(&self, target: NodeId, now_us: u64) -> Option<(u64, Pace)> {
        let mut board = self.lock();
        let number = board.begun + 1;
        let entry = board.targets.entry(target).or_default();
        if entry.state.delivering {
            return None;
        }
        entry.state.delivering = true;
        entry.pace.begin(now_us);
        let pace = entry.pace.clone();
        board.begun = number;
        Some((number, pace))
    }

    /// Ends a pass.
    pub(super) fn end(&self, target: NodeId, number: u64, pace: Pace, end: PassEnd) {
        let mut board = self.lock();
        let entry = board.targets.entry(target).or_default();
        (entry.state.delivering, entry.state.last, entry.pace) = (false, Some(end), pace);
        if end == PassEnd::Clean {
            entry.state.clean = number;
        }
    }

    /// True if nobody looks for hints of the target that are too old; from now on the caller does.
    pub(super) fn begin_aging(&self, target: NodeId) -> bool {
        let mut board = self.lock();
        let entry = board.targets.entry(target).or_default();
        !std::mem::replace(&mut entry.aging, true)
    }

    /// Nobody looks any more.
    pub(super) fn end_aging(&self, target: NodeId) {
        self.lock().targets.entry(target).or_default().aging = false;
    }

    /// Forgets targets without hints that no longer matter.
    pub(super) fn retain(&self, matters: impl Fn(NodeId) -> bool) {
        self.lock().targets.retain(|node, it| it.state.delivering || it.aging || matters(*node));
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_at_a_time_for_each_target() {
        let (board, [a, b]) = (HandoffBoard::default(), [NodeId(1), NodeId(2)]);
        let (first, pace) = board.begin(a, 0).unwrap();
        assert!(board.begin(a, 0).is_none());
        let (second, other) = board.begin(b, 0).unwrap();
        assert_eq!((first, second, board.begun()), (1, 2, 2));
        board.end(b, second, other, PassEnd::Silent);
        board.end(a, first, pace, PassEnd::Clean);
        assert_eq!((board.target(a).clean, board.target(b).clean), (1, 0));
        assert!(!board.target(a).delivering && board.begin(a, 0).is_some());
    }

    #[test]
    fn what_is_under_way_is_not_forgotten() {
        let (board, a) = (HandoffBoard::default(), NodeId(1));
        assert!(board.begin_aging(a) && !board.begin_aging(a));
        board.retain(|_| false);
        assert!(!board.begin_aging(a), "still");
        board.end_aging(a);
        board.retain(|_| false);
        assert!(board.begin_aging(a));
    }
}
