//! Drives a target with concurrent clients and measures what comes back.
//!
//! Closed loop: each client calls again as soon as it has its answer. Open loop: calls begin at a
//! given rate whatever the answers do, and latency counts from when a call should have begun, so
//! that a stall is paid by every call that it delayed (Tene, "coordinated omission").

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use model::Key;
use serde::Serialize;

use super::{
    keys::{Chooser, KeySpace},
    latency::Latencies,
    process::processor_time,
    target::{BATCHES_IN_FLIGHT, Done, Target},
};
use crate::failure::Failure;

/// What to do to a target.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Calls in flight at once, at most.
    pub(crate) clients: usize,
    /// Calls per second; `None` for a closed loop.
    pub(crate) rate: Option<f64>,
    /// How long to run before anything counts.
    pub(crate) warm_up: Duration,
    /// How long to measure.
    pub(crate) duration: Duration,
    /// The share of reads, from 0 to 1.
    pub(crate) read_share: f64,
    /// Keys of one call; with more than one, calls are batches.
    pub(crate) batch: usize,
    /// The keys and values.
    pub(crate) space: KeySpace,
}

/// How long an open loop may run on to finish the calls that should have begun in its time.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Writes.
    Put,
    /// Reads.
    Get,
}

/// What calls of one kind did.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Calls that did not fail, not even for some of their keys.
    pub(crate) calls: u64,
    /// Keys written, or read.
    pub(crate) keys: u64,
    /// Keys read that had no value.
    pub(crate) absent: u64,
    /// Failed keys by reason.
    pub(crate) errors: BTreeMap<String, u64>,
    /// From when a call should have begun.
    pub(crate) latencies: Latencies,
    /// From when it did begin.
    pub(crate) service: Latencies,
}

/// What was measured.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// By kind.
    pub(crate) tallies: BTreeMap<Kind, Tally>,
    /// How long it took.
    pub(crate) elapsed: Duration,
    /// Calls of an open loop that should have begun and did not.
    pub(crate) not_begun: u64,
    /// Processor time of this process meanwhile.
    pub(crate) load_processor: Duration,
    /// Processor time of the servers meanwhile.
    pub(crate) server_processor: Duration,
}

impl Measured {
    /// Calls of all kinds that did not fail.
    pub(crate) fn calls(&self) -> u64 {
        self.tallies.values().map(|it| it.calls).sum()
    }

    /// Keys of all kinds.
    pub(crate) fn keys(&self) -> u64 {
        self.tallies.values().map(|it| it.keys).sum()
    }

    /// Keys per second.
    pub(crate) fn keys_per_second(&self) -> f64 {
        per(self.keys(), self.elapsed.as_secs_f64())
    }

    /// Calls per second.
    pub(crate) fn calls_per_second(&self) -> f64 {
        per(self.calls(), self.elapsed.as_secs_f64())
    }

    /// Failed keys of all kinds.
    pub(crate) fn errors(&self) -> u64 {
        self.tallies.values().flat_map(|it| it.errors.values()).sum()
    }

    /// Microseconds of processor time per call, of servers and load generator.
    pub(crate) fn processor_us_per_call(&self) -> f64 {
        self.us_per_call(self.load_processor + self.server_processor)
    }

    /// A processor time as microseconds per call.
    pub(crate) fn us_per_call(&self, time: Duration) -> f64 {
        match self.calls() {
            0 => 0.0,
            calls => 1e6 / per(calls, time.as_secs_f64()),
        }
    }
}

/// Runs a load to its end. `servers` are the processes whose processor time counts as the server's.
pub(crate) async fn run(
    load: &Load,
    target: &Target,
    servers: &[u32],
) -> Result<Measured, Failure> {
    // The time begins when it is first asked for, behind the warm-up.
    let over = async { tokio::time::sleep(load.duration).await };
    Ok(run_until(load, target, servers, over).await?.0)
}

/// The same, but measures until something has happened, whatever the load's duration; what that was
/// comes back.
pub(crate) async fn run_until<T>(
    load: &Load,
    target: &Target,
    servers: &[u32],
    until: impl Future<Output = T>,
) -> Result<(Measured, T), Failure> {
    let begun = Instant::now();
    let shared = Arc::new(Shared::new(load, begun));
    let workers: Vec<_> = (0..load.clients)
        .map(|client| {
            let worker = Worker { shared: shared.clone(), target: target.clone(), client };
            tokio::spawn(worker.run())
        })
        .collect();
    tokio::time::sleep(load.warm_up).await;
    let before = Usage::now(servers)?;
    shared.enter(MEASURING);
    let measured_from = Instant::now();
    let happened = until.await;
    if load.rate.is_some() {
        shared.drain().await;
    }
    let elapsed = measured_from.elapsed();
    shared.enter(ENDING);
    let after = Usage::now(servers)?;
    for worker in workers {
        worker.await.expect("workers do not panic");
    }
    let tallies = std::mem::take(&mut *shared.tallies());
    let measured = Measured {
        tallies,
        elapsed,
        not_begun: shared.not_begun(),
        load_processor: after.load.saturating_sub(before.load),
        server_processor: after.servers.saturating_sub(before.servers),
    };
    Ok((measured, happened))
}

