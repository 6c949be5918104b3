//! Requests that are well-formed messages and make no sense: refused before anything is sent, with a
//! stable reason, the field and the numbers.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::Key;
use proto::{v1, v1::ConsistencyLevel as Wire};
use tonic::{Code, Response, Status};
use tonic_types::StatusExt;

use super::watch::{Books, Witness};
use crate::harness::{Api, Cluster, Keyspace, Options, count, datacenters, level};

/// What an answer must be.
struct Refusal {
    reason: &'static str,
    code: Code,
    field: Option<&'static str>,
    metadata: Vec<(&'static str, String)>,
}

fn refusal(reason: &'static str, code: Code, field: &'static str) -> Refusal {
    Refusal { reason, code, field: Some(field), metadata: Vec::new() }
}

fn invalid(reason: &'static str, field: &'static str) -> Refusal {
    refusal(reason, Code::InvalidArgument, field)
}

impl Refusal {
    fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.metadata.push((name, value.to_string()));
        self
    }

    fn limit(self, limit: usize, actual: usize) -> Self {
        self.with("limit", limit).with("actual", actual)
    }

    fn no_field(mut self) -> Self {
        self.field = None;
        self
    }
}

/// Decodes the details with a library that is not ours.
fn check<T: std::fmt::Debug>(what: &str, called: Result<Response<T>, Status>, expected: &Refusal) {
    let status = match called {
        Ok(response) => panic!("{what}: accepted: {:?}", response.into_inner()),
        Err(status) => status,
    };
    assert_eq!(status.code(), expected.code, "{what}: {status:?}");
    assert!(!status.message().is_empty(), "{what}: says nothing to people");
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("{what}: no ErrorInfo: {status:?}"));
    assert_eq!(
        (info.domain.as_str(), info.reason.as_str()),
        ("quorate", expected.reason),
        "{what}"
    );
    check_metadata(what, &info.metadata.clone().into_iter().collect(), expected);
    let violations = details.bad_request().map(|it| it.field_violations.as_slice());
    let fields: Vec<_> =
        violations.unwrap_or_default().iter().map(|it| it.field.as_str()).collect();
    assert_eq!(fields.first().copied(), expected.field, "{what}: {status:?}");
}

fn check_metadata(what: &str, metadata: &BTreeMap<String, String>, expected: &Refusal) {
    assert_eq!(metadata.get("outcome").map(String::as_str), Some("not_applied"), "{what}");
    for (name, value) in &expected.metadata {
        assert_eq!(metadata.get(*name), Some(value), "{what}: {name} in {metadata:?}");
    }
}

fn check_key_error(what: &str, error: &v1::KeyError, expected: &Refusal) {
    assert_eq!(error.code, i32::from(expected.code), "{what}: {error:?}");
    assert_eq!(error.reason, expected.reason, "{what}: {error:?}");
    assert!(!error.message.is_empty(), "{what}");
    check_metadata(what, &error.metadata, expected);
}

const KEYSPACE: &str = "plain";

fn key(partition: usize, sort: usize) -> v1::Key {
    v1::Key { partition_key: vec![b'p'; partition].into(), sort_key: vec![b's'; sort].into() }
}

fn put() -> v1::PutRequest {
    v1::PutRequest {
        keyspace: KEYSPACE.to_owned(),
        key: Some(key(3, 0)),
        value: "value".into(),
        ..v1::PutRequest::default()
    }
}

fn get() -> v1::GetRequest {
    v1::GetRequest {
        keyspace: KEYSPACE.to_owned(),
        key: Some(key(3, 0)),
        ..v1::GetRequest::default()
    }
}

fn delete() -> v1::DeleteRequest {
    let key = Some(key(3, 0));
    v1::DeleteRequest { keyspace: KEYSPACE.to_owned(), key, ..v1::DeleteRequest::default() }
}

