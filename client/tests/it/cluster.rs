//! Connections and topology: who is called, and how the client keeps up with the cluster.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use client::{
    CallError, Client, ClientConfig, Connecting, Connector, ConsistencyLevel, Reason, TcpConnector,
    wire,
};
use futures_util::future::join_all;

use crate::fake::{Answer, Fake};

#[tokio::test]
async fn calls_go_to_the_clients_own_datacenter() {
    let fake = Fake::start(&["a", "a", "b", "b"]).await;
    let keyspace = fake.keyspace().await;
    assert_eq!(keyspace.client().datacenter(), "a");
    for _ in 0..20 {
        keyspace.get("key").await.unwrap();
    }
    let mut path = fake.path();
    path.sort_unstable();
    path.dedup();
    assert_eq!(path, [0, 1]);
    let config = ClientConfig { datacenter: Some("b".to_owned()), ..fake.config() };
    let keyspace = Client::connect(config).await.unwrap().keyspace("k");
    keyspace.get("key").await.unwrap();
    assert!(fake.path()[20] >= 2);
}

#[tokio::test]
async fn only_a_call_at_a_local_level_stays_there_at_any_price() {
    let mut fake = Fake::start(&["a", "b"]).await;
    let keyspace = fake.keyspace().await;
    fake.stop(0);
    let local = keyspace.get("key").consistency(ConsistencyLevel::LocalQuorum).await;
    assert_eq!(local.unwrap_err().reason(), Reason::ConnectionLost);
    keyspace.get("key").consistency(ConsistencyLevel::Quorum).await.unwrap();
    keyspace.get("key").await.unwrap(); // The keyspace's default is QUORUM.
    assert_eq!(fake.path(), [1, 1]);
}

#[tokio::test]
async fn a_datacenter_that_is_not_there_is_refused() {
    let fake = Fake::start(&["a", "b"]).await;
    let config = ClientConfig { datacenter: Some("c".to_owned()), ..fake.config() };
    let error = Client::connect(config).await.err().unwrap();
    assert_eq!((error.reason(), error.field()), (Reason::InvalidField, Some("datacenter")));
    assert!(error.message().contains("the cluster has a, b"), "{error}");
}

#[tokio::test]
async fn connecting_tries_the_addresses_in_turn() {
    let mut fake = Fake::start(&["a", "a"]).await;
    fake.stop(0);
    fake.keyspace().await.put("key", "value").await.unwrap();
    fake.stop(1);
    let error = Client::connect(fake.config()).await.err().unwrap();
    assert_eq!((error.reason(), error.attempts()), (Reason::ConnectionLost, 2));
    assert_eq!(error.node(), Some(fake.address(1)));
}

#[tokio::test]
async fn a_node_that_comes_back_serves_again() {
    let mut fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.stop(1);
    while fake.path().len() < 4 {
        keyspace.get("key").await.unwrap();
    }
    assert_eq!(fake.path(), [0; 4]);
    fake.restart(1).await;
    let returned = async {
        while !fake.path().contains(&1) {
            keyspace.get("key").await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(20), returned).await.unwrap();
}

#[tokio::test]
async fn the_last_clone_takes_its_connections_and_its_task_along() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let client = fake.client().await;
    let keyspace = client.clone().keyspace("k");
    join_all((0..30).map(|_| keyspace.get("key").send())).await;
    fake.connections(3).await;
    drop(client);
    keyspace.get("key").await.unwrap();
    drop(keyspace);
    // The background task holds the connections too: they close only if it has ended.
    tokio::time::timeout(Duration::from_secs(20), fake.connections(0)).await.unwrap();
}

#[tokio::test]
async fn one_connection_to_a_node_carries_all_calls() {
    let fake = Fake::start(&["a"]).await;
    let counting = Arc::new(Counting::default());
    let config = ClientConfig { connector: counting.clone(), ..fake.config() };
    let keyspace = Client::connect(config).await.unwrap().keyspace("k");
    for result in join_all((0..100).map(|_| keyspace.put("key", "value").send())).await {
        result.unwrap();
    }
    assert_eq!(counting.0.load(Ordering::Relaxed), 1);
    let counting = Arc::new(Counting::default());
    let (connector, connections_per_node) = (counting.clone(), 3);
    let config = ClientConfig { connector, connections_per_node, ..fake.config() };
    let keyspace = Client::connect(config).await.unwrap().keyspace("k");
    join_all((0..100).map(|_| keyspace.put("key", "value").send())).await;
    assert_eq!(counting.0.load(Ordering::Relaxed), 3);
}

/// Counts the connections that it opens.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Connector for Counting {
    fn connect(&self, address: &str) -> Connecting {
        self.0.fetch_add(1, Ordering::Relaxed);
        TcpConnector.connect(address)
    }
}

