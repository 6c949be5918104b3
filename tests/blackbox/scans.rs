//! Scans: rows in order, whole, once, and resumable anywhere, against a plain map.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use model::Key;
use proto::{v1, v1::ConsistencyLevel as Wire};

use crate::harness::{Cluster, Keyspace, Options, Random, datacenters, level};

/// Rows of one partition key, by sort key.
type Rows = BTreeMap<Bytes, Bytes>;

async fn fill(cluster: &Cluster, keyspace: &str, rows: impl IntoIterator<Item = (Key, Bytes)>) {
    let item = |(key, value): (Key, Bytes)| v1::BatchWriteItem {
        key: Some(key.into()),
        write: Some(v1::batch_write_item::Write::Put(value)),
        ..v1::BatchWriteItem::default()
    };
    let items: Vec<_> = rows.into_iter().map(item).collect();
    for (at, part) in items.chunks(500).enumerate() {
        let request = v1::BatchWriteRequest {
            keyspace: keyspace.to_owned(),
            items: part.to_vec(),
            ..v1::BatchWriteRequest::default()
        };
        let running = cluster.running();
        let api = cluster.api(running[at % running.len()]);
        let answer = api.batch_write(request).await.expect("a batch");
        for result in answer.results {
            let version = matches!(result.result, Some(v1::batch_write_result::Result::Version(_)));
            assert!(version, "{result:?}");
        }
    }
}

fn of_partition(keyspace: &str, range: v1::PartitionScan) -> v1::ScanRequest {
    v1::ScanRequest {
        keyspace: keyspace.to_owned(),
        range: Some(v1::scan_request::Range::Partition(range)),
        ..v1::ScanRequest::default()
    }
}

fn of_tokens(keyspace: &str, start: u64, end: Option<u64>) -> v1::ScanRequest {
    v1::ScanRequest {
        keyspace: keyspace.to_owned(),
        range: Some(v1::scan_request::Range::Tokens(v1::TokenScan { start, end })),
        ..v1::ScanRequest::default()
    }
}

/// What a scan of a partition key has to answer.
fn expected(rows: &Rows, range: &v1::PartitionScan, limit: u64) -> Vec<(Bytes, Bytes)> {
    let start = Bound::Included(range.start.clone());
    let end = match range.end.is_empty() {
        true => Bound::Unbounded,
        false => Bound::Excluded(range.end.clone()),
    };
    let within = rows.range((start, end)).filter(|it| it.0.starts_with(&range.prefix));
    let mut found: Vec<_> = within.map(|it| (it.0.clone(), it.1.clone())).collect();
    if range.reverse {
        found.reverse();
    }
    if limit > 0 {
        found.truncate(usize::try_from(limit).expect("small"));
    }
    found
}

fn sort_keys_and_values(pages: &[v1::ScanResponse]) -> Vec<(Bytes, Bytes)> {
    let rows = pages.iter().flat_map(|it| &it.rows);
    rows.map(|it| (it.key.clone().expect("a key").sort_key, it.value.clone())).collect()
}

/// Reads page by page, each from another node.
async fn resumed(cluster: &Cluster, request: &v1::ScanRequest) -> Vec<v1::ScanResponse> {
    let mut request = request.clone();
    let mut pages: Vec<v1::ScanResponse> = Vec::new();
    loop {
        let running = cluster.running();
        let at = running[pages.len() % running.len()];
        let page = cluster.api(at).scan_page(request.clone()).await.expect("a page");
        request.page_token = page.next_page_token.clone();
        if request.limit > 0 {
            request.limit -= u64::try_from(page.rows.len()).expect("64 bits");
        }
        pages.push(page);
        assert!(pages.len() < 10_000, "a scan that never ends");
        if request.page_token.is_empty() {
            return pages;
        }
    }
}

