//! `quorate-sim evidence`: writes sim/src/guarantees/evidence.txt to standard output.

use std::process::ExitCode;

use clap::Args;
use sim::guarantees::evidence::hunt;

/// How long to look.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What so many seeds do not show is left to scenarios.
    #[arg(long, default_value_t = 100)]
    seeds_max: u64,
    /// Mutants at a time; as many as there are cores unless given.
    #[arg(long)]
    threads: Option<usize>,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let threads = arguments.threads.unwrap_or(cores);
    let (page, missing) = hunt(arguments.seeds_max, threads, |told| eprintln!("{told}"));
    print!("{page}");
    if missing.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("nothing shows: {}", missing.join(", "));
    ExitCode::FAILURE
}
