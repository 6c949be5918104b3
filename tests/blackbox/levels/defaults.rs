//! A keyspace's own levels, `require_overlap`, ANY, and time to live.

use std::time::{Duration, SystemTime};

use model::Key;
use proto::{CallOutcome, Reason, v1, v1::ConsistencyLevel as Wire};

use crate::harness::{Cluster, Keyspace, Options, count, datacenters, eventually, level};

fn levels(name: &str, read: Wire, write: Wire) -> Keyspace {
    Keyspace { read: level(read), write: level(write), ..Keyspace::named(name) }
}

async fn refused(cluster: &Cluster, keyspace: &Keyspace, why: Reason) {
    let error = cluster.api(0).create_keyspace(keyspace.request()).await.expect_err("refused");
    assert_eq!(error.reason, why, "{keyspace:?}: {error}");
    assert_eq!(error.outcome, CallOutcome::NotApplied, "{error}");
}

#[tokio::test]
async fn levels_of_the_keyspace() {
    let cluster = Cluster::start(&datacenters(&[3, 2]), &Options::small_ring()).await;
    let made = cluster.create(&Keyspace::named("plain")).await;
    let replicas: Vec<_> =
        made.replicas.iter().map(|it| (it.datacenter.as_str(), it.replicas)).collect();
    assert_eq!(replicas, [("dc1", 3), ("dc2", 2)], "three, or as many as there are nodes");
    assert_eq!(made.read_consistency, level(Wire::LocalQuorum));
    assert_eq!(made.write_consistency, level(Wire::LocalQuorum));
    cluster.create(&levels("strict", Wire::EachQuorum, Wire::EachQuorum)).await;

    let key = Key::new("key");
    for (keyspace, required) in [("plain", 2), ("strict", 4)] {
        let put = cluster.api(0).set(keyspace, &key, "value", None).await.expect("a put");
        let get = cluster.api(1).read(keyspace, &key, None).await.expect("a get");
        let said = [put.participation, get.participation].map(|it| it.expect("who").required);
        assert_eq!(said, [required, required], "{keyspace}");
        assert_eq!(&get.value[..], b"value");
    }

    // Weak defaults are refused unless they are meant.
    let mut weak = levels("weak", Wire::One, Wire::Quorum);
    refused(&cluster, &weak, Reason::KeyspaceInvalid).await;
    weak.accept_weak = true;
    cluster.create(&weak).await;
    let put = cluster.api(0).set("weak", &key, "value", None).await.expect("a put");
    assert!(!put.participation.expect("who").overlap);
    let all = cluster.api(0).set("weak", &key, "value", level(Wire::All)).await.expect("a put");
    assert!(all.participation.expect("who").overlap, "ALL meets every read at ONE");

    // Impossible defaults are, whatever is accepted.
    let mut impossible = Keyspace { read: count(6), ..levels("never", Wire::One, Wire::All) };
    impossible.accept_weak = true;
    refused(&cluster, &impossible, Reason::KeyspaceInvalid).await;
}

