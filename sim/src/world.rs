//! A simulated cluster: nodes with their disks and clocks, the links between them, and the clients'
//! hosts. Everything that happens comes from the seed.

pub mod controls;
mod damage;
mod host;
pub(crate) mod late;
mod links;
mod network;

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use model::NodeId;
use node::storage::{
    RangeRequest, Space,
    memory::{MemoryImage, MemoryStorage},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use turmoil::{Builder, Sim};

pub use controls::{Controls, DiskFaults};
pub(crate) use host::CLIENT_PORT;
pub use links::{Cut, CutKind};
pub use network::SimNetwork;

use crate::{
    log::Log,
    shape::{Shape, datacenter_name},
};
use host::{HostSettings, run_host};
use late::LateFrames;
use links::Links;

/// When every simulation begins, in milliseconds since the Unix epoch.
pub const EPOCH_MS: u64 = 1_700_000_000_000;

/// One node of a world.
pub struct SimNode {
    /// The host's name.
    pub name: String,
    /// Its datacenter.
    pub datacenter: u8,
    /// Its disk.
    pub disk: MemoryStorage,
    /// What can be done to it.
    pub controls: Arc<Controls>,
    /// False while its process is gone.
    pub running: bool,
    /// The disk's faults now.
    pub disk_faults: DiskFaults,
    /// The durable clock ceiling of the lives before.
    pub ceiling_before: u64,
    /// How often its disk was lost or put back.
    pub disks_lost: u32,
    image: Option<MemoryImage>,
}

/// A simulated cluster.
pub struct World {
    sim: Sim<'static>,
    /// Its shape.
    pub shape: Shape,
    /// Its nodes.
    pub nodes: Vec<SimNode>,
    /// The names of the hosts of clients, one for each datacenter.
    pub clients: Vec<String>,
    /// What happens.
    pub log: Log,
    links: Links,
    random: StdRng,
    /// How far all clocks but one were ahead of true time at most, in milliseconds.
    pub common_error_ms: i64,
    /// When the last connection from which a cut took something is known to be dead, in milliseconds:
    /// turmoil's TCP sends nothing again, so that nodes learn of it by silence.
    pub links_whole_ms: u64,
    /// Until when disks were lost or put back, in milliseconds; 0 if none was.
    pub disks_lost_until_ms: u64,
    /// How far the clock in the middle of all was off at most: what lies near it is believed.
    pub clocks_off_ms: u64,
    /// The node whose disk has damaged or lost rows.
    pub rotten: Option<usize>,
    /// Those rows: what they held is no measure of what comes.
    pub scarred: BTreeSet<(usize, Bytes)>,
    /// What the ends of lives have left, for the checks at the end.
    pub ends: Vec<NodeEnd>,
    /// Messages that are due, after whatever time.
    pub(crate) late: LateFrames,
}

/// What a node had done when its process ended.
pub struct NodeEnd {
    /// Its counters.
    pub counters: Vec<(&'static str, u64)>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndKind {
    /// Alone: the system keeps what it wrote.
    Crash,
    /// With its machine's power: what was not synced may be lost.
    PowerLoss,
}

impl World {
    /// Builds a cluster whose nodes have started. `seed` decides all that is random in it.
    pub fn new(seed: u64, shape: Shape, log: Log) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut sim = Builder::new()
            .rng_seed(random.random())
            .epoch(UNIX_EPOCH + Duration::from_millis(EPOCH_MS))
            .simulation_duration(Duration::from_secs(100_000))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(shape.lan_ms.max(1)))
            .tcp_capacity(4_096)
            .enable_random_order()
            .build();
        let places: Vec<u8> = shape.nodes().collect();
        let names: Vec<String> = (1..=places.len()).map(|it| format!("n{it}")).collect();
        let mut nodes = Vec::new();
        for (name, datacenter) in names.iter().zip(places) {
            let controls = Controls::new(random.random());
            let offset_ms = random.random_range(-shape.clock_offset_ms..=shape.clock_offset_ms);
            controls.clock_offset_ms.store(offset_ms, Ordering::Relaxed);
            controls.disk_ms.store(shape.disk_ms, Ordering::Relaxed);
            let disk = MemoryStorage::new();
            disk.keep_batches();
            let settings = HostSettings {
                name: name.clone(),
                datacenter: datacenter_name(datacenter),
                rack: format!("r{}", nodes.len() % 3),
                join: names.iter().take(3).cloned().collect(),
                seed: random.random(),
                row_cache_bytes: shape.row_cache_bytes,
                bounds: shape.bounds,
                disk: disk.clone(),
                controls: Arc::clone(&controls),
            };
            add_host(&mut sim, settings);
            let node = SimNode {
                name: name.clone(),
                datacenter,
                disk,
                controls,
                running: true,
                disk_faults: DiskFaults::default(),
                ceiling_before: 0,
                disks_lost: 0,
                image: None,
            };
            nodes.push(node);
        }
        let mut world = Self {
            sim,
            shape,
            nodes,
            clients: Vec::new(),
            log,
            links: Links::default(),
            random,
            common_error_ms: 0,
            links_whole_ms: 0,
            disks_lost_until_ms: 0,
            clocks_off_ms: 0,
            rotten: None,
            scarred: BTreeSet::new(),
            ends: Vec::new(),
            late: LateFrames::default(),
        };
        let blocking_reads = world.shape.reads_from_disk_per_mille;
        for node in 0..world.nodes.len() {
            world.set_disk_faults(node, |it| it.blocking_reads = blocking_reads);
        }
        world
    }

    /// Adds the host of a datacenter's clients. To be called for each, in order, before any step.
    pub fn add_clients(&mut self, work: impl Future<Output = ()> + 'static) {
        let name =
            format!("clients-{}", datacenter_name(u8::try_from(self.clients.len()).expect("few")));
        self.sim.client(name.as_str(), async move {
            work.await;
            Ok(())
        });
        self.clients.push(name);
        if self.clients.len() == self.shape.datacenters.len() {
            self.lay_distances();
        }
    }

    /// Time is that of the links from now on.
    pub fn lay_distances(&self) {
        let count = self.shape.datacenter_count();
        let wan_ms = self.shape.wan_ms.max(1);
        for one in 0..count {
            for other in one + 1..count {
                for (a, b) in self.pairs(one, other) {
                    self.set_link(&a, &b, wan_ms, wan_ms + wan_ms / 4);
                }
            }
        }
    }

    /// Messages take between so long and so long. Turmoil sets both ends, and then the longer one.
    fn set_link(&self, a: &str, b: &str, min_ms: u64, max_ms: u64) {
        self.sim.set_link_latency(a, b, Duration::from_millis(min_ms));
        self.sim.set_link_max_message_latency(a, b, Duration::from_millis(max_ms));
    }

    fn pairs(&self, one: u8, other: u8) -> Vec<(String, String)> {
        let (ones, others) = (self.hosts_of(one), self.hosts_of(other));
        ones.iter().flat_map(|a| others.iter().map(move |b| (a.clone(), b.clone()))).collect()
    }

    /// All hosts of a datacenter: its nodes and its clients'.
    pub fn hosts_of(&self, datacenter: u8) -> Vec<String> {
        let nodes = self.nodes.iter().filter(|it| it.datacenter == datacenter);
        let mut hosts: Vec<_> = nodes.map(|it| it.name.clone()).collect();
        hosts.extend(self.clients.get(usize::from(datacenter)).cloned());
        hosts
    }

    /// All hosts.
    pub fn hosts(&self) -> Vec<String> {
        (0..self.shape.datacenter_count()).flat_map(|it| self.hosts_of(it)).collect()
    }

    /// Sets how long messages between two groups of hosts take.
    pub fn set_latency(&self, from: &[String], to: &[String], latency_ms: u64) {
        for a in from {
            for b in to.iter().filter(|it| *it != a) {
                let latency = Duration::from_millis(latency_ms.max(1));
                self.sim.set_link_latency(a.as_str(), b.as_str(), latency);
            }
        }
    }

    /// Sets all links back to what they were.
    pub fn reset_latencies(&self) {
        for datacenter in 0..self.shape.datacenter_count() {
            for (a, b) in self.pairs(datacenter, datacenter) {
                if a < b {
                    self.set_link(&a, &b, 1, self.shape.lan_ms.max(1));
                }
            }
        }
        self.lay_distances();
    }

    /// Simulated time since the beginning.
    pub fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// The same in milliseconds.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX)
    }

    /// Adds a line to the log that belongs to the story of this world.
    pub fn say(&self, line: impl std::fmt::Display) {
        self.log.tell(self.now(), line);
    }

    /// Advances by one tick, a millisecond.
    ///
    /// # Errors
    /// What a host failed for.
    pub fn step(&mut self) -> Result<(), String> {
        let errors_ms = self.nodes.iter().map(|it| it.controls.clock_error_ms(self.now()));
        let mut errors_ms: Vec<i64> = errors_ms.collect();
        errors_ms.sort_unstable();
        let second = errors_ms.iter().rev().nth(1);
        self.common_error_ms = self.common_error_ms.max(second.copied().unwrap_or(0));
        self.clocks_off_ms = self.clocks_off_ms.max(middle_off_ms(&errors_ms));
        self.sim.step().map_err(|error| error.to_string())?;
        for index in 0..self.nodes.len() {
            if self.nodes[index].running
                && let Some(why) = self.nodes[index].controls.take_ended()
            {
                self.say(format_args!("{} has ended: {why}", self.nodes[index].name));
                self.end_node(index, EndKind::Crash);
            }
        }
        Ok(())
    }

    /// Cuts links under an id that is not in use.
    pub fn cut(&mut self, id: u64, cut: Cut) {
        self.links.cut(&self.sim, id, cut);
    }

    /// Ends a cut.
    pub fn heal(&mut self, id: u64) {
        if self.links.loses(id) {
            self.links_whole_ms = self.now_ms() + DEAD_LINK_MS;
        }
        self.links.heal(&self.sim, id);
    }

    /// Asks a node to stop, as its operator does, if it runs. It ends by itself. False if it did not run.
    pub fn stop_node(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        if node.running {
            node.controls.ask_to_stop();
            self.say(format_args!("{} is asked to stop", node.name));
        }
        node.running
    }

    /// Ends a node that was asked to stop and has not yet: a supervisor does not wait for ever.
    pub fn end_stopping(&mut self, index: usize) {
        if self.nodes[index].controls.stop().is_cancelled() {
            self.end_node(index, EndKind::Crash);
        }
    }

    /// Ends a node's process, if it runs.
    pub fn end_node(&mut self, index: usize, kind: EndKind) {
        let node = &mut self.nodes[index];
        if !node.running {
            return;
        }
        node.running = false;
        if let Some(life) = node.controls.node() {
            let shared = &life.shared;
            let mut counters = shared.counters.values();
            counters.extend(shared.commit_counters.load().values());
            node.ceiling_before = node.ceiling_before.max(shared.clock.ceiling().0);
            self.ends.push(NodeEnd { counters });
        }
        node.controls.connections.crash(|| self.sim.crash(node.name.as_str()));
        node.controls.set_node(None);
        match kind {
            EndKind::Crash => node.disk.process_crash(self.random.random()),
            EndKind::PowerLoss => {
                let random = &mut self.random;
                node.disk.power_loss(|unsynced| random.random_range(0..=unsynced));
            }
        }
        let name = node.name.clone();
        self.say(format_args!("{name} is gone ({kind:?})"));
    }

    /// Starts a node's process, unless it runs.
    pub fn start_node(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.running {
            return;
        }
        node.running = true;
        node.controls.begin();
        self.sim.bounce(node.name.as_str());
        let name = node.name.clone();
        self.say(format_args!("{name} starts"));
    }

    /// A node's disk is lost, its process gone already. It starts again in its own place.
    pub fn wipe(&mut self, index: usize) {
        let Some(id) = self.node_id(index) else { return };
        self.disks_lost_until_ms = self.now_ms() + 1;
        let node = &mut self.nodes[index];
        node.disk.wipe();
        node.disk.take_batches();
        node.disks_lost += 1;
        node.ceiling_before = 0;
        node.controls.set_replaces(id);
        let name = node.name.clone();
        self.say(format_args!("the disk of {name} is lost"));
    }

    /// A copy of a node's disk is taken.
    pub fn take_image(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.image = Some(node.disk.image());
    }

    /// The disk of a node that is down is replaced by a copy of another one's: its next process takes itself
    /// for that node, at its own address.
    pub fn copy_disk(&mut self, from: usize, to: usize) {
        let image = self.nodes[from].disk.image();
        let (copied, name) = (self.nodes[from].name.clone(), self.nodes[to].name.clone());
        let node = &mut self.nodes[to];
        node.disk.put_back(&image);
        node.disk.take_batches();
        node.disks_lost += 1;
        node.ceiling_before = 0;
        self.say(format_args!("{name} has a copy of the disk of {copied}"));
    }

    /// A node's disk is put back to its copy, and its process ended; only if all the others run and have
    /// seen it ahead of that: nobody can tell what nobody has seen. True if it was.
    pub fn roll_back(&mut self, index: usize) -> bool {
        let (Some(image), Some(id)) = (self.nodes[index].image.take(), self.node_id(index)) else {
            return false;
        };
        let ceiling = image.get(Space::System, b"clock-ceiling").map_or(Some(0), |it| {
            let bytes = it[..].try_into().ok()?;
            Some(u64::from_be_bytes(bytes))
        });
        let others = self.nodes.iter().enumerate().filter(|it| it.0 != index);
        let seen = |node: &SimNode| {
            let seen = node.controls.node()?.shared.seen_storage(id)?;
            Some(seen.ceiling.0)
        };
        let told = others.map(|it| it.1).all(|it| seen(it) > ceiling);
        if !told || ceiling.is_none() {
            return false;
        }
        self.end_node(index, EndKind::Crash);
        self.disks_lost_until_ms = self.now_ms() + 1;
        let node = &mut self.nodes[index];
        node.disk.put_back(&image);
        node.disk.take_batches();
        node.disks_lost += 1;
        node.ceiling_before = 0;
        let name = node.name.clone();
        self.say(format_args!("the disk of {name} is put back"));
        true
    }

    /// The id that a node's disk says.
    fn node_id(&self, index: usize) -> Option<NodeId> {
        let rows = RangeRequest::prefix(Space::System, &b"identity"[..]);
        let page = self.nodes[index].disk.peek(&rows);
        NodeId::from_slice(page.rows.first()?.1.get(..16)?)
    }

    /// Changes the faults of a node's disk.
    pub fn set_disk_faults(&mut self, index: usize, change: impl FnOnce(&mut DiskFaults)) {
        let seed = self.random.random();
        let node = &mut self.nodes[index];
        change(&mut node.disk_faults);
        node.disk.set_faults(Some(node.disk_faults.plan(seed)));
    }
}

