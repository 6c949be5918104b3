//! `quorate-sim mutants`: are deliberate bugs caught?

use std::{collections::BTreeMap, process::ExitCode};

use clap::Args;
use model::Mutant;
use sim::mutants::{CatchBy, HuntSettings, Hunted, hunt};

/// How long to look.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only these; all unless given.
    #[arg(long, value_parser = super::run::mutant, value_name = "NAME")]
    only: Vec<Mutant>,
    /// How often each is hunted, with other seeds each time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
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
    println!("{:<28} {:>6} {:>7}  caught by", "mutant", "caught", "runs");
    let hunted = hunt(&settings, print);
    let survivors: Vec<_> =
        hunted.iter().filter(|it| !it.1.is_caught()).map(|it| it.0.as_str()).collect();
    println!("{} of {} mutants caught in every hunt", hunted.len() - survivors.len(), hunted.len());
    if survivors.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("survived: {}", survivors.join(", "));
    ExitCode::FAILURE
}

fn print(mutant: Mutant, hunted: &Hunted) {
    let (hunts, caught) = (hunted.hunts.len(), hunted.hunts.iter().flatten().count());
    let runs = hunted.mean_runs().map_or("-".to_owned(), |it| format!("{it:.1}"));
    let mut by = BTreeMap::<String, u64>::new();
    for it in hunted.hunts.iter().flatten() {
        let name = match it.by {
            CatchBy::Seed { .. } => it.judge.to_owned(),
            CatchBy::Scenario(name) => format!("scenario {name}"),
            CatchBy::Search => "search".to_owned(),
        };
        *by.entry(name).or_default() += 1;
    }
    let by: Vec<_> = by.iter().map(|(name, count)| format!("{name} x{count}")).collect();
    println!("{:<28} {caught:>3}/{hunts:<2} {runs:>7}  {}", mutant.as_str(), by.join(", "));
    if let Some(it) = hunted.hunts.iter().flatten().next() {
        let what: String = it.what.chars().take(200).collect();
        println!("  {}: {what}", it.replay(mutant));
    }
}
