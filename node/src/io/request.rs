//! One request of a client, from its arrival to its end, for the metrics.

use model::ConsistencyLevel;
use proto::{CallError, CallOutcome};

use super::io_loop::IoLoop;
use crate::metrics::RequestKind;

/// A request under way. It is counted when it is dropped, as are those whose clients hung up.
pub(super) struct MeasuredRequest<'a> {
    io: &'a IoLoop,
    kind: RequestKind,
    level: Option<ConsistencyLevel>,
    /// `None` is success.
    outcome: Option<CallOutcome>,
    /// The worst of a batch's keys.
    of_keys: Option<CallOutcome>,
    started_us: u64,
}

impl<'a> MeasuredRequest<'a> {
    /// A request that comes now. Until it ends, its outcome is what a client that hangs up has to
    /// take it for.
    pub(super) fn start(io: &'a IoLoop, kind: RequestKind) -> Self {
        let cut_off = if kind.writes() { CallOutcome::Unknown } else { CallOutcome::NotApplied };
        let (level, outcome, of_keys) = (None, Some(cut_off), None);
        Self { io, kind, level, outcome, of_keys, started_us: io.now_us() }
    }

    /// Notes the level that it is served at.
    pub(super) fn at_level(&mut self, level: ConsistencyLevel) {
        self.level = Some(level);
    }

    /// Notes that a key of a batch has failed: the batch counts as its worst key.
    pub(super) fn key_failed(&mut self, error: &CallError) {
        if self.of_keys != Some(CallOutcome::Unknown) {
            self.of_keys = Some(error.outcome);
        }
    }

    /// Ends it.
    pub(super) fn end<T>(mut self, result: &Result<T, CallError>) {
        self.outcome = match result {
            Ok(_) => self.of_keys,
            Err(error) => Some(error.outcome),
        };
    }
}

impl Drop for MeasuredRequest<'_> {
    fn drop(&mut self) {
        let now_us = self.io.now_us();
        let took_us = now_us.saturating_sub(self.started_us);
        if self.kind.is_of_one_key() {
            self.io.shared.foreground.measured(took_us, now_us);
        }
        let table = &self.io.shared.loop_metrics[self.io.index].requests;
        table.record(self.kind, self.level, self.outcome, took_us);
    }
}
