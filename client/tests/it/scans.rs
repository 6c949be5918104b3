//! Scans: resumed where they broke, with every row once.

use std::time::Duration;

use client::{CallError, Error, Reason, ScanRange};
use futures_util::TryStreamExt;

use crate::fake::{Answer, Fake};

async fn rows(scan: client::Scan) -> Result<String, Error> {
    let rows: Vec<_> = scan.rows().try_collect().await?;
    let names =
        rows.into_iter().map(|it| String::from_utf8_lossy(&it.key.partition_key).into_owned());
    Ok(names.collect::<Vec<_>>().join(" "))
}

fn tokens(fake: &Fake) -> Vec<String> {
    fake.received().into_iter().flat_map(|it| it.about).collect()
}

fn pages(pages: &[(&[&'static str], &'static str)], end: Answer) -> Answer {
    Answer::Pages(pages.iter().map(|it| (it.0.to_vec(), it.1)).collect(), Box::new(end))
}

const FINE: Answer = Answer::Fine { clock: 1 };

#[tokio::test]
async fn a_scan_reads_page_after_page() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([pages(&[(&["a", "b"], "t1"), (&[], "t2"), (&["c"], "")], FINE)]);
    let mut scan = keyspace.scan(ScanRange::all());
    let mut seen = Vec::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        assert_eq!((page.required, page.overlap), (2, true));
        seen.push((page.rows.len(), page.next_page_token));
    }
    assert_eq!(seen, [(2, "t1".into()), (0, "t2".into()), (1, "".into())]);
    assert!(scan.next_page().await.unwrap().is_none(), "it stays at its end");
    assert_eq!(tokens(&fake), [""]);
}

#[tokio::test]
async fn a_broken_scan_is_resumed_after_its_last_page() {
    let hang_up = CallError::new(Reason::ReadTimeout, "the stream's time is up");
    let ends = [
        FINE, // It ends in good order, and yet before its last page.
        Answer::Error(hang_up),
        Answer::Error(CallError::new(Reason::Draining, "stopping")),
        Answer::Bare(tonic::Code::Unavailable),
    ];
    for end in ends {
        let fake = Fake::start(&["a", "a", "a"]).await;
        let keyspace = fake.keyspace().await;
        fake.script([
            pages(&[(&["a"], "t1"), (&["b"], "t2")], end.clone()),
            pages(&[(&["c"], "t3")], end.clone()),
            pages(&[(&["d"], "")], FINE),
        ]);
        assert_eq!(rows(keyspace.scan(ScanRange::all())).await.unwrap(), "a b c d", "{end:?}");
        assert_eq!(tokens(&fake), ["", "t2", "t3"], "{end:?}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_sends_the_scan_to_another_node() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([
        pages(&[(&["a"], "t1"), (&["b"], "t2")], Answer::Hang),
        pages(&[(&["c"], "")], FINE),
    ]);
    let mut scan = keyspace.scan(ScanRange::partition("p"));
    scan.next_page().await.unwrap().unwrap();
    scan.next_page().await.unwrap().unwrap();
    fake.break_connections(fake.path()[0]);
    assert_eq!(rows(scan).await.unwrap(), "c");
    assert_eq!(tokens(&fake), ["", "t2"]);
    let path = fake.path();
    assert_ne!(path[0], path[1]);
}

#[tokio::test]
async fn a_scan_that_gets_nowhere_fails_and_can_go_on_later() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    let failure = Answer::Error(CallError::new(Reason::ReadFailed, "1 of 2"));
    fake.script([pages(&[(&["a"], "t1")], FINE)]);
    fake.script(vec![failure; 4]);
    fake.script([pages(&[(&["b"], "")], FINE)]);
    let mut scan = keyspace.scan(ScanRange::all());
    scan.next_page().await.unwrap().unwrap();
    let error = scan.next_page().await.unwrap_err();
    assert_eq!((error.reason(), error.attempts()), (Reason::ReadFailed, 4));
    let page = scan.next_page().await.unwrap().unwrap();
    assert_eq!(page.rows[0].key, client::Key::new("b"));
    assert_eq!(tokens(&fake).last().unwrap(), "t1");
}

#[tokio::test]
async fn a_scan_that_hangs_is_asked_of_another_node_and_ends_with_its_deadline() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([Answer::Hang, pages(&[(&["a"], "")], FINE)]);
    let timeout = Duration::from_secs(2);
    assert_eq!(rows(keyspace.scan(ScanRange::all()).timeout(timeout)).await.unwrap(), "a");
    fake.script([pages(&[(&["a"], "t1")], Answer::Hang)]);
    fake.script(vec![Answer::Hang; 9]);
    let error = rows(keyspace.scan(ScanRange::all()).timeout(timeout)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::ReadTimeout);
}

#[tokio::test]
async fn a_refused_scan_says_why_at_once() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([Answer::Error(CallError::new(Reason::TokenMalformed, "damaged"))]);
    let error = rows(keyspace.scan(ScanRange::all()).page_token("x")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::TokenMalformed);
    assert_eq!(tokens(&fake), ["x"]);
}

#[tokio::test]
async fn a_limit_holds_over_resumptions() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([
        pages(&[(&["a", "b"], "t1")], FINE),
        pages(&[(&["c", "d"], "t2"), (&["e"], "")], FINE),
    ]);
    assert_eq!(rows(keyspace.scan(ScanRange::all()).limit(3)).await.unwrap(), "a b c");
    assert_eq!(tokens(&fake), [" limit 3", "t1 limit 1"]);
}

#[tokio::test]
async fn a_stream_without_a_page_is_no_end() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([pages(&[(&["a"], "t1")], FINE), pages(&[], FINE), pages(&[(&["b"], "")], FINE)]);
    assert_eq!(rows(keyspace.scan(ScanRange::all())).await.unwrap(), "a b");
}

#[tokio::test]
async fn a_scan_whose_node_falls_silent_goes_on_elsewhere() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script([pages(&[(&["a"], "t1")], Answer::Hang), pages(&[(&["b"], "")], FINE)]);
    let scan = keyspace.scan(ScanRange::all()).timeout(Duration::from_secs(1));
    assert_eq!(rows(scan).await.unwrap(), "a b");
    let path = fake.path();
    assert_ne!(path[0], path[1]);
}
