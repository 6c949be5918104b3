//! Snapshots: calls that are answered by progress, and by a result behind it.

use client::{Error, Reason};

use crate::fake::{Answer, Fake};

/// Makes a snapshot on one node: the files done that were told, and the end.
async fn create(fake: &Fake, name: &str) -> (Vec<u64>, Result<String, Error>) {
    let admin = fake.client().await.admin().at_node(fake.address(0)).expect("an address");
    let mut told = Vec::new();
    let made = admin.create_snapshot(name, |it| told.push(it.files_done)).await;
    (told, made.map(|it| it.name))
}

#[tokio::test]
async fn the_last_message_is_the_result() {
    let fake = Fake::start(&["a"]).await;
    let (told, made) = create(&fake, "first").await;
    assert_eq!((told, made.unwrap().as_str()), (vec![1, 2], "first"));

    let (told, failed) = create(&fake, "full").await;
    let error = failed.unwrap_err();
    assert_eq!((told, error.reason(), error.is_answer()), (vec![1, 2], Reason::DiskFull, true));
    assert!(!error.is_unknown_write(), "{error}");

    let (told, failed) = create(&fake, "cut-off").await;
    let error = failed.unwrap_err();
    assert_eq!((told, error.reason()), (vec![1, 2], Reason::ConnectionLost));
    assert!(error.is_unknown_write(), "the node may have made it: {error}");
    assert_eq!(error.attempts(), 1);
}

#[tokio::test]
async fn only_the_node_named_is_asked() {
    let fake = Fake::start(&["a", "a"]).await;
    let _ = fake.client().await;
    fake.script([Answer::Error(client::CallError::new(Reason::SnapshotLimit, "too many"))]);
    let (told, failed) = create(&fake, "one-more").await;
    assert_eq!((told, failed.unwrap_err().reason()), (vec![], Reason::SnapshotLimit));
    let asked: Vec<_> = fake.received().into_iter().map(|it| (it.node, it.call)).collect();
    assert_eq!(asked, [(0, "create_snapshot")]);
}
