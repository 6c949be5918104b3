//! `quorate start`: runs one node until a signal or its disk ends it.

mod address;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use model::NodeId;
use node::{
    config::{ConfigError, NodeConfig},
    io::{RunningNode, StopReason},
    snapshot::{RestoreError, restore},
};
use proto::Reason;
use serde::Serialize;

use crate::{
    failure::{Exit, Failure, with_causes},
    local_node::SharedResources,
    memory,
    open_files::{self, Connections, OpenFiles},
    output::{Output, Paint},
    progress,
    signals::StopSignals,
    values,
};

/// Start one node of a cluster
///
/// The first node of a new cluster joins nobody; every other names the peer address of one or more
/// nodes that are there. Once all have found each other, `quorate admin layout plan` and `commit`
/// make them a cluster that serves.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate start --data /var/lib/quorate --listen 10.0.0.1:7400 --dc fra --rack a
  quorate start --data /var/lib/quorate --listen 10.0.0.2:7400 --dc fra --rack b --join 10.0.0.1:7401

SIGTERM or SIGINT stops the node gracefully: it finishes what it has begun. A second one ends it at
once. Exit code 1 means that the node stopped by itself, such as after a failed fsync.")]
pub(crate) struct StartArgs {
    /// The data directory, made if there is none; one node at a time owns it
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    /// Where clients connect: an IP address, or a name that has just one; port 0 takes any free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7400", value_parser = address::one)]
    listen: SocketAddr,

    /// Where nodes connect [default: the port after that of --listen]
    #[arg(long, value_name = "ADDR", value_parser = address::one)]
    peer_listen: Option<SocketAddr>,

    /// Where Prometheus asks for metrics, as GET /metrics; port 0 takes any free one [default: none]
    #[arg(long, value_name = "ADDR", value_parser = address::one)]
    metrics_listen: Option<SocketAddr>,

    /// What clients are told to connect to [default: as --listen]
    #[arg(long, value_name = "ADDR", value_parser = address::one)]
    advertise: Option<SocketAddr>,

    /// What nodes are told to connect to [default: as --peer-listen]
    #[arg(long, value_name = "ADDR", value_parser = address::one)]
    peer_advertise: Option<SocketAddr>,

    /// The node's datacenter; fixed for the life of the data directory
    #[arg(long, value_name = "DC")]
    dc: String,

    /// The node's rack: replicas are spread over racks
    #[arg(long, value_name = "RACK", default_value = "rack1")]
    rack: String,

    /// Peer addresses of nodes to find the cluster through
    #[arg(long, value_name = "ADDR[,ADDR]", value_delimiter = ',')]
    join: Vec<String>,

    /// Take the place of this node, whose data directory is lost. The directory must be empty, or that
    /// node's already; the others fill it before it answers reads
    #[arg(long, value_name = "NODE", conflicts_with = "restore", value_parser = values::node_id)]
    replace: Option<NodeId>,

    /// Begin with this snapshot's data, if the directory has none: it is verified, and the others fill
    /// in what is newer before it answers reads. Its folder has to have the snapshot's name
    #[arg(long, value_name = "DIR")]
    restore: Option<PathBuf>,

    /// Fill replicas by fewer others than every acknowledged write must be among, if there are no more:
    /// what only lost directories held stays lost
    #[arg(long)]
    accept_loss: bool,

    /// The cluster's name: nodes of another name are refused
    #[arg(long = "cluster", value_name = "NAME", default_value = "quorate")]
    cluster_name: String,

    /// The node's weight in the layout: 2 holds twice as many partitions as 1
    #[arg(long, value_name = "WEIGHT", default_value_t = 1)]
    capacity: u32,

    /// I/O loops; one suffices to about four cores
    #[arg(long, value_name = "N", default_value_t = 1)]
    io_threads: usize,

    /// Memory for the caches of rows and blocks, and for memtables, taken as it is needed [default: a
    /// quarter of the machine's, or of what the process's control group allows]
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    memory: Option<usize>,

    /// Bytes of the values of calls under way; beyond them more calls are refused [default: half of --memory,
    /// and 64M for each I/O thread at least]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    call_bytes_max: Option<usize>,

