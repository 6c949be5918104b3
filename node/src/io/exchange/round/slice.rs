//! The records' part of a round: slice by slice they are compared, and moved.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use antientropy::exchange::{Differences, Moves, Sketch, Width, decide, name_of};
use model::{KeyspaceId, Mutant, PartitionIndex, Record, Refusal, StorageKey, Version};
use proto::internal::{
    ExchangeMoves, ExchangeRecords, RecordDifferences, RecordNames, exchange_request::Step,
};
use rand::RngExt;

use super::{Round, Suspect, count};
use crate::{
    commit::CommitItem,
    exchange::{
        BLOCK_BYTES, RoundEnd, Span, SpanRecords, decode_block, encode_block, partition_of,
    },
    io::links::frame_bytes_max,
    shared::Shared,
};

/// Spans whose records are still to be compared, and what came of those before.
struct Work {
    queue: VecDeque<Span>,
    /// Where something differed, or with exact hashes where it is not certain that nothing does any more.
    unsettled: Vec<PartitionIndex>,
}

/// What moves in one slice.
#[derive(Default)]
struct Slice {
    push: Vec<(StorageKey, Record)>,
    wanted: Vec<(Span, Vec<u64>)>,
    /// Where.
    partitions: Vec<PartitionIndex>,
    /// Records that go before others come (F7).
    discard: Vec<(StorageKey, Version)>,
}

impl Slice {
    fn is_empty(&self) -> bool {
        self.push.is_empty() && self.wanted.is_empty()
    }
}

