//! Layouts and keyspaces: what is refused, and who wins when two ask at once.

use std::collections::BTreeSet;

use model::Key;
use proto::{CallError, CallOutcome, Reason, v1};
use tonic::{Response, Status};

use crate::harness::{Called, Cluster, Keyspace, Options, Signal, datacenters, run, run_ok};

fn called<T>(result: Result<Response<T>, Status>) -> Called<T> {
    result.map(Response::into_inner).map_err(|it| CallError::from(&it))
}

fn commit(plan_hash: u64, partitions: u32) -> v1::CommitLayoutRequest {
    v1::CommitLayoutRequest { plan_hash, partitions }
}

async fn plan(cluster: &Cluster, at: usize, partitions: u32) -> Called<v1::PlanLayoutResponse> {
    called(cluster.api(at).admin().plan_layout(v1::PlanLayoutRequest { partitions }).await)
}

#[tokio::test]
async fn the_first_layout() {
    let mut cluster = Cluster::start_bare(&datacenters(&[2, 1]), &Options::default()).await;
    let key = Key::new("key");
    // Nothing is served before, and it says what is missing.
    let called_early = [
        cluster.api(0).set("plain", &key, "value", None).await.map(drop),
        cluster.api(1).read("plain", &key, None).await.map(drop),
        cluster.api(2).create_keyspace(Keyspace::named("plain").request()).await.map(drop),
    ];
    for early in called_early {
        let error = early.unwrap_err();
        assert_eq!((error.reason, error.outcome), (Reason::NoLayout, CallOutcome::NotApplied));
    }
    // Commands that would wait for it, or report on it, end at once.
    let wait = ["hints", "wait", "--within", "1s"];
    for asked in [&wait[..], &["convergence"], &["repair"], &["scrub", "--wait"]] {
        let node = cluster.addresses(&[1]);
        let output = run(&[&["--node", &node, "--json", "admin"], asked].concat());
        assert_eq!(output.status.code(), Some(4), "{asked:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("NO_LAYOUT"), "{output:?}");
    }
    // A plan is the same from wherever it is asked for, and changes nothing.
    let first = plan(&cluster, 0, 32).await.expect("a plan");
    assert_eq!((first.layout_version, first.partitions, first.nodes.len()), (1, 32, 3));
    let sum: u32 = first.nodes.iter().map(|it| it.partitions).sum();
    assert_eq!(sum, 32 * 3, "each partition has a replica at each node: {first:?}");
    for at in [1, 2] {
        let same = plan(&cluster, at, 32).await.expect("a plan");
        assert_eq!(same.plan_hash, first.plan_hash);
    }
    let other = plan(&cluster, 0, 64).await.expect("a plan");
    assert_ne!(other.plan_hash, first.plan_hash);
    assert_eq!(cluster.api(0).status().await.expect("a status").layout_version, 0);
    for partitions in [3, 1 << 30] {
        let error = plan(&cluster, 0, partitions).await.unwrap_err();
        assert_eq!(error.reason, Reason::LayoutInvalid, "{partitions}: {error}");
    }
    // Another hash, other partitions than planned, and a plan that the members have outrun.
    let mut admin = cluster.api(0).admin();
    for stale in [commit(first.plan_hash ^ 1, 32), commit(first.plan_hash, 64)] {
        let error = called(admin.commit_layout(stale).await).unwrap_err();
        assert_eq!(error.reason, Reason::PlanChanged, "{error}");
        assert_eq!(error.outcome, CallOutcome::NotApplied);
        assert_eq!(error.code, tonic::Code::FailedPrecondition);
        assert!(error.metadata.contains_key("planned") && error.metadata.contains_key("now"));
    }
    cluster.kill(&[2]);
    cluster.wait_all_up().await;
    let error = called(admin.commit_layout(commit(first.plan_hash, 32)).await).unwrap_err();
    assert_eq!(error.reason, Reason::PlanChanged, "one node less: {error}");
    cluster.restart(&[2]).await;

    let done = called(admin.commit_layout(commit(first.plan_hash, 32)).await).expect("a layout");
    assert_eq!((done.layout_version, done.cluster_id.len()), (1, 16));
    cluster.wait_agreed().await;
    for at in 0..3 {
        let status = cluster.api(at).status().await.expect("a status");
        assert_eq!((status.layout_hash, &status.cluster_id), (done.layout_hash, &done.cluster_id));
        assert_eq!(status.partitions, 32);
        let told = |it: &v1::NodeInfo| (it.storage_id.len(), it.software_version.is_empty());
        assert!(status.nodes.iter().all(|it| told(it) == (16, false)), "{:?}", status.nodes);
        // A second first layout, through any node.
        let mut admin = cluster.api(at).admin();
        let error = called(admin.commit_layout(commit(first.plan_hash, 32)).await).unwrap_err();
        assert_eq!(error.reason, Reason::LayoutInvalid, "{error}");
    }
}

/// Two operators commit at once, through two nodes: there is one layout and one cluster.
#[tokio::test]
async fn two_first_layouts() {
    for round in 0..3 {
        let cluster = Cluster::start_bare(&datacenters(&[3]), &Options::default()).await;
        let hash = plan(&cluster, 0, 16).await.expect("a plan").plan_hash;
        let (mut one, mut other) = (cluster.api(0).admin(), cluster.api(2).admin());
        let (one, other) = tokio::join!(
            one.commit_layout(commit(hash, 16)),
            other.commit_layout(commit(hash, 16))
        );
        let results = [called(one), called(other)];
        let ids: BTreeSet<_> = results.iter().flatten().map(|it| it.cluster_id.clone()).collect();
        assert_eq!(ids.len(), 1, "round {round}: {results:?}");
        for error in results.iter().filter_map(|it| it.as_ref().err()) {
            let lost = [Reason::AgreementFailed, Reason::LayoutInvalid, Reason::PlanChanged];
            assert!(lost.contains(&error.reason), "round {round}: {error}");
        }
        cluster.wait_agreed().await;
        let status = cluster.api(1).status().await.expect("a status");
        assert_eq!(Some(&status.cluster_id), ids.first(), "round {round}");
    }
}

/// A change that too few nodes can agree to is refused before anything is sent, as soon as that is known; while it is
/// not, its outcome is unknown, and the call says so before its deadline.
#[tokio::test]
async fn changes_without_a_majority() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    for at in [1, 2] {
        cluster.process(at).signal(Signal::Pause);
    }
    let error = cluster.api(0).create_keyspace(Keyspace::named("silence").request()).await;
    let error = error.unwrap_err();
    assert_eq!(error.reason, Reason::AgreementFailed, "{error}");
    assert_eq!(error.outcome, CallOutcome::Unknown, "{error}");
    cluster.kill(&[1, 2]);
    cluster.wait_all_up().await;
    let error = cluster.api(0).create_keyspace(Keyspace::named("alone").request()).await;
    let error = error.unwrap_err();
    assert_eq!(error.reason, Reason::AgreementFailed, "{error}");
    assert_eq!(error.outcome, CallOutcome::NotApplied, "{error}");
    let number = |name: &str| error.metadata.get(name).map(String::as_str);
    assert_eq!((number("required"), number("alive")), (Some("2"), Some("1")), "{error}");
    assert!(error.message.contains(&cluster.node(2).id), "{error}");
    // A node that has just started is waited for.
    cluster.launch(&[1], &[]);
    cluster.create(&Keyspace::named("alone")).await;
}

