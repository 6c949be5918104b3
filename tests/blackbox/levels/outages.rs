//! Every level while nodes and whole datacenters are killed and come back.

use model::Key;

use super::{
    expected::{Level, replicas_of},
    sweep::{Seen, Subject, sweep},
};
use crate::harness::{Cluster, Keyspace, Options, Random, datacenters, level};
use proto::{v1, v1::ConsistencyLevel as Wire};

fn quorum(name: &str, replicas: &[(&str, u32)]) -> Keyspace {
    let (read, write) = (level(Wire::Quorum), level(Wire::Quorum));
    let replicas = replicas.iter().map(|it| (it.0.to_owned(), it.1)).collect();
    Keyspace { replicas, read, write, ..Keyspace::named(name) }
}

/// Sweeps three keyspaces of different shape through the coordinators.
async fn sweep_all(cluster: &Cluster, through: &[usize], random: &mut Random) -> Vec<Seen> {
    let mut full = Subject::new(cluster, "full");
    (full.read, full.write) = (Level::LocalQuorum, Level::LocalQuorum);
    let mut uneven = Subject::new(cluster, "uneven");
    uneven.allow_any = true;
    let elsewhere = Subject::new(cluster, "elsewhere");
    let mut seen = Vec::new();
    for subject in [full, uneven, elsewhere] {
        seen.push(sweep(&subject, through, random).await);
    }
    seen
}

#[tokio::test]
async fn three_datacenters() {
    let mut random = Random::new("three_datacenters");
    let mut cluster = Cluster::start(&datacenters(&[3, 3, 3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("full")).await;
    let mut uneven = quorum("uneven", &[("dc1", 3), ("dc2", 2), ("dc3", 1)]);
    uneven.allow_any = true;
    cluster.create(&uneven).await;
    cluster.create(&quorum("elsewhere", &[("dc2", 3)])).await;

    let health = sweep_all(&cluster, &[0, 4, 8], &mut random).await;
    assert!(health.iter().all(|it| it.unavailable == 0), "{health:?}");

    cluster.kill(&[1]);
    cluster.wait_all_up().await;
    sweep_all(&cluster, &[2, 5], &mut random).await;

    // Two of three in dc2: its local quorum is gone, the whole keyspace's is not.
    cluster.kill(&[3, 4]);
    cluster.wait_all_up().await;
    let partly = sweep_all(&cluster, &[0, 5], &mut random).await;
    assert!(partly.iter().all(|it| it.unavailable > 0 && it.reached > 0), "{partly:?}");

    cluster.restart(&[1, 3, 4]).await;
    cluster.kill(&[6, 7, 8]);
    cluster.wait_all_up().await;
    let lost = sweep_all(&cluster, &[1, 4], &mut random).await;
    assert!(lost[..2].iter().all(|it| it.unavailable > 0), "{lost:?}");

    // dc2 too: whoever holds nothing but hints can still take writes at ANY.
    cluster.kill(&[3, 4, 5]);
    cluster.wait_all_up().await;
    let alone = sweep_all(&cluster, &[0, 2], &mut random).await;
    assert!(alone[2].reached == 0 && alone[2].unavailable > 0, "{alone:?}");

    cluster.restart(&[3, 4, 5, 6, 7, 8]).await;
    let healed = sweep_all(&cluster, &[1, 5, 6], &mut random).await;
    assert!(healed.iter().all(|it| it.unavailable == 0), "{healed:?}");
}

fn subjects(cluster: &Cluster) -> [Subject<'_>; 2] {
    let single = Subject { allow_any: true, ..Subject::new(cluster, "single") };
    [Subject::new(cluster, "full"), single]
}

#[tokio::test]
async fn one_datacenter() {
    let mut random = Random::new("one_datacenter");
    // With more than one I/O loop in each node: calls and answers cross between them.
    let options = Options::small_ring().with(&["--io-threads", "2"]);
    let mut cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&quorum("full", &[("dc1", 3)])).await;
    let mut single = quorum("single", &[("dc1", 1)]);
    single.allow_any = true;
    cluster.create(&single).await;
    for killed in 0..3 {
        if killed > 0 {
            cluster.kill(&[killed]);
            cluster.wait_all_up().await;
        }
        mixed_batch(&cluster, killed).await;
        let through: Vec<_> = cluster.running();
        for subject in subjects(&cluster) {
            let seen = sweep(&subject, &through, &mut random).await;
            assert!(seen.reached > 0 && (killed == 0) == (seen.unavailable == 0), "{seen:?}");
        }
    }
    cluster.restart(&[1, 2]).await;
    for subject in subjects(&cluster) {
        assert_eq!(sweep(&subject, &[0, 1, 2], &mut random).await.unavailable, 0);
    }
}

/// One batch over many keys, of which some have lost their only replica: each key has the answer that
/// it would have alone.
async fn mixed_batch(cluster: &Cluster, killed: usize) {
    let keys: Vec<Key> = (0..80).map(|it| Key::new(format!("mixed {killed} {it}"))).collect();
    let (api, topology) = (cluster.api(0), cluster.api(0).topology().await.expect("a topology"));
    let is_up = |key: &Key| {
        let replicas = replicas_of(cluster, &topology, "single", key);
        replicas["dc1"].iter().all(|it| cluster.running().contains(it))
    };
    let item = |key: &Key| v1::BatchWriteItem {
        key: Some(key.clone().into()),
        write: Some(v1::batch_write_item::Write::Put(key.partition_key.clone())),
        ..v1::BatchWriteItem::default()
    };
    let request = v1::BatchWriteRequest {
        keyspace: "single".to_owned(),
        items: keys.iter().map(item).collect(),
        ..v1::BatchWriteRequest::default()
    };
    let written = api.batch_write(request).await.expect("a batch");
    let request = v1::BatchGetRequest {
        keyspace: "single".to_owned(),
        keys: keys.iter().cloned().map(Into::into).collect(),
        ..v1::BatchGetRequest::default()
    };
    let read = api.batch_get(request).await.expect("a batch");
    assert_eq!((written.results.len(), read.results.len()), (keys.len(), keys.len()));
    for ((key, written), read) in keys.iter().zip(written.results).zip(read.results) {
        use v1::{batch_get_result::Result as Read, batch_write_result::Result as Write};
        match (is_up(key), written.result, read.result) {
            (true, Some(Write::Version(version)), Some(Read::Found(found))) => {
                assert_eq!(
                    (found.value, found.version),
                    (key.partition_key.clone(), Some(version))
                );
            }
            (false, Some(Write::Error(write)), Some(Read::Error(read))) => {
                for error in [write, read] {
                    assert_eq!(error.reason, "NOT_ENOUGH_REPLICAS", "{error:?}");
                    assert_eq!(error.metadata["alive"], "0", "{error:?}");
                }
            }
            other => panic!("{key:?}: {other:?}"),
        }
    }
    assert_eq!(keys.iter().any(|it| !is_up(it)), killed > 0, "no key lost its replica");
}

/// The sweep itself can fail: against a model that believes a healthy node dead, it does.
#[tokio::test]
#[should_panic(expected = "are dead and answered")]
async fn a_wrong_table_is_noticed() {
    let mut random = Random::new("a_wrong_table_is_noticed");
    let cluster = Cluster::start(&datacenters(&[1, 1]), &Options::small_ring()).await;
    cluster.create(&quorum("full", &[("dc1", 1), ("dc2", 1)])).await;
    let subject = Subject { lie: true, ..Subject::new(&cluster, "full") };
    sweep(&subject, &[0], &mut random).await;
}
