//! Replicas that are up as far as anyone knows, and say nothing: processes that stand still.

use model::Key;
use proto::{CallError, CallOutcome, Reason, v1::ConsistencyLevel as Wire};

use crate::harness::{Cluster, Keyspace, Options, Signal, datacenters, level};

fn numbers(error: &CallError) -> [&str; 2] {
    ["required", "received"].map(|it| error.metadata.get(it).map_or("", String::as_str))
}

/// One of three replicas stands still: two answers are enough for QUORUM, and ALL is told that the
/// outcome is unknown, with both numbers.
#[tokio::test]
async fn a_silent_replica() {
    // The node's own limit: a deadline of the client's could end the call on the client's side first.
    let options = Options::small_ring().with(&["--request-timeout", "1500ms"]);
    let cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("plain")).await;
    let (api, key) = (cluster.api(0), Key::new("key"));
    api.set("plain", &key, "before", level(Wire::All)).await.expect("all are up");
    cluster.process(2).signal(Signal::Pause);

    let error = api.set("plain", &key, "during", level(Wire::All)).await.unwrap_err();
    assert_eq!(error.reason, Reason::WriteTimeout, "{error}");
    assert_eq!(error.code, tonic::Code::DeadlineExceeded, "{error}");
    assert_eq!(error.outcome, CallOutcome::Unknown, "{error}");
    assert_eq!(numbers(&error), ["3", "2"], "{error:?}");

    let error = api.read("plain", &key, level(Wire::All)).await.unwrap_err();
    assert_eq!(error.reason, Reason::ReadTimeout, "{error}");
    assert_eq!(error.code, tonic::Code::DeadlineExceeded, "{error}");
    assert_eq!(numbers(&error), ["3", "2"], "{error:?}");

    // The others go on, and what was unknown turns out to have happened.
    for at in [0, 1] {
        let read = cluster.api(at).read("plain", &key, level(Wire::Quorum)).await.expect("a get");
        assert_eq!(&read.value[..], b"during", "through node {at}");
        let other = Key::new(format!("of node {at}"));
        let done = cluster.api(at).set("plain", &other, "quorum", level(Wire::Quorum)).await;
        done.expect("two of three are enough");
    }
    cluster.process(2).signal(Signal::Resume);
    cluster.wait_all_up().await;
    for at in 0..3 {
        let read = cluster.api(at).read("plain", &key, level(Wire::All)).await.expect("a get");
        assert_eq!(&read.value[..], b"during", "through node {at}");
    }
}
