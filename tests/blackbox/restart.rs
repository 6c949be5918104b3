//! Nodes that stop and come back: what they remember, and whom they refuse.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use client::{Client, ConsistencyLevel, WriteItem};
use model::Key;
use proto::{Reason, v1};
use tokio::task::JoinHandle;

use crate::harness::{
    Cluster, Keyspace, Options, PATIENCE, datacenters, eventually, quorate, within,
};

/// What must outlive a restart.
async fn memory(
    cluster: &Cluster,
    at: usize,
) -> (Vec<u8>, Vec<u8>, Vec<u8>, u64, u64, Vec<String>) {
    let status = cluster.api(at).status().await.expect("a status");
    let index = usize::try_from(status.answered_by).expect("few");
    let own = &status.nodes[index];
    assert_eq!(own.client_address, cluster.node(at).client.to_string());
    let keyspaces = status.keyspaces.iter().map(|it| format!("{it:?}")).collect();
    let (node, storage) = (own.node_id.to_vec(), own.storage_id.to_vec());
    (
        status.cluster_id.to_vec(),
        node,
        storage,
        status.layout_hash,
        status.metadata_sequence,
        keyspaces,
    )
}

/// One node after the other is killed or stopped while a client goes on: it never notices, and each
/// node comes back as who it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_nodes_under_load() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let client = cluster.client(&[0, 1, 2]).await;
    let (stop, rounds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let load = {
        let (keyspace, stop, rounds) = (client.keyspace("plain"), stop.clone(), rounds.clone());
        tokio::spawn(async move {
            let (mut acknowledged, mut unknown) = (Vec::new(), 0);
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("key {number}");
                match keyspace.put(key.clone(), key.clone()).await {
                    Ok(_) => acknowledged.push(key.clone()),
                    // Sent to a node that died before it answered.
                    Err(error) if error.is_unknown_write() => unknown += 1,
                    Err(error) => panic!("{key}: {error}"),
                }
                // Reads can always be answered by somebody.
                keyspace.get(key.clone()).await.unwrap_or_else(|it| panic!("{key}: {it}"));
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            (acknowledged, unknown)
        })
    };
    let goes_on = async |cluster: &Cluster| {
        let before = rounds.load(Ordering::Relaxed);
        eventually("the load goes on", async || {
            assert_eq!(cluster.running().len(), cluster.len() - 1);
            if rounds.load(Ordering::Relaxed) > before + 30 { Ok(()) } else { Err("no".to_owned()) }
        })
        .await;
    };
    for at in 0..3 {
        let before = memory(&cluster, at).await;
        let id = cluster.node(at).id.clone();
        if at == 1 {
            let status = cluster.stop(at);
            assert!(status.success(), "asked to stop, it ended with {status}");
        } else {
            cluster.kill(&[at]);
        }
        goes_on(&cluster).await;
        cluster.restart(&[at]).await;
        assert_eq!(memory(&cluster, at).await, before, "node {at}");
        assert_eq!(cluster.node(at).id, id);
    }
    stop.store(true, Ordering::Relaxed);
    let (acknowledged, unknown) = within("the load ends", PATIENCE, load).await.expect("no panic");
    println!("{} acknowledged, {unknown} unknown", acknowledged.len());
    let keyspace = client.keyspace("plain");
    for key in &acknowledged {
        let read = keyspace.get(key.clone()).await.expect("all are up");
        assert_eq!(read.value.as_deref(), Some(key.as_bytes()), "{key}");
    }
}

/// Sixteen writers, each of its own keys, that go on whatever they are told.
struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<Vec<String>>>,
}

impl Writers {
    fn start(client: &Client, level: ConsistencyLevel) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writer = |writer: usize| {
            let (keyspace, stop) = (client.keyspace("plain"), Arc::clone(&stop));
            let acknowledged = Arc::clone(&acknowledged);
            tokio::spawn(async move {
                let mut lost = Vec::new();
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("writer {writer} key {number}");
                    match keyspace.put(key, "value").consistency(level).await {
                        Ok(_) => drop(acknowledged.fetch_add(1, Ordering::Relaxed)),
                        // A busy machine: answered, but too late.
                        Err(it) if it.reason() == Reason::WriteTimeout && it.is_answer() => {}
                        Err(it) if it.is_unknown_write() => lost.push(it.to_string()),
                        Err(_refused) => tokio::task::yield_now().await,
                    }
                }
                lost
            })
        };
        let tasks = (0..16).map(writer).collect();
        Self { stop, acknowledged, tasks }
    }

    /// Waits for so many more acknowledged writes.
    async fn go_on(&self, more: u64) {
        let wanted = self.acknowledged.load(Ordering::Relaxed) + more;
        eventually("the load goes on", async || {
            let count = self.acknowledged.load(Ordering::Relaxed);
            if count >= wanted { Ok(()) } else { Err(format!("{count} of {wanted}")) }
        })
        .await;
    }

    /// Stops them. Panics if they do not know of a write whether it happened.
    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let lost = within("a writer ends", PATIENCE, task).await.expect("no panic");
            assert!(lost.is_empty(), "{} calls: {lost:#?}", lost.len());
        }
    }
}

