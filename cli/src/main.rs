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
mod memory;
mod open_files;
mod output;
mod progress;
mod signals;
mod table;
mod transfer;
mod values;

use std::{env, process::ExitCode};

use clap::Parser;

/// For Rust and, as it takes over the names of malloc, for RocksDB's C++.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    open_files::raise();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => refuse(&error),
    };
    let output = output::Output::new(cli.global.json, cli.global.color);
    match commands::run(cli, output) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.exit_code() as u8)
        }
    }
}

/// Ends the process with what the parser has to say. Who asked for JSON gets errors as JSON; help and
/// the version are for people in any case.
fn refuse(error: &clap::Error) -> ! {
    let asked = || env::args_os().take_while(|it| it != "--").any(|it| it == "--json");
    if !error.use_stderr() || !asked() {
        error.exit();
    }
    let failure = failure::Failure::arguments(error);
    output::Output::new(true, output::ColorChoice::Never).failure(&failure);
    std::process::exit(failure.exit_code() as i32)
}