#[tokio::test]
async fn a_connection_that_takes_too_long_was_never_sent_into() {
    let fake = Fake::start(&["a", "a"]).await;
    let slow = Arc::new(Slow(fake.address(1).to_owned()));
    let connect_timeout = Duration::from_millis(500);
    let config = ClientConfig { connector: slow, connect_timeout, ..fake.config() };
    let keyspace = Client::connect(config).await.unwrap().keyspace("k");
    for _ in 0..9 {
        keyspace.put("key", "value").await.unwrap();
    }
    assert_eq!(fake.path(), [0; 9]);
}

/// Never connects to one address.
struct Slow(String);

impl Connector for Slow {
    fn connect(&self, address: &str) -> Connecting {
        if address == self.0 {
            Box::pin(std::future::pending())
        } else {
            TcpConnector.connect(address)
        }
    }
}

#[tokio::test]
async fn a_changed_layout_is_noticed_by_who_coordinates() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    let before = fake.topology_calls_so_far();
    keyspace.get("key").await.unwrap();
    // The nodes change places: what was node 0 is node 1 now.
    fake.change_topology(|it| {
        it.nodes.reverse();
        (it.layout_version, it.layout_hash, it.metadata_sequence) = (2, 2, 2);
    });
    fake.script([Answer::From(7)]);
    keyspace.get("key").await.unwrap();
    fake.topology_calls(before + 1).await;
    let newer = async {
        while keyspace.client().topology().layout_version() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), newer).await.unwrap();
    assert_eq!(keyspace.client().topology().nodes()[0].address, fake.address(1));
    keyspace.get("key").await.unwrap();
}

#[tokio::test]
async fn the_topology_is_asked_for_now_and_then() {
    let fake = Fake::start(&["a"]).await;
    let topology_refresh_interval = Duration::from_millis(50);
    let config = ClientConfig { topology_refresh_interval, ..fake.config() };
    let client = Client::connect(config).await.unwrap();
    fake.topology_calls(fake.topology_calls_so_far() + 3).await;
    drop(client);
}

#[tokio::test]
async fn a_hostile_topology_changes_nothing() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.change_topology(|it| {
        it.assignments[0].nodes[0] = 99;
        (it.layout_version, it.layout_hash, it.metadata_sequence) = (2, 2, 2);
    });
    keyspace.client().refresh_topology().await;
    assert_eq!(keyspace.client().topology().layout_version(), 1);
    keyspace.put("key", "value").await.unwrap();
    let error = Client::connect(fake.config()).await.err().unwrap();
    assert_eq!(error.reason(), Reason::MalformedMessage);
}

#[tokio::test]
async fn before_the_first_layout_calls_go_where_the_client_was_told() {
    let fake = Fake::start(&["a"]).await;
    fake.change_topology(|it| *it = wire::GetTopologyResponse::default());
    let keyspace = fake.keyspace().await;
    fake.script(vec![Answer::Error(CallError::new(Reason::NoLayout, "no layout")); 4]);
    let error = keyspace.put("key", "value").await.unwrap_err();
    assert_eq!((error.reason(), error.attempts()), (Reason::NoLayout, 4));
    assert_eq!(fake.path(), [0; 4]);
}

#[tokio::test]
async fn a_keyspace_is_known_as_soon_as_it_is_created() {
    let fake = Fake::start(&["a", "a"]).await;
    let client = fake.client().await;
    assert!(!client.topology().has_keyspace("new"));
    let keyspace = wire::Keyspace { name: "new".to_owned(), ..wire::Keyspace::default() };
    let request = wire::CreateKeyspaceRequest {
        keyspace: Some(keyspace),
        ..wire::CreateKeyspaceRequest::default()
    };
    assert_eq!(client.admin().create_keyspace(request).await.unwrap().name, "new");
    assert!(client.topology().has_keyspace("new"));
}

#[tokio::test]
async fn administration_asks_the_node_it_was_told_to() {
    let mut fake = Fake::start(&["a", "a", "a"]).await;
    let client = fake.client().await;
    for _ in 0..3 {
        assert_eq!(client.admin().status().await.unwrap().answered_by, 0);
    }
    let third = client.admin().at_node(fake.address(2)).unwrap();
    assert_eq!(third.status().await.unwrap().answered_by, 2);
    fake.stop(0);
    assert_ne!(client.admin().status().await.unwrap().answered_by, 0);
    fake.stop(2);
    assert_eq!(third.status().await.unwrap_err().reason(), Reason::ConnectionLost);
    assert!(client.admin().at_node("nonsense").is_err());
}
