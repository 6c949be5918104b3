//! What a node stamps and judges by: its wall clock, or while that is not believed, its monotonic
//! one. Reads the clocks and acts on what `ClockWatch` decides.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use model::{Hlc, Mutant, NodeDescription, NodeId, Timestamp};
use proto::internal::Ping;
use tokio::{sync::Notify, time::timeout};

use crate::{
    clock_watch::{ClockState, ClockWatch, OtherNode, Reading, ToldClocks},
    counters::Counters,
    shared::Shared,
    view::View,
};

/// A node's watch over its wall clock, shared by its loops. A stamp costs it one load.
pub struct ClockGate {
    /// The wall clock's origin near which stamps are given; `SHUT` while none are.
    open_ms: AtomicI64,
    /// The origin by which readings of others are judged.
    believed_ms: AtomicI64,
    jump_ms: u64,
    watch: Mutex<ClockWatch>,
    told: Mutex<ToldClocks>,
    /// Wakes who waits for another state.
    changed: Notify,
    /// Wakes who pings: the others are to be asked at once.
    pub ask: Notify,
}

/// No clock ever shows this.
const SHUT: i64 = i64::MIN;

impl ClockGate {
    /// A gate that opens with the first look.
    pub fn new(offset_max_ms: u64, now: Reading) -> Self {
        let watch = ClockWatch::new(offset_max_ms, now);
        Self {
            open_ms: AtomicI64::new(SHUT),
            believed_ms: AtomicI64::new(now.origin_ms()),
            jump_ms: watch.jump_ms(),
            watch: Mutex::new(watch),
            told: Mutex::default(),
            changed: Notify::new(),
            ask: Notify::new(),
        }
    }

    /// True if the wall clock has gone on as monotonic time has since it was found good.
    fn is_open(&self, now: Reading) -> bool {
        now.origin_ms().abs_diff(self.open_ms.load(Ordering::Acquire)) <= self.jump_ms
    }

    /// The state at the last look.
    pub fn state(&self) -> ClockState {
        self.lock().state()
    }

    fn lock(&self) -> MutexGuard<'_, ClockWatch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Both clocks.
    pub(crate) fn reading(&self) -> Reading {
        Reading { wall: self.wall(), elapsed_us: self.elapsed_us() }
    }

    /// The wall clock, if this node may stamp and coordinate by it; else what is wrong with it (C1).
    pub fn trusted_wall(&self) -> Result<Timestamp, ClockState> {
        let now = self.reading();
        let gate = &self.clock_gate;
        if gate.is_open(now) || Mutant::OwnClockTrusted.is_on() {
            return Ok(now.wall);
        }
        let shut = gate.open_ms.load(Ordering::Acquire) == SHUT;
        // A thread may have slept between the two readings: a second pair tells.
        let state = if shut { gate.state() } else { self.look_at_clock() };
        if state.coordinates() { Ok(self.wall()) } else { Err(state) }
    }

    /// What this node takes for the time when it judges readings of others (C3): its wall clock, or
    /// while that is not believed, what it should show.
    pub fn believed_wall(&self) -> Timestamp {
        let gate = &self.clock_gate;
        let now = self.reading();
        if gate.is_open(now) || Mutant::OwnClockTrusted.is_on() {
            return now.wall;
        }
        // Open, and yet far from where it was found good: it has jumped since, or a thread has slept
        // between the two readings. Either shows at a second look.
        if gate.open_ms.load(Ordering::Acquire) != SHUT && self.look_at_clock().coordinates() {
            return self.wall();
        }
        let elapsed_ms = i64::try_from(self.elapsed_us() / 1_000).unwrap_or(i64::MAX);
        let wall_ms = gate.believed_ms.load(Ordering::Acquire).saturating_add(elapsed_ms);
        Timestamp(u64::try_from(wall_ms).unwrap_or_default())
    }

    /// Waits until this node may coordinate by its clock, if the others' word may come any moment.
    pub async fn await_clock(&self, wait: Duration) -> Result<(), ClockState> {
        let Err(state) = self.trusted_wall() else { return Ok(()) };
        if !state.is_pending() {
            return Err(state);
        }
        let settled = async {
            loop {
                // Registered before the look, so that no change in between is missed.
                let changed = self.clock_gate.changed.notified();
                match self.trusted_wall() {
                    Err(state) if state.is_pending() => changed.await,
                    settled => return settled.map(drop),
                }
            }
        };
        timeout(wait, settled).await.unwrap_or(Err(state))
    }

    /// Takes a peer's answer to a ping.
    pub(super) fn clock_measured(&self, from: NodeId, pong: &Ping) {
        let now = self.reading();
        self.clock_gate.lock().measured(from, pong.sent_us, now, Timestamp(pong.wall_ms));
        self.look_at_clock();
    }

