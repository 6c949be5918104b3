//! Work that waits for the disk, and never on a loop.

use std::sync::Arc;

use model::Refusal;

use super::Shared;
use crate::{counters::Counters, io::Blocking};

impl Shared {
    /// Runs work that blocks where it may: in the pool, or in the simulated time of a simulation.
    #[expect(clippy::disallowed_methods, reason = "the one seam to the blocking pool")]
    pub async fn blocking<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        match &self.world.blocking {
            Blocking::Simulated(pace) => {
                pace.read().await;
                let done = work(&self);
                pace.read().await;
                done
            }
            Blocking::Threads => {
                let joined = tokio::task::spawn_blocking(move || work(&self)).await;
                // The pool ends only with the node.
                joined.unwrap_or(Err(Refusal::Failed))
            }
        }
    }

    /// Runs a read that a call waits for, as [`Shared::blocking`] does.
    ///
    /// `Overloaded` if [`disk_reads_max`](crate::config::NodeConfig::disk_reads_max) wait already, or if
    /// its turn comes when no call that asked for it can be waiting any more: a disk that is too slow for
    /// what is asked would do nothing else then.
    pub(crate) async fn read_from_disk<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        Counters::count(&self.counters.reads_from_disk);
        let Ok(permit) = Arc::clone(&self.disk_reads).try_acquire_owned() else {
            Counters::count(&self.counters.reads_from_disk_refused);
            return Err(Refusal::Overloaded);
        };
        let late_us = self.elapsed_us() + self.config.request_timeout_ms * 1_000;
        let read = move |shared: &Self| {
            // Whoever gives up on a read leaves it in the pool's queue.
            let _permit = permit;
            if shared.elapsed_us() > late_us {
                Counters::count(&shared.counters.reads_from_disk_refused);
                return Err(Refusal::Overloaded);
            }
            Ok(work(shared))
        };
        self.blocking(read).await
    }
}
