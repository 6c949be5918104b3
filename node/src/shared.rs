//! What all loops of a node share. Of all this a request locks the commit
//! queue, and of the cache of rows the shard of its key.

mod blocking;
mod done;
mod stop;

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use model::{ClusterId, Hlc, Metadata, NodeId, StorageId, Timestamp};
use proto::internal::{Frame, Hello};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    clock::NodeClock,
    clock_watch::{ClockState, Reading},
    commit::{CommitCounters, CommitItem, CommitQueue, Floors, HintTotals, TreeSettings, Trees},
    config::NodeConfig,
    counters::Counters,
    damage::DamageBoard,
    exchange::ExchangeBoard,
    foreground::Foreground,
    io::{Changes, ClockGate, Directory, FillBoard, HandoffBoard, WitnessBoard, World},
    liveness::PeerStatus,
    metrics::LoopMetrics,
    outbox::{FrameStamp, Outbox},
    scrub::ScrubBoard,
    storage::StorageError,
    view::View,
    witness::Witness,
};

pub(crate) use done::DoneQueue;
pub use stop::StopReason;

/// Where the answer to a commit item goes.
pub enum Destination {
    /// To the operations of one of this node's loops.
    Loop(usize),
    /// To the peer that sent the mutation, or for whom it was passed on, through the loop that
    /// serves its link.
    Peer(usize, Arc<Outbox>),
    /// Nowhere: nobody awaits it.
    Nowhere,
}

/// Why no stamp can be given now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStamp {
    /// The durable ceiling is being raised.
    Ceiling,
    /// The wall clock is not to be stamped by.
    Clock(ClockState),
}

/// Who this node is: fixed for one life of the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Its database directory when it started; [`Shared::storage_id`] is the one in force.
    pub storage: StorageId,
    /// That directory was minted by this start, to replace another.
    pub minted: bool,
    /// Rises with every start.
    pub incarnation: u64,
    /// What clients are told to connect to.
    pub client_address: std::net::SocketAddr,
    /// What nodes are told to connect to.
    pub peer_address: std::net::SocketAddr,
    /// The clock ceiling with which this life began.
    pub clock_ceiling: Hlc,
}

/// Keys of what the node knows about itself, in `Space::System`.
pub(crate) mod system_key {
    /// The encoded metadata.
    pub(crate) const METADATA: &[u8] = b"metadata";
    /// The durable clock ceiling: eight bytes.
    pub(crate) const CLOCK_CEILING: &[u8] = b"clock-ceiling";
    /// Node id, storage id and incarnation: forty bytes.
    pub(crate) const IDENTITY: &[u8] = b"identity";
    /// What was seen of other nodes' database directories.
    pub(crate) const WITNESS: &[u8] = b"witness";
    /// The sequence of the metadata when the directory, which replaced another, had been filled.
    pub(crate) const FILLED_AT: &[u8] = b"filled-at";
    /// How far the scrub is.
    pub(crate) const SCRUB: &[u8] = b"scrub";
    /// Acceptors of the agreement, each under its instance.
    pub(crate) const AGREEMENT: &[u8] = b"agreement/";
}

