//! Clients that do not take their answers.

use std::sync::atomic::Ordering;

use node::config::NodeConfig;
use proto::{
    CallError, CallOutcome, Reason,
    v1::{self, kv_service_client::KvServiceClient},
};
use tokio::task::LocalSet;
use tonic::{Response, Streaming, transport::Endpoint};

use super::{
    disk::{Alone, CALL_BYTES, eventually, with_little_room},
    get, level, put,
};

/// More than a client's window has room for.
const VALUE_BYTES: usize = 200_000;
const ROWS: usize = 30;

async fn with_rows(config: NodeConfig) -> Alone {
    let mut it = Alone::start(config).await;
    for row in 0..ROWS {
        let value = vec![7; VALUE_BYTES].into();
        let request = put(&row.to_string(), "", v1::ConsistencyLevel::One);
        it.kv.put(v1::PutRequest { value, ..request }).await.unwrap();
    }
    it
}

fn scan() -> v1::ScanRequest {
    v1::ScanRequest {
        keyspace: "test".to_owned(),
        range: Some(v1::scan_request::Range::Tokens(v1::TokenScan::default())),
        consistency: level(v1::ConsistencyLevel::One),
        ..v1::ScanRequest::default()
    }
}

/// Scans on a connection of their own that nobody reads, as many as there is room for.
async fn unread(it: &Alone, scans: usize) -> Vec<Streaming<v1::ScanResponse>> {
    let listen = it.node.shared.config.listen;
    let endpoint = Endpoint::from_shared(format!("http://{listen}")).unwrap();
    let endpoint = endpoint.initial_stream_window_size(1 << 16);
    let mut kv = KvServiceClient::new(endpoint.connect().await.unwrap());
    let mut open = Vec::new();
    for _ in 0..scans {
        open.extend(kv.scan(scan()).await.ok().map(Response::into_inner));
    }
    open
}

async fn rows_of(mut pages: Streaming<v1::ScanResponse>) -> usize {
    let mut rows = 0;
    while let Some(page) = pages.message().await.unwrap() {
        assert!(page.rows.iter().all(|it| it.value == vec![7; VALUE_BYTES]));
        rows += page.rows.len();
    }
    rows
}

async fn one_place_and_two_scans() {
    let mut it = with_rows(NodeConfig { scans_max: 1, ..NodeConfig::default() }).await;
    let held = || it.node.shared.loop_metrics[0].call_bytes.held();
    let slow = unread(&it, 1).await.pop().unwrap();
    eventually("a page is on its way, and one waits", async || {
        held() > VALUE_BYTES && it.node.shared.scans.available_permits() == 1
    })
    .await;
    let other = it.kv.clone().max_decoding_message_size(usize::MAX).scan(scan()).await;
    assert_eq!(rows_of(other.expect("nobody reads now").into_inner()).await, ROWS);
    assert_eq!(rows_of(slow).await, ROWS, "it goes on where it was");
    eventually("all is taken", async || held() == 0).await;
    drop(unread(&it, 1).await);
    eventually("what nobody takes is given back with its scan", async || held() == 0).await;
    it.kv.get(get("0", v1::ConsistencyLevel::One)).await.unwrap();
}

#[tokio::test]
async fn a_scan_that_nobody_reads_keeps_no_other_from_reading() {
    LocalSet::new().run_until(one_place_and_two_scans()).await;
}

async fn all_room_taken_by_who_takes_nothing() {
    let config =
        NodeConfig { answer_patience_ms: 200, request_timeout_ms: 1_000, ..with_little_room() };
    let mut it = with_rows(config).await;
    let shared = &it.node.shared;
    let held = || shared.loop_metrics[0].call_bytes.held();
    let stalled = || shared.counters.connections_stalled.load(Ordering::Relaxed);
    let connections = shared.connections.load(Ordering::Relaxed);
    let slow = unread(&it, 12).await;
    eventually("they hold most there is", async || held() > CALL_BYTES / 4 * 3).await;
    assert!(held() < CALL_BYTES / 4 * 5, "{} bytes for {} scans", held(), slow.len());
    let one = v1::ConsistencyLevel::One;
    let request = v1::PutRequest { value: vec![7; 1_000_000].into(), ..put("new", "", one) };
    let refused = it.kv.put(request.clone()).await.unwrap_err();
    let error = CallError::from(&refused);
    assert_eq!((error.reason, error.outcome), (Reason::Overloaded, CallOutcome::NotApplied));
    let pages = shared.counters.scan_pages.load(Ordering::Relaxed);
    let most = u64::try_from(slow.len() + 1).unwrap();
    assert!(
        pages <= most,
        "{pages} pages of {} scans: none is read in advance of half",
        slow.len()
    );
    eventually("puts find room again", async || it.kv.put(request.clone()).await.is_ok()).await;
    assert_eq!(stalled(), 1, "all of them are on one connection");
    eventually("it is closed", async || {
        shared.connections.load(Ordering::Relaxed) == connections && held() == 0
    })
    .await;
    drop(slow);
}

#[tokio::test]
async fn who_takes_nothing_while_others_find_no_room_is_told_to_go_away() {
    LocalSet::new().run_until(all_room_taken_by_who_takes_nothing()).await;
}
