//! A node whose disk refuses, or takes its time.

use std::{net::SocketAddr, sync::Arc};

use model::NodeId;
use node::{
    commit::hints_for,
    config::NodeConfig,
    io::{Blocking, Network, Node, SystemClock, TcpNetwork, World},
    storage::memory::{Access, Fault, MemoryStorage},
};
use proto::{
    CallError, CallOutcome, Reason,
    v1::{self, admin_service_client::AdminServiceClient, kv_service_client::KvServiceClient},
};
use tokio::{
    sync::watch,
    task::LocalSet,
    time::{Duration, Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use super::{get, put};

/// A cluster of one, whose keyspace "test" takes ANY.
pub(super) struct Alone {
    disk: MemoryStorage,
    /// While true, no group of writes ends.
    stalled: watch::Sender<bool>,
    node: Node,
    kv: KvServiceClient<Channel>,
    pub(super) admin: AdminServiceClient<Channel>,
}

impl Alone {
    /// Runs it on the present thread, for as long as the test does.
    pub(super) async fn start(config: NodeConfig) -> Self {
        let network = Arc::new(TcpNetwork { shared_ports: false });
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let clients = network.listen(any).await.unwrap();
        let peers = network.listen(any).await.unwrap();
        let listen = clients.local_address().unwrap();
        let config = NodeConfig { listen, peer_listen: peers.local_address().unwrap(), ..config };
        let disk = MemoryStorage::new();
        let world = World {
            clock: Arc::new(SystemClock),
            network,
            storage: Arc::new(disk.clone()),
            snapshots: None,
            seed: 1,
            blocking: Blocking::Threads,
        };
        let (node, events) = Node::open(config, world).unwrap();
        let (stalled, held) = watch::channel(false);
        tokio::task::spawn_local(node.clone().run_commits(async move |_| {
            let _ = held.clone().wait_for(|it| !it).await;
        }));
        let stop = CancellationToken::new();
        tokio::task::spawn_local(node.clone().run_loop(0, clients, peers, Some(events), stop));
        let channel = Endpoint::from_shared(format!("http://{listen}")).unwrap();
        let channel = channel.connect().await.unwrap();
        let (kv, admin) = (KvServiceClient::new(channel.clone()), AdminServiceClient::new(channel));
        let mut it = Self { disk, stalled, node, kv, admin };
        it.form().await;
        it
    }

    async fn form(&mut self) {
        let plan = self.admin.plan_layout(v1::PlanLayoutRequest { partitions: 16 }).await.unwrap();
        let plan_hash = plan.into_inner().plan_hash;
        let commit = v1::CommitLayoutRequest { plan_hash, partitions: 16 };
        self.admin.commit_layout(commit).await.unwrap();
        let keyspace =
            v1::Keyspace { name: "test".to_owned(), allow_any: true, ..v1::Keyspace::default() };
        let request = v1::CreateKeyspaceRequest { keyspace: Some(keyspace), ..Default::default() };
        self.admin.create_keyspace(request).await.unwrap();
    }

    fn id(&self) -> NodeId {
        self.node.shared.identity.node
    }
}

async fn eventually(what: &str, mut until: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !until().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Larger than anything else that the node writes.
const LARGE_BYTES: usize = 100_000;

async fn refused_by_its_own_disk() {
    let mut it = Alone::start(NodeConfig::default()).await;
    let mut refusals = 1;
    it.disk.set_faults(Some(Box::new(move |access| match access {
        Access::Append(bytes) if bytes > LARGE_BYTES && refusals > 0 => {
            refusals -= 1;
            Some(Fault::Full)
        }
        _ => None,
    })));
    let value = "v".repeat(LARGE_BYTES);
    let (any, one) = (v1::ConsistencyLevel::Any, v1::ConsistencyLevel::One);
    let written = it.kv.put(put("x", &value, any)).await.unwrap().into_inner();
    assert_eq!(written.participation.unwrap().answered, [0; 0], "acknowledged by its hint");
    eventually("the node has what it kept for itself", async || {
        let read = it.kv.get(get("x", one)).await.unwrap().into_inner();
        assert!(!read.found || read.version == written.version);
        read.found
    })
    .await;
    eventually("the hint is gone", async || {
        hints_for(&it.disk, it.id(), None, 1).unwrap().hints.is_empty()
    })
    .await;
}

#[tokio::test]
async fn a_node_replays_the_hints_for_itself() {
    LocalSet::new().run_until(refused_by_its_own_disk()).await;
}

const PLACES: usize = 8;

async fn no_stamp_to_be_had() {
    let it = Alone::start(NodeConfig {
        operations_in_flight_max: PLACES,
        request_timeout_ms: 3_000,
        ..NodeConfig::default()
    })
    .await;
    it.stalled.send_replace(true);
    let one = v1::ConsistencyLevel::One;
    // The stamps below the ceiling, which nobody can raise now, are used up within its slack.
    eventually("no stamp can be given", async || it.node.shared.try_stamp().is_err()).await;
    let (refused, mut results) = tokio::sync::mpsc::unbounded_channel();
    for call in 0..3 * PLACES {
        let (mut kv, refused) = (it.kv.clone(), refused.clone());
        tokio::task::spawn_local(async move {
            let answer = kv.put(put(&format!("k{call}"), "v", one)).await;
            let _ = refused.send(answer.map_err(|status| CallError::from(&status)));
        });
    }
    // All but as many as there are places are refused at once.
    for _ in 0..2 * PLACES {
        let error = results.recv().await.unwrap().unwrap_err();
        assert_eq!((error.reason, error.outcome), (Reason::Overloaded, CallOutcome::NotApplied));
    }
    assert_eq!(it.node.loops[0].lock().unanswered, PLACES);
    it.stalled.send_replace(false);
    for _ in 0..PLACES {
        results.recv().await.unwrap().unwrap();
    }
    assert_eq!(it.node.loops[0].lock().unanswered, 0, "and no place is lost");
}

#[tokio::test]
async fn calls_that_wait_for_a_stamp_are_bounded() {
    LocalSet::new().run_until(no_stamp_to_be_had()).await;
}
