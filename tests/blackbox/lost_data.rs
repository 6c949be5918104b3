//! Nodes whose data directory is lost, restored from a snapshot, or put back to what it was.

use std::{fs, path::Path};

use model::{Key, Version};
use proto::v1::ConsistencyLevel as Wire;

use crate::{
    harness::{Cluster, Keyspace, Options, copy_folder, datacenters, eventually, level, run_ok},
    load::Load,
};

/// Exchanges and purges soon enough for tests that wait for them.
const EAGER: [&str; 8] = [
    "--exchange-interval",
    "200ms",
    "--exchange-settle",
    "500ms",
    "--fence-lag",
    "6s",
    "--purge-interval",
    "500ms",
];
const ROWS: usize = 200;

fn key(number: usize) -> Key {
    Key::new(format!("row {number}").into_bytes())
}

/// What becomes of each row in turn: kept, written anew, deleted.
fn expected(number: usize) -> Option<&'static str> {
    match number % 3 {
        0 => Some("old"),
        1 => Some("new"),
        _ => None,
    }
}

async fn write_old(cluster: &Cluster) {
    for number in 0..ROWS {
        let done = cluster.api(0).set("shop", &key(number), "old", level(Wire::All)).await;
        done.expect("all are up");
    }
}

/// Writes what is new, and deletes what is to go, through these nodes in turns.
async fn write_new(cluster: &Cluster, nodes: &[usize], consistency: Wire) {
    for number in 0..ROWS {
        let (api, key) = (cluster.api(nodes[number % nodes.len()]), key(number));
        let consistency = level(consistency);
        match expected(number) {
            Some("new") => drop(api.set("shop", &key, "new", consistency).await.expect("a put")),
            Some(_) => {}
            None => drop(api.remove("shop", &key, consistency).await.expect("a delete")),
        }
    }
}

