//! One round with one node: from the roots down to the records, until both hold the same.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use antientropy::exchange::{Differences, Sketch, TokenRange, decide, encode_tiling};
use bytes::Bytes;
use model::{Hlc, KeyspaceId, NodeId, NodeIndex, PartitionIndex, Record, StorageKey, Token};
use proto::internal::{
    ExchangeAll, ExchangeLeaves, ExchangeMoves, ExchangeRecords, ExchangeRoots, ExchangeSettled,
    RecordNames, Tiling, exchange_request::Step,
};
use rand::RngExt;

use super::{pace::Pace, step::Answered};
use crate::{
    exchange::{
        BLOCK_BYTES, RoundEnd, RoundReport, SharedTrees, Span, SpanRecords, decode_block,
        encode_block, partition_of,
    },
    io::{io_loop::IoLoop, links::frame_bytes_max},
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
    /// The keyspaces to compare; `None` for all.
    only: Option<BTreeSet<KeyspaceId>>,
    report: RoundReport,
}

/// A range of a keyspace whose records are to be compared.
type Suspect = (KeyspaceId, TokenRange);

/// What moves in one slice.
#[derive(Default)]
struct Slice {
    push: Vec<(StorageKey, Record)>,
    wanted: Vec<(Span, Vec<u32>)>,
}

impl<'a> Round<'a> {
    /// Compares this node with another one and moves what differs.
    pub(super) async fn run(
        io: &'a IoLoop,
        other: NodeId,
        only: Option<BTreeSet<KeyspaceId>>,
        pace: &'a mut Pace,
    ) -> (RoundEnd, RoundReport) {
        let view = io.shared.view.load_full();
        let (Some(metadata), Some(node)) = (view.metadata(), view.node_index(other)) else {
            return (RoundEnd::Away, RoundReport::default());
        };
        if !io.can_deliver(other) {
            return (RoundEnd::Away, RoundReport::default());
        }
        let (partitions, report) = (metadata.layout().partitions(), RoundReport::default());
        let far = metadata.layout().node(node).datacenter != io.shared.config.datacenter;
        let mut round = Self { io, other, node, partitions, far, pace, only, report };
        let mut end = RoundEnd::Differs;
        for _ in 0..PASSES_MAX {
            let moved = round.report;
            match round.pass().await {
                Ok(true) => end = RoundEnd::Same,
                Ok(false) if round.report.has_moved_since(&moved) => continue,
                Ok(false) => {}
                Err(why) => end = why,
            }
            break;
        }
        (end, round.report)
    }

    /// Compares everything once. True if nothing differs but what is on its way.
    async fn pass(&mut self) -> Result<bool, RoundEnd> {
        let shared = &self.io.shared;
        let mut trees = shared.exchange.shared_trees(&shared.view.load(), self.other);
        if let Some(only) = &self.only {
            trees.retain(|it| only.contains(&it.0));
        } else if self.is_all_equal(&trees).await? {
            return Ok(true);
        }
        self.report.trees = trees.iter().map(|it| count(it.1.len())).sum();
        let (mut settled, mut differing) = (true, 0);
        for (keyspace, partitions) in trees {
            for (chunk, first) in partitions.chunks(ROOTS_MAX).zip((0..).step_by(ROOTS_MAX)) {
                let differ = self.compare_roots(keyspace, chunk, first).await?;
                differing += count(differ.len());
                for trees in differ.chunks(LEAF_TREES_MAX) {
                    settled &= self.compare_trees(keyspace, trees).await?;
                }
            }
        }
        self.report.trees_differing = self.report.trees_differing.max(differing);
        Ok(settled)
    }