impl Round<'_> {
    /// Compares the records of ranges and moves what differs. Returns the partitions where something did;
    /// with exact hashes those where it is not certain that nothing does any more.
    pub(super) async fn compare_records(
        &mut self,
        suspects: Vec<Suspect>,
    ) -> Result<Vec<PartitionIndex>, RoundEnd> {
        self.report.ranges += count(suspects.len());
        let spans = suspects.into_iter().map(|(keyspace, range)| Span::whole(keyspace, range));
        let mut work = Work { queue: spans.collect(), unsettled: Vec::new() };
        while let Some(first) = work.queue.front() {
            let (began_us, keyspace) = (self.io.now_us(), first.keyspace);
            let salt = self.io.lock().random.random();
            let pressure = self.compare_slice(keyspace, salt, &mut work).await?;
            let rest_us = self.pace.after(self.io.now_us() - began_us, pressure);
            if rest_us > 0 {
                tokio::time::sleep(Duration::from_micros(rest_us)).await;
            }
        }
        Ok(work.unsettled)
    }

    /// Compares and moves the records of as many spans as make a slice; the pressure of clients.
    async fn compare_slice(
        &mut self,
        keyspace: KeyspaceId,
        salt: u64,
        work: &mut Work,
    ) -> Result<u32, RoundEnd> {
        self.floors = self.io.shared.floors.all();
        let read = self.read_slice(keyspace, salt, &mut work.queue).await?;
        let exact = self.how.width == Width::Exact;
        let sketch = |it: &SpanRecords| Sketch::new(if exact { &[] } else { &it.digests });
        let sketches: Vec<Sketch> = read.iter().map(|it| sketch(&it.1)).collect();
        let wire = |((span, _), sketch): (&(Span, SpanRecords), &Sketch)| {
            span.to_wire(if exact { Vec::new() } else { sketch.encode() })
        };
        let ranges = read.iter().zip(&sketches).map(wire).collect();
        let (keyspace_id, floor, since) = (keyspace.0, self.how.floor.0, self.how.since.0);
        let step = ExchangeRecords { keyspace: keyspace_id, salt, exact, floor, since, ranges };
        let answer = self.ask(Step::Records(step)).await?.answer;
        if answer.differences.len() > read.len() || answer.differences.is_empty() {
            return Err(RoundEnd::Malformed);
        }
        let (mut slice, mut pressure) = (Slice::default(), answer.pressure);
        let mut differences = answer.differences.into_iter();
        for ((span, ours), sketch) in read.into_iter().zip(sketches) {
            match differences.next() {
                Some(theirs) => self.decide_span(span, ours, &sketch, &theirs, work, &mut slice)?,
                // There was more to say than fits.
                None => work.queue.push_front(span),
            }
        }
        self.discard(std::mem::take(&mut slice.discard)).await?;
        if !slice.is_empty() {
            let partitions = std::mem::take(&mut slice.partitions);
            let refused = self.report.refused;
            let (told, complete) = self.move_slice(keyspace, salt, slice).await?;
            pressure = pressure.max(told);
            if self.report.refused > refused || !complete {
                work.unsettled.extend(partitions);
            }
        }
        Ok(pressure.max(self.io.shared.pressure()))
    }

    /// Decides what of one span moves.
    fn decide_span(
        &mut self,
        mut span: Span,
        mut ours: SpanRecords,
        sketch: &Sketch,
        theirs: &RecordDifferences,
        work: &mut Work,
        slice: &mut Slice,
    ) -> Result<(), RoundEnd> {
        let how = self.how;
        let named = Differences::decode(&theirs.buckets, &theirs.records, how.width)
            .ok_or(RoundEnd::Malformed)?;
        if !theirs.covered_to.is_empty() {
            let rest = span.behind(&theirs.covered_to);
            if rest.from <= span.from {
                return Err(RoundEnd::Malformed);
            }
            span = span.up_to(&theirs.covered_to);
            ours.truncate(&theirs.covered_to);
            work.queue.push_front(rest);
        }
        let partition = partition_of(span.range, self.partitions);
        if theirs.damaged || ours.is_unreadable {
            // What is there may be anything: it is compared again once it is healed.
            self.report.damaged_ranges += 1;
            work.unsettled.extend(partition);
            return Ok(());
        }
        let mut moves = decide(&ours.digests, sketch, &named, how.cutoff);
        if let Some(partition) = partition {
            self.restrict_fill((span.keyspace, partition), &ours, &named, &mut moves, slice);
        }
        moves.push.retain(|_| how.push);
        moves.fetch.retain(|_| how.fetch);
        self.report.refused += count(ours.damaged);
        let moved = !moves.push.is_empty() || !moves.fetch.is_empty();
        if ours.damaged > 0 || moved && how.width == Width::Short {
            work.unsettled.extend(partition);
        }
        if moved {
            slice.partitions.extend(partition);
        }
        slice.push.extend(moves.push.iter().map(|at| ours.rows[*at].clone()));
        if !moves.fetch.is_empty() {
            slice.wanted.push((span, moves.fetch));
        }
        Ok(())
    }

    /// While replicas are being filled: of a source with a lower floor than this node's now, what lies at
    /// or below that one is not taken, and what this node holds there is not its source's to judge (F7).
    fn restrict_fill(
        &self,
        (keyspace, partition): (KeyspaceId, PartitionIndex),
        ours: &SpanRecords,
        named: &Differences,
        moves: &mut Moves,
        slice: &mut Slice,
    ) {
        let Some(filling) = &self.filling else { return };
        let own = self.io.shared.floors.of(keyspace, partition).floor;
        let theirs = filling.floors.get(&partition).copied().unwrap_or_default();
        if theirs < own {
            let above: BTreeSet<u64> =
                named.records.iter().filter(|it| it.hlc > own).map(|it| it.name).collect();
            moves.fetch.retain(|it| above.contains(it));
        } else if filling.discard && !Mutant::FillKeepsExtras.is_on() {
            let extra = moves.push.iter().map(|at| &ours.rows[*at]);
            let extra = extra.filter(|(_, record)| record.version().hlc <= own);
            slice.discard.extend(extra.map(|(key, record)| (key.clone(), record.version())));
        }
    }

    async fn discard(&self, records: Vec<(StorageKey, Version)>) -> Result<(), RoundEnd> {
        if records.is_empty() {
            return Ok(());
        }
        let not_written_before = self.io.groups_not_written();
        for (key, version) in records {
            self.io.queue(CommitItem::Discard { key, version });
        }
        // What a full disk has not written is still there.
        let written = self.io.settled().await && self.io.groups_not_written() == not_written_before;
        if written { Ok(()) } else { Err(RoundEnd::Stuck) }
    }

    /// Reads this node's records of spans of one keyspace until they make a slice.
    async fn read_slice(
        &mut self,
        keyspace: KeyspaceId,
        salt: u64,
        queue: &mut VecDeque<Span>,
    ) -> Result<Vec<(Span, SpanRecords)>, RoundEnd> {
        let (slice_bytes, floor) = (self.pace.slice_bytes(), self.how.floor);
        let since = self.how.since;
        let of_keyspace = queue.iter().take_while(|it| it.keyspace == keyspace);
        let spans: Vec<Span> = of_keyspace.take(SPANS_MAX).cloned().collect();
        let work = move |shared: &Shared| {
            let hasher = shared.trees.hasher().ok_or(Refusal::NotReady)?;
            let (mut read, mut bytes) = (Vec::new(), 0);
            for span in spans {
                let records = span.read_for(shared, &hasher, salt, (SPAN_ROWS, slice_bytes))?;
                bytes += records.bytes;
                read.push((span, records.without_purgeable(floor).stamped_after(since)));
                if bytes >= slice_bytes {
                    break;
                }
            }
            Ok(read)
        };
        let read = Arc::clone(&self.io.shared).blocking(work).await;
        let read = read.map_err(|_reported| RoundEnd::Stuck)?;
        let mut slice = Vec::with_capacity(read.len());
        let mut rest = Vec::new();
        for (mut span, records) in read {
            queue.pop_front();
            if let Some(last) = &records.covered_to {
                rest.push(span.behind(last));
                span = span.up_to(last);
            }
            slice.push((span, records));
        }
        rest.into_iter().for_each(|it| queue.push_front(it));
        Ok(slice)
    }

    /// Sends what the other node lacks, and takes what this one does: the pressure of clients there, and
    /// whether all of it has moved.
    async fn move_slice(
        &mut self,
        keyspace: KeyspaceId,
        salt: u64,
        slice: Slice,
    ) -> Result<(u32, bool), RoundEnd> {
        let shared = Arc::clone(&self.io.shared);
        let (mut push, mut wanted) = (&slice.push[..], slice.wanted);
        let (mut pressure, mut complete) = (0, true);
        let exact = self.how.width == Width::Exact;
        while !push.is_empty() || !wanted.is_empty() {
            let (block, rest) = push.split_at(block_rows(push));
            push = rest;
            let names = |(span, names): &(Span, Vec<u64>)| RecordNames {
                range: Some(span.to_wire(Vec::new())),
                names: names.clone(),
            };
            let keys = block.iter().map(|it| &it.0);
            let moves = ExchangeMoves {
                keyspace: keyspace.0,
                salt,
                records: Some(encode_block(block.iter().map(|it| (&it.0, &it.1)), self.far)),
                wanted: wanted.iter().map(names).collect(),
                exact,
                floors: shared.floors_of(&self.floors, keyspace, keys),
            };
            let answer = self.ask(Step::Moves(moves)).await?.answer;
            pressure = pressure.max(answer.pressure);
            self.report.refused += u64::from(answer.refused);
            let bytes_max = frame_bytes_max(&shared);
            let taken = decode_block(answer.records.unwrap_or_default(), bytes_max)
                .map_err(|_damaged| RoundEnd::Malformed)?;
            self.note_moved(keyspace, block, &taken);
            let before = names_in(&wanted);
            forget_taken(&mut wanted, &taken, salt, self.how.width);
            let is_last = names_in(&wanted) == before;
            let refused = self.io.take_records(taken, &answer.floors).await;
            self.report.refused += u64::from(refused.ok_or(RoundEnd::Stuck)?);
            if is_last && !wanted.is_empty() {
                // What was named is held there no more: the next pass tells.
                wanted.clear();
                complete = false;
            }
        }
        Ok((pressure, complete))
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
}

