//! `quorate-sim run`: one seed.

use std::{path::PathBuf, process::ExitCode};

use clap::Args;
use model::Mutant;
use sim::{
    replay,
    run::{Report, RunSettings},
};

/// Which run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Decides everything.
    #[arg(long)]
    seed: u64,
    /// With this deliberate bug; `quorate-sim list` names them.
    #[arg(long, value_parser = mutant)]
    mutant: Option<Mutant>,
    /// Plays this scenario instead of a random run; the seed decides latencies and interleavings.
    #[arg(long, value_name = "NAME")]
    scenario: Option<String>,
    /// Writes the log here instead of printing it.
    #[arg(long, value_name = "FILE", conflicts_with = "scenario")]
    log: Option<PathBuf>,
    /// Where the log of a run that fails is kept, unless `--log` names a file.
    #[arg(long, default_value = "target/sim", value_name = "DIR")]
    logs: PathBuf,
    /// Prints only the verdict.
    #[arg(long)]
    quiet: bool,
}

/// Parses a mutant's name.
pub(crate) fn mutant(name: &str) -> Result<Mutant, String> {
    let found = Mutant::ALL.iter().find(|it| it.as_str() == name);
    found.copied().ok_or_else(|| "no such mutant; `quorate-sim list` names them".to_owned())
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    if let Some(name) = &arguments.scenario {
        return play(name, arguments);
    }
    let settings = RunSettings {
        mutant: arguments.mutant,
        keep: true,
        ..RunSettings::of_seed(arguments.seed)
    };
    let report = sim::run::run(&settings);
    match &arguments.log {
        Some(path) => {
            if let Err(error) = std::fs::write(path, report.lines.join("\n")) {
                eprintln!("cannot write {}: {error}", path.display());
                return ExitCode::FAILURE;
            }
        }
        None if arguments.quiet => {}
        None => report.lines.iter().for_each(|it| println!("{it}")),
    }
    print_verdict(&report);
    if report.violations.is_empty() {
        return ExitCode::SUCCESS;
    }
    let (seed, mutant) = (arguments.seed, arguments.mutant);
    println!("FAILED; replay it with: {}", replay::command(Some(seed), None, mutant));
    let kept = match &arguments.log {
        Some(path) => Ok(path.clone()),
        None => {
            let name = replay::log_name(seed, mutant);
            replay::keep_log(&arguments.logs, &name, &report.lines)
        }
    };
    println!("  {}", replay::tell_log(&kept));
    ExitCode::FAILURE
}

fn play(name: &str, arguments: &Arguments) -> ExitCode {
    let Some(scenario) = sim::scenario::find(name) else {
        eprintln!("no scenario {name:?}; `quorate-sim list` names them");
        return ExitCode::FAILURE;
    };
    let (mutant, seed) = (arguments.mutant, Some(arguments.seed));
    let (whole_log, logs) = (!arguments.quiet, Some(arguments.logs.as_path()));
    let held = super::scenario::print(&scenario, mutant, seed, whole_log, logs);
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_verdict(report: &Report) {
    println!(
        "seed {}: {} nodes in {} datacenters, {} operations in {:.1} simulated seconds; log {:016x}, \
         state {:016x}",
        report.seed,
        report.shape.nodes().count(),
        report.shape.datacenters.len(),
        report.operations,
        report.simulated_ms as f64 / 1_000.0,
        report.log_hash,
        report.state_hash,
    );
    for violation in &report.violations {
        println!("VIOLATION {violation}");
    }
    if report.violations.is_empty() {
        println!("clean");
    }
}
