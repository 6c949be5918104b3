//! What the documents promise about the tree: crates, commands, paths, links, decisions.

use crate::{
    assert_none, imports,
    tree::{File, Tree},
};

/// The words of a text: letters, digits and underscores.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_').filter(|it| !it.is_empty())
}

/// Each crate needs a section of its own, with an invariant, and its row of who may import whom.
fn undescribed(architecture: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, allowed) in imports::MAY_IMPORT {
        let heading = format!("### `{name}/`");
        let section = architecture.split_once(&heading).map(|(_, it)| it);
        let section = section.map(|it| it.split_once("\n#").map_or(it, |(it, _)| it));
        match section {
            None => complaints.push(format!("ARCHITECTURE.md has no heading {heading}")),
            Some(it) if !it.contains("**Invariant**") => {
                complaints.push(format!("ARCHITECTURE.md tells no **Invariant** of {name}"));
            }
            Some(_) => {}
        }
        let allowed: Vec<_> = allowed.iter().map(|it| format!("`{it}`")).collect();
        let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
        let row = format!("| `{name}` | {allowed} |");
        if !architecture.contains(&row) {
            complaints.push(format!("ARCHITECTURE.md lacks the row {row}"));
        }
    }
    complaints
}

/// Paths of ours in code spans, such as `model/src/quorum.rs`, that lead nowhere.
fn dead_paths(file: &File, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let spans = file.text.split('`').skip(1).step_by(2);
    let ours = |it: &&str| {
        let head = it.split('/').next().unwrap_or_default();
        it.contains('/') && imports::MAY_IMPORT.iter().any(|(name, _)| *name == head)
    };
    let plain = |it: &&str| !it.contains([' ', '*', '<', '\n']);
    let dead = spans.filter(ours).filter(plain).filter(|it| !exists(it));
    dead.map(|it| format!("{}: {it} does not exist", file.path)).collect()
}

/// Links to files that do not exist, as seen from the document's own folder.
fn dead_links(file: &File, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let folder = file.path.rsplit_once('/').map_or("", |(it, _)| it);
    let mut complaints = Vec::new();
    for (at, opening) in file.text.match_indices("](") {
        let target = file.text[at + opening.len()..].split([')', '#']).next().unwrap_or_default();
        let outside = target.is_empty() || target.contains("://");
        if !outside && !exists(&resolve(folder, target)) {
            complaints.push(format!("{}: {target} leads nowhere", file.path));
        }
    }
    complaints
}

