//! Reads: tried again on other nodes, within the deadline.

use std::time::Duration;

use client::{CallError, Reason};
use tonic::Code;

use crate::fake::{Answer, Fake};

#[tokio::test]
async fn a_read_is_tried_on_another_node_whatever_happened() {
    let failures = [
        Answer::Break,
        Answer::Hang,
        Answer::Bare(Code::Unavailable),
        Answer::Bare(Code::Internal),
        Answer::Error(CallError::new(Reason::ReadTimeout, "1 of 2")),
        Answer::Error(CallError::new(Reason::ReadFailed, "1 of 2")),
        Answer::Error(CallError::new(Reason::NotEnoughReplicas, "1 of 2")),
        Answer::Error(CallError::new(Reason::Overloaded, "busy")),
        Answer::Error(CallError::new(Reason::Starting, "starting")),
    ];
    for failure in failures {
        let fake = Fake::start(&["a", "a", "a"]).await;
        let keyspace = fake.keyspace().await;
        fake.script([failure.clone()]);
        let read = keyspace.get("key").timeout(Duration::from_secs(3)).await.unwrap();
        assert_eq!(read.value.as_deref(), Some(&b"value"[..]));
        let path = fake.path();
        assert_eq!(path.len(), 2, "{failure:?}");
        assert_ne!(path[0], path[1], "{failure:?}");
    }
}

#[tokio::test]
async fn a_read_ends_with_its_deadline() {
    let fake = Fake::start(&["a", "a", "a"]).await;
    let keyspace = fake.keyspace().await;
    fake.script(vec![Answer::Hang; 9]);
    let error = keyspace.get("key").timeout(Duration::from_millis(1_600)).await.unwrap_err();
    assert_eq!(error.reason(), Reason::ReadTimeout);
    assert!(!error.is_unknown_write());
    assert_eq!(fake.path().len(), 4);
}

#[tokio::test]
async fn a_keyspace_is_looked_for_again_only_where_it_should_exist() {
    let fake = Fake::start(&["a", "a"]).await;
    let client = fake.client().await;
    let missing = CallError::new(Reason::KeyspaceNotFound, "no such keyspace");
    fake.script([Answer::Error(missing.clone())]);
    client.keyspace("k").get("key").await.unwrap();
    assert_eq!(fake.path().len(), 2, "the first node had not heard of it yet");
    fake.script([Answer::Error(missing)]);
    let error = client.keyspace("unknown").get("key").await.unwrap_err();
    assert_eq!(error.reason(), Reason::KeyspaceNotFound);
    assert_eq!(fake.path().len(), 3);
}
