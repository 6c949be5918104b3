//! How large a simulated cluster is, how fast its links and disks are, and how busy its clients.

use node::config::NodeConfig;
use rand::{RngExt, rngs::StdRng, seq::IndexedRandom};

/// The cluster of one run and its load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The nodes of each datacenter.
    pub datacenters: Vec<u8>,
    /// Replicas of a key in each datacenter, as far as it has nodes.
    pub replicas: u8,
    /// Partitions of the layout.
    pub partitions: u32,
    /// The longest that a message takes within a datacenter.
    pub lan_ms: u64,
    /// How long a message takes between datacenters.
    pub wan_ms: u64,
    /// The longest that a disk takes for a group of commits.
    pub disk_ms: u64,
    /// Reads in a thousand that are not in the engine's memory.
    pub reads_from_disk_per_mille: u32,
    /// The row cache of a node.
    pub row_cache_bytes: usize,
    /// The bounds of a node.
    pub bounds: Bounds,
    /// How far a clock is off at most, either way, in a cluster without clock faults.
    pub clock_offset_ms: i64,
    /// Clients in each datacenter.
    pub sessions: u8,
    /// True if nearly all calls race for one key.
    pub races: bool,
    /// How long a client thinks between two calls at most.
    pub think_ms: u64,
    /// How long the clients work before the faults begin.
    pub warm_up_ms: u64,
    /// How long faults last.
    pub faults_ms: u64,
    /// How long the cluster is left alone afterwards, its clients silent.
    pub quiet_ms: u64,
    /// True if a node's disk is lost or put back. What only one replica had acknowledged may go with it.
    pub loses_disk: bool,
    /// True if the run waits at its end until all connections of clients must be gone.
    pub drains: bool,
}

/// The bounds of a node that a run may make so small that they are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Operations at once.
    pub operations: usize,
    /// Bytes queued for one peer.
    pub peer_queue_bytes: usize,
    /// Bytes of hints kept for one target.
    pub hint_bytes: u64,
    /// How long hints are kept, except those of ANY.
    pub hint_age_ms: u64,
    /// Bytes of hints kept for writes at ANY.
    pub any_hint_bytes: u64,
    /// Items that wait to be committed at a node.
    pub commit_queue_items: usize,
    /// True if no hints are kept for nodes of a node's own datacenter, except those of ANY.
    pub no_hints: bool,
    /// How often replicas are compared.
    pub exchange_interval_ms: u64,
    /// How old a difference is before records move for it.
    pub exchange_settle_ms: u64,
    /// How far fences stay behind the clock.
    pub fence_lag_ms: u64,
    /// How often tombstones are looked for that may go.
    pub purge_interval_ms: u64,
    /// How long a pass of the scrub takes.
    pub scrub_interval_ms: u64,
}

impl Default for Bounds {
    /// Those that a node has unless told otherwise.
    fn default() -> Self {
        let config = NodeConfig::default();
        Self {
            operations: config.operations_in_flight_max,
            peer_queue_bytes: config.peer_queue_bytes_max,
            hint_bytes: config.hint_bytes_per_target_max,
            hint_age_ms: config.hint_age_ms_max,
            any_hint_bytes: config.any_hint_bytes_max,
            commit_queue_items: config.commit_queue.items_max,
            no_hints: false,
            exchange_interval_ms: config.exchange_interval_ms,
            exchange_settle_ms: config.exchange_settle_ms,
            fence_lag_ms: config.fence_lag_ms,
            purge_interval_ms: config.purge_interval_ms,
            scrub_interval_ms: config.scrub_interval_ms,
        }
    }
}

impl Bounds {
    /// True if tombstones may be purged within a run.
    pub fn purges(&self) -> bool {
        self.fence_lag_ms < Self::default().fence_lag_ms
    }

    /// Mostly the usual ones, so that they do not hide what lies behind them.
    fn draw(random: &mut StdRng) -> Self {
        let mut bounds = Self::default();
        match random.random_range(0..9) {
            0 => bounds.operations = random.random_range(3..=8),
            // A few of the largest values: some messages fill it.
            1 => bounds.peer_queue_bytes = random.random_range(256..=1_024) << 10,
            2 => bounds.hint_bytes = random.random_range(200..=8_000),
            3 => bounds.no_hints = true,
            4 => bounds.commit_queue_items = random.random_range(8..=64),
            _ => {}
        }
        bounds.exchange_interval_ms = random.random_range(200..=1_500);
        bounds.exchange_settle_ms = random.random_range(200..=1_500);
        bounds.scrub_interval_ms = random.random_range(1_000..=4_000);
        if random.random_ratio(1, 3) {
            // As near as a call's time and two wrong clocks allow.
            bounds.fence_lag_ms = random.random_range(6_000..=7_000);
            bounds.purge_interval_ms = random.random_range(500..=1_500);
        }
        bounds
    }
}

