//! Writes: what is sent again, and above all what is not.

use std::time::Duration;

use client::{CallError, CallOutcome, NodeIndex, Reason};
use tonic::Code;

use crate::fake::{Answer, Fake};

#[tokio::test]
async fn a_put_says_who_took_part() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let written = fake.keyspace().await.put("key", "value").await.unwrap();
    assert_eq!((written.required, written.overlap), (2, true));
    assert_eq!(written.answered, [NodeIndex(0), NodeIndex(1)]);
    assert_eq!((written.version.hlc.0, written.version.request.0), (1, 2));
}

#[tokio::test]
async fn a_write_of_unknown_outcome_is_sent_exactly_once() {
    let unknown = [
        (Answer::Break, Reason::ConnectionLost),
        (Answer::Hang, Reason::WriteTimeout),
        (Answer::Bare(Code::Unavailable), Reason::ConnectionLost),
        (Answer::Bare(Code::Internal), Reason::Other),
        (Answer::Error(CallError::new(Reason::WriteTimeout, "1 of 2")), Reason::WriteTimeout),
        (Answer::Error(CallError::new(Reason::WriteFailed, "1 of 2")), Reason::WriteFailed),
    ];
    for (answer, reason) in unknown {
        let fake = Fake::start(&["a", "a", "a"]).await;
        let keyspace = fake.keyspace().await;
        fake.script([answer.clone(), answer.clone()]);
        let hangs = matches!(answer, Answer::Hang);
        let is_answer = !matches!(reason, Reason::ConnectionLost) && !hangs;
        let timeout = Duration::from_millis(if hangs { 300 } else { 20_000 });
        let errors = [
            keyspace.put("key", "value").timeout(timeout).await.unwrap_err(),
            keyspace.delete("key").timeout(timeout).await.unwrap_err(),
        ];
        for error in &errors {
            assert_eq!(error.reason(), reason, "{answer:?}: {error}");
            assert_eq!(error.outcome(), CallOutcome::Unknown, "{answer:?}");
            assert!(error.is_unknown_write());
            assert_eq!(error.is_answer(), is_answer, "{answer:?}");
            assert_eq!(error.attempts(), 1);
        }
        let calls: Vec<_> = fake.received().iter().map(|it| it.call).collect();
        assert_eq!(calls, ["put", "delete"], "{answer:?}");
        assert_eq!(errors[0].node(), Some(fake.address(fake.path()[0])));
    }
}

#[tokio::test]
async fn a_write_that_did_not_happen_is_sent_to_another_node() {
    let refusals = [
        CallError::new(Reason::Draining, "stopping"),
        CallError::new(Reason::StorageFailed, "disk"),
        CallError::new(Reason::NotEnoughReplicas, "1 of 2").with("required", 2).with("alive", 1),
        CallError::new(Reason::Overloaded, "busy").retry_after(Duration::from_millis(2)),
    ];
    for refusal in refusals {
        let fake = Fake::start(&["a", "a", "a"]).await;
        let keyspace = fake.keyspace().await;
        fake.script([Answer::Error(refusal.clone())]);
        keyspace.put("key", "value").await.unwrap();
        let path = fake.path();
        assert_eq!(path.len(), 2, "{refusal}");
        assert_ne!(path[0], path[1], "{refusal}");
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_the_error_has_the_numbers() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let keyspace = fake.keyspace().await;
    let refusal = CallError::new(Reason::NotEnoughReplicas, "QUORUM requires 2, 1 is alive")
        .with("required", 2)
        .with("alive", 1);
    fake.script(vec![Answer::Error(refusal); 9]);
    let error = keyspace.put("key", "value").await.unwrap_err();
    assert_eq!(
        (error.reason(), error.outcome()),
        (Reason::NotEnoughReplicas, CallOutcome::NotApplied)
    );
    assert_eq!((error.number("required"), error.number("alive")), (Some(2), Some(1)));
    assert_eq!(error.attempts(), 4);
    let mut path = fake.path();
    assert_eq!(path.len(), 4);
    path.truncate(3);
    path.sort_unstable();
    assert_eq!(path, [0, 1, 2], "all nodes are tried before one is tried again");
}

#[tokio::test]
async fn a_wish_for_a_pause_beyond_the_deadline_ends_the_call() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    let refusal = CallError::new(Reason::Overloaded, "busy").retry_after(Duration::from_secs(60));
    fake.script([Answer::Error(refusal)]);
    let error = keyspace.put("key", "value").timeout(Duration::from_secs(30)).await.unwrap_err();
    assert_eq!((error.reason(), error.outcome()), (Reason::Overloaded, CallOutcome::NotApplied));
    assert_eq!(error.retry_after(), Some(Duration::from_secs(60)));
    assert_eq!(fake.path().len(), 1);
}

