//! Answers on their way back to the operations that wait for them.

use std::sync::{Arc, atomic::Ordering};

use coordinator::{ReadEvent, WriteEvent};
use model::{
    Hlc, Mutant, NodeIndex, OperationId, Record, Refusal, ReplicaIndex, RequestId, StorageKey,
    Version, WriteAnswer,
};
use proto::internal::{Frame, QueryAnswer};

use super::{
    effects::VERSION_QUERY,
    io_loop::{IoLoop, LoopState},
    recount::Storages,
};
use crate::{
    commit::{CommitAnswer, CommitAnswerKind, CommitItem, DirtyMark},
    counters::Counters,
    local_read::{LocalRead, ReadAt},
    operation::{HintAnswer, Operation, ReadRound, Token},
    shared::Destination,
};

impl IoLoop {
    /// Takes the commit path's answers for this node's own replicas.
    pub fn commit_answers(&self, answers: &mut Vec<(Destination, CommitAnswer)>) {
        self.follow_storages();
        if answers.is_empty() {
            return;
        }
        let mut state = self.lock();
        let own = state.peers.own();
        for (destination, answer) in answers.drain(..) {
            if !matches!(destination, Destination::Loop(_)) {
                continue;
            }
            match answer.kind {
                CommitAnswerKind::Mutation(kind) => {
                    let Some(own) = own else { continue };
                    self.mutation_answer(&mut state, own, answer.operation, kind, answer.newest);
                }
                CommitAnswerKind::HintStored => {
                    let (token, _) = Token::of(answer.operation);
                    let replica = ReplicaIndex(u8::try_from(answer.slot).unwrap_or(u8::MAX));
                    let hlc = answer.version.hlc;
                    self.write_event(&mut state, token, WriteEvent::HintStored { replica, hlc });
                }
                // Of no consequence but for ANY: it promised nothing (H1).
                CommitAnswerKind::HintMarkedDirty | CommitAnswerKind::HintRefused(_) => {
                    self.hint_not_kept(
                        &mut state,
                        answer.operation,
                        answer.slot,
                        answer.version.hlc,
                    );
                }
            }
        }
        self.push_local(&mut state);
    }

    fn hint_not_kept(&self, state: &mut LoopState, operation: OperationId, slot: u32, hlc: Hlc) {
        let (token, _) = Token::of(operation);
        let replica = ReplicaIndex(u8::try_from(slot).unwrap_or(u8::MAX));
        self.write_event(state, token, WriteEvent::HintNotKept { replica, hlc });
    }

    /// Answers what the commit queue did not take.
    pub fn refuse_local(
        &self,
        state: &mut LoopState,
        refusal: Refusal,
        items: Vec<CommitItem<Destination>>,
    ) {
        let own = state.peers.own();
        let mut items = items;
        while !items.is_empty() {
            for item in items.drain(..) {
                match item {
                    CommitItem::Mutation {
                        destination: Destination::Loop(_), operation, ..
                    } => {
                        let Some(own) = own else { continue };
                        let refused = WriteAnswer::Refused(refusal);
                        self.mutation_answer(state, own, operation, refused, None);
                    }
                    CommitItem::Hint { operation, slot, target, key, record, .. } => {
                        Counters::count(&self.shared.counters.hints_refused);
                        state.unmarked.insert(DirtyMark::of(target, &key));
                        self.hint_not_kept(state, operation, slot, record.version().hlc);
                    }
                    CommitItem::MarkDirty { mark } => {
                        state.unmarked.insert(mark);
                    }
                    _ => {}
                }
            }
            // What the refusals have caused is refused with them: the queue has just been full.
            items.append(&mut state.local);
        }
    }

    /// Marks dirty what hints are missing for that the full commit queue did not take, as soon as it is
    /// half empty, and those that the disk refused: marks must not crowd out what clients write.
    pub(super) fn mark_again(&self) {
        let owed = &self.shared.commit_counters.load().marks_owed;
        if self.index == 0 && owed.load(Ordering::Relaxed) > 0 {
            self.queue(CommitItem::MarkOwed);
        }
        let mut state = self.lock();
        if state.unmarked.is_empty() || Mutant::RefusedHintsUnmarked.is_on() {
            return;
        }
        let (queued, half) =
            (self.shared.commits.len(), self.shared.config.commit_queue.items_max / 2);
        let room = half.saturating_sub(queued).max(usize::from(queued == 0));
        for _ in 0..room.min(MARKS_AT_ONCE) {
            let Some(mark) = state.unmarked.pop_first() else { break };
            state.local.push(CommitItem::MarkDirty { mark });
        }
        self.push_local(&mut state);
    }

