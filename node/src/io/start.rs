//! Starts a node.

mod error;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::Duration,
};

use model::Metadata;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    accept::{serve_clients, serve_peers},
    gossip::{Gossip, GossipEvent},
    io_loop::IoLoop,
    links::Links,
    metrics_http::serve_metrics,
    real::{SystemClock, TcpNetwork, system_seed},
    recall::{open_identity, open_witness, sweep_dropped_keyspaces},
    running::RunningNode,
    serve::deliver,
    world::{Blocking, Listener, Network, World},
};
pub use error::StartError;

use crate::{
    commit::{CommitQueue, CommitSettings, CommitStage, Committer, run_as_task, run_on_thread},
    config::NodeConfig,
    membership::Member,
    shared::{Shared, system_key},
    snapshot::{SnapshotFolder, forget_restored, is_restored},
    storage::{
        Space, Storage, StorageError,
        cached::CachedStorage,
        rocks::{RocksShared, RocksStorage},
    },
    view::View,
};

/// Starts a node in its data directory. Returns when it listens. May be called from anywhere, async
/// code included: it blocks for as long as the database takes to open.
pub fn start(config: NodeConfig, resources: &RocksShared) -> Result<RunningNode, StartError> {
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| start_here(config, resources));
        starting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn start_here(config: NodeConfig, resources: &RocksShared) -> Result<RunningNode, StartError> {
    config.validate()?;
    std::fs::create_dir_all(&config.data)?;
    let restored = config.restored || is_restored(&config.data);
    let engine = RocksStorage::open(&config.data.join("rocksdb"), resources)?;
    let storage = CachedStorage::new(engine, resources.row_cache_bytes());
    let snapshots = SnapshotFolder::new(&config.data, config.snapshots_max);
    if let Err(error) = snapshots.sweep() {
        tracing::warn!(%error, "what a crash has left of a snapshot stays for now");
    }
    let world = World {
        clock: Arc::new(SystemClock),
        network: Arc::new(TcpNetwork { shared_ports: config.io_threads > 1 }),
        storage: Arc::new(storage),
        snapshots: Some(Arc::new(snapshots)),
        seed: system_seed()?,
        blocking: Blocking::Threads,
    };
    let runtimes = (0..config.io_threads).map(|_| runtime()).collect::<Result<Vec<_>, _>>()?;
    let mut listeners = Vec::new();
    let mut bound = NodeConfig { restored, ..config.clone() };
    for runtime in &runtimes {
        let both = runtime.block_on(async {
            Ok::<_, StartError>((
                listen(&*world.network, bound.listen).await?,
                listen(&*world.network, bound.peer_listen).await?,
            ))
        })?;
        // Port 0 is decided by the first loop; the others share its ports.
        bound.listen = both.0.local_address()?;
        bound.peer_listen = both.1.local_address()?;
        listeners.push(both);
    }
    let mut metrics = None;
    if let (Some(address), Some(runtime)) = (bound.metrics_listen, runtimes.first()) {
        // One loop serves them: a port that is shared would hide that another node has it.
        let network = TcpNetwork { shared_ports: false };
        let listener = runtime.block_on(listen(&network, address))?;
        bound.metrics_listen = Some(listener.local_address()?);
        metrics = Some(listener);
    }
    let (node, events) = Node::open(bound, world)?;
    forget_restored(&config.data)?;
    await_clock(&node.shared);
    let commits = node.run_commits_on_thread()?;
    let stop = CancellationToken::new();
    let mut events = Some(events);
    let mut threads = Vec::new();
    for (index, (runtime, (clients, peers))) in runtimes.into_iter().zip(listeners).enumerate() {
        let (node, stop, events) = (node.clone(), stop.clone(), events.take());
        let metrics = metrics.take().map(|it| node.run_metrics(it, stop.clone()));
        let run = move || {
            let _metrics = metrics.map(|it| runtime.spawn(it));
            runtime.block_on(node.run_loop(index, clients, peers, events, stop));
            runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
        };
        threads.push(spawn(&format!("io-{index}"), run)?);
    }
    Ok(RunningNode { node, stop, threads, commits: Some(commits) })
}

/// Waits until the others would believe this node's clock (C5): it resumes at its durable ceiling,
/// which a step back of the wall clock leaves far ahead.
#[expect(clippy::disallowed_methods, reason = "before anything runs that could be kept waiting")]
fn await_clock(shared: &Shared) {
    while let Some(wait) = clock_wait(shared) {
        std::thread::sleep(wait);
    }
}

