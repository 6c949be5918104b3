//! Whole nodes in this process, on loopback: on RocksDB, and on clocks that the test sets.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up its cluster has failed")]

mod answers;
mod clocks;
mod damage;
mod disk;
mod snapshots;

use std::{net::SocketAddr, time::Duration};

use node::{
    config::NodeConfig,
    io::{RunningNode, start},
    storage::rocks::{RocksLimits, RocksShared},
};
use proto::v1::{
    self, admin_service_client::AdminServiceClient, kv_service_client::KvServiceClient,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint};

struct Cluster {
    resources: RocksShared,
    folder: TempDir,
    configs: Vec<NodeConfig>,
    nodes: Vec<Option<RunningNode>>,
}

impl Cluster {
    /// Starts nodes of these datacenters, makes them a cluster, and creates the keyspace "test".
    async fn start(datacenters: &[&str]) -> Self {
        let mut it = Self {
            resources: RocksShared::new(RocksLimits::default()).unwrap(),
            folder: tempfile::tempdir().unwrap(),
            configs: Vec::new(),
            nodes: Vec::new(),
        };
        for (index, datacenter) in datacenters.iter().enumerate() {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let mut config = NodeConfig {
                data: it.folder.path().join(index.to_string()),
                listen: any,
                peer_listen: any,
                datacenter: (*datacenter).to_owned(),
                join: it.nodes.iter().flatten().map(|it| it.peer_address().to_string()).collect(),
                ..NodeConfig::default()
            };
            let node = start(config.clone(), &it.resources).unwrap();
            (config.listen, config.peer_listen) = (node.client_address(), node.peer_address());
            it.configs.push(config);
            it.nodes.push(Some(node));
        }
        let mut admin = AdminServiceClient::new(it.channel(0).await);
        it.wait("every node sees every other", async || it.ups(0).await == datacenters.len()).await;
        let plan = admin.plan_layout(v1::PlanLayoutRequest { partitions: 16 }).await.unwrap();
        let plan_hash = plan.into_inner().plan_hash;
        admin.commit_layout(v1::CommitLayoutRequest { plan_hash, partitions: 16 }).await.unwrap();
        let keyspace = v1::Keyspace { name: "test".to_owned(), ..v1::Keyspace::default() };
        let request =
            v1::CreateKeyspaceRequest { keyspace: Some(keyspace), accept_weak_defaults: false };
        admin.create_keyspace(request).await.unwrap();
        it
    }

    async fn channel(&self, index: usize) -> Channel {
        let address = self.configs[index].listen;
        Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
    }

    /// How many nodes a node sees up.
    async fn ups(&self, index: usize) -> usize {
        let mut admin = AdminServiceClient::new(self.channel(index).await);
        let status = admin.get_cluster_status(v1::GetClusterStatusRequest {}).await.unwrap();
        status.into_inner().nodes.iter().filter(|it| it.up).count()
    }

    async fn wait(&self, what: &str, mut until: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !until().await {
            assert!(Instant::now() < deadline, "waited in vain until {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn key(name: &str) -> Option<v1::Key> {
    Some(v1::Key { partition_key: name.to_owned().into(), ..v1::Key::default() })
}

fn level(level: v1::ConsistencyLevel) -> Option<v1::Consistency> {
    Some(v1::Consistency { choice: Some(v1::consistency::Choice::Level(level.into())) })
}

fn put(name: &str, value: &str, at: v1::ConsistencyLevel) -> v1::PutRequest {
    v1::PutRequest {
        keyspace: "test".to_owned(),
        key: key(name),
        value: value.to_owned().into(),
        consistency: level(at),
        ..v1::PutRequest::default()
    }
}

fn get(name: &str, at: v1::ConsistencyLevel) -> v1::GetRequest {
    v1::GetRequest {
        keyspace: "test".to_owned(),
        key: key(name),
        consistency: level(at),
        ..v1::GetRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datacenter_dies_and_comes_back() {
    use v1::ConsistencyLevel::{All, EachQuorum, LocalQuorum, Quorum};
    let mut cluster = Cluster::start(&["dc1", "dc1", "dc1", "dc2", "dc2", "dc2"]).await;
    let mut kv = KvServiceClient::new(cluster.channel(0).await);
    for at in [Quorum, All, EachQuorum, LocalQuorum] {
        let name = format!("{at:?}");
        let written = kv.put(put(&name, "before", at)).await.unwrap().into_inner();
        let read = kv.get(get(&name, at)).await.unwrap().into_inner();
        assert_eq!((read.value, read.version), ("before".into(), written.version));
        // Against the default of LOCAL_QUORUM writes: a global quorum can miss them.
        assert_eq!(read.participation.unwrap().overlap, at != Quorum, "{at:?}");
    }
    for index in 3..6 {
        cluster.nodes[index].take().unwrap().abort().await;
    }
    cluster.wait("the others are missed", async || cluster.ups(0).await == 3).await;
    kv.put(put("LocalQuorum", "after", LocalQuorum)).await.unwrap();
    for at in [Quorum, All, EachQuorum] {
        let refused = kv.put(put("x", "y", at)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{at:?}: {refused}");
    }
    for index in 3..6 {
        let node = start(cluster.configs[index].clone(), &cluster.resources).unwrap();
        cluster.nodes[index] = Some(node);
    }
    cluster.wait("everybody is back", async || cluster.ups(0).await == 6).await;
    let read = kv.get(get("LocalQuorum", All)).await.unwrap().into_inner();
    assert_eq!(read.value, "after");
    for node in cluster.nodes.iter_mut().filter_map(Option::take) {
        node.stop().await;
    }
}
