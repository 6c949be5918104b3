//! `quorate bench bars`: a cluster of three processes against the floor of the same machine, in
//! interleaved rounds, held against the bars that the design sets itself.
//!
//! Ratios, not absolute numbers: both sides of a ratio are measured seconds apart on the same
//! machine, and the median over rounds is what counts.

mod verdict;

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Args;
use model::ConsistencyLevel;
use serde::Serialize;

use self::verdict::{BAR_TABLE, BarDocument, Figures};
use super::{
    children::Server,
    cluster::{self, BenchCluster, Restart},
    converged::wait_converged,
    load::{self, Load},
    report::LoadDocument,
    run::{LoadArgs, fill},
    target::Target,
};
use crate::{
    args::Global,
    failure::{Exit, Failure},
    output::{Output, Paint},
    progress,
    table::{Cell, Table},
    values::{spell_bytes, spell_duration},
};

/// Measure a cluster of three local processes against the machine's floor, and against our bars
///
/// Starts three nodes and an echo server on free ports, fills the cluster, kills and restarts a
/// node, then measures in interleaved rounds: echo of put, put, echo of get, get, batches. Shows
/// the medians of the ratios beside the bars.
#[derive(Clone, Debug, Args)]
#[command(
    visible_alias = "compare",
    after_help = "\
Examples:
  quorate bench bars
  quorate bench bars --rounds 3 --duration 2s --json

Exit code 1 means that a first bar was missed, or that calls failed."
)]
pub(crate) struct BarsArgs {
    #[command(flatten)]
    load: LoadArgs,

    /// Interleaved rounds; medians are over them
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: NonZeroUsize,

    /// Keys of one call of the batch load
    #[arg(long, value_name = "KEYS", default_value = "100")]
    batch: NonZeroUsize,

    /// Clients of the batch load
    #[arg(long, value_name = "N", default_value = "8")]
    batch_clients: NonZeroUsize,

    /// How often a node is killed and started again
    #[arg(long, value_name = "N", default_value = "3")]
    restarts: NonZeroUsize,

    /// The folder for the nodes' data [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// As many keys as the restart bar speaks of, and how long each load of a round takes.
const KEYS: u64 = 200_000;
const DURATION: Duration = Duration::from_secs(3);

/// One round's loads.
#[derive(Clone, Debug, Serialize)]
struct Round {
    floor_put: LoadDocument,
    put: LoadDocument,
    floor_get: LoadDocument,
    get: LoadDocument,
    batch: LoadDocument,
}

/// Memory of the largest node process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Memory {
    empty_bytes: u64,
    loaded_bytes: u64,
    restarted_bytes: u64,
    after_rounds_bytes: u64,
}

#[derive(Serialize)]
struct BarsDocument<'a> {
    held: bool,
    bars: &'a [BarDocument],
    memory: Memory,
    restarts: &'a [Restart],
    rounds: &'a [Round],
}

/// Measures and judges.
pub(super) async fn run(args: BarsArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let load = args.load.load(KEYS, DURATION)?;
    let (cluster, memory, restarts) = prepare(&args, &load, &global, output).await?;
    let echo = Server::echo(args.load.value_size).await?;
    let echo_target = Target::echo(&echo.client_address.to_string(), cluster.nodes().len());
    let target = target(&cluster, &global).await?;
    let mut rounds = Vec::new();
    for number in 1..=args.rounds.get() {
        let bench = Bench { args: &args, load: &load, number, output };
        rounds.push(bench.round(&target, &echo_target, &cluster.pids(), echo.pid).await?);
    }
    let memory = Memory { after_rounds_bytes: cluster.resident_bytes_max(), ..memory };
    cluster.stop().await?;
    let bars: Vec<_> =
        verdict::judge(&Figures { rounds: &rounds, memory: &memory, restarts: &restarts });
    let failed: u64 = rounds.iter().map(Round::errors).sum();
    let held = failed == 0 && bars.iter().all(|it| it.held);
    if output.is_json() {
        let (bars, restarts, rounds) = (&bars, &restarts, &rounds);
        output.document(&BarsDocument { held, bars, memory, restarts, rounds })?;
    } else {
        show(&bars, &rounds, &memory, &restarts, output)?;
    }
    if failed > 0 {
        output.note(&output.paint(Paint::Bad, &format!("{failed} keys failed in these rounds")));
    }
    Ok(if held { Exit::Ok } else { Exit::Failed })
}

/// Starts the cluster, looks at its memory, fills it, and kills and restarts a node.
async fn prepare(
    args: &BarsArgs,
    load: &Load,
    global: &Global,
    output: Output,
) -> Result<(BenchCluster, Memory, Vec<Restart>), Failure> {
    /// Until freshly started processes are at rest.
    const REST: Duration = Duration::from_secs(2);
    let bar = progress::spinner(output, "starting three nodes");
    let mut cluster = BenchCluster::start(args.folder.as_deref(), 1, &[]).await?;
    cluster.make(global).await?;
    tokio::time::sleep(REST).await;
    let mut memory = Memory { empty_bytes: cluster.resident_bytes_max(), ..Memory::default() };
    bar.finish_and_clear();
    let mut restarts = Vec::new();
    for _ in 0..args.restarts.get() {
        let target = target(&cluster, global).await?;
        fill(load, &target, output).await?;
        memory.loaded_bytes = memory.loaded_bytes.max(cluster.resident_bytes_max());
        let bar = progress::spinner(output, "waiting for the replicas to be the same");
        // A node that lags when it is killed is handed what it missed as soon as it is back: it would
        // not be at rest.
        wait_converged(&cluster, global).await?;
        bar.set_message("killing a node and starting it again");
        restarts.push(cluster.restart_last(&load.space.key(0)).await?);
        cluster.await_up(global).await?;
        tokio::time::sleep(REST).await;
        let restarted = cluster.resident_bytes_of_last();
        memory.restarted_bytes = memory.restarted_bytes.max(restarted);
        bar.finish_and_clear();
    }
    Ok((cluster, memory, restarts))
}