    /// The deadline of calls that name none, and the longest that one may name
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = values::timeout)]
    request_timeout: Duration,

    /// How far ahead of this node's clock another may be
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = values::duration)]
    clock_offset_max: Duration,

    /// The largest value accepted
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    value_bytes_max: Option<usize>,

    /// Client connections at once
    #[arg(long, value_name = "N")]
    connections_max: Option<usize>,

    /// Snapshots of the node kept at once
    #[arg(long, value_name = "N")]
    snapshots_max: Option<usize>,

    /// Bytes of hints kept for one node that is away; beyond it parts of the ring are marked dirty
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    hint_bytes_max: Option<usize>,

    /// How long a hint is kept before what it covers is marked dirty [default: 3h]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    hint_age_max: Option<Duration>,

    /// Bytes of hints kept for writes at ANY, which are never given up; beyond it these are refused
    /// unless a replica is up
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    any_hint_bytes_max: Option<usize>,

    /// Keep no hints for the nodes of these datacenters, except those of writes at ANY: what they
    /// miss is marked dirty at once
    #[arg(long, value_name = "DC[,DC]", value_delimiter = ',')]
    no_hints_for: Vec<String>,

    /// How often replicas are compared with those of every other node [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    exchange_interval: Option<Duration>,

    /// How old a difference between two replicas is before records are moved for it: what is younger
    /// is on its way [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    exchange_settle: Option<Duration>,

    /// What 99 of 100 calls of clients are to take at most: as it is approached, or one and a half times
    /// what they usually take, exchanges do less at a time and rest in between [default: 25ms]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    foreground_p99_target: Option<Duration>,

    /// How old tombstones and expired records are at least before they may go. A write that takes
    /// longer to all its replicas is refused by them, so the request timeout and two clocks' offsets
    /// have to fit in [default: 15m]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    fence_lag: Option<Duration>,

    /// How often tombstones and expired records are looked for that may go [default: 1m]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    purge_interval: Option<Duration>,

    /// How long the scrub takes to read all data once and compare Merkle trees with them [default: 7d]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    scrub_interval: Option<Duration>,

    /// Keep no Merkle trees, to measure what they cost: replicas are never found to differ then, so this
    /// takes an empty data directory only
    #[arg(long, hide = true, conflicts_with_all = ["restore", "replace"])]
    without_trees: bool,

    /// How long a graceful stop waits for what has begun
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = values::duration)]
    shutdown_grace: Duration,
}

/// Starts the node, says where it listens, and waits for its end.
pub(crate) async fn run(args: StartArgs, output: Output) -> Result<Exit, Failure> {
    let mut signals = StopSignals::new()?;
    args.memory.into_iter().for_each(memory::warn_of);
    let memory = args.memory.unwrap_or_else(memory::default_bytes);
    let mut config = args.config(memory)?;
    let files = args.share_open_files(&mut config)?;
    let (datacenter, rack) = (config.datacenter.clone(), config.rack.clone());
    if args.without_trees && args.data.read_dir().is_ok_and(|mut it| it.next().is_some()) {
        let problem = "--without-trees is for measurements, which begin with an empty directory";
        return Err(Failure::usage(problem));
    }
    if let Some(snapshot) = &args.restore {
        restore_from(snapshot, &args.data, output)?;
    }
    let mut node = SharedResources::for_one_node(memory, files)?.start(config)?;
    announce(&node, &datacenter, &rack, &args, output)?;

    let signal = tokio::select! {
        ended = node.stopped() => return stopped_by_itself(ended),
        signal = signals.next() => signal,
    };
    output.note(&format!("{signal}: stopping; once more ends it at once"));
    tokio::select! {
        () = node.stop() => Ok(Exit::Ok),
        again = signals.next() => Err(Failure::new(
            "INTERRUPTED",
            format!("{again} while stopping: operations in flight were cut off"),
        )),
    }
}

/// Copies a snapshot into the data directory, unless that has a database.
fn restore_from(snapshot: &Path, data: &Path, output: Output) -> Result<(), Failure> {
    let bar = progress::bytes_bar(output, Some(0));
    bar.set_message(format!("restoring {}", snapshot.display()));
    let restored = restore(snapshot, data, |copied, all| {
        bar.set_length(all);
        bar.set_position(copied);
    });
    bar.finish_and_clear();
    match restored {
        Ok(true) => output.note(&format!("restored {}", snapshot.display())),
        Ok(false) => output.note("--restore: the data directory has a database already"),
        Err(error) => {
            let mut failure = Failure::new("RESTORE_FAILED", with_causes(&error))
                .fact("snapshot", snapshot.display().to_string())
                .advise("another snapshot, or --replace with an empty data directory");
            if let RestoreError::Damaged { findings } = &error {
                for it in findings.iter().take(FINDINGS_MAX) {
                    failure = failure.fact("file", format!("{}: {}", it.path, it.problem));
                }
            }
            return Err(failure);
        }
    }
    Ok(())
}