    /// Takes the answers in a peer's frame.
    pub fn peer_answers(&self, from: NodeIndex, frame: &mut Frame) {
        let clock = Hlc(frame.clock);
        let trusted = self.shared.clock.observe(|| self.shared.believed_wall(), clock).is_ok();
        if !trusted {
            Counters::count(&self.shared.counters.clocks_refused);
        }
        self.follow_storages();
        let mut state = self.lock();
        // What the sender vouches for may be that of a directory which has been replaced (F12).
        let storages = state.compare_storages(from, frame.storage_ids_hash);
        let apart = storages == Storages::Apart;
        if apart {
            self.drop_votes(&mut state, frame);
        }
        let refusal = match (trusted, apart) {
            (false, _) => Some(Refusal::ClockAhead),
            (true, true) => Some(Refusal::NotReady),
            (true, false) => None,
        };
        for operation in frame.applied.drain(..) {
            let answer = refusal.map_or(WriteAnswer::Applied, WriteAnswer::Refused);
            self.mutation_answer(&mut state, from, OperationId(operation), answer, None);
        }
        for answer in frame.mutation_answers.drain(..) {
            let operation = OperationId(answer.operation);
            let mut kind = answer.answer();
            if let Some(refusal) = refusal.filter(|_| !matches!(kind, WriteAnswer::Refused(_))) {
                kind = WriteAnswer::Refused(refusal);
            } else if self.names_future(&kind) {
                kind = WriteAnswer::Refused(Refusal::ClockAhead);
            }
            let newest = self.checked_newest(&mut state, operation, answer.newest_record);
            self.mutation_answer(&mut state, from, operation, kind, newest);
        }
        for operation in frame.not_passed_on.drain(..) {
            self.not_passed_on(&mut state, from, OperationId(operation));
        }
        for mut answer in frame.query_answers.drain(..) {
            if let Some(refusal) = refusal.filter(|_| proto::refusal(answer.refusal).is_none()) {
                answer.refusal = proto::internal::Refusal::from(refusal).into();
            }
            self.query_answer(&mut state, from, answer, clock);
        }
        for mut answer in frame.range_answers.drain(..) {
            if let Some(refusal) = refusal.filter(|_| proto::refusal(answer.refusal).is_none()) {
                answer.refusal = proto::internal::Refusal::from(refusal).into();
            }
            let (token, _) = Token::of(OperationId(answer.operation));
            if let Some(Operation::Range(range)) = state.operations.get_mut(token)
                && range.node == from
                && let Some(Operation::Range(range)) = state.operations.remove(token)
            {
                // A failed send is a scan whose client hung up.
                let _ = range.answer.send((answer, clock));
            }
        }
        for answer in frame.exchange_answers.drain(..) {
            let (token, _) = Token::of(OperationId(answer.operation));
            if let Some(Operation::Exchange { node, .. }) = state.operations.get_mut(token)
                && *node == from
                && let Some(Operation::Exchange { answer: to, .. }) = state.operations.remove(token)
            {
                // A failed send is a round that has ended.
                let _ = to.send(answer);
            }
        }
        if storages == Storages::SameAgain {
            self.ask_again(&mut state, from);
        }
        self.push_local(&mut state);
    }

    /// True if an answer names a version further ahead than clocks may be: a poisoned record (C4).
    /// It is neither stamped above nor taken for news.
    fn names_future(&self, answer: &WriteAnswer) -> bool {
        let WriteAnswer::Superseded { newest, .. } = answer else { return false };
        self.is_future(newest.hlc)
    }

    pub(super) fn is_future(&self, hlc: Hlc) -> bool {
        let refused = self.shared.clock.observe(|| self.shared.believed_wall(), hlc).is_err();
        if refused {
            Counters::count(&self.shared.counters.clocks_refused);
        }
        refused
    }

    /// The newer record that an answer to a write-back carries, checked on arrival.
    fn checked_newest(
        &self,
        state: &mut LoopState,
        operation: OperationId,
        bytes: bytes::Bytes,
    ) -> Option<Record> {
        if bytes.is_empty() {
            return None;
        }
        let Some(Operation::Read(read)) = state.operations.get_mut(Token::of(operation).0) else {
            return None;
        };
        let checked = Record::check(&read.key, bytes);
        if let Err(error) = &checked {
            Counters::count(&self.shared.counters.checksum_failures);
            tracing::warn!(%error, "a peer's record is damaged");
        }
        checked.ok()
    }

    fn mutation_answer(
        &self,
        state: &mut LoopState,
        node: NodeIndex,
        operation: OperationId,
        answer: WriteAnswer,
        newest: Option<Record>,
    ) {
        let (token, sequence) = Token::of(operation);
        match state.operations.get_mut(token) {
            Some(Operation::Write(write)) => {
                let (Some(from), Some(hlc)) =
                    (write.replicas.replica(node), write.stamps.get(sequence))
                else {
                    return;
                };
                if matches!(answer, WriteAnswer::Superseded { .. }) {
                    let key = write.key.clone();
                    self.note_contention(state, &key);
                }
                self.write_event(state, token, WriteEvent::Answer { from, hlc, answer });
            }
            Some(Operation::Read(read)) => {
                let (Some(from), Some(ReadRound::WriteBack(version))) =
                    (read.replicas.replica(node), read.rounds.get(sequence))
                else {
                    return;
                };
                let event = match answer {
                    WriteAnswer::Refused(refusal) => ReadEvent::Refused { from, refusal },
                    answer => ReadEvent::WroteBack { from, version, answer, newest },
                };
                self.read_event(state, token, event);
            }
            Some(Operation::Hint(hint)) if hint.target == node => {
                if let Some(Operation::Hint(hint)) = state.operations.remove(token) {
                    let judged = match answer {
                        WriteAnswer::Refused(refusal) => Err(refusal),
                        _ => Ok(()),
                    };
                    // A failed send is a pass that has ended.
                    let _ = hint.done.send(HintAnswer { answered_us: self.now_us(), judged });
                }
            }
            _ => {}
        }
    }

