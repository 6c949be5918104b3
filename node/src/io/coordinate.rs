//! Drives the coordinator's machines: events in, effects out. Decides nothing about quorums.

use std::sync::Arc;

use bytes::Bytes;
use coordinator::{
    Read, ReadEffect, ReadEvent, ReadRequest, Write, WriteEffect, WriteError, WriteEvent,
    WriteRequest,
};
use model::{
    Hlc, NodeIndex, OperationId, Record, ReplicaIndex, ReplicaMask, ReplicaSet, StorageKey, Version,
    WriteAnswer,
};
use proto::internal::{Mutation, MutationKind, Query};

use super::io_loop::{Alarm, IoLoop, LoopState};
use crate::{
    commit::CommitItem,
    counters::Counters,
    liveness::Peers,
    operation::{
        NO_ANSWER, Operation, ReadOperation, ReadRound, Token, WriteOperation,
    },
    reply::{ReadReplyTo, WriteReplyTo},
    shared::{Destination, Shared},
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
    /// W3C trace context, if the client sent one.
    pub traceparent: Option<Arc<str>>,
}

/// The loop has as many operations in flight as it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
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
        let view = self.shared.view.load();
        let mut state = self.lock();
        self.admit(&state, writes.len())?;
        state.peers.follow(&view);
        for (planned, reply) in writes {
            self.start_write(&mut state, &view, planned, reply, deadline_us);
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
        let view = self.shared.view.load();
        let mut state = self.lock();
        self.admit(&state, reads.len())?;
        state.peers.follow(&view);
        for (planned, reply) in reads {
            self.start_read(&mut state, &view, planned, reply, deadline_us);
        }
        self.push_local(&mut state);
        Ok(())
    }

    fn admit(&self, state: &LoopState, operations: usize) -> Result<(), Full> {
        let limit = self.shared.config.operations_in_flight_max;
        if state.operations.len() + operations > limit {
            Counters::count(&self.shared.counters.calls_overloaded);
            return Err(Full { limit });
        }
        Ok(())
    }

    fn start_write(
        &self,
        state: &mut LoopState,
        view: &View,
        planned: PlannedWrite,
        reply: WriteReplyTo,
        deadline_us: u64,
    ) {
        let PlannedWrite { request, replicas, stamp, traceparent } = planned;
        let alive = state.peers.alive(&replicas, self.shared.elapsed_us());
        let key = request.key.clone();
        let mut effects = std::mem::take(&mut state.write_effects);
        let set = Arc::clone(&replicas);
        match Write::start(request, set, alive, view.local_dc(), stamp, &mut effects) {
            Err(error) => {
                self.count_write(&Err(error.clone()));
                reply.send(Err(error));
            }
            Ok(machine) => {
                let reply = Some(reply);
                let stamps = vec![stamp];
                let operation =
                    WriteOperation { machine, replicas, key, stamps, reply, traceparent };
                let token = state.operations.insert(Operation::Write(Box::new(operation)));
                self.set_alarm(state, deadline_us, token, Alarm::Deadline);
                self.write_effects(state, token, &mut effects);
            }
        }
        state.write_effects = effects;
    }

    fn start_read(
        &self,
        state: &mut LoopState,
        view: &View,
        planned: PlannedRead,
        reply: ReadReplyTo,
        deadline_us: u64,
    ) {
        let PlannedRead { request, replicas, key, traceparent } = planned;
        let alive = state.peers.alive(&replicas, self.shared.elapsed_us());
        let mut order = std::mem::take(&mut state.order);
        state.peers.preferred(&replicas, view, &mut order);
        let mut effects = std::mem::take(&mut state.read_effects);
        match Read::start(request, Arc::clone(&replicas), alive, &order, &mut effects) {
            Err(error) => {
                Counters::count(&self.shared.counters.reads_failed);
                reply.send(Err(error));
            }
            Ok(machine) => {
                let (started_us, reply) = (self.now_us(), Some(reply));
                let rounds = Vec::with_capacity(1);
                let operation =
                    ReadOperation { machine, replicas, key, rounds, started_us, reply, traceparent };
                let token = state.operations.insert(Operation::Read(Box::new(operation)));
                self.set_alarm(state, deadline_us, token, Alarm::Deadline);
                let slow_us = started_us + SLOW_US;
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
            read.machine.handle(event, &mut effects);
            self.read_effects(state, token, &mut effects);
        }
        state.read_effects = effects;
    }

    /// Executes a write's effects until it wants nothing more, and forgets it when it has ended.
    fn write_effects(
        &self,
        state: &mut LoopState,
        token: Token,
        effects: &mut Vec<WriteEffect>,
    ) {
        while !effects.is_empty() {
            let LoopState { operations, peers, local, awaiting_stamp, .. } = state;
            let Some(Operation::Write(write)) = operations.get_mut(token) else { return };
            let mut outlet = Outlet { shared: &self.shared, io_loop: self.index, peers, local };
            let mut unreachable = ReplicaMask::EMPTY;
            let (mut stamp, mut own) = (None, None);
            for effect in effects.drain(..) {
                match effect {
                    WriteEffect::Send { to, pass_on, record } => {
                        let sent = outlet.send_mutation(write, token, to, pass_on, record);
                        unreachable = unreachable.or(sent);
                    }
                    WriteEffect::Query { to } => {
                        let operation = token.with_sequence(VERSION_QUERY);
                        for it in to.iter() {
                            let node = write.replicas.node(it);
                            if outlet.peers.own() == Some(node) {
                                own = Some(it);
                                continue;
                            }
                            if !outlet.query(node, operation, &write.key, true, None) {
                                unreachable.insert(it);
                            }
                        }
                    }
                    WriteEffect::Hint { to, record, replaces } => {
                        outlet.hint(write, token, to, record, replaces);
                    }
                    WriteEffect::NeedStamp { above } => stamp = Some(above),
                    WriteEffect::Reply(result) => {
                        self.count_write(&result);
                        if let Some(reply) = write.reply.take() {
                            reply.send(result);
                        }
                    }
                }
            }
            if !unreachable.is_empty() {
                write.machine.handle(WriteEvent::Unreachable { replicas: unreachable }, effects);
            }
            if let Some(from) = own {
                let event = self.version_here(from, &write.key);
                write.machine.handle(event, effects);
            }
            if let Some(above) = stamp {
                Counters::count(&self.shared.counters.writes_restamped);
                match self.stamp_above(above) {
                    Some(stamp) => {
                        write.stamps.push(stamp);
                        write.machine.handle(WriteEvent::Stamped(stamp), effects);
                    }
                    None => awaiting_stamp.push(token),
                }
            }
        }
        self.forget_if_finished(state, token);
    }

    /// This node's own answer to a version query.
    fn version_here(&self, from: ReplicaIndex, key: &StorageKey) -> WriteEvent {
        match self.shared.read_blocking(key) {
            Ok(record) => {
                let newest = record.map_or(Version::ABSENT, |it| it.version());
                WriteEvent::Queried { from, newest }
            }
            Err(refusal) => {
                let answer = WriteAnswer::Refused(refusal);
                WriteEvent::Answer { from, hlc: Hlc::ZERO, answer }
            }
        }
    }

    /// A stamp above a version that a replica answered. The version's clock was checked when its
    /// answer came, and the answer's frame carried a clock at or above it.
    fn stamp_above(&self, above: Hlc) -> Option<Hlc> {
        let stamp = self.shared.try_stamp()?;
        if stamp > above {
            return Some(stamp);
        }
        self.shared.clock.observe(self.shared.wall(), above).ok()?;
        self.shared.try_stamp()
    }

    /// Stamps the writes that waited for the ceiling.
    pub fn stamp_waiting(&self) {
        let mut state = self.lock();
        for token in std::mem::take(&mut state.awaiting_stamp) {
            let Some(Operation::Write(write)) = state.operations.get_mut(token) else { continue };
            // The clock has passed the version since it was asked for one above.
            match self.shared.try_stamp() {
                Some(stamp) => {
                    write.stamps.push(stamp);
                    self.write_event(&mut state, token, WriteEvent::Stamped(stamp));
                }
                None => state.awaiting_stamp.push(token),
            }
        }
        self.push_local(&mut state);
    }

    /// Executes a read's effects until it wants nothing more, and forgets it when it has ended.
    fn read_effects(&self, state: &mut LoopState, token: Token, effects: &mut Vec<ReadEffect>) {
        while !effects.is_empty() {
            let LoopState { operations, peers, local, .. } = state;
            let Some(Operation::Read(read)) = operations.get_mut(token) else { return };
            let mut outlet = Outlet { shared: &self.shared, io_loop: self.index, peers, local };
            let mut unreachable = ReplicaMask::EMPTY;
            let mut own = None;
            for effect in effects.drain(..) {
                match effect {
                    ReadEffect::Query { to, read_at } => {
                        let operation = round(read, token, ReadRound::Query(read_at));
                        for it in to.iter() {
                            let node = read.replicas.node(it);
                            if outlet.peers.own() == Some(node) {
                                own = Some((it, operation, read_at));
                                continue;
                            }
                            let trace = read.traceparent.as_deref();
                            if !outlet.query(node, operation, &read.key, false, trace) {
                                unreachable.insert(it);
                            }
                        }
                    }
                    ReadEffect::WriteBack { to, record } => {
                        let version = record.version();
                        let operation = round(read, token, ReadRound::WriteBack(version));
                        let counter = &self.shared.counters.read_write_backs;
                        for it in to.iter() {
                            Counters::count(counter);
                            if !outlet.write_back(read, it, operation, &record) {
                                unreachable.insert(it);
                            }
                        }
                    }
                    ReadEffect::Repair { to, record } => {
                        for it in to.iter() {
                            Counters::count(&self.shared.counters.read_repairs);
                            // Behind the reply: the next read or the exchange repairs what this
                            // queue does not take.
                            outlet.write_back(read, it, NO_ANSWER, &record);
                        }
                    }
                    ReadEffect::Reply(result) => {
                        let counters = &self.shared.counters;
                        let ok = result.is_ok();
                        Counters::count(if ok { &counters.reads_answered } else { &counters.reads_failed });
                        if let Some(reply) = read.reply.take() {
                            reply.send(result);
                        }
                    }
                }
            }
            if !unreachable.is_empty() {
                read.machine.handle(ReadEvent::Unreachable { replicas: unreachable }, effects);
            }
            if let Some((from, operation, read_at)) = own {
                let key = read.key.clone();
                if let Some(event) = self.read_own(from, operation, read_at, &key)
                    && let Some(Operation::Read(read)) = state.operations.get_mut(token)
                {
                    read.machine.handle(event, effects);
                }
            }
        }
        self.forget_if_finished(state, token);
    }

    fn forget_if_finished(&self, state: &mut LoopState, token: Token) {
        let finished = match state.operations.get_mut(token) {
            Some(Operation::Write(it)) => it.machine.is_finished(),
            Some(Operation::Read(it)) => it.machine.is_finished(),
            _ => false,
        };
        if finished {
            state.operations.remove(token);
        }
    }

    /// Rings an alarm of an operation that is still in flight.
    pub fn alarm(&self, token: Token, alarm: Alarm) {
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
            (Some(Operation::Probe { .. } | Operation::Range { .. } | Operation::Hint(_)), _) => {
                state.operations.remove(token);
            }
            _ => {}
        }
        self.push_local(&mut state);
    }

    /// Tells every operation that a node cannot be reached.
    pub fn peer_lost(&self, node: NodeIndex) {
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
                (Operation::Probe { node: asked, .. } | Operation::Range { node: asked, .. }, _)
                    if *asked == node =>
                {
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
        let pushed = self.shared.commits.push(|items| items.append(local));
        if let Err(rejected) = pushed {
            self.refuse_local(state, rejected.refusal, rejected.items);
        }
    }

    fn count_write(&self, result: &Result<coordinator::WriteReply, WriteError>) {
        let counters = &self.shared.counters;
        match result {
            Ok(reply) => {
                Counters::count(&counters.writes_acknowledged);
                if reply.superseded_concurrent {
                    Counters::count(&counters.overwritten_concurrent);
                }
            }
            Err(WriteError::Unavailable { .. }) => Counters::count(&counters.writes_unavailable),
            Err(_) => Counters::count(&counters.writes_unknown),
        }
    }
}

