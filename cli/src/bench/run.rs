//! `quorate bench run`: loads a cluster and measures it.

use std::{num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use clap::Args;
use model::{ConsistencyLevel, Key};
use proto::{Reason, v1};

use super::{
    keys::{Chooser, KeySpace, Popularity},
    load::{self, Load},
    report::LoadDocument,
    target::{Target, first_error},
};
use crate::{
    args::Global,
    connect::{connect_with, fail},
    failure::{Attempt, Exit, Failure},
    output::Output,
    progress,
    values::{self, spell_count},
};

/// Load a cluster with reads and writes, and measure rates, latencies and errors
///
/// Without --rate each client calls again as soon as it has its answer (closed loop). With --rate
/// calls begin at that rate whatever the answers do (open loop), and latency counts from when a
/// call should have begun; the generator's own timer is accurate to a millisecond.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate bench run --fill --read-share 0.5
  quorate bench run --rate 5000 --duration 30s --consistency LOCAL_QUORUM
  quorate bench run --popularity zipfian --keys 1000000 --batch 100 --clients 8 --json

Exit code 1 means that some calls failed.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    load: LoadArgs,

    /// The keyspace; made with 3 replicas in each datacenter if there is none
    #[arg(long, default_value = "bench")]
    keyspace: String,

    /// The level of all calls [default: the keyspace's]
    #[arg(long, short, value_name = "LEVEL")]
    consistency: Option<ConsistencyLevel>,

    /// Write every key once before measuring
    #[arg(long)]
    fill: bool,

    /// Calls per second, in an open loop [default: as many as the answers allow]
    #[arg(long, value_name = "CALLS", value_parser = positive)]
    rate: Option<f64>,

    /// The share of reads, from 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    read_share: f64,

    /// Keys of one call
    #[arg(long, value_name = "KEYS", default_value = "1")]
    batch: NonZeroUsize,

    /// How popular keys are
    #[arg(long, value_enum, default_value = "uniform")]
    popularity: Popularity,

    /// The exponent of Zipf's law
    #[arg(long, value_name = "S", default_value_t = 0.99, value_parser = exponent)]
    exponent: f64,

    /// Connections to each node
    #[arg(long, value_name = "N", default_value = "1")]
    connections: NonZeroUsize,

    /// Processes whose processor time counts as the servers'
    #[arg(long, value_name = "PID[,PID]", value_delimiter = ',')]
    server_pids: Vec<u32>,
}

/// Keys and duration of a load that names none.
pub(super) const KEYS: u64 = 100_000;
pub(super) const DURATION: Duration = Duration::from_secs(10);

/// Options of every load.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// Calls in flight at once, at most
    #[arg(long, value_name = "N", default_value = "64")]
    pub(crate) clients: NonZeroUsize,

    /// How long to measure [default: 10s; 3s for each load of `bars`]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub(crate) duration: Option<Duration>,

    /// How long to run before anything counts
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = values::duration)]
    pub(crate) warm_up: Duration,

    /// How many different keys [default: 100000; 200000 for `bars`]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: Option<u64>,

    /// Bytes of a key
    #[arg(long, value_name = "SIZE", default_value = "16", value_parser = values::size)]
    pub(crate) key_size: usize,

    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = values::size)]
    pub(crate) value_size: usize,

    /// Decides every choice of key and value
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,
}

impl LoadArgs {
    /// A load of uniformly popular keys, one key a call. `keys` and `duration` are for options that
    /// were not given.
    pub(crate) fn load(&self, keys: u64, duration: Duration) -> Result<Load, Failure> {
        let space = KeySpace {
            keys: self.keys.unwrap_or(keys),
            key_bytes: self.key_size,
            value_bytes: self.value_size,
            popularity: Popularity::Uniform,
            exponent: 0.99,
            seed: self.seed,
        };
        if self.key_size < space.key_bytes_min() {
            let (least, keys) = (space.key_bytes_min(), space.keys);
            let problem =
                format!("--key-size {} is too small: {keys} keys need {least}", self.key_size);
            return Err(Failure::usage(problem));
        }
        Ok(Load {
            clients: self.clients.get(),
            rate: None,
            warm_up: self.warm_up,
            duration: self.duration.unwrap_or(duration),
            read_share: 0.0,
            batch: 1,
            space,
        })
    }
}

