//! Floods of frames, each of which a sound connection may carry now and then. The node ends them or
//! bears them; others are served meanwhile, and memory stays bounded.

use bytes::Bytes;
use model::Key;
use prost::Message;
use proto::v1;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    raw::{
        self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, PING,
        PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, message,
    },
    watch::{Books, Witness},
};
use crate::harness::{
    Cluster, Keyspace, Options, PATIENCE, Random, datacenters, eventually, within,
};

const GET: &str = "/quorate.v1.KvService/Get";
const MANY: u32 = 100_000;

async fn one_node() -> (Cluster, Books, Witness) {
    let cluster = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster.api(0).status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, "plain").await;
    (cluster, books, witness)
}

/// A connection that has made one sound call, so that it is no stranger.
async fn acquainted(cluster: &Cluster) -> TcpStream {
    let mut stream = raw::connect(cluster.node(0).client).await;
    let block = raw::call_headers(GET, &[]);
    let get = v1::GetRequest {
        keyspace: "plain".to_owned(),
        key: Some(Key::new("key").into()),
        ..Default::default()
    };
    let body = message(&get.encode_to_vec());
    let bytes =
        [raw::opening(), frame(HEADERS, END_HEADERS, 1, &block), frame(DATA, END_STREAM, 1, &body)];
    stream.write_all(&bytes.concat()).await.expect("sent");
    raw::read_until(&mut stream, HEADERS).await;
    stream
}

fn repeated(one: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..MANY).flat_map(one).collect()
}

/// Streams that clients open have odd numbers; the first was used.
fn stream_number(at: u32) -> u32 {
    2 * at + 3
}

