//! `quorate demo`: three datacenters on this machine, what they do, and what they survive.
//!
//! Everything that is shown is checked too: the demo fails if something did not hold. It is the
//! client's and the node's public interface and nothing else.

mod cluster;
mod data;
mod levels;
mod outage;
mod story;

use std::{net::SocketAddr, time::Duration};

use clap::Args;
use client::{Client, Keyspace, ScanRange, WriteItem};
use futures_util::{StreamExt, stream};
use model::ConsistencyLevel;
use proto::v1;
use tokio::time::Instant;

use self::{
    cluster::DemoCluster,
    data::DataSet,
    story::{Story, Summary},
};
use crate::{
    args::Global,
    bench::process::resident_bytes,
    connect::fail,
    failure::{Attempt, Exit, Failure},
    output::Output,
    progress,
    signals::StopSignals,
    values::{spell_bytes, spell_count, spell_duration},
};

/// The keyspace that the demo makes.
pub(crate) const KEYSPACE: &str = "demo";

/// Show what the database does: three datacenters of three nodes in one process
///
/// Starts nine nodes on RocksDB in a temporary folder, loads real data, writes and reads at every
/// consistency level, stops a datacenter, shows what goes on and what is refused, and brings it
/// back. Exit code 0 means that everything it showed held.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate demo
  quorate demo --serve       and then, in another terminal: quorate admin status")]
pub(crate) struct DemoArgs {
    /// Leave the cluster running at the end, until Ctrl-C
    #[arg(long)]
    serve: bool,

    /// Datacenters
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=5))]
    dcs: u16,

    /// Nodes of each datacenter
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,

    /// The first of the ports, two for each node [default: any free ones; 7400 with --serve if they
    /// are free]
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// Runs the demo from beginning to end.
pub(crate) async fn run(args: DemoArgs, _global: Global, output: Output) -> Result<Exit, Failure> {
    let mut signals = StopSignals::new()?;
    let shown = tokio::select! {
        shown = show(&args, output) => shown?,
        signal = signals.next() => {
            return Err(Failure::new("INTERRUPTED", format!("{signal}: the demo was cut short")));
        }
    };
    let (cluster, held) = shown;
    if args.serve {
        invite(&cluster, output)?;
        signals.next().await;
    }
    cluster.stop().await;
    Ok(if held { Exit::Ok } else { Exit::Failed })
}

/// The whole show; the cluster it leaves behind, and whether everything held.
async fn show(args: &DemoArgs, output: Output) -> Result<(DemoCluster, bool), Failure> {
    let mut story = Story::new(output);
    let mut cluster = start(args, &mut story).await?;
    let clients = connect(&cluster).await?;
    create_keyspace(&cluster, &clients, args, &mut story).await?;
    let data = DataSet::find();
    load(&data, &clients, &mut story).await?;
    let load_bytes = resident_bytes(std::process::id()).unwrap_or_default();
    story.fact(&format!(
        "the process holds {} of memory, all {} nodes and the client",
        spell_bytes(load_bytes),
        cluster.nodes().count()
    ))?;
    read_back(&data, &cluster, &clients, &mut story).await?;
    levels::show(&clients[0], &mut story).await?;
    outage::show(&mut cluster, &clients, &data, &mut story).await?;
    let addresses = cluster.nodes().map(|it| it.client_address()).collect();
    let summary = Summary { memory_bytes: load_bytes, addresses, data: data.origin().to_owned() };
    let held = story.finish(&summary)?;
    Ok((cluster, held))
}

