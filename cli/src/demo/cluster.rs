//! The demo's cluster: nodes of several datacenters in this process, in a temporary folder.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, time::Duration};

use client::{Client, ClientConfig};
use node::{config::NodeConfig, io::RunningNode};
use proto::{CallError, v1};
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use v1::admin_service_client::AdminServiceClient;

use crate::{
    connect::fail,
    failure::{Attempt, Exit, Failure},
    local_node::SharedResources,
};

/// How long to wait for the nodes to agree on something before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often they are asked.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The nodes and their folder.
pub(crate) struct DemoCluster {
    resources: SharedResources,
    seats: Vec<Seat>,
    // Removed last, after the databases in it are closed.
    folder: TempDir,
}

/// A node's place, whether it runs or not.
struct Seat {
    datacenter: String,
    config: NodeConfig,
    node: Option<RunningNode>,
    admin: AdminServiceClient<Channel>,
}

impl DemoCluster {
    /// Starts `datacenters` times `nodes` nodes. Ports are any free ones, or those from `first_port`.
    pub(crate) fn start(
        datacenters: usize,
        nodes: usize,
        first_port: Option<u16>,
    ) -> Result<Self, Failure> {
        let ports_wanted = u16::try_from(2 * datacenters * nodes).unwrap_or(u16::MAX);
        if first_port.is_some_and(|it| it.checked_add(ports_wanted - 1).is_none()) {
            let problem =
                format!("--port is too high: the nodes take {ports_wanted} ports from it on");
            return Err(Failure::usage(problem));
        }
        let folder = TempDir::with_prefix("quorate-demo-")
            .map_err(|error| Failure::file("cannot make a temporary folder", &error))?;
        let resources = SharedResources::for_demo()?;
        let mut it = Self { resources, seats: Vec::new(), folder };
        let mut ports = first_port.map(|first| first..);
        let mut next_port = || ports.as_mut().and_then(Iterator::next).unwrap_or(0);
        for datacenter in 1..=datacenters {
            for node in 1..=nodes {
                let config = NodeConfig {
                    data: it.folder.path().join(format!("dc{datacenter}-n{node}")),
                    listen: loopback(next_port()),
                    peer_listen: loopback(next_port()),
                    datacenter: format!("dc{datacenter}"),
                    rack: format!("rack{node}"),
                    join: it.first_peer().map(|it| it.to_string()).into_iter().collect(),
                    cluster_name: "quorate-demo".to_owned(),
                    ..NodeConfig::default()
                };
                it.seat(config)?;
            }
        }
        Ok(it)
    }

    fn first_peer(&self) -> Option<SocketAddr> {
        self.nodes().next().map(RunningNode::peer_address)
    }

    /// Starts a node, and remembers its addresses so that it can come back to them.
    fn seat(&mut self, mut config: NodeConfig) -> Result<(), Failure> {
        let node = self.resources.start(config.clone())?;
        config.listen = node.client_address();
        config.peer_listen = node.peer_address();
        let address = format!("http://{}", config.listen);
        let endpoint = Endpoint::from_shared(address).expect("an address makes a URI");
        let admin = AdminServiceClient::new(endpoint.timeout(PATIENCE).connect_lazy());
        let datacenter = config.datacenter.clone();
        self.seats.push(Seat { datacenter, config, node: Some(node), admin });
        Ok(())
    }