#[tokio::test]
async fn rows_of_a_partition_key() {
    let mut random = Random::new("rows_of_a_partition_key");
    let cluster = Cluster::start(&datacenters(&[2, 1]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    // Few letters, so that ranges and prefixes hit; zero and all-one bytes, where encodings break.
    let letters = [0x00, 0x01, b'a', b'b', 0xff];
    let mut rows = Rows::new();
    rows.insert(Bytes::new(), "the row without a sort key".into());
    while rows.len() < 300 {
        let length = 1 + random.below(5);
        let sort_key: Vec<u8> = (0..length).map(|_| *random.pick(&letters)).collect();
        rows.insert(sort_key.into(), format!("row {}", rows.len()).into());
    }
    let partition: &[u8] = b"rows\x00\xff";
    let named = |partition: &'static [u8]| {
        let keyed =
            rows.iter().map(move |it| (Key::with_sort_key(partition, it.0.clone()), it.1.clone()));
        keyed.collect::<Vec<_>>()
    };
    fill(&cluster, "plain", named(b"rows\x00\xff")).await;
    // Neighbours that share a prefix must never show up.
    fill(&cluster, "plain", named(b"rows\x00")).await;
    fill(&cluster, "plain", named(b"rows\x00\xff\x00")).await;

    let some_key = |random: &mut Random| match random.below(3) {
        0 => Bytes::new(),
        1 => random.pick(&rows.keys().cloned().collect::<Vec<_>>()).clone(),
        _ => {
            let length = 1 + random.below(3);
            (0..length).map(|_| *random.pick(&letters)).collect::<Vec<u8>>().into()
        }
    };
    for round in 0..120 {
        let (mut start, mut end) = (some_key(&mut random), some_key(&mut random));
        if !end.is_empty() && end < start {
            std::mem::swap(&mut start, &mut end);
        }
        let mut prefix = some_key(&mut random);
        prefix.truncate(random.below(3));
        let range = v1::PartitionScan {
            partition_key: partition.into(),
            start,
            end,
            prefix,
            reverse: random.below(2) == 0,
        };
        let limit = u64::try_from([0, 0, 1, 7, 1_000][random.below(5)]).expect("small");
        let mut request = of_partition("plain", range.clone());
        request.limit = limit;
        request.page_rows = u32::try_from([0, 1, 3, 50, 100_000][random.below(5)]).expect("small");
        let wanted = expected(&rows, &range, limit);
        let at = random.below(cluster.len());
        let pages = cluster.api(at).scan(request.clone()).await.expect("a scan");
        let what = format!("round {round} of {request:?} through node {at}");
        assert_eq!(sort_keys_and_values(&pages), wanted, "{what}");
        let last = pages.last().expect("a message at least");
        assert!(last.next_page_token.is_empty(), "{what}: {last:?}");
        let most = pages.iter().map(|it| it.rows.len()).max();
        let page_rows = usize::try_from(request.page_rows).expect("small");
        assert!(page_rows == 0 || most <= Some(page_rows), "{what}: a page of {most:?}");
        if round % 4 == 0 {
            let pages = resumed(&cluster, &request).await;
            assert_eq!(sort_keys_and_values(&pages), wanted, "resumed on other nodes: {what}");
        }
    }
}

/// The keys of a whole-keyspace scan, in the order in which they came.
fn keys_of(pages: &[v1::ScanResponse]) -> Vec<Bytes> {
    let rows = pages.iter().flat_map(|it| &it.rows);
    rows.map(|it| it.key.clone().expect("a key").partition_key).collect()
}

fn no_duplicates(keys: &[Bytes]) -> BTreeSet<Bytes> {
    let set: BTreeSet<Bytes> = keys.iter().cloned().collect();
    assert_eq!(set.len(), keys.len(), "a key came twice");
    set
}

#[tokio::test]
async fn the_whole_keyspace_while_writes_go_on() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::default()).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster.create(&Keyspace::named("neighbour")).await;
    let key = |number: u64| Key::new(format!("settled {number}"));
    let settled: BTreeSet<Bytes> = (0..3_000).map(|it| key(it).partition_key).collect();
    fill(&cluster, "plain", (0..3_000).map(|it| (key(it), "value".into()))).await;
    fill(&cluster, "neighbour", (0..500).map(|it| (Key::new(format!("x{it}")), "x".into()))).await;

    let stop = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicU64::new(0));
    let writer = {
        let (stop, written) = (stop.clone(), written.clone());
        let apis: Vec<_> = (0..3).map(|it| cluster.api(it)).collect();
        tokio::spawn(async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                let api = &apis[usize::try_from(number % 3).expect("small")];
                // New keys, deletions of new keys, and new values of settled ones.
                let new = Key::new(format!("new {number}"));
                api.set("plain", &new, "new", None).await.expect("a put");
                if number % 3 == 0 {
                    api.remove("plain", &new, None).await.expect("a delete");
                }
                api.set("plain", &key(number % 3_000), "again", None).await.expect("a put");
                number += 1;
                written.store(number, Ordering::Relaxed);
            }
            number
        })
    };
    // Until the writer has really run beside scans: at least three scans, and fifty writes.
    let mut scans = 0;
    while scans < 3 || written.load(Ordering::Relaxed) < 50 {
        let mut request = of_tokens("plain", 0, None);
        request.page_rows = [0, 10, 1_000][scans % 3];
        let pages = match scans % 2 {
            0 => cluster.api(scans % 3).scan(request).await.expect("a scan"),
            _ => resumed(&cluster, &request).await,
        };
        let found = no_duplicates(&keys_of(&pages));
        let missing: Vec<_> = settled.difference(&found).collect();
        assert!(missing.is_empty(), "{} settled keys are missing: {missing:?}", missing.len());
        let strange: Vec<_> =
            found.difference(&settled).filter(|it| !it.starts_with(b"new ")).collect();
        assert!(strange.is_empty(), "{strange:?}");
        scans += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let numbers = writer.await.expect("the writer");

    // At rest: exactly what is there, in token order, also in parts.
    let kept = (0..numbers).filter(|it| it % 3 != 0).map(|it| format!("new {it}").into());
    let all: BTreeSet<Bytes> = settled.iter().cloned().chain(kept).collect();
    let mut request = of_tokens("plain", 0, None);
    request.consistency = level(Wire::All);
    let keys = keys_of(&cluster.api(1).scan(request).await.expect("a scan"));
    assert_eq!(no_duplicates(&keys), all);
    let tokens: Vec<_> = keys.iter().map(|it| model::Token::of(it)).collect();
    assert!(tokens.is_sorted(), "the order of tokens");
    let cuts = [0, 1 << 60, 7 << 60, 7 << 60 | 1, u64::MAX];
    let mut parts = Vec::new();
    for (at, start) in cuts.iter().enumerate() {
        let end = cuts.get(at + 1).map(|it| it - 1);
        let part = cluster.api(2).scan(of_tokens("plain", *start, end)).await.expect("a scan");
        parts.extend(keys_of(&part));
    }
    assert_eq!(parts, keys, "in parts");
    let mut limited = of_tokens("plain", 0, None);
    limited.limit = 100;
    let first = keys_of(&cluster.api(0).scan(limited).await.expect("a scan"));
    assert_eq!(first, keys[..100], "the first hundred");
}

