//! `quorate bench`: loads a cluster and measures it, measures what the machine itself can do, and
//! holds one against the other.
//!
//! The load generator is one thread: with more, its own scheduling is most of what it measures.

mod bar;
mod bars;
mod children;
mod cluster;
mod converged;
mod deletes;
mod disk;
pub(crate) mod echo;
mod exchange;
mod floor;
mod keys;
pub(crate) mod latency;
mod load;
mod outage;
pub(crate) mod process;
mod report;
mod returned;
mod run;
mod target;
mod trees;
mod zipfian;

use clap::Subcommand;

use crate::{
    args::Global,
    failure::{Exit, Failure},
    output::Output,
};

/// Load a cluster and measure it
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum BenchCommand {
    Run(run::RunArgs),
    Floor(floor::FloorArgs),
    Bars(bars::BarsArgs),
    Exchange(exchange::ExchangeArgs),
    Outage(outage::OutageArgs),
    Deletes(deletes::DeletesArgs),
    Trees(trees::TreesArgs),
}

/// Runs one of the benchmarks.
pub(crate) async fn run(
    command: BenchCommand,
    global: Global,
    output: Output,
) -> Result<Exit, Failure> {
    match command {
        BenchCommand::Run(args) => run::run(args, global, output).await,
        BenchCommand::Floor(args) => floor::run(args, output).await,
        BenchCommand::Bars(args) => bars::run(args, global, output).await,
        BenchCommand::Exchange(args) => exchange::run(args, global, output).await,
        BenchCommand::Outage(args) => outage::run(args, global, output).await,
        BenchCommand::Deletes(args) => deletes::run(args, global, output).await,
        BenchCommand::Trees(args) => trees::run(args, global, output).await,
    }
}