fn clock_wait(shared: &Shared) -> Option<Duration> {
    let believed_ms = shared.wall().0.saturating_add(shared.config.clock_offset_max_ms);
    let behind_ms = shared.clock.highest().ms().saturating_sub(believed_ms);
    if behind_ms > CLOCK_WAIT_MS_MAX {
        tracing::warn!(
            behind_ms,
            "the wall clock is far behind the stamps of this node's last run"
        );
        shared.resume_behind();
        return None;
    }
    if behind_ms > 0 {
        tracing::warn!(behind_ms, "waiting for the wall clock");
    }
    (behind_ms > 0).then(|| Duration::from_millis(behind_ms))
}

/// A wait that is not worth a person's attention.
const CLOCK_WAIT_MS_MAX: u64 = 5_000;

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("blocking")
        .build()
}

#[expect(clippy::disallowed_methods, reason = "the threads of a node that runs by itself")]
pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(run)
}

async fn listen(
    network: &dyn Network,
    address: SocketAddr,
) -> Result<Box<dyn Listener>, StartError> {
    let failed = |source| StartError::Listen { address, source };
    network.listen(address).await.map_err(failed)
}

/// Reads that miss the block cache, and scans, at once; more wait.
const BLOCKING_THREADS_MAX: usize = 16;
/// How long reads under way are waited for when a node ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// A node whose loops are run by the caller: on threads in `start`, as tasks in a simulation.
#[derive(Clone)]
pub struct Node {
    /// What its loops share.
    pub shared: Arc<Shared>,
    pub(super) gossip: Arc<Gossip>,
    links: Links,
    /// Its loops.
    pub loops: Vec<Arc<IoLoop>>,
}

impl Node {
    /// Reads what the node knows about itself and puts it together. The addresses in `config` are
    /// those bound. Nothing runs yet.
    pub fn open(
        config: NodeConfig,
        world: World,
    ) -> Result<(Self, mpsc::Receiver<GossipEvent>), StartError> {
        let identity = open_identity(&config, &world)?;
        let metadata = match world.storage.get(Space::System, system_key::METADATA)? {
            None => None,
            Some(bytes) => {
                let damaged = |_| StartError::Damaged { what: "metadata" };
                Some(Arc::new(Metadata::decode(&bytes).map_err(damaged)?))
            }
        };
        let known = metadata.iter().flat_map(|it| it.layout().nodes());
        if let Some(own) = known.clone().find(|it| it.id == identity.node)
            && own.datacenter != config.datacenter
        {
            let (layout, configured) = (own.datacenter.clone(), config.datacenter.clone());
            return Err(StartError::DatacenterChanged { layout, configured });
        }
        let known: Vec<_> = known.map(|it| Member::new(it, 0)).collect();
        let view = metadata.map_or_else(View::default, |metadata| {
            View::new(metadata, identity.node, &config.datacenter, &View::default())
        });
        let (gossip, events) = Gossip::new();
        for member in known.iter().filter(|it| it.node() != identity.node) {
            gossip.learn(member);
        }
        let commits = Arc::new(CommitQueue::new(config.commit_queue));
        let directory = gossip.directory();
        let witness = open_witness(&world)?;
        let shared = Shared::new(config, world, identity, view, commits, directory, witness);
        sweep_dropped_keyspaces(&shared)?;
        let loops = (0..shared.config.io_threads).map(|it| IoLoop::new(Arc::clone(&shared), it));
        let loops = loops.collect();
        let (origins, refusals) = (Arc::default(), Arc::default());
        let links = Links { gossip: Arc::clone(&gossip), origins, refusals };
        Ok((Self { shared, gossip, links, loops }, events))
    }

    /// For how long the others would not believe this node's clock: a start waits for that (C5), if
    /// it is worth waiting for; else the node begins suspended.
    pub fn clock_wait(&self) -> Option<Duration> {
        clock_wait(&self.shared)
    }

    fn run_commits_on_thread(&self) -> Result<JoinHandle<Committer<Arc<dyn Storage>>>, StartError> {
        let (delivering, failing) = (Arc::clone(&self.shared), Arc::clone(&self.shared));
        let committer = self.committer()?;
        let queue = Arc::clone(&self.shared.commits);
        let thread = CommitThread(Arc::clone(&self.shared));
        let deliver = move |answers: &mut _| {
            let _thread = &thread;
            deliver(&delivering, answers);
        };
        Ok(run_on_thread(queue, committer, deliver, move |error| failing.fail(error))?)
    }

