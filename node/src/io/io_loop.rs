//! One I/O loop: the operations that its connections began, their deadlines and their answers.
//!
//! Only tasks of the loop's own thread take its lock, so it is never contended: it stands in for
//! the thread-locality that tasks of several nodes in one thread cannot have.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use coordinator::{ReadEffect, WriteEffect};
use model::{Hlc, NodeIndex, PartitionIndex, ReplicaIndex};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::Notify,
    time::{Duration, Instant, sleep_until},
};

use super::{answer_body::UntakenMessages, own_reads::OwnRead, serve::send_answers};
use crate::{
    call_bytes::CallBytes,
    commit::{CommitItem, DirtyMark},
    latency::UsualLatency,
    liveness::Peers,
    operation::{OperationTable, Token},
    shared::{Destination, Shared},
    wheel::DeadlineWheel,
};

/// One I/O loop of a node.
pub struct IoLoop {
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Its number.
    pub index: usize,
    /// What its clients' calls hold.
    pub(super) call_bytes: Arc<CallBytes>,
    /// What its clients have yet to take.
    pub(super) untaken: UntakenMessages,
    state: Mutex<LoopState>,
    timer: Notify,
    /// Rung when the first of the loop's own reads is to be done.
    pub own_reads_due: Notify,
    started: Instant,
    /// Itself, for the tasks that it spawns.
    pub this: Weak<Self>,
}

/// What only this loop's tasks touch.
pub struct LoopState {
    /// What is in flight.
    pub operations: OperationTable,
    /// When it is over.
    pub wheel: DeadlineWheel<(Token, Alarm)>,
    /// Links to the other nodes.
    pub peers: Peers,
    /// Which replaced directories votes are counted by (F12).
    pub storage_ids_hash: u64,
    /// The nodes whose last frame was by others: their votes are not taken.
    pub apart: BTreeSet<NodeIndex>,
    /// Dirty marks, in place of hints, that wait for room in the commit queue.
    pub unmarked: BTreeSet<DirtyMark>,
    /// Writes that wait for a stamp above a version they have met.
    pub awaiting_stamp: Vec<(Token, Hlc)>,
    /// Operations in flight whose client has no answer yet.
    pub unanswered: usize,
    /// How long this loop's reads usually take.
    pub read_latency: UsualLatency,
    /// Partitions in which a write has lost a race lately, and until when that counts (P5).
    pub contended: BTreeMap<PartitionIndex, u64>,
    /// This loop's randomness.
    pub random: StdRng,
    /// Reads of this node's own replicas that are about to be done together.
    pub own_reads: Vec<OwnRead>,
    /// Items for this node's own replicas, pushed together when an event has been handled.
    pub local: Vec<CommitItem<Destination>>,
    /// Scratch space.
    pub write_effects: Vec<WriteEffect>,
    /// Scratch space.
    pub read_effects: Vec<ReadEffect>,
    /// Scratch space.
    pub order: Vec<ReplicaIndex>,
}

/// What a deadline means for its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The client's time is over.
    Deadline,
    /// A read has waited unusually long.
    Slow,
}

impl IoLoop {
    /// A loop with nothing in flight. Its randomness comes from the node's seed and its number.
    pub fn new(shared: Arc<Shared>, index: usize) -> Arc<Self> {
        let number = u64::try_from(index).expect("few loops");
        let mut random = StdRng::seed_from_u64(shared.world.seed ^ (number << 56));
        let generation = rand::RngExt::random(&mut random);
        let in_flight = Arc::clone(&shared.loop_metrics[index].operations_in_flight);
        let call_bytes = Arc::clone(&shared.loop_metrics[index].call_bytes);
        let own = u8::try_from(index).expect("few loops");
        let state = LoopState {
            operations: OperationTable::new(own, generation, in_flight),
            wheel: DeadlineWheel::default(),
            peers: Peers::default(),
            storage_ids_hash: shared.witness.storage_ids_hash(),
            apart: BTreeSet::new(),
            unmarked: BTreeSet::new(),
            awaiting_stamp: Vec::new(),
            unanswered: 0,
            read_latency: UsualLatency::default(),
            contended: BTreeMap::new(),
            random,
            own_reads: Vec::new(),
            local: Vec::new(),
            write_effects: Vec::new(),
            read_effects: Vec::new(),
            order: Vec::new(),
        };
        let started = shared.started();
        Arc::new_cyclic(|this| Self {
            shared,
            index,
            call_bytes,
            untaken: UntakenMessages::default(),
            state: Mutex::new(state),
            timer: Notify::new(),
            own_reads_due: Notify::new(),
            started,
            this: Weak::clone(this),
        })
    }

    /// The loop's state. Never held over an await.
    pub fn lock(&self) -> MutexGuard<'_, LoopState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many clients should have been told so long ago, and were not.
    pub fn overdue(&self, grace_us: u64) -> usize {
        let due_us = self.now_us().saturating_sub(grace_us);
        self.lock().operations.overdue(due_us)
    }

    /// Microseconds since the node started.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Sets an alarm.
    pub fn set_alarm(&self, state: &mut LoopState, at_us: u64, token: Token, alarm: Alarm) {
        if state.wheel.insert(at_us, (token, alarm)) {
            self.timer.notify_one();
        }
    }

    /// Takes the commit path's answers, for as long as the node lives.
    pub async fn run_answers(self: Arc<Self>) {
        let mut answers = Vec::new();
        loop {
            self.shared.done[self.index].take(&mut answers).await;
            send_answers(&self.shared, &mut answers);
            self.commit_answers(&mut answers);
            self.stamp_waiting();
        }
    }

    /// Rings the alarms, for as long as the node lives.
    pub async fn run_alarms(self: Arc<Self>) {
        loop {
            let next_us = self.lock().wheel.next_us();
            let Some(next_us) = next_us else {
                self.timer.notified().await;
                continue;
            };
            if next_us > self.now_us() {
                let at = self.started + Duration::from_micros(next_us);
                tokio::select! {
                    biased;
                    () = self.timer.notified() => {}
                    () = sleep_until(at) => {}
                }
                continue;
            }
            let due = self.lock().wheel.take_due(self.now_us());
            for (token, alarm) in due {
                self.alarm(token, alarm);
            }
        }
    }
}
