//! A node whose wall clock is set wrong, and right again (C1 and C2): it coordinates nothing, answers as
//! a replica, and carries nobody with it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use model::{Hlc, Timestamp};
use node::{
    config::NodeConfig,
    io::{Blocking, Network, Node, SystemClock, TcpNetwork, WallClock, World},
    storage::memory::MemoryStorage,
};
use proto::{
    CallError, CallOutcome, Reason,
    v1::{
        self, ClockState, admin_service_client::AdminServiceClient,
        kv_service_client::KvServiceClient,
    },
};
use tokio::{
    task::LocalSet,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{get, put};

const HOUR_MS: i64 = 3_600_000;

/// The machine's clock, set wrong.
#[derive(Default)]
struct SetClock(AtomicI64);

impl WallClock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0.saturating_add_signed(self.0.load(Ordering::Relaxed)))
    }
}

struct TestNode {
    clock: Arc<SetClock>,
    kv: KvServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
    peer_address: SocketAddr,
}

impl TestNode {
    /// Runs a node on the present thread, for as long as the test does.
    async fn start(seed: u64, offset_ms: i64, join: &[SocketAddr]) -> Self {
        let network = Arc::new(TcpNetwork { shared_ports: false });
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let clients = network.listen(any).await.unwrap();
        let peers = network.listen(any).await.unwrap();
        let (client_address, peer_address) =
            (clients.local_address().unwrap(), peers.local_address().unwrap());
        let config = NodeConfig {
            listen: client_address,
            peer_listen: peer_address,
            join: join.iter().map(ToString::to_string).collect(),
            ..NodeConfig::default()
        };
        let clock = Arc::new(SetClock(AtomicI64::new(offset_ms)));
        let world = World {
            clock: Arc::clone(&clock) as Arc<dyn WallClock>,
            network,
            storage: Arc::new(MemoryStorage::new()),
            snapshots: None,
            seed,
            blocking: Blocking::Threads,
        };
        let (node, events) = Node::open(config, world).unwrap();
        tokio::task::spawn_local(node.clone().run_commits(async |_| {}));
        let stop = CancellationToken::new();
        tokio::task::spawn_local(node.run_loop(0, clients, peers, Some(events), stop));
        let channel = Endpoint::from_shared(format!("http://{client_address}")).unwrap();
        let channel = channel.connect().await.unwrap();
        let (kv, admin) = (KvServiceClient::new(channel.clone()), AdminServiceClient::new(channel));
        Self { clock, kv, admin, peer_address }
    }

    /// Sets the clock so far ahead of the machine's.
    fn set(&self, offset_ms: i64) {
        self.clock.0.store(offset_ms, Ordering::Relaxed);
    }

    async fn status(&mut self) -> v1::GetClusterStatusResponse {
        let status = self.admin.get_cluster_status(v1::GetClusterStatusRequest {}).await;
        status.unwrap().into_inner()
    }

    /// Writes at ALL, which every node has to answer as a replica.
    async fn put_at_all(&mut self, name: &str) -> Result<Hlc, Status> {
        let written = self.kv.put(put(name, "value", v1::ConsistencyLevel::All)).await?;
        Ok(Hlc(written.into_inner().version.unwrap().clock))
    }

    async fn wait_state(&mut self, wanted: ClockState) {
        eventually(&format!("it is {wanted:?}"), async || {
            self.status().await.clock_state() == wanted
        })
        .await;
    }

    /// Asserts that it coordinates nothing, whatever is asked.
    async fn assert_refuses(&mut self) {
        let one = v1::ConsistencyLevel::One;
        let put = self.kv.put(put("x", "y", one)).await.unwrap_err();
        let get = self.kv.get(get("x", one)).await.unwrap_err();
        let range = v1::scan_request::Range::Tokens(v1::TokenScan::default());
        let scan = v1::ScanRequest {
            keyspace: "test".to_owned(),
            range: Some(range),
            ..Default::default()
        };
        let mut pages = self.kv.scan(scan).await.unwrap().into_inner();
        let scan = pages.message().await.unwrap_err();
        for status in [put, get, scan] {
            let error = CallError::from(&status);
            assert_eq!(error.reason, Reason::ClockSkew, "{status}");
            assert_eq!(error.outcome, CallOutcome::NotApplied, "{status}");
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
        }
    }
}

