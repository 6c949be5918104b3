//! The trees' part of a round: roots, floors and leaves.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use antientropy::exchange::{TokenRange, encode_tiling};
use model::{Hlc, KeyspaceId, PartitionIndex, Token};
use proto::internal::{
    ExchangeAll, ExchangeLeaves, ExchangeRoots, PartitionFloor, PurgeCertify, Tiling,
    exchange_request::Step,
};

use super::{Round, Suspect, count};
use crate::exchange::{RoundEnd, SharedTrees, floor_message};

/// Roots that differ.
#[derive(Default)]
pub(super) struct Unequal {
    pub(super) differing: Vec<PartitionIndex>,
    /// Those whose trees were purged up to different floors, with the other node's floor.
    pub(super) apart: Vec<(PartitionIndex, PartitionFloor)>,
    /// Those that the other node brings together with a third one at the moment.
    pub(super) busy: Vec<PartitionIndex>,
    /// Before that the differing ones are likely the same; zero if it is not known.
    pub(super) since: Hlc,
}

impl Round<'_> {
    /// True if all trees are equal: one small message tells.
    pub(super) async fn is_all_equal(&mut self, trees: &SharedTrees) -> Result<bool, RoundEnd> {
        let (shared, at_us) = (&self.io.shared, self.io.now_us());
        let hash = shared.roots_hash(trees);
        let equal = self.ask(Step::All(ExchangeAll { hash })).await?.answer.equal;
        if equal {
            self.report.trees = trees.iter().map(|it| count(it.1.len())).sum();
            for (keyspace, partitions) in trees {
                shared.exchange.verified((*keyspace, self.other), partitions, at_us);
            }
        }
        Ok(equal)
    }

    /// The partitions whose roots differ; notes the others as the same.
    pub(super) async fn compare_roots(
        &mut self,
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
    ) -> Result<Unequal, RoundEnd> {
        self.ask_roots(keyspace, partitions, false).await
    }

    /// The same, and claims those that differ: nobody else is to bring them together meanwhile.
    pub(super) async fn claim_roots(
        &mut self,
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
    ) -> Result<Unequal, RoundEnd> {
        self.ask_roots(keyspace, partitions, true).await
    }

    async fn ask_roots(
        &mut self,
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
        claim: bool,
    ) -> Result<Unequal, RoundEnd> {
        let (shared, at_us) = (Arc::clone(&self.io.shared), self.io.now_us());
        let floors = shared.floors.all();
        let roots = shared.trees.roots(keyspace, partitions);
        let swept = partitions.iter().map(|it| floors.of(keyspace, *it).swept.0);
        let step = ExchangeRoots {
            keyspace: keyspace.0,
            partitions: partitions.iter().map(|it| it.0.into()).collect(),
            roots: roots.iter().flat_map(|it| it.short().to_be_bytes()).collect(),
            swept: swept.flat_map(u64::to_be_bytes).collect(),
            claim,
        };
        let answer = self.ask(Step::Roots(step)).await?.answer;
        if answer.apart.len() != answer.floors.len() {
            return Err(RoundEnd::Malformed);
        }
        let at = |position: &u32| {
            let partition = usize::try_from(*position).ok().and_then(|it| partitions.get(it));
            partition.copied().ok_or(RoundEnd::Malformed)
        };
        let mut unequal = Unequal { since: Hlc(answer.since), ..Unequal::default() };
        for position in &answer.differing {
            unequal.differing.push(at(position)?);
        }
        for position in &answer.busy {
            unequal.busy.push(at(position)?);
        }
        for (position, floor) in answer.apart.iter().zip(answer.floors) {
            unequal.apart.push((at(position)?, floor));
        }
        let apart = unequal.apart.iter().map(|it| &it.0);
        let differs: BTreeSet<_> =
            unequal.differing.iter().chain(&unequal.busy).chain(apart).collect();
        let same: Vec<_> = partitions.iter().filter(|it| !differs.contains(it)).copied().collect();
        shared.exchange.verified((keyspace, self.other), &same, at_us);
        Ok(unequal)
    }

    /// A floor that only one side has heard of is told to the other (F5).
    pub(super) async fn tell_floors(
        &mut self,
        keyspace: KeyspaceId,
        apart: &[(PartitionIndex, PartitionFloor)],
    ) -> Result<(), RoundEnd> {
        let mut floors = Vec::new();
        for (partition, theirs) in apart {
            let own = self.io.shared.floors.of(keyspace, *partition);
            if own.floor > Hlc(theirs.floor) {
                floors.push(floor_message(*partition, own));
            } else if own.floor < Hlc(theirs.floor) {
                self.io.adopt_floor(keyspace, theirs);
            }
        }
        if !floors.is_empty() {
            let certify = PurgeCertify { keyspace: keyspace.0, floors };
            self.ask(Step::PurgeCertify(certify)).await?;
        }
        Ok(())
    }

    /// The ranges of leaves that differ.
    pub(super) async fn differing_ranges(
        &mut self,
        keyspace: KeyspaceId,
        ranges: impl Iterator<Item = TokenRange>,
    ) -> Result<Vec<Suspect>, RoundEnd> {
        let shared = Arc::clone(&self.io.shared);
        let mut queue: VecDeque<TokenRange> = ranges.collect();
        let mut suspects = Vec::new();
        while !queue.is_empty() {
            let (mut tilings, mut asked, mut bytes) = (Vec::new(), Vec::new(), 0);
            while bytes < TILINGS_BYTES
                && let Some(range) = queue.pop_front()
            {
                // A leaf here that is wider than the range is looked into as it is.
                let Some(tiles) = shared.trees.tiling(keyspace, range) else {
                    suspects.push((keyspace, range));
                    continue;
                };
                let leaves = encode_tiling(&tiles);
                bytes += leaves.len();
                let (first, bits) = (range.first.0, range.bits.into());
                tilings.push(Tiling { first, bits, leaves: leaves.into() });
                asked.push(range);
            }
            if tilings.is_empty() {
                continue;
            }
            let step = ExchangeLeaves { keyspace: keyspace.0, tilings };
            let spans = self.ask(Step::Leaves(step)).await?.answer.spans;
            if spans.len() != asked.len() {
                return Err(RoundEnd::Malformed);
            }
            for (asked, spans) in asked.into_iter().zip(spans) {
                for range in parse_spans(asked, &spans).ok_or(RoundEnd::Malformed)? {
                    // Leaves that were taken together are looked into, one level down.
                    let deeper = range != asked
                        && shared.trees.tiling(keyspace, range).is_some_and(|it| it.len() > 1);
                    if deeper {
                        queue.push_back(range);
                    } else {
                        suspects.push((keyspace, range));
                    }
                }
            }
        }
        Ok(suspects)
    }
}

/// Ranges within the one that was asked for.
fn parse_spans(asked: TokenRange, spans: &[u8]) -> Option<Vec<TokenRange>> {
    let (spans, []) = spans.as_chunks::<9>() else { return None };
    let span = |[first @ .., bits]: &[u8; 9]| {
        TokenRange::new(Token(u64::from_be_bytes(*first)), *bits).filter(|it| asked.contains(*it))
    };
    let spans = spans.iter().map(span).collect::<Option<Vec<_>>>()?;
    // One behind the other: a span that came twice would be asked for twice, on every level.
    spans.is_sorted_by(|a, b| a.last() < b.first).then_some(spans)
}

/// Bytes of leaves in one step.
const TILINGS_BYTES: usize = 64 << 10;
