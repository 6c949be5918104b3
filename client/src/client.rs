//! The handle that everything starts from.

use std::sync::Arc;

use proto::{CallError, CallOutcome, Reason};
use tokio::task::AbortHandle;

use crate::{
    admin::Admin,
    call::no_node,
    cluster::{Cluster, View},
    config::ClientConfig,
    connect::Dialer,
    error::Error,
    keyspace::Keyspace,
    node::Node,
    refresh,
    topology::Topology,
};

/// A connection to a cluster. Cheap to clone; clones share connections, clock and topology.
///
/// Belongs to the tokio runtime in which it was made: its connections live there. When the last
/// clone is dropped, its connections close and its background task ends.
#[derive(Clone)]
pub struct Client {
    cluster: Arc<Cluster>,
    _background: Arc<Background>,
}

/// Ends the background task with the last clone.
struct Background(AbortHandle);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Connects to the first of the addresses that answers, and learns the cluster from it.
    ///
    /// # Errors
    /// `INVALID_FIELD` if the settings cannot work, also if the cluster has no such datacenter;
    /// otherwise why the last address did not answer.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), client::Error> {
    /// let config = client::ClientConfig::new(["10.0.0.1:7400", "10.0.0.2:7400"]);
    /// let client = client::Client::connect(config).await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect(config: ClientConfig) -> Result<Self, Error> {
        config.validate()?;
        let config = config.bounded();
        let dialer = Arc::new(Dialer::new(&config));
        let mut seeds = Vec::with_capacity(config.addresses.len());
        for address in &config.addresses {
            let seed = Node::new(address, &dialer).map_err(|error| {
                let cause = CallError::new(Reason::InvalidField, error.to_string());
                Error::refused(CONNECT, cause.at_field("addresses"))
            })?;
            seeds.push(Arc::new(seed));
        }
        let (home, topology) = first_topology(&config, &seeds).await?;
        let datacenter = match &config.datacenter {
            None => topology.local_datacenter().to_owned(),
            Some(name) => check_datacenter(name, &topology)?,
        };
        // A seed that the layout knows by another address would keep a second connection to it.
        let known: &[_] =
            if topology.nodes().is_empty() { &seeds } else { &in_layout(seeds, &topology) };
        let view = View::new(topology, &config.addresses, home, &dialer, known);
        let cluster = Arc::new(Cluster::new(config, dialer, datacenter, view));
        let background = tokio::spawn(refresh::run(cluster.clone())).abort_handle();
        Ok(Self { cluster, _background: Arc::new(Background(background)) })
    }

    /// Connects to one node, `host:port`, with default settings.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub async fn connect_to(address: impl Into<String>) -> Result<Self, Error> {
        Self::connect(ClientConfig::new([address])).await
    }

    /// A handle to a keyspace. Nothing is sent: whether it exists shows with the first call.
    pub fn keyspace(&self, name: impl Into<Arc<str>>) -> Keyspace {
        Keyspace::new(self.clone(), name.into())
    }

    /// Looks at the cluster and changes its shape.
    pub fn admin(&self) -> Admin {
        Admin::new(self.clone())
    }

    /// The cluster as this client sees it now: indexes in replies are of its nodes.
    pub fn topology(&self) -> Arc<Topology> {
        self.cluster.topology()
    }

    /// The datacenter that serves this client, and that LOCAL levels mean.
    pub fn datacenter(&self) -> &str {
        self.cluster.datacenter()
    }

    /// The highest clock that this client has seen: a reading as in versions. Give it to
    /// [`observe_clock`](Self::observe_clock) of another client, and that one's calls come after.
    pub fn clock(&self) -> u64 {
        self.cluster.clock()
    }

    /// Takes over a clock that another client has seen. Only readings that came from a cluster's node
    /// may be given: calls with a clock far ahead are refused.
    pub fn observe_clock(&self, clock: u64) {
        self.cluster.observe(clock);
    }

    /// Asks for the topology now, instead of when it is due.
    pub async fn refresh_topology(&self) {
        refresh::refresh(&self.cluster).await;
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }
}

const CONNECT: &str = "connect";

/// The topology of the first node that answers, and which seed that was.
async fn first_topology(
    config: &ClientConfig,
    seeds: &[Arc<Node>],
) -> Result<(usize, Topology), Error> {
    let mut last = no_node(CONNECT, false);
    for (position, node) in seeds.iter().enumerate() {
        let attempts = u32::try_from(position + 1).unwrap_or(u32::MAX);
        let fail =
            |cause| Error::new(CONNECT, false, Some(node.address().clone()), attempts, cause);
        match refresh::fetch(config, node, 0).await {
            Err(failure) => last = fail(failure.error),
            Ok(response) => match Topology::parse(response, None) {
                Ok(topology) => return Ok((position, topology)),
                Err(error) => {
                    let message = format!("the topology cannot be used: {error}");
                    last = fail(CallError::new(Reason::MalformedMessage, message));
                }
            },
        }
    }
    Err(last)
}

fn check_datacenter(name: &str, topology: &Topology) -> Result<String, Error> {
    let known = topology.datacenters();
    if known.is_empty() || known.contains(&name) {
        return Ok(name.to_owned());
    }
    let message = format!("there is no datacenter {name}: the cluster has {}", known.join(", "));
    let mut cause = CallError::new(Reason::InvalidField, message).at_field("datacenter");
    cause.outcome = CallOutcome::NotApplied;
    Err(Error::refused(CONNECT, cause))
}

fn in_layout(mut seeds: Vec<Arc<Node>>, topology: &Topology) -> Vec<Arc<Node>> {
    let known = |it: &Arc<Node>| topology.nodes().iter().any(|node| node.address == **it.address());
    seeds.retain(known);
    seeds
}