/// What a node's loops share.
pub struct Shared {
    /// The settings.
    pub config: NodeConfig,
    /// The world.
    pub world: World,
    /// Who this node is.
    pub identity: Identity,
    /// A number that no other process of this node has.
    pub(crate) process: u64,
    /// The clock.
    pub clock: NodeClock,
    /// The watch over the wall clock that feeds it.
    pub clock_gate: ClockGate,
    /// The metadata in force.
    pub view: ArcSwap<View>,
    /// What waits for the disk.
    pub commits: Arc<CommitQueue<Destination>>,
    /// What the commit path has done.
    pub commit_counters: ArcSwap<CommitCounters>,
    /// How many hints are kept for whom.
    pub hint_totals: ArcSwap<HintTotals>,
    /// Where their handoff stands.
    pub(crate) handoff: HandoffBoard,
    /// What was seen of nodes' database directories.
    pub witness: WitnessBoard,
    /// Where partitions stand on the way to purging.
    pub floors: Arc<Floors>,
    /// Which records are known to be damaged.
    pub damage: Arc<DamageBoard>,
    /// Where the comparison of trees with data stands.
    pub(crate) scrub: ScrubBoard,
    /// Where their comparison with other nodes' stands.
    pub(crate) exchange: ExchangeBoard,
    /// Where the filling of its replicas stands.
    pub(crate) fill: FillBoard,
    /// How slow clients are served.
    pub(crate) foreground: Foreground,
    /// The Merkle trees of this node's data.
    pub trees: Arc<Trees>,
    /// The nodes that were met.
    pub directory: watch::Receiver<Directory>,
    /// What the node has done.
    pub counters: Counters,
    /// What each of its loops counts for itself.
    pub loop_metrics: Vec<LoopMetrics>,
    /// What is known of every other node ever linked.
    pub statuses: Mutex<std::collections::BTreeMap<NodeId, Arc<PeerStatus>>>,
    /// The answers of the commit path, for each loop.
    pub(crate) done: Vec<DoneQueue>,
    /// Wakes who waits for a higher clock ceiling, or for a better clock.
    pub ceiling_raised: Notify,
    /// Permits for scans.
    pub scans: Arc<Semaphore>,
    /// Permits for reads that somebody waits for and memory does not answer.
    disk_reads: Arc<Semaphore>,
    /// Client connections open.
    pub connections: AtomicU64,
    /// The agreement on metadata.
    pub changes: Changes,
    /// Wakes who spreads metadata.
    pub metadata_changed: Notify,
    /// No new operations are taken.
    pub draining: AtomicBool,
    /// Cancelled when clients are to connect elsewhere, and other nodes to ask others: connections get a
    /// GOAWAY, no more are accepted, and pings say so.
    pub goaway: CancellationToken,
    /// Why the node stopped taking writes, if it did.
    failure: OnceLock<StopReason>,
    /// Wakes who waits for the node to fail.
    pub failed: Notify,
    raising_ceiling: AtomicBool,
    records_shown: AtomicU64,
    started: Instant,
}

impl Destination {
    /// The loop through which the answer goes.
    pub fn io_loop(&self) -> Option<usize> {
        match self {
            Self::Loop(index) | Self::Peer(index, _) => Some(*index),
            Self::Nowhere => None,
        }
    }
}

impl Shared {
    /// Puts a node's shared state together, before its loops start.
    pub fn new(
        config: NodeConfig,
        world: World,
        identity: Identity,
        view: View,
        commits: Arc<CommitQueue<Destination>>,
        directory: watch::Receiver<Directory>,
        witness: Witness,
    ) -> Arc<Self> {
        let members = view.metadata().map(|it| it.layout().nodes()).unwrap_or_default();
        let witness = WitnessBoard::new(&identity, witness, members.iter().map(|it| it.id));
        let clock = NodeClock::new(identity.clock_ceiling, config.clock_offset_max_ms);
        let start = Reading { wall: world.clock.now(), elapsed_us: 0 };
        let clock_gate = ClockGate::new(config.clock_offset_max_ms, start);
        let scans = Arc::new(Semaphore::new(config.scans_max));
        let disk_reads = Arc::new(Semaphore::new(config.disk_reads_max));
        let done = std::iter::repeat_with(DoneQueue::default).take(config.io_threads).collect();
        let call_bytes_max = config.call_bytes_max / config.io_threads.max(1);
        let loop_metrics = std::iter::repeat_with(|| LoopMetrics::new(call_bytes_max));
        let loop_metrics = loop_metrics.take(config.io_threads).collect();
        let process = xxh3_64_with_seed(b"process", world.seed);
        let shared = Self {
            config,
            world,
            identity,
            process,
            clock,
            clock_gate,
            view: ArcSwap::from_pointee(view),
            commits,
            commit_counters: ArcSwap::default(),
            hint_totals: ArcSwap::default(),
            handoff: HandoffBoard::default(),
            witness,
            floors: Arc::default(),
            damage: Arc::default(),
            scrub: ScrubBoard::default(),
            exchange: ExchangeBoard::default(),
            fill: FillBoard::default(),
            foreground: Foreground::default(),
            trees: Arc::default(),
            directory,
            counters: Counters::default(),
            loop_metrics,
            statuses: Mutex::default(),
            done,
            ceiling_raised: Notify::new(),
            scans,
            disk_reads,
            connections: AtomicU64::new(0),
            changes: Changes::default(),
            metadata_changed: Notify::new(),
            draining: AtomicBool::new(false),
            goaway: CancellationToken::new(),
            failure: OnceLock::new(),
            failed: Notify::new(),
            raising_ceiling: AtomicBool::new(false),
            records_shown: AtomicU64::new(0),
            started: Instant::now(),
        };
        // Until others have looked at the directory (F13).
        shared.floors.set_shut(true);
        shared.look_at_clock();
        if let Some(metadata) = shared.view.load().metadata() {
            shared.configure_trees(metadata);
        }
        Arc::new(shared)
    }

