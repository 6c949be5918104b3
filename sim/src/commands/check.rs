//! `quorate-sim check`: the protocol, exhaustively.

use std::process::ExitCode;

use clap::Args;
use sim::protocol_check::{Case, DEPARTURES, LARGE, SMALL};

/// How much.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Searches the large bounds, which takes hours and gigabytes.
    #[arg(long)]
    large: bool,
    /// Searches with each deliberate bug: something has to be found.
    #[arg(long)]
    departures: bool,
    /// Threads of a search; as many as there are cores unless given.
    #[arg(long)]
    threads: Option<usize>,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let threads = arguments.threads.unwrap_or(cores);
    let mut cases: Vec<&Case> = SMALL.iter().collect();
    cases.extend(LARGE.iter().filter(|_| arguments.large));
    cases.extend(DEPARTURES.iter().filter(|_| arguments.departures));
    let mut all_right = true;
    for case in cases {
        let (Ok(told) | Err(told)) = case.check(threads).inspect_err(|_| all_right = false);
        println!("{told}");
    }
    if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