    /// Where the databases are.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The nodes that run.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &RunningNode> {
        self.seats.iter().filter_map(|it| it.node.as_ref())
    }

    /// Client addresses by datacenter, of nodes that run or not.
    pub(crate) fn addresses(&self) -> BTreeMap<String, Vec<SocketAddr>> {
        let mut addresses: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for seat in &self.seats {
            addresses.entry(seat.datacenter.clone()).or_default().push(seat.config.listen);
        }
        addresses
    }

    /// The datacenters, by name.
    pub(crate) fn datacenter_names(&self) -> Vec<String> {
        self.addresses().into_keys().collect()
    }

    /// Waits until every node sees every other as up.
    pub(crate) async fn await_members(&self) -> Result<(), Failure> {
        let all = self.seats.len();
        self.await_all("the nodes to find each other", |status| {
            status.nodes.iter().filter(|it| it.up).count() == all
        })
        .await
    }

    /// Waits until every node that runs sees the nodes of a datacenter as up, or as down.
    pub(crate) async fn await_datacenter(&self, name: &str, up: bool) -> Result<(), Failure> {
        let what = format!("{name} to be seen as {}", if up { "up" } else { "down" });
        self.await_all(&what, |status| {
            status.nodes.iter().filter(|it| it.datacenter == name).all(|it| it.up == up)
        })
        .await
    }

    /// Waits until every node knows a keyspace.
    pub(crate) async fn await_keyspace(&self, name: &str) -> Result<(), Failure> {
        self.await_all("the keyspace to be known", |status| {
            status.keyspaces.iter().any(|it| it.name == name)
        })
        .await
    }

    /// Plans the first layout.
    pub(crate) async fn plan_layout(&self) -> Result<v1::PlanLayoutResponse, Failure> {
        let mut admin = self.seats[0].admin.clone();
        let planned = admin.plan_layout(v1::PlanLayoutRequest::default()).await;
        planned.map(tonic::Response::into_inner).map_err(|status| failure(&status))
    }

    /// Commits it, and waits until every node has it.
    pub(crate) async fn commit_layout(&self, plan: &v1::PlanLayoutResponse) -> Result<(), Failure> {
        let request =
            v1::CommitLayoutRequest { plan_hash: plan.plan_hash, partitions: plan.partitions };
        let committed = self.seats[0].admin.clone().commit_layout(request).await;
        committed.map_err(|status| failure(&status))?;
        self.await_all("the layout to be known", |it| it.layout_version == plan.layout_version)
            .await
    }

    /// Ends a datacenter's nodes as if their power were cut.
    pub(crate) async fn kill(&mut self, datacenter: &str) {
        for seat in self.seats.iter_mut().filter(|it| it.datacenter == datacenter) {
            if let Some(node) = seat.node.take() {
                node.abort().await;
            }
        }
    }

    /// Starts a datacenter's nodes again, with their data and addresses.
    pub(crate) fn revive(&mut self, datacenter: &str) -> Result<(), Failure> {
        for seat in self.seats.iter_mut().filter(|it| it.datacenter == datacenter) {
            seat.node = Some(self.resources.start(seat.config.clone())?);
        }
        Ok(())
    }

    /// Ends all nodes gracefully and removes their folder.
    pub(crate) async fn stop(mut self) {
        for seat in &mut self.seats {
            if let Some(node) = seat.node.take() {
                node.stop().await;
            }
        }
    }

    /// Asks every node that runs until `holds` is true of all their answers.
    async fn await_all(
        &self,
        what: &str,
        holds: impl Fn(&v1::GetClusterStatusResponse) -> bool,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        for seat in self.seats.iter().filter(|it| it.node.is_some()) {
            let mut admin = seat.admin.clone();
            loop {
                let answer = admin.get_cluster_status(v1::GetClusterStatusRequest {}).await;
                if matches!(&answer, Ok(status) if holds(status.get_ref())) {
                    break;
                }
                if begun.elapsed() > PATIENCE {
                    let waited = PATIENCE.as_secs();
                    let message = format!("waited {waited} s for {what}, in vain");
                    let said = match answer {
                        Ok(_) => "it answers, but not so".to_owned(),
                        Err(status) => CallError::from(&status).to_string(),
                    };
                    return Err(Failure::new("DEMO_STUCK", message)
                        .fact("node", seat.config.listen.to_string())
                        .fact("said", said));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }
}

/// A client of one datacenter.
pub(crate) async fn client(datacenter: &str, addresses: &[SocketAddr]) -> Result<Client, Failure> {
    let config = ClientConfig {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        datacenter: Some(datacenter.to_owned()),
        ..ClientConfig::default()
    };
    let connected = Client::connect(config).await;
    connected.map_err(|error| fail(&error, &Attempt::default()).exit(Exit::Unavailable))
}

fn failure(status: &tonic::Status) -> Failure {
    Failure::call(&CallError::from(status), None, &Attempt { writes: true, ..Attempt::default() })
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
