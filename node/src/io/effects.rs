//! Executes what the coordinator's machines want, until they want nothing more.

use coordinator::{ReadEffect, ReadError, ReadEvent, ReadReply, WriteEffect, WriteEvent};
use model::{
    Hlc, OperationId, Record, Refusal, ReplicaIndex, ReplicaMask, StorageKey, Version, WriteAnswer,
};

use super::{
    io_loop::{IoLoop, LoopState},
    outlet::Outlet,
    own_reads::OwnRead,
};
use crate::{
    counters::Counters,
    latency::UsualLatency,
    operation::{NO_ANSWER, Operation, ReadOperation, ReadRound, Token},
};

impl IoLoop {
    /// Executes a write's effects until it wants nothing more, and forgets it when it has ended.
    pub(super) fn write_effects(
        &self,
        state: &mut LoopState,
        token: Token,
        effects: &mut Vec<WriteEffect>,
    ) {
        while !effects.is_empty() {
            let LoopState { operations, peers, local, awaiting_stamp, unanswered, .. } = state;
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
                        self.count_write(write.key.keyspace(), &result);
                        if let Some(reply) = write.reply.take() {
                            *unanswered -= 1;
                            write.held = None;
                            reply.send(result);
                        }
                    }
                }
            }
            if !unreachable.is_empty() {
                write.machine.handle(WriteEvent::Unreachable { replicas: unreachable }, effects);
            }
            if let Some(from) = own
                && let Some(event) = self.version_here(from, token, &write.key)
            {
                write.machine.handle(event, effects);
            }
            if let Some(above) = stamp {
                Counters::count(&self.shared.counters.writes_restamped);
                match self.stamp_above(above) {
                    Some(stamp) => {
                        write.stamps.push(stamp);
                        write.machine.handle(WriteEvent::Stamped(stamp), effects);
                    }
                    None => awaiting_stamp.push((token, above)),
                }
            }
        }
        self.forget_if_finished(state, token);
    }

    /// This node's own answer to a version query: at once if memory knows, else behind the caller's
    /// back.
    fn version_here(
        &self,
        from: ReplicaIndex,
        token: Token,
        key: &StorageKey,
    ) -> Option<WriteEvent> {
        let read = self.read_here(key, move |this, state, (read, _)| {
            let event = this.version_event(from, read);
            this.write_event(state, token, event);
        })?;
        Some(self.version_event(from, read.0))
    }

    fn version_event(
        &self,
        from: ReplicaIndex,
        read: Result<Option<Record>, Refusal>,
    ) -> WriteEvent {
        let refused = |refusal| {
            let answer = WriteAnswer::Refused(refusal);
            WriteEvent::Answer { from, hlc: Hlc::ZERO, answer }
        };
        match read {
            Ok(Some(record)) if self.is_future(record.version().hlc) => {
                refused(Refusal::ClockAhead)
            }
            Ok(record) => {
                let newest = record.map_or(Version::ABSENT, |it| it.version());
                WriteEvent::Queried { from, newest }
            }
            Err(refusal) => refused(refusal),
        }
    }

    /// A stamp above a version that a replica answered. The version's clock was checked when its
    /// answer came, and the answer's frame carried a clock at or above it.
    fn stamp_above(&self, above: Hlc) -> Option<Hlc> {
        let stamp = self.shared.try_stamp().ok()?;
        if stamp > above {
            return Some(stamp);
        }
        self.shared.clock.observe(|| self.shared.believed_wall(), above).ok()?;
        self.shared.try_stamp().ok().filter(|it| *it > above)
    }

    /// Stamps the writes that waited for the ceiling.
    pub fn stamp_waiting(&self) {
        let mut state = self.lock();
        for (token, above) in std::mem::take(&mut state.awaiting_stamp) {
            let Some(Operation::Write(write)) = state.operations.get_mut(token) else { continue };
            match self.stamp_above(above) {
                Some(stamp) => {
                    write.stamps.push(stamp);
                    self.write_event(&mut state, token, WriteEvent::Stamped(stamp));
                }
                None => state.awaiting_stamp.push((token, above)),
            }
        }
        self.push_local(&mut state);
    }

    /// Executes a read's effects until it wants nothing more, and forgets it when it has ended.
    pub(super) fn read_effects(
        &self,
        state: &mut LoopState,
        token: Token,
        effects: &mut Vec<ReadEffect>,
    ) {
        while !effects.is_empty() {
            let LoopState { operations, peers, local, read_latency, unanswered, .. } = state;
            let Some(Operation::Read(read)) = operations.get_mut(token) else { return };
            let mut outlet = Outlet { shared: &self.shared, io_loop: self.index, peers, local };
            let mut unreachable = ReplicaMask::EMPTY;
            let (mut own, mut endless) = (None, false);
            for effect in effects.drain(..) {
                match effect {
                    ReadEffect::Query { to, read_at } => {
                        let Some(operation) = round(read, token, ReadRound::Query(read_at)) else {
                            endless = true;
                            continue;
                        };
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
                    ReadEffect::WriteBack { to, record, floor } => {
                        let version = record.version();
                        let Some(operation) = round(read, token, ReadRound::WriteBack(version))
                        else {
                            endless = true;
                            continue;
                        };
                        let counter = &self.shared.counters.read_write_backs;
                        for it in to.iter() {
                            Counters::count(counter);
                            if !outlet.write_back(read, it, operation, (&record, floor)) {
                                unreachable.insert(it);
                            }
                        }
                    }
                    ReadEffect::Repair { to, record, floor } => {
                        for it in to.iter() {
                            Counters::count(&self.shared.counters.read_repairs);
                            // Behind the reply: the next read or the exchange repairs what this
                            // queue does not take.
                            outlet.write_back(read, it, NO_ANSWER, (&record, floor));
                        }
                    }
                    ReadEffect::Reply(result) => {
                        *unanswered -= usize::from(read.reply.is_some());
                        self.tell_read(read, read_latency, result);
                    }
                }
            }
            if endless {
                read.machine.handle(ReadEvent::Deadline, effects);
            }
            if !unreachable.is_empty() {
                read.machine.handle(ReadEvent::Unreachable { replicas: unreachable }, effects);
            }
            if let Some((from, operation, read_at)) = own {
                let key = read.key.clone();
                self.read_own_soon(state, OwnRead { from, operation, read_at, key });
            }
        }
        self.forget_if_finished(state, token);
    }

    /// Tells a read's client, and counts.
    fn tell_read(
        &self,
        read: &mut ReadOperation,
        read_latency: &mut UsualLatency,
        result: Result<ReadReply, ReadError>,
    ) {
        let counters = &self.shared.counters;
        if result.is_ok() {
            Counters::count(&counters.reads_answered);
            read_latency.measured(self.now_us() - read.started_us);
        } else {
            Counters::count(&counters.reads_failed);
        }
        if let Some(reply) = read.reply.take()
            && let Some(held) = read.held.take()
        {
            reply.send((result, held));
        }
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
}

/// The sequence number of a write's version query: no write sends so many stamps.
pub(super) const VERSION_QUERY: u8 = 15;

/// Notes a round of requests and names it. `None`: the key has changed under so many rounds that no
/// sequence number is left to tell the next one's answers; the read ends as if its time were over.
fn round(read: &mut ReadOperation, token: Token, round: ReadRound) -> Option<OperationId> {
    let at = read.rounds.position(&round).unwrap_or_else(|| read.rounds.push(round));
    let sequence = u8::try_from(at).ok().filter(|it| *it <= ROUND_MAX)?;
    Some(token.with_sequence(sequence))
}

/// The last sequence number that an operation's token has room for.
const ROUND_MAX: u8 = 15;