fn resolve(folder: &str, target: &str) -> String {
    let mut parts: Vec<_> = folder.split('/').filter(|it| !it.is_empty()).collect();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// `make` commands in code whose target the Makefile lacks.
fn unknown_commands(file: &File, makefile: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (at, command) in file.text.match_indices("make ") {
        let starts_code = file.text[..at].ends_with(['`', '\n', '(']) || at == 0;
        let target = file.text[at + command.len()..].split([' ', '`', '\n', ')']).next();
        let target = target.unwrap_or_default();
        let is_target = !target.is_empty() && !target.starts_with('-');
        if starts_code && is_target && !makefile.contains(&format!("\n{target}:")) {
            complaints.push(format!("{}: the Makefile has no target {target}", file.path));
        }
    }
    complaints
}

/// Decisions are numbered from 0001 without gaps, and each says what was decided.
fn misnumbered(decisions: &[(&str, &str)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (index, (name, text)) in decisions.iter().enumerate() {
        let number = format!("{:04}-", index + 1);
        if !name.starts_with(&number) {
            complaints.push(format!("docs/decisions/{name}: {number} comes next"));
        }
        if !text.contains("\n**Decision.**") {
            complaints.push(format!("docs/decisions/{name}: no paragraph **Decision.**"));
        }
    }
    complaints
}

/// Rules of the protocol that comments name and docs/protocol.md does not define.
fn undefined_rules(file: &File, protocol: &str) -> Vec<String> {
    let comments = file.text.lines().filter_map(|it| it.split_once("//").map(|(_, it)| it));
    let named = comments.flat_map(words).filter(|it| is_rule(it));
    let defined =
        |it: &str| protocol.contains(&format!("**{it}.")) || protocol.contains(&format!("**{it},"));
    let undefined = named.filter(|it| !defined(it));
    undefined.map(|it| format!("{}: docs/protocol.md defines no {it}", file.path)).collect()
}

/// `P3`, `F10`, or a counter-example as `CE8`.
fn is_rule(word: &str) -> bool {
    let name = word.trim_end_matches(|it: char| it.is_ascii_digit());
    ["P", "G", "X", "F", "M", "H", "L", "C", "S", "CE"].contains(&name)
        && (1..=2).contains(&(word.len() - name.len()))
}

fn documents(tree: &Tree) -> impl Iterator<Item = &File> {
    tree.files.iter().filter(|it| it.path.ends_with(".md"))
}

#[test]
fn every_crate_is_described() {
    let full: String = imports::MAY_IMPORT.iter().map(|(it, _)| section(it)).collect();
    assert_none(&undescribed(&full));
    let rules = imports::MAY_IMPORT.len();
    assert_eq!(undescribed("").len(), 2 * rules);
    assert_eq!(undescribed(&full.replacen("**Invariant**", "", 1)).len(), 1);

    assert_none(&undescribed(Tree::read().text("ARCHITECTURE.md")));
}

/// What `undescribed` wants to see of one crate.
fn section(name: &str) -> String {
    let (_, allowed) = imports::MAY_IMPORT.iter().find(|(it, _)| *it == name).expect("listed");
    let allowed: Vec<_> = allowed.iter().map(|it| format!("`{it}`")).collect();
    let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
    format!("### `{name}/`\n**Invariant**: some.\n| `{name}` | {allowed} |\n")
}

#[test]
fn paths_and_links_lead_somewhere() {
    let file = File {
        path: "docs/a.md".to_owned(),
        text: "`model/src/gone.rs` `model` `a/b` [x](../gone.md) [y](https://a.b) [z](#here)"
            .to_owned(),
    };
    assert_eq!(dead_paths(&file, |_| false), ["docs/a.md: model/src/gone.rs does not exist"]);
    assert_eq!(dead_links(&file, |_| false), ["docs/a.md: ../gone.md leads nowhere"]);
    assert_none(&dead_links(&file, |it| it == "gone.md"));

    let tree = Tree::read();
    let paths = documents(&tree).flat_map(|it| dead_paths(it, |path| tree.has(path)));
    let links = documents(&tree).flat_map(|it| dead_links(it, |path| tree.has(path)));
    assert_none(&paths.chain(links).collect::<Vec<_>>());
}

#[test]
fn commands_exist() {
    let file = File {
        path: "README.md".to_owned(),
        text: "make demo\n`make tset`, and we make haste\n`make -s env`".to_owned(),
    };
    let complaints = unknown_commands(&file, "\ndemo: release\n");
    assert_eq!(complaints, ["README.md: the Makefile has no target tset"]);

    let tree = Tree::read();
    let makefile = tree.text("Makefile");
    assert_none(
        &documents(&tree).flat_map(|it| unknown_commands(it, makefile)).collect::<Vec<_>>(),
    );
    let readme = tree.text("README.md");
    assert!(readme.contains("make demo") && readme.contains("make test"));
}

#[test]
fn rules_are_defined() {
    let file =
        File { path: "a.rs".to_owned(), text: "fn P9() {} // by P3 and F12, see CE8".to_owned() };
    let complaints = undefined_rules(&file, "**P3.** One stamp.\n**CE8, late.**");
    assert_eq!(complaints, ["a.rs: docs/protocol.md defines no F12"]);

    let tree = Tree::read();
    let protocol = tree.text("docs/protocol.md");
    let code = |it: &&File| it.path.ends_with(".rs") || it.path.ends_with(".proto");
    let ours = tree.files.iter().filter(code).filter(|it| !it.path.starts_with("tests/tidy/"));
    assert_none(&ours.flat_map(|it| undefined_rules(it, protocol)).collect::<Vec<_>>());
}

#[test]
fn decisions_are_numbered() {
    let good = "# 1. It\n\n**Decision.** Yes.\n";
    assert_none(&misnumbered(&[("0001-it.md", good), ("0002-more.md", good)]));
    assert_eq!(misnumbered(&[("0001-it.md", good), ("0003-gap.md", good)]).len(), 1);
    assert_eq!(misnumbered(&[("0001-it.md", "# 1. It\n")]).len(), 1);

    let tree = Tree::read();
    let names = tree.files.iter().filter_map(|it| {
        let name = it.path.strip_prefix("docs/decisions/")?;
        Some((name, it.text.as_str()))
    });
    let decisions: Vec<_> = names.collect();
    assert!(!decisions.is_empty());
    assert_none(&misnumbered(&decisions));
}
