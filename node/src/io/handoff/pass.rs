//! One pass over the hints of one target, in the order of their keys.

use std::{collections::VecDeque, sync::Arc};

use model::{Mutant, NodeId, NodeIndex, Refusal, StorageKey, Version};
use proto::internal::{Mutation, MutationKind};
use tokio::sync::oneshot;

use super::{
    board::PassEnd,
    pace::{Pace, WINDOW_MAX},
};
use crate::{
    commit::{CommitItem, Hint, HintClass, HintEnd, Origin},
    counters::Counters,
    io::io_loop::{Alarm, IoLoop},
    operation::{HintAnswer, HintReplay, Operation},
    shared::Destination,
    view::View,
};

/// A pass under way.
struct Pass<'a> {
    io: &'a IoLoop,
    target: NodeId,
    pace: Pace,
    /// Sent and not answered, in order.
    flights: VecDeque<Flight>,
    /// Of these.
    bytes: usize,
    end: PassEnd,
}

/// A hint on its way.
struct Flight {
    hint: Hint,
    bytes: usize,
    sent_us: u64,
    answer: oneshot::Receiver<HintAnswer>,
    /// Other replicas to try, once its target has refused it for good.
    others: Option<Vec<NodeIndex>>,
}

/// Where a hint goes.
enum Route {
    To(NodeIndex),
    /// Its keyspace was dropped.
    Dropped,
    /// Its target is no replica of the key any more (CE26).
    Orphaned,
    /// Nobody that may take it can be reached.
    Nobody,
}

impl IoLoop {
    /// Delivers the hints of one target until all have been met, or it takes no more.
    pub(super) async fn run_pass(self: Arc<Self>, target: NodeId, number: u64, pace: Pace) {
        let (flights, bytes, end) = (VecDeque::new(), 0, PassEnd::Clean);
        let mut pass = Pass { io: &self, target, pace, flights, bytes, end };
        let mut after = None;
        loop {
            let Some(page) = self.hint_page(target, after).await else {
                pass.end = PassEnd::Stuck;
                break;
            };
            for key in page.damaged {
                self.queue(CommitItem::DropHint { target, key, version: Version::ABSENT });
            }
            let view = self.shared.view.load_full();
            for hint in page.hints {
                pass.make_room(hint_bytes(&hint)).await;
                if !pass.goes_on() {
                    break;
                }
                pass.deliver(&view, hint);
            }
            after = page.next.filter(|_| pass.goes_on());
            if after.is_none() {
                break;
            }
        }
        while !pass.flights.is_empty() {
            pass.settle_first().await;
        }
        let (pace, end) = (pass.pace, pass.end);
        // What was delivered is gone from the disk before the next pass looks.
        self.settled().await;
        self.shared.handoff.end(target, number, pace, end);
    }

    /// Where a hint goes. One of ANY may be the only copy: where its target cannot take it any more,
    /// any replica may.
    fn route(&self, view: &View, target: NodeId, hint: &Hint) -> Route {
        let Some(metadata) = view.metadata() else { return Route::Nobody };
        if metadata.was_dropped(hint.key.keyspace()) {
            return Route::Dropped;
        }
        let Some(keyspace) = view.keyspace_of_id(hint.key.keyspace()) else { return Route::Nobody };
        let replicas = keyspace.replica_set(view.partition(hint.key.token()));
        if let Some(target) = view.node_index(target)
            && replicas.replica(target).is_some()
        {
            return Route::To(target);
        }
        if hint.class == HintClass::Ordinary && Mutant::OrphansKept.is_on() {
            return Route::Nobody;
        }
        if hint.class == HintClass::Ordinary {
            return Route::Orphaned;
        }
        let mut state = self.lock();
        state.peers.follow(view);
        let alive = state.peers.alive(replicas, self.shared.elapsed_us());
        alive.iter().next().map_or(Route::Nobody, |it| Route::To(replicas.node(it)))
    }

    /// Sends a hint.
    fn send_hint(
        &self,
        view: &View,
        target: NodeIndex,
        hint: Hint,
    ) -> oneshot::Receiver<HintAnswer> {
        let (done, answer) = oneshot::channel();
        let (key, version) = (hint.key.clone(), hint.record.version());
        let replay = HintReplay { target, key, version, done };
        let bytes = hint_bytes(&hint);
        let mut state = self.lock();
        state.peers.follow(view);
        let token = state.operations.insert(Operation::Hint(replay));
        let deadline_us = self.now_us() + HINT_TIMEOUT_US;
        self.set_alarm(&mut state, deadline_us, token, Alarm::Deadline);
        let operation = token.with_sequence(0);
        if state.peers.own() == Some(target) {
            state.local.push(CommitItem::Mutation {
                destination: Destination::Loop(self.index),
                operation,
                slot: 0,
                key: hint.key,
                record: hint.record,
                origin: Origin::Fresh,
                want_newest: false,
            });
            self.push_local(&mut state);
            return answer;
        }
        let mutation = Mutation {
            operation: operation.0,
            key: hint.key.as_bytes().clone(),
            record: hint.record.into_bytes(),
            kind: MutationKind::Hint.into(),
            ..Mutation::default()
        };
        let sent = state.peers.get(target).is_some_and(|it| {
            it.outbox.push(bytes, |frame| frame.mutations.push(mutation)).is_ok()
        });
        if !sent {
            state.operations.remove(token);
        }
        answer
    }
}