    /// True if all trees are equal: one small message tells.
    async fn is_all_equal(&mut self, trees: &SharedTrees) -> Result<bool, RoundEnd> {
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
    async fn compare_roots(
        &mut self,
        keyspace: KeyspaceId,
        partitions: &[PartitionIndex],
        first: u32,
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        let (shared, at_us) = (&self.io.shared, self.io.now_us());
        let roots = shared.trees.roots(keyspace, partitions);
        let roots = roots.iter().flat_map(|it| it.short().to_be_bytes()).collect::<Bytes>();
        let step = ExchangeRoots { keyspace: keyspace.0, first, roots };
        let differing = self.ask(Step::Roots(step)).await?.answer.differing;
        let mut is_same = vec![true; partitions.len()];
        for position in differing {
            let at = usize::try_from(position).ok().and_then(|it| is_same.get_mut(it));
            *at.ok_or(RoundEnd::Malformed)? = false;
        }
        let (same, differ): (Vec<_>, Vec<_>) = partitions.iter().zip(is_same).partition(|it| it.1);
        let same: Vec<_> = same.into_iter().map(|it| *it.0).collect();
        shared.exchange.verified((keyspace, self.other), &same, at_us);
        Ok(differ.into_iter().map(|it| *it.0).collect())
    }

    /// Compares trees whose roots differ, and the records of their differing leaves. True if nothing
    /// differs but what is on its way.
    async fn compare_trees(
        &mut self,
        keyspace: KeyspaceId,
        trees: &[PartitionIndex],
    ) -> Result<bool, RoundEnd> {
        let shared = Arc::clone(&self.io.shared);
        let at_us = self.io.now_us();
        let count_of_partitions = self.partitions;
        let bits = u8::try_from(count_of_partitions.trailing_zeros()).expect("at most 16 bits");
        let whole = |it: &PartitionIndex| {
            let first = it.first_token(count_of_partitions);
            TokenRange { first, bits }
        };
        let suspects = self.differing_ranges(keyspace, trees.iter().map(whole)).await?;
        let mut unsettled: Vec<PartitionIndex> = Vec::new();
        if !suspects.is_empty() {
            // What is on its way arrives meanwhile.
            let settle_ms = shared.config.exchange_settle_ms;
            tokio::time::sleep(Duration::from_millis(settle_ms)).await;
            let _turn = shared.exchange.moving.acquire().await.map_err(|_ended| RoundEnd::Stuck)?;
            // The highest stamp stands still when nobody writes, and some clocks are ahead of this one.
            let now_ms = shared.clock.highest().ms().max(shared.believed_wall().0);
            let cutoff = Hlc::from_ms(now_ms.saturating_sub(settle_ms));
            self.report.ranges += count(suspects.len());
            unsettled = self.compare_records(suspects, cutoff).await?;
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

    /// The ranges of leaves that differ.
    async fn differing_ranges(
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

    /// Compares the records of ranges and moves what differs; the partitions where anything did.
    async fn compare_records(
        &mut self,
        suspects: Vec<Suspect>,
        cutoff: Hlc,
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        let mut queue: VecDeque<Span> =
            suspects.into_iter().map(|(keyspace, range)| Span::whole(keyspace, range)).collect();
        let mut unsettled = Vec::new();
        while let Some(first) = queue.front() {
            let began_us = self.io.now_us();
            let keyspace = first.keyspace;
            let salt = self.io.lock().random.random();
            let pressure = self.slice(keyspace, salt, cutoff, &mut queue, &mut unsettled).await?;
            let rest_us = self.pace.after(self.io.now_us() - began_us, pressure);
            if rest_us > 0 {
                tokio::time::sleep(Duration::from_micros(rest_us)).await;
            }
        }
        Ok(unsettled)
    }

    /// Compares and moves the records of as many spans as make a slice; the pressure of clients.
    async fn slice(
        &mut self,
        keyspace: KeyspaceId,
        salt: u64,
        cutoff: Hlc,
        queue: &mut VecDeque<Span>,
        unsettled: &mut Vec<PartitionIndex>,
    ) -> Result<u32, RoundEnd> {
        let read = self.read_slice(keyspace, salt, queue).await?;
        let sketches: Vec<Sketch> = read.iter().map(|it| Sketch::new(&it.1.digests)).collect();
        let ranges = read.iter().zip(&sketches).map(|((span, _), it)| span.to_wire(it.encode()));
        let step = ExchangeRecords { keyspace: keyspace.0, salt, ranges: ranges.collect() };
        let answered = self.ask(Step::Records(step)).await?.answer;
        let mut pressure = answered.pressure;
        if answered.differences.len() > read.len() || answered.differences.is_empty() {
            return Err(RoundEnd::Malformed);
        }
        let mut slice = Slice::default();
        let mut differences = answered.differences.into_iter();
        for ((span, mut ours), sketch) in read.into_iter().zip(sketches) {
            let Some(theirs) = differences.next() else {
                // There was more to say than fits.
                queue.push_front(span);
                continue;
            };
            let named =
                Differences::decode(&theirs.buckets, &theirs.records).ok_or(RoundEnd::Malformed)?;
            let mut span = span;
            if !theirs.covered_to.is_empty() {
                let rest = span.behind(&theirs.covered_to);
                if rest.from <= span.from {
                    return Err(RoundEnd::Malformed);
                }
                span = span.up_to(&theirs.covered_to);
                ours.truncate(&theirs.covered_to);
                queue.push_front(rest);
            }
            let moves = decide(&ours.digests, &sketch, &named, cutoff);
            self.report.refused += count(ours.damaged);
            if ours.damaged > 0 || !moves.push.is_empty() || !moves.fetch.is_empty() {
                unsettled.extend(partition_of(span.range, self.partitions));
            }
            slice.push.extend(moves.push.iter().map(|at| ours.rows[*at].clone()));
            if !moves.fetch.is_empty() {
                slice.wanted.push((span, moves.fetch));
            }
        }
        if !slice.push.is_empty() || !slice.wanted.is_empty() {
            pressure = pressure.max(self.move_slice(keyspace, salt, slice).await?);
        }
        Ok(pressure.max(self.io.shared.pressure()))
    }

    /// Reads this node's records of spans of one keyspace until they make a slice.
    async fn read_slice(
        &mut self,
        keyspace: KeyspaceId,
        salt: u64,
        queue: &mut VecDeque<Span>,
    ) -> Result<Vec<(Span, SpanRecords)>, RoundEnd> {
        let slice_bytes = self.pace.slice_bytes();
        let of_keyspace = queue.iter().take_while(|it| it.keyspace == keyspace);
        let spans: Vec<Span> = of_keyspace.take(SPANS_MAX).cloned().collect();
        let work = move |shared: &crate::shared::Shared| {
            let hasher = shared.trees.hasher().ok_or(model::Refusal::NotReady)?;
            let (mut read, mut bytes) = (Vec::new(), 0);
            for span in spans {
                let limits = (SPAN_ROWS, slice_bytes);
                let records = span.read(&shared.world.storage, &hasher, salt, limits);
                let records = records.map_err(|error| shared.read_error(&error))?;
                bytes += records.bytes;
                read.push((span, records));
                if bytes >= slice_bytes {
                    break;
                }
            }
            Ok(read)
        };
        let read =
            Arc::clone(&self.io.shared).blocking(work).await.map_err(|_ended| RoundEnd::Stuck)?;
        let mut slice = Vec::with_capacity(read.len());
        for (span, records) in read {
            queue.pop_front();
            let mut span = span;
            if let Some(last) = &records.covered_to {
                queue.push_front(span.behind(last));
                span = span.up_to(last);
            }
            slice.push((span, records));
        }
        Ok(slice)
    }

    /// Sends what the other node lacks, and takes what this one does; the pressure of clients there.
    async fn move_slice(
        &mut self,
        keyspace: KeyspaceId,
        salt: u64,
        slice: Slice,
    ) -> Result<u32, RoundEnd> {
        let (mut push, mut wanted) = (&slice.push[..], slice.wanted);
        let mut pressure = 0;
        while !push.is_empty() || !wanted.is_empty() {
            let mut bytes = 0;
            let fits = push.iter().take_while(|(key, record)| {
                let fits = bytes < BLOCK_BYTES;
                bytes += key.as_bytes().len() + record.as_bytes().len();
                fits
            });
            let (block, rest) = push.split_at(fits.count());
            push = rest;
            let names = |(span, names): &(Span, Vec<u32>)| RecordNames {
                range: Some(span.to_wire(Vec::new())),
                names: names.clone(),
            };
            let moves = ExchangeMoves {
                keyspace: keyspace.0,
                salt,
                records: Some(encode_block(block.iter().map(|it| (&it.0, &it.1)), self.far)),
                wanted: wanted.iter().map(names).collect(),
            };
            let answer = self.ask(Step::Moves(moves)).await?.answer;
            pressure = pressure.max(answer.pressure);
            self.report.refused += u64::from(answer.refused);
            let bytes_max = frame_bytes_max(&self.io.shared);
            let taken = decode_block(answer.records.unwrap_or_default(), bytes_max)
                .map_err(|_damaged| RoundEnd::Malformed)?;
            self.note_moved(keyspace, block, &taken);
            let is_last = taken.is_empty();
            forget_taken(&mut wanted, &taken, salt);
            let refused = self.io.take_records(taken).await.ok_or(RoundEnd::Stuck)?;
            self.report.refused += u64::from(refused);
            if is_last {
                // What was named is held there no more in that version: the next pass tells.
                wanted.clear();
            }
        }
        Ok(pressure)
    }

    fn note_moved(
        &mut self,
        keyspace: KeyspaceId,
        sent: &[(StorageKey, Record)],
        taken: &[(StorageKey, Record)],
    ) {
        let (records, bytes) = (count(sent.len() + taken.len()), bytes_of(sent) + bytes_of(taken));
        self.report.records_sent += count(sent.len());
        self.report.records_taken += count(taken.len());
        self.report.record_bytes += bytes;
        self.io.shared.exchange.moved((keyspace, self.other), records, bytes);
    }

    async fn ask(&mut self, step: Step) -> Result<Answered, RoundEnd> {
        let answered = self.io.exchange_step(self.node, step).await?;
        self.report.bytes_sent += count(answered.bytes_sent);
        self.report.bytes_received += count(answered.bytes_received);
        Ok(answered)
    }
}

/// Takes the names of records that have come off those that are wanted.
fn forget_taken(wanted: &mut Vec<(Span, Vec<u32>)>, taken: &[(StorageKey, Record)], salt: u64) {
    let mut names: Vec<u32> =
        taken.iter().map(|it| antientropy::exchange::name_of(salt, &it.0)).collect();
    names.sort_unstable();
    for (_, wanted) in wanted.iter_mut() {
        wanted.retain(|it| names.binary_search(it).is_err());
    }
    wanted.retain(|it| !it.1.is_empty());
}

fn bytes_of(rows: &[(StorageKey, Record)]) -> u64 {
    rows.iter().map(|it| count(it.0.as_bytes().len() + it.1.as_bytes().len())).sum()
}

/// Ranges within the one that was asked for.
fn parse_spans(asked: TokenRange, spans: &[u8]) -> Option<Vec<TokenRange>> {
    let (spans, []) = spans.as_chunks::<9>() else { return None };
    let span = |[first @ .., bits]: &[u8; 9]| {
        TokenRange::new(Token(u64::from_be_bytes(*first)), *bits).filter(|it| asked.contains(*it))
    };
    spans.iter().map(span).collect()
}

fn count(it: usize) -> u64 {
    u64::try_from(it).unwrap_or(u64::MAX)
}

/// Each finds what the one before has left: names that were mistaken, and what has changed meanwhile.
const PASSES_MAX: usize = 8;
/// Roots compared in one step: 32 KiB.
const ROOTS_MAX: usize = 4_096;
/// Trees whose leaves are compared before their records are.
const LEAF_TREES_MAX: usize = 1_024;
/// Bytes of leaves in one step.
const TILINGS_BYTES: usize = 64 << 10;
/// Rows of one span that are read at a time.
const SPAN_ROWS: usize = 512;
/// Spans of one slice: many are small.
const SPANS_MAX: usize = 1_024;
