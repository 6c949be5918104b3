//! The replica's side of the peer streams: mutations to the commit path, queries to storage.
//!
//! Everything in a frame is checked here, before it is queued: layout, clocks, keys, checksums.

use std::sync::Arc;

use bytes::Bytes;
use model::{Hlc, Mutant, NodeIndex, OperationId, Record, Refusal, StorageKey, WriteAnswer};
use proto::internal::{
    Frame, Mutation, MutationAnswer, MutationKind, Query, QueryAnswer, RangeAnswer, RangeQuery,
};

use super::{io_loop::IoLoop, links::Origins};
use crate::{
    commit::{CommitAnswer, CommitAnswerKind, CommitItem, Origin},
    counters::Counters,
    liveness::Peer,
    local_read::LocalRead,
    operation::NO_ANSWER,
    outbox::{NotQueued, Outbox, OutboxBatch},
    shared::{Destination, Shared},
    storage::{RangeRequest, Space, announce_first},
    view::View,
};

/// A peer whose requests are served.
pub struct Caller {
    /// Its place in the layout, if it has one.
    pub index: Option<NodeIndex>,
    /// Where its answers go.
    pub outbox: Arc<Outbox>,
}

impl IoLoop {
    /// Serves the requests of one frame.
    pub fn serve(&self, caller: &Caller, origins: &Origins, frame: &mut Frame) {
        let shared = &self.shared;
        let view = shared.view.load();
        let refusal = self.refuse_frame(&view, frame);
        let mut items = Vec::with_capacity(frame.mutations.len());
        let mut answers = Answers::default();
        for mutation in frame.mutations.drain(..) {
            let judged = refusal.map_or_else(|| self.judge_mutation(&view, &mutation), Err);
            self.serve_mutation(caller, origins, mutation, judged, &mut items, &mut answers);
        }
        if !items.is_empty() {
            add(&shared.counters.mutations_served, items.len());
            if let Err(rejected) = shared.commits.push(|queue| queue.extend(items)) {
                answers.refuse(rejected.items, rejected.refusal);
            }
        }
        add(&shared.counters.queries_served, frame.queries.len());
        let mut queries = frame.queries.drain(..);
        while !queries.as_slice().is_empty() {
            let storage = &shared.world.storage;
            let announced = announce_first(storage, queries.as_slice(), |it| Some(&it.key));
            for query in queries.by_ref().take(announced) {
                self.serve_query(caller, query, refusal, &mut answers);
            }
        }
        for query in frame.range_queries.drain(..) {
            self.serve_range(caller, query, refusal, &mut answers);
        }
        answers.send(&caller.outbox, shared);
        for request in frame.exchange_requests.drain(..) {
            self.serve_exchange(caller, request, refusal);
        }
    }

    /// Why none of a frame's requests is judged, if so.
    fn refuse_frame(&self, view: &View, frame: &Frame) -> Option<Refusal> {
        let shared = &self.shared;
        if frame.clock != 0
            && let Err(error) = shared.clock.observe(|| shared.believed_wall(), Hlc(frame.clock))
        {
            Counters::count(&shared.counters.clocks_refused);
            tracing::warn!(%error, "a peer's frame is refused");
            return Some(Refusal::ClockAhead);
        }
        let requests = !frame.mutations.is_empty()
            || !frame.queries.is_empty()
            || !frame.range_queries.is_empty()
            || !frame.exchange_requests.is_empty();
        if requests && (view.layout_hash() == 0 || frame.layout_hash != view.layout_hash()) {
            Counters::count(&shared.counters.peer_requests_refused);
            return Some(Refusal::StaleLayout);
        }
        None
    }

    fn serve_mutation(
        &self,
        caller: &Caller,
        origins: &Origins,
        mut mutation: Mutation,
        judged: Result<(StorageKey, Record), Refusal>,
        items: &mut Vec<CommitItem<Destination>>,
        answers: &mut Answers,
    ) {
        let operation = OperationId(mutation.operation);
        // A mutation passed on is answered to its coordinator; without a link to it, the
        // coordinator takes the silence for what it is.
        let shared = &self.shared;
        let outbox = match mutation.origin.checked_sub(1) {
            None => Some(Arc::clone(&caller.outbox)),
            Some(origin) => origins.get(shared, origin, mutation.origin_io_loop),
        };
        let (key, record) = match judged {
            Ok(judged) => judged,
            Err(refusal) => {
                if let Some(outbox) = outbox {
                    answers.refuse_one(outbox, operation, refusal);
                }
                return;
            }
        };
        if !mutation.pass_on.is_empty() {
            let operation = OperationId(mutation.operation);
            if !self.pass_on(caller, &mut mutation) && operation != NO_ANSWER {
                answers.not_passed_on.push(operation);
            }
        }
        let destination = match outbox {
            Some(outbox) if operation != NO_ANSWER => Destination::Peer(self.index, outbox),
            _ => Destination::Nowhere,
        };
        let want_newest = mutation.kind == i32::from(MutationKind::WriteBack);
        items.push(CommitItem::Mutation {
            destination,
            operation,
            slot: 0,
            key,
            record,
            origin: match want_newest {
                true => Origin::Held(Hlc(mutation.floor)),
                false => Origin::Fresh,
            },
            want_newest,
        });
    }

