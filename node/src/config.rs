//! What a node is told at its start. Every bound of the node stands here, with unit and reason.

use std::{net::SocketAddr, path::PathBuf};

use model::{Layout, Limits, NodeId};

use crate::{
    commit::{CommitSettings, QueueLimits},
    snapshot::SnapshotFolder,
};

/// The settings of one node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The data directory; made if it does not exist. One node at a time owns it.
    pub data: PathBuf,
    /// Where clients connect. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// Where nodes connect. A separate port, so that it can be closed to clients and so that a
    /// flood of clients cannot keep nodes apart.
    pub peer_listen: SocketAddr,
    /// Where Prometheus asks for metrics; `None` serves none. A separate port, so that it can be
    /// closed to clients and opened to who watches.
    pub metrics_listen: Option<SocketAddr>,
    /// What clients are told to connect to, if not `listen`: behind address translation, or when
    /// listening on all interfaces.
    pub advertise: Option<SocketAddr>,
    /// What nodes are told to connect to, if not `peer_listen`.
    pub peer_advertise: Option<SocketAddr>,
    /// The datacenter. Replication is per datacenter; fixed for the life of the data directory.
    pub datacenter: String,
    /// The rack: replicas of a partition are spread over racks.
    pub rack: String,
    /// Peer addresses (`host:port`) of nodes to find the cluster through. May name this node.
    pub join: Vec<String>,
    /// The node whose place this one takes, because its data directory is lost: this directory must be
    /// empty, or that node's already. It is filled by the others before it counts.
    pub replace: Option<NodeId>,
    /// The data directory was restored from a copy just now: it is filled anew before it counts.
    pub restored: bool,
    /// Fills replicas by fewer sources than a quorum's every write is among, if there are no more: what
    /// only the lost ones held stays lost.
    pub accept_loss: bool,
    /// Nodes of another name are refused, before there is a cluster id to tell clusters apart.
    pub cluster_name: String,
    /// This node's weight in layouts: a node of capacity 2 holds twice as many partitions as one of
    /// capacity 1.
    pub capacity: u32,
    /// I/O loops. One suffices to about four cores; more loops cost CPU per operation.
    pub io_threads: usize,
    /// What requests may ask for.
    pub limits: Limits,
    /// The deadline of a call that names none, and the longest that one may name, in milliseconds.
    pub request_timeout_ms: u64,
    /// How far ahead of this node's clock a reading may lie before it is refused, in milliseconds.
    pub clock_offset_max_ms: u64,
    /// Client connections of each loop at once; more are closed as they come.
    pub connections_max: usize,
    /// Connections of other nodes to each loop at once; more are closed as they come.
    pub peer_connections_max: usize,
    /// Streams of one connection at once. HTTP/2 makes a client wait for a free one.
    pub streams_per_connection_max: u32,
    /// Operations of each loop at once; more are refused with OVERLOADED. An operation holds about 1 KiB.
    pub operations_in_flight_max: usize,
    /// Bytes of values that clients' calls hold, of all loops together: as they arrive and until the call is
    /// answered, and as they are read. More calls are refused with OVERLOADED; for those let in as much
    /// again may be read.
    pub call_bytes_max: usize,
    /// Reads of calls that wait for the disk at once, in the node; more are refused, and their
    /// coordinators turn to other replicas. Some of the largest batches; each key holds about 1 KiB.
    pub disk_reads_max: usize,
    /// Pages of scans that are read at once in the node: each takes a few times `scan_bytes_max` meanwhile.
    pub scans_max: usize,
    /// How long a client may take nothing of an answer while calls are refused for the bytes that it holds, in
    /// milliseconds. While there is room it may take its time.
    pub answer_patience_ms: u64,
    /// Bytes queued for one peer, which the last message may pass; with so many the peer counts as
    /// unreachable for what follows. Answers of a few bytes find room up to twice as many.
    pub peer_queue_bytes_max: usize,
    /// Bytes of hints kept for one target. Beyond it the exchange does the work, which moves less than
    /// a replay of many overwrites would.
    pub hint_bytes_per_target_max: u64,
    /// How long a hint is kept, in milliseconds. Past it the exchange does the work: few of the keys that
    /// were written so long ago have the same version still, and a target that returns gets the newer ones
    /// sooner. Up to a sixteenth less.
    pub hint_age_ms_max: u64,
    /// Bytes of hints kept for writes at ANY, of all targets together. They are never given up: beyond
    /// it a write at ANY is refused unless a replica is up.
    pub any_hint_bytes_max: u64,
    /// What may wait for this node's own replicas. Beyond it mutations are refused, and hints leave a dirty
    /// mark.
    pub commit_queue: QueueLimits,
    /// Datacenters for whose nodes no hints are kept, but for writes at ANY: what they miss is marked
    /// dirty at once, and left to the exchange.
    pub no_hints_for: Vec<String>,
    /// How often every other replica is compared with, in milliseconds, give or take a quarter: one
    /// small message while both are the same.
    pub exchange_interval_ms: u64,
    /// How old a difference between two replicas is before records are moved for it, in milliseconds:
    /// what is younger is on its way.
    pub exchange_settle_ms: u64,
    /// The time that 99 of 100 clients' calls are to take at most, in milliseconds. As it is approached, or
    /// one and a half times what they usually take, exchanges do less at a time, and rest in between.
    pub foreground_p99_target_ms: u64,
    /// How far the fence of a purge stays behind the clock, in milliseconds: no write is still on its way
    /// then. Tombstones and expired records are kept so long at least.
    pub fence_lag_ms: u64,
    /// How often tombstones and expired records are looked for that may go, in milliseconds.
    pub purge_interval_ms: u64,
    /// How long the scrub takes to compare all Merkle trees with the data, in milliseconds: all data are
    /// read once in that time.
    pub scrub_interval_ms: u64,
    /// False keeps no Merkle trees, as measurements of what they cost do. To others such a node seems to hold
    /// nothing, and where none keeps trees all replicas seem the same: never for data that matter.
    pub keeps_trees: bool,
    /// Snapshots kept at once. Each holds on to data files that the database has replaced since.
    pub snapshots_max: usize,
    /// How long a connection may take to its first request, in milliseconds: half-open and idle
    /// strangers are closed then.
    pub first_request_timeout_ms: u64,
    /// How long a stop waits for operations in flight, in milliseconds.
    pub shutdown_grace_ms: u64,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data: PathBuf::from("quorate-data"),
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            peer_listen: SocketAddr::from(([127, 0, 0, 1], 7401)),
            metrics_listen: None,
            advertise: None,
            peer_advertise: None,
            datacenter: "dc1".to_owned(),
            rack: "rack1".to_owned(),
            join: Vec::new(),
            replace: None,
            restored: false,
            accept_loss: false,
            cluster_name: "quorate".to_owned(),
            capacity: 1,
            io_threads: 1,
            limits: Limits::default(),
            request_timeout_ms: 5_000,
            clock_offset_max_ms: 500,
            connections_max: 4_096,
            peer_connections_max: 4_096,
            streams_per_connection_max: 1_024,
            operations_in_flight_max: 65_536,
            call_bytes_max: 64 << 20,
            disk_reads_max: 65_536,
            scans_max: 64,
            answer_patience_ms: 10_000,
            peer_queue_bytes_max: 64 << 20,
            hint_bytes_per_target_max: CommitSettings::default().hint_bytes_per_target_max,
            hint_age_ms_max: 3 * 3_600_000,
            any_hint_bytes_max: CommitSettings::default().any_hint_bytes_max,
            commit_queue: QueueLimits::default(),
            no_hints_for: Vec::new(),
            exchange_interval_ms: 2_000,
            exchange_settle_ms: 2_000,
            foreground_p99_target_ms: 25,
            fence_lag_ms: 900_000,
            purge_interval_ms: 60_000,
            scrub_interval_ms: 7 * 86_400_000,
            keeps_trees: true,
            snapshots_max: 16,
            first_request_timeout_ms: 10_000,
            shutdown_grace_ms: 5_000,
        }
    }
}