async fn target(cluster: &BenchCluster, global: &Global) -> Result<Target, Failure> {
    let keyspace = cluster.client(global).await?.keyspace(cluster::KEYSPACE);
    Ok(Target::Cluster { keyspace, level: Some(ConsistencyLevel::Quorum) })
}

/// One round under way.
struct Bench<'a> {
    args: &'a BarsArgs,
    load: &'a Load,
    number: usize,
    output: Output,
}

impl Bench<'_> {
    async fn round(
        &self,
        target: &Target,
        echo: &Target,
        nodes: &[u32],
        echo_pid: u32,
    ) -> Result<Round, Failure> {
        let puts = self.load.clone();
        let gets = Load { read_share: 1.0, ..self.load.clone() };
        let batches = Load {
            batch: self.args.batch.get(),
            clients: self.args.batch_clients.get(),
            ..self.load.clone()
        };
        Ok(Round {
            floor_put: self.measure("echo of put", &puts, echo, &[echo_pid]).await?,
            put: self.measure("put", &puts, target, nodes).await?,
            floor_get: self.measure("echo of get", &gets, echo, &[echo_pid]).await?,
            get: self.measure("get", &gets, target, nodes).await?,
            batch: self.measure("batches", &batches, target, nodes).await?,
        })
    }

    async fn measure(
        &self,
        name: &str,
        load: &Load,
        target: &Target,
        servers: &[u32],
    ) -> Result<LoadDocument, Failure> {
        let of = self.args.rounds;
        let bar = progress::spinner(self.output, format!("round {} of {of}: {name}", self.number));
        let measured = load::run(load, target, servers).await;
        bar.finish_and_clear();
        Ok(LoadDocument::new(name, load, &measured?))
    }
}

impl Round {
    fn loads(&self) -> [&LoadDocument; 5] {
        [&self.floor_put, &self.put, &self.floor_get, &self.get, &self.batch]
    }

    fn errors(&self) -> u64 {
        self.loads().iter().map(|it| it.errors).sum()
    }
}

fn show(
    bars: &[BarDocument],
    rounds: &[Round],
    memory: &Memory,
    restarts: &[Restart],
    output: Output,
) -> Result<(), Failure> {
    output.report(&rounds_table(rounds))?;
    output.line("")?;
    let ms = |ms: f64| spell_duration(Duration::from_secs_f64(ms / 1e3));
    output.line(&format!(
        "memory of the largest node: {} empty, {} after loading, {} restarted with the data, {} after the rounds",
        spell_bytes(memory.empty_bytes),
        spell_bytes(memory.loaded_bytes),
        spell_bytes(memory.restarted_bytes),
        spell_bytes(memory.after_rounds_bytes),
    ))?;
    let restarts: Vec<_> = restarts
        .iter()
        .map(|it| format!("{} listening, {} serving", ms(it.listening_ms), ms(it.serving_ms)))
        .collect();
    output.line(&format!("restarts after SIGKILL: {}", restarts.join("; ")))?;
    output.line("")?;
    let mut table = Table::new(&BAR_TABLE);
    for it in bars {
        let (paint, verdict) = match it.held {
            true => (Paint::Good, "pass"),
            false => (Paint::Bad, "MISSED"),
        };
        let mut cells: Vec<Cell> = it.cells().into_iter().map(Cell::from).collect();
        cells.push(Cell::painted(paint, verdict));
        table.row(cells);
    }
    output.report(&table)
}

fn rounds_table(rounds: &[Round]) -> Table {
    use super::{latency::spell_us, report::spell_rate};
    let mut table = Table::new(&[
        "round",
        "load",
        ">calls/s",
        ">keys/s",
        ">p50",
        ">p99",
        ">CPU us/call",
        ">generator",
        ">servers",
        ">failed",
    ]);
    for (index, round) in rounds.iter().enumerate() {
        for it in round.loads() {
            let latency = |pick: fn(&super::latency::LatencySummary) -> f64| {
                it.latency().map(|it| spell_us(pick(it))).unwrap_or_default()
            };
            table.row([
                (index + 1).to_string().into(),
                it.name.as_str().into(),
                spell_rate(it.calls_per_second).into(),
                spell_rate(it.keys_per_second).into(),
                latency(|it| it.p50_us).into(),
                latency(|it| it.p99_us).into(),
                format!("{:.1}", it.processor_us_per_call.total).into(),
                format!("{:.1}", it.processor_us_per_call.load).into(),
                format!("{:.1}", it.processor_us_per_call.servers).into(),
                it.errors.to_string().into(),
            ]);
        }
    }
    table
}