    /// Checks key, checksum and clock of a mutation on its way in.
    fn judge_mutation(
        &self,
        view: &View,
        mutation: &Mutation,
    ) -> Result<(StorageKey, Record), Refusal> {
        let shared = &self.shared;
        let Some(key) = StorageKey::parse(mutation.key.clone()) else {
            Counters::count(&shared.counters.peer_messages_malformed);
            return Err(Refusal::Failed);
        };
        if view.metadata().is_some_and(|it| it.was_dropped(key.keyspace())) {
            // The sender has not heard of it yet. A keyspace unknown here may be newer than this view.
            Counters::count(&shared.counters.peer_requests_refused);
            return Err(Refusal::StaleLayout);
        }
        let record = Record::check(&key, mutation.record.clone()).map_err(|error| {
            Counters::count(&shared.counters.checksum_failures);
            tracing::warn!(token = %key.token(), %error, "a peer's mutation is damaged");
            Refusal::Corrupt
        })?;
        shared.clock.observe(|| shared.believed_wall(), record.version().hlc).map_err(|error| {
            Counters::count(&shared.counters.clocks_refused);
            tracing::warn!(token = %key.token(), %error, "a peer's mutation is refused");
            Refusal::ClockAhead
        })?;
        Ok((key, record))
    }

    /// Sends a mutation on to this datacenter's other replicas, in the coordinator's name. False if
    /// it did not go to all of them: the coordinator, which may reach them, has to know.
    fn pass_on(&self, caller: &Caller, mutation: &mut Mutation) -> bool {
        let pass_on = std::mem::take(&mut mutation.pass_on);
        let Some(origin) = caller.index else { return false };
        let mut forwarded = mutation.clone();
        forwarded.origin = u32::from(origin.0) + 1;
        forwarded.origin_io_loop = super::links::io_loop_of(OperationId(mutation.operation));
        let bytes = forwarded.key.len() + forwarded.record.len() + FORWARD_BYTES;
        let state = self.lock();
        let mut passed = pass_on.len() <= PASS_ON_MAX;
        for node in pass_on.into_iter().take(PASS_ON_MAX) {
            let peer = u16::try_from(node).ok().and_then(|it| state.peers.get(NodeIndex(it)));
            let copy = forwarded.clone();
            let push = |it: &Arc<Peer>| it.outbox.push(bytes, |it| it.mutations.push(copy));
            passed &= peer.is_some_and(|it| push(it).is_ok());
        }
        passed
    }

    fn serve_query(
        &self,
        caller: &Caller,
        query: Query,
        refusal: Option<Refusal>,
        answers: &mut Answers,
    ) {
        let operation = query.operation;
        let Some(key) = StorageKey::parse(query.key) else {
            Counters::count(&self.shared.counters.peer_messages_malformed);
            answers.queries.push(query_answer(operation, Err(Refusal::Failed), false, Hlc::ZERO));
            return;
        };
        if let Some(refusal) = refusal {
            answers.queries.push(query_answer(operation, Err(refusal), false, Hlc::ZERO));
            return;
        }
        if let (LocalRead::Here(read), floor) = self.shared.replica_inline(&key) {
            answers.queries.push(query_answer(operation, read, query.version_only, floor));
            return;
        }
        let shared = Arc::clone(&self.shared);
        let outbox = Arc::clone(&caller.outbox);
        tokio::spawn(async move {
            let work = move |it: &Shared| it.replica_blocking(&key);
            let read = Arc::clone(&shared).read_from_disk(work).await;
            let (read, floor) = read.unwrap_or_else(|refusal| (Err(refusal), Hlc::ZERO));
            let mut answers = Answers::default();
            answers.queries.push(query_answer(operation, read, query.version_only, floor));
            answers.send(&outbox, &shared);
        });
    }

    fn serve_range(
        &self,
        caller: &Caller,
        query: RangeQuery,
        refusal: Option<Refusal>,
        answers: &mut Answers,
    ) {
        if let Some(refusal) = refusal {
            answers.ranges.push(range_refused(query.operation, refusal));
            return;
        }
        let (shared, outbox) = (Arc::clone(&self.shared), Arc::clone(&caller.outbox));
        // A page is many reads: it never runs on the loop.
        tokio::spawn(async move {
            let operation = query.operation;
            let work = move |it: &Shared| it.range_answer(query);
            let read = Arc::clone(&shared).read_from_disk(work).await;
            let mut answers = Answers::default();
            answers.ranges.push(read.unwrap_or_else(|it| range_refused(operation, it)));
            answers.send(&outbox, &shared);
        });
    }
}

