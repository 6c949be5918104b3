//! The port of nodes is an input too: strangers, other clusters, and peers that lie.

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use model::{Hlc, Key, KeyspaceId, Record, RequestId, StorageKey, Token, Version};
use proto::{
    internal::{
        Control, Frame, Hello, Mutation, MutationKind, Ping, Query, QueryAnswer, RangeAnswer,
        RangeQuery, Refusal, control,
    },
    link::{KeepAlive, LinkCodec, PREFACE},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::codec::Framed;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{
    raw,
    watch::{Books, Witness},
};
use crate::harness::{Cluster, Keyspace, Options, PATIENCE, Random, datacenters, level, within};
use proto::v1::ConsistencyLevel as Wire;

/// A stranger that presents itself soundly, with addresses where nobody listens.
fn hello() -> Hello {
    Hello {
        protocol: 2,
        cluster_id: Bytes::new(),
        node_id: Bytes::from_static(b"a stranger's id!"),
        storage_id: Bytes::from_static(b"a stranger's dsk"),
        incarnation: 1,
        io_loop: 0,
        datacenter: "dc1".to_owned(),
        rack: "rack9".to_owned(),
        client_address: "127.0.0.1:1".to_owned(),
        peer_address: "127.0.0.1:1".to_owned(),
        capacity: 1,
        software_version: "0".to_owned(),
        metadata_sequence: 0,
        clock_ceiling: 0,
        cluster_name: "quorate".to_owned(),
        seen: Vec::new(),
        process: 7,
        is_open: true,
        has_opened: true,
    }
}

/// A link to a node's peer port.
struct Link(Framed<TcpStream, LinkCodec>);

impl Link {
    /// Says a first frame, and hears the node's: a refusal is an error.
    async fn open(peer: SocketAddr, first: Frame) -> Result<Self, Status> {
        let mut link = Self(Framed::new(raw::connect(peer).await, LinkCodec::new(64 << 20)));
        link.say(first).await;
        match link.hear().await.refused {
            Some(refused) => Err(refused.into()),
            None => Ok(link),
        }
    }

    async fn hello(peer: SocketAddr, hello: Hello) -> Result<Self, Status> {
        Self::open(peer, Frame { hello: Some(hello), ..Frame::default() }).await
    }

    async fn say(&mut self, frame: Frame) {
        within("the node takes a frame", PATIENCE, self.0.send(&frame)).await.expect("a link");
    }

    async fn hear(&mut self) -> Frame {
        let begun = Instant::now();
        loop {
            if let Ok(next) = timeout(Duration::from_secs(1), self.0.next()).await {
                let heard = next.expect("the link goes on").expect("the link stands");
                return heard.unwrap_or_default();
            }
            assert!(begun.elapsed() < PATIENCE, "no frame");
            self.0.send(KeepAlive).await.expect("the link stands");
        }
    }

    /// Reads until a frame answers.
    async fn answer<T>(&mut self, mut find: impl FnMut(Frame) -> Option<T>) -> T {
        loop {
            if let Some(found) = find(self.hear().await) {
                return found;
            }
        }
    }

    /// A ping's answer: all that was said before has been dealt with by then.
    async fn ping(&mut self, number: u64) {
        let ping = Ping { sent_us: number, ..Ping::default() };
        let control = Control { control: Some(control::Control::Ping(ping)) };
        self.say(Frame { controls: vec![control], ..Frame::default() }).await;
        let is_pong = |it: &Control| matches!(&it.control, Some(control::Control::Pong(pong)) if pong.sent_us == number);
        self.answer(|frame| frame.controls.iter().any(is_pong).then_some(())).await;
    }

    /// Sends a mutation, and returns how it was refused; `None` if it was applied or held.
    async fn mutate(&mut self, frame: Frame, mutation: Mutation) -> Option<Refusal> {
        let operation = mutation.operation;
        self.say(Frame { mutations: vec![mutation], ..frame }).await;
        self.answer(|frame| {
            if frame.applied.contains(&operation) {
                return Some(None);
            }
            let answer = frame.mutation_answers.iter().find(|it| it.operation == operation)?;
            let refusal = Refusal::try_from(answer.refusal).expect("a known refusal");
            Some((refusal != Refusal::Unspecified).then_some(refusal))
        })
        .await
    }
}

fn refused(what: &str, link: Result<Link, Status>, code: Code, reason: &str) -> Status {
    let Err(status) = link else { panic!("{what}: let in") };
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{what}: {status:?}"));
    assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{what}: {status:?}");
    status
}

#[tokio::test]
async fn hellos() {
    let cluster = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster.api(0).status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, "plain").await;
    let peer = cluster.node(0).peer;
    for protocol in [0, 1, u32::MAX] {
        let link = Link::hello(peer, Hello { protocol, ..hello() }).await;
        let status = refused("a protocol", link, Code::FailedPrecondition, "VERSION_MISMATCH");
        let details = status.get_error_details();
        let metadata = &details.error_info().expect("checked").metadata;
        assert_eq!(
            (&metadata["required"], &metadata["actual"]),
            (&"2".into(), &protocol.to_string())
        );
    }
    for wrong in [
        Hello { cluster_id: Bytes::from_static(b"another cluster!"), ..hello() },
        Hello { cluster_name: "another".to_owned(), ..hello() },
        Hello { cluster_name: String::new(), ..hello() },
    ] {
        let what = format!("{wrong:?}");
        refused(
            &what,
            Link::hello(peer, wrong).await,
            Code::FailedPrecondition,
            "CLUSTER_MISMATCH",
        );
    }
    for wrong in [
        Hello { node_id: Bytes::new(), ..hello() },
        Hello { node_id: vec![0; 16].into(), ..hello() },
        Hello { node_id: vec![1; 1_000].into(), ..hello() },
        Hello { datacenter: String::new(), ..hello() },
        Hello { datacenter: "d".repeat(100_000), ..hello() },
        Hello { rack: String::new(), ..hello() },
        Hello { client_address: "nowhere".to_owned(), ..hello() },
        Hello { peer_address: String::new(), ..hello() },
        Hello { capacity: 0, ..hello() },
        Hello { capacity: u32::MAX, ..hello() },
    ] {
        let what = format!("{:.200}", format!("{wrong:?}"));
        refused(&what, Link::hello(peer, wrong).await, Code::PermissionDenied, "NOT_A_PEER");
    }
    refused(
        "no hello",
        Link::open(peer, Frame::default()).await,
        Code::PermissionDenied,
        "NOT_A_PEER",
    );
    // No first frame at all: the node does not wait for ever.
    let mut silent = Link(Framed::new(raw::connect(peer).await, LinkCodec::new(64 << 20)));
    let refused = silent.hear().await.refused.expect("silence is refused");
    assert_eq!(Status::from(refused).code(), Code::PermissionDenied);
    // Bytes that are no frame, a first frame that claims more than a hello has, one that is damaged, and HTTP/2.
    let gigantic = [&(2_u32 << 20).to_le_bytes()[..], &[1, 2, 3, 4]].concat();
    let no_message = [&9_u32.to_le_bytes()[..], &[0x64, 0x25, 0x0f, 0xe8], &[0xff; 9]].concat();
    let damaged = [&9_u32.to_le_bytes()[..], &[0; 4], &[0x11, 7, 0, 0, 0, 0, 0, 0, 0]].concat();
    for bytes in [&gigantic[..], &no_message, &damaged, &[9; 200]] {
        let said = [PREFACE, bytes].concat();
        let ended = raw::send_until_closed(raw::connect(peer).await, said).await;
        assert_eq!(ended.bytes, 0, "{bytes:?}: let in");
    }
    let ended = raw::send_until_closed(raw::connect(peer).await, raw::opening()).await;
    assert_eq!(ended.bytes, 0, "HTTP/2 is let in");
    let nodes = cluster.api(0).status().await.expect("a status").nodes;
    assert_eq!(nodes.len(), 1, "a stranger was noted: {nodes:?}");
    drop(silent);
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

/// What a lying peer needs to know of the cluster.
struct Liar {
    link: Link,
    layout_hash: u64,
    keyspace: KeyspaceId,
    operation: u64,
}

impl Liar {
    fn frame(&self) -> Frame {
        Frame { layout_hash: self.layout_hash, ..Frame::default() }
    }

    fn storage_key(&self, name: &str) -> StorageKey {
        let key = Key::new(name.to_owned());
        StorageKey::encode(self.keyspace, key.token(), &key)
    }

    fn mutation(&mut self, key: impl Into<Bytes>, record: impl Into<Bytes>) -> Mutation {
        self.operation += 1;
        let (key, record) = (key.into(), record.into());
        Mutation { operation: self.operation, key, record, ..Mutation::default() }
    }

    /// Sends a mutation that must be refused so.
    async fn refused(&mut self, what: &str, frame: Frame, mutation: Mutation, why: Refusal) {
        let refusal = self.link.mutate(frame, mutation).await;
        assert_eq!(refusal, Some(why), "{what}");
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("past 1970");
    u64::try_from(now.as_millis()).expect("64 bits")
}

fn record(key: &StorageKey, clock: Hlc) -> Bytes {
    let version = Version { hlc: clock, request: RequestId(7) };
    Record::encode(key, version, 0, Some(b"a lie")).into_bytes()
}

#[tokio::test]
async fn lies() {
    let mut random = Random::new("lies");
    let cluster = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    let keyspace = cluster.create(&Keyspace::named("plain")).await;
    let status = cluster.api(0).status().await.expect("a status");
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, "plain").await;
    let peer = cluster.node(0).peer;
    let stranger = Hello { cluster_id: status.cluster_id.clone(), ..hello() };
    let link = Link::hello(peer, stranger).await.expect("a sound hello");
    let layout_hash = status.layout_hash;
    let mut liar = Liar { link, layout_hash, keyspace: KeyspaceId(keyspace.id), operation: 100 };
    let (key, now) = (liar.storage_key("lie"), Hlc::from_ms(now_ms()));
    let sound = record(&key, now);

    // Damaged on the way, or made up: never stored.
    for at in 0..sound.len() {
        let mut damaged = sound.to_vec();
        damaged[at] ^= 1 << random.below(8);
        let (frame, mutation) = (liar.frame(), liar.mutation(key.as_bytes().clone(), damaged));
        liar.refused(&format!("byte {at} damaged"), frame, mutation, Refusal::Corrupt).await;
    }
    for length in [0, 1, 29] {
        let cut = sound.slice(..length);
        let (frame, mutation) = (liar.frame(), liar.mutation(key.as_bytes().clone(), cut));
        liar.refused("cut", frame, mutation, Refusal::Corrupt).await;
    }
    let other = liar.storage_key("other");
    let (frame, mutation) = (liar.frame(), liar.mutation(other.as_bytes().clone(), sound.clone()));
    liar.refused("under another key", frame, mutation, Refusal::Corrupt).await;
    // Keys that are none, or whose token is not theirs.
    let wrong_token = StorageKey::encode(liar.keyspace, Token(42), &Key::new("lie"));
    let record_there = record(&wrong_token, now);
    let (frame, mutation) =
        (liar.frame(), liar.mutation(wrong_token.as_bytes().clone(), record_there));
    liar.refused("a wrong token", frame, mutation, Refusal::Failed).await;
    for length in [0, 3, 11, 12, key.as_bytes().len() - 2] {
        let cut = key.as_bytes().slice(..length);
        let (frame, mutation) = (liar.frame(), liar.mutation(cut, sound.clone()));
        liar.refused("a cut key", frame, mutation, Refusal::Failed).await;
    }
    // Clocks far ahead, in the record and in the frame: not taken over.
    for ahead_ms in [60_000, 86_400_000 * 3_650] {
        let future = record(&key, Hlc::from_ms(now_ms() + ahead_ms));
        let (frame, mutation) = (liar.frame(), liar.mutation(key.as_bytes().clone(), future));
        liar.refused("a record ahead", frame, mutation, Refusal::ClockAhead).await;
        let clock = Hlc::from_ms(now_ms() + ahead_ms).0;
        let (frame, mutation) =
            (liar.frame(), liar.mutation(key.as_bytes().clone(), sound.clone()));
        liar.refused("a frame ahead", Frame { clock, ..frame }, mutation, Refusal::ClockAhead)
            .await;
    }
    // Planned by another layout.
    for wrong in [0, layout_hash ^ 1] {
        let mutation = liar.mutation(key.as_bytes().clone(), sound.clone());
        let frame = Frame { layout_hash: wrong, ..Frame::default() };
        liar.refused("another layout", frame, mutation, Refusal::StaleLayout).await;
    }
    let read =
        cluster.api(0).read("plain", &Key::new("lie"), level(Wire::All)).await.expect("a get");
    assert!(!read.found && read.version.is_none(), "a lie was stored: {read:?}");
    let put = cluster.api(0).set("plain", &Key::new("lie"), "truth", None).await.expect("a put");
    let stamped = put.version.expect("a version").clock >> 16;
    assert!(stamped < now_ms() + 10_000, "the clock was carried away");

    nonsense(&mut liar, &key, &mut random).await;
    let read =
        cluster.api(0).read("plain", &Key::new("lie"), level(Wire::All)).await.expect("a get");
    assert_eq!(&read.value[..], b"truth");
    let after = cluster.api(0).status().await.expect("a status");
    assert_eq!(
        (after.layout_hash, after.metadata_sequence),
        (layout_hash, status.metadata_sequence)
    );
    assert!(after.counters["peer_messages_malformed"] > 0, "{:?}", after.counters);
    assert!(after.counters["checksum_failures"] > 0 && after.counters["clocks_refused"] > 0);
    drop(liar);
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

/// Messages whose every field is wrong in some way. None may be believed, none may stop the node.
async fn nonsense(liar: &mut Liar, key: &StorageKey, random: &mut Random) {
    let kinds = |kind: control::Control| Control { control: Some(kind) };
    let operation = |random: &mut Random| random.next();
    for round in 0..50 {
        let bytes = |random: &mut Random| {
            let length = [0, 1, 16, 300, 20_000][random.below(5)];
            Bytes::from(random.bytes(length))
        };
        let mut frame = liar.frame();
        frame.phase = u32::MAX;
        frame.storage_ids_hash = random.next();
        frame.gossip = (0..20).map(|_| bytes(random)).collect();
        frame.controls = vec![
            kinds(control::Control::MetadataSequence(u64::MAX)),
            kinds(control::Control::MetadataRequest(true)),
            kinds(control::Control::Metadata(bytes(random))),
            kinds(control::Control::AgreementRequest(bytes(random))),
            kinds(control::Control::AgreementReply(bytes(random))),
            kinds(control::Control::Pong(Ping { sent_us: u64::MAX, ..Ping::default() })),
            Control { control: None },
        ];
        // Answers to questions that nobody asked.
        frame.applied = (0..100).map(|_| operation(random)).collect();
        frame.query_answers = vec![QueryAnswer {
            operation: operation(random),
            record: bytes(random),
            ..QueryAnswer::default()
        }];
        frame.range_answers = vec![RangeAnswer {
            operation: operation(random),
            keys: vec![bytes(random); 3],
            ..RangeAnswer::default()
        }];
        frame.queries = vec![Query { operation: 1, key: bytes(random), ..Query::default() }];
        frame.range_queries = vec![RangeQuery {
            operation: 1,
            start: bytes(random),
            end: bytes(random),
            reverse: round % 2 == 0,
            rows_max: u32::MAX,
            bytes_max: u32::MAX,
        }];
        // A mutation passed on for a coordinator that does not exist, to nodes that do not.
        let mut mutation = liar.mutation(key.as_bytes().clone(), record(key, Hlc::from_ms(1_000)));
        mutation.pass_on = (0..1_000).map(|it| it * 7).collect();
        mutation.origin = u32::MAX;
        mutation.origin_io_loop = u32::MAX;
        mutation.kind = if round % 2 == 0 { 99 } else { MutationKind::Hint.into() };
        mutation.traceparent = "x".repeat(10_000);
        frame.mutations = vec![mutation];
        liar.link.say(frame).await;
        liar.link.ping(1_000 + round).await;
    }
}