    fn not_passed_on(&self, state: &mut LoopState, node: NodeIndex, operation: OperationId) {
        let (token, _) = Token::of(operation);
        if let Some(Operation::Write(write)) = state.operations.get_mut(token)
            && let Some(from) = write.replicas.replica(node)
        {
            self.write_event(state, token, WriteEvent::NotPassedOn { from });
        }
    }

    fn query_answer(
        &self,
        state: &mut LoopState,
        node: NodeIndex,
        answer: QueryAnswer,
        clock: Hlc,
    ) {
        let (token, sequence) = Token::of(OperationId(answer.operation));
        let refusal = proto::refusal(answer.refusal);
        match state.operations.get_mut(token) {
            Some(Operation::Read(read)) => {
                let (Some(from), Some(ReadRound::Query(read_at))) =
                    (read.replicas.replica(node), read.rounds.get(sequence))
                else {
                    return;
                };
                let event = match refusal {
                    Some(refusal) => ReadEvent::Refused { from, refusal },
                    None => {
                        let floor = Hlc(answer.floor);
                        self.read_answer((from, read_at), &read.key, answer.record, clock, floor)
                    }
                };
                self.read_event(state, token, event);
            }
            Some(Operation::Write(write)) if sequence == usize::from(VERSION_QUERY) => {
                let Some(from) = write.replicas.replica(node) else { return };
                let request = RequestId(answer.newest_request);
                let newest = Version { hlc: Hlc(answer.newest_clock), request };
                let event = match refusal {
                    Some(refusal) => WriteEvent::Answer {
                        from,
                        hlc: Hlc::ZERO,
                        answer: WriteAnswer::Refused(refusal),
                    },
                    None if self.is_future(newest.hlc) => WriteEvent::Answer {
                        from,
                        hlc: Hlc::ZERO,
                        answer: WriteAnswer::Refused(Refusal::ClockAhead),
                    },
                    None => WriteEvent::Queried { from, newest },
                };
                self.write_event(state, token, event);
            }
            Some(Operation::Probe { node: asked, .. }) if *asked == node => {
                if let Some(Operation::Probe { answer: to, .. }) = state.operations.remove(token) {
                    // A failed send is a caller that hung up.
                    let _ = to.send(answer);
                }
            }
            _ => {}
        }
    }

    fn read_answer(
        &self,
        (from, read_at): (ReplicaIndex, Hlc),
        key: &StorageKey,
        bytes: bytes::Bytes,
        clock: Hlc,
        floor: Hlc,
    ) -> ReadEvent {
        let clock = expiry_clock(read_at, clock);
        if bytes.is_empty() {
            return ReadEvent::Answer { from, read_at, record: None, clock, floor };
        }
        match Record::check(key, bytes) {
            Ok(record) if self.is_future(record.version().hlc) => {
                ReadEvent::Refused { from, refusal: Refusal::ClockAhead }
            }
            Ok(record) => ReadEvent::Answer { from, read_at, record: Some(record), clock, floor },
            Err(error) => {
                Counters::count(&self.shared.counters.checksum_failures);
                tracing::warn!(%error, "a peer's record is damaged");
                ReadEvent::Refused { from, refusal: Refusal::Corrupt }
            }
        }
    }

    /// What this node holds of a key, if memory knows; else `later` is told once the disk has been
    /// asked, on a thread that may wait for it.
    pub(super) fn read_here(
        &self,
        key: &StorageKey,
        later: impl FnOnce(&Self, &mut LoopState, ReadAt) + Send + 'static,
    ) -> Option<ReadAt> {
        if let (LocalRead::Here(read), floor) = self.shared.replica_inline(key) {
            return Some((read, floor));
        }
        let shared = Arc::clone(&self.shared);
        let this = self.this.upgrade()?;
        let key = key.clone();
        tokio::spawn(async move {
            let read = shared.read_from_disk(move |it| it.replica_blocking(&key)).await;
            let read = read.unwrap_or_else(|refusal| (Err(refusal), Hlc::ZERO));
            {
                // Its vote is counted by the directories that are known now (F12).
                this.follow_storages();
                let mut state = this.lock();
                later(&this, &mut state, read);
                this.push_local(&mut state);
            }
            if Mutant::TaskLeaked.is_on() {
                std::future::pending::<()>().await;
            }
        });
        None
    }
}

/// The answering node's clock, by which a read judges whether a record has expired meanwhile (G3).
pub(super) fn expiry_clock(read_at: Hlc, clock: Hlc) -> Hlc {
    if Mutant::ExpiryByOwnClock.is_on() { read_at } else { clock }
}

/// Marks that are written at a time.
const MARKS_AT_ONCE: usize = 1_024;
