//! `quorate admin snapshot`, on every node and on one.

use std::{fs, path::Path};

use serde_json::Value;

use crate::harness::{Cluster, Keyspace, Options, datacenters, run, run_ok};

/// Runs a snapshot command that may fail: its exit code, its document, and what it said of a failure.
fn snapshot(node: &str, arguments: &[&str]) -> (Option<i32>, Value, String) {
    let all = [&["--json", "--node", node, "admin", "snapshot"], arguments].concat();
    let output = run(&all);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let document = serde_json::from_str(&text).unwrap_or(Value::Null);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), document, said)
}

/// Changes a byte of a file, in the snapshot alone: the database shares it.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).expect("a file of the snapshot");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(path).expect("removed");
    fs::write(path, bytes).expect("written");
}

/// The largest file of a snapshot's database.
fn largest(folder: &Path) -> String {
    let files = fs::read_dir(folder.join("rocksdb")).expect("a copy of the database");
    let files = files.map(|it| it.expect("a file"));
    let largest = files.max_by_key(|it| it.metadata().map_or(0, |it| it.len()));
    let name = largest.expect("not empty").file_name();
    name.into_string().expect("a name of RocksDB's")
}

fn nodes(document: &Value) -> &[Value] {
    document["nodes"].as_array().unwrap_or_else(|| panic!("no nodes: {document}"))
}

#[tokio::test]
async fn on_every_node() {
    let options = Options::small_ring().with(&["--snapshots-max", "2"]);
    let mut cluster = Cluster::start(&datacenters(&[2, 1]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    let node = cluster.addresses(&[0]);
    for at in 0..20 {
        let (key, value) = (format!("key-{at}"), "value".repeat(100));
        run_ok(&["--node", &node, "put", "shop", &key, &value, "--consistency", "ALL"]);
    }

    let (code, made, said) = snapshot(&node, &["create", "before"]);
    assert_eq!((code, nodes(&made).len()), (Some(0), 3), "{made} {said}");
    for (it, at) in nodes(&made).iter().zip(0..) {
        let made = &it["snapshot"];
        assert_eq!((&made["name"], &made["keyspaces"][0]), (&"before".into(), &"shop".into()));
        assert!(made["bytes"].as_u64() > Some(10_000), "node {at}: {made}");
    }
    let (code, verified, said) = snapshot(&node, &["verify", "before"]);
    assert_eq!(code, Some(0), "{verified} {said}");
    assert!(nodes(&verified).iter().all(|it| it["verdict"] == "whole"), "{verified}");

    // A byte on one node, a file on another: both are named, the third is whole.
    let folder = |at: usize| cluster.node(at).data.join("snapshots/before");
    let changed = largest(&folder(1));
    damage(&folder(1).join("rocksdb").join(&changed));
    let missing = largest(&folder(2));
    fs::remove_file(folder(2).join("rocksdb").join(&missing)).expect("removed");
    let (code, verified, said) = snapshot(&node, &["verify", "before"]);
    assert_eq!(code, Some(1), "{verified} {said}");
    assert!(said.contains("SNAPSHOT_DAMAGED"), "{said}");
    for (at, file, problem) in [(1, &changed, "changed"), (2, &missing, "missing")] {
        let address = cluster.node(at).client.to_string();
        let found = nodes(&verified).iter().find(|it| it["address"] == *address);
        let findings = found.expect("asked")["findings"].as_array().expect("findings");
        assert_eq!(findings.len(), 1, "{verified}");
        assert_eq!(findings[0]["file"], format!("rocksdb/{file}"), "{verified}");
        assert_eq!(findings[0]["problem"], problem, "{verified}");
        assert!(said.contains(&address), "{said}");
    }

    // One node alone; then one more than allowed there, and on all nodes with one of them down.
    let second = cluster.addresses(&[1]);
    assert_eq!(snapshot(&node, &["create", "--only", &second, "alone"]).0, Some(0));
    let (code, _, said) = snapshot(&node, &["create", "--only", &second, "third"]);
    assert_eq!(code, Some(1), "{said}");
    let error: Value = serde_json::from_str(&said).unwrap_or_else(|it| panic!("{it}: {said}"));
    let error = &error["error"];
    assert_eq!(error["reason"], "SNAPSHOT_LIMIT", "{said}");
    assert_eq!(
        (&error["metadata"]["limit"], &error["metadata"]["actual"]),
        (&"2".into(), &"2".into())
    );
    cluster.kill(&[2]);
    let (code, made, said) = snapshot(&node, &["create", "after"]);
    assert_eq!(code, Some(1), "{made} {said}");
    assert!(said.contains("2 of 3 nodes failed"), "{said}");
    assert_eq!(nodes(&made).iter().filter(|it| it["error"].is_null()).count(), 1, "{made}");

    let (_, listed, _) = snapshot(&node, &["list", "--only", &second]);
    let names = nodes(&listed)[0]["snapshots"].as_array().expect("snapshots").iter();
    let names: Vec<_> = names.map(|it| it["name"].as_str().expect("a name").to_owned()).collect();
    assert_eq!(names, ["alone", "before"]);
    assert_eq!(snapshot(&node, &["delete", "before", "--only", &second]).0, Some(0));
    assert_eq!(snapshot(&node, &["delete", "before", "--only", &second]).0, Some(1), "it is gone");
    let table = run_ok(&["--node", &node, "admin", "snapshot", "list", "--only", &node]);
    assert!(
        table.contains("before") && table.contains("after") && !table.contains("alone"),
        "{table}"
    );
}

/// A node killed while it makes snapshots has whole ones or none, and serves.
#[tokio::test]
async fn a_node_killed_in_the_middle() {
    let mut cluster = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("shop")).await;
    let node = cluster.addresses(&[0]);
    run_ok(&["--node", &node, "put", "shop", "key", "value"]);
    for round in 0..4_u64 {
        let name = format!("round-{round}");
        let mut api = cluster.api(0).admin();
        let request = proto::v1::CreateSnapshotRequest { name };
        let opened = api.create_snapshot(request).await.expect("begun").into_inner();
        // So far as the first round's messages reach, and one message less in each round after it.
        let mut stream = opened;
        for _ in round..3 {
            let _ = stream.message().await;
        }
        cluster.kill(&[0]);
        cluster.restart(&[0]).await;
        let (code, listed, said) = snapshot(&node, &["list"]);
        assert_eq!(code, Some(0), "{said}");
        for it in nodes(&listed)[0]["snapshots"].as_array().expect("snapshots") {
            let name = it["name"].as_str().expect("a name");
            let (code, verified, said) = snapshot(&node, &["verify", name]);
            assert_eq!(code, Some(0), "round {round}, {name}: {verified} {said}");
        }
        let left = fs::read_dir(cluster.node(0).data.join("snapshots")).expect("snapshots");
        let left = left.filter(|it| {
            let name = it.as_ref().expect("an entry").file_name();
            name.to_string_lossy().starts_with('.')
        });
        assert_eq!(left.count(), 0, "round {round}: the start removes what the crash has left");
        run_ok(&["--node", &node, "get", "shop", "key"]);
    }
}
