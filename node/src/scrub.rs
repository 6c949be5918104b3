//! Where the comparison of this node's trees with its data stands (M6): for who makes it, and for who asks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{KeyspaceId, Token};
use tokio::sync::Notify;

/// What a pass over all leaves has found so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScrubReport {
    /// Partitions of keyspaces that were compared, those without records among them.
    pub(crate) partitions: u64,
    /// Leaves compared.
    pub(crate) leaves: u64,
    /// Records read.
    pub(crate) records: u64,
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Leaves that were not what the data say.
    pub(crate) mismatches: u64,
    /// Records that are damaged.
    pub(crate) damaged: u64,
    /// Rows under keys that are none.
    pub(crate) unreadable: u64,
    /// Leaves whose data storage itself cannot read.
    pub(crate) leaves_unreadable: u64,
}

/// How far a pass has come, and what it has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScrubState {
    /// How many passes were asked for before the last one began that has ended.
    pub(crate) answered: u64,
    /// The pass under way, if there is one.
    pub(crate) running: Option<ScrubReport>,
    /// The last pass that has ended in this life of the process.
    pub(crate) last: Option<ScrubReport>,
    /// The last one that was asked for.
    pub(crate) asked_for: Option<ScrubReport>,
    /// When the last pass ended, by the wall clock, in milliseconds; 0 for never.
    pub(crate) ended_ms: u64,
}

/// Where a pass goes on after a start, and when the last one ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ScrubCursor {
    /// The last token of the leaf that was compared last; `None` at the beginning of a pass.
    pub(crate) behind: Option<(KeyspaceId, Token)>,
    /// When the last pass ended, by the wall clock, in milliseconds; 0 for never.
    pub(crate) ended_ms: u64,
}

impl ScrubCursor {
    pub(crate) fn encode(self) -> [u8; 20] {
        let (keyspace, token) = self.behind.unwrap_or((KeyspaceId(0), Token(0)));
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&keyspace.0.to_be_bytes());
        bytes[4..12].copy_from_slice(&token.0.to_be_bytes());
        bytes[12..].copy_from_slice(&self.ended_ms.to_be_bytes());
        bytes
    }

    /// What was stored; the beginning, if that makes no sense.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let Ok(bytes) = <[u8; 20]>::try_from(bytes) else { return Self::default() };
        let ([keyspace @ .., _, _, _, _, _, _, _, _], ended_ms) =
            bytes.split_first_chunk::<12>().map(|it| (*it.0, it.1)).unwrap_or_default();
        let token = bytes[4..12].try_into().map_or(0, u64::from_be_bytes);
        let behind = (KeyspaceId(u32::from_be_bytes(keyspace)), Token(token));
        Self {
            // No leaf ends at the first token of the first keyspace but one.
            behind: (behind != (KeyspaceId(0), Token(0))).then_some(behind),
            ended_ms: ended_ms.try_into().map_or(0, u64::from_be_bytes),
        }
    }
}

/// Passes asked for, and what came of them.
#[derive(Default)]
pub(crate) struct ScrubBoard {
    state: Mutex<(u64, ScrubState)>,
    /// Wakes who compares.
    pub(crate) wanted: Notify,
}

impl ScrubBoard {
    /// Asks for a pass at once; its number.
    pub(crate) fn ask(&self) -> u64 {
        let number = {
            let mut state = self.lock();
            state.0 += 1;
            state.0
        };
        self.wanted.notify_one();
        number
    }

    /// How many passes have been asked for, and whether one of them is still to be made.
    pub(crate) fn asked(&self) -> (u64, bool) {
        let state = self.lock();
        (state.0, state.0 > state.1.answered)
    }

    /// A pass has come so far.
    pub(crate) fn note(&self, report: ScrubReport) {
        self.lock().1.running = Some(report);
    }

    /// A pass has ended that began when so many had been asked for.
    pub(crate) fn ended(&self, asked: u64, report: ScrubReport, now_ms: u64) {
        let mut state = self.lock();
        let state = &mut state.1;
        if asked > state.answered {
            (state.answered, state.asked_for) = (asked, Some(report));
        }
        (state.running, state.last, state.ended_ms) = (None, Some(report), now_ms);
    }

    /// When the last pass of an earlier life ended.
    pub(crate) fn resume(&self, ended_ms: u64) {
        self.lock().1.ended_ms = ended_ms;
    }

    /// Where it stands.
    pub(crate) fn state(&self) -> ScrubState {
        self.lock().1
    }

    fn lock(&self) -> MutexGuard<'_, (u64, ScrubState)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_and_nonsense_is_the_beginning() {
        let at = |keyspace, token| Some((KeyspaceId(keyspace), Token(token)));
        for behind in [None, at(1, 0), at(0, 7), at(u32::MAX, u64::MAX)] {
            let cursor = ScrubCursor { behind, ended_ms: 99 };
            assert_eq!(ScrubCursor::decode(&cursor.encode()), cursor);
        }
        assert_eq!(ScrubCursor::decode(&[1; 19]), ScrubCursor::default());
    }

    #[test]
    fn a_pass_answers_what_was_asked_for_before_it_began() {
        let board = ScrubBoard::default();
        let found = |leaves| ScrubReport { leaves, ..ScrubReport::default() };
        board.ended(board.asked().0, found(1), 5);
        assert_eq!(board.state().asked_for, None, "it came by itself");
        let (before, first) = (board.asked().0, board.ask());
        board.ended(before, found(2), 6);
        assert_eq!((board.asked(), board.state().asked_for), ((first, true), None));
        board.ended(first, found(3), 7);
        board.ended(first, found(4), 8);
        let state = board.state();
        assert_eq!((board.asked(), state.asked_for), ((first, false), Some(found(3))));
        assert_eq!((state.last, state.ended_ms), (Some(found(4)), 8));
    }
}
