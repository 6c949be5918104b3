//! Scans: page by page, each merged from the replicas that the level requires (S1 to S4).

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use coordinator::{Covered, Direction, MergedRow, PageLimits, ReadReply, ReplicaPage, merge_pages};
use model::{
    ConsistencyLevel, Hlc, Key, Mutant, PartitionIndex, Record, Refusal, ReplicaIndex, ReplicaMask,
    Requirement, StorageKey,
};
use proto::{
    CallError, Reason,
    internal::{RangeAnswer, RangeQuery},
    v1,
};
use tokio::{sync::oneshot, time::timeout};
use tonic::metadata::MetadataMap;

use super::{
    call::{Call, RETRY, level_error, level_of, overlap_error},
    coordinate::PlannedRead,
    io_loop::{Alarm, IoLoop},
    kv::stopped_read,
    recount::send_range_query,
    scan_range::{
        bounds, fingerprint, last_token_before, malformed, read_token, token_at, write_token,
    },
    world::Boxed,
};
use crate::{
    counters::Counters,
    operation::{Operation, RangeOperation},
    reply::{Batch, ReplyTo},
    shared::Shared,
    view::KeyspaceView,
};

/// A scan under way.
pub(super) struct Scan {
    io: Arc<IoLoop>,
    keyspace: Arc<KeyspaceView>,
    level: ConsistencyLevel,
    overlap: bool,
    direction: Direction,
    /// What is left, as storage keys: inclusive, exclusive. An empty end is that of the space.
    start: Bytes,
    end: Bytes,
    /// Binds page tokens to the request.
    fingerprint: u64,
    page_rows: usize,
    rows_left: u64,
    timeout_us: u64,
}

impl Scan {
    pub(super) fn new(
        io: &Arc<IoLoop>,
        metadata: &MetadataMap,
        request: v1::ScanRequest,
    ) -> Result<Self, CallError> {
        let call = Call::admit(io, metadata, request.clock)?;
        let keyspace = Arc::clone(call.keyspace(&request.keyspace)?);
        let level = level_of(request.consistency.as_ref(), keyspace.keyspace.read_level)?;
        if level != ConsistencyLevel::Any && !keyspace.allows_read(level) {
            return Err(overlap_error(level, &keyspace));
        }
        let set = keyspace.replica_set(PartitionIndex(0));
        Requirement::for_read(level, set, call.view.local_dc()).map_err(|it| level_error(&it))?;
        let limits = &call.shared.config.limits;
        let range = request.range.as_ref().ok_or_else(|| {
            CallError::new(Reason::InvalidField, "the scan names no range").at_field("range")
        })?;
        let (mut start, mut end, direction) = bounds(&keyspace, range, limits)?;
        let fingerprint = fingerprint(&call, &keyspace, range);
        if !request.page_token.is_empty() {
            let position = read_token(&request.page_token, fingerprint, call.shared)?;
            let inside = *position >= *start && (end.is_empty() || *position <= *end);
            if !inside {
                return Err(malformed("its position lies outside the range"));
            }
            match direction {
                Direction::Forward => start = position,
                Direction::Reverse => end = position,
            }
        }
        let asked = usize::try_from(request.page_rows).unwrap_or(usize::MAX);
        let default_rows = limits.scan_rows_max.min(PAGE_ROWS_DEFAULT);
        Ok(Self {
            io: Arc::clone(io),
            overlap: keyspace.overlap(level, keyspace.keyspace.write_level),
            keyspace,
            level,
            direction,
            start,
            end,
            fingerprint,
            page_rows: if asked == 0 { default_rows } else { asked.min(limits.scan_rows_max) },
            rows_left: if request.limit == 0 { u64::MAX } else { request.limit },
            timeout_us: call.deadline_us.saturating_sub(io.now_us()),
        })
    }

    pub(super) fn level(&self) -> ConsistencyLevel {
        self.level
    }

    /// What a page will take at most, if values are what they usually are.
    pub(super) fn page_bytes(&self) -> usize {
        let usual = self.keyspace.usual_value.expected().saturating_mul(self.page_rows);
        usual.min(self.io.shared.config.limits.scan_bytes_max)
    }

    /// How long a page may take.
    pub(super) fn timeout_us(&self) -> u64 {
        self.timeout_us
    }