/// The same name created through all nodes at once, again and again: exactly one wins, and all nodes
/// then hold the same keyspace.
#[tokio::test]
async fn one_name_created_at_once() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    let mut ids = BTreeSet::new();
    for round in 0..6 {
        let name = format!("contested_{round}");
        let mut tasks = Vec::new();
        for at in 0..3 {
            let api = cluster.api(at);
            let mut keyspace = Keyspace::named(&name);
            // Each asks for something else, so that it shows who won.
            keyspace.default_ttl_seconds = 1_000 + u64::try_from(at).expect("few");
            tasks.push(tokio::spawn(async move { api.create_keyspace(keyspace.request()).await }));
        }
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.expect("a call"));
        }
        let won: Vec<_> = results.iter().flatten().collect();
        assert_eq!(won.len(), 1, "round {round}: {results:?}");
        for error in results.iter().filter_map(|it| it.as_ref().err()) {
            assert_eq!(error.reason, Reason::KeyspaceExists, "round {round}: {error}");
            assert_eq!(error.outcome, CallOutcome::NotApplied, "round {round}: {error}");
        }
        cluster.wait_agreed().await;
        for at in 0..3 {
            let keyspaces = cluster.api(at).status().await.expect("a status").keyspaces;
            let held = keyspaces.iter().find(|it| it.name == name).expect("created");
            assert_eq!(held, won[0], "round {round}, node {at}");
        }
        assert!(ids.insert(won[0].id), "round {round}: an id was given twice");
    }
}

