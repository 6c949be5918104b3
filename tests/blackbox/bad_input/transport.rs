//! Calls that are broken as messages: bodies that are no protobuf, that are too large, compressed or
//! cut; deadlines that are none; methods that do not exist; clients at the wrong port.

use bytes::{BufMut, Bytes, BytesMut};
use model::Key;
use prost::Message;
use proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    raw::{self, DATA, END_HEADERS, END_STREAM, HEADERS, frame, message},
    watch::{Books, Witness},
};
use crate::harness::{Api, Cluster, Keyspace, Options, Signal, datacenters, eventually, level};
use tokio::io::AsyncWriteExt;

const PUT: &str = "/quorate.v1.KvService/Put";

fn put(key: &str, value: impl Into<Bytes>) -> v1::PutRequest {
    v1::PutRequest {
        keyspace: "plain".to_owned(),
        key: Some(Key::new(key.to_owned()).into()),
        value: value.into(),
        ..v1::PutRequest::default()
    }
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details.error_info().map(|it| it.reason.clone()).unwrap_or_default()
}

async fn one_node() -> Cluster {
    let cluster = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster
}

#[tokio::test]
async fn bodies() {
    let cluster = one_node().await;
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, "plain").await;
    let api = Api::new(cluster.node(0).client);
    api.status().await.expect("connected");
    let accepted = api.counter("connections_accepted").await;
    let invalid = api.counter("calls_invalid").await;

    // Bytes that are no message of the type, text that is no text, a length without its bytes.
    let mut not_text = BytesMut::new();
    not_text.put_slice(&[0x0a, 2, 0xc3, 0x28]);
    let sound = put("key", "value").encode_to_vec();
    let bodies: [&[u8]; 6] = [
        b"\xff\xff\xff\xff",
        &not_text,
        &sound[..sound.len() - 1],
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0b",
        &[0x80; 40],
    ];
    for body in bodies {
        for path in [
            PUT,
            "/quorate.v1.KvService/Scan",
            "/quorate.v1.KvService/BatchWrite",
            "/quorate.v1.AdminService/CreateKeyspace",
        ] {
            let called = raw::call(api.channel(), path, &[], vec![message(body)]).await;
            let Err(status) = called else { continue };
            assert_eq!(status.code(), Code::InvalidArgument, "{path} {body:?}: {status:?}");
            assert_eq!(reason(&status), "MALFORMED_MESSAGE", "{path} {body:?}: {status:?}");
        }
        let status = raw::call(api.channel(), PUT, &[], vec![message(body)]).await.unwrap_err();
        assert_eq!(reason(&status), "MALFORMED_MESSAGE", "{body:?}: {status:?}");
    }
    // Larger than any message may be: by what it claims, and by what it has.
    let huge = put("key", vec![1; 5 << 20]);
    let limit = (4 << 20) + (64 << 10);
    let claims: [Vec<Bytes>; 3] = [
        vec![message(&huge.encode_to_vec())],
        vec![Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff])],
        vec![Bytes::from_static(&[0, 0x7f, 0xff, 0xff, 0xff]), Bytes::from(vec![1; 1 << 20])],
    ];
    for body in claims {
        let status = raw::call(api.channel(), PUT, &[], body).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert_eq!(reason(&status), "MESSAGE_TOO_LARGE", "{status:?}");
        let details = status.get_error_details();
        assert_eq!(details.error_info().expect("checked").metadata["limit"], limit.to_string());
    }
    // Compressed, in ways that the node was never asked to understand.
    let mut compressed = message(&sound).to_vec();
    compressed[0] = 1;
    for encoding in ["gzip", "zstd", "nonsense"] {
        let body = vec![Bytes::from(compressed.clone())];
        let status =
            raw::call(api.channel(), PUT, &[("grpc-encoding", encoding)], body).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{encoding}: {status:?}");
    }
    for first in [1, 2, 255] {
        compressed[0] = first;
        let body = vec![Bytes::from(compressed.clone())];
        let status = raw::call(api.channel(), PUT, &[], body).await.unwrap_err();
        assert_eq!(reason(&status), "MALFORMED_MESSAGE", "flag {first}: {status:?}");
    }
    // No message at all, part of one, two instead of one.
    let cut = message(&sound).slice(..7);
    for body in [vec![], vec![cut], vec![Bytes::from_static(&[0, 0])]] {
        let status = raw::call(api.channel(), PUT, &[], body).await.unwrap_err();
        assert_ne!(status.code(), Code::Ok, "{status:?}");
    }
    let read = api.read("plain", &Key::new("key"), None).await.expect("a get");
    assert!(!read.found, "something of all that was written");
    // In pieces of one byte it is as good as whole.
    let pieces = message(&sound).chunks(1).map(Bytes::copy_from_slice).collect();
    raw::call(api.channel(), PUT, &[], pieces).await.expect("a sound message");

    assert_eq!(api.counter("connections_accepted").await, accepted, "the connection was kept");
    assert!(api.counter("calls_invalid").await > invalid + 20, "what cannot be read is counted");
    drop(api);
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

