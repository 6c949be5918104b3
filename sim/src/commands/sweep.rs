//! `quorate-sim sweep`: many seeds.

use std::{ops::Range, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use sim::sweep::{Progress, SweepSettings, sweep};

/// Which seeds, and how long.
#[derive(Args)]
pub(crate) struct Arguments {
    /// From the first to the one before the last, as `0..1000`.
    #[arg(long, value_parser = seeds, default_value = "0..100")]
    seeds: Range<u64>,
    /// Ends after so many minutes, whatever seeds are left.
    #[arg(long, value_parser = minutes)]
    minutes: Option<Duration>,
    /// Runs at a time; as many as there are cores unless given.
    #[arg(long)]
    threads: Option<usize>,
    /// Does not fail for what was never exercised: a short sweep cannot exercise everything.
    #[arg(long)]
    any_coverage: bool,
    /// Where the logs of failed seeds are kept.
    #[arg(long, default_value = "target/sim", value_name = "DIR")]
    logs: PathBuf,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text.split_once("..").ok_or("give them as START..END")?;
    let number = |it: &str| it.parse::<u64>().map_err(|error| error.to_string());
    let range = number(start)?..number(end)?;
    if range.is_empty() { Err("there is no seed in that range".to_owned()) } else { Ok(range) }
}

fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 =
        text.parse().map_err(|error| format!("give a number of minutes: {error}"))?;
    Duration::try_from_secs_f64(minutes * 60.0).map_err(|error| error.to_string())
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let settings = SweepSettings {
        seeds: arguments.seeds.clone(),
        time: arguments.minutes,
        threads: arguments.threads.unwrap_or(cores),
        mutant: None,
        failed_max: 10,
        logs: Some(arguments.logs.clone()),
    };
    let outcome = sweep(&settings, |progress: &Progress<'_>| {
        if let Some(it) = progress.just_failed {
            eprint!("{it}");
        }
        eprintln!(
            "{} of {} seeds, {:.1} a second, {} failed",
            progress.done, progress.total, progress.per_second, progress.failed
        );
    });
    for (group, name, count) in outcome.coverage.figures() {
        println!("{group:>8}  {name:<40} {count:>12}");
    }
    println!(
        "{} seeds in {:.1} s, {:.2} a second; {} operations in {:.0} simulated seconds",
        outcome.done,
        outcome.elapsed.as_secs_f64(),
        outcome.done as f64 / outcome.elapsed.as_secs_f64(),
        outcome.operations,
        outcome.simulated_ms as f64 / 1_000.0,
    );
    let mut failed = !outcome.failed.is_empty();
    outcome.failed.iter().for_each(|it| print!("{it}"));
    if outcome.done == 0 {
        println!("no seed was run");
        failed = true;
    }
    let missing = outcome.coverage.missing();
    if !missing.is_empty() && !arguments.any_coverage {
        println!("never exercised: {}", missing.join(", "));
        failed = true;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