    /// What trees depend on is the same in all metadata of a cluster.
    fn configure_trees(&self, metadata: &Metadata) {
        let cluster_key = metadata.cluster_key();
        let partitions = metadata.layout().partitions();
        self.trees.configure(TreeSettings { cluster_key, partitions });
    }

    /// Takes over the counters of the commit path that has been opened.
    pub fn set_commit_counters(&self, counters: Arc<CommitCounters>) {
        self.commit_counters.store(counters);
    }

    /// The wall clock.
    pub fn wall(&self) -> Timestamp {
        self.world.clock.now()
    }

    /// When the node started: the origin of all its elapsed time.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Microseconds since the node started.
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// The cluster's id; nil before the first layout.
    pub fn cluster(&self) -> ClusterId {
        self.view.load().metadata().map(|it| it.cluster()).unwrap_or_default()
    }

    /// What is known of another node.
    pub fn status(&self, node: NodeId) -> Arc<PeerStatus> {
        let mut statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(statuses.entry(node).or_default())
    }

    /// The same, if anything is.
    pub fn status_if_known(&self, node: NodeId) -> Option<Arc<PeerStatus>> {
        self.statuses.lock().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }

    /// A stamp, once the durable ceiling allows it; or why the clock is not to be stamped by.
    pub async fn stamp(self: &Arc<Self>) -> Result<Hlc, ClockState> {
        loop {
            // Registered before the attempt, so that a ceiling raised in between is not missed.
            let raised = self.ceiling_raised.notified();
            match self.try_stamp() {
                Ok(stamp) => return Ok(stamp),
                Err(NoStamp::Clock(state)) => return Err(state),
                Err(NoStamp::Ceiling) => raised.await,
            }
        }
    }

    /// A stamp, if clock and durable ceiling allow one now.
    pub fn try_stamp(self: &Arc<Self>) -> Result<Hlc, NoStamp> {
        let wall = self.trusted_wall().map_err(NoStamp::Clock)?;
        self.stamp_at(wall).ok_or(NoStamp::Ceiling)
    }

    /// A stamp at a trusted reading of the wall clock, if the durable ceiling allows one now.
    pub(crate) fn stamp_at(self: &Arc<Self>, wall: Timestamp) -> Option<Hlc> {
        let stamp = self.clock.stamp(wall);
        if self.clock.wanted_ceiling(wall).is_some() {
            self.raise_ceiling(wall);
        }
        stamp.ok()
    }

    /// Wakes whoever waits for a stamp.
    pub(crate) fn wake_stampers(&self) {
        self.ceiling_raised.notify_waiters();
        for done in &self.done {
            done.wake();
        }
    }

    /// Not while others have yet to look at the directory: a copy from before would pass for the original
    /// by the ceiling that it reached meanwhile (F13).
    fn raise_ceiling(self: &Arc<Self>, wall: Timestamp) {
        if self.floors.is_shut() || self.raising_ceiling.swap(true, Ordering::AcqRel) {
            return;
        }
        // Asked again: another loop may have raised it meanwhile, and it must not be written lower.
        let Some(ceiling) = self.clock.wanted_ceiling(wall) else {
            self.raising_ceiling.store(false, Ordering::Release);
            return;
        };
        let shared = Arc::downgrade(self);
        let done = move |result: Result<(), StorageError>| {
            let Some(shared) = shared.upgrade() else { return };
            // A failure stops the node by itself; whoever waits for a stamp meets its deadline.
            if let Ok(()) = result {
                shared.clock.raise_ceiling(ceiling);
            }
            // Only now: another loop would still see the old one and write one below this.
            shared.raising_ceiling.store(false, Ordering::Release);
            if result.is_ok() {
                shared.wake_stampers();
            }
        };
        let value = Bytes::copy_from_slice(&ceiling.0.to_be_bytes());
        self.store_system(system_key::CLOCK_CEILING, Some(value), done);
    }

    /// Makes something the node knows about itself durable, then calls `done` on the commit path.
    pub fn store_system(
        &self,
        key: &'static [u8],
        value: Option<Bytes>,
        done: impl FnOnce(Result<(), StorageError>) + Send + 'static,
    ) {
        self.store_system_key(Bytes::from_static(key), value, done);
    }

