//! A node whose disk has lost a write, and damaged another one.

use model::{Key, StorageKey};
use node::{
    io::start,
    storage::{Durability, RangeRequest, Space, Storage, WriteBatch, rocks::RocksStorage},
};
use proto::v1::{
    self, ConsistencyLevel as L, admin_service_client::AdminServiceClient,
    kv_service_client::KvServiceClient,
};

use tonic::transport::Channel;

use super::{Cluster, get, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_disk_has_done_wrong_is_found_and_healed() {
    let mut cluster = Cluster::start(&["dc1", "dc1", "dc1"]).await;
    let mut kv = KvServiceClient::new(cluster.channel(0).await);
    for name in ["lost", "damaged", "sound"] {
        kv.put(put(name, name, L::All)).await.unwrap();
    }
    cluster.nodes[2].take().unwrap().stop().await;
    spoil(&cluster);
    // The others are asked two seconds after a record was found damaged.
    cluster.configs[2].request_timeout_ms = 1_000;
    let node = start(cluster.configs[2].clone(), &cluster.resources).unwrap();
    cluster.nodes[2] = Some(node);
    cluster.wait("everybody is back", async || cluster.ups(2).await == 3).await;

    let mut admin = AdminServiceClient::new(cluster.channel(2).await);
    let report = scrub(&mut admin).await;
    assert_eq!((report.damaged, report.unreadable, report.leaves_unreadable), (1, 0, 0));
    cluster
        .wait("both rows are back on the disk", async || {
            let mut kv = KvServiceClient::new(cluster.channel(2).await);
            let mut back = true;
            for name in ["lost", "damaged", "sound"] {
                // Of all replicas this node asks itself first.
                let read = kv.get(get(name, L::One)).await;
                back &= read.is_ok_and(|it| it.into_inner().value == name);
            }
            let told = admin.get_convergence(v1::GetConvergenceRequest {}).await.unwrap();
            back && told.into_inner().scrub.unwrap().records_damaged == 0
        })
        .await;
    let report = scrub(&mut admin).await;
    assert_eq!((report.records, report.mismatches, report.damaged), (3, 0, 0), "{report:?}");
    let status = admin.get_cluster_status(v1::GetClusterStatusRequest {}).await.unwrap();
    let counters = status.into_inner().counters;
    // Of two rows, in two leaves or in one.
    assert!(counters["leaves_recounted"] > 0, "{counters:?}");
    assert_eq!(counters["records_healed"], 1);
    for node in cluster.nodes.iter_mut().filter_map(Option::take) {
        node.stop().await;
    }
}

/// Has a node compare its trees with its data, and waits for that.
async fn scrub(admin: &mut AdminServiceClient<Channel>) -> v1::ScrubReport {
    let mut answer = v1::ScrubResponse::default();
    while !answer.done {
        let request = v1::ScrubRequest { pass: answer.pass, ..v1::ScrubRequest::default() };
        answer = admin.scrub(request).await.unwrap().into_inner();
    }
    answer.report.unwrap()
}

/// Removes one row from the third node's disk and flips a bit of another one.
fn spoil(cluster: &Cluster) {
    let path = cluster.configs[2].data.join("rocksdb");
    let storage = RocksStorage::open(&path, &cluster.resources).unwrap();
    let rows = storage.range(&RangeRequest::prefix(Space::Data, Vec::new())).unwrap().rows;
    let mut batch = WriteBatch::new();
    for (row, value) in &rows {
        let Some(key) = StorageKey::parse(row.clone()).and_then(|it| it.key()) else { continue };
        let named = |name: &str| key == Key::new(name.to_owned());
        if named("lost") {
            batch.delete(Space::Data, row);
        } else if named("damaged") {
            let mut spoilt = value.to_vec();
            spoilt[12] ^= 4;
            batch.put(Space::Data, row, [&spoilt[..]]);
        }
    }
    assert_eq!((rows.len(), batch.len()), (3, 2));
    storage.write(&batch, Durability::Synced).unwrap();
}
