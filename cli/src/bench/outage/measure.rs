//! What is done to the two datacenters.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use model::ConsistencyLevel;
use serde::Serialize;

use super::DATACENTERS;
use crate::{
    args::Global,
    bench::{
        cluster::{BenchCluster, KEYSPACE, NODES},
        converged::wait_converged,
        load::{self, Load},
        returned::Returned,
        run::{fill, write_some},
        target::Target,
    },
    failure::Failure,
    output::Output,
    progress,
    values::spell_count,
};

/// What is measured, and how it is told.
pub(super) struct Settings {
    pub(super) load: Load,
    /// Keys that are written while the datacenter is away.
    pub(super) keys_behind: u64,
    pub(super) folder: Option<PathBuf>,
    pub(super) global: Global,
    pub(super) output: Output,
}

/// How a datacenter comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Way {
    /// The others have kept hints for it.
    Hints,
    /// They have kept none: exchange alone brings what it lacks.
    Exchange,
    /// Its data directories are gone, and hints were kept.
    DataLost,
}

impl Way {
    /// One after the other.
    pub(super) const ALL: [Self; 3] = [Self::Hints, Self::Exchange, Self::DataLost];

    /// What happens, as a clause.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hints => "a datacenter comes back, with hints",
            Self::Exchange => "a datacenter comes back, by exchange alone",
            Self::DataLost => "a datacenter comes back, its data lost",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Exchange => &["--no-hints-for=dc2", "--request-timeout=60s"],
            Self::Hints | Self::DataLost => &["--request-timeout=60s"],
        }
    }
}

/// Many keys come at once: on a busy machine some wait, which is not what is measured.
const FILL_TIMEOUT: Duration = Duration::from_mins(1);

/// Has a datacenter of a new cluster come back in this way.
pub(super) async fn measure(way: Way, settings: &Settings) -> Result<Returned, Failure> {
    let Settings { load, keys_behind, output, .. } = settings;
    let mut global = settings.global.clone();
    global.timeout = global.timeout.max(FILL_TIMEOUT);
    let bar = progress::spinner(*output, "starting two datacenters");
    let folder = settings.folder.as_deref();
    let mut cluster = BenchCluster::start(folder, DATACENTERS, way.options()).await?;
    cluster.make(&global).await?;
    bar.finish_and_clear();
    fill(load, &through_client(&cluster, &global).await?, *output).await?;
    let bar = progress::spinner(*output, "waiting until all replicas are the same");
    wait_converged(&cluster, &global).await?;

    bar.set_message("measuring a load at one datacenter of two");
    let staying = &cluster.nodes()[..NODES];
    let addresses = staying.iter().map(|it| it.client_address.to_string());
    let target = Target::nodes(addresses, ConsistencyLevel::LocalQuorum);
    let pids: Vec<u32> = staying.iter().map(|it| it.pid).collect();
    let before = load::run(load, &target, &pids).await?;

    bar.set_message(format!("{} keys while the other one is down", spell_count(*keys_behind)));
    cluster.stop_last(NODES, &global).await?;
    if way == Way::DataLost {
        cluster.lose_stopped(&global).await?;
    }
    let through_client = through_client(&cluster, &global).await?;
    write_some(&load.space, &through_client, *keys_behind, u64::MAX - 1).await?;

    bar.set_message(format!("{}, under load", way.name()));
    let catch_up = async {
        let begun = Instant::now();
        cluster.start_stopped().await?;
        cluster.await_up(&global).await?;
        wait_converged(&cluster, &global).await?;
        Ok::<_, Failure>(begun.elapsed().as_secs_f64() * 1e3)
    };
    let (meanwhile, took_ms) = load::run_until(load, &target, &pids, catch_up).await?;
    bar.finish_and_clear();
    let returned = Returned::new(*keys_behind, took_ms?, &before, &meanwhile);
    cluster.stop().await?;
    Ok(returned)
}

async fn through_client(cluster: &BenchCluster, global: &Global) -> Result<Target, Failure> {
    let keyspace = cluster.client(global).await?.keyspace(KEYSPACE);
    Ok(Target::Cluster { keyspace, level: Some(ConsistencyLevel::LocalQuorum) })
}