fn scan(partition: v1::PartitionScan) -> v1::ScanRequest {
    v1::ScanRequest {
        keyspace: KEYSPACE.to_owned(),
        range: Some(v1::scan_request::Range::Partition(partition)),
        ..v1::ScanRequest::default()
    }
}

fn tokens(start: u64, end: Option<u64>) -> v1::ScanRequest {
    v1::ScanRequest {
        keyspace: KEYSPACE.to_owned(),
        range: Some(v1::scan_request::Range::Tokens(v1::TokenScan { start, end })),
        ..v1::ScanRequest::default()
    }
}

fn item(number: usize, value: usize) -> v1::BatchWriteItem {
    v1::BatchWriteItem {
        key: Some(Key::new(number.to_be_bytes().to_vec()).into()),
        write: Some(v1::batch_write_item::Write::Put(vec![b'v'; value].into())),
        ..v1::BatchWriteItem::default()
    }
}

fn batch(items: Vec<v1::BatchWriteItem>) -> v1::BatchWriteRequest {
    v1::BatchWriteRequest {
        keyspace: KEYSPACE.to_owned(),
        items,
        ..v1::BatchWriteRequest::default()
    }
}

/// Sends what one row of the table wants to every call that has the field.
async fn check_reads_and_writes(
    api: &Api,
    what: &str,
    expected: &Refusal,
    (put, get, delete): (v1::PutRequest, v1::GetRequest, v1::DeleteRequest),
) {
    let mut kv = api.kv();
    check(&format!("put: {what}"), kv.put(put).await, expected);
    check(&format!("get: {what}"), kv.get(get).await, expected);
    check(&format!("delete: {what}"), kv.delete(delete).await, expected);
}

