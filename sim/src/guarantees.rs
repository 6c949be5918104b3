//! The page of guarantees: what each pair of levels promises, who judges it, and what each level
//! could and could not do in every failure that has a name. Written from the runs themselves.

use std::fmt::Write as _;

use model::{ConsistencyLevel, Mutant};

use crate::{
    scenario::{self, Availability, Plot, tell},
    workload::PROBED,
};

/// What keys of a pair of levels promise, and who judges it.
struct Promise {
    levels: &'static str,
    promised: &'static str,
    judges: &'static [&'static str],
    mutants: &'static [Mutant],
}

const PROMISES: &[Promise] = &[
    Promise {
        levels: "QUORUM or ALL / QUORUM or ALL",
        promised: "linearizable: each put, delete and get takes effect at one instant between its call and its \
                  answer; a write of unknown outcome may take effect later, once",
        judges: &["linearizable", "acked", "deletes", "monotonic", "unknown"],
        mutants: &[Mutant::NoConfirmation, Mutant::SupersededConfirms, Mutant::HalfIsAQuorum],
    },
    Promise {
        levels: "LOCAL_QUORUM / LOCAL_QUORUM, clients of one datacenter",
        promised: "linearizable in that datacenter; what others write there is a write that may take effect \
                  at any time",
        judges: &["linearizable", "acked"],
        mutants: &[Mutant::LocalCountsRemote],
    },
    Promise {
        levels: "EACH_QUORUM / EACH_QUORUM",
        promised: "linearizable",
        judges: &["linearizable", "acked"],
        mutants: &[Mutant::EachIsLocal],
    },
    Promise {
        levels: "EACH_QUORUM / LOCAL_QUORUM",
        promised: "regular: no acknowledged write is missed and writes keep their order; a write under way may \
                  be read here and not yet there",
        judges: &["regular", "acked", "deletes"],
        mutants: &[Mutant::EachIsLocal, Mutant::HalfIsAQuorum],
    },
    Promise {
        levels: "LOCAL_QUORUM / EACH_QUORUM",
        promised: "an acknowledged write is read, unless a higher clock overwrote it",
        judges: &["acked", "session"],
        mutants: &[Mutant::ClientClockIgnored],
    },
    Promise {
        levels: "ALL / ONE",
        promised: "regular; not monotonic while a write is under way",
        judges: &["regular", "acked"],
        mutants: &[Mutant::CorruptIsAbsent, Mutant::HintCountsAsAnswer],
    },
    Promise {
        levels: "QUORUM / ONE, and all other pairs",
        promised: "replicas converge, and each client's own writes keep their order",
        judges: &["replicas-agree", "versions-rise", "session"],
        mutants: &[Mutant::RowCacheStale, Mutant::GroupJudgedBlindly],
    },
    Promise {
        levels: "keys with a time to live",
        promised: "as above; around the moment of expiry, within the bound of clock offsets, either answer is \
                  given, and never the value after its absence",
        judges: &["expiry"],
        mutants: &[Mutant::ExpiryByOwnClock],
    },
];

/// Writes the page. Plays every failure: takes about half a minute.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    let row = |page: &mut String, cells: &[&str]| {
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    };
    row(&mut page, &["written / read at", "promised", "judged by", "mutants that show it"]);
    row(&mut page, &["---"; 4]);
    for it in PROMISES {
        let mutants: Vec<_> = it.mutants.iter().map(|it| it.as_str()).collect();
        row(&mut page, &[it.levels, it.promised, &it.judges.join(", "), &mutants.join(", ")]);
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

For one key, with synced commits. Judges are the files of `sim/src/checker/` and `sim/src/inspect.rs`; a mutant is
a deliberate bug that these judges have caught ([simulation.md](simulation.md)). Batches promise this for each of
their keys, scans for each of their rows, and neither promises anything for its keys together.

";

const MIDDLE: &str = "
## What goes on while a datacenter fails

Three datacenters of three nodes, three replicas in each, clients in all. Levels are judged while everybody has
noticed the failure: *yes*, all calls were answered; *no*, none was; *partly*, some were. A `5` is a raw count. A
call that cannot be met is refused before anything is sent, as `NOT_ENOUGH_REPLICAS`; one that was under way when
the failure came may end with an unknown outcome.

";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_judge_that_is_named_exists() {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        let inspect = std::fs::read_to_string(format!("{source}/inspect.rs")).unwrap();
        for judge in PROMISES.iter().flat_map(|it| it.judges) {
            let file = std::fs::read_to_string(format!("{source}/checker/{judge}.rs"));
            let (checker, name) = (file.unwrap_or_default(), format!("\"{judge}\""));
            assert!(checker.contains(&name) || inspect.contains(&name), "who is {judge}?");
        }
    }
}