/// Waits until a node has nothing to fill.
async fn wait_filled(cluster: &Cluster, at: usize) {
    eventually(&format!("node {at} is filled"), async || {
        let known = cluster.api(at).convergence().await.map_err(|it| it.to_string())?;
        match known.fill {
            None if !known.keyspaces.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

/// Reads every row through a node at its own replica's word.
async fn check_rows(cluster: &Cluster, at: usize, consistency: Wire) {
    for number in 0..ROWS {
        let what = format!("row {number} at node {at}");
        let read = cluster.api(at).read("shop", &key(number), level(consistency)).await;
        let read = read.unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = read.found.then(|| String::from_utf8_lossy(&read.value).into_owned());
        assert_eq!(found.as_deref(), expected(number), "{what}");
    }
}

/// Removes nodes' data directories, and has them take their own places from now on.
fn lose(cluster: &mut Cluster, nodes: &[usize]) {
    for at in nodes {
        let node = cluster.node_mut(*at);
        fs::remove_dir_all(&node.data).expect("its data");
        let id = node.id.clone();
        node.arguments.extend(["--replace".to_owned(), id]);
    }
}

/// The whole of a datacenter's data is lost, and comes back without a command while the other one is written to.
#[tokio::test]
async fn a_datacenter_whose_data_is_lost_comes_back() {
    let lost = [3, 4, 5];
    let options = Options::small_ring().with(&EAGER);
    let mut cluster = Cluster::start(&datacenters(&[3, 3]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    write_old(&cluster).await;
    let load = Load::start(&[0, 1, 2].map(|it| cluster.api(it)));
    load.goes_on(100).await;
    cluster.kill(&lost);
    cluster.wait_all_up().await;
    write_new(&cluster, &[0, 1, 2], Wire::LocalQuorum).await;
    lose(&mut cluster, &lost);
    let join = cluster.node(0).peer.to_string();
    cluster.launch(&lost, &["--join", &join]);
    // One after the other; LOCAL_QUORUM needs two of them.
    for at in lost {
        wait_filled(&cluster, at).await;
    }
    load.goes_on(100).await;
    let written = load.stop().await;
    for at in lost {
        check_rows(&cluster, at, Wire::One).await;
        check_rows(&cluster, at, Wire::LocalQuorum).await;
    }
    eventually("the load's last writes are everywhere", async || {
        for (key, version) in &written {
            let seen = cluster.api(3).explain("shop", key).await.map_err(|it| it.to_string())?;
            let newest = seen.newest.map(Version::from);
            if !seen.agreed || seen.replicas.len() != 6 || newest != Some(*version) {
                return Err(format!("{key:?}: {seen:?}"));
            }
        }
        Ok(())
    })
    .await;
    assert_eq!(written.len(), Load::KEYS);
    // A node that has its place again is a node like any other.
    cluster.kill(&[3]);
    cluster.launch(&[3], &[]);
    wait_filled(&cluster, 3).await;
    cluster.wait_all_up().await;
    // Its fence lies ahead of the clock by as much as two clocks may differ.
    eventually("a write at ALL", async || {
        let written = cluster.api(3).set("shop", &key(0), "old", level(Wire::All)).await;
        written.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

/// Two of three directories are lost at once: one source is no quorum's, and is enough only if told so.
#[tokio::test]
async fn what_only_lost_directories_held_is_given_up_when_told_to() {
    let options = Options::small_ring().with(&EAGER);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    write_old(&cluster).await;
    write_new(&cluster, &[0], Wire::All).await;
    let given_up = key(ROWS);
    cluster.kill(&[0]);
    cluster.wait_all_up().await;
    cluster.api(1).set("shop", &given_up, "theirs", None).await.expect("a quorum is up");
    cluster.kill(&[1, 2]);
    lose(&mut cluster, &[1, 2]);
    let join = cluster.node(0).peer.to_string();
    cluster.launch(&[0], &[]);
    cluster.launch(&[1, 2], &["--join", &join]);
    for at in [1, 2] {
        eventually("it waits for the other one that is lost", async || {
            let known = cluster.api(at).convergence().await.map_err(|it| it.to_string())?;
            match known.fill {
                Some(it) if it.partitions > 0 && !it.missing.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        let read = cluster.api(at).read("shop", &key(0), level(Wire::Two)).await;
        assert!(read.is_err(), "node 0 alone has something to say: {read:?}");
    }
    cluster.kill(&[1, 2]);
    cluster.launch(&[1, 2], &["--join", &join, "--accept-loss"]);
    for at in [1, 2] {
        wait_filled(&cluster, at).await;
    }
    for at in cluster.running() {
        check_rows(&cluster, at, Wire::One).await;
        let read = cluster.api(at).read("shop", &given_up, level(Wire::One)).await;
        assert!(!read.expect("a read").found, "node {at} has what only lost directories held");
    }
}

/// Flips a bit in one of a snapshot's data files, and says which.
fn damage(snapshot: &Path) -> String {
    let files = fs::read_dir(snapshot.join("rocksdb")).expect("its database");
    let paths = files.map(|it| it.expect("an entry").path());
    let mut tables: Vec<_> =
        paths.filter(|it| it.extension().is_some_and(|it| it == "sst")).collect();
    tables.sort();
    let path = tables.pop().expect("a data file");
    let mut bytes = fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).expect("written");
    path.file_name().expect("a name").to_string_lossy().into_owned()
}

/// What was deleted, and purged, after a snapshot does not come back with it; what was written does.
#[tokio::test]
async fn a_node_starts_from_a_snapshot() {
    let options = Options::small_ring().with(&EAGER);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    write_old(&cluster).await;
    let node = cluster.addresses(&[2]);
    run_ok(&["--node", &node, "admin", "snapshot", "create", "before", "--only", &node]);
    let snapshot = cluster.folder().join("elsewhere/before");
    copy_folder(&cluster.node(2).data.join("snapshots/before"), &snapshot);

    write_new(&cluster, &[0, 1], Wire::Quorum).await;
    let deleted = (0..ROWS).filter(|it| expected(*it).is_none()).count();
    eventually("what was deleted is gone", async || {
        let status = cluster.api(2).status().await.map_err(|it| it.to_string())?;
        let purged = status.counters.get("records_purged").copied().unwrap_or_default();
        if purged >= u64::try_from(deleted).unwrap() { Ok(()) } else { Err(purged.to_string()) }
    })
    .await;
    cluster.kill(&[2]);
    fs::remove_dir_all(&cluster.node(2).data).expect("its data");
    let join = cluster.node(0).peer.to_string();
    let damaged = cluster.folder().join("damaged/before");
    copy_folder(&snapshot, &damaged);
    let name = damage(&damaged);
    let said = cluster.start_in_vain(2, &["--restore", &damaged.display().to_string()]);
    assert!(said.contains("RESTORE_FAILED") && said.contains(&name), "{name}: {said}");
    let restore = snapshot.display().to_string();
    cluster.launch(&[2], &["--join", &join, "--restore", &restore]);
    wait_filled(&cluster, 2).await;
    check_rows(&cluster, 2, Wire::One).await;
    let status = cluster.api(2).status().await.expect("a status");
    let counted = |name: &str| status.counters.get(name).copied().unwrap_or_default();
    // But for those whose tombstones the others still had.
    assert!(counted("records_discarded") > 0, "{:?}", status.counters);
    // Only what is newer has moved.
    assert!(counted("records_written") < u64::try_from(ROWS).unwrap(), "{:?}", status.counters);
    for at in [0, 1] {
        check_rows(&cluster, at, Wire::One).await;
    }
}

/// A data directory that was put back is noticed, and filled.
#[tokio::test]
async fn a_directory_that_was_put_back_is_filled() {
    let options = Options::small_ring().with(&EAGER);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    write_old(&cluster).await;
    assert!(cluster.stop(2).success());
    let (data, copied) = (cluster.node(2).data.clone(), cluster.folder().join("copy"));
    copy_folder(&data, &copied);
    cluster.restart(&[2]).await;
    write_new(&cluster, &[0, 1], Wire::Quorum).await;
    let clock_ms = async |cluster: &Cluster| {
        let status = cluster.api(2).status().await.map_err(|it| it.to_string())?;
        Ok::<_, String>(model::Hlc(status.clock).ms())
    };
    let began_ms = clock_ms(&cluster).await.expect("a clock");
    // Later than a ping and the slack of a clock's ceiling, by the clock that writes carry.
    eventually("the others have seen that it writes", async || {
        let done = cluster.api(2).set("shop", &key(0), "old", level(Wire::All)).await;
        done.map_err(|it| it.to_string())?;
        let now_ms = clock_ms(&cluster).await?;
        if now_ms > began_ms + 3_000 { Ok(()) } else { Err(now_ms.to_string()) }
    })
    .await;
    cluster.kill(&[2]);
    fs::remove_dir_all(&data).expect("its data");
    copy_folder(&copied, &data);
    cluster.launch(&[2], &[]);
    wait_filled(&cluster, 2).await;
    let log = cluster.process(2).log();
    assert!(log.contains("is not what others have seen"), "{log}");
    check_rows(&cluster, 2, Wire::One).await;
}

/// The directory of before must not come back, and a node that is up is not replaced.
#[tokio::test]
async fn two_directories_are_no_two_replicas() {
    let options = Options::small_ring().with(&EAGER);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    write_old(&cluster).await;
    cluster.kill(&[2]);
    let (data, old) = (cluster.node(2).data.clone(), cluster.folder().join("old"));
    fs::rename(&data, &old).expect("renamed");
    let id = cluster.node(2).id.clone();
    let join = cluster.node(0).peer.to_string();
    cluster.launch(&[2], &["--join", &join, "--replace", &id]);
    wait_filled(&cluster, 2).await;
    cluster.kill(&[2]);

    fs::rename(&data, cluster.folder().join("new")).expect("renamed");
    fs::rename(&old, &data).expect("renamed");
    cluster.launch(&[2], &[]);
    let log = eventually("the old directory's node stops", async || {
        let log = cluster.process(2).log();
        if log.contains("this node was replaced") { Ok(log) } else { Err(log) }
    })
    .await;
    assert_eq!(cluster.wait_stopped(2).code(), Some(1), "{log}");

    // Somebody else's directory does not take the place either.
    let other = cluster.node(1).id.clone();
    let said = cluster.start_in_vain(2, &["--replace", &other]);
    assert!(said.contains("cannot take the place of"), "{said}");
}
