//! `quorate-sim`: runs simulated clusters by seed.

mod commands;

use std::process::ExitCode;

use clap::Parser;

/// Simulated clusters: whole nodes on a simulated network, clock and disk, all from one seed.
#[derive(Parser)]
#[command(name = "quorate-sim", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    commands::run(Arguments::parse().command)
}
