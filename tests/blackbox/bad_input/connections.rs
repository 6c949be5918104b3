//! Connections that never come to a call: strangers of other protocols, silence, one byte at a time,
//! and more of them than the node takes.

use std::{net::SocketAddr, time::Duration};

use model::Key;
use proto::link;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    raw::{self, END_HEADERS, HEADERS, PREFACE, SETTINGS, frame},
    watch::{Books, Witness},
};
use crate::harness::{
    Api, Cluster, Keyspace, Options, PATIENCE, Random, datacenters, eventually, within,
};

async fn one_node(options: &Options) -> Cluster {
    let cluster = Cluster::start(&datacenters(&[1]), options).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster
}

/// The first bytes of a TLS 1.3 handshake.
fn tls_hello() -> Vec<u8> {
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(517, 0x2a);
    hello
}

/// What strangers say. None of it is HTTP/2.
fn foreign_openings(random: &mut Random) -> Vec<(&'static str, Vec<u8>)> {
    let mut wrong_end = PREFACE.to_vec();
    wrong_end[23] = b'x';
    vec![
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        ("HTTP/1.1, upgrade", b"GET / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n\r\n".to_vec()),
        ("TLS", tls_hello()),
        ("random bytes", random.bytes(4_096)),
        ("zeros", vec![0; 4_096]),
        ("Redis", b"*1\r\n$4\r\nPING\r\n".to_vec()),
        ("a preface that ends wrongly", wrong_end),
        ("a preface, then garbage", [PREFACE, &random.bytes(4_096)].concat()),
        ("a preface, then no settings", [PREFACE, &frame(HEADERS, END_HEADERS, 1, b"\x82")].concat()),
        ("a frame beyond all sizes", [PREFACE, &[0xff; 64]].concat()),
    ]
}

#[tokio::test]
async fn other_protocols() {
    let mut random = Random::new("other_protocols");
    let cluster = one_node(&Options::small_ring()).await;
    let api = cluster.api(0);
    api.status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, "plain").await;
    for address in [cluster.node(0).client, cluster.node(0).peer] {
        for (what, bytes) in foreign_openings(&mut random) {
            let ended = raw::send_until_closed(raw::connect(address).await, bytes).await;
            assert!(ended.bytes < 1_024, "{what}: {ended:?}");
        }
    }
    // Many at once.
    let mut strangers = Vec::new();
    for number in 0..200 {
        let openings = foreign_openings(&mut random);
        let bytes = openings[number % openings.len()].1.clone();
        let address = [cluster.node(0).client, cluster.node(0).peer][number / 10 % 2];
        strangers.push(tokio::spawn(async move {
            raw::send_until_closed(raw::connect(address).await, bytes).await;
        }));
    }
    for stranger in strangers {
        stranger.await.expect("closed");
    }
    assert!(api.counter("connections_refused").await > 100, "refusals are counted");
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

/// Sends the bytes one at a time, then nothing, until the node has had enough.
async fn dribble(address: SocketAddr, bytes: Vec<u8>, pause: Duration) {
    let stream = raw::connect(address).await;
    let (mut from, mut to) = stream.into_split();
    let writing = tokio::spawn(async move {
        for byte in bytes {
            if to.write_all(&[byte]).await.is_err() {
                break;
            }
            sleep(pause).await;
        }
        to
    });
    let mut chunk = [0; 4_096];
    let closed = async { while let Ok(1..) = from.read(&mut chunk).await {} };
    within("the node closes a connection without a call", PATIENCE, closed).await;
    writing.abort();
}

/// Half-open, silent and slow connections are closed by the node after its own limit, at both ports.
#[tokio::test]
async fn silence_and_dribbles() {
    let cluster = one_node(&Options::small_ring()).await;
    let api = cluster.api(0);
    api.status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, "plain").await;
    let mut strangers = Vec::new();
    for address in [cluster.node(0).client, cluster.node(0).peer] {
        let opening = raw::opening();
        for (bytes, pause_ms) in [
            (Vec::new(), 0),
            (PREFACE[..10].to_vec(), 1),
            (opening.clone(), 1),
            (opening.clone(), 1_000),
            ([&opening[..], &frame(SETTINGS, raw::ACK, 0, &[])].concat(), 250),
            // The first bytes of a hello that never comes.
            ([&link::PREFACE[..], &[100, 0, 0, 0]].concat(), 200),
            // The first bytes of a call that never comes.
            ([&opening[..], &[0, 1, 0, HEADERS]].concat(), 300),
        ] {
            for _ in 0..10 {
                let pause = Duration::from_millis(pause_ms);
                strangers.push(tokio::spawn(dribble(address, bytes.clone(), pause)));
            }
        }
    }
    for stranger in strangers {
        stranger.await.expect("closed");
    }
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

/// True if the node has not closed the connection: it says its settings first.
async fn is_admitted(stream: &mut TcpStream) -> bool {
    let mut byte = [0; 1];
    if stream.write_all(&raw::opening()).await.is_err() {
        return false;
    }
    matches!(timeout(PATIENCE, stream.read(&mut byte)).await, Ok(Ok(1)))
}

/// As many connections as the node may have open files, on both its ports: its database gets the files that it needs.
#[tokio::test]
async fn connections_leave_the_database_its_files() {
    const OPEN_FILES: u32 = 300;
    let mut options = Options::small_ring().with(&["--memory", "16M"]);
    options.open_files = Some(OPEN_FILES);
    let cluster = one_node(&options).await;
    let api = cluster.api(0);
    api.status().await.expect("connected");
    let mut strangers = Vec::new();
    for _ in 0..OPEN_FILES {
        strangers.push(raw::connect(cluster.node(0).client).await);
        strangers.push(raw::connect(cluster.node(0).peer).await);
    }
    // More than the log of a database this small may have, several times.
    let value = "x".repeat(64 << 10);
    for number in 0..200 {
        let key = Key::new(format!("key {number}"));
        let put = api.set("plain", &key, value.clone(), None).await;
        put.unwrap_or_else(|error| panic!("{error}\n{}", cluster.process(0).log()));
    }
    let log = cluster.process(0).log();
    assert!(!log.contains("os error 24"), "{log}");
}

/// More connections than the node takes: the rest are closed at once, those that stand are served, and
/// when some go others can come.
#[tokio::test]
async fn too_many() {
    const MOST: usize = 40;
    let options = Options::small_ring().with(&["--connections-max", &MOST.to_string()]);
    let cluster = one_node(&options).await;
    let api = cluster.api(0);
    api.status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, "plain").await;
    for round in 0..3 {
        let mut admitted = Vec::new();
        let mut refused = 0;
        for _ in 0..5 * MOST {
            let mut stream = raw::connect(cluster.node(0).client).await;
            if is_admitted(&mut stream).await {
                admitted.push(stream);
            } else {
                refused += 1;
            }
        }
        // The calls' own and the witness's take two.
        assert_eq!(admitted.len(), MOST - 2, "round {round}: {refused} refused");
        assert_eq!(api.counter("connections").await, u64::try_from(MOST).expect("few"));
        assert!(api.counter("connections_refused").await >= refused, "refusals are counted");
        drop(admitted);
        eventually("a new client is served again", async || {
            let new = Api::new(cluster.node(0).client);
            let put = new.set("plain", &Key::new("new"), "value", None).await;
            put.map(drop).map_err(|it| it.to_string())
        })
        .await;
    }
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}
