//! One node as a simulated host.

use std::{io, net::SocketAddr, sync::Arc};

use node::{
    config::NodeConfig,
    io::{Blocking, Node, StartError, World},
    storage::{StorageError, cached::CachedStorage, memory::MemoryStorage},
};
use tokio_util::sync::CancellationToken;

use crate::network::{SimClock, SimNetwork};

/// The ports of every simulated node.
pub(crate) const CLIENT_PORT: u16 = 7400;
pub(crate) const PEER_PORT: u16 = 7401;

/// What one simulated node is told.
#[derive(Clone)]
pub struct HostSettings {
    /// The host's name.
    pub name: String,
    /// The datacenter.
    pub datacenter: String,
    /// Hosts to find the cluster through.
    pub join: Vec<String>,
    /// The node's part of the simulation's seed.
    pub seed: u64,
    /// Its disk, which outlives its process.
    pub disk: MemoryStorage,
}

/// Small, so that simulated nodes read from their disks too.
const ROW_CACHE_BYTES: usize = 64 << 10;

/// Why a simulated node ended.
#[derive(Debug)]
pub enum HostError {
    /// It did not start.
    Start(StartError),
    /// Its network refused a port.
    Network(io::Error),
    /// Its disk failed.
    Storage(StorageError),
}

impl std::fmt::Display for HostError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a simulated node ended: {self:?}")
    }
}

impl std::error::Error for HostError {}

/// Runs a node on its host until the simulation ends it.
pub async fn run_host(settings: HostSettings) -> Result<(), HostError> {
    let address = |port| SocketAddr::new(turmoil::lookup(settings.name.as_str()), port);
    let config = NodeConfig {
        listen: address(CLIENT_PORT),
        peer_listen: address(PEER_PORT),
        datacenter: settings.datacenter.clone(),
        join: settings.join.iter().map(|it| format!("{it}:{PEER_PORT}")).collect(),
        ..NodeConfig::default()
    };
    let world = World {
        clock: Arc::new(SimClock),
        network: Arc::new(SimNetwork),
        storage: Arc::new(CachedStorage::new(settings.disk, ROW_CACHE_BYTES)),
        seed: settings.seed,
        blocking: Blocking::Inline,
    };
    let clients = world.network.listen(config.listen).await.map_err(HostError::Network)?;
    let peers = world.network.listen(config.peer_listen).await.map_err(HostError::Network)?;
    let (node, events) = Node::open(config, world).map_err(HostError::Start)?;
    let commits = tokio::spawn(node.clone().run_commits());
    let stop = CancellationToken::new();
    node.run_loop(0, clients, peers, Some(events), stop).await;
    commits.abort();
    Ok(())
}