async fn eventually(what: &str, mut until: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !until().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

fn assert_present(stamp: Hlc) {
    let off_ms = stamp.ms().abs_diff(SystemClock.now().0);
    assert!(off_ms < 60_000, "the stamp {stamp} is {off_ms} ms off");
}

async fn story() {
    let mut n1 = TestNode::start(1, -HOUR_MS, &[]).await;
    let mut n2 = TestNode::start(2, 0, &[n1.peer_address]).await;
    let mut n3 = TestNode::start(3, 0, &[n1.peer_address]).await;
    for node in [&mut n1, &mut n2, &mut n3] {
        eventually("it sees all", async || {
            node.status().await.nodes.iter().filter(|it| it.up).count() == 3
        })
        .await;
    }
    assert_eq!(n1.status().await.clock_state(), ClockState::Alone, "there is no cluster yet");
    let plan = n2.admin.plan_layout(v1::PlanLayoutRequest { partitions: 16 }).await.unwrap();
    let plan_hash = plan.into_inner().plan_hash;
    n2.admin.commit_layout(v1::CommitLayoutRequest { plan_hash, partitions: 16 }).await.unwrap();
    let keyspace = v1::Keyspace { name: "test".to_owned(), ..v1::Keyspace::default() };
    let request = v1::CreateKeyspaceRequest { keyspace: Some(keyspace), ..Default::default() };
    n2.admin.create_keyspace(request).await.unwrap();

    // Wrong from the start, and an hour behind: readings of the others are in its future.
    n2.wait_state(ClockState::Good).await;
    n1.wait_state(ClockState::Off).await;
    n1.assert_refuses().await;
    assert_present(n2.put_at_all("while n1 is behind").await.unwrap());
    let status = n2.status().await;
    let offsets: Vec<_> = status.nodes.iter().filter_map(|it| it.clock_offset_ms).collect();
    assert_eq!(offsets.len(), 3);
    assert!(offsets.iter().any(|it| (it + HOUR_MS).abs() < 60_000), "{offsets:?}");

    n1.set(0);
    n1.wait_state(ClockState::Good).await;
    assert_present(n1.put_at_all("set right").await.unwrap());

    // Ahead: noticed by the first call, before anything is stamped.
    n1.set(HOUR_MS);
    n1.assert_refuses().await;
    assert_present(n2.put_at_all("while n1 is ahead").await.unwrap());
    n1.wait_state(ClockState::Off).await;
    n1.assert_refuses().await;
    let counters = n1.status().await.counters;
    assert!(
        counters["clock_suspensions"] >= 2 && counters["calls_clock_skew"] >= 9,
        "{counters:?}"
    );

    n1.set(0);
    n1.wait_state(ClockState::Good).await;
    assert_present(n1.put_at_all("set right again").await.unwrap());

    // A step that the others confirm.
    n1.set(200);
    eventually("it goes on", async || n1.put_at_all("a small step").await.is_ok()).await;

    // Everybody's clock: nobody is far from the others.
    for node in [&n1, &n2, &n3] {
        node.set(HOUR_MS);
    }
    eventually("all go on", async || {
        let mut done = true;
        for node in [&mut n1, &mut n2, &mut n3] {
            done &= node.put_at_all("all together").await.is_ok();
        }
        done
    })
    .await;
}

#[tokio::test]
async fn a_clock_set_wrong_and_right_again() {
    LocalSet::new().run_until(story()).await;
}
