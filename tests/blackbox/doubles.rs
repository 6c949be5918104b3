//! Second processes of a node: of a copied data directory, or told to take the place of one that is up.

use model::Key;
use proto::v1::ConsistencyLevel as Wire;

use crate::harness::{Cluster, Keyspace, Options, copy_folder, datacenters, level};

async fn put_everywhere(cluster: &Cluster, through: usize, value: &'static str) {
    let key = Key::new(&b"key"[..]);
    let done = cluster.api(through).set("shop", &key, value, level(Wire::All)).await;
    done.unwrap_or_else(|error| panic!("{value} through node {through}: {error}"));
}

/// A copy of a data directory, started beside the node that it is of, is told so and ends; the node itself and the
/// cluster go on.
#[tokio::test]
async fn a_copied_directory_does_not_run_beside_its_node() {
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("shop")).await;
    put_everywhere(&cluster, 0, "before").await;
    cluster.kill(&[2]);
    let (data, copied) = (cluster.node(2).data.clone(), cluster.folder().join("copy"));
    copy_folder(&data, &copied);
    cluster.restart(&[2]).await;
    let peer = cluster.node(2).peer.to_string();
    // Whom it is told to join does not matter: it knows the others, or meets the node itself.
    for join in [0, 2] {
        let join = cluster.node(join).peer.to_string();
        let said = cluster.start_beside_in_vain(2, &copied, &["--join", &join]);
        assert!(said.contains("NODE_IS_UP") && said.contains(&peer), "{said}");
        cluster.wait_all_up().await;
        put_everywhere(&cluster, 2, "after").await;
        put_everywhere(&cluster, 1, "later").await;
    }
    let refused = cluster.api(0).counter("processes_refused").await;
    assert!(refused > 0, "its members count it");
}

/// An empty directory does not take the place of a node that is up.
#[tokio::test]
async fn a_node_that_is_up_is_not_replaced() {
    let cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("shop")).await;
    let (id, join) = (cluster.node(2).id.clone(), cluster.node(0).peer.to_string());
    let empty = cluster.folder().join("empty");
    let said = cluster.start_beside_in_vain(2, &empty, &["--join", &join, "--replace", &id]);
    assert!(said.contains("NODE_IS_UP"), "{said}");
    cluster.wait_all_up().await;
    put_everywhere(&cluster, 2, "after").await;
}