/// Damaged files named in an error.
const FINDINGS_MAX: usize = 10;

fn stopped_by_itself(ended: Result<(), StopReason>) -> Result<Exit, Failure> {
    let Err(why) = ended else { return Ok(Exit::Ok) };
    let message = format!("the node stopped by itself: {}", with_causes(&why));
    Err(match why {
        StopReason::NotLetIn(error) => Failure::new(error.reason.as_str(), message)
            .advise(client::Error::advice_about(error.reason)),
        StopReason::Double { .. } => {
            let reason = Reason::NodeIsUp;
            Failure::new(reason.as_str(), message).advise(client::Error::advice_about(reason))
        }
        StopReason::Storage(_) => Failure::new("NODE_STOPPED", message)
            .advise("look at the disk")
            .advise("start it again: what it acknowledged is durable"),
        StopReason::Superseded { .. } => Failure::new("NODE_STOPPED", message)
            .advise("remove this data directory: the node goes on with its later one"),
        StopReason::NothingToReplace { .. } | StopReason::DatacenterChanged { .. } => {
            Failure::new("NODE_STOPPED", message).advise("correct --replace or --dc")
        }
        StopReason::Lost { .. } => Failure::new("NODE_STOPPED", message)
            .advise("start it again: what it acknowledged is durable"),
    })
}

fn announce(
    node: &RunningNode,
    datacenter: &str,
    rack: &str,
    args: &StartArgs,
    output: Output,
) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(&Ready {
            event: "ready",
            node_id: node.node_id().to_string(),
            client_address: node.client_address(),
            peer_address: node.peer_address(),
            metrics_address: node.metrics_address(),
            datacenter,
            rack,
            cluster: &args.cluster_name,
            data: args.data.display().to_string(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
        });
    }
    let ready = output.paint(Paint::Good, "ready");
    let metrics = node.metrics_address().map(|it| format!("  metrics {it}")).unwrap_or_default();
    output.line(&format!(
        "{ready}  clients {}  peers {}{metrics}  {datacenter}/{rack}  node {}",
        node.client_address(),
        node.peer_address(),
        node.node_id(),
    ))
}

#[derive(Serialize)]
struct Ready<'a> {
    event: &'static str,
    node_id: String,
    client_address: SocketAddr,
    peer_address: SocketAddr,
    metrics_address: Option<SocketAddr>,
    datacenter: &'a str,
    rack: &'a str,
    cluster: &'a str,
    data: String,
    pid: u32,
    version: &'static str,
}

fn names_a_port(address: &str) -> bool {
    let parts = address.rsplit_once(':');
    parts.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|it| it > 0))
}

impl StartArgs {
    /// Refuses what nobody could connect to.
    fn check_addresses(&self, peer_listen: SocketAddr) -> Result<(), Failure> {
        let nowhere = |given: Option<SocketAddr>, listen: SocketAddr| {
            given.unwrap_or(listen).ip().is_unspecified() || given.is_some_and(|it| it.port() == 0)
        };
        if nowhere(self.advertise, self.listen) || nowhere(self.peer_advertise, peer_listen) {
            return Err(Failure::usage(
                "nobody can connect to 0.0.0.0, [::] or port 0: say an address of this machine, as --listen or \
                 as --advertise and --peer-advertise",
            ));
        }
        if let Some(wrong) = self.join.iter().find(|it| !names_a_port(it)) {
            return Err(Failure::usage(format!("--join {wrong:?}: write HOST:PORT")));
        }
        Ok(())
    }

    /// Bounds connections by what this process may have open, and returns what that leaves for files.
    fn share_open_files(&self, config: &mut NodeConfig) -> Result<usize, Failure> {
        let limit = open_files::limit();
        let most =
            Connections { clients: config.connections_max, peers: config.peer_connections_max };
        let OpenFiles { database, connections } =
            OpenFiles::share(limit, config.io_threads, self.connections_max, most)?;
        if connections.clients < most.clients {
            let connections_max = connections.clients;
            tracing::warn!(
                limit,
                connections_max,
                "this process may open few files: fewer clients than usual can connect"
            );
        }
        config.connections_max = connections.clients;
        config.peer_connections_max = connections.peers;
        Ok(database)
    }

