//! Hinted handoff: writes kept for a replica that was away go to it when it is back.
//!
//! An accelerator: no level but ANY counts on it (H1). A hint is dropped only after the target has
//! answered durably (H2), or for a dirty mark in the same batch (H3).

mod aging;
mod board;
mod pace;
mod pass;

use std::{sync::Arc, time::Duration};

use model::NodeId;
use tokio::{sync::oneshot, task::JoinSet};

use super::io_loop::IoLoop;
use crate::{
    commit::{CommitItem, KeptHints},
    view::View,
};
pub(crate) use board::{HandoffBoard, PassEnd, TargetState};

impl IoLoop {
    /// Delivers hints for as long as the node lives: every target that is up has a pass of its own, at
    /// its own pace, and none waits for another. This node is one of them: its own replica may have
    /// refused what the next group then kept as a hint, and ANY may rest on that hint alone.
    pub(super) async fn run_handoff(self: Arc<Self>) {
        let mut passes = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.shared.handoff.wanted.notified() => {}
                () = tokio::time::sleep(HANDOFF_INTERVAL) => {}
            }
            while let Some(ended) = passes.try_join_next() {
                if ended.is_err_and(|it| it.is_panic()) {
                    // The node stops, as it does when any of its tasks ends.
                    return;
                }
            }
            let view = self.shared.view.load_full();
            let Some(metadata) = view.metadata() else { continue };
            let kept = self.shared.hint_totals.load().all();
            self.shared.handoff.retain(|node| {
                kept.contains_key(&node) || metadata.layout().node_index(node).is_some()
            });
            for (target, hints) in kept {
                self.attend(&view, target, &hints, &mut passes);
            }
        }
    }

    /// Begins what a target's hints need now.
    fn attend(
        self: &Arc<Self>,
        view: &View,
        target: NodeId,
        hints: &KeptHints,
        passes: &mut JoinSet<()>,
    ) {
        let board = &self.shared.handoff;
        let is_member = view.node_index(target).is_some();
        if hints.hints() > 0
            && (!is_member || self.can_deliver(target))
            && let Some((number, pace)) = board.begin(target, self.now_us())
        {
            passes.spawn(Arc::clone(self).run_pass(target, number, pace));
        }
        if let Some(until_ms) = self.aged_before_ms(hints)
            && board.begin_aging(target)
        {
            passes.spawn(Arc::clone(self).run_aging(target, until_ms));
        }
        if !is_member && hints.hints() == 0 {
            self.queue(CommitItem::ForgetDirtyMarks { target });
        }
    }

    /// True if hints for a target have a chance now.
    pub(super) fn can_deliver(&self, target: NodeId) -> bool {
        let now_us = self.shared.elapsed_us();
        target == self.shared.identity.node
            || self.lock().peers.by_node(target).is_some_and(|it| it.status.is_up(now_us))
    }

    /// Waits until everything queued for the disk is durable or refused; false if the node ends.
    pub(in crate::io) async fn settled(&self) -> bool {
        let (done, settled) = oneshot::channel();
        let done = Box::new(move |_| {
            // Nobody listening any more is no error.
            let _ = done.send(());
        });
        self.queue(CommitItem::Settled { done });
        settled.await.is_ok()
    }

    /// Queues what the commit queue never refuses for lack of room. A closed queue is a node that ends,
    /// and a hint that stays is met once more: versions commute.
    pub(in crate::io) fn queue(&self, item: CommitItem<crate::shared::Destination>) {
        let _ = self.shared.commits.push(|items| items.push_back(item));
    }
}

/// How soon a target that is back gets its hints.
const HANDOFF_INTERVAL: Duration = Duration::from_secs(1);
const PAGE_HINTS: usize = 256;