#[tokio::test]
async fn methods_and_ports() {
    let cluster = one_node().await;
    let sound = message(&put("key", "value").encode_to_vec());
    let (clients, peers) = (cluster.api(0), Api::new(cluster.node(0).peer));
    for path in [
        "/quorate.v1.KvService/Nothing",
        "/quorate.v1.Nothing/Put",
        "/quorate.v2.KvService/Put",
        "/",
    ] {
        let status =
            raw::call(clients.channel(), path, &[], vec![sound.clone()]).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{path}: {status:?}");
    }
    // What nodes say to each other is no gRPC, and has a port of its own.
    for path in [PUT, "/quorate.v1.AdminService/GetClusterStatus", "/grpc.health.v1.Health/Check"] {
        let status = raw::call(peers.channel(), path, &[], vec![sound.clone()]).await.unwrap_err();
        let cut_off = matches!(status.code(), Code::Unknown | Code::Unavailable);
        assert!(cut_off && status.details().is_empty(), "{path} at the peer port: {status:?}");
    }
    assert!(!clients.read("plain", &Key::new("key"), None).await.expect("a get").found);
}

/// Sends one call by hand, headers as given, and waits for what the node says of the stream.
async fn call_with_timeout(cluster: &Cluster, timeout: &str, request: &v1::PutRequest) -> Vec<u8> {
    let mut stream = raw::connect(cluster.node(0).client).await;
    let block = raw::call_headers(PUT, &[("grpc-timeout", timeout)]);
    let body = message(&request.encode_to_vec());
    let bytes =
        [raw::opening(), frame(HEADERS, END_HEADERS, 1, &block), frame(DATA, END_STREAM, 1, &body)];
    stream.write_all(&bytes.concat()).await.expect("sent");
    raw::read_until(&mut stream, HEADERS).await.3.to_vec()
}

/// Deadlines by hand: a client library would give up by itself before the node could answer.
#[tokio::test]
async fn deadlines() {
    let cluster = one_node().await;
    let api = cluster.api(0);
    for timeout in ["0n", "0m", "0H"] {
        call_with_timeout(&cluster, timeout, &put("late", "late")).await;
    }
    // Answered; and nothing was done.
    let late = api.read("plain", &Key::new("late"), None).await.expect("a get");
    assert!(!late.found && late.version.is_none(), "{late:?}");
    // What is no deadline is none: the call is served, and nothing breaks.
    for (at, timeout) in
        ["", "x", "1", "-1S", "1.5S", "99999999999S", "S", "1 S", "1s"].iter().enumerate()
    {
        let key = format!("served {at}");
        call_with_timeout(&cluster, timeout, &put(&key, "value")).await;
        eventually(&format!("served in spite of {timeout:?}"), async || {
            let read = api.read("plain", &Key::new(key.clone()), None).await;
            if read.expect("a get").found { Ok(()) } else { Err("not there".to_owned()) }
        })
        .await;
    }
}

/// A request whose bytes stop coming is answered by the node's own limit, and nothing is written.
#[tokio::test]
async fn bodies_that_stall() {
    let options = Options::small_ring().with(&["--request-timeout", "100ms"]);
    let cluster = Cluster::start(&datacenters(&[1]), &options).await;
    cluster.create(&Keyspace::named("plain")).await;
    let api = cluster.api(0);
    let whole = message(&put("stalled", "value").encode_to_vec());
    for path in [PUT, "/quorate.v1.AdminService/ListKeyspaces"] {
        let part = whole.slice(..whole.len() - 1);
        let status = raw::call_stalled(api.channel(), path, part).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{path}: {status:?}");
        assert_eq!(reason(&status), "DEADLINE_PASSED", "{path}");
    }
    assert!(!api.read("plain", &Key::new("stalled"), None).await.expect("a get").found);
}

