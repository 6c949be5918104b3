//! What was deleted gives its space on disk back, by itself.

use std::{fs, path::Path};

use model::Key;
use proto::{
    v1,
    v1::{ConsistencyLevel as Wire, batch_write_item::Write},
};

use crate::harness::{Cluster, Keyspace, Options, Random, datacenters, eventually, level};

const ROWS: usize = 20_000;
const VALUE_BYTES: usize = 1_500;
const BATCH: usize = 500;

/// Purges as soon as is allowed: fences stay the shortest request timeout and two clocks' offsets behind.
const EAGER: [&str; 8] = [
    "--fence-lag",
    "6s",
    "--purge-interval",
    "500ms",
    "--exchange-interval",
    "200ms",
    "--exchange-settle",
    "500ms",
];

/// Writes every row at ALL.
async fn write_all(cluster: &Cluster, mut write: impl FnMut() -> Write) {
    let rows: Vec<usize> = (0..ROWS).collect();
    for rows in rows.chunks(BATCH) {
        let item = |row: &usize| v1::BatchWriteItem {
            key: Some(Key::new(format!("row {row}").into_bytes()).into()),
            write: Some(write()),
            ..v1::BatchWriteItem::default()
        };
        let request = v1::BatchWriteRequest {
            keyspace: "shop".to_owned(),
            items: rows.iter().map(item).collect(),
            consistency: level(Wire::All),
            clock: 0,
        };
        let written = cluster.api(0).batch_write(request).await.expect("a batch");
        for it in written.results {
            let is_done = matches!(it.result, Some(v1::batch_write_result::Result::Version(_)));
            assert!(is_done, "{it:?}");
        }
    }
}

/// Bytes of all files of a folder.
fn bytes_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).expect("a folder");
    // A file may go between being listed and being looked at.
    let sizes = entries.filter_map(Result::ok).filter_map(|it| {
        let kind = it.file_type().ok()?;
        if kind.is_dir() { Some(bytes_in(&it.path())) } else { Some(it.metadata().ok()?.len()) }
    });
    sizes.sum()
}

/// Nobody writes after the deletes, and no level is full: nothing but their number makes the database
/// look at its files again.
#[tokio::test]
async fn deleted_rows_give_their_space_back() {
    let options = Options::small_ring().with(&EAGER);
    let cluster = Cluster::start(&datacenters(&[3]), &options).await;
    cluster.create(&Keyspace::named("shop")).await;
    let mut random = Random::new("deleted_rows_give_their_space_back");
    let value = || (0..VALUE_BYTES / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let mut value = value;
    write_all(&cluster, || Write::Put(value())).await;
    let written = (ROWS * VALUE_BYTES) as u64;
    for at in cluster.running() {
        let bytes = bytes_in(&cluster.node(at).data);
        assert!(bytes >= written, "node {at} holds {bytes} of {written} bytes");
    }
    write_all(&cluster, || Write::Delete(true)).await;
    for at in cluster.running() {
        eventually("deleted rows give their space back", async || {
            let rows = cluster.api(at).counter("tree_records").await;
            let bytes = bytes_in(&cluster.node(at).data);
            println!("node {at}: {rows} rows, {bytes} of {written} bytes");
            match rows == 0 && bytes < written / 8 {
                true => Ok(()),
                false => Err(format!("node {at}: {rows} rows, {bytes} of {written} bytes")),
            }
        })
        .await;
    }
}