/// How far a clock may be off: the nodes' setting.
pub const CLOCK_OFFSET_MAX_MS: u64 = 500;

/// How far the clock in the middle is off, of clocks that are off by so much, in order.
fn middle_off_ms(errors_ms: &[i64]) -> u64 {
    let (Some(low), Some(high)) =
        (errors_ms.get(errors_ms.len().saturating_sub(1) / 2), errors_ms.get(errors_ms.len() / 2))
    else {
        return 0;
    };
    let off = [low.unsigned_abs(), high.unsigned_abs()];
    // Two halves that are further apart than clocks may be do not believe each other.
    let believed = if low.abs_diff(*high) <= CLOCK_OFFSET_MAX_MS {
        off.into_iter().max()
    } else {
        off.into_iter().min()
    };
    believed.unwrap_or_default()
}

/// Adds a node's host. Each of its lives has a seed of its own.
fn add_host(sim: &mut Sim<'_>, settings: HostSettings) {
    let (name, lives) = (settings.name.clone(), std::cell::Cell::new(0_u64));
    sim.host(name.as_str(), move || {
        lives.set(lives.get() + 1);
        let seed = settings.seed.wrapping_add(lives.get());
        let settings = HostSettings { seed, ..settings.clone() };
        async move {
            run_host(settings).await;
            Ok(())
        }
    });
}

/// A link sends a ping after a second and waits three seconds for its answer; then it connects again.
const DEAD_LINK_MS: u64 = 4_500;