/// Writes every key once, in batches. Returns how many failed, by what went wrong.
pub(crate) async fn fill(
    space: &KeySpace,
    target: &Target,
    progress: impl Fn(u64),
) -> Result<BTreeMap<String, u64>, Failure> {
    use futures_util::StreamExt;
    const BATCH_KEYS: u64 = 100;
    let pool = space.pool();
    let mut chooser = Chooser::new(space, pool, u64::MAX);
    let starts = (0..space.keys).step_by(usize::try_from(BATCH_KEYS).expect("it is small"));
    let batches = starts.map(|start| {
        let indexes = start..(start + BATCH_KEYS).min(space.keys);
        let rows: Vec<(Key, Bytes)> =
            indexes.map(|index| (space.key(index), chooser.value())).collect();
        target.put_batch(rows)
    });
    let mut in_flight = futures_util::stream::iter(batches).buffer_unordered(BATCHES_IN_FLIGHT);
    let (mut written, mut failed) = (0, BTreeMap::new());
    while let Some(done) = in_flight.next().await {
        written += done.keys;
        for error in done.errors {
            *failed.entry(error).or_default() += 1;
        }
        progress(written);
    }
    Ok(failed)
}

const WARMING_UP: u8 = 0;
const MEASURING: u8 = 1;
const ENDING: u8 = 2;

/// What the clients of a load share. One thread runs them all, so that nobody ever waits here.
struct Shared {
    load: Load,
    pool: Bytes,
    begun: Instant,
    phase: AtomicU8,
    /// The next call of an open loop.
    sequence: AtomicU64,
    /// Calls of an open loop that have ended.
    ended: AtomicU64,
    tallies: Mutex<BTreeMap<Kind, Tally>>,
}

impl Shared {
    fn new(load: &Load, begun: Instant) -> Self {
        Self {
            pool: load.space.pool(),
            load: load.clone(),
            begun,
            phase: AtomicU8::new(WARMING_UP),
            sequence: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            tallies: Mutex::default(),
        }
    }

    fn tallies(&self) -> MutexGuard<'_, BTreeMap<Kind, Tally>> {
        self.tallies.lock().expect("nobody panics while holding it")
    }

    fn enter(&self, phase: u8) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }

    /// How many calls an open loop begins.
    fn scheduled(&self) -> u64 {
        let seconds = (self.load.warm_up + self.load.duration).as_secs_f64();
        count(self.load.rate.unwrap_or_default() * seconds)
    }

    fn not_begun(&self) -> u64 {
        match self.load.rate {
            None => 0,
            Some(_) => self.scheduled().saturating_sub(self.sequence.load(Ordering::Relaxed)),
        }
    }

    /// Waits until an open loop has finished what it had to begin, but not for ever.
    async fn drain(&self) {
        let deadline = Instant::now() + DRAIN_MAX;
        while self.ended.load(Ordering::Relaxed) < self.scheduled() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// When the next call should begin; `None` if there is none.
    async fn next_start(&self) -> Option<Instant> {
        if self.phase() == ENDING {
            return None;
        }
        let Some(rate) = self.load.rate else { return Some(Instant::now()) };
        let number = self.sequence.fetch_add(1, Ordering::Relaxed);
        if number >= self.scheduled() {
            self.sequence.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let start = self.begun + Duration::from_secs_f64(per(number, rate));
        tokio::time::sleep_until(start.into()).await;
        Some(start)
    }

    fn record(&self, kind: Kind, start: Instant, begun: Instant, done: &Done) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        // An open loop counts what should have begun in its time; a closed one what ended in it.
        let warm = match self.load.rate {
            None => self.phase() == MEASURING,
            Some(_) => start >= self.begun + self.load.warm_up && self.phase() != ENDING,
        };
        if !warm {
            return;
        }
        let mut tallies = self.tallies();
        let tally = tallies.entry(kind).or_default();
        tally.calls += u64::from(done.errors.is_empty());
        tally.keys += done.keys;
        tally.absent += done.absent;
        for error in &done.errors {
            *tally.errors.entry(error.clone()).or_default() += 1;
        }
        tally.latencies.record(now - start);
        tally.service.record(now - begun);
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            calls: 0,
            keys: 0,
            absent: 0,
            errors: BTreeMap::new(),
            latencies: Latencies::new(),
            service: Latencies::new(),
        }
    }
}

/// One client of a load.
struct Worker {
    shared: Arc<Shared>,
    target: Target,
    client: usize,
}

impl Worker {
    async fn run(self) {
        let load = &self.shared.load;
        let client = u64::try_from(self.client).expect("there are few clients");
        let mut chooser = Chooser::new(&load.space, self.shared.pool.clone(), client);
        while let Some(start) = self.shared.next_start().await {
            let kind = if chooser.chance(load.read_share) { Kind::Get } else { Kind::Put };
            let begun = Instant::now();
            let done = self.call(kind, &mut chooser).await;
            self.shared.record(kind, start, begun, &done);
        }
    }

    async fn call(&self, kind: Kind, chooser: &mut Chooser) -> Done {
        let batch = self.shared.load.batch;
        match (kind, batch) {
            (Kind::Put, 1) => {
                let (key, value) = (chooser.key(), chooser.value());
                self.target.put(self.client, key, value).await
            }
            (Kind::Get, 1) => {
                let key = chooser.key();
                self.target.get(self.client, key).await
            }
            (Kind::Put, _) => {
                let keys = chooser.keys(batch);
                let rows = keys.into_iter().map(|key| (key, chooser.value())).collect();
                self.target.put_batch(rows).await
            }
            (Kind::Get, _) => {
                let keys = chooser.keys(batch);
                self.target.get_batch(keys).await
            }
        }
    }
}

/// Processor time used so far.
struct Usage {
    load: Duration,
    servers: Duration,
}

impl Usage {
    fn now(servers: &[u32]) -> Result<Self, Failure> {
        let mut used = Duration::ZERO;
        for pid in servers {
            used += processor_time(*pid)?;
        }
        Ok(Self { load: processor_time(std::process::id())?, servers: used })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate has few digits")]
fn per(count: u64, of: f64) -> f64 {
    count as f64 / of
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate and a duration are positive, and their product is small"
)]
fn count(calls: f64) -> u64 {
    calls as u64
}
