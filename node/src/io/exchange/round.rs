//! One round with one node: from the roots down to the records, until both hold the same.

mod compare;
mod slice;
mod trees;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use antientropy::{
    exchange::{TokenRange, Width},
    merkle::Tree,
};
use model::{Hlc, KeyspaceId, Mutant, NodeId, NodeIndex, PartitionIndex};
use proto::internal::{PartitionFloor, exchange_request::Step};

use super::{pace::Pace, step::Answered};
use crate::{
    commit::FloorTable,
    exchange::{RoundEnd, RoundReport, SharedTrees, partition_of},
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
    /// Set while this node's replicas are being filled.
    filling: Option<Filling>,
    /// True if this pass has left something to another node's round, which has it at the moment.
    put_off: bool,
}

/// How records are compared, and which of them move.
#[derive(Clone, Copy)]
struct How {
    width: Width,
    /// What is purgeable at this floor is left out.
    floor: Hlc,
    /// Only what was stamped later is compared.
    since: Hlc,
    /// What is younger stays where it is.
    cutoff: Hlc,
    fetch: bool,
    push: bool,
}

impl How {
    /// What differs and is not on its way moves, both ways.
    fn settled(cutoff: Hlc) -> Self {
        let (floor, since) = (Hlc::ZERO, Hlc::ZERO);
        Self { width: Width::Short, floor, since, cutoff, fetch: true, push: true }
    }

    /// Everything moves one way, and nothing is mistaken for something else.
    fn certain(direction: Direction) -> Self {
        Self {
            width: Width::Exact,
            floor: Hlc::ZERO,
            since: Hlc::ZERO,
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

/// How replicas are filled from one source (F7).
struct Filling {
    /// The source's floors.
    floors: BTreeMap<PartitionIndex, Hlc>,
    /// What only this node holds at or below the floor goes.
    discard: bool,
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
        let mut trees = io.shared.exchange.shared_trees(&io.shared.view.load(), other);
        match &only {
            Some(only) => trees.retain(|it| only.contains(&it.0)),
            None => match round.is_all_equal(&trees).await {
                Ok(true) => return (RoundEnd::Same, round.report),
                Ok(false) => {}
                Err(why) => return (why, round.report),
            },
        }
        round.report.trees = trees.iter().map(|it| count(it.1.len())).sum();
        let (mut end, mut passes) = (RoundEnd::Differs, 0);
        while passes < PASSES_MAX {
            let before = round.report;
            round.put_off = false;
            match round.pass(&trees).await {
                Ok(left) if left.is_empty() => end = RoundEnd::Same,
                Ok(left) if round.put_off || round.report.has_moved_since(&before) => {
                    // To wait for another round is no pass: who has it goes on, or its claim ends.
                    passes += usize::from(!round.put_off);
                    trees = left;
                    continue;
                }
                Ok(_differing) => {}
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
        round.bring_certain(keyspace, partitions).await
    }

    /// Brings what a source holds of partitions that are being filled; its floors come with them. With
    /// `discard` what this node holds at or below such a floor, and the source does not, goes before. As
    /// `bring`, those of which it is certain come back.
    pub(super) async fn fill(
        io: &'a IoLoop,
        other: NodeId,
        keyspace: KeyspaceId,
        partitions: &[(PartitionIndex, Hlc)],
        discard: bool,
        pace: &'a mut Pace,
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        let how = How::certain(Direction::Gather);
        let mut round = Self::new(io, other, how, pace).ok_or(RoundEnd::Away)?;
        let floors = partitions.iter().copied().collect();
        round.filling = Some(Filling { floors, discard });
        let partitions: Vec<_> = partitions.iter().map(|it| it.0).collect();
        round.bring_certain(keyspace, &partitions).await
    }

    async fn bring_certain(
        &mut self,
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        let shared = Arc::clone(&self.io.shared);
        let _turn = shared.exchange.moving.acquire().await.map_err(|_ended| RoundEnd::Stuck)?;
        let mut failed = Vec::new();
        for chunk in partitions.chunks(ROOTS_MAX) {
            let unequal = self.compare_roots(keyspace, chunk).await?;
            let count = self.partitions;
            let ranges = unequal.differing.iter().map(|it| whole_of(*it, count));
            let suspects = self.differing_ranges(keyspace, ranges).await?;
            for (floor, suspects) in self.by_floor(suspects) {
                self.how.floor = floor;
                failed.extend(self.compare_records(suspects).await?);
            }
            for (partition, theirs) in unequal.apart {
                let own = shared.floors.of(keyspace, partition).floor;
                self.how.floor = own.max(Hlc(theirs.floor));
                let suspect = (keyspace, whole_of(partition, count));
                failed.extend(self.compare_records(vec![suspect]).await?);
            }
        }
        shared.counters.count_round(&self.report);
        failed.sort_unstable();
        let is_certain = |it: &&PartitionIndex| failed.binary_search(it).is_err();
        Ok(partitions.iter().filter(is_certain).copied().collect())
    }

    /// At which floors trees are compared that were purged alike. While they are filled, at their own: a source
    /// that has not swept yet still holds the tombstones of what it would not hold any more, and they are
    /// refused here (F7).
    fn by_floor(&self, suspects: Vec<Suspect>) -> BTreeMap<Hlc, Vec<Suspect>> {
        let mut by_floor = BTreeMap::<Hlc, Vec<Suspect>>::new();
        for suspect in suspects {
            let floor = match (&self.filling, partition_of(suspect.1, self.partitions)) {
                (Some(_), Some(partition)) if !Mutant::FillMeetsUnswept.is_on() => {
                    self.io.shared.floors.of(suspect.0, partition).floor
                }
                _ => Hlc::ZERO,
            };
            by_floor.entry(floor).or_default().push(suspect);
        }
        by_floor
    }

    fn new(io: &'a IoLoop, other: NodeId, how: How, pace: &'a mut Pace) -> Option<Self> {
        let view = io.shared.view.load_full();
        let (metadata, node) = (view.metadata()?, view.node_index(other)?);
        let partitions = metadata.layout().partitions();
        let far = metadata.layout().node(node).datacenter != io.shared.config.datacenter;
        let (floors, report) = (io.shared.floors.all(), RoundReport::default());
        let (filling, put_off) = (None, false);
        let round =
            Self { io, other, node, partitions, far, pace, how, floors, report, filling, put_off };
        io.can_deliver(other).then_some(round)
    }

    /// Compares trees once. Those come back that are to be compared again: they were put off, or differ in
    /// more than what is on its way.
    async fn pass(&mut self, trees: &SharedTrees) -> Result<SharedTrees, RoundEnd> {
        let (mut left, mut differing) = (SharedTrees::new(), 0);
        for (keyspace, partitions) in trees {
            let (keyspace, mut unequal_trees) = (*keyspace, Vec::new());
            let mut unsettled = Vec::new();
            for chunk in partitions.chunks(ROOTS_MAX) {
                let unequal = self.compare_roots(keyspace, chunk).await?;
                self.tell_floors(keyspace, &unequal.apart).await?;
                self.compare_apart(keyspace, &unequal.apart).await?;
                unsettled.extend(unequal.apart.iter().map(|it| it.0));
                unequal_trees.extend(unequal.differing);
            }
            differing += count(unequal_trees.len());
            unsettled.extend(self.bring_together(keyspace, unequal_trees).await?);
            if !unsettled.is_empty() {
                unsettled.sort_unstable();
                left.push((keyspace, unsettled.into()));
            }
        }
        self.report.trees_differing = self.report.trees_differing.max(differing);
        Ok(left)
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