impl Shared {
    /// Reads one page of a range for a peer, or for this node's own scans.
    pub fn range_answer(&self, query: RangeQuery) -> RangeAnswer {
        let limits = &self.config.limits;
        let wanted = |asked: u32, limit: usize| usize::try_from(asked).unwrap_or(limit).min(limit);
        let request = RangeRequest {
            space: Space::Data,
            start: query.start,
            end: (!query.end.is_empty()).then_some(query.end),
            reverse: query.reverse,
            rows_max: wanted(query.rows_max, limits.scan_rows_max).max(1),
            bytes_max: wanted(query.bytes_max, limits.scan_bytes_max),
        };
        let first = StorageKey::first_token(&request.start);
        let mut answer = RangeAnswer { operation: query.operation, ..RangeAnswer::default() };
        // Before the read: one that rises meanwhile would vouch for what is overwritten by now.
        let floor = first.ok_or(Refusal::Failed);
        let floor = floor.and_then(|(keyspace, token)| self.readable_at(keyspace, token));
        match floor.and_then(|floor| Ok((self.range_blocking(&request)?, floor))) {
            Ok((page, floor)) => {
                answer.complete = page.complete;
                answer.floor = floor.0;
                let now = self.clock.highest();
                let dropped =
                    |it: &Record| Mutant::ScanLiveRowsOnly.is_on() && it.live_value(now).is_none();
                for (key, record) in page.rows.into_iter().filter(|it| !dropped(&it.1)) {
                    answer.keys.push(key);
                    answer.records.push(record.into_bytes());
                }
            }
            Err(refusal) => answer.refusal = proto::internal::Refusal::from(refusal).into(),
        }
        answer
    }
}

/// What a mutation passed on takes in a queue beyond its key and record.
const FORWARD_BYTES: usize = 80;
/// No datacenter holds more replicas of a key.
const PASS_ON_MAX: usize = model::Layout::LIST_MAX;

fn query_answer(
    operation: u64,
    read: Result<Option<Record>, Refusal>,
    version_only: bool,
    floor: Hlc,
) -> QueryAnswer {
    let mut answer = QueryAnswer { operation, floor: floor.0, ..QueryAnswer::default() };
    match read {
        Ok(Some(record)) if version_only => {
            answer.newest_clock = record.version().hlc.0;
            answer.newest_request = record.version().request.0;
        }
        Ok(Some(record)) => answer.record = record.into_bytes(),
        Ok(None) => {}
        Err(refusal) => answer.refusal = proto::internal::Refusal::from(refusal).into(),
    }
    answer
}

fn range_refused(operation: u64, refusal: Refusal) -> RangeAnswer {
    let refusal = proto::internal::Refusal::from(refusal).into();
    RangeAnswer { operation, refusal, ..RangeAnswer::default() }
}

/// Answers that need no commit, collected so that a frame costs one lock.
#[derive(Default)]
struct Answers {
    queries: Vec<QueryAnswer>,
    ranges: Vec<RangeAnswer>,
    refused: Vec<(Arc<Outbox>, OperationId, Refusal)>,
    not_passed_on: Vec<OperationId>,
}

impl Answers {
    fn refuse_one(&mut self, outbox: Arc<Outbox>, operation: OperationId, refusal: Refusal) {
        if operation != NO_ANSWER {
            self.refused.push((outbox, operation, refusal));
        }
    }

    fn refuse(&mut self, items: Vec<CommitItem<Destination>>, refusal: Refusal) {
        for item in items {
            if let CommitItem::Mutation {
                destination: Destination::Peer(_, outbox),
                operation,
                ..
            } = item
            {
                self.refuse_one(outbox, operation, refusal);
            }
        }
    }

    fn send(self, outbox: &Arc<Outbox>, shared: &Shared) {
        let mut dropped = 0;
        if !self.queries.is_empty() || !self.ranges.is_empty() {
            let sent = outbox.push_many(|batch| {
                for answer in self.queries {
                    dropped += usize::from(add_query_answer(batch, answer).is_err());
                }
                for answer in self.ranges {
                    dropped += usize::from(add_range_answer(batch, answer).is_err());
                }
                Ok(())
            });
            dropped += usize::from(sent.is_err());
        }
        for operation in self.not_passed_on {
            let add = |frame: &mut Frame| frame.not_passed_on.push(operation.0);
            let sent = outbox.push_many(|batch| batch.add_answer(8, add));
            dropped += usize::from(sent.is_err());
        }
        for (outbox, operation, refusal) in self.refused {
            let answer = WriteAnswer::Refused(refusal);
            let sent = outbox.push_many(|batch| add_answer(batch, operation, answer, Bytes::new()));
            dropped += usize::from(sent.is_err());
        }
        add(&shared.counters.peer_answers_dropped, dropped);
    }
}

