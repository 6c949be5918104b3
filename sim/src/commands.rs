//! The commands of `quorate-sim`, a file each.

mod check;
mod evidence;
mod guarantees;
mod list;
mod mutants;
mod run;
mod scenario;
mod sweep;

use std::process::ExitCode;

use clap::Subcommand;

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Runs one seed and tells what happened.
    Run(run::Arguments),
    /// Runs many seeds, on all cores.
    Sweep(sweep::Arguments),
    /// Plays failures that have a name.
    Scenario(scenario::Arguments),
    /// Runs every deliberate bug until it is caught.
    Mutants(mutants::Arguments),
    /// Searches every execution of a few puts and gets, with the code that nodes run.
    Check(check::Arguments),
    /// Writes the page of guarantees, from the runs themselves.
    Guarantees,
    /// Looks for seeds that show the mutants on the page of guarantees; prints the file that names them.
    Evidence(evidence::Arguments),
    /// Lists what can be named.
    List,
}

pub(crate) fn run(command: Command) -> ExitCode {
    match command {
        Command::Run(it) => run::run(&it),
        Command::Sweep(it) => sweep::run(&it),
        Command::Scenario(it) => scenario::run(&it),
        Command::Mutants(it) => mutants::run(&it),
        Command::Check(it) => check::run(&it),
        Command::Guarantees => guarantees::run(),
        Command::Evidence(it) => evidence::run(&it),
        Command::List => list::run(),
    }
}
