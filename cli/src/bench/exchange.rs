//! `quorate bench exchange`: what it costs to keep replicas the same, and to bring one back that was
//! away, by the nodes' own counters and by what their clients notice.

mod measure;
mod verdict;

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use self::measure::{Bench, Moved, Settings};
use super::{
    bar::{BarDocument, show_bars},
    returned::{ReturnArgs, Returned, conclude, is_held},
};
use crate::{
    args::Global,
    failure::{Exit, Failure},
    output::Output,
    values::{self, spell_bytes, spell_count},
};

/// Measure what exchanges between replicas move, and what clients notice of a node that catches up
///
/// Starts three nodes on free ports that keep no hints, fills them, and counts the bytes of all
/// messages of exchanges: while nothing differs, after one key was written while a node was down,
/// and after a share of them was. Then two nodes serve a steady load of reads and writes while the
/// third comes back and catches up.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate bench exchange
  quorate bench exchange --keys 100000 --duration 5s --json

Exit code 1 means that a bar was missed, or that calls failed.")]
pub(crate) struct ExchangeArgs {
    /// How many different keys
    #[arg(long, value_name = "N", default_value = "1000000", value_parser = clap::value_parser!(u64).range(1_000..))]
    keys: u64,

    #[command(flatten)]
    nodes: ReturnArgs,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
struct Figures {
    keys: u64,
    /// Partitions of each pair of nodes.
    partitions: u64,
    /// A round in which nothing differs: of the pair that moved most.
    in_sync_bytes: u64,
    one_key: Moved,
    one_percent: Moved,
    tree_memory_bytes_per_million_keys: f64,
    /// Nodes that came back under load: with one per cent of the keys to catch up, and with more.
    returned: Vec<Returned>,
}

#[derive(Serialize)]
struct ExchangeDocument<'a> {
    held: bool,
    bars: &'a [BarDocument],
    #[serde(flatten)]
    figures: &'a Figures,
}

/// Measures and judges.
pub(super) async fn run(
    args: ExchangeArgs,
    global: Global,
    output: Output,
) -> Result<Exit, Failure> {
    let (load, behind) = (args.nodes.load(args.keys), args.nodes.behind);
    let settings = Settings { load, folder: args.nodes.folder, global, output };
    let figures = figures(Bench::start(settings).await?, behind).await?;
    let bars = verdict::judge(&figures);
    let held = is_held(&bars, figures.returned.iter());
    if output.is_json() {
        output.document(&ExchangeDocument { held, bars: &bars, figures: &figures })?;
    } else {
        show(&figures, &bars, output)?;
    }
    Ok(conclude(held, figures.returned.iter(), output))
}

async fn figures(mut bench: Bench, behind: u64) -> Result<Figures, Failure> {
    let (partitions, in_sync_bytes) = bench.in_sync().await?;
    let keys = bench.keys();
    let figures = Figures {
        keys,
        partitions,
        in_sync_bytes,
        one_key: bench.away(1).await?,
        one_percent: bench.away(keys / 100).await?,
        tree_memory_bytes_per_million_keys: bench.tree_memory().await?,
        returned: vec![
            bench.away_under_load(keys / 100).await?,
            bench.away_under_load(keys / 100 * behind).await?,
        ],
    };
    bench.stop().await?;
    Ok(figures)
}

fn show(figures: &Figures, bars: &[BarDocument], output: Output) -> Result<(), Failure> {
    show_bars(bars, output)?;
    let moved = &figures.one_percent;
    output.line(&format!(
        "one per cent: {} of {} written while a node was down came to it in {}, in all {} records moved, {} in {} of messages",
        spell_count(moved.keys),
        spell_count(figures.keys),
        spell_ms(moved.took_ms),
        spell_count(moved.records_moved),
        spell_bytes(moved.record_bytes),
        spell_bytes(moved.bytes),
    ))?;
    for it in &figures.returned {
        output.line(&it.describe())?;
    }
    Ok(())
}

fn spell_ms(ms: f64) -> String {
    values::spell_duration(Duration::from_secs_f64(ms / 1e3))
}
