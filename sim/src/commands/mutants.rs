//! `quorate-sim mutants`: are deliberate bugs caught?

use std::process::ExitCode;

use clap::Args;
use model::Mutant;
use sim::mutants::{HuntSettings, Hunted, hunt};

/// How long to look.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only these; all unless given.
    #[arg(long, value_parser = super::run::mutant, value_name = "NAME")]
    only: Vec<Mutant>,
    /// How often each is hunted, with other seeds each time.
    #[arg(long, default_value_t = 3)]
    hunts: u64,
    /// A hunt is given up after so many seeds.
    #[arg(long, default_value_t = 150)]
    seeds_max: u64,
    /// Runs at a time; as many as there are cores unless given.
    #[arg(long)]
    threads: Option<usize>,
}

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let all = || Mutant::ALL.to_vec();
    let settings = HuntSettings {
        mutants: if arguments.only.is_empty() { all() } else { arguments.only.clone() },
        hunts: arguments.hunts,
        seeds_max: arguments.seeds_max,
        threads: arguments.threads.unwrap_or(cores),
    };
    println!("{:<28} {:>6} {:>7}  caught by", "mutant", "caught", "seeds");
    let hunted = hunt(&settings, |mutant, hunted| print(mutant, hunted, settings.seeds_max));
    let survivors: Vec<_> =
        hunted.iter().filter(|it| !it.1.is_caught()).map(|it| it.0.as_str()).collect();
    println!("{} of {} mutants caught in every hunt", hunted.len() - survivors.len(), hunted.len());
    if survivors.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("survived: {}", survivors.join(", "));
    ExitCode::FAILURE
}

fn print(mutant: Mutant, hunted: &Hunted, seeds_max: u64) {
    let caught = hunted.seeds.iter().flatten().count();
    let by: Vec<_> = hunted.by.iter().map(|(name, count)| format!("{name} x{count}")).collect();
    let hunts = hunted.seeds.len();
    let mean = hunted.mean(seeds_max);
    println!("{:<28} {caught:>3}/{hunts:<2} {mean:>7.1}  {}", mutant.as_str(), by.join(", "));
    if let Some((seed, what)) = &hunted.example {
        let what: String = what.chars().take(200).collect();
        match seed {
            Some(seed) => {
                println!("  quorate-sim run --seed {seed} --mutant {}: {what}", mutant.as_str());
            }
            None => println!("  quorate-sim scenario --mutant {}: {what}", mutant.as_str()),
        }
    }
}
