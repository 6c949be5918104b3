//! `quorate bench outage`: what clients of one datacenter notice while another one comes back.

mod measure;

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use self::measure::{Settings, Way, measure};
use super::{
    bar::{BarDocument, show_bars},
    cluster::NODES,
    keys::KeySpace,
    load::Load,
    returned::Returned,
};
use crate::{
    args::Global,
    failure::{Exit, Failure},
    output::{Output, Paint},
    values,
};

/// Measure what clients notice while a whole datacenter comes back that was away
///
/// Starts two datacenters of three nodes each on free ports, every key at all six of them, with a
/// steady load of reads and writes at LOCAL_QUORUM in one. The other one is killed, some of the keys
/// are written, and it comes back, until all that two nodes share was found the same since, without a
/// command. Three times, with a cluster of its own each: with hints; with none, by exchange alone; and
/// with its data lost.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate bench outage
  quorate bench outage --keys 50000 --behind 5 --json

Exit code 1 means that a bar was missed, or that calls failed.")]
pub(crate) struct OutageArgs {
    /// How many different keys
    #[arg(long, value_name = "N", default_value = "200000", value_parser = clap::value_parser!(u64).range(1_000..))]
    keys: u64,

    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "100", value_parser = values::size)]
    value_size: usize,

    /// Per cent of the keys that are written while the datacenter is away
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=100))]
    behind: u64,

    /// Clients of the load, half of their calls reads; each calls again as soon as it has its answer
    #[arg(long, value_name = "N", default_value = "16")]
    clients: NonZeroUsize,

    /// How long the load is measured before the datacenter is killed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    duration: Duration,

    /// The folder for the nodes' data [default: the one for temporary files]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

/// A datacenter that came back.
#[derive(Clone, Debug, Serialize)]
struct Outage {
    way: Way,
    #[serde(flatten)]
    returned: Returned,
}

#[derive(Serialize)]
struct OutageDocument<'a> {
    held: bool,
    keys: u64,
    nodes: usize,
    bars: &'a [BarDocument],
    outages: &'a [Outage],
}

/// Measures and judges.
pub(super) async fn run(args: OutageArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let load = Load {
        clients: args.clients.get(),
        rate: None,
        warm_up: Duration::from_secs(2),
        duration: args.duration,
        read_share: 0.5,
        batch: 1,
        space: KeySpace::uniform(args.keys, args.value_size),
    };
    let keys_behind = (args.keys * args.behind / 100).max(1);
    let settings = Settings { load, keys_behind, folder: args.folder, global, output };
    let mut outages = Vec::new();
    for way in Way::ALL {
        outages.push(Outage { way, returned: measure(way, &settings).await? });
    }
    let bars: Vec<BarDocument> =
        outages.iter().flat_map(|it| it.returned.bars(it.way.name())).collect();
    let failed: u64 = outages.iter().map(|it| it.returned.errors).sum();
    let held = failed == 0 && bars.iter().all(BarDocument::is_held);
    if output.is_json() {
        let (bars, outages) = (&bars[..], &outages[..]);
        let document =
            OutageDocument { held, keys: args.keys, nodes: DATACENTERS * NODES, bars, outages };
        output.document(&document)?;
    } else {
        show_bars(&bars, output)?;
        for it in &outages {
            output.line(&format!("{}: {}", it.way.name(), it.returned.describe()))?;
        }
    }
    if failed > 0 {
        output.note(&output.paint(Paint::Bad, &format!("{failed} calls failed")));
    }
    Ok(if held { Exit::Ok } else { Exit::Failed })
}

const DATACENTERS: usize = 2;
