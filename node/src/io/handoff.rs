//! Hinted handoff: writes kept for a replica that was away go to it when it is back.
//!
//! An accelerator: no level but ANY counts on it (H1). A hint is dropped only after the target has
//! answered durably (H2).

use std::{sync::Arc, time::Duration};

use model::{Mutant, NodeId, NodeIndex, Refusal, StorageKey, Version};
use proto::internal::{Mutation, MutationKind};
use tokio::sync::oneshot;

use super::io_loop::{Alarm, IoLoop};
use crate::{
    commit::{CommitItem, Hint, HintPage, hints_for},
    counters::Counters,
    operation::{HintReplay, Operation},
    shared::Destination,
};

impl IoLoop {
    /// Delivers hints for as long as the node lives: one page at a time to each node that is up, so
    /// that a target sets the pace by its answers. This node is one of them: its own replica may have
    /// refused what the next group then kept as a hint, and ANY may rest on that hint alone.
    pub(super) async fn run_handoff(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HANDOFF_INTERVAL).await;
            let now_us = self.shared.elapsed_us();
            let mut targets = vec![self.shared.identity.node];
            {
                let state = self.lock();
                let up = state.peers.iter().filter(|it| it.status.is_up(now_us));
                targets.extend(up.map(|it| it.node));
            }
            for target in targets {
                let mut after = None;
                while let Some(next) = self.deliver_page(target, after).await {
                    after = Some(next);
                }
            }
        }
    }

    /// Delivers the page of hints behind a key, and returns the key to go on behind. A hint that the
    /// target refuses for its own sake stays for the next pass and holds up nothing; a target that is
    /// silent, or takes no hints just now, ends this one.
    async fn deliver_page(&self, node: NodeId, after: Option<StorageKey>) -> Option<StorageKey> {
        let shared = Arc::clone(&self.shared);
        let page = shared.blocking(move |shared| {
            hints_for(&shared.world.storage, node, after.as_ref(), PAGE_HINTS).map_err(|error| {
                tracing::error!(%error, "hints cannot be read");
                Refusal::Failed
            })
        });
        let HintPage { hints, damaged, next } = page.await.ok()?;
        let target = self.shared.view.load().node_index(node)?;
        let mut waiting = Vec::with_capacity(hints.len());
        let view = self.shared.view.load_full();
        for hint in hints {
            let dropped = |it: &&model::Metadata| it.was_dropped(hint.key.keyspace());
            if view.metadata().map(|it| &**it).filter(dropped).is_some() {
                self.drop_hint(node, hint.key, hint.record.version());
                continue;
            }
            let (key, version) = (hint.key.clone(), hint.record.version());
            if Mutant::HintForgottenWhenSent.is_on() {
                self.drop_hint(node, key.clone(), version);
            }
            waiting.push((key, version, self.send_hint(target, hint)));
        }
        self.push_local(&mut self.lock());
        let mut takes_more = true;
        for (key, version, answer) in waiting {
            match answer.await {
                Ok(Ok(())) => {
                    Counters::count(&self.shared.counters.hints_delivered);
                    self.drop_hint(node, key, version);
                }
                Ok(Err(refusal)) => takes_more &= concerns_one_hint(refusal),
                Err(_) => takes_more = false,
            }
        }
        for key in damaged {
            self.drop_hint(node, key, Version::ABSENT);
        }
        next.filter(|_| takes_more)
    }

    /// Sends a hint to its target; those for this node wait to be pushed together.
    fn send_hint(&self, target: NodeIndex, hint: Hint) -> oneshot::Receiver<Result<(), Refusal>> {
        let (done, answer) = oneshot::channel();
        let (key, version) = (hint.key.clone(), hint.record.version());
        let replay = HintReplay { target, key, version, done };
        let mut state = self.lock();
        let token = state.operations.insert(Operation::Hint(replay));
        let deadline_us = self.now_us() + HINT_TIMEOUT_US;
        self.set_alarm(&mut state, deadline_us, token, Alarm::Deadline);
        let operation = token.with_sequence(0);
        if state.peers.own() == Some(target) {
            state.local.push(CommitItem::Mutation {
                destination: Destination::Loop(self.index),
                operation,
                slot: 0,
                key: hint.key,
                record: hint.record,
                want_newest: false,
            });
            return answer;
        }
        let bytes = hint.key.as_bytes().len() + hint.record.as_bytes().len() + 64;
        let mutation = Mutation {
            operation: operation.0,
            key: hint.key.as_bytes().clone(),
            record: hint.record.into_bytes(),
            kind: MutationKind::Hint.into(),
            ..Mutation::default()
        };
        let sent = state.peers.get(target).is_some_and(|it| {
            it.outbox.push(bytes, |frame| frame.mutations.push(mutation)).is_ok()
        });
        if !sent {
            state.operations.remove(token);
        }
        answer
    }

    fn drop_hint(&self, target: NodeId, key: StorageKey, version: Version) {
        let item = CommitItem::DropHint { target, key, version };
        // Not taken: the hint is delivered once more, which changes nothing.
        let _ = self.shared.commits.push(|items| items.push_back(item));
    }
}

/// True if the target refuses this hint, and might take the next.
fn concerns_one_hint(refusal: Refusal) -> bool {
    match refusal {
        Refusal::BelowFence | Refusal::ClockAhead | Refusal::Corrupt => true,
        Refusal::StaleLayout
        | Refusal::NotReady
        | Refusal::Failed
        | Refusal::Overloaded
        | Refusal::DiskFull => false,
    }
}

const HANDOFF_INTERVAL: Duration = Duration::from_secs(1);
const HINT_TIMEOUT_US: u64 = 5_000_000;
const PAGE_HINTS: usize = 256;
