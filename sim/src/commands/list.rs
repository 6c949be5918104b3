//! `quorate-sim list`: what there is.

use std::process::ExitCode;

use model::Mutant;

pub(crate) fn run() -> ExitCode {
    println!("scenarios:");
    for scenario in sim::scenario::all() {
        println!("  {:<40} {}", scenario.name, scenario.story);
    }
    println!("mutants:");
    for mutant in Mutant::ALL {
        println!("  {:<28} {}", mutant.as_str(), mutant.describe());
    }
    ExitCode::SUCCESS
}
