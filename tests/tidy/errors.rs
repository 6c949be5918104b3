//! docs/errors.md lists every reason a call can fail for, with its code and outcome.

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

#[test]
fn every_reason_is_listed() {
    let row = "| `WRITE_TIMEOUT` | DEADLINE_EXCEEDED | unknown | ask, do not repeat |";
    assert_none(&unlisted(&[Reason::WriteTimeout], row));
    assert_eq!(unlisted(&[Reason::WriteTimeout, Reason::KeyEmpty], row).len(), 1);
    assert_eq!(unlisted(&[Reason::WriteTimeout], &row.replace("unknown", "not applied")).len(), 1);
    assert_eq!(outdated("| `KEY_EMPTY` | x |\n| `GONE` | x |").len(), 1);

    let tree = Tree::read();
    let text = tree.text(DOCUMENT);
    assert_none(&unlisted(Reason::ALL, text));
    assert_none(&outdated(text));
}