/// Which setting cannot be used, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    /// The setting.
    pub setting: &'static str,
    /// What is wrong with it, with limit and actual.
    pub problem: String,
}

impl NodeConfig {
    /// How long after a damaged record was found the other replicas are asked for it, in milliseconds: no
    /// call is under way then that may have counted it. Twice a call's time, for coordinators that pause.
    pub fn heal_after_ms(&self) -> u64 {
        2 * self.request_timeout_ms
    }

    /// Checks the settings that a person chooses.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |setting, problem: String| Err(ConfigError { setting, problem });
        for (setting, name) in [("datacenter", &self.datacenter), ("rack", &self.rack)] {
            let limit = Layout::NAME_BYTES_MAX;
            if name.is_empty() || name.len() > limit {
                let actual = name.len();
                return error(setting, format!("has {actual} bytes; 1 to {limit} are allowed"));
            }
            if !name.bytes().all(|it| it.is_ascii_alphanumeric() || b"-_.".contains(&it)) {
                return error(setting, format!("{name:?} has characters beyond a-z, 0-9, - _ ."));
            }
        }
        if self.capacity == 0 || self.capacity > Layout::CAPACITY_MAX {
            let limit = Layout::CAPACITY_MAX;
            return error("capacity", format!("{} is not within 1 to {limit}", self.capacity));
        }
        if self.io_threads == 0 || self.io_threads > IO_THREADS_MAX {
            let actual = self.io_threads;
            return error("io_threads", format!("{actual} is not within 1 to {IO_THREADS_MAX}"));
        }
        if self.request_timeout_ms == 0 || self.request_timeout_ms > REQUEST_TIMEOUT_MS_MAX {
            let actual = self.request_timeout_ms;
            let problem = format!("{actual} is not within 1 to {REQUEST_TIMEOUT_MS_MAX}");
            return error("request_timeout_ms", problem);
        }
        let (actual, (least, most)) = (self.clock_offset_max_ms, CLOCK_OFFSET_MS);
        if actual < least || actual > most {
            let problem = format!("{actual} is not within {least} to {most}");
            return error("clock_offset_max_ms", problem);
        }
        let (actual, (least, most)) = (self.hint_age_ms_max, HINT_AGE_MS);
        if actual < least || actual > most {
            let problem = format!("{actual} is not within {least} to {most}");
            return error("hint_age_ms_max", problem);
        }
        for (setting, actual, (least, most)) in [
            ("exchange_interval_ms", self.exchange_interval_ms, EXCHANGE_INTERVAL_MS),
            ("exchange_settle_ms", self.exchange_settle_ms, EXCHANGE_SETTLE_MS),
            ("foreground_p99_target_ms", self.foreground_p99_target_ms, FOREGROUND_P99_MS),
            ("fence_lag_ms", self.fence_lag_ms, FENCE_LAG_MS),
            ("purge_interval_ms", self.purge_interval_ms, PURGE_INTERVAL_MS),
            ("scrub_interval_ms", self.scrub_interval_ms, SCRUB_INTERVAL_MS),
        ] {
            if actual < least || actual > most {
                return error(setting, format!("{actual} is not within {least} to {most}"));
            }
        }
        let least = self.request_timeout_ms + 2 * self.clock_offset_max_ms;
        if self.fence_lag_ms < least {
            let actual = self.fence_lag_ms;
            let problem =
                format!("{actual} is below {least}: a write must be over before its fence");
            return error("fence_lag_ms", problem);
        }
        self.validate_bytes()?;
        if self.connections_max == 0 || self.connections_max > CONNECTIONS_MAX {
            let actual = self.connections_max;
            return error(
                "connections_max",
                format!("{actual} is not within 1 to {CONNECTIONS_MAX}"),
            );
        }
        if self.snapshots_max > SNAPSHOTS_MAX {
            let actual = self.snapshots_max;
            return error("snapshots_max", format!("{actual} is not within 0 to {SNAPSHOTS_MAX}"));
        }
        Ok(())
    }

    fn validate_bytes(&self) -> Result<(), ConfigError> {
        let error = |setting, problem: String| Err(ConfigError { setting, problem });
        let (limit, actual) = (self.limits.batch_bytes_max, self.limits.value_bytes_max);
        if actual == 0 || actual > limit {
            let problem = format!("{actual} is not within 1 to {limit}, the bytes of a batch");
            return error("value_bytes_max", problem);
        }
        let (least, actual) = (self.io_threads * CALL_BATCHES * limit, self.call_bytes_max);
        if actual < least {
            let problem =
                format!("{actual} is below {least}, {CALL_BATCHES} batches for each loop");
            return error("call_bytes_max", problem);
        }
        Ok(())
    }
}

