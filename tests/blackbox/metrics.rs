//! What Prometheus is told: values that are true, in a format that is right, whatever else comes to
//! the port.

mod exposition;

use std::net::SocketAddr;

use model::Key;
use proto::{CallOutcome, Reason, v1};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::harness::{
    Cluster, Keyspace, Options, PATIENCE, Signal, count, datacenters, eventually, level, within,
};
use exposition::Exposition;

fn options() -> Options {
    Options::small_ring().with(&["--metrics-listen", "127.0.0.1:0", "--request-timeout", "2s"])
}

fn key(name: &str) -> Key {
    Key::new(name.to_owned())
}

/// Sends bytes, and takes what comes until the node closes the connection. One that is closed before
/// all has been read may lose the answer.
async fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    let mut answer = Vec::new();
    let talk = async {
        if stream.write_all(request).await.is_ok() {
            let _ = stream.read_to_end(&mut answer).await;
        }
    };
    within("the node answers and closes", PATIENCE, talk).await;
    answer
}

pub(crate) async fn scrape(address: SocketAddr) -> Exposition {
    let answer = exchange(address, b"GET /metrics HTTP/1.1\r\nHost: node\r\n\r\n").await;
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let mut head = head.split("\r\n");
    assert_eq!(head.next(), Some("HTTP/1.1 200 OK"));
    let header = |name: &str| head.clone().find_map(|it| it.strip_prefix(name));
    let format = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(header("content-type: "), Some(format));
    assert_eq!(header("content-length: "), Some(body.len().to_string().as_str()));
    Exposition::parse(body).unwrap_or_else(|complaint| panic!("{complaint}\n{body}"))
}

/// The address of a node's metrics.
fn metrics(cluster: &Cluster, at: usize) -> SocketAddr {
    cluster.node(at).metrics.expect("its ready line says where")
}