    fn committer(&self) -> Result<Committer<Arc<dyn Storage>>, StorageError> {
        let storage = Arc::new(Arc::clone(&self.shared.world.storage));
        let NodeConfig { hint_bytes_per_target_max, any_hint_bytes_max, keeps_trees, .. } =
            self.shared.config;
        let trees = keeps_trees.then(|| Arc::clone(&self.shared.trees));
        let settings = CommitSettings {
            hint_bytes_per_target_max,
            any_hint_bytes_max,
            trees,
            floors: Arc::clone(&self.shared.floors),
            damage: Arc::clone(&self.shared.damage),
            hash_seed: self.shared.world.seed,
            ..CommitSettings::default()
        };
        let committer = Committer::open(storage, settings)?;
        self.shared.set_commit_counters(committer.counters());
        self.shared.hint_totals.store(committer.hint_totals());
        Ok(committer)
    }

    /// Runs the commit path as a task, for simulations. `pace` is awaited at each stage of a group.
    pub async fn run_commits(self, pace: impl AsyncFnMut(CommitStage)) -> Result<(), StorageError> {
        let committer = self.committer()?;
        let queue = Arc::clone(&self.shared.commits);
        let (delivering, failing) = (&self.shared, &self.shared);
        run_as_task(
            queue,
            committer,
            pace,
            |answers| deliver(delivering, answers),
            |error| failing.fail(error),
        )
        .await;
        Ok(())
    }

    /// Serves metrics until `stop`, beside one of the loops.
    pub fn run_metrics(
        &self,
        listener: Box<dyn Listener>,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + use<> {
        serve_metrics(Arc::clone(&self.shared), listener, stop)
    }

    /// Runs one loop until `stop`. `events` comes with the first loop.
    pub async fn run_loop(
        self,
        index: usize,
        clients: Box<dyn Listener>,
        peers: Box<dyn Listener>,
        events: Option<mpsc::Receiver<GossipEvent>>,
        stop: CancellationToken,
    ) {
        let io = Arc::clone(&self.loops[index]);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(Arc::clone(&io).run_answers());
        tasks.spawn(Arc::clone(&io).run_own_reads());
        tasks.spawn(Arc::clone(&io).run_alarms());
        tasks.spawn(Arc::clone(&io).run_pings());
        if index == 0 {
            tasks.spawn(Arc::clone(&io).run_handoff());
            tasks.spawn(Arc::clone(&io).run_exchange());
            tasks.spawn(Arc::clone(&io).run_dirty_marks());
            tasks.spawn(Arc::clone(&io).run_purges());
            tasks.spawn(Arc::clone(&io).run_sweeps());
            tasks.spawn(Arc::clone(&io).run_heals());
            tasks.spawn(Arc::clone(&io).run_scrub());
            tasks.spawn(Arc::clone(&io).run_fill());
        }
        tasks.spawn(self.links.clone().run(Arc::clone(&io)));
        if let Some(events) = events {
            tasks.spawn(Arc::clone(&self.gossip).run(Arc::clone(&io), events));
        }
        let (reporter, health) = tonic_health::server::health_reporter();
        let shared = Arc::clone(&self.shared);
        tasks.spawn(async move { report_health(&shared, &reporter).await });
        let serving = serve_peers(Arc::clone(&io), self.links.clone(), peers, stop.clone());
        tasks.spawn(serving);
        let goaway = self.shared.goaway.clone();
        let served = async {
            serve_clients(io, clients, health, goaway.clone()).await;
            if goaway.is_cancelled() {
                // The other nodes are served until the end.
                stop.cancelled().await;
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            Some(_) = tasks.join_next() => self.shared.lost("a task of an I/O loop"),
            () = served => self.shared.lost("the clients' port"),
        }
        tasks.abort_all();
    }
}

/// Dropped with what the commit thread owns: by a panic there, the node stops.
struct CommitThread(Arc<Shared>);

impl Drop for CommitThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lost("the commit thread");
        }
    }
}

/// Serving: there is a layout, clock and disk can be relied on, and the node is not stopping.
async fn report_health(shared: &Shared, reporter: &tonic_health::server::HealthReporter) {
    let mut before = None;
    loop {
        let draining = shared.draining.load(Ordering::Relaxed);
        let laid_out = shared.view.load().metadata().is_some();
        let coordinates = shared.clock_gate.state().coordinates();
        let serving = laid_out && coordinates && !draining && shared.failure().is_none();
        if before != Some(serving) {
            let status = match serving {
                true => tonic_health::ServingStatus::Serving,
                false => tonic_health::ServingStatus::NotServing,
            };
            for service in ["", "quorate.v1.KvService"] {
                reporter.set_service_status(service, status).await;
            }
            let alive = tonic_health::ServingStatus::Serving;
            reporter.set_service_status("quorate.v1.AdminService", alive).await;
            before = Some(serving);
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

const HEALTH_INTERVAL: Duration = Duration::from_millis(100);