#[tokio::test]
async fn overlap_is_required() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    let mut weak = levels("strict", Wire::One, Wire::All);
    weak.require_overlap = true;
    refused(&cluster, &weak, Reason::KeyspaceInvalid).await;
    let mut with_any = levels("strict", Wire::Quorum, Wire::Quorum);
    (with_any.require_overlap, with_any.allow_any) = (true, true);
    refused(&cluster, &with_any, Reason::KeyspaceInvalid).await;
    let mut strict = levels("strict", Wire::Quorum, Wire::Quorum);
    strict.require_overlap = true;
    cluster.create(&strict).await;

    let (api, key) = (cluster.api(0), Key::new("key"));
    for (wanted, allowed) in [
        (level(Wire::One), false),
        (level(Wire::LocalOne), false),
        (count(1), false),
        (level(Wire::Two), true),
        (level(Wire::Quorum), true),
        (level(Wire::LocalQuorum), true),
        (level(Wire::All), true),
        (count(3), true),
        (None, true),
    ] {
        let put = api.set("strict", &key, "value", wanted).await.map(drop);
        let get = api.read("strict", &key, wanted).await.map(drop);
        let delete = api.remove("strict", &key, wanted).await.map(drop);
        for called in [put, get, delete] {
            match called {
                Ok(()) => assert!(allowed, "{wanted:?} was let through"),
                Err(error) => {
                    assert!(!allowed, "{wanted:?}: {error}");
                    assert_eq!(error.reason, Reason::OverlapRequired);
                    assert_eq!(error.code, tonic::Code::FailedPrecondition);
                    assert_eq!(error.outcome, CallOutcome::NotApplied);
                    assert!(error.metadata.contains_key("level"), "{error:?}");
                }
            }
        }
    }
    // An alteration that breaks the promise is refused, and changes nothing.
    let alter = v1::AlterKeyspaceRequest {
        name: "strict".to_owned(),
        read_consistency: level(Wire::One),
        accept_weak_defaults: true,
        ..v1::AlterKeyspaceRequest::default()
    };
    let status = api.admin().alter_keyspace(alter).await.unwrap_err();
    assert_eq!(proto::CallError::from(&status).reason, Reason::KeyspaceInvalid, "{status}");
    let kept = &api.status().await.expect("a status").keyspaces[0];
    assert_eq!(kept.read_consistency, level(Wire::Quorum));
}

#[tokio::test]
async fn time_to_live() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster.create(&Keyspace { default_ttl_seconds: 3_600, ..Keyspace::named("hour") }).await;
    let api = cluster.api(0);
    let put = async |keyspace: &str, name: &'static str, ttl_seconds: Option<u64>| {
        let request = v1::PutRequest {
            keyspace: keyspace.to_owned(),
            key: Some(Key::with_sort_key("rows", name).into()),
            value: name.into(),
            ttl_seconds,
            ..v1::PutRequest::default()
        };
        let version = api.put(request).await.expect("a put").version.expect("a version");
        version.clock >> 16
    };
    let read = async |keyspace: &str, name: &'static str| {
        let key = Key::with_sort_key("rows", name);
        cluster.api(1).read(keyspace, &key, None).await.expect("a get")
    };
    let stamped_ms = put("plain", "short", Some(1)).await;
    put("plain", "long", Some(3_600)).await;
    put("plain", "for ever", None).await;
    let now_ms = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("past 1970");
    let off = Duration::from_millis(stamped_ms).abs_diff(now_ms);
    assert!(off < Duration::from_secs(60), "a version is a time: {off:?} off");
    assert_eq!(read("plain", "long").await.expires_at_ms / 1_000 - stamped_ms / 1_000, 3_600);
    assert_eq!(read("plain", "for ever").await.expires_at_ms, 0);
    eventually("the short row expires", async || {
        let it = read("plain", "short").await;
        if it.found {
            assert_eq!(it.expires_at_ms, stamped_ms + 1_000);
            return Err("it is still there".to_owned());
        }
        assert!(it.value.is_empty() && it.version.is_some() && it.expires_at_ms == 0, "{it:?}");
        Ok(())
    })
    .await;
    let request = v1::ScanRequest {
        keyspace: "plain".to_owned(),
        range: Some(v1::scan_request::Range::Partition(v1::PartitionScan {
            partition_key: "rows".into(),
            ..v1::PartitionScan::default()
        })),
        ..v1::ScanRequest::default()
    };
    let pages = cluster.api(2).scan(request).await.expect("a scan");
    let rows: Vec<_> = pages.iter().flat_map(|it| &it.rows).map(|it| &it.value[..]).collect();
    assert_eq!(rows, [&b"for ever"[..], b"long"]);

    // The keyspace's own time to live, and writes that know better.
    let stamped_ms = put("hour", "default", None).await;
    assert_eq!(read("hour", "default").await.expires_at_ms, stamped_ms + 3_600_000);
    put("hour", "never", Some(0)).await;
    assert_eq!(read("hour", "never").await.expires_at_ms, 0);
    let stamped_ms = put("hour", "minute", Some(60)).await;
    assert_eq!(read("hour", "minute").await.expires_at_ms, stamped_ms + 60_000);
    // A row written again lives by its newest write.
    put("hour", "minute", Some(0)).await;
    assert_eq!(read("hour", "minute").await.expires_at_ms, 0);
}