/// How many records make a block.
fn block_rows(rows: &[(StorageKey, Record)]) -> usize {
    let mut bytes = 0;
    let fits = rows.iter().take_while(|(key, record)| {
        let fits = bytes < BLOCK_BYTES;
        bytes += key.as_bytes().len() + record.as_bytes().len();
        fits
    });
    fits.count()
}

/// Takes the names of records that have come off those that are wanted.
fn forget_taken(
    wanted: &mut Vec<(Span, Vec<u64>)>,
    taken: &[(StorageKey, Record)],
    salt: u64,
    width: Width,
) {
    let mut names: Vec<u64> = taken.iter().map(|it| name_of(salt, &it.0, width)).collect();
    names.sort_unstable();
    for (_, wanted) in wanted.iter_mut() {
        wanted.retain(|it| names.binary_search(it).is_err());
    }
    wanted.retain(|it| !it.1.is_empty());
}

fn names_in(wanted: &[(Span, Vec<u64>)]) -> usize {
    wanted.iter().map(|it| it.1.len()).sum()
}

fn bytes_of(rows: &[(StorageKey, Record)]) -> u64 {
    rows.iter().map(|it| count(it.0.as_bytes().len() + it.1.as_bytes().len())).sum()
}

/// Rows of one span that are read at a time.
const SPAN_ROWS: usize = 512;
/// Spans of one slice: many are small.
const SPANS_MAX: usize = 1_024;
