//! Replicas that are up as far as anyone knows, and say nothing: processes that stand still.

use std::time::Duration;

use model::Key;
use proto::{CallOutcome, Reason, v1, v1::ConsistencyLevel as Wire};
use tonic::Request;

use crate::harness::{Cluster, Keyspace, Options, PATIENCE, Signal, datacenters, level, within};

fn limited<T>(message: T, timeout_ms: u64) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_millis(timeout_ms));
    request
}

fn put(key: &Key, value: &'static str, consistency: Option<v1::Consistency>) -> v1::PutRequest {
    v1::PutRequest {
        keyspace: "plain".to_owned(),
        key: Some(key.clone().into()),
        value: value.into(),
        consistency,
        ..v1::PutRequest::default()
    }
}

/// One of three replicas stands still: two answers are enough for QUORUM, and ALL is told that the
/// outcome is unknown, with both numbers.
#[tokio::test]
async fn a_silent_replica() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let (api, key) = (cluster.api(0), Key::new("key"));
    api.set("plain", &key, "before", level(Wire::All)).await.expect("all are up");
    cluster.process(2).signal(Signal::Pause);

    let write = limited(put(&key, "during", level(Wire::All)), 700);
    let status = within("a write", PATIENCE, api.kv().put(write)).await.unwrap_err();
    let error = proto::CallError::from(&status);
    assert_eq!(error.reason, Reason::WriteTimeout, "{status}");
    assert_eq!(error.code, tonic::Code::DeadlineExceeded, "{status}");
    assert_eq!(error.outcome, CallOutcome::Unknown, "{status}");
    let number = |error: &proto::CallError, name: &str| {
        error.metadata.get(name).unwrap_or_else(|| panic!("{name}: {error:?}")).clone()
    };
    assert_eq!([number(&error, "required"), number(&error, "received")], ["3", "2"]);

    let request = v1::GetRequest {
        keyspace: "plain".to_owned(),
        key: Some(key.clone().into()),
        consistency: level(Wire::All),
        clock: 0,
    };
    let read = limited(request, 700);
    let status = within("a read", PATIENCE, api.kv().get(read)).await.unwrap_err();
    let error = proto::CallError::from(&status);
    assert_eq!(error.reason, Reason::ReadTimeout, "{status}");
    assert_eq!([number(&error, "required"), number(&error, "received")], ["3", "2"]);

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