/// What clients are to have seen: operation, level, outcome, how often.
type Seen = (&'static str, &'static str, &'static str, u64);

/// The counts by outcome are exactly these, and the histograms hold as many.
fn assert_requests(shown: &Exposition, seen: &[Seen]) {
    let expected: f64 = seen.iter().map(|it| it.3 as f64).sum();
    for (operation, level, outcome, count) in seen {
        let labels = [("operation", *operation), ("level", *level), ("outcome", *outcome)];
        let value = shown.value("quorate_requests_total", &labels);
        assert_eq!(value, Some(*count as f64), "{labels:?}");
        let labels = &labels[..2];
        let of_both = seen.iter().filter(|it| (it.0, it.1) == (*operation, *level));
        let timed = shown.value("quorate_request_duration_seconds_count", labels);
        assert_eq!(timed, Some(of_both.map(|it| it.3 as f64).sum()), "{labels:?}");
        let took = shown.value("quorate_request_duration_seconds_sum", labels);
        assert!(took > Some(0.0), "{labels:?}: {took:?}");
    }
    assert_eq!(shown.sum("quorate_requests_total"), expected, "and nothing else");
    assert_eq!(shown.sum("quorate_request_duration_seconds_count"), expected);
}

#[tokio::test]
async fn requests_by_level_and_outcome() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &options()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let (api, address) = (cluster.api(0), metrics(&cluster, 0));
    assert_requests(&scrape(address).await, &[]);

    let (one, all) = (level(v1::ConsistencyLevel::One), level(v1::ConsistencyLevel::All));
    for number in 0..3 {
        api.set("plain", &key(&number.to_string()), "value", all).await.expect("all are up");
    }
    for _ in 0..2 {
        assert!(api.read("plain", &key("0"), one).await.expect("one is up").found);
    }
    // The keyspace's own level, and one that has no name.
    api.read("plain", &key("1"), None).await.expect("a quorum is up");
    api.remove("plain", &key("2"), count(2)).await.expect("two are up");
    let error = api.read("nowhere", &key("0"), one).await.unwrap_err();
    assert_eq!(error.reason, Reason::KeyspaceNotFound);
    let item = |name: &str, value: usize| v1::BatchWriteItem {
        key: Some(key(name).into()),
        write: Some(v1::batch_write_item::Write::Put(vec![b'v'; value].into())),
        ..v1::BatchWriteItem::default()
    };
    let batch = v1::BatchWriteRequest {
        keyspace: "plain".to_owned(),
        items: vec![item("small", 1), item("large", 2 << 20)],
        consistency: one,
        ..v1::BatchWriteRequest::default()
    };
    assert_eq!(api.batch_write(batch).await.expect("an answer").results.len(), 2);
    let mut seen = vec![
        ("put", "ALL", "ok", 3),
        ("get", "ONE", "ok", 2),
        ("get", "QUORUM", "ok", 1),
        ("delete", "COUNT", "ok", 1),
        ("get", "UNRESOLVED", "not_applied", 1),
        ("batch_write", "ONE", "not_applied", 1),
    ];
    let shown = scrape(address).await;
    assert_requests(&shown, &seen);
    // Three puts, a delete, and the small one of the batch.
    assert_eq!(shown.value("quorate_writes_acknowledged_total", &[]), Some(5.0));
    assert_eq!(shown.value("quorate_peers_up", &[]), Some(2.0));
    assert_eq!(shown.sum("quorate_hints_waiting"), 0.0);
    assert!(shown.value("quorate_row_cache_bytes", &[]) > Some(0.0));

    eventually("the replicas are known to agree", async || {
        let shown = scrape(address).await;
        let of = |name: &str| shown.value(name, &[("keyspace", "plain")]);
        let all = of("quorate_convergence_partitions");
        // 16 partitions, which two other nodes hold too.
        assert_eq!(all.unwrap_or(32.0), 32.0);
        let same = of("quorate_convergence_partitions_same");
        if all.is_some() && same == all { Ok(()) } else { Err(format!("{same:?} of {all:?}")) }
    })
    .await;

    cluster.process(2).signal(Signal::Pause);
    let error = api.set("plain", &key("3"), "value", all).await.unwrap_err();
    assert_eq!((error.reason, error.outcome), (Reason::WriteTimeout, CallOutcome::Unknown));
    cluster.kill(&[2]);
    cluster.wait_all_up().await;
    let error = api.set("plain", &key("3"), "value", all).await.unwrap_err();
    assert_eq!(error.reason, Reason::NotEnoughReplicas);
    seen.extend([("put", "ALL", "unknown", 1), ("put", "ALL", "not_applied", 1)]);
    let away = cluster.node(2).id.clone();
    let client = cluster.node(2).client.to_string();
    let of_away = [("node", &*away), ("address", &*client), ("datacenter", "dc1")];
    let ordinary = [&of_away[..], &[("class", "ordinary")]].concat();
    let shown = eventually("the write is kept for the one that is away", async || {
        let shown = scrape(address).await;
        match shown.value("quorate_hints_waiting", &ordinary) {
            Some(1.0) => Ok(shown),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert_requests(&shown, &seen);
    assert!(shown.value("quorate_hints_waiting_bytes", &ordinary) > Some(0.0));
    assert_eq!(shown.value("quorate_peer_up", &of_away), Some(0.0));
    let peers = |state: &str| shown.value(&format!("quorate_peers_{state}"), &[]);
    assert_eq!((peers("up"), peers("down")), (Some(1.0), Some(1.0)));
}

#[tokio::test]
async fn bad_input_at_the_port_of_metrics() {
    let cluster = Cluster::start(&datacenters(&[1]), &options()).await;
    let replicas = vec![("dc1".to_owned(), 1)];
    cluster.create(&Keyspace { replicas, ..Keyspace::named("plain") }).await;
    let (api, address) = (cluster.api(0), metrics(&cluster, 0));
    let over_long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let endless = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(1 << 20));
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nHost: node\r\nContent-Length: 4\r\n\r\nbody",
        b"GET /other HTTP/1.1\r\nHost: node\r\n\r\n",
        over_long.as_bytes(),
        endless.as_bytes(),
    ] {
        let answer = exchange(address, request).await;
        let refused = answer.starts_with(b"HTTP/1.1 4") || answer.is_empty();
        assert!(refused, "{}", String::from_utf8_lossy(&answer));
        scrape(address).await;
    }
    let before = cluster.process(0).sockets();
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(address).await.expect("a listener"));
    }
    let shown = scrape(address).await;
    assert_eq!(shown.value("quorate_peers_up", &[]), Some(0.0));
    api.set("plain", &key("key"), "value", None).await.expect("clients do not notice");
    eventually("most strangers are closed", async || {
        let open = cluster.process(0).sockets() - before;
        if open <= 16 { Ok(()) } else { Err(format!("{open} sockets more")) }
    })
    .await;
    assert!(scrape(address).await.value("quorate_connections_refused_total", &[]) >= Some(84.0));
    drop(idle);
}

#[tokio::test]
async fn metrics_are_off_by_default() {
    let cluster = Cluster::start_bare(&datacenters(&[1]), &Options::default()).await;
    assert_eq!(cluster.node(0).metrics, None);
}
