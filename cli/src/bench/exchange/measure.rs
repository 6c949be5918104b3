//! What is done to the cluster, and what is read from it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use client::Admin;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use model::ConsistencyLevel;
use proto::v1;
use serde::Serialize;

use crate::{
    args::Global,
    bench::{
        bar::number,
        cluster::{BenchCluster, KEYSPACE},
        load::{self, Load},
        returned::Returned,
        run::{fill, write_some},
        target::Target,
    },
    connect::fail,
    failure::{Attempt, Failure},
    output::Output,
    progress,
    values::spell_count,
};

/// What is measured, and how it is told.
pub(super) struct Settings {
    pub(super) load: Load,
    pub(super) folder: Option<PathBuf>,
    pub(super) global: Global,
    pub(super) output: Output,
}

/// A node that came back to keys that were written meanwhile.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Moved {
    /// Keys that were written.
    pub(super) keys: u64,
    /// Bytes of all messages of exchanges until all replicas were the same.
    pub(super) bytes: u64,
    /// Records that were moved, each time that it was.
    pub(super) records_moved: u64,
    /// Their bytes.
    pub(super) record_bytes: u64,
    /// From the start of the node until then.
    pub(super) took_ms: f64,
}

impl Moved {
    /// Bytes of one record, with its key; NaN if none was moved.
    pub(super) fn bytes_per_record(&self) -> f64 {
        number(self.record_bytes) / number(self.records_moved)
    }
}

/// The cluster under measurement.
pub(super) struct Bench {
    settings: Settings,
    cluster: BenchCluster,
    /// Makes every value different from the one before.
    writes: u64,
}

/// So long replicas may take to become the same.
const PATIENCE: Duration = Duration::from_mins(20);
const FILL_TIMEOUT: Duration = Duration::from_mins(1);
/// How long one call waits for comparisons to end.
const WAIT_MS: u32 = 1_000;

impl Bench {
    /// Starts the nodes and fills them.
    pub(super) async fn start(mut settings: Settings) -> Result<Self, Failure> {
        // A million keys come at once: on a busy machine some wait, which is not what is measured.
        settings.global.timeout = settings.global.timeout.max(FILL_TIMEOUT);
        let bar = progress::spinner(settings.output, "starting three nodes");
        let options = &["--no-hints-for=dc1", "--request-timeout=60s"];
        let cluster = BenchCluster::start(settings.folder.as_deref(), 1, options).await?;
        cluster.make(&settings.global).await?;
        bar.finish_and_clear();
        let bench = Self { settings, cluster, writes: 0 };
        fill(&bench.settings.load, &bench.all_nodes().await?, bench.settings.output).await?;
        let _bar = bench.tell("waiting until all replicas are the same");
        bench.converge().await?;
        Ok(bench)
    }

    /// How many keys there are.
    pub(super) fn keys(&self) -> u64 {
        self.settings.load.space.keys
    }

    /// Ends the nodes.
    pub(super) async fn stop(self) -> Result<(), Failure> {
        self.cluster.stop().await
    }

    /// Compares replicas that are the same: partitions that a pair of nodes shares, and the bytes of its
    /// round, of the pair that moved most.
    pub(super) async fn in_sync(&self) -> Result<(u64, u64), Failure> {
        let pairs = self.converge().await?;
        let most = pairs.iter().max_by_key(|it| it.bytes_sent + it.bytes_received);
        Ok(most.map(|it| (it.trees, it.bytes_sent + it.bytes_received)).unwrap_or_default())
    }

    /// Writes so many keys while the last node is down, and brings it back.
    pub(super) async fn away(&mut self, keys: u64) -> Result<Moved, Failure> {
        let bar = self.tell(format!("{} keys while a node is down", spell_count(keys)));
        self.write_without_last(keys).await?;
        let before = self.counted().await?;
        bar.set_message(format!("bringing a node back that lacks {} keys", spell_count(keys)));
        let begun = Instant::now();
        self.cluster.start_stopped().await?;
        self.cluster.await_up(&self.settings.global).await?;
        self.converge().await?;
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        // The node that was started has counted from nothing.
        let after = self.counted().await?;
        let [bytes, records_moved, record_bytes] = [0, 1, 2].map(|at| after[at] - before[at]);
        bar.finish_and_clear();
        Ok(Moved { keys, bytes, records_moved, record_bytes, took_ms })
    }