/// Of the largest batches: with room for fewer, smaller calls could keep one from being let in.
const CALL_BATCHES: usize = 4;

/// Loops have four bits in the id of an operation.
pub const IO_THREADS_MAX: usize = 16;

/// As many as are listed at once.
const SNAPSHOTS_MAX: usize = SnapshotFolder::LISTED_MAX;

/// More than a process has file descriptors for.
const CONNECTIONS_MAX: usize = 1 << 20;

/// Less, and a usual round trip would say nothing; more, and one wrong clock could carry the others far.
const CLOCK_OFFSET_MS: (u64, u64) = (50, 60_000);

/// Less, and hints are given up before they could be delivered; more, and dirty marks come too late.
const HINT_AGE_MS: (u64, u64) = (60_000, 7 * 86_400_000);

/// Less, and comparing costs more than it finds; more, and replicas differ for long.
const EXCHANGE_INTERVAL_MS: (u64, u64) = (100, 3_600_000);

/// Less than a write takes to reach all its replicas, and it is sent twice.
const EXCHANGE_SETTLE_MS: (u64, u64) = (100, 600_000);

/// Less, and a write may meet a fence before it has reached all its replicas; more, and tombstones stay
/// for nothing.
const FENCE_LAG_MS: (u64, u64) = (1_000, 7 * 86_400_000);

/// As often as a disk is synced for it without notice, and once a day.
const PURGE_INTERVAL_MS: (u64, u64) = (500, 86_400_000);

/// Less is not measured; more is no target.
const FOREGROUND_P99_MS: (u64, u64) = (1, 10_000);

/// Requests must be over long before a fence can reach them (rule F1).
const REQUEST_TIMEOUT_MS_MAX: u64 = 60_000;

/// Less, and nothing else is read any more; more, and damage adds up.
const SCRUB_INTERVAL_MS: (u64, u64) = (1_000, 90 * 86_400_000);