impl Default for Shape {
    /// Three nodes in one datacenter, ten seconds.
    fn default() -> Self {
        Self {
            datacenters: vec![3],
            replicas: 3,
            partitions: 8,
            lan_ms: 3,
            wan_ms: 15,
            disk_ms: 3,
            reads_from_disk_per_mille: 100,
            row_cache_bytes: 64 << 10,
            bounds: Bounds::default(),
            clock_offset_ms: 20,
            sessions: 3,
            races: false,
            think_ms: 60,
            warm_up_ms: 800,
            faults_ms: 6_000,
            quiet_ms: 3_000,
            loses_disk: false,
            drains: false,
        }
    }
}

impl Shape {
    /// So many datacenters of so many nodes each.
    pub fn grid(datacenters: usize, nodes: u8) -> Self {
        Self { datacenters: vec![nodes; datacenters], ..Self::default() }
    }

    /// Draws one: mostly small, for a sweep sees more of many small clusters than of a large one.
    pub fn draw(random: &mut StdRng) -> Self {
        const SMALL: &[&[u8]] =
            &[&[3], &[3], &[4], &[5], &[2, 2], &[3, 1], &[3, 2], &[1, 1, 1], &[2, 1, 1]];
        let large = random.random_ratio(1, 80);
        let races = !large && random.random_ratio(1, 3);
        let datacenters = match (large, random.random_ratio(1, 4)) {
            (false, _) => SMALL.choose(random).expect("it is not empty").to_vec(),
            (true, false) => vec![3, 3, 3],
            (true, true) => vec![3, 3, 3, 3],
        };
        let bounds = Bounds::draw(random);
        // Long enough that tombstones go while faults come.
        let purges = bounds.purges();
        let replicas = *[1, 2, 3, 3, 3].choose(random).expect("it is not empty");
        // Every quorum, of a datacenter too, has a replica beside the one that is lost.
        let survives = replicas > 1 && datacenters.iter().all(|it| *it > 1);
        let loses_disk = survives && random.random_ratio(1, 3);
        Self {
            datacenters,
            replicas,
            loses_disk,
            partitions: *[1, 4, 8, 16].choose(random).expect("it is not empty"),
            lan_ms: random.random_range(1..=6),
            wan_ms: random.random_range(2..=40),
            disk_ms: random.random_range(0..=8),
            reads_from_disk_per_mille: *[0, 100, 500].choose(random).expect("it is not empty"),
            row_cache_bytes: *[4 << 10, 64 << 10, 1 << 20].choose(random).expect("it is not empty"),
            bounds,
            clock_offset_ms: *[0, 10, 60, 110].choose(random).expect("it is not empty"),
            sessions: if large { 2 } else { random.random_range(2..=4) },
            races,
            think_ms: *[10, 30, 60, 120].choose(random).expect("it is not empty"),
            faults_ms: match (large, purges) {
                (true, _) => 50_000,
                (false, true) => 12_000,
                (false, false) => 6_000,
            },
            drains: random.random_ratio(1, 8),
            ..Self::default()
        }
    }

    /// How many datacenters there are.
    pub fn datacenter_count(&self) -> u8 {
        u8::try_from(self.datacenters.len()).expect("few datacenters")
    }

    /// The datacenter of each node, in order.
    pub fn nodes(&self) -> impl Iterator<Item = u8> {
        let counts = (0..).zip(self.datacenters.iter());
        counts.flat_map(|(datacenter, count)| std::iter::repeat_n(datacenter, usize::from(*count)))
    }

    /// Replicas of a key in one datacenter.
    pub fn replicas_in(&self, datacenter: u8) -> u8 {
        self.replicas.min(self.datacenters[usize::from(datacenter)])
    }

    /// True if rows of a disk may be damaged or lost: only where the others make a quorum, of every level.
    pub fn damages_disks(&self) -> bool {
        let mut datacenters = 0..self.datacenter_count();
        !self.loses_disk && datacenters.all(|it| self.replicas_in(it) == 3)
    }

    /// Replicas of a key in all.
    pub fn replicas_in_all(&self) -> u8 {
        (0..self.datacenter_count()).map(|it| self.replicas_in(it)).sum()
    }
}

/// A datacenter's name.
pub fn datacenter_name(datacenter: u8) -> String {
    format!("dc{}", datacenter + 1)
}
