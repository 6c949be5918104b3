//! `quorate bench floor`: what this machine can do with nothing of ours between: unary gRPC with the
//! same messages, and appends made durable in groups.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;
use tempfile::TempDir;

use super::{
    children::Server,
    disk::{self, DiskFloor},
    latency::spell_us,
    load,
    report::{LoadDocument, spell_rate},
    run::{DURATION, KEYS, LoadArgs},
    target::Target,
};
use crate::{
    failure::{Exit, Failure},
    output::Output,
    progress,
    table::Table,
};

/// Measure what the machine itself can do: the floor under every other number
///
/// A second process answers the same request messages with the same reply messages at once, on one
/// I/O loop, with the same clients and connections as a cluster would have. Then records are
/// appended to a file and made durable in groups, as a node's commit thread does.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Example:
  quorate bench floor --clients 64 --connections 3 --duration 5s")]
pub(crate) struct FloorArgs {
    #[command(flatten)]
    load: LoadArgs,

    /// Connections to the echo server: as many as the cluster has nodes
    #[arg(long, value_name = "N", default_value = "3")]
    connections: NonZeroUsize,

    /// The folder on the disk to measure [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// Records that a commit thread makes durable together, with few, some and many clients.
const GROUPS: [usize; 3] = [1, 16, 64];
/// What a stored record has besides key and value, roughly.
const RECORD_OVERHEAD_BYTES: usize = 60;
const DISK_DURATION: Duration = Duration::from_secs(1);

#[derive(Serialize)]
struct FloorDocument {
    grpc: Vec<LoadDocument>,
    disk: Vec<DiskFloor>,
}

/// Measures and shows both floors.
pub(super) async fn run(args: FloorArgs, output: Output) -> Result<Exit, Failure> {
    let put = args.load.load(KEYS, DURATION)?;
    let mut get = put.clone();
    get.read_share = 1.0;
    let server = Server::echo(args.load.value_size).await?;
    let target = Target::echo(&server.client_address.to_string(), args.connections.get());
    let mut grpc = Vec::new();
    for (name, load) in [("echo of put", &put), ("echo of get", &get)] {
        let bar = progress::spinner(output, name);
        let measured = load::run(load, &target, &[server.pid]).await;
        bar.finish_and_clear();
        grpc.push(LoadDocument::new(name, load, &measured?));
    }
    server.kill().await?;
    let disk = disk_floors(&args, output)?;
    show(&FloorDocument { grpc, disk }, output)?;
    Ok(Exit::Ok)
}

fn disk_floors(args: &FloorArgs, output: Output) -> Result<Vec<DiskFloor>, Failure> {
    let made = match &args.folder {
        Some(folder) => TempDir::with_prefix_in("quorate-floor-", folder),
        None => TempDir::with_prefix("quorate-floor-"),
    };
    let folder = made.map_err(|error| Failure::file("cannot make a temporary folder", &error))?;
    let record_bytes = args.load.key_size + args.load.value_size + RECORD_OVERHEAD_BYTES;
    let bar = progress::spinner(output, "appending and syncing");
    let measure = |group| disk::measure(folder.path(), group, record_bytes, DISK_DURATION);
    let floors = GROUPS.into_iter().map(measure).collect();
    bar.finish_and_clear();
    floors
}

fn show(document: &FloorDocument, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(document);
    }
    for it in &document.grpc {
        output.line(&format!("{}, {} clients", it.name, it.clients))?;
        it.show(output)?;
        output.line("")?;
    }
    let mut table =
        Table::new(&["append and fdatasync", ">records/s", ">syncs/s", ">p50", ">p99", ">max"]);
    for it in &document.disk {
        table.row([
            format!("{} records of {} bytes", it.group, it.record_bytes).into(),
            spell_rate(it.records_per_second).into(),
            spell_rate(it.syncs_per_second).into(),
            spell_us(it.latency.p50_us).into(),
            spell_us(it.latency.p99_us).into(),
            spell_us(it.latency.max_us).into(),
        ]);
    }
    output.report(&table)
}