    /// Reads one page: within one partition, and so from one set of replicas.
    pub(super) async fn page(&mut self, deadline_us: u64) -> Result<v1::ScanResponse, CallError> {
        let io = Arc::clone(&self.io);
        let empty = MetadataMap::new();
        let mut call = Call::coordinate(&io, &empty, 0).await?;
        call.deadline_us = deadline_us;
        let (partition, start, end) = self.partition_part(&call);
        let set = Arc::clone(self.keyspace.replica_set(partition));
        let requirement = Requirement::for_read(self.level, &set, call.view.local_dc())
            .map_err(|it| level_error(&it))?;
        let read_at = call.shared.clock.read(call.wall);
        let rows_left = usize::try_from(self.rows_left).unwrap_or(usize::MAX);
        let limits = PageLimits {
            rows_max: rows_left.min(self.page_rows),
            bytes_max: call.shared.config.limits.scan_bytes_max,
        };
        let query = RangeQuery {
            operation: 0,
            start: start.clone(),
            end: end.clone(),
            reverse: self.direction == Direction::Reverse,
            rows_max: u32::try_from(limits.rows_max).unwrap_or(u32::MAX),
            bytes_max: u32::try_from(limits.bytes_max).unwrap_or(u32::MAX),
        };
        let pages = self.replica_pages(&call, &set, &requirement, &query).await?;
        let merged = merge_pages(&requirement, self.direction, read_at, limits, pages);
        let rows = self.settle(&call, &set, &requirement, read_at, merged.rows).await?;
        self.advance(&merged.covered_to, &start, &end);
        self.rows_left =
            self.rows_left.saturating_sub(u64::try_from(rows.len()).unwrap_or(u64::MAX));
        Counters::count(&call.shared.counters.scan_pages);
        let next_page_token = if self.is_over() { Bytes::new() } else { self.token(call.shared) };
        Ok(v1::ScanResponse {
            rows,
            next_page_token,
            clock: call.clock(),
            participation: Some(call.participation_of(
                requirement.required(),
                Vec::new(),
                self.overlap,
            )),
        })
    }

    /// The part of what is left that lies in the next partition.
    fn partition_part(&self, call: &Call<'_>) -> (PartitionIndex, Bytes, Bytes) {
        let partitions = call.view.metadata().map_or(1, |it| it.layout().partitions());
        let id = self.keyspace.keyspace.id;
        let at = match self.direction {
            Direction::Forward => token_at(&self.start),
            Direction::Reverse => last_token_before(&self.end, &self.start),
        };
        let partition = at.partition(partitions);
        let (first, past) = StorageKey::partition_range(id, partition, partitions);
        let past = past.unwrap_or_default();
        let start = self.start.clone().max(first);
        let end = match (self.end.is_empty(), past.is_empty()) {
            (true, _) => past,
            (false, true) => self.end.clone(),
            (false, false) => self.end.clone().min(past),
        };
        (partition, start, end)
    }

    /// Moves on behind what was covered of `start` to `end`.
    fn advance(&mut self, covered_to: &Covered, start: &Bytes, end: &Bytes) {
        match (self.direction, covered_to) {
            (Direction::Forward, Covered::End) => {
                // The end of the last partition of the last keyspace is that of the space.
                self.start = if end.is_empty() { AFTER_ALL.into() } else { end.clone() };
            }
            (Direction::Forward, Covered::To(last)) => {
                let mut next = BytesMut::with_capacity(last.len() + 1);
                next.put_slice(last);
                next.put_u8(0);
                self.start = next.freeze();
            }
            (Direction::Reverse, Covered::End) => self.end = start.clone(),
            (Direction::Reverse, Covered::To(last)) => self.end = last.clone(),
        }
    }

    fn is_over(&self) -> bool {
        let empty = !self.end.is_empty() && self.start >= self.end;
        self.rows_left == 0 || empty || *self.start == *AFTER_ALL
    }

    fn token(&self, shared: &Shared) -> Bytes {
        let position = match self.direction {
            Direction::Forward => &self.start,
            Direction::Reverse => &self.end,
        };
        write_token(position, self.fingerprint, shared)
    }

