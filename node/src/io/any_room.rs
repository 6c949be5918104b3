//! Refuses writes at ANY for which there is no room (H3).

use coordinator::WriteRequest;
use model::{Record, ReplicaSet};
use proto::{CallError, Reason};

use super::io_loop::IoLoop;
use crate::{commit::hint_bytes_of, counters::Counters, view::View};

impl IoLoop {
    /// Refuses a write at ANY that only a hint could acknowledge, if hints of ANY have reached their
    /// bound. While a replica is up the write goes on, and that replica acknowledges it.
    pub(super) fn check_any_room(
        &self,
        view: &View,
        request: &WriteRequest,
        replicas: &ReplicaSet,
    ) -> Result<(), CallError> {
        if !request.requirement.is_any() {
            return Ok(());
        }
        let shared = &self.shared;
        let value_bytes = request.value.as_ref().map_or(0, bytes::Bytes::len);
        let wanted = hint_bytes_of(&request.key, Record::OVERHEAD_BYTES + value_bytes);
        let (actual, limit) =
            (shared.hint_totals.load().any_bytes(), shared.config.any_hint_bytes_max);
        if actual.saturating_add(wanted) <= limit {
            return Ok(());
        }
        let alive = {
            let mut state = self.lock();
            state.peers.follow(view);
            state.peers.alive(replicas, shared.elapsed_us())
        };
        if !alive.is_empty() {
            return Ok(());
        }
        Counters::count(&shared.counters.calls_any_hints_full);
        let message = format!(
            "no replica is up, and the hints of writes at ANY have {actual} of {limit} bytes; nothing \
             was kept"
        );
        Err(CallError::new(Reason::AnyHintsFull, message)
            .with("limit", limit)
            .with("actual", actual))
    }
}
