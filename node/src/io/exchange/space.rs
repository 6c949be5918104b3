//! The space of what was purged: given back by the engine's compactions, which it begins where a file holds
//! many deletes. So they have to come to a file, even if nobody writes any more.

use std::sync::{Arc, atomic::Ordering};

use model::Refusal;

use crate::{
    io::io_loop::IoLoop,
    shared::Shared,
    storage::{Storage, StorageError},
};

/// Fewer rows go to a file with the writes that follow.
const PURGED_ROWS_MIN: u64 = 1_024;

impl IoLoop {
    /// Writes deletes to files if many were made since the last time, when so many had been.
    pub(super) async fn give_space_back(&self, purged_before: &mut u64) {
        let counters = self.shared.commit_counters.load();
        let purged = counters.records_purged.load(Ordering::Relaxed);
        if purged.saturating_sub(*purged_before) < PURGED_ROWS_MIN {
            return;
        }
        let work = |it: &Shared| {
            it.world.storage.flush().map_err(|error| match error {
                StorageError::Full { .. } => {
                    tracing::warn!(%error, "there is no room to give space back");
                    Refusal::Failed
                }
                error => it.read_error(&error),
            })
        };
        // With what has failed it is tried again.
        if Arc::clone(&self.shared).blocking(work).await.is_ok() {
            *purged_before = purged;
        }
    }
}
