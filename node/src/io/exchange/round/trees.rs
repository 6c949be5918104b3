//! The part of a round that brings trees together: some at a time, each with one node at a time.

use std::{sync::Arc, time::Duration};

use model::{Hlc, KeyspaceId, NodeId, PartitionIndex};
use proto::internal::{ExchangeSettled, exchange_request::Step};
use rand::RngExt;

use super::{How, Round, Suspect, whole_of};
use crate::exchange::{Begun, ExchangeBoard, RoundEnd};

/// What this node has claimed for one round; free again when this is dropped.
struct Claim<'a> {
    board: &'a ExchangeBoard,
    with: NodeId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.board.end_claim(self.with, Begun::Here);
    }
}

impl Round<'_> {
    /// Brings together the trees of a keyspace whose roots differ. Those come back that differ in more than
    /// what is on its way, and those that another round has at the moment: they are put off.
    pub(super) async fn bring_together(
        &mut self,
        keyspace: KeyspaceId,
        mut trees: Vec<PartitionIndex>,
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        let mut unsettled = Vec::new();
        if trees.is_empty() {
            return Ok(unsettled);
        }
        let shared = Arc::clone(&self.io.shared);
        let settle_ms = shared.config.exchange_settle_ms;
        // Two rounds that meet do so with different trees first, and not always at the same moments.
        let (jitter_ms, start) = {
            let random = &mut self.io.lock().random;
            (random.random_range(0..=settle_ms / 4), random.random_range(0..trees.len()))
        };
        trees.rotate_left(start);
        // What is on its way arrives meanwhile.
        tokio::time::sleep(Duration::from_millis(settle_ms + jitter_ms)).await;
        let _claim = Claim { board: &shared.exchange, with: self.other };
        for trees in trees.chunks(CLAIM_TREES_MAX) {
            let _turn = shared.exchange.moving.acquire().await.map_err(|_ended| RoundEnd::Stuck)?;
            let (pair, now_us) = ((self.other, Begun::Here), self.io.now_us());
            let free = shared.exchange.claim(pair, keyspace, trees, now_us);
            self.put_off |= free.len() < trees.len();
            unsettled.extend(trees.iter().filter(|it| !free.contains(it)));
            if free.is_empty() {
                continue;
            }
            let unequal = self.claim_roots(keyspace, &free).await?;
            self.put_off |= !unequal.busy.is_empty();
            unsettled.extend(unequal.busy);
            // What has come apart meanwhile is the next pass's.
            unsettled.extend(unequal.apart.iter().map(|it| it.0));
            let (trees, since) = (unequal.differing, unequal.since);
            unsettled.extend(self.compare_trees(keyspace, trees, since).await?);
        }
        Ok(unsettled)
    }

    /// Compares trees, and the records of their differing leaves. Those come back in which something did.
    /// `since` is what the other node knows of when they were the same.
    async fn compare_trees(
        &mut self,
        keyspace: KeyspaceId,
        mut trees: Vec<PartitionIndex>,
        since: Hlc,
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        let (shared, at_us) = (Arc::clone(&self.io.shared), self.io.now_us());
        let pair = (keyspace, self.other);
        let mut suspects = self.differing_leaves(keyspace, &trees).await?;
        let since = since.max(shared.same_before(pair, &trees));
        if since > Hlc::ZERO && suspects.len() >= SUSPECTS_MANY {
            // One of the two was away: what was written meanwhile is told by few bytes, and mostly is all.
            self.how = How { since, ..How::settled(shared.settled_before()) };
            self.compare_records(suspects).await?;
            trees = self.claim_roots(keyspace, &trees).await?.differing;
            suspects = self.differing_leaves(keyspace, &trees).await?;
        }
        self.how = How::settled(shared.settled_before());
        let mut unsettled = self.compare_records(suspects).await?;
        unsettled.sort_unstable();
        unsettled.dedup();
        shared.exchange.differed(pair, &unsettled, self.io.now_us());
        let is_settled = |it: &&PartitionIndex| unsettled.binary_search(it).is_err();
        let settled: Vec<_> = trees.iter().filter(is_settled).copied().collect();
        if !settled.is_empty() {
            shared.exchange.verified(pair, &settled, at_us);
            let age_ms = (self.io.now_us() - at_us) / 1_000;
            let partitions = settled.iter().map(|it| it.0.into()).collect();
            let age_ms = u32::try_from(age_ms).unwrap_or(u32::MAX);
            self.ask(Step::Settled(ExchangeSettled { keyspace: keyspace.0, partitions, age_ms }))
                .await?;
        }
        Ok(unsettled)
    }

    async fn differing_leaves(
        &mut self,
        keyspace: KeyspaceId,
        trees: &[PartitionIndex],
    ) -> Result<Vec<Suspect>, RoundEnd> {
        let count = self.partitions;
        self.differing_ranges(keyspace, trees.iter().map(|it| whole_of(*it, count))).await
    }
}

/// Trees that are claimed at a time: few, so that several nodes may each bring some to one that returns.
const CLAIM_TREES_MAX: usize = 64;
/// Fewer leaves differ among trees under load, by what is on its way alone.
const SUSPECTS_MANY: usize = 64;
