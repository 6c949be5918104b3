//! `quorate bench outage`: what clients of one datacenter notice while another one comes back.

mod measure;

use clap::Args;
use serde::Serialize;

use self::measure::{Settings, Way, measure};
use super::{
    bar::{BarDocument, show_bars},
    cluster::NODES,
    returned::{ReturnArgs, Returned, conclude, is_held},
};
use crate::{
    args::Global,
    failure::{Exit, Failure},
    output::Output,
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

    #[command(flatten)]
    nodes: ReturnArgs,
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
    let (load, folder) = (args.nodes.load(args.keys), args.nodes.folder);
    let keys_behind = (args.keys * args.nodes.behind / 100).max(1);
    let settings = Settings { load, keys_behind, folder, global, output };
    let mut outages = Vec::new();
    for way in Way::ALL {
        outages.push(Outage { way, returned: measure(way, &settings).await? });
    }
    let bars: Vec<BarDocument> =
        outages.iter().flat_map(|it| it.returned.bars(it.way.name())).collect();
    let returned = || outages.iter().map(|it| &it.returned);
    let held = is_held(&bars, returned());
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
    Ok(conclude(held, returned(), output))
}

const DATACENTERS: usize = 2;