#[tokio::test]
async fn keys_values_levels_and_clocks() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named(KEYSPACE)).await;
    let api = cluster.api(0);
    api.status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;
    let witness = Witness::start(&cluster, KEYSPACE).await;

    for (wrong, expected) in [
        (None, invalid("KEY_EMPTY", "key")),
        (Some(key(0, 0)), invalid("KEY_EMPTY", "key")),
        (Some(key(0, 5)), invalid("KEY_EMPTY", "key")),
        (Some(key(4_097, 0)), invalid("KEY_TOO_LARGE", "key").limit(4_096, 4_097)),
        (Some(key(1 << 20, 0)), invalid("KEY_TOO_LARGE", "key").limit(4_096, 1 << 20)),
        (Some(key(3, 1_025)), invalid("KEY_TOO_LARGE", "key").limit(1_024, 1_025)),
    ] {
        let what = format!(
            "{:?} bytes",
            wrong.as_ref().map(|it| (it.partition_key.len(), it.sort_key.len()))
        );
        let requests = (
            v1::PutRequest { key: wrong.clone(), ..put() },
            v1::GetRequest { key: wrong.clone(), ..get() },
            v1::DeleteRequest { key: wrong.clone(), ..delete() },
        );
        check_reads_and_writes(&api, &what, &expected, requests).await;
        let explain = v1::ExplainRequest { keyspace: KEYSPACE.to_owned(), key: wrong };
        check(&format!("explain: {what}"), api.admin().explain(explain).await, &expected);
    }
    // The largest that are allowed.
    let largest = v1::PutRequest { key: Some(key(4_096, 1_024)), ..put() };
    api.put(v1::PutRequest { value: vec![1; 1 << 20].into(), ..largest })
        .await
        .expect("within limits");
    let too_large = v1::PutRequest { value: vec![1; (1 << 20) + 1].into(), ..put() };
    let expected = invalid("VALUE_TOO_LARGE", "value").limit(1 << 20, (1 << 20) + 1);
    check("a large value", api.kv().put(too_large).await, &expected);

    let expected = refusal("KEYSPACE_NOT_FOUND", Code::NotFound, "keyspace");
    for name in ["", "nowhere", "plain\0", "PLAIN", "🦀"] {
        let keyspace = || name.to_owned();
        let expected =
            Refusal { metadata: vec![("keyspace", keyspace())], field: expected.field, ..expected };
        let requests = (
            v1::PutRequest { keyspace: keyspace(), ..put() },
            v1::GetRequest { keyspace: keyspace(), ..get() },
            v1::DeleteRequest { keyspace: keyspace(), ..delete() },
        );
        check_reads_and_writes(&api, name, &expected, requests).await;
        let scan = v1::ScanRequest { keyspace: keyspace(), ..tokens(0, None) };
        check(
            &format!("scan: {name}"),
            api.kv().scan(scan).await.map(|it| it.map(drop)),
            &expected,
        );
    }

    let level_99 = Some(v1::Consistency { choice: Some(v1::consistency::Choice::Level(99)) });
    let level_negative = Some(v1::Consistency { choice: Some(v1::consistency::Choice::Level(-1)) });
    for wrong in [level_99, level_negative, count(0), count(4), count(u32::MAX), level(Wire::Any)] {
        let expected = invalid("INVALID_CONSISTENCY", "consistency");
        let what = format!("{wrong:?}");
        let requests = (
            v1::PutRequest { consistency: wrong, ..put() },
            v1::GetRequest { consistency: wrong, ..get() },
            v1::DeleteRequest { consistency: wrong, ..delete() },
        );
        check_reads_and_writes(&api, &what, &expected, requests).await;
        let scan = v1::ScanRequest { consistency: wrong, ..tokens(0, None) };
        check(
            &format!("scan: {what}"),
            api.kv().scan(scan).await.map(|it| it.map(drop)),
            &expected,
        );
    }

    let most = 100 * 365 * 86_400;
    for actual in [most + 1, u64::MAX / 1_000, u64::MAX] {
        let expected = invalid("TTL_OUT_OF_BOUNDS", "ttl_seconds").with("limit", most);
        let request = v1::PutRequest { ttl_seconds: Some(actual), ..put() };
        check("a TTL", api.kv().put(request).await, &expected.with("actual", actual));
    }
    api.put(v1::PutRequest { ttl_seconds: Some(most), ..put() }).await.expect("within limits");

    // A clock token from the future is not taken over: it would make every later write lose.
    let clock = api.put(put()).await.expect("a put").clock;
    for ahead_ms in [60_000_u64, 86_400_000 * 365, (u64::MAX - clock) >> 16] {
        let clock = clock + (ahead_ms << 16);
        let expected = invalid("CLOCK_AHEAD", "clock").with("limit_ms", 500);
        let requests = (
            v1::PutRequest { clock, ..put() },
            v1::GetRequest { clock, ..get() },
            v1::DeleteRequest { clock, ..delete() },
        );
        check_reads_and_writes(&api, "a clock ahead", &expected, requests).await;
    }
    let version = api.put(put()).await.expect("a put").version.expect("a version");
    assert!(version.clock < clock + (60_000 << 16), "the clock was carried away");

    assert!(api.counter("calls_invalid").await > 50, "refusals are counted");
    witness.finish().await;
    books.assert_balanced(&cluster).await;
}

