//! docs/errors.md lists every reason a call can fail for, with its code and outcome, and those that the
//! command line alone gives.

use std::collections::BTreeSet;

use proto::{CallOutcome, Reason};

use crate::{assert_none, tree::Tree};

const DOCUMENT: &str = "docs/errors.md";

fn unlisted(reasons: &[Reason], text: &str) -> Vec<String> {
    let missing = reasons.iter().map(|it| row_start(*it)).filter(|it| !text.contains(it));
    missing.map(|it| format!("{DOCUMENT} lacks the row {it}")).collect()
}

fn outdated(text: &str) -> Vec<String> {
    let rows = text.lines().filter_map(|it| it.strip_prefix("| `")?.split('`').next());
    let unknown = rows.filter(|it| Reason::from_name(it) == Reason::Other && *it != "OTHER");
    unknown.map(|it| format!("{DOCUMENT} lists {it}, which is no reason")).collect()
}

fn row_start(reason: Reason) -> String {
    let outcome = match reason.outcome() {
        CallOutcome::NotApplied => "not applied",
        CallOutcome::Unknown => "unknown",
    };
    let code = upper_snake(&format!("{:?}", reason.code()));
    format!("| `{}` | {code} | {outcome} |", reason.as_str())
}

/// As gRPC spells its codes: `DeadlineExceeded` is `DEADLINE_EXCEEDED`.
fn upper_snake(name: &str) -> String {
    let mut spelled = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !spelled.is_empty() {
            spelled.push('_');
        }
        spelled.push(character.to_ascii_uppercase());
    }
    spelled
}

/// Where the reasons of the command line begin.
const OF_COMMANDS: &str = "\n## Of the command line\n";

/// The reasons that a source names where it makes a failure.
fn made(source: &str) -> impl Iterator<Item = &str> {
    let after = source.split("Failure::new(").skip(1);
    after.filter_map(|it| it.trim_start().strip_prefix('"')?.split('"').next())
}

/// Reasons of the command line that the document lacks, and those that it lists and no source names.
fn of_commands(sources: &[&str], document: &str) -> Vec<String> {
    let rows = document.lines().filter(|it| it.starts_with("| `"));
    let cells = rows.filter_map(|it| it.split('|').nth(1));
    let listed: BTreeSet<_> = cells.flat_map(|it| it.split('`').skip(1).step_by(2)).collect();
    let made: BTreeSet<_> = sources.iter().flat_map(|it| made(it)).collect();
    let is_listed = |it: &&&str| listed.contains(**it);
    let missing = made.iter().filter(|it| !is_listed(it) && Reason::from_name(it) == Reason::Other);
    let missing = missing.map(|it| format!("{DOCUMENT} lacks the reason {it}"));
    let named = |it: &&&str| sources.iter().any(|source| source.contains(&format!("\"{it}\"")));
    let unknown = listed.iter().filter(|it| !named(it));
    missing
        .chain(unknown.map(|it| format!("{DOCUMENT} lists {it}, which no command says")))
        .collect()
}

#[test]
fn every_reason_of_the_command_line_is_listed() {
    let sources = ["Failure::new(\n    \"GONE\", x) Failure::new(\"KEY_EMPTY\", x)", "\"FILE\""];
    assert_none(&of_commands(&sources, "| `GONE`, `FILE` | 1 |"));
    assert_eq!(of_commands(&sources, "| `FILE` | `GONE` |").len(), 1);
    assert_eq!(of_commands(&sources, "| `GONE`, `LOST` |").len(), 1);

    let tree = Tree::read();
    let sources: Vec<_> = tree.rust("cli/src/").map(|it| it.production()).collect();
    let document = tree.text(DOCUMENT).split(OF_COMMANDS).nth(1);
    assert_none(&of_commands(&sources, document.expect("a section of its own")));
}

#[test]
fn every_reason_is_listed() {
    let row = "| `WRITE_TIMEOUT` | DEADLINE_EXCEEDED | unknown | ask, do not repeat |";
    assert_none(&unlisted(&[Reason::WriteTimeout], row));
    assert_eq!(unlisted(&[Reason::WriteTimeout, Reason::KeyEmpty], row).len(), 1);
    assert_eq!(unlisted(&[Reason::WriteTimeout], &row.replace("unknown", "not applied")).len(), 1);
    assert_eq!(outdated("| `KEY_EMPTY` | x |\n| `GONE` | x |").len(), 1);

    let tree = Tree::read();
    let text = tree.text(DOCUMENT).split(OF_COMMANDS).next().expect("a first part");
    assert_none(&unlisted(Reason::ALL, text));
    assert_none(&outdated(text));
}