/// Dropped and created again: the rows of its earlier life are gone, for scans and gets.
#[tokio::test]
async fn a_keyspace_dropped_and_created_again() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    let (first, key) = (cluster.create(&Keyspace::named("again")).await, Key::new("key"));
    cluster.api(0).set("again", &key, "value", None).await.expect("a put");
    let mut admin = cluster.api(1).admin();
    admin.drop_keyspace(v1::DropKeyspaceRequest { name: "again".into() }).await.expect("dropped");
    cluster.wait_agreed().await;
    for at in 0..3 {
        let error = cluster.api(at).read("again", &key, None).await.unwrap_err();
        assert_eq!(error.reason, Reason::KeyspaceNotFound, "{error}");
        assert_eq!(error.metadata.get("keyspace").map(String::as_str), Some("again"));
    }
    let again = v1::DropKeyspaceRequest { name: "again".into() };
    let error = called(admin.drop_keyspace(again).await).unwrap_err();
    assert_eq!(error.reason, Reason::KeyspaceNotFound, "{error}");
    let second = cluster.create(&Keyspace::named("again")).await;
    assert_ne!(first.id, second.id);
    for at in 0..3 {
        assert!(!cluster.api(at).read("again", &key, None).await.expect("a get").found);
    }
}

/// The way that the manual describes, with the binary alone.
#[tokio::test]
async fn from_the_command_line() {
    let cluster = Cluster::start_bare(&datacenters(&[2, 1]), &Options::default()).await;
    let node = cluster.addresses(&[0]);
    let json = |arguments: &[&str]| {
        let text = run_ok(&[&["--json", "--node", &node], arguments].concat());
        serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|it| panic!("{it}: {text}"))
    };
    let plan = json(&["admin", "layout", "plan"]);
    let hash = plan["plan"].as_str().expect("a hash").to_owned();
    let wrong = run(&[
        "--json",
        "--node",
        &node,
        "admin",
        "layout",
        "commit",
        "--plan",
        "0000000000000001",
    ]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("PLAN_CHANGED"), "{wrong:?}");
    assert_eq!(json(&["admin", "layout", "commit", "--plan", &hash])["layout_version"], 1);
    cluster.wait_agreed().await;
    json(&["admin", "keyspace", "create", "shop", "--replicas", "dc1=2,dc2=1"]);
    cluster.wait_agreed().await;

    run_ok(&["--node", &node, "put", "shop", "key", "value", "--consistency", "ALL"]);
    let got = json(&["get", "shop", "key", "--consistency", "EACH_QUORUM"]);
    assert_eq!(got["value"], "value", "{got}");
    let explained = json(&["admin", "explain", "shop", "key"]);
    assert_eq!(explained["agreed"], true, "{explained}");
    run_ok(&["--node", &node, "delete", "shop", "key"]);
    let exit =
        |arguments: &[&str]| run(&[&["--json", "--node", &node], arguments].concat()).status.code();
    assert_eq!(exit(&["get", "shop", "key"]), Some(5), "absent");
    assert_eq!(exit(&["get", "shop", "key", "--consistency", "SOME"]), Some(2), "nonsense");
    assert_eq!(exit(&["get", "nowhere", "key"]), Some(1), "no such keyspace");
    let nobody = ["--node", "127.0.0.1:1", "--timeout", "1s", "get", "shop", "key"];
    assert_eq!(run(&nobody).status.code(), Some(4), "nobody there");
}