    /// As `store_system`, under a key that is made up as needed.
    pub fn store_system_key(
        &self,
        key: Bytes,
        value: Option<Bytes>,
        done: impl FnOnce(Result<(), StorageError>) + Send + 'static,
    ) {
        let item = CommitItem::System { key, value, done: Box::new(done) };
        if let Err(CommitItem::System { done, .. }) = self.commits.push_system(item) {
            let message = "the commit path has ended".to_owned();
            done(Err(StorageError::Failed { message }));
        }
    }

    /// As `store_system_key`, and waits until it is durable.
    pub async fn make_durable(&self, key: Bytes, value: Option<Bytes>) -> Result<(), StorageError> {
        let (done, result) = tokio::sync::oneshot::channel();
        self.store_system_key(key, value, move |it| drop(done.send(it)));
        let dropped = |_| StorageError::Failed { message: "the commit path has ended".to_owned() };
        result.await.map_err(dropped)?
    }

    /// Adopts metadata that is durable here, unless it is not newer than what is in force.
    pub fn adopt(&self, metadata: Arc<Metadata>) -> bool {
        let before = self.view.load_full();
        if before.sequence() >= metadata.sequence() {
            return false;
        }
        // Before the first record can come.
        self.configure_trees(&metadata);
        let datacenter = &self.config.datacenter;
        let view = View::new(Arc::clone(&metadata), self.identity.node, datacenter, &before);
        self.view.store(Arc::new(view));
        Counters::count(&self.counters.metadata_adopted);
        self.look_at_clock();
        self.follow_members();
        self.check_place(&metadata);
        let known = before.metadata().map(|it| it.keyspaces()).unwrap_or_default();
        for dropped in known.iter().filter(|it| metadata.keyspace_of_id(it.id).is_none()) {
            let item = CommitItem::DropKeyspace { keyspace: dropped.id };
            // Never refused for lack of room; a closed queue is a node that ends.
            let _ = self.commits.push(|items| items.push_back(item));
        }
        tracing::info!(
            sequence = metadata.sequence(),
            layout = metadata.layout().version(),
            keyspaces = metadata.keyspaces().len(),
            "metadata adopted"
        );
        true
    }

    /// Raises the durable ceiling while records are written, whether or not this node stamps: by that
    /// others tell a copy of its directory from before (F13).
    pub(crate) fn show_ceiling(self: &Arc<Self>) {
        let written = self.commit_counters.load().records_written.load(Ordering::Relaxed);
        let wall = self.believed_wall();
        let news = self.records_shown.load(Ordering::Relaxed) != written;
        if news && self.clock.wanted_ceiling(wall).is_some() {
            self.records_shown.store(written, Ordering::Relaxed);
            self.raise_ceiling(wall);
        }
    }

    /// What the first frame of each link says.
    pub fn hello(&self, io_loop: usize) -> Frame {
        let cluster = self.cluster();
        let cluster_id = if cluster.is_nil() {
            Bytes::new()
        } else {
            Bytes::copy_from_slice(&cluster.to_bytes())
        };
        let hello = Hello {
            protocol: PROTOCOL,
            cluster_id,
            node_id: Bytes::copy_from_slice(&self.identity.node.to_bytes()),
            storage_id: Bytes::copy_from_slice(&self.storage_id().to_bytes()),
            incarnation: self.identity.incarnation,
            io_loop: u32::try_from(io_loop).unwrap_or(u32::MAX),
            datacenter: self.config.datacenter.clone(),
            rack: self.config.rack.clone(),
            client_address: self.identity.client_address.to_string(),
            peer_address: self.identity.peer_address.to_string(),
            capacity: self.config.capacity,
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
            metadata_sequence: self.view.load().sequence(),
            clock_ceiling: self.identity.clock_ceiling.0,
            cluster_name: self.config.cluster_name.clone(),
            seen: self.seen_storages(),
            process: self.process,
            is_open: !self.floors.is_shut(),
            has_opened: self.has_opened(),
        };
        Frame { hello: Some(hello), ..Frame::default() }
    }
}

/// The version of the protocol between nodes. Another one is refused.
pub(crate) const PROTOCOL: u32 = 2;

impl FrameStamp for Shared {
    fn stamp_frame(&self, frame: &mut Frame) {
        frame.clock = self.clock.highest().0;
        frame.layout_hash = self.view.load().layout_hash();
        frame.storage_ids_hash = self.witness.storage_ids_hash();
    }
}
