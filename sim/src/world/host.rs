//! One node as a simulated host.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use node::{
    commit::QueueLimits,
    config::NodeConfig,
    io::{Blocking, DiskPace, Node, StartError, World},
    storage::{StorageError, cached::CachedStorage, memory::MemoryStorage},
};
use tokio_util::sync::CancellationToken;

use crate::shape::Bounds;

use super::{
    controls::{Controls, SimClock},
    network::SimNetwork,
};

/// The port of every simulated node for clients.
pub(crate) const CLIENT_PORT: u16 = 7400;
/// The port of every simulated node for peers.
pub(crate) const PEER_PORT: u16 = 7401;

/// What one simulated node is told.
#[derive(Clone)]
pub(crate) struct HostSettings {
    /// The host's name.
    pub name: String,
    /// The datacenter.
    pub datacenter: String,
    /// The rack.
    pub rack: String,
    /// Hosts to find the cluster through.
    pub join: Vec<String>,
    /// The node's part of the simulation's seed.
    pub seed: u64,
    /// Its row cache.
    pub row_cache_bytes: usize,
    /// Its bounds.
    pub bounds: Bounds,
    /// Its disk, which outlives its process.
    pub disk: MemoryStorage,
    /// What the run does to it.
    pub controls: Arc<Controls>,
}

/// Why a simulated node did not start, or ended.
#[derive(Debug, thiserror::Error)]
enum HostError {
    #[error("{0}")]
    Start(#[from] StartError),
    #[error("a port is refused: {0}")]
    Network(#[from] io::Error),
    #[error("{0}")]
    Storage(#[from] StorageError),
    #[error("{0}")]
    Stopped(String),
    #[error("it was asked to stop")]
    Asked,
}

/// Runs a node on its host until the simulation ends it, or it ends itself: then the controls say
/// why, as a supervisor would know.
pub(crate) async fn run_host(settings: HostSettings) {
    let controls = Arc::clone(&settings.controls);
    let Err(error) = live(settings).await else { return };
    controls.end(error.to_string());
    // What has returned cannot be crashed, and its tasks would live on until the next start.
    std::future::pending().await
}

async fn live(settings: HostSettings) -> Result<(), HostError> {
    let controls = Arc::clone(&settings.controls);
    let asked = controls.stop();
    let config = config(&settings, &controls);
    let world = World {
        clock: Arc::new(SimClock(Arc::clone(&controls))),
        network: Arc::new(SimNetwork(Some(Arc::clone(&controls)))),
        storage: Arc::new(CachedStorage::new(settings.disk, settings.row_cache_bytes)),
        snapshots: None,
        seed: settings.seed,
        blocking: Blocking::Simulated(Arc::clone(&controls) as Arc<dyn DiskPace>),
    };
    let clients = world.network.listen(config.listen).await?;
    let peers = world.network.listen(config.peer_listen).await?;
    let (node, events) = Node::open(config, world)?;
    controls.set_node(Some(node.clone()));
    while let Some(wait) = node.clock_wait() {
        tokio::time::sleep(wait).await;
    }
    let pacing = Arc::clone(&controls);
    let commits = node.clone().run_commits(async move |stage| pacing.pace(stage).await);
    let stop = CancellationToken::new();
    let (shared, loops) = (Arc::clone(&node.shared), node.loops.clone());
    let leaving = node.clone();
    let serving = node.run_loop(0, clients, peers, Some(events), stop.clone());
    let stopping = async {
        asked.cancelled().await;
        leaving.leave().await;
    };
    let watching = async {
        loop {
            let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            controls.tasks.store(tasks, Ordering::Relaxed);
            let overdue = loops.iter().map(|it| it.overdue(LATE_US)).sum();
            controls.overdue.fetch_max(overdue, Ordering::Relaxed);
            if let Some(reason) = shared.failure() {
                return reason.to_string();
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    };
    let (mut commits, mut serving) = (pin!(commits), pin!(serving));
    tokio::select! {
        biased;
        result = &mut commits => result?,
        () = &mut serving => {}
        reason = watching => return Err(HostError::Stopped(reason)),
        () = stopping => {
            stop.cancel();
            shared.commits.close();
            serving.await;
            commits.await?;
            return Err(HostError::Asked);
        }
    }
    Err(HostError::Stopped("its loop has ended".to_owned()))
}

fn config(settings: &HostSettings, controls: &Controls) -> NodeConfig {
    let address = |port| SocketAddr::new(turmoil::lookup(settings.name.as_str()), port);
    let mut no_hints_for = vec![settings.datacenter.clone()];
    no_hints_for.retain(|_| settings.bounds.no_hints);
    NodeConfig {
        listen: address(CLIENT_PORT),
        peer_listen: address(PEER_PORT),
        datacenter: settings.datacenter.clone(),
        rack: settings.rack.clone(),
        join: settings.join.iter().map(|it| format!("{it}:{PEER_PORT}")).collect(),
        operations_in_flight_max: settings.bounds.operations,
        peer_queue_bytes_max: settings.bounds.peer_queue_bytes,
        hint_bytes_per_target_max: settings.bounds.hint_bytes,
        hint_age_ms_max: settings.bounds.hint_age_ms,
        any_hint_bytes_max: settings.bounds.any_hint_bytes,
        commit_queue: QueueLimits {
            items_max: settings.bounds.commit_queue_items,
            ..QueueLimits::default()
        },
        no_hints_for,
        replace: controls.replaces(),
        exchange_interval_ms: settings.bounds.exchange_interval_ms,
        exchange_settle_ms: settings.bounds.exchange_settle_ms,
        fence_lag_ms: settings.bounds.fence_lag_ms,
        purge_interval_ms: settings.bounds.purge_interval_ms,
        scrub_interval_ms: settings.bounds.scrub_interval_ms,
        ..NodeConfig::default()
    }
}

/// How much later than a deadline its alarm may ring.
const LATE_US: u64 = 50_000;

/// How soon a supervisor notices.
const WATCH_INTERVAL: Duration = Duration::from_millis(20);
