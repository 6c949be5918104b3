//! What pure code may not name: whatever would make two runs of it differ.

use crate::{assert_none, documents, imports, tree::Tree};

/// Words that no pure crate says outside its tests and comments.
const FORBIDDEN_WORDS: &[(&str, &str)] = &[
    ("tokio", "the runtime belongs to node/src/io"),
    ("tonic", "the wire belongs to proto"),
    ("prost", "the wire belongs to proto"),
    ("rand", "randomness is an argument"),
    ("Instant", "time is an argument"),
    ("SystemTime", "time is an argument"),
    ("HashMap", "its order differs from run to run"),
    ("HashSet", "its order differs from run to run"),
    ("Mutex", "a machine belongs to its caller"),
    ("RwLock", "a machine belongs to its caller"),
    ("TcpStream", "sockets belong to node/src/io"),
    ("TcpListener", "sockets belong to node/src/io"),
    ("UdpSocket", "sockets belong to node/src/io"),
    ("ToSocketAddrs", "it asks the resolver"),
];

/// Modules of std that no pure crate uses. Addresses of `std::net` are plain data, and allowed.
const FORBIDDEN_MODULES: &[&str] = &["env", "fs", "io", "os", "process", "thread"];

/// What only node/src/io may say of all of node. Clippy bans more, by its types, wherever the reason
/// is not given.
const SEAMS: &[&str] =
    &["SystemTime", "TcpListener", "TcpStream", "UdpSocket", "thread::spawn", "tokio::net"];

fn impure(path: &str, text: &str) -> Vec<String> {
    let code = without_comments(text);
    let mut complaints = Vec::new();
    for (word, reason) in FORBIDDEN_WORDS {
        if documents::words(&code).any(|it| it == *word) {
            complaints.push(format!("{path} names {word}: {reason}"));
        }
    }
    let modules = std_modules(&code);
    for module in FORBIDDEN_MODULES.iter().filter(|it| modules.contains(&(**it).to_owned())) {
        complaints.push(format!("{path} names std::{module}: it reaches for the world"));
    }
    complaints
}

fn across_seams(path: &str, text: &str) -> Vec<String> {
    let code = without_comments(text);
    let named = SEAMS.iter().filter(|it| code.contains(**it));
    named.map(|it| format!("{path} names {it}: it belongs to node/src/io")).collect()
}

/// The modules of std that a text names, in groups too: `use std::{fs, io::Read};`.
fn std_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, prefix) in code.match_indices("std::") {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => modules.extend(documents::words(rest).next().map(str::to_owned)),
            Some(group) => modules.extend(heads(group)),
        }
    }
    modules
}

/// The first word of each item of a group, whose opening brace has been taken off.
fn heads(group: &str) -> Vec<String> {
    let mut depth = 1;
    let mut items = vec![String::new()];
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => items.push(String::new()),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        items.last_mut().expect("starts with one").push(character);
    }
    items.iter().filter_map(|it| documents::words(it).next().map(str::to_owned)).collect()
}

fn without_comments(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn pure_crates_are_pure() {
    for bad in [
        "use tokio::time::Duration;",
        "use std::{fmt, time::{Duration, Instant}};",
        "use std::{collections::BTreeMap, fs};",
        "let it = std::net::TcpStream::connect(\"a\");",
        "let coin: bool = rand::random();",
        "use std::sync::Mutex;",
    ] {
        assert_eq!(impure("sample.rs", bad).len(), 1, "{bad}");
    }
    let good = "use std::{fmt, net::SocketAddr, time::Duration}; // unlike tokio's\n/// Not an Instant.\nlet random = 1;";
    assert_none(&impure("sample.rs", good));

    let tree = Tree::read();
    let folders = imports::PURE.iter().map(|it| format!("{it}/src/"));
    let folders: Vec<_> = folders.collect();
    let files = folders.iter().flat_map(|it| tree.rust(it)).filter(|it| !it.is_test());
    assert_none(&files.flat_map(|it| impure(&it.path, it.production())).collect::<Vec<_>>());
}

#[test]
fn node_reaches_for_the_world_in_one_place() {
    assert_eq!(across_seams("sample.rs", "let now = SystemTime::now();").len(), 1);
    assert_none(&across_seams("sample.rs", "/// As `SystemTime::now()` would.\nfn now() {}"));

    let tree = Tree::read();
    let files = tree.rust("node/src/").filter(|it| !it.path.starts_with("node/src/io"));
    let files = files.filter(|it| !it.is_test());
    assert_none(&files.flat_map(|it| across_seams(&it.path, it.production())).collect::<Vec<_>>());
}