/// The sequence number of a write's version query: no write sends so many stamps.
pub(super) const VERSION_QUERY: u8 = 15;

/// When a read asks one replica more. Coarse: far above the usual, far below a deadline.
const SLOW_US: u64 = 50_000;

/// Notes a round of requests and names it.
fn round(read: &mut ReadOperation, token: Token, round: ReadRound) -> OperationId {
    let at = read.rounds.iter().position(|it| *it == round).unwrap_or_else(|| {
        read.rounds.push(round);
        read.rounds.len() - 1
    });
    // Beyond sixteen rounds sequences repeat; the answers' own versions and clocks still tell.
    token.with_sequence(u8::try_from(at % 16).expect("below sixteen"))
}

/// Where requests leave the loop: to this node's commit path, or to a peer's queue.
struct Outlet<'a> {
    shared: &'a Shared,
    io_loop: usize,
    peers: &'a Peers,
    local: &'a mut Vec<CommitItem<Destination>>,
}

impl Outlet<'_> {
    /// Sends a stamped mutation; the replicas that it cannot be sent to come back.
    fn send_mutation(
        &mut self,
        write: &WriteOperation,
        token: Token,
        to: ReplicaIndex,
        pass_on: ReplicaMask,
        record: Record,
    ) -> ReplicaMask {
        let round = write.stamps.iter().position(|it| *it == record.version().hlc);
        let round = u8::try_from(round.unwrap_or_default()).expect("two stamps at most");
        let operation = token.with_sequence(round);
        let node = write.replicas.node(to);
        if self.peers.own() == Some(node) {
            self.commit(operation, &write.key, record, false);
            return ReplicaMask::EMPTY;
        }
        let pass_on_to = pass_on.iter().map(|it| u32::from(write.replicas.node(it).0)).collect();
        let mutation = Mutation {
            operation: operation.0,
            key: write.key.as_bytes().clone(),
            record: record.into_bytes(),
            pass_on: pass_on_to,
            traceparent: write.traceparent.as_deref().unwrap_or_default().to_owned(),
            ..Mutation::default()
        };
        if self.mutate(node, mutation) { ReplicaMask::EMPTY } else { ReplicaMask::only(to).or(pass_on) }
    }

    /// Writes a record back to a replica. False if it cannot be reached.
    fn write_back(
        &mut self,
        read: &ReadOperation,
        to: ReplicaIndex,
        operation: OperationId,
        record: &Record,
    ) -> bool {
        let node = read.replicas.node(to);
        if self.peers.own() == Some(node) {
            self.commit(operation, &read.key, record.clone(), true);
            return true;
        }
        let mutation = Mutation {
            operation: operation.0,
            key: read.key.as_bytes().clone(),
            record: record.as_bytes().clone(),
            kind: MutationKind::WriteBack.into(),
            ..Mutation::default()
        };
        self.mutate(node, mutation)
    }

    fn mutate(&self, node: NodeIndex, mutation: Mutation) -> bool {
        let bytes = mutation.key.len() + mutation.record.len() + MUTATION_BYTES;
        let peer = self.peers.get(node);
        peer.is_some_and(|it| it.outbox.push(bytes, |frame| frame.mutations.push(mutation)).is_ok())
    }

    fn commit(
        &mut self,
        operation: OperationId,
        key: &StorageKey,
        record: Record,
        want_newest: bool,
    ) {
        let destination = if operation == NO_ANSWER {
            Destination::Nowhere
        } else {
            Destination::Loop(self.io_loop)
        };
        let key = key.clone();
        let slot = 0;
        self.local.push(CommitItem::Mutation { destination, operation, slot, key, record, want_newest });
    }

    fn query(
        &self,
        node: NodeIndex,
        operation: OperationId,
        key: &StorageKey,
        version_only: bool,
        trace: Option<&str>,
    ) -> bool {
        let traceparent = trace.unwrap_or_default().to_owned();
        let key: Bytes = key.as_bytes().clone();
        let bytes = key.len() + QUERY_BYTES;
        let query = Query { operation: operation.0, key, version_only, traceparent };
        let peer = self.peers.get(node);
        peer.is_some_and(|it| it.outbox.push(bytes, |frame| frame.queries.push(query)).is_ok())
    }

    fn hint(
        &mut self,
        write: &WriteOperation,
        token: Token,
        to: ReplicaIndex,
        record: Record,
        replaces: Option<Version>,
    ) {
        let view = self.shared.view.load();
        let Some(metadata) = view.metadata() else { return };
        self.local.push(CommitItem::Hint {
            destination: Destination::Loop(self.io_loop),
            operation: token.with_sequence(0),
            slot: u32::from(to.0),
            target: metadata.layout().node(write.replicas.node(to)).id,
            key: write.key.clone(),
            record,
            replaces,
        });
    }
}

/// What a mutation takes in a queue beyond its key and record.
const MUTATION_BYTES: usize = 64;
/// What a query takes in a queue beyond its key.
const QUERY_BYTES: usize = 48;