    /// One page from each of the replicas that the level requires; another one is asked for each
    /// that fails.
    async fn replica_pages(
        &self,
        call: &Call<'_>,
        set: &Arc<model::ReplicaSet>,
        requirement: &Requirement,
        query: &RangeQuery,
    ) -> Result<Vec<ReplicaPage>, CallError> {
        let (alive, order) = {
            let mut state = self.io.lock();
            state.peers.follow(&call.view);
            let alive = state.peers.alive(set, call.shared.elapsed_us());
            let mut order = Vec::new();
            state.peers.preferred(set, &call.view, &mut order);
            (alive, order)
        };
        let mut usable = alive;
        let mut pages: Vec<ReplicaPage> = Vec::new();
        let mut corrupt = false;
        let mut storages = call.shared.witness.storage_ids_hash();
        loop {
            let now = call.shared.witness.storage_ids_hash();
            if storages != now && !Mutant::OldVotesCount.is_on() {
                // A page may be that of a directory which has been replaced since (F12).
                (storages, usable) = (now, alive);
                pages.clear();
            }
            let answered = pages
                .iter()
                .fold(ReplicaMask::EMPTY, |mask, it| mask.or(ReplicaMask::only(it.from)));
            let Some(ask) = missing(requirement, answered, usable, &order) else {
                return Err(self.too_few(call, requirement, alive, answered, corrupt));
            };
            if ask.is_empty() {
                return Ok(pages);
            }
            let asked: Vec<_> =
                ask.iter().map(|it| (it, self.ask(call, set.node(it), query.clone()))).collect();
            for (from, answer) in asked {
                match answer.await {
                    Some((answer, clock)) => match self.replica_page(from, answer, clock) {
                        Ok(page) => pages.push(page),
                        Err(refusal) => {
                            corrupt |= refusal == Refusal::Corrupt;
                            usable.remove(from);
                        }
                    },
                    None => usable.remove(from),
                }
            }
        }
    }

    /// A replica's answer, checked as a get's would be.
    fn replica_page(
        &self,
        from: ReplicaIndex,
        answer: RangeAnswer,
        clock: Hlc,
    ) -> Result<ReplicaPage, Refusal> {
        if let Some(refusal) = proto::refusal(answer.refusal) {
            return Err(refusal);
        }
        if answer.keys.len() != answer.records.len() || (answer.keys.is_empty() && !answer.complete)
        {
            return Err(Refusal::Failed);
        }
        let covered_to = match answer.keys.last() {
            Some(last) if !answer.complete => Covered::To(last.clone()),
            _ => Covered::End,
        };
        let mut rows = Vec::with_capacity(answer.keys.len());
        for (key, record) in answer.keys.into_iter().zip(answer.records) {
            let storage_key = StorageKey::parse(key.clone()).ok_or(Refusal::Corrupt)?;
            let record = Record::check(&storage_key, record).ok().ok_or(Refusal::Corrupt)?;
            if self.io.is_future(record.version().hlc) {
                return Err(Refusal::ClockAhead);
            }
            rows.push((key, record));
        }
        Ok(ReplicaPage { from, rows, covered_to, clock, floor: Hlc(answer.floor) })
    }

    fn too_few(
        &self,
        call: &Call<'_>,
        requirement: &Requirement,
        alive: ReplicaMask,
        answered: ReplicaMask,
        corrupt: bool,
    ) -> CallError {
        let lacking = requirement.scopes().iter().find(|it| it.count(alive) < it.required);
        if let Some(scope) = lacking {
            let error = coordinator::ReadError::Unavailable {
                datacenter: scope.datacenter,
                required: scope.required,
                alive: scope.count(alive),
            };
            return call.read_error(self.level, &error);
        }
        let (required, received) = (requirement.required(), answered.len());
        let reason = if corrupt { Reason::ChecksumMismatch } else { Reason::ReadFailed };
        let message = format!("{received} of {required} required replicas answered");
        CallError::new(reason, message)
            .with("level", self.level)
            .with("required", required)
            .with("received", received)
            .retry_after(RETRY)
    }

