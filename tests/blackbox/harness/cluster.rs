//! A cluster of real processes on loopback, each with a data directory of its own.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
};

use client::{Client, ClientConfig};
use proto::v1;
use tempfile::TempDir;

use super::{
    api::Api,
    binary::run,
    machine::{Slots, free_address},
    process::{Process, Ready, Signal},
    wait::eventually,
};

/// How nodes are started, beyond what every node needs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Further arguments of `quorate start`.
    pub(crate) arguments: Vec<String>,
    /// Partitions of the ring; 0 for the default.
    pub(crate) partitions: u32,
    /// Files and connections that each node may have open.
    pub(crate) open_files: Option<u32>,
}

impl Options {
    /// With a small ring, which whole-keyspace scans cross faster.
    pub(crate) fn small_ring() -> Self {
        Self { partitions: 16, ..Self::default() }
    }

    /// With further arguments of `quorate start`.
    pub(crate) fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|it| (*it).to_owned()));
        self
    }
}

/// One node: where it is and where it listens, whether it runs or not.
pub(crate) struct Node {
    /// Its datacenter.
    pub(crate) datacenter: String,
    /// Its rack.
    pub(crate) rack: String,
    /// Where clients connect.
    pub(crate) client: SocketAddr,
    /// Where nodes connect.
    pub(crate) peer: SocketAddr,
    /// Where its metrics are, if it serves them.
    pub(crate) metrics: Option<SocketAddr>,
    /// Its data directory.
    pub(crate) data: PathBuf,
    /// Its id, as the ready line said.
    pub(crate) id: String,
    /// Further arguments of its next start.
    pub(crate) arguments: Vec<String>,
    open_files: Option<u32>,
    process: Option<Process>,
    api: Option<Api>,
}