#[tokio::test]
async fn batches() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named(KEYSPACE)).await;
    let api = cluster.api(0);
    api.status().await.expect("connected");
    let books = Books::of(&cluster, 0).await;

    // Refused as a whole.
    let many: Vec<_> = (0..4_097).map(|it| item(it, 1)).collect();
    let keys: Vec<_> = many.iter().filter_map(|it| it.key.clone()).collect();
    let expected = invalid("BATCH_TOO_LARGE", "items").limit(4_096, 4_097);
    check("4,097 writes", api.kv().batch_write(batch(many)).await, &expected);
    let read = |keys| v1::BatchGetRequest {
        keyspace: KEYSPACE.to_owned(),
        keys,
        ..v1::BatchGetRequest::default()
    };
    check("4,097 reads", api.kv().batch_get(read(keys)).await, &expected);
    let heavy: Vec<_> = (0..5).map(|it| item(it, (4 << 20) / 5)).collect();
    let actual = 5 * (8 + (4 << 20) / 5);
    let expected = invalid("BATCH_TOO_LARGE", "items").limit(4 << 20, actual);
    check("4 MiB and a little", api.kv().batch_write(batch(heavy)).await, &expected);
    let expected = invalid("DUPLICATE_KEY", "items[2].key");
    let twice = vec![item(1, 1), item(2, 1), item(1, 2)];
    let keys: Vec<_> = twice.iter().filter_map(|it| it.key.clone()).collect();
    check("a row twice", api.kv().batch_write(batch(twice)).await, &expected);
    check("a row twice", api.kv().batch_get(read(keys)).await, &expected);
    let unknown =
        v1::BatchWriteRequest { keyspace: "nowhere".to_owned(), ..batch(vec![item(1, 1)]) };
    let expected = refusal("KEYSPACE_NOT_FOUND", Code::NotFound, "keyspace");
    check("no keyspace", api.kv().batch_write(unknown).await, &expected);
    let empty = api.batch_write(batch(Vec::new())).await.expect("nothing to do is no error");
    assert!(empty.results.is_empty());

    // Refused key by key: what is sound is written, in its place.
    let write = |at: usize, write| v1::BatchWriteItem { write, ..item(at, 0) };
    use v1::batch_write_item::Write;
    let items = vec![
        item(10, 5),
        v1::BatchWriteItem { key: Some(key(0, 0)), ..item(11, 1) },
        v1::BatchWriteItem { key: None, ..item(11, 1) },
        write(12, None),
        write(13, Some(Write::Delete(false))),
        v1::BatchWriteItem { ttl_seconds: Some(5), ..write(14, Some(Write::Delete(true))) },
        v1::BatchWriteItem { ttl_seconds: Some(u64::MAX), ..item(15, 1) },
        item(16, (1 << 20) + 1),
        v1::BatchWriteItem { key: Some(key(4_097, 0)), ..item(17, 1) },
        write(18, Some(Write::Delete(true))),
    ];
    let expected = [
        None,
        Some(invalid("KEY_EMPTY", "")),
        Some(invalid("KEY_EMPTY", "")),
        Some(invalid("INVALID_FIELD", "")),
        Some(invalid("INVALID_FIELD", "")),
        Some(invalid("INVALID_FIELD", "")),
        Some(invalid("TTL_OUT_OF_BOUNDS", "").with("actual", u64::MAX)),
        Some(invalid("VALUE_TOO_LARGE", "").limit(1 << 20, (1 << 20) + 1)),
        Some(invalid("KEY_TOO_LARGE", "").limit(4_096, 4_097)),
        None,
    ];
    let answer = api.batch_write(batch(items)).await.expect("a batch");
    assert_eq!(answer.results.len(), expected.len());
    for (at, (result, expected)) in answer.results.iter().zip(&expected).enumerate() {
        match (result.result.as_ref().expect("a result"), expected) {
            (v1::batch_write_result::Result::Version(_), None) => {}
            (v1::batch_write_result::Result::Error(error), Some(expected)) => {
                check_key_error(&format!("item {at}"), error, expected);
            }
            (other, _) => panic!("item {at}: {other:?}"),
        }
    }
    let keys = vec![item(10, 0).key.expect("given"), key(0, 0), key(3, 1_025), key(7, 7)];
    let answer = api.batch_get(read(keys)).await.expect("a batch");
    let expected = [
        Ok(true),
        Err(invalid("KEY_EMPTY", "")),
        Err(invalid("KEY_TOO_LARGE", "").limit(1_024, 1_025)),
        Ok(false),
    ];
    assert_eq!(answer.results.len(), expected.len());
    for (at, (result, expected)) in answer.results.iter().zip(&expected).enumerate() {
        match (result.result.as_ref().expect("a result"), expected) {
            (v1::batch_get_result::Result::Found(it), Ok(found)) => {
                assert_eq!(it.found, *found, "{at}")
            }
            (v1::batch_get_result::Result::Error(error), Err(expected)) => {
                check_key_error(&format!("key {at}"), error, expected);
            }
            (other, _) => panic!("key {at}: {other:?}"),
        }
    }
    books.assert_balanced(&cluster).await;
}