async fn start(args: &DemoArgs, story: &mut Story) -> Result<DemoCluster, Failure> {
    let (dcs, nodes) = (usize::from(args.dcs), usize::from(args.nodes));
    story.chapter(&format!(
        "Start {} nodes: {dcs} datacenters of {nodes}, each on its own RocksDB",
        dcs * nodes
    ))?;
    let begun = Instant::now();
    let cluster = DemoCluster::start(dcs, nodes, first_port(args))?;
    story.fact(&format!("in {}, removed at the end", cluster.folder().display()))?;
    for (name, addresses) in cluster.addresses() {
        story.fact(&format!("{name}  {}", spell_addresses(&addresses)))?;
    }
    let bar = progress::spinner(story.output(), "the nodes find each other");
    cluster.await_members().await?;
    bar.finish_and_clear();
    story.fact(&format!("all know each other after {}", spell_duration(begun.elapsed())))?;

    story.chapter("Plan the layout: who holds which part of the ring; then commit it")?;
    let plan = cluster.plan_layout().await?;
    let held: Vec<_> = plan.nodes.iter().map(|it| u64::from(it.partitions)).collect();
    let (least, most) = (held.iter().min().unwrap_or(&0), held.iter().max().unwrap_or(&0));
    story.fact(&format!(
        "{} partitions in every datacenter; a node holds {least} to {most} of them",
        plan.partitions
    ))?;
    for violation in &plan.violations {
        story.fact(&format!("not as it should be: {violation}"))?;
    }
    cluster.commit_layout(&plan).await?;
    story.fact(&format!("plan {:016x} committed: the cluster serves", plan.plan_hash))?;
    Ok(cluster)
}

fn first_port(args: &DemoArgs) -> Option<u16> {
    const FAVOURITE: u16 = 7400;
    let ports = FAVOURITE..FAVOURITE + 2 * args.dcs * args.nodes;
    let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    args.port.or_else(|| (args.serve && ports.clone().all(free)).then_some(FAVOURITE))
}

/// One client for each datacenter, in order.
async fn connect(cluster: &DemoCluster) -> Result<Vec<Client>, Failure> {
    let mut clients = Vec::new();
    for (name, addresses) in cluster.addresses() {
        clients.push(cluster::client(&name, &addresses).await?);
    }
    Ok(clients)
}

async fn create_keyspace(
    cluster: &DemoCluster,
    clients: &[Client],
    args: &DemoArgs,
    story: &mut Story,
) -> Result<(), Failure> {
    let replicas = args.nodes.min(3);
    story.chapter(&format!("Create a keyspace with {replicas} replicas in each datacenter"))?;
    let keyspace = v1::Keyspace {
        name: KEYSPACE.to_owned(),
        replicas: cluster
            .addresses()
            .into_iter()
            .map(|it| v1::DatacenterReplicas { datacenter: it.0, replicas: replicas.into() })
            .collect(),
        read_consistency: Some(ConsistencyLevel::LocalQuorum.into()),
        write_consistency: Some(ConsistencyLevel::LocalQuorum.into()),
        allow_any: true,
        ..v1::Keyspace::default()
    };
    let request =
        v1::CreateKeyspaceRequest { keyspace: Some(keyspace), accept_weak_defaults: false };
    let created = clients[0].admin().create_keyspace(request).await;
    created.map_err(|error| fail(&error, &Attempt { writes: true, ..Attempt::default() }))?;
    cluster.await_keyspace(KEYSPACE).await?;
    for client in clients {
        client.refresh_topology().await;
    }
    let all = usize::from(replicas) * usize::from(args.dcs);
    story.fact(&format!(
        "{KEYSPACE}: {all} replicas of every row; by default reads and writes at LOCAL_QUORUM"
    ))
}

/// Rows of one batch, and batches in flight, while loading.
const BATCH_ROWS: usize = 100;
const BATCHES_IN_FLIGHT: usize = 8;

async fn load(data: &DataSet, clients: &[Client], story: &mut Story) -> Result<(), Failure> {
    let total = spell_count(data.len());
    story
        .chapter(&format!("Load {total} records at EACH_QUORUM: a majority in every datacenter"))?;
    story.fact(data.origin())?;
    let keyspace = keyspace(&clients[0]);
    let begun = Instant::now();
    let bar = progress::steps_bar(story.output(), data.len());
    let batches = data.rows().chunks(BATCH_ROWS).map(|rows| {
        let item = |it: &data::DataRow| WriteItem::put(it.key.clone(), it.value.clone());
        let items: Vec<_> = rows.iter().map(item).collect();
        let keyspace = &keyspace;
        async move { keyspace.batch_write(items).consistency(ConsistencyLevel::EachQuorum).await }
    });
    let mut in_flight = stream::iter(batches).buffer_unordered(BATCHES_IN_FLIGHT);
    let (mut written, mut failure) = (0u64, None);
    while let Some(results) = in_flight.next().await {
        for result in results {
            match result {
                Ok(_) => written += 1,
                Err(error) => failure = Some(error),
            }
        }
        bar.set_position(written);
        bar.set_message(spell_count(written));
    }
    bar.finish_and_clear();
    let seconds = begun.elapsed().as_secs_f64();
    let all = written == data.len();
    let rate = spell_count(per_second(written, seconds));
    story.check(
        all,
        &format!("{} written in {seconds:.1} s: {rate} rows/s", spell_count(written)),
    )?;
    if let Some(error) = failure {
        story.fact(&error.to_string())?;
    }
    Ok(())
}

