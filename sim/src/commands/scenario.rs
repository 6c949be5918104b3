//! `quorate-sim scenario`: failures with a name.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Args;
use model::Mutant;
use sim::{
    replay,
    scenario::{self, Scenario, tell, tell_seed},
};

/// Which, and how much of it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Its name; all of them unless given.
    name: Option<String>,
    /// With this deliberate bug.
    #[arg(long, value_parser = super::run::mutant)]
    mutant: Option<Mutant>,
    /// Prints the whole log, not only the timeline.
    #[arg(long)]
    log: bool,
    /// Also plays each with the rules switched off whose need it shows: then it has to fail.
    #[arg(long)]
    rules_off: bool,
    /// Where the logs of those that fail are kept.
    #[arg(long, default_value = "target/sim", value_name = "DIR")]
    logs: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let scenarios = match &arguments.name {
        None => scenario::all(),
        Some(name) => match scenario::find(name) {
            Some(it) => vec![it],
            None => {
                eprintln!("no scenario {name:?}; `quorate-sim list` names them");
                return ExitCode::FAILURE;
            }
        },
    };
    let failed = scenarios.iter().filter(|it| !play(it, arguments)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play(scenario: &Scenario, arguments: &Arguments) -> bool {
    let mut held = print(scenario, arguments.mutant, None, arguments.log, Some(&arguments.logs));
    for shown in scenario.shows.iter().filter(|_| arguments.rules_off) {
        let told = tell(scenario, Some(shown.mutant));
        let seen = shown.find(&told.violations).map(ToString::to_string);
        let name = shown.mutant.as_str();
        match &seen {
            Some(it) => println!("with {name}: {it}"),
            None => println!("with {name}: NOBODY SAYS {:?}: {:?}", shown.says, told.violations),
        }
        held &= seen.is_some();
    }
    held
}

/// Plays and prints a scenario. One that fails leaves its log, and the command that plays it again.
pub(super) fn print(
    scenario: &Scenario,
    mutant: Option<Mutant>,
    seed: Option<u64>,
    whole_log: bool,
    logs: Option<&Path>,
) -> bool {
    println!("\n== {} ==\n{}", scenario.name, scenario.story);
    let told = tell_seed(scenario, mutant, seed);
    let lines = if whole_log { &told.lines } else { &told.timeline };
    lines.iter().for_each(|it| println!("{}", it.chars().take(300).collect::<String>()));
    for it in &told.availability {
        let side = if it.inside { "inside" } else { "outside" };
        let ((wrote, writes), (read, reads)) = (it.writes, it.reads);
        println!(
            "  {side:<8} {:<13} writes {wrote:>3}/{writes:<3} reads {read:>3}/{reads:<3} {:?}",
            it.level.to_string(),
            it.reasons
        );
    }
    for violation in &told.violations {
        println!("VIOLATION {violation}");
    }
    if told.violations.is_empty() {
        println!("held");
        return true;
    }
    println!("FAILED; replay it with: {}", replay::command(seed, Some(scenario.name), mutant));
    if let Some(folder) = logs {
        let name = format!("scenario-{}.log", scenario.name);
        println!("  {}", replay::tell_log(&replay::keep_log(folder, &name, &told.lines)));
    }
    false
}
