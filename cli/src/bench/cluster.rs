//! The cluster under a benchmark: node processes on this machine, three in each datacenter.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use client::{Client, ClientConfig};
use model::{ConsistencyLevel, Key, NodeId};
use proto::v1::{self, kv_service_client::KvServiceClient};
use serde::Serialize;
use tempfile::TempDir;
use tokio::time::Instant;
use tonic::transport::Endpoint;

use super::{
    children::{NodeAddress, Place, Server},
    process::resident_bytes,
    run::make_keyspace,
};
use crate::{
    args::Global,
    connect::fail,
    failure::{Attempt, Failure},
};

/// The keyspace that is made.
pub(super) const KEYSPACE: &str = "bench";

/// Nodes of a datacenter.
pub(super) const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// One kill and start.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Restart {
    /// From the start of the process until it listened.
    pub(super) listening_ms: f64,
    /// From the start of the process until it answered a read.
    pub(super) serving_ms: f64,
}

/// The nodes and their folder.
pub(super) struct BenchCluster {
    nodes: Vec<Server>,
    datacenters: usize,
    options: &'static [&'static str],
    /// The last nodes, in their order, while they are stopped.
    stopped: Vec<Stopped>,
    // Removed last, after the nodes are gone.
    folder: TempDir,
}

/// A node that does not run, and is to come back.
struct Stopped {
    /// Where it was, and will be.
    address: NodeAddress,
    /// The node whose place it takes with an empty directory.
    replaces: Option<String>,
}

