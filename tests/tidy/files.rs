//! What no file of the checkout may hold, and how long a source file may get.

use crate::{
    assert_none,
    tree::{File, Tree},
};

/// Lines of production code in one file. Longer ones hold more than one idea.
const LINES_MAX: usize = 500;

/// Signs of unfinished work. Spelled in halves, since this file is checked too.
const LEFTOVERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("db", "g!("),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
];

/// Paths that exist on one machine only.
const MACHINE_PATHS: &[&str] =
    &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/Use", "rs/")];

fn leftovers(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        let signs = LEFTOVERS.iter().chain(MACHINE_PATHS).filter(|it| line.contains(**it));
        complaints.extend(signs.map(|it| format!("{}:{}: {it}", file.path, number + 1)));
    }
    complaints
}

fn too_long(file: &File) -> Option<String> {
    let lines = file.production().lines().count();
    let message = format!("{}: {lines} production lines, {LINES_MAX} at most", file.path);
    (lines > LINES_MAX && !file.is_test()).then_some(message)
}

fn misplaced(file: &File) -> Option<String> {
    let message = format!("{}: name it after its folder, beside it", file.path);
    file.path.ends_with("/mod.rs").then_some(message)
}

fn sample(path: &str, text: &str) -> File {
    File { path: path.to_owned(), text: text.to_owned() }
}

#[test]
fn nothing_is_left_over() {
    for sign in LEFTOVERS.iter().chain(MACHINE_PATHS) {
        assert_eq!(leftovers(&sample("a.rs", &format!("one\nlet it = {sign}x);"))).len(), 1);
    }
    assert_eq!(leftovers(&sample("a.rs", "the work/ of a method todo()")), [""; 0]);

    let tree = Tree::read();
    assert_none(&tree.files.iter().flat_map(leftovers).collect::<Vec<_>>());
}

#[test]
fn files_hold_one_idea() {
    let long = "let line = 1;\n".repeat(LINES_MAX + 1);
    assert!(too_long(&sample("model/src/a.rs", &long)).is_some());
    assert!(too_long(&sample("model/src/a/tests.rs", &long)).is_none());
    let tested = format!("fn a() {{}}\n\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    assert!(too_long(&sample("model/src/a.rs", &tested)).is_none());

    assert_none(&Tree::read().rust("").filter_map(too_long).collect::<Vec<_>>());
}

#[test]
fn modules_are_named_after_their_folder() {
    assert!(misplaced(&sample("model/src/layout/mod.rs", "")).is_some());
    assert_none(&Tree::read().rust("").filter_map(misplaced).collect::<Vec<_>>());
}
