//! The page of guarantees: what each pair of levels promises, who judges it, and what each level
//! could and could not do in every failure that has a name. Written from the runs themselves.

pub mod evidence;
mod promise;

use std::fmt::Write as _;

use evidence::Evidence;
use model::{ConsistencyLevel, Mutant};
use promise::PROMISES;

use crate::{
    scenario::{self, Availability, Plot, tell},
    workload::PROBED,
};

/// Writes the page. Plays every failure: takes about half a minute.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    let row = |page: &mut String, cells: &[&str]| {
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    };
    row(
        &mut page,
        &["written / read at", "promised", "judged by", "mutants, who catches them and where"],
    );
    row(&mut page, &["---"; 4]);
    for it in PROMISES {
        let shown = |mutant: &Mutant| match evidence::of(it.name, *mutant) {
            Some(Evidence { judge, shown, .. }) => format!("{}: {judge}, {shown}", mutant.as_str()),
            None => format!("{}: nobody yet", mutant.as_str()),
        };
        let mutants: Vec<_> = it.mutants.iter().map(shown).collect();
        row(&mut page, &[it.levels, it.promised, &it.judges.join(", "), &mutants.join("; ")]);
    }
    page.push_str(MIDDLE);
    let mut stories = String::new();
    let mut tables = [String::new(), String::new()];
    for scenario in scenario::all() {
        let Plot::Failure(_) = scenario.plot else { continue };
        let _ = writeln!(stories, "- **{}**: {}", scenario.name, scenario.story);
        let told = tell(&scenario, None);
        for (table, inside) in tables.iter_mut().zip([false, true]) {
            let of_side: Vec<_> =
                told.availability.iter().filter(|it| it.inside == inside).collect();
            if of_side.is_empty() {
                continue;
            }
            let cells = PROBED.iter().map(|level| cell(&of_side, *level));
            let cells: Vec<_> = std::iter::once(scenario.name.to_owned()).chain(cells).collect();
            row(table, &cells.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
    page.push_str(&stories);
    let levels: Vec<String> = PROBED.iter().map(ToString::to_string).collect();
    for (table, side) in tables.iter().zip(["the other datacenters", "the datacenter concerned"]) {
        let _ = write!(page, "\nFor clients of {side}:\n\n| | {} |\n", levels.join(" | "));
        let _ = writeln!(page, "|---|{}", "---|".repeat(levels.len()));
        page.push_str(table);
    }
    page
}

/// What one level could do.
fn cell(availability: &[&Availability], level: ConsistencyLevel) -> String {
    let Some(it) = availability.iter().find(|it| it.level == level) else { return String::new() };
    let word = |(answered, called): (u64, u64)| match answered {
        _ if called == 0 => None,
        0 => Some("no"),
        _ if answered == called => Some("yes"),
        _ => Some("partly"),
    };
    match (word(it.writes), word(it.reads)) {
        (Some(writes), Some(reads)) if writes != reads => format!("W {writes}, R {reads}"),
        (Some(word), _) | (None, Some(word)) => word.to_owned(),
        (None, None) => String::new(),
    }
}

const HEAD: &str = "# Guarantees

What Quorate promises by the levels of writes and reads, and what each level does while datacenters fail. This
page is written by `make guarantees` from simulated runs; a test writes it again and compares.

## What pairs of levels promise

For one key, with synced commits (the only mode there is). Judges are the files of `sim/src/checker/` and
`sim/src/inspect.rs`. A mutant is a deliberate bug ([simulation.md](simulation.md)) that a judge of this row has
caught on keys of this row: `quorate-sim run --seed 2 --mutant half-is-a-quorum` shows one again, and a test shows
them all. Where a scenario is named, its script is the judge. Counts and mixed levels are judged as the last pair;
the weaker line counts for a key that is used at several.

Batches promise this for each of their keys, scans for each of their rows, and neither promises anything for its
keys together: no atomicity, no order, no snapshot (S4). ANY acknowledges a durable hint and promises convergence
alone.

";

const MIDDLE: &str = "
## What goes on while a datacenter fails

Three datacenters of three nodes, three replicas in each, clients in all. Levels are judged while everybody has
noticed the failure: *yes*, all calls were answered; *no*, none was; *partly*, some were. A `5` is a raw count. A
call that cannot be met is refused before anything is sent, as `NOT_ENOUGH_REPLICAS`; one that was under way when
the failure came may end with an unknown outcome.

";
