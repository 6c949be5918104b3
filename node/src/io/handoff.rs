//! Hinted handoff: writes kept for a replica that was away go to it when it is back.
//!
//! An accelerator: no level but ANY counts on it (H1). A hint is dropped only after the target has
//! answered durably (H2).

use std::{sync::Arc, time::Duration};

use model::{Mutant, NodeIndex, Refusal, StorageKey, Version};
use proto::internal::{Mutation, MutationKind};
use tokio::sync::oneshot;

use super::io_loop::{Alarm, IoLoop};
use crate::{
    commit::{CommitItem, Hint, HintPage, hints_for},
    counters::Counters,
    liveness::Peer,
    operation::{HintReplay, Operation},
};

impl IoLoop {
    /// Delivers hints for as long as the node lives: one page at a time to each node that is up, so
    /// that a target sets the pace by its answers.
    pub(super) async fn run_handoff(self: Arc<Self>) {
        loop {
            tokio::time::sleep(HANDOFF_INTERVAL).await;
            let now_us = self.shared.elapsed_us();
            let peers: Vec<_> = {
                let state = self.lock();
                state.peers.iter().filter(|it| it.status.is_up(now_us)).cloned().collect()
            };
            for peer in peers {
                let mut after = None;
                while let Some(next) = self.deliver_page(&peer, after).await {
                    after = Some(next);
                }
            }
        }
    }

    /// Delivers the page of hints behind a key, and returns the key to go on behind. A hint that the
    /// target refuses for its own sake stays for the next pass and holds up nothing; a target that is
    /// silent, or takes no hints just now, ends this one.
    async fn deliver_page(&self, peer: &Peer, after: Option<StorageKey>) -> Option<StorageKey> {
        let node = peer.node;
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
                self.drop_hint(peer, hint.key, hint.record.version());
                continue;
            }
            let (key, version) = (hint.key.clone(), hint.record.version());
            if Mutant::HintForgottenWhenSent.is_on() {
                self.drop_hint(peer, key.clone(), version);
            }
            waiting.push((key, version, self.send_hint(target, hint)));
        }
        let mut takes_more = true;
        for (key, version, answer) in waiting {
            match answer.await {
                Ok(Ok(())) => {
                    Counters::count(&self.shared.counters.hints_delivered);
                    self.drop_hint(peer, key, version);
                }
                Ok(Err(refusal)) => takes_more &= concerns_one_hint(refusal),
                Err(_) => takes_more = false,
            }
        }
        for key in damaged {
            self.drop_hint(peer, key, Version::ABSENT);
        }
        next.filter(|_| takes_more)
    }

    fn send_hint(&self, target: NodeIndex, hint: Hint) -> oneshot::Receiver<Result<(), Refusal>> {
        let (done, answer) = oneshot::channel();
        let (key, version) = (hint.key.clone(), hint.record.version());
        let replay = HintReplay { target, key, version, done };
        let mut state = self.lock();
        let token = state.operations.insert(Operation::Hint(replay));
        let deadline_us = self.now_us() + HINT_TIMEOUT_US;
        self.set_alarm(&mut state, deadline_us, token, Alarm::Deadline);
        let bytes = hint.key.as_bytes().len() + hint.record.as_bytes().len() + 64;
        let mutation = Mutation {
            operation: token.with_sequence(0).0,
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

    fn drop_hint(&self, peer: &Peer, key: StorageKey, version: Version) {
        let item = CommitItem::DropHint { target: peer.node, key, version };
        // Not taken: the hint is delivered once more, which changes nothing.
        let _ = self.shared.commits.push(|items| items.push(item));
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