impl Node {
    /// What it is started with, on this directory and at these addresses.
    fn arguments_at(&self, data: &Path, client: SocketAddr, peer: SocketAddr) -> Vec<String> {
        let mut arguments = vec![
            "--data".to_owned(),
            data.display().to_string(),
            "--listen".to_owned(),
            client.to_string(),
            "--peer-listen".to_owned(),
            peer.to_string(),
            "--dc".to_owned(),
            self.datacenter.clone(),
            "--rack".to_owned(),
            self.rack.clone(),
        ];
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}

fn in_vain(arguments: Vec<String>, further: &[&str]) -> String {
    let arguments = arguments.iter().map(String::as_str).chain(further.iter().copied());
    let output = run(&["start"].into_iter().chain(arguments).collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// Nodes, by index. All are ended when it is dropped.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    folder: TempDir,
    _slots: Slots,
}

/// Datacenters dc1, dc2 and so on, each with so many nodes.
pub(crate) fn datacenters(nodes: &[usize]) -> Vec<(String, usize)> {
    nodes.iter().enumerate().map(|(at, count)| (format!("dc{}", at + 1), *count)).collect()
}

/// A keyspace to create.
#[derive(Clone, Debug, Default)]
pub(crate) struct Keyspace {
    /// Its name.
    pub(crate) name: String,
    /// Replicas per datacenter; none for the default.
    pub(crate) replicas: Vec<(String, u32)>,
    /// The level of reads; absent for the default.
    pub(crate) read: Option<v1::Consistency>,
    /// The level of writes; absent for the default.
    pub(crate) write: Option<v1::Consistency>,
    /// Further settings.
    pub(crate) default_ttl_seconds: u64,
    /// Refuses calls without overlap.
    pub(crate) require_overlap: bool,
    /// Allows ANY.
    pub(crate) allow_any: bool,
    /// Accepts weak defaults.
    pub(crate) accept_weak: bool,
}

impl Keyspace {
    /// With the cluster's defaults.
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// The request that creates it.
    pub(crate) fn request(&self) -> v1::CreateKeyspaceRequest {
        let replicas = self.replicas.iter().map(|(datacenter, replicas)| v1::DatacenterReplicas {
            datacenter: datacenter.clone(),
            replicas: *replicas,
        });
        v1::CreateKeyspaceRequest {
            keyspace: Some(v1::Keyspace {
                name: self.name.clone(),
                replicas: replicas.collect(),
                read_consistency: self.read,
                write_consistency: self.write,
                default_ttl_seconds: self.default_ttl_seconds,
                require_overlap: self.require_overlap,
                allow_any: self.allow_any,
                id: 0,
            }),
            accept_weak_defaults: self.accept_weak,
        }
    }
}

impl Cluster {
    /// Starts nodes and waits until all know each other. There is no layout yet.
    pub(crate) async fn start_bare(datacenters: &[(String, usize)], options: &Options) -> Self {
        let count = datacenters.iter().map(|it| it.1).sum();
        let slots = Slots::take(count);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut nodes = Vec::with_capacity(count);
        for (datacenter, count) in datacenters {
            for at in 0..*count {
                let node = Node {
                    datacenter: datacenter.clone(),
                    rack: format!("rack{}", at + 1),
                    client: free_address(),
                    peer: free_address(),
                    metrics: None,
                    data: folder.path().join(format!("{datacenter}-{at}")),
                    id: String::new(),
                    arguments: options.arguments.clone(),
                    open_files: options.open_files,
                    process: None,
                    api: None,
                };
                nodes.push(node);
            }
        }
        let mut cluster = Self { nodes, folder, _slots: slots };
        let join = cluster.nodes[0].peer.to_string();
        let all: Vec<usize> = (0..cluster.nodes.len()).collect();
        cluster.launch(&all, &["--join", &join]);
        cluster.wait_all_up().await;
        cluster
    }

    /// Starts nodes and makes them a cluster that serves.
    pub(crate) async fn start(datacenters: &[(String, usize)], options: &Options) -> Self {
        let cluster = Self::start_bare(datacenters, options).await;
        cluster.commit_layout(options.partitions).await;
        cluster
    }

    /// Plans and commits a layout, and waits until every node has it.
    pub(crate) async fn commit_layout(&self, partitions: u32) {
        let mut admin = self.api(0).admin();
        let plan = admin.plan_layout(v1::PlanLayoutRequest { partitions }).await;
        let plan = plan.expect("a plan").into_inner();
        let commit =
            v1::CommitLayoutRequest { plan_hash: plan.plan_hash, partitions: plan.partitions };
        admin.commit_layout(commit).await.expect("a layout");
        self.wait_agreed().await;
    }

    /// Creates a keyspace, and waits until every running node knows it.
    pub(crate) async fn create(&self, keyspace: &Keyspace) -> v1::Keyspace {
        let at = self.running()[0];
        let made = self.api(at).create_keyspace(keyspace.request()).await;
        let made = made.unwrap_or_else(|error| panic!("{keyspace:?}: {error}"));
        self.wait_agreed().await;
        made
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// A node.
    pub(crate) fn node(&self, at: usize) -> &Node {
        &self.nodes[at]
    }

    /// A node, to be changed.
    pub(crate) fn node_mut(&mut self, at: usize) -> &mut Node {
        &mut self.nodes[at]
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.len()).filter(|it| self.nodes[*it].process.is_some()).collect()
    }

    /// Calls to one node, which runs.
    pub(crate) fn api(&self, at: usize) -> Api {
        self.nodes[at].api.clone().expect("the node has been started")
    }

    /// A running node's process.
    pub(crate) fn process(&self, at: usize) -> &Process {
        self.nodes[at].process.as_ref().expect("the node runs")
    }

    /// The temporary folder, for files of the test.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The client library, connected to these nodes.
    pub(crate) async fn client(&self, nodes: &[usize]) -> Client {
        let addresses = nodes.iter().map(|it| self.nodes[*it].client.to_string());
        Client::connect(ClientConfig::new(addresses)).await.expect("a node answers")
    }

    /// Addresses of nodes, as `--node` takes them.
    pub(crate) fn addresses(&self, nodes: &[usize]) -> String {
        let addresses: Vec<_> = nodes.iter().map(|it| self.nodes[*it].client.to_string()).collect();
        addresses.join(",")
    }

    /// What a node of this index is started with.
    pub(crate) fn arguments(&self, at: usize) -> Vec<String> {
        let node = &self.nodes[at];
        node.arguments_at(&node.data, node.client, node.peer)
    }

    /// Starts nodes at once, and waits until each is ready.
    pub(crate) fn launch(&mut self, nodes: &[usize], further: &[&str]) {
        for at in nodes {
            let mut arguments = self.arguments(*at);
            arguments.extend(further.iter().map(|it| (*it).to_owned()));
            if !further.contains(&"--log") {
                arguments.extend(["--log".to_owned(), "info".to_owned()]);
            }
            let node = &mut self.nodes[*at];
            assert!(node.process.is_none(), "node {at} runs already");
            let name = format!("{}-{at}", node.datacenter);
            node.process = Some(Process::spawn(&name, &arguments, node.open_files));
        }
        for at in nodes {
            let node = &mut self.nodes[*at];
            let Ready { node_id, client_address, peer_address, metrics_address } =
                node.process.as_mut().expect("spawned above").wait_ready();
            assert_eq!((client_address, peer_address), (node.client, node.peer));
            assert!(node.id.is_empty() || node.id == node_id, "node {at} has another id now");
            node.id = node_id;
            node.metrics = metrics_address;
            // Not the old one: its connection is gone.
            node.api = Some(Api::new(node.client));
        }
    }

    /// Starts a node that is to end by itself, and returns what it says of that.
    pub(crate) fn start_in_vain(&self, at: usize, further: &[&str]) -> String {
        in_vain(self.arguments(at), further)
    }

    /// The same of one like this node, with another data directory and addresses of its own.
    pub(crate) fn start_beside_in_vain(&self, at: usize, data: &Path, further: &[&str]) -> String {
        in_vain(self.nodes[at].arguments_at(data, free_address(), free_address()), further)
    }

    /// Kills nodes as power loss would, all at about the same time.
    pub(crate) fn kill(&mut self, nodes: &[usize]) {
        for at in nodes {
            self.nodes[*at].process.as_ref().expect("the node runs").signal(Signal::Pause);
        }
        for at in nodes {
            self.nodes[*at].process.take().expect("the node runs").kill();
        }
    }

    /// Asks a node to stop, and waits for its end.
    pub(crate) fn stop(&mut self, at: usize) -> ExitStatus {
        self.process(at).signal(Signal::Terminate);
        self.wait_stopped(at)
    }

    /// Waits for the end of a node that was asked to stop.
    pub(crate) fn wait_stopped(&mut self, at: usize) -> ExitStatus {
        self.nodes[at].process.take().expect("the node runs").wait_end()
    }

    /// Starts nodes again as they were, without anybody to join, and waits until all running nodes
    /// see each other.
    pub(crate) async fn restart(&mut self, nodes: &[usize]) {
        self.launch(nodes, &[]);
        self.wait_all_up().await;
        self.wait_agreed().await;
    }

    /// Gives a node that does not run other addresses.
    pub(crate) fn move_node(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        assert!(node.process.is_none(), "node {at} runs");
        (node.client, node.peer) = (free_address(), free_address());
    }

    /// Waits until every running node sees every other running node up, and the others down.
    pub(crate) async fn wait_all_up(&self) {
        for viewer in self.running() {
            self.wait_seen(viewer).await;
        }
    }

    /// Waits until a node sees the running nodes up, and the others down.
    pub(crate) async fn wait_seen(&self, viewer: usize) {
        let running: BTreeMap<String, bool> =
            (self.nodes.iter()).map(|it| (it.client.to_string(), it.process.is_some())).collect();
        let api = self.api(viewer);
        eventually(&format!("node {viewer} sees who is up"), async || {
            let status = api.status().await.map_err(|it| it.to_string())?;
            let up = |it: &v1::NodeInfo| it.up;
            let seen: BTreeMap<String, bool> =
                status.nodes.iter().map(|it| (it.client_address.clone(), up(it))).collect();
            let wanted = running.iter().filter(|it| *it.1 || seen.contains_key(it.0));
            let wanted: BTreeMap<_, _> = wanted.map(|it| (it.0.clone(), *it.1)).collect();
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?}, not {wanted:?}")) }
        })
        .await;
    }

    /// Waits until all running nodes hold the same, newest metadata.
    pub(crate) async fn wait_agreed(&self) {
        let running = self.running();
        eventually("all nodes hold the same metadata", async || {
            let mut seen = Vec::new();
            for at in &running {
                let status = self.api(*at).status().await.map_err(|it| it.to_string())?;
                let names: Vec<_> =
                    status.keyspaces.iter().map(|it| (it.name.clone(), it.id)).collect();
                seen.push((status.metadata_sequence, status.layout_hash, names));
            }
            seen.dedup();
            if seen.len() == 1 { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    }
}