impl BenchCluster {
    /// Starts the nodes of some datacenters, with further options; they are no cluster yet.
    pub(super) async fn start(
        folder: Option<&Path>,
        datacenters: usize,
        options: &'static [&'static str],
    ) -> Result<Self, Failure> {
        let made = match folder {
            Some(folder) => TempDir::with_prefix_in("quorate-bench-", folder),
            None => TempDir::with_prefix("quorate-bench-"),
        };
        let folder =
            made.map_err(|error| Failure::file("cannot make a temporary folder", &error))?;
        let (nodes, stopped) = (Vec::new(), Vec::new());
        let mut it = Self { nodes, datacenters, options, stopped, folder };
        while it.nodes.len() < it.size() {
            it.start_next(NodeAddress::any(), None).await?;
        }
        Ok(it)
    }

    /// How many nodes there are, stopped ones with them.
    fn size(&self) -> usize {
        self.datacenters * NODES
    }

    async fn start_next(
        &mut self,
        address: NodeAddress,
        replaces: Option<String>,
    ) -> Result<(), Failure> {
        let number = self.nodes.len() + 1;
        let place = Place { datacenter: self.nodes.len() / NODES + 1, rack: number };
        let join = self.nodes.first().and_then(|it| it.peer_address);
        let replace = replaces.map(|it| format!("--replace={it}"));
        let options: Vec<&str> = self.options.iter().copied().chain(replace.as_deref()).collect();
        let data = self.data(number);
        self.nodes.push(Server::node(&data, place, address, join, &options).await?);
        Ok(())
    }

    fn data(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("n{number}"))
    }

    /// The nodes.
    pub(super) fn nodes(&self) -> &[Server] {
        &self.nodes
    }

    /// Their processes.
    pub(super) fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|it| it.pid).collect()
    }

    /// A client with one connection to each node.
    pub(super) async fn client(&self, global: &Global) -> Result<Client, Failure> {
        self.client_of(self.nodes.iter(), global).await
    }

    async fn client_of<'a>(
        &self,
        nodes: impl Iterator<Item = &'a Server>,
        global: &Global,
    ) -> Result<Client, Failure> {
        let config = ClientConfig {
            addresses: nodes.map(|it| it.client_address.to_string()).collect(),
            request_timeout: global.timeout,
            ..ClientConfig::default()
        };
        Client::connect(config).await.map_err(|error| fail(&error, &Attempt::default()))
    }

    /// Commits the first layout and makes the keyspace.
    pub(super) async fn make(&self, global: &Global) -> Result<(), Failure> {
        self.await_up(global).await?;
        let admin = self.client(global).await?.admin();
        let change = Attempt { writes: true, ..Attempt::default() };
        let plan = admin.plan_layout(0).await.map_err(|error| fail(&error, &change))?;
        let committed = admin.commit_layout(plan.plan_hash, plan.partitions).await;
        committed.map_err(|error| fail(&error, &change))?;
        self.await_status("the layout", global, |it| it.layout_version > 0).await?;
        make_keyspace(&self.client(global).await?, KEYSPACE).await?;
        let known =
            |it: &v1::GetClusterStatusResponse| it.keyspaces.iter().any(|it| it.name == KEYSPACE);
        self.await_status("the keyspace", global, known).await
    }

    /// Waits until every node sees every other that runs, and no other.
    pub(super) async fn await_up(&self, global: &Global) -> Result<(), Failure> {
        let running = self.nodes.len();
        let all_up = |it: &v1::GetClusterStatusResponse| {
            it.nodes.len() == self.size() && it.nodes.iter().filter(|it| it.up).count() == running
        };
        self.await_status("the nodes to see who is up", global, all_up).await
    }

    /// Administration calls to each node that runs.
    pub(super) async fn admins(&self, global: &Global) -> Result<Vec<client::Admin>, Failure> {
        let mut admins = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let admin = self.client_of([node].into_iter(), global).await?.admin();
            let admin = admin.at_node(&node.client_address.to_string());
            admins.push(admin.map_err(|error| fail(&error, &Attempt::default()))?);
        }
        Ok(admins)
    }

    /// The figures of each node that runs, by name.
    pub(super) async fn figures(
        &self,
        global: &Global,
    ) -> Result<Vec<BTreeMap<String, u64>>, Failure> {
        let mut figures = Vec::with_capacity(self.nodes.len());
        for admin in self.admins(global).await? {
            let status = admin.status().await.map_err(|error| fail(&error, &Attempt::default()))?;
            figures.push(status.counters.into_iter().collect());
        }
        Ok(figures)
    }

    /// Kills the last nodes, so many, with SIGKILL, and waits until the others know.
    pub(super) async fn stop_last(&mut self, count: usize, global: &Global) -> Result<(), Failure> {
        let staying = self.nodes.len().checked_sub(count).expect("so many run");
        for node in self.nodes.split_off(staying) {
            self.stopped.push(Stopped { address: node.address(), replaces: None });
            node.kill().await?;
        }
        self.await_up(global).await
    }

    /// Removes the directories of the nodes that are stopped. They come back in their own places.
    pub(super) async fn lose_stopped(&mut self, global: &Global) -> Result<(), Failure> {
        let status = self.client(global).await?.admin().status().await;
        let known = status.map_err(|error| fail(&error, &Attempt::default()))?.nodes;
        let running = self.nodes.len();
        let folders: Vec<PathBuf> =
            (1..=self.stopped.len()).map(|it| self.data(running + it)).collect();
        for (it, folder) in self.stopped.iter_mut().zip(folders) {
            let address = it.address.client.to_string();
            let own = known.iter().find(|it| it.client_address == address);
            let id = own.and_then(|it| NodeId::from_slice(&it.node_id)).map(|it| it.to_string());
            it.replaces =
                Some(id.ok_or_else(|| Failure::new("BENCH_STUCK", "a stopped node is not known"))?);
            fs::remove_dir_all(&folder)
                .map_err(|error| Failure::file("cannot remove a node's data", &error))?;
        }
        Ok(())
    }

    /// Starts the nodes that were stopped where they were.
    pub(super) async fn start_stopped(&mut self) -> Result<(), Failure> {
        for it in std::mem::take(&mut self.stopped) {
            self.start_next(it.address, it.replaces).await?;
        }
        Ok(())
    }

    async fn await_status(
        &self,
        what: &str,
        global: &Global,
        holds: impl Fn(&v1::GetClusterStatusResponse) -> bool,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        for (node, admin) in self.nodes.iter().zip(self.admins(global).await?) {
            while !admin.status().await.is_ok_and(|it| holds(&it)) {
                if begun.elapsed() > PATIENCE {
                    let waited = PATIENCE.as_secs();
                    let message = format!("waited {waited} s for {what}, in vain");
                    return Err(Failure::new("BENCH_STUCK", message)
                        .fact("node", node.client_address.to_string()));
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Kills the last node with SIGKILL and starts it again where it was.
    pub(super) async fn restart_last(&mut self, key: &Key) -> Result<Restart, Failure> {
        let node = self.nodes.pop().expect("nodes run");
        let address = node.address();
        node.kill().await?;
        let begun = Instant::now();
        self.start_next(address, None).await?;
        let node = self.nodes.last().expect("it has been started");
        let (listening_ms, client_address) =
            (node.started_in.as_secs_f64() * 1e3, node.client_address);
        // Asked directly: a client that knows the ring may ask another replica.
        let endpoint = Endpoint::from_shared(format!("http://{client_address}"));
        let channel = endpoint.expect("an address makes a URI").connect_lazy();
        let mut restarted = KvServiceClient::new(channel);
        let request = v1::GetRequest {
            keyspace: KEYSPACE.to_owned(),
            key: Some(key.clone().into()),
            consistency: Some(ConsistencyLevel::One.into()),
            clock: 0,
        };
        loop {
            let read = restarted.get(request.clone()).await;
            if read.is_ok_and(|it| it.get_ref().found) {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(Failure::new("BENCH_STUCK", "the restarted node serves no reads"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(Restart { listening_ms, serving_ms: begun.elapsed().as_secs_f64() * 1e3 })
    }

    /// Bytes on disk of the node that keeps most.
    pub(super) fn disk_bytes_max(&self) -> u64 {
        (1..=self.size()).map(|it| bytes_in(&self.data(it))).max().unwrap_or_default()
    }

    /// Memory of the node process that holds most.
    pub(super) fn resident_bytes_max(&self) -> u64 {
        self.nodes.iter().filter_map(|it| resident_bytes(it.pid)).max().unwrap_or_default()
    }

    /// Memory of the node that was restarted.
    pub(super) fn resident_bytes_of_last(&self) -> u64 {
        self.nodes.last().and_then(|it| resident_bytes(it.pid)).unwrap_or_default()
    }

    /// Ends the nodes and removes their folder.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        for node in self.nodes {
            node.kill().await?;
        }
        Ok(())
    }
}

/// Bytes of all files below a folder.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    // A file may go between being listed and being looked at.
    let sizes = entries.filter_map(Result::ok).filter_map(|it| {
        let kind = it.file_type().ok()?;
        if kind.is_dir() { Some(bytes_in(&it.path())) } else { Some(it.metadata().ok()?.len()) }
    });
    sizes.sum()
}