    fn config(&self, memory: usize) -> Result<NodeConfig, Failure> {
        let peer_listen = match self.peer_listen {
            Some(it) => it,
            None => port_after(self.listen)?,
        };
        self.check_addresses(peer_listen)?;
        let mut config = NodeConfig {
            data: self.data.clone(),
            listen: self.listen,
            peer_listen,
            metrics_listen: self.metrics_listen,
            advertise: self.advertise,
            peer_advertise: self.peer_advertise,
            datacenter: self.dc.clone(),
            rack: self.rack.clone(),
            join: self.join.clone(),
            replace: self.replace,
            accept_loss: self.accept_loss,
            no_hints_for: self.no_hints_for.clone(),
            keeps_trees: !self.without_trees,
            cluster_name: self.cluster_name.clone(),
            capacity: self.capacity,
            io_threads: self.io_threads,
            request_timeout_ms: milliseconds("--request-timeout", self.request_timeout)?,
            clock_offset_max_ms: milliseconds("--clock-offset-max", self.clock_offset_max)?,
            shutdown_grace_ms: milliseconds("--shutdown-grace", self.shutdown_grace)?,
            ..NodeConfig::default()
        };
        let least = config.call_bytes_max.saturating_mul(self.io_threads);
        config.call_bytes_max = self.call_bytes_max.unwrap_or((memory / 2).max(least));
        if let Some(it) = self.value_bytes_max {
            config.limits.value_bytes_max = it;
        }
        if let Some(it) = self.connections_max {
            config.connections_max = it;
        }
        if let Some(it) = self.snapshots_max {
            config.snapshots_max = it;
        }
        if let Some(it) = self.hint_bytes_max {
            config.hint_bytes_per_target_max = u64::try_from(it).unwrap_or(u64::MAX);
        }
        if let Some(it) = self.any_hint_bytes_max {
            config.any_hint_bytes_max = u64::try_from(it).unwrap_or(u64::MAX);
        }
        if let Some(it) = self.hint_age_max {
            config.hint_age_ms_max = milliseconds("--hint-age-max", it)?;
        }
        if let Some(it) = self.exchange_interval {
            config.exchange_interval_ms = milliseconds("--exchange-interval", it)?;
        }
        if let Some(it) = self.exchange_settle {
            config.exchange_settle_ms = milliseconds("--exchange-settle", it)?;
        }
        if let Some(it) = self.foreground_p99_target {
            config.foreground_p99_target_ms = milliseconds("--foreground-p99-target", it)?;
        }
        if let Some(it) = self.fence_lag {
            config.fence_lag_ms = milliseconds("--fence-lag", it)?;
        }
        if let Some(it) = self.purge_interval {
            config.purge_interval_ms = milliseconds("--purge-interval", it)?;
        }
        if let Some(it) = self.scrub_interval {
            config.scrub_interval_ms = milliseconds("--scrub-interval", it)?;
        }
        config.validate().map_err(|error| Failure::usage(option_error(&error)))?;
        Ok(config)
    }
}

/// What is wrong with a setting, under the name of its option.
fn option_error(error: &ConfigError) -> String {
    let ConfigError { setting, problem } = error;
    let option = match *setting {
        "datacenter" => "dc".to_owned(),
        it => it.replace("_ms", "").replace('_', "-"),
    };
    let unit = if setting.contains("_ms") { ", in milliseconds" } else { "" };
    format!("--{option}{unit}: {problem}")
}

/// The address with the next port; any free one stays any free one.
fn port_after(address: SocketAddr) -> Result<SocketAddr, Failure> {
    let port = match address.port() {
        0 => 0,
        port => port.checked_add(1).ok_or_else(|| {
            Failure::usage("--listen has the last port there is: name --peer-listen too")
        })?,
    };
    Ok(SocketAddr::new(address.ip(), port))
}