#[tokio::test]
async fn errors_that_a_retry_cannot_cure_are_told_at_once() {
    let fake = Fake::start(&["a", "a"]).await;
    let keyspace = fake.keyspace().await;
    let refusal =
        CallError::new(Reason::ValueTooLarge, "2 bytes").with("limit", 1).at_field("value");
    fake.script([Answer::Error(refusal)]);
    let error = keyspace.put("key", "value").await.unwrap_err();
    assert_eq!((error.reason(), error.field()), (Reason::ValueTooLarge, Some("value")));
    assert_eq!(fake.path().len(), 1);
}

#[tokio::test]
async fn a_put_that_cannot_be_sent_goes_elsewhere() {
    let mut fake = Fake::start(&["a", "a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.stop(1);
    fake.stop(2);
    for _ in 0..9 {
        keyspace.put("key", "value").await.unwrap();
    }
    assert_eq!(fake.path(), [0; 9]);
    fake.stop(0);
    // The connection to node 0 is known to be open: the call may be sent into it and be lost.
    let _ = keyspace.put("key", "value").await.unwrap_err();
    let error = keyspace.put("key", "value").await.unwrap_err();
    assert_eq!(
        (error.reason(), error.outcome()),
        (Reason::ConnectionLost, CallOutcome::NotApplied)
    );
    assert!(error.message().starts_with("cannot connect: "), "{error}");
    assert!(error.attempts() > 1);
}

#[tokio::test]
async fn the_clock_is_carried_and_merged() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let keyspace = fake.keyspace().await;
    let refusal = CallError::new(Reason::Draining, "stopping").with_clock(500);
    let failure = CallError::new(Reason::KeyEmpty, "empty").with_clock(600);
    fake.script([
        Answer::Fine { clock: 100 },
        Answer::Fine { clock: 50 },
        Answer::Error(refusal), // The retry carries what the refusal told.
        Answer::Fine { clock: 0 },
        Answer::Error(failure),
        Answer::Fine { clock: 0 },
        Answer::Pages(vec![(vec!["a"], "")], Box::new(Answer::Fine { clock: 0 })),
    ]);
    keyspace.put("key", "value").await.unwrap();
    keyspace.get("key").await.unwrap();
    keyspace.delete("key").await.unwrap();
    keyspace.get("key").await.unwrap_err();
    let _ = keyspace.batch_get(["key"]).await;
    keyspace.scan(client::ScanRange::all()).next_page().await.unwrap();
    let clocks: Vec<_> = fake.received().iter().map(|it| it.clock).collect();
    assert_eq!(clocks, [0, 100, 100, 500, 500, 600, 600]);
    assert_eq!(keyspace.client().clock(), 600);
    keyspace.client().observe_clock(599);
    assert_eq!(keyspace.client().clock(), 600);
    keyspace.client().admin().status().await.unwrap();
    assert_eq!(keyspace.client().clock(), 600, "the status told 77");
}

#[tokio::test]
async fn every_call_tells_its_deadline_and_its_trace() {
    let fake = Fake::start(&["a"]).await;
    let keyspace = fake.keyspace().await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    keyspace.put("key", "value").await.unwrap();
    keyspace.put("key", "value").timeout(Duration::from_millis(1500)).await.unwrap();
    keyspace.delete("key").traceparent(trace).await.unwrap();
    let received = fake.received();
    let timeouts: Vec<_> = received.iter().map(|it| it.timeout.as_deref()).collect();
    assert_eq!(timeouts, [Some("5000000u"), Some("1500000u"), Some("5000000u")]);
    assert_eq!(received[2].traceparent.as_deref(), Some(trace));
    let error = keyspace.put("key", "value").traceparent("a\nb").await.unwrap_err();
    assert_eq!((error.reason(), error.field()), (Reason::InvalidField, Some("traceparent")));
    assert_eq!(fake.received().len(), 3);
}