#[tokio::test]
async fn floods_that_end_the_connection() {
    let mut random = Random::new("floods_that_end_the_connection");
    let (cluster, books, witness) = one_node().await;
    let block = raw::call_headers(GET, &[]);
    let rapid_resets = repeated(|at| {
        let stream = stream_number(at);
        let cancel = 8_u32.to_be_bytes();
        [frame(HEADERS, END_HEADERS, stream, &block), frame(RST_STREAM, 0, stream, &cancel)]
            .concat()
    });
    let setting = [0, 4, 0, 0, 0xff, 0xff];
    let junk = raw::header_block(&[("x-filler", &"y".repeat(100))]);
    let headers = |count: usize| junk.repeat(count);
    let endless_headers = |bytes: &[u8], count: usize| {
        let mut flood = frame(HEADERS, 0, 3, &raw::call_headers(GET, &[]));
        for _ in 0..count {
            flood.extend(frame(CONTINUATION, 0, 3, bytes));
        }
        flood
    };
    let floods: Vec<(&str, Vec<u8>)> = vec![
        ("100,000 pings", repeated(|_| frame(PING, 0, 0, &[7; 8]))),
        ("100,000 settings", repeated(|_| frame(SETTINGS, 0, 0, &setting))),
        ("100,000 resets of new calls", rapid_resets),
        ("headers without end", endless_headers(&headers(100), 2_000)),
        (
            "a million headers",
            endless_headers(&raw::header_block(&[("a", "b")]).repeat(2_500), 400),
        ),
        ("empty continuations", endless_headers(&[], 100_000)),
        ("a header block that is none", frame(HEADERS, END_HEADERS, 3, &[0xff; 1_000])),
        (
            "a window beyond its size",
            repeated(|_| frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ),
        ("a window of nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("a ping that is too short", frame(PING, 0, 0, &[0; 7])),
        ("settings of half a setting", frame(SETTINGS, 0, 0, &[0; 3])),
        ("data on no stream", frame(DATA, 0, 0, &[0; 10])),
        ("a stream of the node's", frame(HEADERS, END_HEADERS, 2, &block)),
        ("a frame of a megabyte", frame(DATA, 0, 3, &vec![0; 1 << 20])),
        ("garbage", random.bytes(1 << 20)),
    ];
    for (what, flood) in floods {
        println!("{what}: {} bytes", flood.len());
        let stream = acquainted(&cluster).await;
        let ended = raw::send_until_closed(stream, flood).await;
        if what == "100,000 resets of new calls" {
            let farewell = ended.farewell();
            assert!(farewell.is_none_or(|it| it == ENHANCE_YOUR_CALM), "{what}: {farewell:?}");
        }
        assert!(ended.bytes < 1 << 20, "{what}: {} bytes came back", ended.bytes);
        // A node that bears a flood comes to probe the connection, and closes it because nobody
        // answers: that is another defence.
        let probed = ended.frames.iter().any(|it| it.0 == PING && it.1 & ACK == 0);
        assert!(!probed, "{what}: borne, and closed only as idle");
    }
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

/// Frames that cost the node nearly nothing: it may bear them. Whatever it does, a sound call on a new
/// connection is answered, and when the flood's connection ends all is as before.
#[tokio::test]
async fn floods_that_may_be_borne() {
    let (cluster, books, witness) = one_node().await;
    let block = raw::call_headers(GET, &[]);
    let resets = repeated(|at| frame(RST_STREAM, 0, stream_number(at), &8_u32.to_be_bytes()));
    let floods: Vec<(&str, Vec<u8>)> = vec![
        (
            "100,000 priorities",
            repeated(|at| frame(PRIORITY, 0, stream_number(at), &[0, 0, 0, 0, 16])),
        ),
        ("100,000 acknowledgements of pings", repeated(|_| frame(PING, ACK, 0, &[1; 8]))),
        ("100,000 unknown frames", repeated(|_| frame(0xbe, 0, 0, b"what"))),
        ("100,000 resets of nothing", resets),
        ("100,000 empty pieces of a body", {
            let mut flood = frame(HEADERS, END_HEADERS, 3, &block);
            flood.extend(repeated(|_| frame(DATA, 0, 3, &[])));
            flood
        }),
        ("100,000 small windows", repeated(|_| frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()))),
        // As many streams as there may be and more, none of which ever gets a body.
        ("20,000 calls without a body", {
            (0..20_000)
                .flat_map(|at| frame(HEADERS, END_HEADERS, stream_number(at), &block))
                .collect()
        }),
        ("headers of 17 KiB", {
            let filler = raw::header_block(&[("x-filler", &"y".repeat(100))]).repeat(160);
            let (first, rest) = filler.split_at(8_000);
            let head = [&block[..], first].concat();
            [frame(HEADERS, END_STREAM, 3, &head), frame(CONTINUATION, END_HEADERS, 3, rest)]
                .concat()
        }),
    ];
    for (what, flood) in floods {
        println!("{what}: {} bytes", flood.len());
        let (mut from, mut to) = acquainted(&cluster).await.into_split();
        let draining = tokio::spawn(async move {
            tokio::io::copy(&mut from, &mut tokio::io::sink()).await.map(drop).map_err(drop)
        });
        // Refused in the middle or taken whole: both are answers.
        let _ = within(what, PATIENCE, to.write_all(&flood)).await;
        cluster.api(0).read("plain", &Key::new("key"), None).await.expect("others are served");
        drop(to);
        let _ = within("the connection ends", PATIENCE, draining).await.expect("no panic");
    }
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

/// A client that asks for much and reads nothing: its window stays shut. What the node holds for it is
/// given back when it goes.
#[tokio::test]
async fn a_client_that_never_reads() {
    let (cluster, books, witness) = one_node().await;
    let api = cluster.api(0);
    let large = Bytes::from(vec![7; 512 << 10]);
    for number in 0..8 {
        let key = Key::with_sort_key("large", format!("{number}"));
        api.set("plain", &key, large.clone(), None).await.expect("a put");
    }
    let mut stream = raw::connect(cluster.node(0).client).await;
    let no_window = [0, 4, 0, 0, 0, 0];
    let mut bytes = [raw::PREFACE, &frame(SETTINGS, 0, 0, &no_window)].concat();
    let scan = v1::ScanRequest {
        keyspace: "plain".to_owned(),
        range: Some(v1::scan_request::Range::Partition(v1::PartitionScan {
            partition_key: "large".into(),
            ..v1::PartitionScan::default()
        })),
        ..v1::ScanRequest::default()
    };
    let block = raw::call_headers("/quorate.v1.KvService/Scan", &[]);
    for at in 0..64 {
        let stream = stream_number(at);
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &block));
        bytes.extend(frame(DATA, END_STREAM, stream, &message(&scan.encode_to_vec())));
    }
    stream.write_all(&bytes).await.expect("sent");
    eventually("the scans run", async || {
        let pages = api.counter("scan_pages").await;
        if pages >= 64 { Ok(()) } else { Err(format!("{pages} pages")) }
    })
    .await;
    drop(stream);
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}