    /// Sends a range query; the answer comes later, or not at all.
    fn ask(
        &self,
        call: &Call<'_>,
        node: model::NodeIndex,
        query: RangeQuery,
    ) -> Boxed<'static, Option<(RangeAnswer, Hlc)>> {
        let shared = Arc::clone(call.shared);
        let mut state = self.io.lock();
        if state.peers.own() == Some(node) {
            drop(state);
            let deadline_us = call.deadline_us;
            return Box::pin(async move {
                let left_us = deadline_us.saturating_sub(shared.elapsed_us());
                let read = Arc::clone(&shared).read_from_disk(move |it| it.range_answer(query));
                let read = timeout(Duration::from_micros(left_us), read).await.ok()?;
                Some((read.ok()?, shared.clock.highest()))
            });
        }
        let (answer, result) = oneshot::channel();
        let range = RangeOperation { node, query, answer };
        let token = state.operations.insert(Operation::Range(Box::new(range)));
        self.io.set_alarm(&mut state, call.deadline_us, token, Alarm::Deadline);
        send_range_query(&mut state, token);
        drop(state);
        Box::pin(async move { result.await.ok() })
    }

    /// Answers settled rows as they are, and reads those again that replicas differ on (S4).
    async fn settle(
        &self,
        call: &Call<'_>,
        set: &Arc<model::ReplicaSet>,
        requirement: &Requirement,
        read_at: Hlc,
        merged: Vec<MergedRow>,
    ) -> Result<Vec<v1::Row>, CallError> {
        let mut confirmed = self.confirm(call, set, requirement, &merged).await?.into_iter();
        let mut rows = Vec::with_capacity(merged.len());
        for it in merged {
            let reply = if it.settled { None } else { confirmed.next() };
            let (record, value) = match reply {
                None => {
                    let value = it.newest.live_value(read_at);
                    (Some(it.newest), value)
                }
                Some(reply) => (reply.record, reply.value),
            };
            let key = StorageKey::parse(it.key).and_then(|it| it.key());
            if let (Some(record), Some(value), Some(key)) = (record, value, key) {
                rows.push(row(key, &record, value));
            }
        }
        Ok(rows)
    }

    async fn confirm(
        &self,
        call: &Call<'_>,
        set: &Arc<model::ReplicaSet>,
        requirement: &Requirement,
        merged: &[MergedRow],
    ) -> Result<Vec<ReadReply>, CallError> {
        let unsettled = merged.iter().filter(|it| !it.settled);
        let keys: Vec<_> = unsettled
            .filter_map(|it| Some((StorageKey::parse(it.key.clone())?, it.newest.as_bytes().len())))
            .collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let (done, results) = oneshot::channel();
        let batch = Batch::new(keys.len(), done);
        let mut held = self.io.hold(keys.iter().map(|it| it.1).sum())?;
        let read_at = call.shared.clock.read(call.shared.believed_wall());
        let reads = keys.into_iter().enumerate().map(|(position, (key, bytes))| {
            let requirement = requirement.clone();
            let held = held.split(bytes);
            let planned = PlannedRead {
                request: coordinator::ReadRequest { requirement, read_at },
                replicas: Arc::clone(set),
                key,
                held,
                traceparent: None,
            };
            (planned, ReplyTo::Batch { batch: Arc::clone(&batch), position })
        });
        self.io.start_reads(reads, call.deadline_us)?;
        let results = results.await.map_err(stopped_read)?;
        let failed = |error| call.read_error(self.level, &error);
        results.into_iter().map(|(it, _)| it.map_err(failed)).collect()
    }
}

/// The replicas to ask next: empty if enough have answered, `None` if too few are left.
fn missing(
    requirement: &Requirement,
    answered: ReplicaMask,
    usable: ReplicaMask,
    order: &[ReplicaIndex],
) -> Option<ReplicaMask> {
    let mut ask = ReplicaMask::EMPTY;
    for scope in requirement.scopes() {
        let mut lacking = scope.required.saturating_sub(scope.count(answered));
        for it in order {
            let candidate =
                scope.mask.contains(*it) && usable.contains(*it) && !answered.contains(*it);
            if lacking > 0 && candidate && ask.insert(*it) {
                lacking -= 1;
            }
        }
        if lacking > 0 {
            return None;
        }
    }
    Some(ask)
}

fn row(key: Key, record: &Record, value: Bytes) -> v1::Row {
    v1::Row {
        key: Some(key.into()),
        value,
        version: Some(record.version().into()),
        expires_at_ms: record.expiry_ms(),
    }
}

/// A position behind every key: keyspace ids never reach it.
const AFTER_ALL: &[u8] = &[0xff; 13];
const PAGE_ROWS_DEFAULT: usize = 256;
