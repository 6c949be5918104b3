//! Starts the coordinator's machines and hands them what happens. Decides nothing about quorums.

use std::{collections::BTreeMap, sync::Arc};

use coordinator::{Read, ReadEvent, ReadRequest, Write, WriteError, WriteEvent, WriteRequest};
use model::{
    Hlc, KeyspaceId, Mutant, NodeIndex, PartitionIndex, Refusal, ReplicaMask, ReplicaSet,
    StorageKey,
};

use super::io_loop::{Alarm, IoLoop, LoopState};
use crate::{
    call_bytes::Held,
    counters::Counters,
    operation::{Operation, ReadOperation, ShortList, Token, WriteOperation},
    reply::{ReadReplyTo, WriteReplyTo},
    view::View,
};

/// A write that is ready to start.
pub struct PlannedWrite {
    /// What is written.
    pub request: WriteRequest,
    /// Who holds the key.
    pub replicas: Arc<ReplicaSet>,
    /// A stamp of this node's clock.
    pub stamp: Hlc,
    /// The bytes of what is written.
    pub held: Held,
    /// W3C trace context, if the client sent one.
    pub traceparent: Option<Arc<str>>,
}

/// A read that is ready to start.
pub struct PlannedRead {
    /// What is required, and when.
    pub request: ReadRequest,
    /// Who holds the key.
    pub replicas: Arc<ReplicaSet>,
    /// The key.
    pub key: StorageKey,
    /// Bytes for what is read.
    pub held: Held,
    /// W3C trace context, if the client sent one.
    pub traceparent: Option<Arc<str>>,
}

/// The node has as much under way as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// Of what.
    pub what: &'static str,
    /// How many that is.
    pub limit: usize,
}

impl IoLoop {
    /// Starts writes that share a deadline. All or none are admitted; each has its own result.
    pub fn start_writes(
        &self,
        writes: impl ExactSizeIterator<Item = (PlannedWrite, WriteReplyTo)>,
        deadline_us: u64,
    ) -> Result<(), Full> {
        let (view, now_us) = (self.shared.view.load(), self.now_us());
        let mut state = self.lock();
        self.admit(&state, writes.len())?;
        state.peers.follow(&view);
        for (planned, reply) in writes {
            self.start_write(&mut state, &view, now_us, planned, reply, deadline_us);
        }
        self.push_local(&mut state);
        Ok(())
    }

    /// Starts reads that share a deadline. All or none are admitted; each has its own result.
    pub fn start_reads(
        &self,
        reads: impl ExactSizeIterator<Item = (PlannedRead, ReadReplyTo)>,
        deadline_us: u64,
    ) -> Result<(), Full> {
        let (view, now_us) = (self.shared.view.load(), self.now_us());
        let mut state = self.lock();
        self.admit(&state, reads.len())?;
        state.peers.follow(&view);
        for (planned, reply) in reads {
            self.start_read(&mut state, &view, now_us, planned, reply, deadline_us);
        }
        self.push_local(&mut state);
        Ok(())
    }

    /// Holds so many bytes of values for a call, or says that there is no room.
    pub(super) fn hold(&self, bytes: usize) -> Result<Held, Full> {
        self.call_bytes.hold(bytes).ok_or_else(|| self.no_room())
    }

    /// As [`IoLoop::hold`], for what is about to be read.
    pub(super) fn hold_in_advance(&self, bytes: usize) -> Result<Held, Full> {
        self.hold(self.call_bytes.in_advance(bytes))
    }

    /// Says that there is no room for more bytes of values, and counts it.
    pub(super) fn no_room(&self) -> Full {
        Counters::count(&self.shared.counters.calls_overloaded);
        self.close_stalled();
        Full { what: "bytes of values in calls under way", limit: self.call_bytes.limit() }
    }