#[tokio::test]
async fn scans_and_their_tokens() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named(KEYSPACE)).await;
    let other = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    other.create(&Keyspace::named(KEYSPACE)).await;
    let api = cluster.api(0);
    let row = |number: usize| v1::BatchWriteItem {
        key: Some(Key::with_sort_key("rows", format!("{number:05}")).into()),
        ..item(0, 10)
    };
    for it in [&api, &other.api(0)] {
        it.batch_write(batch((0..1_500).map(row).collect())).await.expect("a batch");
    }
    let books = Books::of(&cluster, 0).await;
    let refused = async |what: &str, request: v1::ScanRequest, expected: Refusal| {
        check(what, api.kv().scan(request).await.map(|it| it.map(drop)), &expected);
    };
    let rows =
        || v1::PartitionScan { partition_key: "rows".into(), ..v1::PartitionScan::default() };
    let none = v1::ScanRequest { range: None, ..tokens(0, None) };
    refused("no range", none, invalid("INVALID_FIELD", "range")).await;
    refused("tokens reversed", tokens(5, Some(4)), invalid("RANGE_REVERSED", "tokens.end")).await;
    let reversed = v1::PartitionScan { start: "b".into(), end: "a".into(), ..rows() };
    refused("rows reversed", scan(reversed), invalid("RANGE_REVERSED", "partition.end")).await;
    let empty = v1::PartitionScan { partition_key: Bytes::new(), ..rows() };
    refused("no partition key", scan(empty), invalid("KEY_EMPTY", "partition")).await;
    let long = v1::PartitionScan { prefix: vec![1; 1_025].into(), ..rows() };
    refused("a long prefix", scan(long), invalid("KEY_TOO_LARGE", "partition")).await;
    let large = v1::PartitionScan { partition_key: vec![1; 5_000].into(), ..rows() };
    refused("a long key", scan(large), invalid("KEY_TOO_LARGE", "partition")).await;

    // Wishes for more than a page holds are lowered, not refused.
    let greedy = v1::ScanRequest { page_rows: u32::MAX, limit: u64::MAX, ..scan(rows()) };
    let pages = api.scan(greedy).await.expect("a scan");
    assert!(pages.iter().all(|it| it.rows.len() <= 1_000));
    assert_eq!(pages.iter().map(|it| it.rows.len()).sum::<usize>(), 1_500);

    // Tokens that were tampered with, cut, or belong elsewhere.
    let few = v1::ScanRequest { page_rows: 10, ..scan(rows()) };
    let token = api.scan_page(few.clone()).await.expect("a page").next_page_token;
    let with = |page_token: Bytes| v1::ScanRequest { page_token, ..few.clone() };
    for length in [1, 4, 16, 28, token.len() - 1] {
        let what = format!("the first {length} bytes");
        refused(&what, with(token.slice(..length)), invalid("TOKEN_MALFORMED", "page_token")).await;
    }
    for at in 0..token.len() {
        let mut changed = token.to_vec();
        changed[at] ^= 1 << (at % 8);
        let what = format!("byte {at} changed");
        refused(&what, with(changed.into()), invalid("TOKEN_MALFORMED", "page_token")).await;
    }
    let longer = [&token[..], &[0; 100_000]].concat();
    refused("a long token", with(longer.into()), invalid("TOKEN_MALFORMED", "page_token")).await;
    for (what, elsewhere) in [
        ("tokens", v1::ScanRequest { page_rows: 10, ..tokens(0, None) }),
        ("reverse", scan(v1::PartitionScan { reverse: true, ..rows() })),
        ("prefix", scan(v1::PartitionScan { prefix: "0".into(), ..rows() })),
        ("partition", scan(v1::PartitionScan { partition_key: "others".into(), ..rows() })),
    ] {
        let request = v1::ScanRequest { page_token: token.clone(), ..elsewhere };
        refused(what, request, invalid("TOKEN_MALFORMED", "page_token")).await;
    }
    let foreign = other.api(0).scan_page(few.clone()).await.expect("a page").next_page_token;
    let expected = refusal("TOKEN_FOREIGN", Code::FailedPrecondition, "page_token");
    refused("of another cluster", with(foreign), expected).await;
    api.scan_page(with(token)).await.expect("the token itself is sound");
    books.assert_balanced(&cluster).await;
}

