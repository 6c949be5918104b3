//! The checkout as text. Reads it once per rule; knows nothing of what the rules want.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::manifest::{Manifest, list};

/// Folders that hold no text of ours.
const SKIPPED: &[&str] = &[".git", "target", "__pycache__"];

/// One file: its path from the root, with slashes, and its text.
pub(crate) struct File {
    /// Such as `model/src/lib.rs`.
    pub(crate) path: String,
    /// All of it.
    pub(crate) text: String,
}

impl File {
    /// The text before a trailing `#[cfg(test)]` module: what runs in production.
    pub(crate) fn production(&self) -> &str {
        production(&self.text)
    }

    /// True for files that hold nothing but tests.
    pub(crate) fn is_test(&self) -> bool {
        let mut folders = self.path.split('/');
        self.path.ends_with("/tests.rs") || folders.any(|it| it == "tests")
    }
}

/// The checkout.
pub(crate) struct Tree {
    /// Every text file, by path.
    pub(crate) files: Vec<File>,
}

impl Tree {
    /// Reads the checkout that cargo was called in.
    pub(crate) fn read() -> Self {
        let package = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for tests");
        let root = Path::new(&package).parent().expect("a package lies in the workspace's folder");
        let mut tree = Self { files: Vec::new() };
        tree.collect(root, root);
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        tree
    }

    fn collect(&mut self, root: &Path, folder: &Path) {
        for path in entries(folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    self.collect(root, &path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let relative = path.strip_prefix(root).expect("found below the root");
                self.files.push(File { path: relative.to_string_lossy().into_owned(), text });
            }
        }
    }

    /// A file's text. Panics if there is no such file.
    pub(crate) fn text(&self, path: &str) -> &str {
        let file = self.files.iter().find(|it| it.path == path);
        &file.unwrap_or_else(|| panic!("{path} is missing")).text
    }

    /// True if a file or a folder has this path.
    pub(crate) fn has(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        self.files.iter().any(|it| it.path == path || it.path.starts_with(&folder))
    }

    /// The Rust files below a folder; all of them for "".
    pub(crate) fn rust<'a>(&'a self, folder: &'a str) -> impl Iterator<Item = &'a File> {
        let below = move |it: &&File| it.path.starts_with(folder) && it.path.ends_with(".rs");
        self.files.iter().filter(below)
    }

    /// The manifests of all members of the workspace, in the root manifest's order.
    pub(crate) fn members(&self) -> Vec<Manifest> {
        let names = list(self.text("Cargo.toml"), "members").into_iter();
        names.map(|it| Manifest::parse(it, self.text(&format!("{it}/Cargo.toml")))).collect()
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|it| panic!("{}: {it}", folder.display()));
    entries.map(|it| it.expect("a readable folder").path()).collect()
}

fn production(text: &str) -> &str {
    match text.rfind("\n#[cfg(test)]\n") {
        Some(at) if text[at..].trim_start().lines().nth(1).is_some_and(is_module) => &text[..=at],
        _ => text,
    }
}

fn is_module(line: &str) -> bool {
    line.starts_with("mod ") || line.starts_with("#[path")
}

#[test]
fn production_ends_at_the_trailing_tests() {
    assert_eq!(production("fn a() {}\n\n#[cfg(test)]\nmod tests {\n}\n"), "fn a() {}\n\n");
    assert_eq!(
        production("#[cfg(test)]\nuse x;\nfn a() {}\n"),
        "#[cfg(test)]\nuse x;\nfn a() {}\n"
    );
}