    /// The same under load at the nodes that stay.
    pub(super) async fn away_under_load(&mut self, keys: u64) -> Result<Returned, Failure> {
        let bar = self.tell("measuring a load on three nodes");
        let staying = self.cluster.nodes().iter().take(2);
        let target = Target::nodes(
            staying.clone().map(|it| it.client_address.to_string()),
            ConsistencyLevel::Quorum,
        );
        let pids: Vec<u32> = staying.map(|it| it.pid).collect();
        let load = self.settings.load.clone();
        let before = load::run(&load, &target, &pids).await?;
        self.converge().await?;
        bar.set_message(format!("{} keys while a node is down", spell_count(keys)));
        self.write_without_last(keys).await?;
        bar.set_message(format!("a node catches up with {} keys, under load", spell_count(keys)));
        let catch_up = async {
            let begun = Instant::now();
            self.cluster.start_stopped().await?;
            self.cluster.await_up(&self.settings.global).await?;
            self.converge().await?;
            Ok::<_, Failure>(begun.elapsed().as_secs_f64() * 1e3)
        };
        let (meanwhile, took_ms) = load::run_until(&load, &target, &pids, catch_up).await?;
        let took_ms = took_ms?;
        bar.set_message("waiting until all replicas are the same");
        self.converge().await?;
        bar.finish_and_clear();
        Ok(Returned::new(keys, took_ms, &before, &meanwhile))
    }

    /// Bytes of Merkle trees for a million keys, of the node that needs most.
    pub(super) async fn tree_memory(&self) -> Result<f64, Failure> {
        let figures = self.cluster.figures(&self.settings.global).await?;
        let of_node = |it: &BTreeMap<String, u64>| {
            let of = |name: &str| number(it.get(name).copied().unwrap_or_default());
            of("tree_memory_bytes") / of("tree_records") * 1e6
        };
        Ok(figures.iter().map(of_node).fold(0.0, f64::max))
    }

    async fn write_without_last(&mut self, keys: u64) -> Result<(), Failure> {
        self.cluster.stop_last(1, &self.settings.global).await?;
        self.writes += 1;
        let space = &self.settings.load.space;
        write_some(space, &self.all_nodes().await?, keys, u64::MAX - self.writes).await
    }

    /// Compares all replicas until every pair ends as the same; what the last comparison did.
    async fn converge(&self) -> Result<Vec<v1::PairRepair>, Failure> {
        let (begun, nodes) = (Instant::now(), self.cluster.nodes().len());
        let admins = self.cluster.admins(&self.settings.global).await?;
        loop {
            let repaired = join_all(admins.iter().map(repair)).await;
            let pairs: Option<Vec<_>> = repaired.into_iter().collect::<Result<_, _>>().ok();
            let pairs: Vec<v1::PairRepair> = pairs.unwrap_or_default().concat();
            let same = v1::RepairState::Same;
            // A node that has just started has not met all of the others.
            if 2 * pairs.len() == nodes * (nodes - 1) && pairs.iter().all(|it| it.state() == same) {
                return Ok(pairs);
            }
            if begun.elapsed() > PATIENCE {
                let message = "the replicas do not become the same";
                return Err(Failure::new("BENCH_STUCK", message));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Bytes of messages, records and their bytes, counted by the nodes that run.
    async fn counted(&self) -> Result<[u64; 3], Failure> {
        let figures = self.cluster.figures(&self.settings.global).await?;
        let sum = |names: &[&str]| {
            let of = |it: &BTreeMap<String, u64>| -> u64 {
                names.iter().filter_map(|name| it.get(*name)).sum()
            };
            figures.iter().map(of).sum()
        };
        Ok([
            sum(&["exchange_bytes_sent", "exchange_bytes_received"]),
            sum(&["exchange_records_sent", "exchange_records_taken"]),
            sum(&["exchange_record_bytes"]),
        ])
    }

    async fn all_nodes(&self) -> Result<Target, Failure> {
        let keyspace = self.cluster.client(&self.settings.global).await?.keyspace(KEYSPACE);
        Ok(Target::Cluster { keyspace, level: Some(ConsistencyLevel::Quorum) })
    }

    fn tell(&self, what: impl Into<String>) -> ProgressBar {
        progress::spinner(self.settings.output, what)
    }
}

/// Has one node compare its replicas, and waits until it has.
async fn repair(admin: &Admin) -> Result<Vec<v1::PairRepair>, Failure> {
    let mut request = v1::RepairRequest { wait_ms: Some(WAIT_MS), ..v1::RepairRequest::default() };
    loop {
        let answer = admin.repair(request.clone()).await;
        let answer = answer.map_err(|error| fail(&error, &Attempt::default()))?;
        if answer.done {
            return Ok(answer.pairs);
        }
        request.round = answer.round;
    }
}