#[tokio::test]
async fn keyspaces() {
    let cluster = Cluster::start(&datacenters(&[2, 1]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named(KEYSPACE)).await;
    let api = cluster.api(0);
    let expected = refusal("KEYSPACE_EXISTS", Code::AlreadyExists, "keyspace");
    let again = Keyspace::named(KEYSPACE).request();
    check("again", api.admin().create_keyspace(again).await, &expected);
    let other = Keyspace { default_ttl_seconds: 5, ..Keyspace::named(KEYSPACE) };
    check("another", api.admin().create_keyspace(other.request()).await, &expected);

    let expected = invalid("KEYSPACE_INVALID", "keyspace");
    let long = "a".repeat(49);
    for name in ["", "A", "1a", "a-b", "a b", "a\0", "ä", "_a", &long] {
        let request = Keyspace::named(name).request();
        check(name, api.admin().create_keyspace(request).await, &expected);
    }
    for replicas in [
        vec![("dc9", 1)],
        vec![("dc1", 0)],
        vec![("dc1", 3)],
        vec![("dc1", 1), ("dc1", 2)],
        vec![("dc1", u32::MAX)],
    ] {
        let replicas: Vec<_> = replicas.into_iter().map(|it| (it.0.to_owned(), it.1)).collect();
        let request = Keyspace { replicas, ..Keyspace::named("other") }.request();
        check(
            &format!("{request:?}"),
            api.admin().create_keyspace(request.clone()).await,
            &expected,
        );
    }
    let ttl = Keyspace { default_ttl_seconds: u64::MAX, ..Keyspace::named("other") }.request();
    check("a TTL", api.admin().create_keyspace(ttl).await, &expected);
    let nothing = v1::CreateKeyspaceRequest::default();
    check(
        "nothing",
        api.admin().create_keyspace(nothing).await,
        &invalid("KEYSPACE_INVALID", "").no_field(),
    );
    let level_99 = Some(v1::Consistency { choice: Some(v1::consistency::Choice::Level(99)) });
    let unknown = Keyspace { read: level_99, ..Keyspace::named("other") }.request();
    let expected = invalid("INVALID_CONSISTENCY", "consistency");
    check("level 99", api.admin().create_keyspace(unknown).await, &expected);

    let expected = refusal("KEYSPACE_NOT_FOUND", Code::NotFound, "keyspace");
    let alter = v1::AlterKeyspaceRequest { name: "nowhere".into(), ..Default::default() };
    check("alter", api.admin().alter_keyspace(alter).await, &expected);
    let drop = v1::DropKeyspaceRequest { name: "nowhere".into() };
    check("drop", api.admin().drop_keyspace(drop).await, &expected);
    // Nothing of all that was made.
    let names: Vec<_> =
        api.status().await.expect("a status").keyspaces.into_iter().map(|it| it.name).collect();
    assert_eq!(names, [KEYSPACE]);
}
