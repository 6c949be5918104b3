//! Records that rot on disk: never served, never taken for absent.

use std::{fs, path::Path};

use model::Key;
use proto::{Reason, v1::ConsistencyLevel as Wire};

use crate::harness::{Cluster, Keyspace, Options, Random, datacenters, level};

/// Changes one byte of every place where these bytes are on disk. Returns how many places.
fn rot(folder: &Path, needle: &[u8]) -> usize {
    let mut places = 0;
    for entry in fs::read_dir(folder).expect("a data directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            places += rot(&path, needle);
            continue;
        }
        let mut bytes = fs::read(&path).expect("a file of the node, which does not run");
        let found: Vec<usize> = (bytes.windows(needle.len()).enumerate())
            .filter(|it| it.1 == needle)
            .map(|it| it.0)
            .collect();
        for at in &found {
            bytes[at + needle.len() / 2] ^= 0x10;
        }
        if !found.is_empty() {
            println!("{} places in {}", found.len(), path.display());
            fs::write(&path, bytes).expect("written");
            places += found.len();
        }
    }
    places
}

#[tokio::test]
async fn one_rotten_replica() {
    let mut random = Random::new("one_rotten_replica");
    let mut cluster = Cluster::start(&datacenters(&[3]), &Options::small_ring()).await;
    cluster.create(&Keyspace::named("plain")).await;
    let (key, value) = (Key::new("rotten"), random.bytes(2_000));
    cluster.api(0).set("plain", &key, value.clone(), level(Wire::All)).await.expect("all are up");
    cluster
        .api(0)
        .set("plain", &Key::new("sound"), "value", level(Wire::All))
        .await
        .expect("all are up");
    // In good order, so that the record is in a table and not in the log.
    assert!(cluster.stop(2).success());
    assert!(rot(&cluster.node(2).data, &value[500..600]) > 0, "the record is nowhere on disk");
    cluster.restart(&[2]).await;

    for at in 0..3 {
        let read = cluster.api(at).read("plain", &key, level(Wire::Quorum)).await;
        let read =
            read.unwrap_or_else(|it| panic!("two of three are sound, through node {at}: {it}"));
        assert!(read.value == value, "wrong bytes were served through node {at}");
    }
    // Every other copy out of reach: an error, and neither wrong bytes nor "absent".
    cluster.kill(&[0, 1]);
    cluster.wait_all_up().await;
    let error = cluster.api(2).read("plain", &key, level(Wire::One)).await.unwrap_err();
    assert_eq!(error.reason, Reason::ChecksumMismatch, "{error}");
    assert_eq!(error.code, tonic::Code::DataLoss, "{error}");
    assert!(cluster.api(2).counter("checksum_failures").await > 0, "it is counted");
}
