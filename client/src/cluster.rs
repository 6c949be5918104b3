//! What all clones of a client share: the cluster as last seen, the clock, the settings.

use std::{
    hash::BuildHasher,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use model::{ConsistencyLevel, NodeIndex};
use tokio::sync::Notify;
use tonic::metadata::{Ascii, MetadataValue};

use crate::{config::ClientConfig, connect::Dialer, node::Node, topology::Topology};

/// The cluster as a client knows it. Every call reads it; only `refresh` replaces the view.
pub(crate) struct Cluster {
    config: ClientConfig,
    datacenter: String,
    dialer: Arc<Dialer>,
    view: ArcSwap<View>,
    clock: AtomicU64,
    draws: AtomicU64,
    background: Notify,
    /// Held while a view is compared and replaced, so that an older one cannot overtake.
    showing: Mutex<()>,
    timeout_headers: [(Duration, MetadataValue<Ascii>); 2],
}

/// One state of the cluster, with the nodes to call.
pub(crate) struct View {
    topology: Arc<Topology>,
    /// As the topology's nodes; `None` for one whose address is none.
    nodes: Vec<Option<Arc<Node>>>,
    /// The configured addresses, in order; the same nodes as above where they are.
    seeds: Vec<Arc<Node>>,
    /// Which of the seeds the client was connected to.
    home: usize,
}

impl Cluster {
    pub(crate) fn new(
        config: ClientConfig,
        dialer: Arc<Dialer>,
        datacenter: String,
        view: View,
    ) -> Self {
        let seed = config.seed.unwrap_or_else(drawn_seed);
        let header = |timeout: Duration| {
            let mut request = tonic::Request::new(());
            request.set_timeout(timeout);
            let value = request.metadata().get("grpc-timeout").expect("just set").clone();
            (timeout, value)
        };
        let timeout = config.request_timeout;
        Self {
            timeout_headers: [header(timeout), header(timeout / 2)],
            config,
            datacenter,
            dialer,
            view: ArcSwap::from_pointee(view),
            clock: AtomicU64::new(0),
            draws: AtomicU64::new(seed),
            background: Notify::new(),
            showing: Mutex::new(()),
        }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// The client's own datacenter.
    pub(crate) fn datacenter(&self) -> &str {
        &self.datacenter
    }

    pub(crate) fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.view.load().topology.clone()
    }

    /// Shows a topology to all later calls, unless a newer one is shown already, or it is of another
    /// cluster; returns whether. Nodes that stay keep their connections.
    pub(crate) fn show(&self, topology: Topology) -> bool {
        let _turn = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.view.load();
        if !topology.may_replace(&old.topology) {
            return false;
        }
        let (addresses, nodes) = (&self.config.addresses, old.all_nodes());
        let view = View::new(topology, addresses, old.home, &self.dialer, &nodes);
        self.view.store(Arc::new(view));
        true
    }

    /// The level of calls that name none; `None` if it is not known.
    pub(crate) fn default_level(&self, keyspace: &str, writes: bool) -> Option<ConsistencyLevel> {
        self.view.load().topology.default_level(keyspace, writes)
    }

    /// The highest clock seen.
    pub(crate) fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub(crate) fn clock_cell(&self) -> &AtomicU64 {
        &self.clock
    }

    /// The next random number (splitmix64).
    pub(crate) fn draw(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.draws.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Asks the background task to look at the cluster now.
    pub(crate) fn wake_background(&self) {
        self.background.notify_one();
    }

    pub(crate) async fn woken(&self) {
        self.background.notified().await;
    }

    /// The header of the two timeouts that nearly all calls have, so that it need not be formatted.
    pub(crate) fn timeout_header(&self, timeout: Duration) -> Option<MetadataValue<Ascii>> {
        let prepared = self.timeout_headers.iter().find(|it| it.0 == timeout)?;
        Some(prepared.1.clone())
    }
}

#[expect(clippy::disallowed_types, reason = "only where no seed is given; a simulator gives one")]
fn drawn_seed() -> u64 {
    std::hash::RandomState::new().hash_one(0u8)
}

impl View {
    /// Makes nodes for a topology. Those of `known` with the same address are taken over.
    pub(crate) fn new(
        topology: Topology,
        addresses: &[String],
        home: usize,
        dialer: &Arc<Dialer>,
        known: &[Arc<Node>],
    ) -> Self {
        let find = |address: &str| known.iter().find(|it| &**it.address() == address).cloned();
        let nodes: Vec<_> = topology
            .nodes()
            .iter()
            .map(|it| {
                let make = || match Node::new(&it.address, dialer) {
                    Ok(node) => Some(Arc::new(node)),
                    Err(error) => {
                        tracing::warn!(node = %it.node_id, %error, "a node cannot be called");
                        None
                    }
                };
                find(&it.address).or_else(make)
            })
            .collect();
        let in_layout =
            |address: &str| nodes.iter().flatten().find(|it| &**it.address() == address).cloned();
        let seeds = addresses.iter().filter_map(|address| {
            let make = || Node::new(address, dialer).ok().map(Arc::new);
            in_layout(address).or_else(|| find(address)).or_else(make)
        });
        let seeds = seeds.collect();
        Self { topology: Arc::new(topology), nodes, seeds, home }
    }

    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// A node of the layout that can be called.
    pub(crate) fn node(&self, index: NodeIndex) -> Option<&Arc<Node>> {
        self.nodes.get(index.index())?.as_ref()
    }

    /// The nodes of the configured addresses.
    pub(crate) fn seeds(&self) -> &[Arc<Node>] {
        &self.seeds
    }

    /// The node that the client was connected to.
    pub(crate) fn home(&self) -> Option<&Arc<Node>> {
        self.seeds.get(self.home)
    }

    /// True if the layout names the node under this address.
    pub(crate) fn is_in_layout(&self, node: &Arc<Node>) -> bool {
        self.nodes.iter().flatten().any(|it| Arc::ptr_eq(it, node))
    }

    /// Every node once: those of the layout, then seeds outside it.
    pub(crate) fn all_nodes(&self) -> Vec<Arc<Node>> {
        let outside = self.seeds.iter().filter(|it| !self.is_in_layout(it));
        self.nodes.iter().flatten().chain(outside).cloned().collect()
    }
}