/// Requests that have come in part count by their bytes, and no more of them are kept than there is room for.
#[tokio::test]
async fn requests_that_never_end_are_bounded() {
    const LIMIT: u64 = 16 << 20;
    let options = ["--call-bytes-max", "16M", "--request-timeout", "4s"];
    let options = Options::small_ring().with(&options);
    let cluster = Cluster::start(&datacenters(&[1]), &options).await;
    cluster.create(&Keyspace::named("plain")).await;
    let api = cluster.api(0);
    let books = Books::of(&cluster, 0).await;
    let value = "v".repeat((1 << 20) - 1_000);
    let whole = message(&put("stalled", value.clone()).encode_to_vec());
    let mut calls = Vec::new();
    for _ in 0..24 {
        let (channel, part) = (Api::new(cluster.node(0).client).channel(), whole.clone());
        let part = part.slice(..part.len() - 1);
        calls.push(tokio::spawn(async move { raw::call_stalled(channel, PUT, part).await }));
    }
    eventually("there is no room for all of them", async || {
        let refused = api.counter("calls_overloaded").await;
        if refused >= 8 { Ok(()) } else { Err(format!("{refused} refused")) }
    })
    .await;
    let held = api.counter("call_bytes").await;
    assert!((LIMIT / 2..=LIMIT).contains(&held), "{held}");
    for call in calls {
        let status = call.await.expect("no panic").unwrap_err();
        assert_eq!(reason(&status), "DEADLINE_PASSED", "{status:?}");
    }
    books.assert_balanced(&cluster).await;
    api.set("plain", &Key::new("whole"), value, None).await.expect("there is room again");
}

/// A client that hangs up in the middle of a write leaves no work behind, and the write goes on.
#[tokio::test]
async fn a_client_hangs_up() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let api = cluster.api(0);
    api.status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;
    cluster.process(2).signal(Signal::Pause);
    let mut calls = Vec::new();
    for number in 0..20 {
        let request = v1::PutRequest {
            consistency: level(v1::ConsistencyLevel::All),
            ..put(&format!("key {number}"), "value")
        };
        let gone = Api::new(cluster.node(0).client);
        calls.push(tokio::spawn(async move { gone.put(request).await }));
    }
    eventually("all writes are under way", async || {
        let under_way = api.counter("operations_in_flight").await;
        if under_way >= 20 { Ok(()) } else { Err(format!("{under_way}")) }
    })
    .await;
    for call in &calls {
        call.abort();
    }
    for number in 0..20 {
        let key = Key::new(format!("key {number}"));
        eventually("the write goes on", async || {
            let read = api.read("plain", &key, level(v1::ConsistencyLevel::Quorum)).await;
            let read = read.map_err(|it| it.to_string())?;
            if read.found { Ok(()) } else { Err("not there".to_owned()) }
        })
        .await;
    }
    cluster.process(2).signal(Signal::Resume);
    cluster.wait_all_up().await;
    books.assert_balanced(&cluster).await;
}

/// A node that stops says so, to callers and to health checks, while it finishes what it has begun.
#[tokio::test]
async fn a_node_that_drains() {
    let options = Options::small_ring().with(&["--shutdown-grace", "30s"]);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("plain")).await;
    let api = cluster.api(0);
    let mut health = tonic_health::pb::health_client::HealthClient::new(api.channel());
    let mut healthy = async || {
        let check = tonic_health::pb::HealthCheckRequest::default();
        health.check(check).await.map(|it| it.into_inner().status)
    };
    let serving = tonic_health::pb::health_check_response::ServingStatus::Serving;
    eventually("it is healthy", async || {
        let status = healthy().await.map_err(|it| it.to_string())?;
        if status == i32::from(serving) { Ok(()) } else { Err(format!("status {status}")) }
    })
    .await;
    // An operation that takes as long as its deadline keeps the node from ending at once.
    cluster.process(2).signal(Signal::Pause);
    let slow = {
        let consistency = level(v1::ConsistencyLevel::All);
        let (api, request) = (api.clone(), v1::PutRequest { consistency, ..put("slow", "value") });
        tokio::spawn(async move { api.put(request).await })
    };
    eventually("the slow write is under way", async || {
        let under_way = api.counter("operations_in_flight").await;
        if under_way > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    cluster.process(0).signal(Signal::Terminate);
    let error = eventually("calls are refused", async || {
        match api.set("plain", &Key::new("late"), "value", None).await {
            Ok(_) => Err("served".to_owned()),
            Err(error) => Ok(error),
        }
    })
    .await;
    assert_eq!(error.reason, proto::Reason::Draining, "{error}");
    assert_eq!((error.code, error.outcome), (Code::Unavailable, proto::CallOutcome::NotApplied));
    assert!(error.retry_after.is_some());
    eventually("it is not healthy any more", async || {
        let status = healthy().await.map_err(|it| it.to_string())?;
        if status == i32::from(serving) { Err("serving".to_owned()) } else { Ok(()) }
    })
    .await;
    let error = slow.await.expect("no panic").unwrap_err();
    assert_eq!(error.outcome, proto::CallOutcome::Unknown, "it was finished: {error}");
    assert_eq!(error.metadata["received"], "2", "it was finished: {error:?}");
    assert!(cluster.wait_stopped(0).success());
    cluster.process(2).signal(Signal::Resume);
}
