//! A node whose disk refuses, or takes its time.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use model::{Limits, NodeId};
use node::{
    commit::hints_for,
    config::NodeConfig,
    io::{
        Blocking, Boxed, BoxedStream, DiskPace, Listener, Network, Node, SystemClock, TcpNetwork,
        World,
    },
    storage::{
        Space,
        memory::{Access, Fault, MemoryStorage},
    },
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

use super::{get, level, put};

/// A cluster of one, whose keyspace "test" takes ANY.
pub(super) struct Alone {
    disk: MemoryStorage,
    /// While true, no group of writes ends.
    stalled: watch::Sender<bool>,
    pub(super) node: Node,
    pub(super) kv: KvServiceClient<Channel>,
    pub(super) admin: AdminServiceClient<Channel>,
}

impl Alone {
    /// Runs it on the present thread, for as long as the test does.
    pub(super) async fn start(config: NodeConfig) -> Self {
        Self::start_on(Blocking::Threads, config).await
    }

    async fn start_on(blocking: Blocking, config: NodeConfig) -> Self {
        let network = TcpNetwork { shared_ports: false };
        let (disk, (stalled, held)) = (MemoryStorage::new(), watch::channel(false));
        let node = run(network, disk.clone(), blocking, config).await;
        let listen = node.shared.config.listen;
        tokio::task::spawn_local(node.clone().run_commits(async move |_| {
            let _ = held.clone().wait_for(|it| !it).await;
        }));
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

/// Runs a node's loop on the present thread, for as long as the test does; nothing is committed yet.
async fn run(
    network: impl Network + 'static,
    disk: MemoryStorage,
    blocking: Blocking,
    config: NodeConfig,
) -> Node {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let clients = network.listen(any).await.unwrap();
    let peers = network.listen(any).await.unwrap();
    let (listen, peer_listen) = (clients.local_address().unwrap(), peers.local_address().unwrap());
    let config = NodeConfig { listen, peer_listen, ..config };
    let world = World {
        clock: Arc::new(SystemClock),
        network: Arc::new(network),
        storage: Arc::new(disk),
        snapshots: None,
        seed: 1,
        blocking,
    };
    let (node, events) = Node::open(config, world).unwrap();
    let stop = CancellationToken::new();
    tokio::task::spawn_local(node.clone().run_loop(0, clients, peers, Some(events), stop));
    node
}

pub(super) async fn eventually(what: &str, mut until: impl AsyncFnMut() -> bool) {
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

/// A disk whose reads take as long as the test wants.
struct Slow(watch::Receiver<bool>);

impl DiskPace for Slow {
    fn read(&self) -> Boxed<'static, ()> {
        let mut held = self.0.clone();
        Box::pin(async move {
            let _ = held.wait_for(|it| !it).await;
        })
    }
}

/// A node that has "x" on its disk alone, and what holds up its reads.
async fn with_a_slow_disk(config: NodeConfig) -> (Alone, watch::Sender<bool>) {
    let (slow, held) = watch::channel(false);
    let mut it = Alone::start_on(Blocking::Simulated(Arc::new(Slow(held))), config).await;
    it.kv.put(put("x", "v", v1::ConsistencyLevel::One)).await.unwrap();
    it.disk.set_faults(Some(Box::new(|access| match access {
        Access::TryGet(Space::Data, _) => Some(Fault::WouldBlock),
        _ => None,
    })));
    slow.send_replace(true);
    (it, slow)
}

async fn more_reads_than_the_disk_does() {
    let config = NodeConfig { disk_reads_max: PLACES, ..NodeConfig::default() };
    let (mut it, slow) = with_a_slow_disk(config).await;
    let one = v1::ConsistencyLevel::One;
    let (answer, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..3 * PLACES {
        let (mut kv, answer) = (it.kv.clone(), answer.clone());
        tokio::task::spawn_local(async move {
            let read = kv.get(get("x", one)).await;
            let _ = answer.send(read.map_err(|status| CallError::from(&status)));
        });
    }
    for _ in 0..2 * PLACES {
        let error = answers.recv().await.unwrap().unwrap_err();
        assert_eq!((error.reason, error.outcome), (Reason::ReadFailed, CallOutcome::NotApplied));
    }
    slow.send_replace(false);
    for _ in 0..PLACES {
        assert!(answers.recv().await.unwrap().unwrap().get_ref().found);
    }
    assert!(it.kv.get(get("x", one)).await.unwrap().get_ref().found, "and no place is lost");
}

#[tokio::test]
async fn reads_that_wait_for_the_disk_are_bounded() {
    LocalSet::new().run_until(more_reads_than_the_disk_does()).await;
}

async fn a_read_nobody_waits_for() {
    let config = NodeConfig { request_timeout_ms: 1_000, ..NodeConfig::default() };
    let (mut it, slow) = with_a_slow_disk(config).await;
    let late = it.kv.get(get("x", v1::ConsistencyLevel::One)).await.unwrap_err();
    assert_eq!(CallError::from(&late).reason, Reason::ReadTimeout);
    let counters = &it.node.shared.counters;
    assert_eq!(counters.reads_from_disk_refused.load(Ordering::Relaxed), 0, "it waits still");
    let ended_us = it.node.shared.elapsed_us();
    eventually("no call waits any more", async || {
        it.node.shared.elapsed_us() > ended_us + 1_000_000
    })
    .await;
    slow.send_replace(false);
    eventually("its turn comes, and it is not done", async || {
        counters.reads_from_disk_refused.load(Ordering::Relaxed) == 1
    })
    .await;
}

#[tokio::test]
async fn a_read_whose_call_has_ended_is_not_done() {
    LocalSet::new().run_until(a_read_nobody_waits_for()).await;
}

async fn scans_that_are_given_up() {
    let config = NodeConfig { scans_max: 1, ..NodeConfig::default() };
    let (mut it, slow) = with_a_slow_disk(config).await;
    let scan = || v1::ScanRequest {
        keyspace: "test".to_owned(),
        range: Some(v1::scan_request::Range::Tokens(v1::TokenScan::default())),
        consistency: level(v1::ConsistencyLevel::One),
        ..v1::ScanRequest::default()
    };
    let connections = || it.node.shared.connections.load(Ordering::Relaxed);
    let before = connections();
    let other = Endpoint::from_shared(format!("http://{}", it.node.shared.config.listen)).unwrap();
    let mut other = KvServiceClient::new(other.connect().await.unwrap());
    let given_up = other.scan(scan()).await.unwrap();
    drop((given_up, other));
    eventually("its client has gone", async || connections() == before).await;
    let refused = it.kv.scan(scan()).await.unwrap_err();
    assert_eq!(CallError::from(&refused).reason, Reason::Overloaded);
    slow.send_replace(false);
    eventually("its page has ended", async || it.kv.scan(scan()).await.is_ok()).await;
}

#[tokio::test]
async fn a_scan_that_was_given_up_counts_until_its_page_ends() {
    LocalSet::new().run_until(scans_that_are_given_up()).await;
}

/// A network on which no connection can even be tried.
struct Broken(TcpNetwork);

impl Network for Broken {
    fn listen(&self, address: SocketAddr) -> Boxed<'_, std::io::Result<Box<dyn Listener>>> {
        self.0.listen(address)
    }

    fn connect(&self, _: String) -> Boxed<'_, std::io::Result<BoxedStream>> {
        panic!("a bug in a link");
    }
}

async fn a_link_that_panics() {
    let config = NodeConfig { join: vec!["127.0.0.1:1".to_owned()], ..NodeConfig::default() };
    let network = Broken(TcpNetwork { shared_ports: false });
    let node = run(network, MemoryStorage::new(), Blocking::Threads, config).await;
    eventually("the node stops", async || node.shared.failure().is_some()).await;
}

#[tokio::test]
async fn a_panic_in_a_link_stops_the_node() {
    LocalSet::new().run_until(a_link_that_panics()).await;
}

/// The least that calls may hold: four of the largest batches.
pub(super) const CALL_BYTES: usize = 4 << 20;

pub(super) fn with_little_room() -> NodeConfig {
    let limits = Limits { batch_bytes_max: CALL_BYTES / 4, ..Limits::default() };
    NodeConfig { call_bytes_max: CALL_BYTES, limits, ..NodeConfig::default() }
}

/// A fourth of it, with its key and some room for another one.
const LARGE: usize = (1 << 20) - 32;

async fn more_bytes_than_there_is_room_for() {
    let mut it = Alone::start(with_little_room()).await;
    let one = v1::ConsistencyLevel::One;
    let large = |key: &str| v1::PutRequest { value: vec![7; LARGE].into(), ..put(key, "", one) };
    let held = || it.node.shared.loop_metrics[0].call_bytes.held();
    it.stalled.send_replace(true);
    let (answer, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for call in 0..4 {
        let (mut kv, answer) = (it.kv.clone(), answer.clone());
        let request = large(&call.to_string());
        tokio::task::spawn_local(async move {
            let _ = answer.send(kv.put(request).await);
        });
    }
    eventually("four wait for the disk", async || held() == 4 * (LARGE + 1)).await;
    // One that comes in many pieces, one that comes in one, and a read.
    let small = v1::PutRequest { value: vec![7; 1_000].into(), ..put("small", "", one) };
    let refused = [
        it.kv.clone().put(large("4")).await.unwrap_err(),
        it.kv.clone().put(small.clone()).await.unwrap_err(),
        it.kv.clone().get(get("0", one)).await.unwrap_err(),
    ];
    for status in refused {
        let error = CallError::from(&status);
        assert_eq!((error.reason, error.outcome), (Reason::Overloaded, CallOutcome::NotApplied));
        assert_eq!(error.metadata["limit"], CALL_BYTES.to_string(), "{}", error.message);
    }
    it.stalled.send_replace(false);
    for _ in 0..4 {
        answers.recv().await.unwrap().expect("it has waited for its turn");
    }
    eventually("all is given back", async || held() == 0).await;
    it.kv.put(large("4")).await.expect("there is room again");
    it.kv.put(small).await.expect("there is room again");
}

#[tokio::test]
async fn values_in_calls_are_bounded_by_their_bytes() {
    LocalSet::new().run_until(more_bytes_than_there_is_room_for()).await;
}

async fn values_larger_than_usual() {
    const KEYS: usize = 12;
    let mut it = Alone::start(with_little_room()).await;
    let one = v1::ConsistencyLevel::One;
    for key in 0..KEYS {
        let value = vec![7; LARGE].into();
        it.kv.put(v1::PutRequest { value, ..put(&key.to_string(), "", one) }).await.unwrap();
    }
    for _ in 0..200 {
        it.kv.put(put("small", "v", one)).await.unwrap();
    }
    let mut left: Vec<_> = (0..KEYS).collect();
    let refused = || it.node.shared.counters.answers_refused.load(Ordering::Relaxed);
    let mut rounds = 0;
    while !left.is_empty() {
        let mut kv = it.kv.clone().max_decoding_message_size(usize::MAX);
        let key = |it: &usize| get(&it.to_string(), one).key.expect("a key");
        let keys: Vec<_> = left.iter().map(key).collect();
        let request = v1::BatchGetRequest {
            keyspace: "test".to_owned(),
            keys,
            consistency: level(one),
            ..Default::default()
        };
        let answer = kv.batch_get(request).await.unwrap().into_inner();
        let (before, mut results) = (left.len(), answer.results.into_iter());
        left.retain(|_| match results.next().unwrap().result.unwrap() {
            v1::batch_get_result::Result::Found(found) => {
                assert_eq!(found.value.len(), LARGE);
                false
            }
            v1::batch_get_result::Result::Error(error) => {
                let expected = ["BATCH_TOO_LARGE", "OVERLOADED", "READ_FAILED"];
                assert!(expected.contains(&error.reason.as_str()), "{error:?}");
                true
            }
        });
        assert!(left.len() < before, "each answer has some of them");
        rounds += 1;
        if rounds == 1 {
            let threw_away = refused();
            assert!(threw_away > 0, "all {KEYS} were read at once");
        }
    }
    let held = || it.node.shared.loop_metrics[0].call_bytes.held();
    eventually("all is taken", async || held() == 0).await;
}

#[tokio::test]
async fn what_is_read_is_bounded_by_its_bytes() {
    LocalSet::new().run_until(values_larger_than_usual()).await;
}