fn milliseconds(option: &str, duration: Duration) -> Result<u64, Failure> {
    let too_long = |_| Failure::usage(format!("{option} is too long"));
    u64::try_from(duration.as_millis()).map_err(too_long)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: usize = 1 << 30;

    fn config(options: &[&str]) -> Result<NodeConfig, Failure> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            start: StartArgs,
        }
        let line = [&["start", "--data", "/d", "--dc", "fra"], options].concat();
        clap::Parser::try_parse_from(line).map(|it: Line| it.start.config(MEMORY)).unwrap()
    }

    #[test]
    fn a_fence_stays_behind_every_write() {
        let it = config(&["--fence-lag=6s", "--purge-interval=500ms"]).unwrap();
        assert_eq!((it.fence_lag_ms, it.purge_interval_ms), (6_000, 500), "5 s and two offsets");
        let it =
            config(&["--fence-lag=1200ms", "--request-timeout=1s", "--clock-offset-max=100ms"]);
        assert_eq!(it.unwrap().fence_lag_ms, 1_200);
        for wrong in ["--fence-lag=5999ms", "--fence-lag=8d", "--purge-interval=1ms"] {
            assert_eq!(config(&[wrong]).unwrap_err().exit_code(), Exit::Usage, "{wrong}");
        }
    }

    #[test]
    fn calls_hold_half_of_the_memory() {
        let bytes = |options: &[&str]| config(options).unwrap().call_bytes_max;
        assert_eq!(bytes(&[]), MEMORY / 2);
        assert_eq!(bytes(&["--io-threads=16"]), 16 * (64 << 20), "that is more");
        assert_eq!(bytes(&["--call-bytes-max=20M"]), 20 << 20);
    }

    #[test]
    fn what_is_wrong_is_told_of_the_option() {
        for (given, told) in [
            ("--fence-lag=5999ms", "--fence-lag, in milliseconds: 5999 is below 6000"),
            ("--hint-age-max=1s", "--hint-age-max, in milliseconds: 1000 is not within"),
            ("--clock-offset-max=1ms", "--clock-offset-max, in milliseconds: 1 is not within"),
            ("--capacity=0", "--capacity: 0 is not within"),
            ("--value-bytes-max=0", "--value-bytes-max: 0 is not within"),
            ("--call-bytes-max=1M", "--call-bytes-max: 1048576 is below 16777216"),
            ("--rack=", "--rack: "),
        ] {
            let refused = config(&[given]).unwrap_err();
            assert!(refused.message().starts_with(told), "{given}: {}", refused.message());
        }
        let named = |setting| option_error(&ConfigError { setting, problem: "x".to_owned() });
        assert_eq!(named("datacenter"), "--dc: x");
    }

    #[test]
    fn exchange_has_bounds() {
        let default = NodeConfig::default();
        let it = config(&[]).unwrap();
        let of = |it: &NodeConfig| {
            (it.exchange_interval_ms, it.exchange_settle_ms, it.foreground_p99_target_ms)
        };
        assert_eq!(of(&it), of(&default));
        let it = config(&[
            "--exchange-interval=250ms",
            "--exchange-settle=500ms",
            "--foreground-p99-target=5ms",
        ]);
        assert_eq!(of(&it.unwrap()), (250, 500, 5));
        for wrong in
            ["--exchange-interval=1ms", "--exchange-settle=1d", "--foreground-p99-target=0"]
        {
            assert_eq!(config(&[wrong]).unwrap_err().exit_code(), Exit::Usage, "{wrong}");
        }
    }

    #[test]
    fn others_are_told_addresses_to_connect_to() {
        for wrong in [
            &["--listen=0.0.0.0:7400"][..],
            &["--listen=[::]:7400", "--advertise=10.0.0.1:7400"],
            &["--join=foo"],
            &["--join=10.0.0.1:7401,:7401"],
            &["--join=10.0.0.1:0"],
        ] {
            assert_eq!(config(wrong).unwrap_err().exit_code(), Exit::Usage, "{wrong:?}");
        }
        let advertise = ["--advertise=10.0.0.1:7400", "--peer-advertise=10.0.0.1:7401"];
        assert!(config(&[&["--listen=0.0.0.0:7400"], &advertise[..]].concat()).is_ok());
        assert!(config(&["--join=a.example:7401,[::1]:7401"]).is_ok());
    }

    #[test]
    fn peers_listen_on_the_next_port() {
        let after = |text: &str| port_after(text.parse().unwrap()).map(|it| it.to_string());
        assert_eq!(after("127.0.0.1:7400").unwrap(), "127.0.0.1:7401");
        assert_eq!(after("[::]:0").unwrap(), "[::]:0");
        assert_eq!(after("127.0.0.1:65535").unwrap_err().exit_code(), Exit::Usage);
    }
}