/// Runs the load and shows what it measured.
pub(super) async fn run(args: RunArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let mut load = args.load.load(KEYS, DURATION)?;
    load.rate = args.rate;
    load.read_share = args.read_share;
    load.batch = args.batch.get();
    load.space.popularity = args.popularity;
    load.space.exponent = args.exponent;
    let client = connect_with(&global, args.connections.get()).await?;
    make_keyspace(&client, &args.keyspace).await?;
    let keyspace = client.keyspace(args.keyspace.as_str());
    let target = Target::Cluster { keyspace, level: args.consistency };
    if args.fill {
        fill(&load, &target, output).await?;
    }
    let seconds = (load.warm_up + load.duration).as_secs();
    let bar = progress::spinner(output, format!("measuring for {seconds} s"));
    let measured = load::run(&load, &target, &args.server_pids).await;
    bar.finish_and_clear();
    let document = LoadDocument::new("run", &load, &measured?);
    document.show(output)?;
    let clean = document.errors == 0 && document.not_begun == 0;
    Ok(if clean { Exit::Ok } else { Exit::Failed })
}

/// Writes every key once, with a progress bar.
pub(super) async fn fill(load: &Load, target: &Target, output: Output) -> Result<(), Failure> {
    let bar = progress::steps_bar(output, load.space.keys);
    let failed = load::fill(&load.space, target, |written| {
        bar.set_position(written);
        bar.set_message(format!("{} keys written", spell_count(written)));
    })
    .await?;
    bar.finish_and_clear();
    if !failed.is_empty() {
        let all = spell_count(load.space.keys);
        let count = spell_count(failed.values().sum());
        let message = format!("{count} of {all} keys could not be written");
        let failure = Failure::new("FILL_FAILED", message).advise("quorate admin status");
        let errors = failed.iter().map(|(error, count)| format!("{error}: {count}"));
        return Err(failure.fact("errors", errors.collect::<Vec<_>>().join(", ")));
    }
    Ok(())
}

/// Writes so many keys of the space again, evenly spread, with values of their own for each `seed`.
pub(super) async fn write_some(
    space: &KeySpace,
    target: &Target,
    keys: u64,
    seed: u64,
) -> Result<(), Failure> {
    const BATCH_KEYS: usize = 100;
    let mut chooser = Chooser::new(space, space.pool(), seed);
    let step = usize::try_from(space.keys / keys.max(1)).unwrap_or(1).max(1);
    let limit = usize::try_from(keys).unwrap_or(usize::MAX);
    let indexes: Vec<u64> = (0..space.keys).step_by(step).take(limit).collect();
    let batches: Vec<Vec<(Key, Bytes)>> = indexes
        .chunks(BATCH_KEYS)
        .map(|it| it.iter().map(|at| (space.key(*at), chooser.value())).collect())
        .collect();
    let calls = batches.into_iter().map(|it| target.put_batch(it));
    match first_error(calls).await {
        Some(error) => {
            let message = format!("a key could not be written: {error}");
            Err(Failure::new("FILL_FAILED", message))
        }
        None => Ok(()),
    }
}

/// Makes the keyspace if there is none.
pub(super) async fn make_keyspace(client: &client::Client, name: &str) -> Result<(), Failure> {
    if client.topology().has_keyspace(name) {
        return Ok(());
    }
    let keyspace = v1::Keyspace { name: name.to_owned(), ..v1::Keyspace::default() };
    let request =
        v1::CreateKeyspaceRequest { keyspace: Some(keyspace), accept_weak_defaults: false };
    match client.admin().create_keyspace(request).await {
        Err(error) if error.reason() != Reason::KeyspaceExists => {
            return Err(fail(&error, &Attempt { writes: true, ..Attempt::default() }));
        }
        _ => {}
    }
    client.refresh_topology().await;
    Ok(())
}

fn positive(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|it: &f64| it.is_finite() && *it > 0.0);
    rate.ok_or_else(|| format!("{text:?} is no positive number"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|it| (0.0..=1.0).contains(it));
    share.ok_or_else(|| format!("{text:?} is no number from 0 to 1"))
}

fn exponent(text: &str) -> Result<f64, String> {
    let exponent = positive(text)?;
    if exponent == 1.0 {
        return Err("an exponent of exactly 1 is not supported: 0.99 and 1.01 are".to_owned());
    }
    Ok(exponent)
}