    /// Takes what another node says its hybrid clock has reached. What most nodes have reached is
    /// adopted, however far ahead it lies (C3): their writes carry it already.
    pub(super) fn clock_told(&self, from: NodeId, clock: Hlc) {
        let others = self.other_nodes(&self.view.load());
        let reached = {
            let mut told = self.clock_gate.told.lock().unwrap_or_else(PoisonError::into_inner);
            told.note(from, clock, &others);
            told.reached_by_most(self.clock.highest(), &others)
        };
        let ahead_ms = reached.ms().saturating_sub(self.believed_wall().0);
        if self.clock.adopt(reached) && ahead_ms > self.config.clock_offset_max_ms {
            tracing::warn!(%reached, ahead_ms, "most nodes have stamps so far ahead: they are adopted");
        }
    }

    /// True if this node's stamps, which go on from those of the run before, are further ahead than
    /// the others would believe (C5).
    fn is_behind(&self, now: Reading, others: &[OtherNode]) -> bool {
        let highest_ms = self.clock.highest().ms();
        let offset_max_ms = self.config.clock_offset_max_ms;
        if others.is_empty() || highest_ms <= now.wall.0.saturating_add(offset_max_ms) {
            return false;
        }
        if Mutant::CeilingAwaited.is_on() {
            return true;
        }
        let told = self.clock_gate.told.lock().unwrap_or_else(PoisonError::into_inner);
        let reached_ms = told.reached_by_most(self.clock.highest(), others).ms();
        highest_ms > reached_ms.saturating_add(offset_max_ms)
    }

    /// To be called at a start whose durable ceiling lies further ahead of the wall clock than is worth
    /// waiting for: nothing is coordinated until the others have come so far, or the wall clock has.
    pub(crate) fn resume_behind(&self) {
        self.clock_gate.lock().set_behind(true);
    }

    /// Judges the clock anew, and acts on it.
    pub fn look_at_clock(&self) -> ClockState {
        let gate = &self.clock_gate;
        let mut watch = gate.lock();
        let others = self.other_nodes(&self.view.load());
        let now = self.reading();
        let before = watch.state();
        if before == ClockState::Behind && !self.is_behind(now, &others) {
            watch.set_behind(false);
        }
        watch.look(now, &others);
        let after = watch.state();
        gate.believed_ms.store(watch.believed_ms(), Ordering::Release);
        let open_ms = if after.coordinates() { watch.believed_ms() } else { SHUT };
        gate.open_ms.store(open_ms, Ordering::Release);
        if before != after {
            let median_ms = watch.median_ms(now, &others);
            drop(watch);
            self.clock_changed(before, after, median_ms);
        }
        after
    }

    fn clock_changed(&self, before: ClockState, after: ClockState, median_ms: Option<i64>) {
        match after {
            ClockState::Jumped | ClockState::Off => {
                Counters::count(&self.counters.clock_suspensions);
                tracing::warn!(
                    state = ?after,
                    median_ms,
                    "this node coordinates nothing until its wall clock agrees with the others"
                );
                self.clock_gate.ask.notify_waiters();
            }
            ClockState::Behind => tracing::warn!(
                clock = %self.clock.highest(),
                "this node's last stamps lie far ahead of its wall clock and of the other nodes'"
            ),
            ClockState::Disputed => tracing::warn!(
                "the wall clocks within reach differ, and no two agree: nobody can tell which is right"
            ),
            ClockState::Alone | ClockState::Unverified | ClockState::Good => {
                tracing::info!(?before, state = ?after, "wall clock");
            }
        }
        self.clock_gate.changed.notify_waiters();
        if after.coordinates() {
            self.wake_stampers();
        }
    }

    /// How far ahead another node's wall clock is, in milliseconds, if that is known.
    pub(super) fn clock_offset_ms(&self, node: NodeId) -> Option<i64> {
        self.clock_gate.lock().offset_ms(node, self.reading())
    }

    /// How far ahead the median of the clocks is, in milliseconds, and how far it may be.
    pub(crate) fn clock_median_ms(&self) -> (Option<i64>, u64) {
        let others = self.other_nodes(&self.view.load());
        let watch = self.clock_gate.lock();
        (watch.median_ms(self.reading(), &others), watch.limit_ms())
    }

    fn other_nodes(&self, view: &View) -> Vec<OtherNode> {
        let nodes = view.metadata().map(|it| it.layout().nodes()).unwrap_or_default();
        let others = nodes.iter().filter(|it| it.id != self.identity.node);
        let other = |it: &NodeDescription| OtherNode {
            node: it.id,
            local: it.datacenter == self.config.datacenter,
        };
        others.map(other).collect()
    }
}
