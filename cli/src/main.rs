//! The binary `quorate`: a node of the database, and every command to use and look after one.
//!
//! Parses the command line, runs one command, reports its failure. Decides nothing else.

mod args;
mod bench;
mod commands;
mod connect;
mod demo;
mod encoding;
mod failure;
mod local_node;
mod output;
mod progress;
mod signals;
mod table;
mod transfer;
mod values;

use std::process::ExitCode;

use clap::Parser;

/// For Rust and, as it takes over the names of malloc, for RocksDB's C++.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let output = output::Output::new(cli.global.json, cli.global.color);
    match commands::run(cli, output) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code() as u8)
        }
    }
}
