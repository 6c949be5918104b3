//! One round with one node: from the roots down to the records, until both hold the same.

mod compare;
mod slice;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use antientropy::{
    exchange::{TokenRange, Width},
    merkle::Tree,
};
use model::{Hlc, KeyspaceId, NodeId, NodeIndex, PartitionIndex};
use proto::internal::{ExchangeSettled, PartitionFloor, exchange_request::Step};

use super::{pace::Pace, step::Answered};
use crate::{
    commit::FloorTable,
    exchange::{RoundEnd, RoundReport},
    io::io_loop::IoLoop,
};

/// A round under way.
pub(super) struct Round<'a> {
    io: &'a IoLoop,
    other: NodeId,
    node: NodeIndex,
    partitions: u32,
    /// True if the other node is in another datacenter: then records are compressed.
    far: bool,
    pace: &'a mut Pace,
    how: How,
    /// This node's floors before it read what it is about to send: later ones would vouch for what is
    /// overwritten by then (F8).
    floors: Arc<FloorTable>,
    report: RoundReport,
}

/// How records are compared, and which of them move.
#[derive(Clone, Copy)]
struct How {
    width: Width,
    /// What is purgeable at this floor is left out.
    floor: Hlc,
    /// What is younger stays where it is.
    cutoff: Hlc,
    fetch: bool,
    push: bool,
}

impl How {
    /// What differs and is not on its way moves, both ways.
    fn settled(cutoff: Hlc) -> Self {
        Self { width: Width::Short, floor: Hlc::ZERO, cutoff, fetch: true, push: true }
    }

    /// Everything moves one way, and nothing is mistaken for something else.
    fn certain(direction: Direction) -> Self {
        Self {
            width: Width::Exact,
            floor: Hlc::ZERO,
            cutoff: Hlc(u64::MAX),
            fetch: direction == Direction::Gather,
            push: direction == Direction::Scatter,
        }
    }
}

/// Which records move before replicas sign (F2): to the one that asks first, and then from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Gather,
    Scatter,
}

/// A range of a keyspace whose records are to be compared.
type Suspect = (KeyspaceId, TokenRange);

impl<'a> Round<'a> {
    /// Compares this node with another one, everything or some keyspaces, and moves what differs.
    pub(super) async fn run(
        io: &'a IoLoop,
        other: NodeId,
        only: Option<BTreeSet<KeyspaceId>>,
        pace: &'a mut Pace,
    ) -> (RoundEnd, RoundReport) {
        let Some(mut round) = Self::new(io, other, How::settled(Hlc::ZERO), pace) else {
            return (RoundEnd::Away, RoundReport::default());
        };
        let mut end = RoundEnd::Differs;
        for _ in 0..PASSES_MAX {
            let moved = round.report;
            match round.pass(only.as_ref()).await {
                Ok(true) => end = RoundEnd::Same,
                Ok(false) if round.report.has_moved_since(&moved) => continue,
                Ok(false) => {}
                Err(why) => end = why,
            }
            break;
        }
        (end, round.report)
    }

    /// Brings all records of some partitions from another node, or to it. Those of which it is certain
    /// come back: every record was compared, and none was refused.
    pub(super) async fn bring(
        io: &'a IoLoop,
        other: NodeId,
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
        direction: Direction,
        pace: &'a mut Pace,
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        let how = How::certain(direction);
        let mut round = Self::new(io, other, how, pace).ok_or(RoundEnd::Away)?;
        let _turn = io.shared.exchange.moving.acquire().await.map_err(|_ended| RoundEnd::Stuck)?;
        let mut failed = Vec::new();
        for chunk in partitions.chunks(ROOTS_MAX) {
            let unequal = round.compare_roots(keyspace, chunk).await?;
            let count = round.partitions;
            let ranges = unequal.differing.iter().map(|it| whole_of(*it, count));
            let suspects = round.differing_ranges(keyspace, ranges).await?;
            round.how.floor = Hlc::ZERO;
            failed.extend(round.compare_records(suspects).await?);
            for (partition, theirs) in unequal.apart {
                let own = io.shared.floors.of(keyspace, partition).floor;
                round.how.floor = own.max(Hlc(theirs.floor));
                let suspect = (keyspace, whole_of(partition, count));
                failed.extend(round.compare_records(vec![suspect]).await?);
            }
        }
        io.shared.counters.count_round(&round.report);
        failed.sort_unstable();
        let is_certain = |it: &&PartitionIndex| failed.binary_search(it).is_err();
        Ok(partitions.iter().filter(is_certain).copied().collect())
    }

    fn new(io: &'a IoLoop, other: NodeId, how: How, pace: &'a mut Pace) -> Option<Self> {
        let view = io.shared.view.load_full();
        let (metadata, node) = (view.metadata()?, view.node_index(other)?);
        let partitions = metadata.layout().partitions();
        let far = metadata.layout().node(node).datacenter != io.shared.config.datacenter;
        let (floors, report) = (io.shared.floors.all(), RoundReport::default());
        let round = Self { io, other, node, partitions, far, pace, how, floors, report };
        io.can_deliver(other).then_some(round)
    }

