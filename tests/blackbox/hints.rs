//! Writes kept for nodes that are away: shown, waited for, and never lost.

use model::{ConsistencyLevel, Key};
use proto::{CallOutcome, Reason};
use serde_json::Value;

use crate::harness::{Cluster, Keyspace, Options, datacenters, run, run_ok};

const WRITES: usize = 30;

fn key(number: usize) -> Key {
    Key::new(format!("key {number}").into_bytes())
}

/// The document of `quorate admin hints`, asked at a node.
fn hints(cluster: &Cluster, at: usize, words: &[&str]) -> (Value, bool) {
    let node = cluster.addresses(&[at]);
    let arguments = [&["admin", "hints"], words, &["--json", "--node", &node]].concat();
    let output = run(&arguments);
    let document = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    (document, output.status.success())
}

/// The sum of some figures of a target, over all nodes.
fn sum(document: &Value, target: &str, figures: &[&str]) -> u64 {
    let nodes = document["nodes"].as_array().expect("nodes");
    let targets = nodes.iter().flat_map(|it| it["targets"].as_array().expect("targets"));
    let own = targets.filter(|it| it["target"] == target);
    own.flat_map(|it| figures.iter().map(|name| it[*name].as_u64().expect("a count"))).sum()
}

/// All hints that nodes keep for a target, of both classes.
fn kept(document: &Value, target: &str) -> u64 {
    sum(document, target, &["hints", "any_hints"])
}

#[tokio::test]
async fn a_barrier_stands_until_the_target_has_everything() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster.kill(&[2]);
    cluster.wait_all_up().await;
    for number in 0..WRITES {
        let at = number % 2;
        cluster.api(at).set("plain", &key(number), "value", None).await.expect("a quorum is up");
    }
    let away = cluster.node(2).client.to_string();
    let (early, ok) = hints(&cluster, 0, &["wait", "--within", "1s"]);
    assert!(!ok && early["delivered"] == false, "{early}");
    assert_eq!(early["not_asked"], serde_json::json!([away]), "what it keeps is not known");
    let (document, _) = hints(&cluster, 0, &[]);
    assert_eq!(kept(&document, &away), WRITES as u64, "at two nodes: {document}");
    let state = &document["nodes"][0]["targets"][0]["state"];
    assert_eq!(state, "away", "{document}");
    let (own, _) = hints(&cluster, 0, &["--this-node"]);
    assert_eq!((own["nodes"].as_array().unwrap().len(), kept(&own, &away)), (1, WRITES as u64 / 2));

    cluster.restart(&[2]).await;
    let (late, ok) = hints(&cluster, 1, &["wait", "--within", "1m"]);
    assert!(ok && late["delivered"] == true, "{late}");
    // The barrier fell: no reads have mended anything, the target has it by itself.
    for number in 0..WRITES {
        let explained = cluster.api(0).explain("plain", &key(number)).await.expect("an answer");
        assert!(explained.agreed, "key {number}: {explained:?}");
    }
    let text = run_ok(&["admin", "hints", "--node", &cluster.addresses(&[0])]);
    assert_eq!(text, "No hints are kept, and nothing is dirty.\n");
}

#[tokio::test]
async fn hints_are_switched_off_for_one_datacenter_alone() {
    let options = Options::small_ring().with(&["--no-hints-for", "dc2"]);
    let mut cluster = Cluster::start(&datacenters(&[2, 1]), &options).await;
    cluster.create(&Keyspace::named("plain")).await;
    cluster.kill(&[1, 2]);
    cluster.wait_all_up().await;
    for number in 0..WRITES {
        let one = Some(ConsistencyLevel::One.into());
        cluster.api(0).set("plain", &key(number), "value", one).await.expect("a replica is up");
    }
    let [near, far] = [1, 2].map(|it| cluster.node(it).client.to_string());
    let (document, _) = hints(&cluster, 0, &["--this-node"]);
    let of = |target| (kept(&document, target), sum(&document, target, &["dirty_marks"]) > 0);
    assert_eq!((of(&near), of(&far)), ((WRITES as u64, false), (0, true)), "{document}");
}

#[tokio::test]
async fn any_is_refused_before_a_hint_would_be_given_up() {
    let options = Options::small_ring().with(&["--any-hint-bytes-max", "4k"]);
    let mut cluster = Cluster::start(&datacenters(&[1, 1]), &options).await;
    let replicas = vec![("dc2".to_owned(), 1)];
    let keyspace =
        Keyspace { replicas, allow_any: true, accept_weak: true, ..Keyspace::named("far") };
    cluster.create(&keyspace).await;
    let any = Some(ConsistencyLevel::Any.into());
    cluster.kill(&[1]);
    cluster.wait_all_up().await;
    let mut acknowledged = 0;
    let refused = loop {
        match cluster.api(0).set("far", &key(acknowledged), vec![b'v'; 300], any).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
        assert!(acknowledged < 20, "more than its bound is kept");
    };
    assert!(acknowledged > 5, "{acknowledged}");
    assert_eq!((refused.reason, refused.outcome), (Reason::AnyHintsFull, CallOutcome::NotApplied));
    assert_eq!(refused.metadata["limit"], "4096");
    let actual: u64 = refused.metadata["actual"].parse().expect("a number");
    assert!((2_000..=4_096).contains(&actual), "{actual}");

    cluster.restart(&[1]).await;
    let (late, ok) = hints(&cluster, 0, &["wait", "--within", "1m"]);
    assert!(ok, "{late}");
    for number in 0..acknowledged {
        let one = Some(ConsistencyLevel::One.into());
        let read = cluster.api(1).read("far", &key(number), one).await.expect("a replica");
        assert!(read.found, "key {number} was acknowledged");
    }
    cluster.api(0).set("far", &key(99), "value", any).await.expect("there is room, and a replica");
}
