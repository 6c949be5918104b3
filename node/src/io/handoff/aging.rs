//! Hints that nobody could deliver in time: a dirty mark takes their place (H3).

use std::sync::Arc;

use model::{NodeId, Refusal, Version};

use super::PAGE_HINTS;
use crate::{
    commit::{CommitItem, HintClass, HintEnd, HintPage, KeptHints, hints_for},
    io::IoLoop,
};

impl IoLoop {
    /// Up to which stamp a target's hints are given up now: `None` while the oldest is young enough.
    ///
    /// Some more are given up than have to be. They are found by reading all of the target's hints,
    /// which must not be done again for each of them.
    pub(super) fn aged_before_ms(&self, hints: &KeptHints) -> Option<u64> {
        let age_ms = self.shared.config.hint_age_ms_max;
        let now_ms = self.shared.believed_wall().0;
        let oldest_ms = hints.ordinary.oldest_ms?;
        (now_ms.saturating_sub(oldest_ms) > age_ms)
            .then(|| now_ms.saturating_sub(age_ms - age_ms / EARLY_PART))
    }

    /// Gives up the hints of a target that were stamped before `until_ms`.
    pub(super) async fn run_aging(self: Arc<Self>, target: NodeId, until_ms: u64) {
        let (mut after, mut aged) = (None, 0_usize);
        while let Some(page) = self.hint_page(target, after).await {
            for key in page.damaged {
                self.queue(CommitItem::DropHint { target, key, version: Version::ABSENT });
            }
            for hint in page.hints {
                let version = hint.record.version();
                if hint.class == HintClass::Ordinary && version.hlc.ms() < until_ms {
                    aged += 1;
                    let (key, why) = (hint.key, HintEnd::Aged);
                    self.queue(CommitItem::EndHint { target, key, version, why });
                }
            }
            // A page at a time: the queue refuses none of it.
            if !self.settled().await || page.next.is_none() {
                break;
            }
            after = page.next;
        }
        if aged > 0 {
            tracing::warn!(%target, hints = aged, "hints were too old: what they cover is dirty");
        }
        self.shared.handoff.end_aging(target);
    }

    /// The page of a target's hints behind a key; `None` if it cannot be read.
    pub(super) async fn hint_page(
        &self,
        target: NodeId,
        after: Option<model::StorageKey>,
    ) -> Option<HintPage> {
        let shared = Arc::clone(&self.shared);
        let page = shared.blocking(move |shared| {
            hints_for(&shared.world.storage, target, after.as_ref(), PAGE_HINTS).map_err(|error| {
                tracing::error!(%error, "hints cannot be read");
                Refusal::Failed
            })
        });
        page.await.ok()
    }
}

/// A hint may be given up this part of its age early.
const EARLY_PART: u64 = 16;