    /// Takes places for operations that cannot start yet, or says that there are none. Dropped right
    /// before they start.
    pub(super) fn reserve(&self, operations: usize) -> Result<Places<'_>, Full> {
        let mut state = self.lock();
        self.admit(&state, operations)?;
        state.unanswered += operations;
        Ok(Places { io: self, operations })
    }

    fn admit(&self, state: &LoopState, operations: usize) -> Result<(), Full> {
        let limit = self.shared.config.operations_in_flight_max;
        // Those that are answered wait for a slow replica only to leave it a hint: they must not keep
        // others from being served, nor may they pile up without end.
        let table_full =
            state.operations.len() + operations > limit.saturating_mul(ANSWERED_FACTOR);
        let full = state.unanswered + operations > limit || table_full;
        if full && !Mutant::BoundsIgnored.is_on() {
            Counters::count(&self.shared.counters.calls_overloaded);
            return Err(Full { what: "operations in flight", limit });
        }
        Ok(())
    }

    fn start_write(
        &self,
        state: &mut LoopState,
        view: &View,
        now_us: u64,
        planned: PlannedWrite,
        reply: WriteReplyTo,
        deadline_us: u64,
    ) {
        let PlannedWrite { mut request, replicas, stamp, held, traceparent } = planned;
        let mut alive = state.peers.alive(&replicas, now_us);
        let key = request.key.clone();
        let partition = view.partition(key.token());
        if !self.shared.floors.takes_writes(key.keyspace(), partition) {
            // It would refuse what the others take: of unknown outcome, and known before.
            alive = alive.without(replicas.select(|node| state.peers.own() == Some(node)));
        }
        if alive != replicas.all() && !state.contended.is_empty() {
            request.query_first = is_contended(&state.contended, partition, now_us);
        }
        let mut effects = std::mem::take(&mut state.write_effects);
        let set = Arc::clone(&replicas);
        match Write::start(request, set, alive, view.local_dc(), stamp, &mut effects) {
            Err(error) => {
                self.count_write(key.keyspace(), &Err(error.clone()));
                reply.send(Err(error));
            }
            Ok(machine) => {
                let reply = Some(reply);
                let stamps = ShortList::of(stamp);
                let operation = WriteOperation {
                    machine,
                    replicas,
                    key,
                    stamps,
                    deadline_us,
                    held: Some(held),
                    reply,
                    traceparent,
                };
                let token = state.operations.insert(Operation::Write(Box::new(operation)));
                state.unanswered += 1;
                self.set_alarm(state, deadline_us, token, Alarm::Deadline);
                self.write_effects(state, token, &mut effects);
            }
        }
        state.write_effects = effects;
    }

    /// Notes that a write of a key has met a newer version.
    pub(super) fn note_contention(&self, state: &mut LoopState, key: &StorageKey) {
        let partition = self.shared.view.load().partition(key.token());
        let now_us = self.now_us();
        if state.contended.insert(partition, now_us + CONTENDED_US).is_none() {
            state.contended.retain(|_, until_us| *until_us > now_us);
        }
    }

    fn start_read(
        &self,
        state: &mut LoopState,
        view: &View,
        now_us: u64,
        planned: PlannedRead,
        reply: ReadReplyTo,
        deadline_us: u64,
    ) {
        let PlannedRead { request, replicas, key, held, traceparent } = planned;
        let alive = state.peers.alive(&replicas, now_us);
        let mut order = std::mem::take(&mut state.order);
        state.peers.preferred(&replicas, view, &mut order);
        let mut effects = std::mem::take(&mut state.read_effects);
        match Read::start(request, Arc::clone(&replicas), alive, &order, &mut effects) {
            Err(error) => {
                Counters::count(&self.shared.counters.reads_failed);
                reply.send((Err(error), held));
            }
            Ok(machine) => {
                let (started_us, reply) = (now_us, Some(reply));
                let rounds = ShortList::default();
                let operation = ReadOperation {
                    machine,
                    replicas,
                    key,
                    rounds,
                    started_us,
                    deadline_us,
                    held: Some(held),
                    answered_bytes: 0,
                    reply,
                    traceparent,
                };
                let token = state.operations.insert(Operation::Read(Box::new(operation)));
                state.unanswered += 1;
                self.set_alarm(state, deadline_us, token, Alarm::Deadline);
                let slow_us = started_us + state.read_latency.slow_us();
                if slow_us < deadline_us {
                    self.set_alarm(state, slow_us, token, Alarm::Slow);
                }
                self.read_effects(state, token, &mut effects);
            }
        }
        state.order = order;
        state.read_effects = effects;
    }

    /// Hands one event to a write, if it is still in flight.
    pub fn write_event(&self, state: &mut LoopState, token: Token, event: WriteEvent) {
        let mut effects = std::mem::take(&mut state.write_effects);
        if let Some(Operation::Write(write)) = state.operations.get_mut(token) {
            write.machine.handle(event, &mut effects);
            self.write_effects(state, token, &mut effects);
        }
        state.write_effects = effects;
    }

    /// Hands one event to a read, if it is still in flight.
    pub fn read_event(&self, state: &mut LoopState, token: Token, event: ReadEvent) {
        let mut effects = std::mem::take(&mut state.read_effects);
        if let Some(Operation::Read(read)) = state.operations.get_mut(token) {
            let event = self.held_answer(read, event);
            read.machine.handle(event, &mut effects);
            self.read_effects(state, token, &mut effects);
        }
        state.read_effects = effects;
    }

    /// A replica's answer, if there is room for what it carries; else that replica has not answered.
    fn held_answer(&self, read: &mut ReadOperation, event: ReadEvent) -> ReadEvent {
        let ReadEvent::Answer { from, record: Some(record), .. } = &event else { return event };
        let Some(held) = &mut read.held else { return event };
        let bytes = read.answered_bytes + record.as_bytes().len();
        if !held.grow_to(bytes) {
            Counters::count(&self.shared.counters.answers_refused);
            self.close_stalled();
            return ReadEvent::Refused { from: *from, refusal: Refusal::Overloaded };
        }
        read.answered_bytes = bytes;
        event
    }

    /// Rings an alarm of an operation that is still in flight.
    pub fn alarm(&self, token: Token, alarm: Alarm) {
        if alarm == Alarm::Deadline && Mutant::DeadlineIgnored.is_on() {
            return;
        }
        self.follow_storages();
        let mut state = self.lock();
        match (state.operations.get_mut(token), alarm) {
            (Some(Operation::Write(_)), Alarm::Deadline) => {
                self.write_event(&mut state, token, WriteEvent::Deadline);
            }
            (Some(Operation::Read(_)), Alarm::Deadline) => {
                self.read_event(&mut state, token, ReadEvent::Deadline);
            }
            (Some(Operation::Read(read)), Alarm::Slow) if read.reply.is_some() => {
                Counters::count(&self.shared.counters.reads_speculative);
                self.read_event(&mut state, token, ReadEvent::Slow);
            }
            // Dropping the sender tells the one who waits.
            (
                Some(
                    Operation::Probe { .. }
                    | Operation::Range(_)
                    | Operation::Hint(_)
                    | Operation::Exchange { .. },
                ),
                _,
            ) => {
                state.operations.remove(token);
            }
            _ => {}
        }
        self.push_local(&mut state);
    }

    /// Tells every operation that a node cannot be reached.
    pub fn peer_lost(&self, node: NodeIndex) {
        self.follow_storages();
        let mut state = self.lock();
        for token in state.operations.tokens() {
            let Some(operation) = state.operations.get_mut(token) else { continue };
            let replicas = operation.replica(node).map(ReplicaMask::only);
            match (operation, replicas) {
                (Operation::Write(_), Some(replicas)) => {
                    self.write_event(&mut state, token, WriteEvent::Unreachable { replicas });
                }
                (Operation::Read(_), Some(replicas)) => {
                    self.read_event(&mut state, token, ReadEvent::Unreachable { replicas });
                }
                (
                    Operation::Probe { node: asked, .. } | Operation::Exchange { node: asked, .. },
                    _,
                ) if *asked == node => {
                    state.operations.remove(token);
                }
                (Operation::Range(range), _) if range.node == node => {
                    state.operations.remove(token);
                }
                (Operation::Hint(hint), _) if hint.target == node => {
                    state.operations.remove(token);
                }
                _ => {}
            }
        }
        self.push_local(&mut state);
    }

    /// Hands the items for this node's own replicas to the commit path, under one lock.
    pub fn push_local(&self, state: &mut LoopState) {
        if state.local.is_empty() {
            return;
        }
        let local = &mut state.local;
        let pushed = self.shared.commits.push(|items| items.extend(local.drain(..)));
        if let Err(rejected) = pushed {
            self.refuse_local(state, rejected.refusal, rejected.items);
        }
    }

    pub(super) fn count_write(
        &self,
        keyspace: KeyspaceId,
        result: &Result<coordinator::WriteReply, WriteError>,
    ) {
        let counters = &self.shared.counters;
        match result {
            Ok(reply) => {
                Counters::count(&counters.writes_acknowledged);
                if reply.superseded_concurrent {
                    Counters::count(&counters.overwritten_concurrent);
                    // Seldom: what takes a lock here would slow down every write.
                    self.shared.exchange.count_overwritten(keyspace);
                }
            }
            Err(WriteError::Unavailable { .. }) => Counters::count(&counters.writes_unavailable),
            Err(_) => Counters::count(&counters.writes_unknown),
        }
    }
}

/// True if a write to the partition has lost a race lately. With a replica away, the next race could
/// end undecided; asking for versions first costs a round trip and cannot (P5).
fn is_contended(
    contended: &BTreeMap<PartitionIndex, u64>,
    partition: PartitionIndex,
    now_us: u64,
) -> bool {
    contended.get(&partition).is_some_and(|until_us| *until_us > now_us)
}

/// Places among the operations in flight, kept for those that wait to start.
pub(super) struct Places<'a> {
    io: &'a IoLoop,
    operations: usize,
}

impl Drop for Places<'_> {
    fn drop(&mut self) {
        self.io.lock().unanswered -= self.operations;
    }
}

/// How many times as many operations a loop keeps as clients may wait for.
const ANSWERED_FACTOR: usize = 4;
/// For how long a lost race makes the next one likely.
const CONTENDED_US: u64 = 60_000_000;