/// Whoever writes while one node after the other is stopped and started again notices nothing: a call
/// that a node has taken is answered before it goes, and others never reach it. Two threads, for the one
/// that waits for the node sleeps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_call() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let client = cluster.client(&[0, 1, 2]).await;
    let writers = Writers::start(&client, ConsistencyLevel::Quorum);
    for at in [0, 1, 2, 0, 1, 2] {
        writers.go_on(1_000).await;
        assert!(cluster.stop(at).success());
        cluster.restart(&[at]).await;
    }
    writers.end().await;
}

/// A node that is stopped answers the others, too, and is asked nothing more: writes that need it have
/// happened, or are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_leaves_no_write_at_all_unknown() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    for at in 0..3 {
        let others: Vec<_> = (0..3).filter(|it| *it != at).collect();
        let writers = Writers::start(&cluster.client(&others).await, ConsistencyLevel::All);
        writers.go_on(500).await;
        assert!(cluster.stop(at).success());
        writers.end().await;
        cluster.restart(&[at]).await;
    }
}

/// A whole cluster, stopped by force or in good order, serves again without being told whom to join.
#[tokio::test]
async fn whole_clusters_without_join() {
    let mut cluster = Cluster::start(&datacenters(&[2, 2]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let all = [0, 1, 2, 3];
    let before = memory(&cluster, 2).await;
    let mut rows = Vec::new();
    for round in 0..2 {
        let key = Key::new(format!("round {round}"));
        let level = Some(v1::Consistency::from(ConsistencyLevel::All));
        cluster.api(0).set("plain", &key, "value", level).await.expect("all are up");
        rows.push(key);
        match round {
            0 => cluster.kill(&all),
            _ => all.iter().for_each(|at| assert!(cluster.stop(*at).success())),
        }
        cluster.launch(&all, &[]);
        // Served as soon as enough have found each other: no layout, no keyspace is made again.
        for at in all {
            let api = cluster.api(at);
            eventually(&format!("node {at} serves"), async || {
                for key in &rows {
                    let read = api.read("plain", key, level).await.map_err(|it| it.to_string())?;
                    assert_eq!(&read.value[..], b"value", "{key:?} through node {at}");
                }
                Ok(())
            })
            .await;
        }
        assert_eq!(memory(&cluster, 2).await, before);
    }
}

/// A node that comes back at other addresses is found by the others, and finds them.
#[tokio::test]
async fn a_node_that_moves() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster.kill(&[2]);
    cluster.wait_all_up().await;
    cluster.move_node(2);
    cluster.restart(&[2]).await;
    let key = Key::new("key");
    let level = Some(v1::Consistency::from(ConsistencyLevel::All));
    for at in 0..3 {
        eventually("all take part again", async || {
            let put = cluster.api(at).set("plain", &key, "value", level).await;
            put.map(drop).map_err(|it| it.to_string())
        })
        .await;
    }
    // Clients are sent to where it is now.
    let client = cluster.client(&[0]).await;
    let addresses: Vec<_> =
        client.topology().nodes().iter().map(|it| it.address.to_string()).collect();
    assert!(addresses.contains(&cluster.node(2).client.to_string()), "{addresses:?}");
}

/// What a process that must not start says, and how it ends.
fn start_refused(arguments: &[String], why: &[&str]) {
    let mut process = crate::harness::Process::spawn("refused", arguments, None);
    let status = process.wait_end();
    let log = process.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for text in why {
        assert!(log.contains(text), "{text:?} is not in: {log}");
    }
}

/// One data directory, one process, one datacenter.
#[tokio::test]
async fn data_directories_are_not_shared() {
    let mut cluster = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let key = Key::new("key");
    cluster.api(0).set("plain", &key, "value", None).await.expect("a put");
    let mut second = cluster.arguments(0);
    for (option, value) in [("--listen", "127.0.0.1:0"), ("--peer-listen", "127.0.0.1:0")] {
        let at = second.iter().position(|it| it == option).expect("given");
        second[at + 1] = value.to_owned();
    }
    start_refused(&second, &[]);
    assert!(
        cluster.api(0).read("plain", &key, None).await.expect("a get").found,
        "the first goes on"
    );

    cluster.kill(&[0]);
    let mut elsewhere = second.clone();
    let at = elsewhere.iter().position(|it| it == "--dc").expect("given");
    elsewhere[at + 1] = "dc9".to_owned();
    start_refused(&elsewhere, &["dc1", "dc9"]);
    // Refused without harm.
    cluster.restart(&[0]).await;
    assert!(cluster.api(0).read("plain", &key, None).await.expect("a get").found);
}

/// Command lines that make no sense end at once, with exit code 2 and without a data directory.
#[test]
fn command_lines_without_sense() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("data").display().to_string();
    for wrong in [
        &["--dc", ""][..],
        &["--dc", "dc 1"],
        &["--dc", "dc1", "--capacity", "0"],
        &["--dc", "dc1", "--io-threads", "99"],
        &["--dc", "dc1", "--request-timeout", "0s"],
        &["--dc", "dc1", "--value-bytes-max", "1GiB"],
        &["--dc", "dc1", "--connections-max", "0"],
        &["--dc", "dc1", "--memory", "1M"],
        &["--dc", "dc1", "--connections-max", "99999999999"],
        &["--dc", "dc1", "--listen", "nowhere"],
        &[],
    ] {
        let mut command = Command::new(quorate());
        let output = command.args(["start", "--data", &data]).args(wrong).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
    assert!(!folder.path().join("data").exists());
}

/// Two clusters whose nodes are pointed at each other stay two.
#[tokio::test]
async fn clusters_do_not_merge() {
    let one = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    let mut other = Cluster::start(&datacenters(&[1]), &Options::small_ring()).await;
    let named = Options::default().with(&["--cluster", "another"]);
    let mut third = Cluster::start_bare(&datacenters(&[1]), &named).await;
    for (cluster, name) in [(&one, "one"), (&other, "other")] {
        cluster.create(&Keyspace::named(name)).await;
    }
    let before = identities([&one, &other, &third]).await;
    assert_ne!(before[0].0, before[1].0);
    assert!(before[2].0.is_empty());
    let join = one.node(0).peer.to_string();
    other.kill(&[0]);
    other.launch(&[0], &["--join", &join, "--log", "node=debug,info"]);
    // It has tried, and says why not.
    eventually("the refusal is in the log", async || {
        let log = other.process(0).log();
        let tried = log.lines().find(|it| it.contains("cannot join yet"));
        let line = tried.ok_or_else(|| "not tried yet".to_owned())?;
        assert!(line.contains("of cluster"), "{line}");
        Ok(())
    })
    .await;
    // A node that has no cluster yet ends: it would wait for ever.
    third.kill(&[0]);
    let said = third.start_in_vain(0, &["--join", &join]);
    assert!(said.contains("CLUSTER_MISMATCH"), "{said}");
    third.launch(&[0], &[]);
    let after = identities([&one, &other, &third]).await;
    assert_eq!(after, before, "a node was let in, or metadata crossed over");
}

/// Of each cluster its id, its number of nodes and its keyspaces.
async fn identities(clusters: [&Cluster; 3]) -> Vec<(Vec<u8>, usize, Vec<String>)> {
    let mut identities = Vec::new();
    for cluster in clusters {
        let status = cluster.api(0).status().await.expect("a status");
        let keyspaces = status.keyspaces.iter().map(|it| it.name.clone()).collect();
        identities.push((status.cluster_id.to_vec(), status.nodes.len(), keyspaces));
    }
    identities
}

/// A graceful stop finishes what has begun: no write that was sent before is left unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_stop_finishes() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let client = cluster.client(&[1]).await;
    let mut calls = Vec::new();
    for call in 0..20 {
        let keyspace = client.keyspace("plain");
        calls.push(tokio::spawn(async move {
            let items =
                (0..200).map(|it| WriteItem::put(format!("call {call}, key {it}"), "value"));
            keyspace.batch_write(items.collect()).await
        }));
    }
    eventually("the writes have begun", async || {
        let written = cluster.api(0).counter("records_written").await;
        if written > 0 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    assert!(cluster.stop(1).success());
    let mut acknowledged = 0;
    for call in calls {
        for result in call.await.expect("a call") {
            match result {
                Ok(_) => acknowledged += 1,
                Err(error) => assert!(!error.is_unknown_write(), "{error}"),
            }
        }
    }
    assert!(acknowledged > 0);
}