    /// Compares everything once. True if nothing differs but what is on its way.
    async fn pass(&mut self, only: Option<&BTreeSet<KeyspaceId>>) -> Result<bool, RoundEnd> {
        let shared = &self.io.shared;
        let mut trees = shared.exchange.shared_trees(&shared.view.load(), self.other);
        if let Some(only) = only {
            trees.retain(|it| only.contains(&it.0));
        } else if self.is_all_equal(&trees).await? {
            return Ok(true);
        }
        self.report.trees = trees.iter().map(|it| count(it.1.len())).sum();
        let (mut settled, mut differing) = (true, 0);
        for (keyspace, partitions) in trees {
            for chunk in partitions.chunks(ROOTS_MAX) {
                let unequal = self.compare_roots(keyspace, chunk).await?;
                differing += count(unequal.differing.len());
                settled &= unequal.apart.is_empty();
                self.tell_floors(keyspace, &unequal.apart).await?;
                self.compare_apart(keyspace, &unequal.apart).await?;
                for trees in unequal.differing.chunks(LEAF_TREES_MAX) {
                    settled &= self.compare_trees(keyspace, trees).await?;
                }
            }
        }
        self.report.trees_differing = self.report.trees_differing.max(differing);
        Ok(settled)
    }

    /// Compares trees whose roots differ, and the records of their differing leaves. True if nothing
    /// differs but what is on its way.
    async fn compare_trees(
        &mut self,
        keyspace: KeyspaceId,
        trees: &[PartitionIndex],
    ) -> Result<bool, RoundEnd> {
        let shared = Arc::clone(&self.io.shared);
        let (at_us, count) = (self.io.now_us(), self.partitions);
        let ranges = trees.iter().map(|it| whole_of(*it, count));
        let suspects = self.differing_ranges(keyspace, ranges).await?;
        let mut unsettled: Vec<PartitionIndex> = Vec::new();
        if !suspects.is_empty() {
            // What is on its way arrives meanwhile.
            let settle_ms = shared.config.exchange_settle_ms;
            tokio::time::sleep(Duration::from_millis(settle_ms)).await;
            let _turn = shared.exchange.moving.acquire().await.map_err(|_ended| RoundEnd::Stuck)?;
            self.how = How::settled(shared.settled_before());
            unsettled = self.compare_records(suspects).await?;
            unsettled.sort_unstable();
            unsettled.dedup();
        }
        let pair = (keyspace, self.other);
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
        Ok(unsettled.is_empty())
    }

    /// Compares the records of trees that were purged up to different floors, less what the higher one
    /// covers (M3). Mostly the lower side has only not heard yet, and the next pass finds them comparable;
    /// one that cannot follow must not be left behind.
    async fn compare_apart(
        &mut self,
        keyspace: KeyspaceId,
        apart: &[(PartitionIndex, PartitionFloor)],
    ) -> Result<(), RoundEnd> {
        if apart.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.io.shared);
        tokio::time::sleep(Duration::from_millis(shared.config.exchange_settle_ms)).await;
        let _turn = shared.exchange.moving.acquire().await.map_err(|_ended| RoundEnd::Stuck)?;
        let mut differ = Vec::new();
        for (partition, theirs) in apart {
            let own = shared.floors.of(keyspace, *partition).floor;
            self.how =
                How { floor: own.max(Hlc(theirs.floor)), ..How::settled(shared.settled_before()) };
            let suspect = (keyspace, whole_of(*partition, self.partitions));
            differ.extend(self.compare_records(vec![suspect]).await?);
        }
        shared.exchange.differed((keyspace, self.other), &differ, self.io.now_us());
        Ok(())
    }

    async fn ask(&mut self, step: Step) -> Result<Answered, RoundEnd> {
        let answered = self.io.exchange_step(self.node, step).await?;
        self.report.bytes_sent += count(answered.bytes_sent);
        self.report.bytes_received += count(answered.bytes_received);
        Ok(answered)
    }
}

/// The range of a whole partition.
fn whole_of(partition: PartitionIndex, partitions: u32) -> TokenRange {
    TokenRange::of(&Tree::root(partition, partitions))
}

fn count(it: usize) -> u64 {
    u64::try_from(it).unwrap_or(u64::MAX)
}

/// Each finds what the one before has left: names that were mistaken, and what has changed meanwhile.
const PASSES_MAX: usize = 8;
/// Roots compared in one step: 64 KiB with their floors.
const ROOTS_MAX: usize = 4_096;
/// Trees whose leaves are compared before their records are.
const LEAF_TREES_MAX: usize = 1_024;
