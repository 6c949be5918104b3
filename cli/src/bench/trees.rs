//! `quorate bench trees`: what it costs a node to keep its Merkle trees exact with every write.

mod commit;
mod puts;

use std::{
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    time::Duration,
};

use clap::Args;
use node::commit::TreeStatistics;
use serde::Serialize;

use super::{keys::KeySpace, report::spell_rate};
use crate::{
    args::Global,
    failure::{Exit, Failure},
    output::{Output, Paint},
    table::Table,
    values,
};

/// Measure what keeping Merkle trees costs
///
/// Of whole puts: two clusters of three local processes, one with trees and one without, take turns under a
/// load of puts at QUORUM, and compare no replicas meanwhile; shown is the processor time of the three nodes
/// per put. Of the commit path alone: two databases, one with trees and one without, take the same overwrites
/// in groups as a commit thread writes them, fsync included; shown is the processor time of the whole process
/// per record, flushes and compactions included.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Exit code 1 means that puts failed.")]
pub(crate) struct TreesArgs {
    /// How many different keys
    #[arg(long, value_name = "N", default_value = "200000")]
    keys: NonZeroU64,

    /// Bytes of a value
    #[arg(long, value_name = "SIZE", default_value = "100")]
    value_size: NonZeroUsize,

    /// Clients of the puts; each calls again as soon as it has its answer
    #[arg(long, value_name = "N", default_value = "64")]
    clients: NonZeroUsize,

    /// How long each cluster is under load in one round
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = values::duration)]
    duration: Duration,

    /// Records of one group of the commit path: about a third of the clients of a cluster of three
    #[arg(long, value_name = "N", default_value = "20")]
    group: NonZeroUsize,

    /// Records that each database takes in one round
    #[arg(long, value_name = "N", default_value = "40000")]
    records: NonZeroUsize,

    /// Rounds; medians are over them
    #[arg(long, value_name = "N", default_value = "20")]
    rounds: NonZeroU32,
}

#[derive(Serialize)]
struct TreesDocument {
    keys: u64,
    /// The nodes' part of whole puts.
    puts: Compared,
    puts_failed: u64,
    /// Records of groups on the commit path.
    commits: Compared,
    group: usize,
    tree_leaves: u64,
    tree_memory_bytes_per_million_records: f64,
}

/// Rounds with trees and without them.
#[derive(Serialize)]
struct Compared {
    with_trees: Vec<Spent>,
    without_trees: Vec<Spent>,
    /// Processor time with trees over that without: the median of the ratios of all rounds, so that what
    /// disturbs the machine for longer than a round disturbs both sides.
    processor_ratio: f64,
}

/// What one put or record costs, and how many there were.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spent {
    /// For each, with all that is flushed and compacted until a while after the last one.
    processor_us: f64,
    per_second: f64,
}

/// For what is still flushed and compacted after the last write: it belongs to whoever wrote.
const REST: Duration = Duration::from_secs(1);

/// Who is first and who is second, with trees (0) or without (1): they swap, since what the first leaves
/// behind can cost the second.
fn turns(round: u32) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

/// Measures and shows.
pub(super) async fn run(args: TreesArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let (puts, puts_failed) = puts::measure(&args, &global, output).await?;
    let (commits, trees) = commit::measure(&args, output)?;
    let document = TreesDocument::new(&args, puts, puts_failed, commits, trees);
    show(&document, output)?;
    Ok(if puts_failed == 0 { Exit::Ok } else { Exit::Failed })
}

impl TreesArgs {
    fn space(&self) -> KeySpace {
        KeySpace::uniform(self.keys.get(), self.value_size.get())
    }
}

impl TreesDocument {
    fn new(
        args: &TreesArgs,
        puts: [Vec<Spent>; 2],
        puts_failed: u64,
        commits: [Vec<Spent>; 2],
        trees: TreeStatistics,
    ) -> Self {
        let millions = args.keys.get() as f64 / 1e6;
        Self {
            keys: args.keys.get(),
            puts: Compared::new(puts),
            puts_failed,
            commits: Compared::new(commits),
            group: args.group.get(),
            tree_leaves: trees.leaves,
            tree_memory_bytes_per_million_records: trees.memory_bytes as f64 / millions,
        }
    }
}

impl Compared {
    fn new([with_trees, without_trees]: [Vec<Spent>; 2]) -> Self {
        let pairs = with_trees.iter().zip(&without_trees);
        let processor_ratio = median(pairs.map(|(it, other)| it.processor_us / other.processor_us));
        Self { with_trees, without_trees, processor_ratio }
    }
}

fn show(document: &TreesDocument, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(document);
    }
    let mut table =
        Table::new(&["", ">CPU with trees", ">without", ">ratio", ">a second with", ">without"]);
    let rows =
        [("a put, of three nodes", &document.puts), ("a record committed", &document.commits)];
    for (name, it) in rows {
        let us = |it: &[Spent]| format!("{:.2} us", processor_us(it));
        let rate = |it: &[Spent]| spell_rate(median(it.iter().map(|it| it.per_second)));
        table.row([
            name.to_owned().into(),
            us(&it.with_trees).into(),
            us(&it.without_trees).into(),
            format!("{:.3}", it.processor_ratio).into(),
            rate(&it.with_trees).into(),
            rate(&it.without_trees).into(),
        ]);
    }
    output.report(&table)?;
    if document.puts_failed > 0 {
        let problem = format!("{} puts failed", document.puts_failed);
        output.note(&output.paint(Paint::Bad, &problem));
    }
    output.line(&format!(
        "{} leaves, {:.2} MB per million records",
        document.tree_leaves,
        document.tree_memory_bytes_per_million_records / 1e6,
    ))
}

fn processor_us(spent: &[Spent]) -> f64 {
    median(spent.iter().map(|it| it.processor_us))
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
