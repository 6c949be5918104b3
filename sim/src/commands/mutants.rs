//! `quorate-sim mutants`: are deliberate bugs caught, and soon enough?

use std::{collections::BTreeMap, process::ExitCode};

use clap::Args;
use model::Mutant;
use sim::mutants::{CatchBy, HuntSettings, Hunted, Means, hunt};

/// How long to look.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only these, with random runs even if they are meant for scenarios or the search; all unless
    /// given.
    #[arg(long, value_parser = super::run::mutant, value_name = "NAME")]
    only: Vec<Mutant>,
    /// How often each is hunted, with other seeds each time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    hunts: u64,
    /// Random runs are given up after so many seeds.
    #[arg(long, default_value_t = 150)]
    seeds_max: u64,
    /// Runs at a time; as many as there are cores unless given.
    #[arg(long)]
    threads: Option<usize>,
}

/// A mutant that is meant for random runs and needs more of them on average has become too hard to
/// see: the runs have lost what used to show it.
const MEAN_RUNS_MAX: f64 = 50.0;

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let all = || Mutant::ALL.to_vec();
    let settings = HuntSettings {
        mutants: if arguments.only.is_empty() { all() } else { arguments.only.clone() },
        hunts: arguments.hunts,
        seeds_max: arguments.seeds_max,
        seeds_for_all: !arguments.only.is_empty(),
        threads: arguments.threads.unwrap_or(cores),
    };
    println!(
        "{:<28} {:<9} {:>6} {:>7} {:>7}  caught by",
        "mutant", "meant for", "caught", "by seed", "runs"
    );
    let hunted = hunt(&settings, print);
    let names = |those: &dyn Fn(Mutant, &Hunted) -> bool| {
        let those = hunted.iter().filter(|it| those(*it.0, it.1));
        those.map(|it| it.0.as_str()).collect::<Vec<_>>()
    };
    let survivors = names(&|_, it| !it.is_caught());
    let late = names(&|mutant, it| {
        Means::of(mutant) == Means::Seeds && it.mean_runs().is_some_and(|it| it > MEAN_RUNS_MAX)
    });
    println!("{} of {} mutants caught in every hunt", hunted.len() - survivors.len(), hunted.len());
    if !survivors.is_empty() {
        println!("survived: {}", survivors.join(", "));
    }
    if !late.is_empty() {
        println!("more than {MEAN_RUNS_MAX} runs on average: {}", late.join(", "));
    }
    if survivors.is_empty() && late.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print(mutant: Mutant, hunted: &Hunted) {
    let meant = match Means::of(mutant) {
        Means::Seeds => "seeds",
        Means::Scenario => "scenario",
        Means::Search => "search",
    };
    let count = |it: usize| format!("{it}/{}", hunted.hunts.len());
    let caught = count(hunted.catches().count());
    let (by_seed, runs) = match hunted.mean_runs() {
        Some(runs) => (count(hunted.by_seed()), format!("{runs:.1}")),
        None => ("-".to_owned(), "-".to_owned()),
    };
    let mut by = BTreeMap::<String, u64>::new();
    for it in hunted.catches() {
        let name = match it.by {
            CatchBy::Seed(_) => it.judge.to_owned(),
            CatchBy::Scenario(name) => format!("scenario {name}"),
            CatchBy::Search => "search".to_owned(),
        };
        *by.entry(name).or_default() += 1;
    }
    let by: Vec<_> = by.iter().map(|(name, count)| format!("{name} x{count}")).collect();
    let (name, by) = (mutant.as_str(), by.join(", "));
    println!("{name:<28} {meant:<9} {caught:>6} {by_seed:>7} {runs:>7}  {by}");
    if let Some(it) = hunted.catches().next() {
        let what: String = it.what.chars().take(200).collect();
        println!("  {}: {what}", it.replay(mutant));
    }
}