/// What an answer takes in a queue beyond what it carries.
const ANSWER_BYTES: usize = 40;

/// Where there is no room for a record the caller is told so: it turns to another replica.
fn add_query_answer(batch: &mut OutboxBatch<'_>, answer: QueryAnswer) -> Result<(), NotQueued> {
    let (operation, bytes) = (answer.operation, answer.record.len());
    if bytes == 0 {
        return batch.add_answer(ANSWER_BYTES, |frame| frame.query_answers.push(answer));
    }
    let whole = batch.add(bytes + ANSWER_BYTES, |frame| frame.query_answers.push(answer));
    whole.or_else(|NotQueued| {
        let refused = query_answer(operation, Err(Refusal::Overloaded), false, Hlc::ZERO);
        batch.add_answer(ANSWER_BYTES, |frame| frame.query_answers.push(refused))
    })
}

fn add_range_answer(batch: &mut OutboxBatch<'_>, answer: RangeAnswer) -> Result<(), NotQueued> {
    let rows = answer.keys.iter().chain(&answer.records);
    let (operation, bytes) = (answer.operation, rows.map(Bytes::len).sum::<usize>());
    if bytes == 0 {
        return batch.add_answer(ANSWER_BYTES, |frame| frame.range_answers.push(answer));
    }
    let whole = batch.add(bytes + ANSWER_BYTES, |frame| frame.range_answers.push(answer));
    whole.or_else(|NotQueued| {
        let refused = range_refused(operation, Refusal::Overloaded);
        batch.add_answer(ANSWER_BYTES, |frame| frame.range_answers.push(refused))
    })
}

fn add_answer(
    batch: &mut OutboxBatch<'_>,
    operation: OperationId,
    answer: WriteAnswer,
    newest: Bytes,
) -> Result<(), NotQueued> {
    if answer == WriteAnswer::Applied {
        return batch.add_answer(8, |frame| frame.applied.push(operation.0));
    }
    let add = |answer, newest| {
        move |frame: &mut Frame| {
            frame.mutation_answers.push(MutationAnswer::from_answer(operation.0, answer, newest));
        }
    };
    if newest.is_empty() {
        return batch.add_answer(ANSWER_BYTES, add(answer, newest));
    }
    batch.add(ANSWER_BYTES + newest.len(), add(answer, newest)).or_else(|NotQueued| {
        let refused = WriteAnswer::Refused(Refusal::Overloaded);
        batch.add_answer(ANSWER_BYTES, add(refused, Bytes::new()))
    })
}

/// Hands the answers of one group to the loops that they go through. Runs on the commit thread.
pub(super) fn deliver(shared: &Shared, answers: &mut Vec<(Destination, CommitAnswer)>) {
    answers.retain(|it| it.0.io_loop().is_some());
    for (index, done) in shared.done.iter().enumerate() {
        let mut own = answers.extract_if(.., |it| it.0.io_loop() == Some(index)).peekable();
        if own.peek().is_some() {
            done.push(own);
        }
    }
}

/// Queues the commit path's answers for peers, under one lock for each; they become `Nowhere`.
pub(super) fn send_answers(shared: &Shared, answers: &mut [(Destination, CommitAnswer)]) {
    let mut dropped = 0;
    for at in 0..answers.len() {
        let Destination::Peer(_, outbox) = &answers[at].0 else { continue };
        let outbox = Arc::clone(outbox);
        // The first answer for a peer takes all of its answers along.
        let sent = outbox.push_many(|batch| {
            let mut result = Ok(());
            for (destination, answer) in &mut answers[at..] {
                let same =
                    matches!(destination, Destination::Peer(_, it) if Arc::ptr_eq(it, &outbox));
                if !same {
                    continue;
                }
                *destination = Destination::Nowhere;
                if let CommitAnswerKind::Mutation(kind) = answer.kind {
                    let newest = answer.newest.take().map(Record::into_bytes).unwrap_or_default();
                    result = add_answer(batch, answer.operation, kind, newest);
                    dropped += usize::from(result.is_err());
                }
            }
            result
        });
        // What was not queued is counted below; the rest of the group goes on.
        let _ = sent;
    }
    add(&shared.counters.peer_answers_dropped, dropped);
}

fn add(counter: &std::sync::atomic::AtomicU64, count: usize) {
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    counter.fetch_add(count, std::sync::atomic::Ordering::Relaxed);
}
