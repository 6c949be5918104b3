//! Replicas that were away catch up by themselves, with hints and without; deleted rows stay deleted;
//! and what `quorate admin repair` and `convergence` say of it.

use std::time::Instant;

use model::{Key, Version};
use proto::v1::ConsistencyLevel as Wire;
use serde_json::Value;

use crate::{
    harness::{Cluster, Keyspace, Options, datacenters, eventually, level, run, run_ok},
    load::Load,
    metrics::scrape,
};

/// Exchanges that find a difference soon, for tests that wait for them.
const EAGER: [&str; 4] = ["--exchange-interval", "200ms", "--exchange-settle", "500ms"];
/// Exchanges that never begin by themselves while a test runs.
const IDLE: [&str; 4] = ["--exchange-interval", "1h", "--exchange-settle", "100ms"];
const NO_HINTS: [&str; 2] = ["--no-hints-for", "dc1,dc2"];

fn key(name: &str, number: usize) -> Key {
    Key::new(format!("{name} {number}").into_bytes())
}

/// The document of an admin command that was asked of a node, its exit code, and what it said of a
/// failure.
fn admin(cluster: &Cluster, at: usize, words: &[&str]) -> (Value, Option<i32>, String) {
    let node = cluster.addresses(&[at]);
    let output = run(&[&["--json", "--node", &node, "admin"], words].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (document, output.status.code(), said)
}

/// Waits until every running node has found all that it shares with others the same, later than now.
async fn wait_converged(cluster: &Cluster) {
    let since = Instant::now();
    eventually("all replicas are the same", async || {
        for at in cluster.running() {
            // Taken first: what was found the same before it was asked for does not count.
            let waited_ms = since.elapsed().as_millis();
            let known = cluster.api(at).convergence().await.map_err(|it| it.to_string())?;
            for keyspace in known.keyspaces {
                for pair in keyspace.pairs {
                    let is_same = pair.partitions_same == pair.partitions;
                    if !is_same || u128::from(pair.oldest_age_ms) >= waited_ms {
                        return Err(format!("node {at}, {}: {pair:?}", keyspace.keyspace));
                    }
                }
            }
        }
        Ok(())
    })
    .await;
}

/// Takes a datacenter away under load and brings it back, and waits until it has caught up. Returns what
/// `admin hints` said while it was away.
async fn datacenter_away(cluster: &mut Cluster) -> Value {
    cluster.create(&Keyspace::named("shop")).await;
    let load = Load::start(&[0, 1, 2].map(|it| cluster.api(it)));
    load.goes_on(100).await;
    cluster.kill(&[3, 4, 5]);
    // What nobody writes again has to be brought.
    for number in 0..20 {
        let key = key("while away", number);
        let done = cluster.api(0).set("shop", &key, "value", level(Wire::LocalQuorum)).await;
        done.expect("dc1 is up");
    }
    load.goes_on(300).await;
    let (away, _, _) = admin(cluster, 0, &["convergence"]);
    assert_eq!(away["down"].as_array().map(Vec::len), Some(3), "{away}");
    cluster.restart(&[3, 4, 5]).await;
    load.goes_on(100).await;
    let written = load.stop().await;
    wait_converged(cluster).await;
    for (key, version) in &written {
        let seen = cluster.api(0).explain("shop", key).await.expect("an explanation");
        assert_eq!((seen.agreed, seen.replicas.len()), (true, 6), "{key:?}: {seen:?}");
        assert_eq!(seen.newest.map(Version::from), Some(*version), "{key:?}");
    }
    assert_eq!(written.len(), Load::KEYS);
    away
}

#[tokio::test]
async fn a_datacenter_comes_back() {
    let mut cluster = Cluster::start(&datacenters(&[3, 3]), &Options::small_ring()).await;
    let away = datacenter_away(&mut cluster).await;
    assert!(away["hints"].as_u64() > Some(0), "{away}");
    assert!(away["keyspaces"][0]["hints"].as_u64() > Some(0), "{away}");

    let (known, code, said) = admin(&cluster, 3, &["convergence"]);
    assert_eq!((&known["share"], code), (&1.0.into(), Some(0)), "{known} {said}");
    // 16 partitions, each on all six nodes: fifteen pairs.
    assert_eq!((&known["partitions"], &known["down"]), (&240.into(), &Value::Array(Vec::new())));
    assert_eq!(known["keyspaces"][0]["pairs"].as_array().map(Vec::len), Some(15), "{known}");
    let node = cluster.addresses(&[1]);
    let text = run_ok(&["--node", &node, "admin", "convergence"]);
    assert!(text.contains("everything was the same when last compared"), "{text}");
    let text = run_ok(&["--node", &node, "admin", "status"]);
    assert!(text.contains("Convergence: 100.0% of what this node shares"), "{text}");
}

/// No guarantee depends on hints: the same without any. What was marked dirty is not owed for ever.
#[tokio::test]
async fn a_datacenter_comes_back_without_hints() {
    let options = Options::small_ring().with(&EAGER).with(&NO_HINTS);
    let mut cluster = Cluster::start(&datacenters(&[3, 3]), &options).await;
    let away = datacenter_away(&mut cluster).await;
    assert_eq!(away["hints"], 0, "{away}");
    assert!(away["dirty_marks"].as_u64() > Some(0), "{away}");
    assert!(away["keyspaces"][0]["dirty_marks"].as_u64() > Some(0), "{away}");
    let known = eventually("nothing is dirty any more", async || {
        let (known, _, _) = admin(&cluster, 0, &["convergence"]);
        if known["dirty_marks"] == 0 { Ok(known) } else { Err(known.to_string()) }
    })
    .await;
    assert!(known["records_moved"].as_u64() > Some(0), "{known}");
}

/// A node with the keys of others' writes that it has missed: nothing but a repair tells it.
async fn node_behind(keyspaces: &[&str], writes: usize) -> Cluster {
    let options = Options::small_ring().with(&IDLE).with(&NO_HINTS);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    for name in keyspaces {
        cluster.create(&Keyspace::named(name)).await;
    }
    cluster.kill(&[2]);
    cluster.wait_all_up().await;
    for name in keyspaces {
        for number in 0..writes {
            let done = cluster.api(number % 2).set(name, &key("row", number), "value", None).await;
            done.expect("a quorum is up");
        }
    }
    cluster
}

/// How many of the rows are the same at all replicas.
async fn agreed(cluster: &Cluster, keyspace: &str, writes: usize) -> usize {
    let mut agreed = 0;
    for number in 0..writes {
        let seen = cluster.api(0).explain(keyspace, &key("row", number)).await;
        agreed += usize::from(seen.expect("an explanation").agreed);
    }
    agreed
}

#[tokio::test]
async fn a_second_repair_moves_nothing() {
    const WRITES: usize = 60;
    let mut cluster = node_behind(&["shop", "other"], WRITES).await;
    let (down, code, said) = admin(&cluster, 0, &["repair", "--wait", "--within", "1m"]);
    let address = cluster.node(2).client.to_string();
    assert_eq!((&down["same"], &down["down"][0]), (&false.into(), &address.as_str().into()));
    assert_eq!(code, Some(1), "what the node that is down lacks is not known: {down}");
    assert!(said.contains("REPLICAS_DIFFER") && said.contains(&address), "{said}");

    cluster.restart(&[2]).await;
    assert_eq!(agreed(&cluster, "shop", WRITES).await, 0, "nothing has come by itself");
    let (early, code, said) = admin(&cluster, 1, &["repair", "--keyspace", "shop"]);
    assert_eq!((&early["same"], code), (&true.into(), Some(0)), "{early} {said}");
    let moved = early["records_moved"].as_u64().expect("a count");
    // At least once; twice where both other nodes were at it.
    assert!((60..=120).contains(&moved), "{early}");
    assert_eq!(agreed(&cluster, "shop", WRITES).await, WRITES);
    assert_eq!(agreed(&cluster, "other", WRITES).await, 0, "another keyspace was not asked for");

    let (full, code, said) = admin(&cluster, 2, &["repair", "--wait"]);
    assert_eq!((&full["same"], code), (&true.into(), Some(0)), "{full} {said}");
    assert!(full["records_moved"].as_u64() >= Some(60), "{full}");
    let (again, code, _) = admin(&cluster, 0, &["repair", "--wait"]);
    assert_eq!((&again["same"], code), (&true.into(), Some(0)), "{again}");
    assert_eq!(again["records_moved"], 0, "{again}");
    let nodes = again["nodes"].as_array().expect("nodes");
    let pairs: Vec<_> =
        nodes.iter().flat_map(|it| it["pairs"].as_array().expect("pairs")).collect();
    assert_eq!(pairs.len(), 3, "each pair once: {again}");
    for pair in pairs {
        assert_eq!((&pair["state"], &pair["trees"]), (&"same".into(), &32.into()), "{again}");
        assert_eq!((&pair["trees_differing"], &pair["ranges"]), (&0.into(), &0.into()), "{again}");
    }

    let node = cluster.addresses(&[0]);
    let text = run_ok(&["--node", &node, "admin", "repair"]);
    assert!(text.contains("everything is the same: 3 pairs compared"), "{text}");
    let text = run_ok(&["--node", &node, "admin", "repair", "--no-wait"]);
    assert!(text.contains("comparisons of 3 pairs have begun"), "{text}");
    let (_, code, said) = admin(&cluster, 0, &["repair", "--keyspace", "nowhere"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("KEYSPACE_NOT_FOUND"), "{said}");
}

/// For how many seconds a node has been unable to purge the keyspace because another one is away.
async fn blocked_seconds(cluster: &Cluster, at: usize, away: usize) -> Result<f64, String> {
    let exposition = scrape(cluster.node(at).metrics.expect("it serves them")).await;
    let blocked = exposition.value("quorate_purge_blocked_seconds", &[("keyspace", "shop")]);
    let away = cluster.node(away);
    let labels = [
        ("keyspace", "shop"),
        ("node", &away.id),
        ("address", &away.client.to_string()),
        ("datacenter", &away.datacenter),
    ];
    match (blocked, exposition.value("quorate_purge_waits_for", &labels)) {
        (Some(seconds), Some(1.0)) => Ok(seconds),
        other => Err(format!("{other:?}")),
    }
}

/// Rows deleted while a node was away, which holds them all, and rows of which it holds an older value. It is
/// away for longer than tombstones have to be kept at least: they are kept for it, and whoever asks is told so.
#[tokio::test]
async fn what_was_deleted_stays_deleted() {
    const ROWS: usize = 60;
    const FENCE_LAG_S: f64 = 6.0;
    let options = Options::small_ring().with(&EAGER).with(&NO_HINTS).with(&[
        "--fence-lag=6s",
        "--purge-interval=500ms",
        "--metrics-listen=127.0.0.1:0",
    ]);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    for number in 0..ROWS {
        let done = cluster.api(0).set("shop", &key("row", number), "old", level(Wire::All)).await;
        done.expect("all are up");
    }
    cluster.kill(&[2]);
    cluster.wait_all_up().await;
    for number in 0..ROWS {
        let (api, key) = (cluster.api(number % 2), key("row", number));
        match number % 3 {
            0 => drop(api.set("shop", &key, "new", None).await.expect("a quorum is up")),
            _ => drop(api.remove("shop", &key, None).await.expect("a quorum is up")),
        }
    }
    let purged = async |cluster: &Cluster, at: usize| {
        let status = cluster.api(at).status().await.map_err(|it| it.to_string())?;
        Ok::<_, String>(status.counters.get("records_purged").copied().unwrap_or_default())
    };
    for at in [0, 1] {
        eventually("a purge has waited for the node that is away", async || {
            let seconds = blocked_seconds(&cluster, at, 2).await?;
            if seconds > 2.0 * FENCE_LAG_S { Ok(()) } else { Err(format!("for {seconds} s")) }
        })
        .await;
        assert_eq!(purged(&cluster, at).await, Ok(0), "what the node that is away still needs");
    }
    let node = cluster.addresses(&[0]);
    let text = run_ok(&["--node", &node, "admin", "status"]);
    let address = cluster.node(2).client.to_string();
    let blocked = text.lines().find(|it| it.starts_with("shop") && it.contains("away"));
    assert!(blocked.is_some_and(|it| it.contains(&address)), "{text}");
    cluster.restart(&[2]).await;
    wait_converged(&cluster).await;
    for number in 0..ROWS {
        let key = key("row", number);
        let deleted = number % 3 != 0;
        let seen = cluster.api(2).explain("shop", &key).await.expect("an explanation");
        for replica in &seen.replicas {
            let holds_value = replica.holds_record && !replica.tombstone;
            assert!(replica.answered && holds_value != deleted, "{key:?}: {seen:?}");
        }
        for at in 0..3 {
            let read = cluster.api(at).read("shop", &key, level(Wire::One)).await.expect("a read");
            let expected: &[u8] = if deleted { b"" } else { b"new" };
            assert_eq!((read.found, &read.value[..]), (!deleted, expected), "{key:?} at node {at}");
        }
    }
    // Its values have come to nobody, and with all of them gone so are the tombstones.
    for at in cluster.running() {
        eventually("what was deleted is purged", async || {
            let purged = purged(&cluster, at).await?;
            if purged >= 40 { Ok(()) } else { Err(format!("{purged} at node {at}")) }
        })
        .await;
    }
    for number in (0..ROWS).filter(|it| it % 3 != 0) {
        let seen =
            cluster.api(0).explain("shop", &key("row", number)).await.expect("an explanation");
        assert!(seen.replicas.iter().all(|it| it.answered && !it.holds_record), "{seen:?}");
    }
}