fn per_second(count: u64, seconds: f64) -> u64 {
    let rate = Duration::from_secs_f64(seconds).as_micros().max(1);
    u64::try_from(u128::from(count) * 1_000_000 / rate).unwrap_or(u64::MAX)
}

/// Reads everything back through the last datacenter, and shows a range of one partition key.
async fn read_back(
    data: &DataSet,
    cluster: &DemoCluster,
    clients: &[Client],
    story: &mut Story,
) -> Result<(), Failure> {
    let (name, client) = (cluster.datacenter_names().pop(), clients.last());
    let (Some(name), Some(client)) = (name, client) else { return Ok(()) };
    story.chapter(&format!("Read everything back from {name}, at LOCAL_QUORUM"))?;
    let begun = Instant::now();
    let bar = progress::steps_bar(story.output(), data.len());
    let keyspace = keyspace(client);
    let mut scan = keyspace.scan(ScanRange::all());
    let (mut equal, mut rows) = (0u64, 0u64);
    while let Some(page) = scan.next_page().await.map_err(|error| fail(&error, &attempt()))? {
        for row in page.rows {
            rows += 1;
            equal += u64::from(data.value(&row.key) == Some(&row.value));
        }
        bar.set_position(rows);
        bar.set_message(spell_count(rows));
    }
    bar.finish_and_clear();
    let all = rows == data.len() && equal == rows;
    let (rows, took) = (spell_count(rows), spell_duration(begun.elapsed()));
    story.check(all, &format!("{rows} rows in token order in {took}, all as they were loaded"))?;

    let example = data.example();
    let range = ScanRange::partition(example.partition_key.clone()).prefix(example.prefix.clone());
    let mut pages = keyspace.scan(range);
    let mut shown = 0u64;
    while let Some(page) = pages.next_page().await.map_err(|error| fail(&error, &attempt()))? {
        for row in page.rows.iter().take(3) {
            story.row(&row.key, &row.value)?;
        }
        shown += u64::try_from(page.rows.len()).expect("a page is small");
    }
    story.check(
        shown == example.rows,
        &format!(
            "scan of {} with prefix {}: {shown} rows in order",
            example.partition, example.shown_prefix
        ),
    )
}

/// The demo's keyspace, as a client sees it.
fn keyspace(client: &Client) -> Keyspace {
    client.keyspace(KEYSPACE)
}

/// A read of the demo, for its failure.
fn attempt() -> Attempt {
    Attempt { keyspace: Some(KEYSPACE.to_owned()), ..Attempt::default() }
}

fn spell_addresses(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join("  ")
}

/// What to try on the cluster that is left running.
fn invite(cluster: &DemoCluster, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return Ok(());
    }
    let Some(first) = cluster.nodes().next() else { return Ok(()) };
    let node = match first.client_address().port() {
        7400 => String::new(),
        _ => format!(" --node {}", first.client_address()),
    };
    output.line("\nThe cluster goes on until Ctrl-C. In another terminal:")?;
    for (name, addresses) in cluster.addresses() {
        output.line(&format!("  {name}  {}", spell_addresses(&addresses)))?;
    }
    for command in [
        "admin status".to_owned(),
        format!("put {KEYSPACE} greeting hello --consistency EACH_QUORUM"),
        format!("get {KEYSPACE} greeting"),
        format!("admin explain {KEYSPACE} greeting"),
        format!("scan {KEYSPACE} 'U+22xx' --prefix U+220"),
    ] {
        output.line(&format!("  quorate {command}{node}"))?;
    }
    Ok(())
}
