//! `quorate bench deletes`: whether deleted keys give their space back, how soon, and without what.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::Args;
use model::{ConsistencyLevel, Key};
use serde::Serialize;

use super::{
    cluster::{BenchCluster, KEYSPACE},
    keys::KeySpace,
    load::Load,
    run::fill,
    target::{Target, first_error},
};
use crate::{
    args::Global,
    failure::{Exit, Failure},
    output::Output,
    progress,
    table::Table,
    values::{self, spell_bytes, spell_count},
};

/// Measure how the space of deleted keys is given back
///
/// Starts three nodes on free ports, fills them, deletes every key, and does nothing more: no command,
/// no compaction, no grace period. Shown is what is on the disk of the node that keeps most, until all
/// replicas have proven that no older version is left and the tombstones are gone from everywhere.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate bench deletes
  quorate bench deletes --keys 100000 --json

Exit code 1 means that tombstones or bytes were left.")]
pub(crate) struct DeletesArgs {
    /// How many keys
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1_000..))]
    keys: u64,

    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = values::size)]
    value_size: usize,

    /// The folder for the nodes' data [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Serialize)]
struct DeletesDocument {
    held: bool,
    keys: u64,
    /// Of the node that keeps most, as are all bytes here: of its data folder, log files included.
    bytes_empty: u64,
    bytes_filled: u64,
    bytes_deleted: u64,
    bytes_after: u64,
    /// From the last delete until no replica had a tombstone left.
    purged_after_ms: f64,
    /// And until the disks had given the space back.
    given_back_after_ms: f64,
    /// Records that are left anywhere.
    records_left: u64,
}

/// Fences stay as far behind as a call may last, which is not what is measured.
const OPTIONS: &[&str] = &["--fence-lag=25s", "--purge-interval=1s", "--request-timeout=20s"];
/// So long tombstones may take to go.
const PATIENCE: Duration = Duration::from_mins(20);
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const FILL_TIMEOUT: Duration = Duration::from_mins(1);
const BATCH_KEYS: usize = 100;
/// What may be left of the bytes that the keys had taken up: one part of so many.
const PART_LEFT: u64 = 8;

/// Measures and judges.
pub(super) async fn run(
    args: DeletesArgs,
    mut global: Global,
    output: Output,
) -> Result<Exit, Failure> {
    global.timeout = global.timeout.max(FILL_TIMEOUT);
    let space = KeySpace::uniform(args.keys, args.value_size);
    let bar = progress::spinner(output, "starting three nodes");
    let cluster = BenchCluster::start(args.folder.as_deref(), 1, OPTIONS).await?;
    cluster.make(&global).await?;
    bar.finish_and_clear();
    let keyspace = cluster.client(&global).await?.keyspace(KEYSPACE);
    let target = Target::Cluster { keyspace, level: Some(ConsistencyLevel::Quorum) };
    let bytes_empty = cluster.disk_bytes_max();
    let load = Load {
        clients: 1,
        rate: None,
        warm_up: Duration::ZERO,
        duration: Duration::ZERO,
        read_share: 0.0,
        batch: BATCH_KEYS,
        space,
    };
    fill(&load, &target, output).await?;
    let bytes_filled = cluster.disk_bytes_max();
    let bar = progress::spinner(output, "deleting every key");
    delete_all(&load.space, &target).await?;
    let (begun, bytes_deleted) = (Instant::now(), cluster.disk_bytes_max());
    bar.set_message("waiting until the tombstones are gone");
    let elapsed_ms = || begun.elapsed().as_secs_f64() * 1e3;
    let mut document = DeletesDocument {
        held: false,
        keys: args.keys,
        bytes_empty,
        bytes_filled,
        bytes_deleted,
        bytes_after: bytes_deleted,
        purged_after_ms: f64::NAN,
        given_back_after_ms: f64::NAN,
        records_left: args.keys,
    };
    let taken_up = bytes_filled.saturating_sub(bytes_empty);
    while begun.elapsed() < PATIENCE && !document.held {
        tokio::time::sleep(POLL_INTERVAL).await;
        let figures = cluster.figures(&global).await?;
        let records = figures.iter().filter_map(|it| it.get("tree_records"));
        document.records_left = records.copied().max().unwrap_or(args.keys);
        document.bytes_after = cluster.disk_bytes_max();
        if document.records_left == 0 && document.purged_after_ms.is_nan() {
            document.purged_after_ms = elapsed_ms();
            bar.set_message("waiting until the disks have given the space back");
        }
        let left = document.bytes_after.saturating_sub(bytes_empty);
        document.held = document.records_left == 0 && left <= taken_up / PART_LEFT;
        if document.held {
            document.given_back_after_ms = elapsed_ms();
        }
    }
    bar.finish_and_clear();
    cluster.stop().await?;
    show(&document, output)?;
    Ok(if document.held { Exit::Ok } else { Exit::Failed })
}

async fn delete_all(space: &KeySpace, target: &Target) -> Result<(), Failure> {
    let indexes: Vec<u64> = (0..space.keys).collect();
    let keys = |it: &[u64]| it.iter().map(|at| space.key(*at)).collect::<Vec<Key>>();
    let calls = indexes.chunks(BATCH_KEYS).map(|it| target.delete_batch(keys(it)));
    match first_error(calls).await {
        Some(error) => {
            let message = format!("a key could not be deleted: {error}");
            Err(Failure::new("DELETE_FAILED", message))
        }
        None => Ok(()),
    }
}

fn show(document: &DeletesDocument, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(document);
    }
    let mut table = Table::new(&["the disk that holds most", ">bytes"]);
    for (name, bytes) in [
        ("empty", document.bytes_empty),
        ("filled", document.bytes_filled),
        ("after the last delete", document.bytes_deleted),
        ("when all was over", document.bytes_after),
    ] {
        table.row([name.to_owned().into(), spell_bytes(bytes).into()]);
    }
    output.report(&table)?;
    output.line("")?;
    let spell = |ms: f64| match ms.is_nan() {
        true => "never".to_owned(),
        false => values::spell_duration(Duration::from_secs_f64(ms / 1e3)),
    };
    output.line(&format!(
        "{} keys deleted; {} records left; tombstones gone after {}, space given back after {}",
        spell_count(document.keys),
        spell_count(document.records_left),
        spell(document.purged_after_ms),
        spell(document.given_back_after_ms),
    ))
}