/// A replica that was away when rows were written and deleted neither hides the former nor brings
/// back the latter (CE33).
#[tokio::test]
async fn a_stale_replica() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let row = |number: usize| Key::with_sort_key("rows", format!("{number:03}"));
    let rows = (0..60).map(|it| (row(it), Bytes::from("before")));
    fill(&cluster, "plain", rows).await;
    let all: Vec<usize> = (0..60).collect();
    // So that the replica that is stopped surely holds them.
    for number in &all {
        let put = cluster.api(0).set("plain", &row(*number), "before", level(Wire::All)).await;
        put.expect("all are up");
    }
    cluster.kill(&[2]);
    cluster.wait_all_up().await;
    for number in 0..40 {
        cluster.api(0).remove("plain", &row(number), None).await.expect("two of three");
    }
    for number in 60..80 {
        cluster.api(1).set("plain", &row(number), "after", None).await.expect("two of three");
    }
    cluster.restart(&[2]).await;
    let wanted: Vec<Bytes> = (40..80).map(|it| row(it).sort_key).collect();
    for (at, consistency) in [(2, Wire::Quorum), (0, Wire::Quorum), (1, Wire::All)] {
        for (reverse, page_rows) in [(false, 0), (true, 3), (false, 7)] {
            let range = v1::PartitionScan {
                partition_key: "rows".into(),
                reverse,
                ..v1::PartitionScan::default()
            };
            let mut request = of_partition("plain", range);
            (request.consistency, request.page_rows) = (level(consistency), page_rows);
            let pages = cluster.api(at).scan(request.clone()).await.expect("a scan");
            let mut found: Vec<_> =
                sort_keys_and_values(&pages).into_iter().map(|it| it.0).collect();
            if reverse {
                found.reverse();
            }
            assert_eq!(found, wanted, "{request:?} through node {at}");
        }
    }
}
