//! Exchanges: replicas are compared all the time, and what one of two lacks moves (H1, M4, M5).
//!
//! Of two nodes that share trees one begins the rounds; it asks, and the other answers from what it
//! holds. A round costs one small message while both are the same.

mod fill;
mod heal;
pub(super) mod pace;
mod purge;
mod round;
mod serve;
mod space;
mod step;
mod sweep;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use model::{Mutant, NodeId, Refusal};
use rand::RngExt;
use tokio::task::JoinSet;

use super::io_loop::IoLoop;
use crate::{
    commit::{CommitItem, dirty_marks},
    exchange::{ExchangeBoard, RoundEnd, RoundReport},
};
pub(crate) use fill::{FillBoard, FillStatus};
use round::Round;

impl IoLoop {
    /// Compares this node with every other one that it shares trees with, for as long as it lives.
    pub(super) async fn run_exchange(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        let mut begun = BTreeMap::new();
        loop {
            let changed = self.shared.metadata_changed.notified();
            while let Some(ended) = tasks.try_join_next() {
                if ended.is_err_and(|it: tokio::task::JoinError| it.is_panic()) {
                    // The node stops, as it does when any of its tasks ends.
                    return;
                }
            }
            let partners = self.shared.exchange.partners(&self.shared.view.load());
            let own = self.shared.identity.node;
            for other in partners.iter().filter(|it| ExchangeBoard::begins(own, **it)) {
                begun
                    .entry(*other)
                    .or_insert_with(|| tasks.spawn(Arc::clone(&self).run_rounds(*other)));
            }
            begun.retain(|other, task| {
                let stays = partners.contains(other);
                if !stays {
                    task.abort();
                }
                stays
            });
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep(PARTNERS_INTERVAL) => {}
            }
        }
    }

    /// Begins rounds with one node, again and again.
    async fn run_rounds(self: Arc<Self>, other: NodeId) {
        let exchange = &self.shared.exchange;
        let mut pace = pace::Pace::default();
        loop {
            let wanted = exchange.wanted.notified();
            let asked = exchange.asked(other);
            if !asked.is_new {
                let interval_ms = self.shared.config.exchange_interval_ms;
                let jitter_ms = self.lock().random.random_range(0..=interval_ms / 2);
                let wait = Duration::from_millis(interval_ms - interval_ms / 4 + jitter_ms);
                tokio::select! {
                    biased;
                    () = wanted => continue,
                    () = tokio::time::sleep(wait) => {}
                }
            }
            if self.shared.is_filling() {
                // Its replicas count for nothing yet: what they lack is brought otherwise (F7).
                exchange.ended(other, asked.number, RoundEnd::Stuck, RoundReport::default());
                continue;
            }
            if Mutant::ExchangeOff.is_on() {
                exchange.ended(other, asked.number, RoundEnd::Same, RoundReport::default());
                continue;
            }
            let (end, report) = Round::run(&self, other, asked.keyspaces, &mut pace).await;
            if report.has_moved() {
                tracing::info!(%other, ?end, ?report, "replicas have been brought together");
            } else if !matches!(
                end,
                RoundEnd::Same | RoundEnd::Away | RoundEnd::Refused(Refusal::NotReady)
            ) {
                tracing::warn!(%other, ?end, "replicas could not be compared");
            }
            self.shared.counters.count_round(&report);
            exchange.ended(other, asked.number, end, report);
        }
    }

    /// Asks targets of dirty marks, for as long as the node lives, whether what they may lack has come:
    /// then the marks go.
    pub(super) async fn run_dirty_marks(self: Arc<Self>) {
        loop {
            tokio::time::sleep(DIRTY_INTERVAL).await;
            let kept = self.shared.hint_totals.load().all();
            let dirty = kept.iter().filter(|it| it.1.dirty_marks > 0);
            for target in dirty.map(|it| *it.0) {
                self.ask_dirty(target).await;
            }
        }
    }

    /// Asks one target. What it does not answer is asked again.
    async fn ask_dirty(&self, target: NodeId) {
        let work = move |shared: &crate::shared::Shared| {
            dirty_marks(&shared.world.storage, target).map_err(|error| shared.read_error(&error))
        };
        let Ok(marks) = Arc::clone(&self.shared).blocking(work).await else { return };
        for marks in marks.chunks(DIRTY_PARTS) {
            let Some(compared) = self.dirty_step(target, marks).await else { return };
            for ((mark, generation), _) in marks.iter().zip(compared).filter(|it| it.1) {
                let (mark, generation) = (*mark, *generation);
                let item = CommitItem::DropDirtyMark { mark, generation };
                // Never refused for lack of room; a closed queue is a node that ends.
                let _ = self.shared.commits.push(|items| items.push_back(item));
            }
        }
    }
}

/// How soon a node that has joined the layout is compared with, at most.
const PARTNERS_INTERVAL: Duration = Duration::from_secs(1);
/// How often targets are asked.
const DIRTY_INTERVAL: Duration = Duration::from_secs(5);
/// Parts of the ring asked for at a time.
const DIRTY_PARTS: usize = 1_024;
