//! What a run can do to one node from outside: its clock, its disk, its connections.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use model::{NodeId, Timestamp};
use node::{
    commit::CommitStage,
    io::{Boxed, DiskPace, Node, WallClock},
    storage::{
        Space,
        memory::{Access, Fault, FaultPlan},
    },
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio_util::sync::CancellationToken;

use super::network::Connections;

/// The handles of one node. Outlives the node's lives.
pub struct Controls {
    /// How far the wall clock is off.
    pub clock_offset_ms: AtomicI64,
    /// The longest that the disk takes for a group of commits.
    pub disk_ms: AtomicU64,
    /// Reads of connections in a thousand that find them broken.
    pub resets_per_mille: AtomicU32,
    /// True while no commit goes on.
    pub paused: AtomicBool,
    /// Tasks of the node's runtime.
    pub tasks: AtomicUsize,
    /// The most clients that it had not told by their deadlines, since this was last taken. Counted by
    /// the host, whose time goes by in the simulation: outside, the machine's does.
    pub overdue: AtomicUsize,
    /// Its open connections.
    pub(super) connections: Connections,
    inner: Mutex<Inner>,
}

struct Inner {
    random: StdRng,
    drift: Drift,
    freezes: Vec<Freeze>,
    frozen_by: Option<u64>,
    node: Option<Node>,
    ended: Option<String>,
    replaces: Option<NodeId>,
    stop: CancellationToken,
}

impl Controls {
    /// A node without faults.
    pub fn new(seed: u64) -> Arc<Self> {
        let random = StdRng::seed_from_u64(seed);
        Arc::new(Self {
            clock_offset_ms: AtomicI64::new(0),
            disk_ms: AtomicU64::new(0),
            resets_per_mille: AtomicU32::new(0),
            paused: AtomicBool::new(false),
            tasks: AtomicUsize::new(0),
            overdue: AtomicUsize::new(0),
            connections: Connections::default(),
            inner: Mutex::new(Inner {
                random,
                drift: Drift::default(),
                freezes: Vec::new(),
                frozen_by: None,
                node: None,
                ended: None,
                replaces: None,
                stop: CancellationToken::new(),
            }),
        })
    }

    /// The clock drifts from now on, by so many millionths; `None` slews back what has come together.
    pub fn drift(&self, now: Duration, ppm: Option<i64>) {
        let drift = &mut self.lock().drift;
        *drift = Drift { since: now, offset_us: drift.offset_us(now), ppm };
    }

    /// How far the wall clock is from true time, in milliseconds.
    pub fn clock_error_ms(&self, now: Duration) -> i64 {
        let drifted_us = self.lock().drift.offset_us(now);
        self.clock_offset_ms.load(Ordering::Relaxed) + drifted_us / 1_000
    }

    /// The node's present life, if it has one.
    pub fn node(&self) -> Option<Node> {
        self.lock().node.clone()
    }

    /// Notes the node's present life.
    pub fn set_node(&self, node: Option<Node>) {
        self.lock().node = node;
    }

    /// The node's disk is empty from now on: it takes its own place again.
    pub fn set_replaces(&self, id: NodeId) {
        self.lock().replaces = Some(id);
    }

    /// Whose place the node takes.
    pub fn replaces(&self) -> Option<NodeId> {
        self.lock().replaces
    }

    /// Says when this life of the node is asked to stop.
    pub fn stop(&self) -> CancellationToken {
        self.lock().stop.clone()
    }

    /// Asks the node to stop, as its operator does.
    pub fn ask_to_stop(&self) {
        self.lock().stop.cancel();
    }

    /// Notes why the node ended by itself.
    pub fn end(&self, why: String) {
        self.lock().ended = Some(why);
    }

    /// Why the node ended by itself, if it did since this was last asked.
    pub fn take_ended(&self) -> Option<String> {
        self.lock().ended.take()
    }

    /// Freezes the node at this stage of the group that is so many groups away. Several may wait for
    /// their moment; the id tells them apart.
    pub fn freeze_at(&self, id: u64, stage: CommitStage, groups: u32) {
        self.lock().freezes.push(Freeze { id, stage, groups });
    }

    /// Ends a freeze that has not come yet.
    pub fn forget_freeze(&self, id: u64) {
        self.lock().freezes.retain(|it| it.id != id);
    }

    /// Which freeze the node's commit path stands in.
    pub fn frozen_by(&self) -> Option<u64> {
        self.lock().frozen_by
    }

    /// A new life begins: its commit path moves, and nobody has asked it to stop.
    pub fn begin(&self) {
        let mut inner = self.lock();
        inner.frozen_by = None;
        inner.stop = CancellationToken::new();
    }

    /// True if a connection breaks now.
    pub fn resets(&self) -> bool {
        let per_mille = self.resets_per_mille.load(Ordering::Relaxed);
        per_mille > 0 && self.lock().random.random_ratio(per_mille, 1_000)
    }

    /// Takes the time that a disk takes; never returns where the node is to crash.
    pub async fn pace(&self, stage: CommitStage) {
        if self.freezes(stage) {
            return std::future::pending().await;
        }
        self.resumed().await;
        let disk_ms = self.disk_ms.load(Ordering::Relaxed);
        let delay_ms = self.lock().random.random_range(0..=disk_ms);
        // Before the write: a group in memory. After it: durable, and nobody knows.
        let delay_ms = if stage == CommitStage::Taken { delay_ms } else { delay_ms / 4 };
        if delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            self.resumed().await;
        }
    }

    async fn resumed(&self) {
        while self.paused.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn freezes(&self, stage: CommitStage) -> bool {
        let mut inner = self.lock();
        let due = |it: &Freeze| it.stage == stage && it.groups == 0;
        if let Some(place) = inner.freezes.iter().position(due) {
            inner.frozen_by = Some(inner.freezes.remove(place).id);
            return true;
        }
        for it in inner.freezes.iter_mut().filter(|it| it.stage == stage) {
            it.groups -= 1;
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a commit path is to stop.
struct Freeze {
    id: u64,
    stage: CommitStage,
    groups: u32,
}

impl DiskPace for Controls {
    /// Half of the time that a group of commits may take, at most.
    fn read(&self) -> Boxed<'static, ()> {
        let longest_ms = self.disk_ms.load(Ordering::Relaxed) / 2;
        let delay_ms = self.lock().random.random_range(0..=longest_ms);
        Box::pin(async move {
            if delay_ms > 0 {
                tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            }
        })
    }
}

/// How a clock has drifted away from true time.
#[derive(Clone, Copy, Default)]
struct Drift {
    since: Duration,
    /// By then.
    offset_us: i64,
    /// By so many millionths since; `None` while it is slewed back.
    ppm: Option<i64>,
}

impl Drift {
    fn offset_us(self, now: Duration) -> i64 {
        let elapsed = now.saturating_sub(self.since).as_micros();
        let elapsed_us = i64::try_from(elapsed).unwrap_or(i64::MAX / SLEW_PPM);
        let slewed_us = elapsed_us * SLEW_PPM / 1_000_000;
        match self.ppm {
            Some(ppm) => self.offset_us + elapsed_us * ppm / 1_000_000,
            None => self.offset_us.signum() * (self.offset_us.abs() - slewed_us).max(0),
        }
    }
}

/// How fast a clock is brought back. No step: nodes would take one for a jump.
const SLEW_PPM: i64 = 100_000;

/// The simulated wall clock of one node.
pub struct SimClock(pub Arc<Controls>);

impl WallClock for SimClock {
    /// Panics outside a simulated host.
    fn now(&self) -> Timestamp {
        let since = turmoil::since_epoch().expect("runs in a simulated host");
        let elapsed = turmoil::sim_elapsed().expect("runs in a simulated host");
        let true_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let ms = true_ms + self.0.clock_error_ms(elapsed);
        Timestamp(u64::try_from(ms).unwrap_or(0))
    }
}

/// The faults of one disk, in a thousand accesses each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DiskFaults {
    /// Reads that find nothing in memory, and ask the disk.
    pub blocking_reads: u32,
    /// Reads that fail, or give back what is damaged.
    pub read_errors: u32,
    /// Appends to the log that fail.
    pub write_errors: u32,
    /// Syncs of the log that fail.
    pub sync_errors: u32,
    /// Appends that find no room.
    pub full: u32,
}

impl DiskFaults {
    /// The plan that a disk asks before each access.
    pub fn plan(self, seed: u64) -> FaultPlan {
        let mut random = StdRng::seed_from_u64(seed);
        Box::new(move |access| {
            let mut hit = |per_mille: u32| per_mille > 0 && random.random_ratio(per_mille, 1_000);
            match access {
                Access::TryGet(Space::Data, _) if hit(self.blocking_reads) => {
                    Some(Fault::WouldBlock)
                }
                Access::TryGet(..) | Access::Get(..) | Access::Range(_) if hit(self.read_errors) => {
                    Some(if random.random_ratio(1, 4) { Fault::Error } else { Fault::Corrupt })
                }
                Access::Append(_) if hit(self.full) => Some(Fault::Full),
                Access::Append(_) if hit(self.write_errors) => Some(Fault::Error),
                Access::Sync if hit(self.sync_errors) => Some(Fault::Error),
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_drifts_from_where_it_is_and_is_slewed_back() {
        let controls = Controls::new(1);
        let at = |ms| Duration::from_millis(ms);
        controls.drift(at(100_000), Some(50_000));
        assert_eq!(controls.clock_error_ms(at(100_000)), 0);
        assert_eq!(controls.clock_error_ms(at(102_000)), 100);
        controls.drift(at(102_000), Some(-50_000));
        assert_eq!(controls.clock_error_ms(at(103_000)), 50);
        controls.drift(at(103_000), None);
        assert_eq!(controls.clock_error_ms(at(103_000)), 50);
        assert_eq!(controls.clock_error_ms(at(103_200)), 30);
        assert_eq!(controls.clock_error_ms(at(110_000)), 0);
    }
}