impl Pass<'_> {
    fn goes_on(&self) -> bool {
        !matches!(self.end, PassEnd::Refused(_) | PassEnd::Silent)
    }

    /// Remembers why the pass will not end clean; that it ended early counts most.
    fn note(&mut self, end: PassEnd) {
        if self.goes_on() {
            self.end = end;
        }
    }

    /// Waits for answers until a hint of so many bytes may be sent.
    async fn make_room(&mut self, bytes: usize) {
        let window = self.pace.window().min(WINDOW_MAX);
        while self.goes_on()
            && !self.flights.is_empty()
            && (self.flights.len() >= window || self.bytes + bytes > FLIGHT_BYTES_MAX)
        {
            self.settle_first().await;
        }
    }

    fn deliver(&mut self, view: &View, hint: Hint) {
        let (key, version) = (hint.key.clone(), hint.record.version());
        match self.io.route(view, self.target, &hint) {
            Route::To(node) => {
                if Mutant::HintForgottenWhenSent.is_on() {
                    self.drop_hint(key.clone(), version);
                }
                self.send(view, node, hint, None);
            }
            Route::Dropped => self.drop_hint(key, version),
            Route::Orphaned => {
                let (target, why) = (self.target, HintEnd::Orphaned);
                self.io.queue(CommitItem::EndHint { target, key, version, why });
            }
            Route::Nobody => self.note(PassEnd::Stuck),
        }
    }

    fn send(&mut self, view: &View, to: NodeIndex, hint: Hint, others: Option<Vec<NodeIndex>>) {
        let (bytes, sent_us) = (hint_bytes(&hint), self.io.now_us());
        let answer = self.io.send_hint(view, to, hint.clone());
        self.bytes += bytes;
        self.flights.push_back(Flight { hint, bytes, sent_us, answer, others });
    }

    /// A hint of ANY that meets its target's fence need not be the only copy: where another replica has the
    /// write, or takes it, exchanges bring it (F10).
    fn try_others(&mut self, hint: Hint, others: Option<Vec<NodeIndex>>) {
        let view = self.io.shared.view.load_full();
        let known = view.keyspace_of_id(hint.key.keyspace());
        let others = others.unwrap_or_else(|| {
            let Some(known) = known else { return Vec::new() };
            let replicas = known.replica_set(view.partition(hint.key.token()));
            let alive = self.io.lock().peers.alive(replicas, self.io.now_us());
            let target = view.node_index(self.target);
            let nodes = alive.iter().map(|it| replicas.node(it));
            nodes.filter(|it| Some(*it) != target).collect()
        });
        match others.split_last() {
            Some((next, rest)) => self.send(&view, *next, hint, Some(rest.to_vec())),
            None => {
                Counters::count(&self.io.shared.counters.any_hints_stranded);
                self.note(PassEnd::Kept(Refusal::BelowFence));
            }
        }
    }

    /// Waits for the answer to the hint that was sent first.
    async fn settle_first(&mut self) {
        let Some(flight) = self.flights.pop_front() else { return };
        let Flight { hint, bytes, sent_us, answer, others } = flight;
        self.bytes -= bytes;
        let Ok(HintAnswer { answered_us, judged }) = answer.await else {
            self.pace.overloaded(sent_us, self.io.now_us());
            return self.note(PassEnd::Silent);
        };
        let (key, version) = (hint.key.clone(), hint.record.version());
        let counters = &self.io.shared.counters;
        match judged {
            Ok(()) => {
                Counters::count(&counters.hints_delivered);
                self.pace.answered(sent_us, answered_us);
                self.drop_hint(key, version);
            }
            // What lies below a fence comes by exchange, from a replica that has applied it. That does not
            // hold for a write that no replica had (F10).
            Err(Refusal::BelowFence) if hint.class == HintClass::Ordinary => {
                self.pace.answered(sent_us, answered_us);
                self.drop_hint(key, version);
            }
            Err(Refusal::BelowFence) => {
                self.pace.answered(sent_us, answered_us);
                self.try_others(hint, others);
            }
            Err(refusal) if concerns_one_hint(refusal) => {
                self.pace.answered(sent_us, answered_us);
                self.note(PassEnd::Kept(refusal));
            }
            Err(Refusal::Overloaded) if self.pace.window() > 1 => {
                self.pace.overloaded(sent_us, answered_us);
                self.note(PassEnd::Kept(Refusal::Overloaded));
            }
            Err(refusal) => self.note(PassEnd::Refused(refusal)),
        }
    }

    fn drop_hint(&self, key: StorageKey, version: Version) {
        self.io.queue(CommitItem::DropHint { target: self.target, key, version });
    }
}

/// True if the target refuses this hint, and might take the next.
fn concerns_one_hint(refusal: Refusal) -> bool {
    match refusal {
        Refusal::BelowFence | Refusal::ClockAhead | Refusal::Corrupt => true,
        Refusal::StaleLayout
        | Refusal::NotReady
        | Refusal::Failed
        | Refusal::Overloaded
        | Refusal::DiskFull => false,
    }
}

/// What a hint takes in a peer's queue.
fn hint_bytes(hint: &Hint) -> usize {
    hint.key.as_bytes().len() + hint.record.as_bytes().len() + 64
}

const HINT_TIMEOUT_US: u64 = 5_000_000;
/// Bytes of hints under way to one target; a single one may have more.
const FLIGHT_BYTES_MAX: usize = 1 << 20;
