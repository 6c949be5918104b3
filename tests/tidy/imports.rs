//! Who may depend on whom, and on what from outside.

use crate::{
    assert_none, documents, manifest,
    manifest::{Manifest, list},
    tree::Tree,
};

/// The drawing of ARCHITECTURE.md: each crate, and those of ours that it may import.
pub(crate) const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("proto", &["model"]),
    ("coordinator", &["model"]),
    ("antientropy", &["model"]),
    ("node", &["antientropy", "coordinator", "model", "proto"]),
    ("client", &["model", "proto"]),
    ("cli", &["client", "model", "node", "proto"]),
    ("sim", &["antientropy", "client", "coordinator", "model", "node", "proto"]),
    ("tests", &["client", "model", "proto"]),
];

/// Crates that decide, and never touch the world.
pub(crate) const PURE: &[&str] = &["model", "coordinator", "antientropy"];

/// What pure crates may use from outside: data structures, hashes and errors.
const PURE_DEPENDENCIES: &[&str] =
    &["bytes", "crc32c", "siphasher", "slab", "smallvec", "thiserror", "uuid", "xxhash-rust"];

/// Dependencies that only generated code names.
const NAMED_BY_GENERATED_CODE: &[(&str, &str)] = &[("proto", "tonic-prost")];

/// Where each dependency has its line of reason.
const REASONS: &str = "docs/decisions/0006-dependencies.md";

fn forbidden_arrows(crates: &[Manifest]) -> Vec<String> {
    let mut complaints = Vec::new();
    for it in crates {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == it.name) else {
            complaints.push(format!("{}: not in the drawing of who may import whom", it.name));
            continue;
        };
        let ours = it.all().filter(|name| MAY_IMPORT.iter().any(|(ours, _)| ours == name));
        for name in ours.filter(|name| !allowed.contains(&name.as_str())) {
            complaints.push(format!("{} must not import {name}", it.name));
        }
        if PURE.contains(&it.name.as_str()) {
            let known = |name: &str| PURE_DEPENDENCIES.contains(&name) || allowed.contains(&name);
            for name in it.dependencies.iter().filter(|name| !known(name)) {
                complaints.push(format!("{} is pure and must not use {name}", it.name));
            }
        }
    }
    complaints
}

/// Dependencies whose name stands in none of the crate's sources.
fn unused(it: &Manifest, sources: &[&str]) -> Vec<String> {
    let generated = |name: &str| NAMED_BY_GENERATED_CODE.contains(&(it.name.as_str(), name));
    let named = |name: &str| {
        let name = name.replace('-', "_");
        sources.iter().any(|text| documents::words(text).any(|word| word == name))
    };
    let unused = it.all().filter(|name| !named(name) && !generated(name));
    unused.map(|name| format!("{}/Cargo.toml: {name} is not used", it.name)).collect()
}

fn without_reason(root: &str, reasons: &str) -> Vec<String> {
    let outside = manifest::workspace_dependencies(root).into_iter();
    let outside = outside.filter(|name| !MAY_IMPORT.iter().any(|(ours, _)| ours == name));
    let unexplained = outside.filter(|name| !reasons.contains(&format!("| `{name}` |")));
    unexplained.map(|name| format!("{name}: no line of reason in {REASONS}")).collect()
}

#[test]
fn the_drawing_is_kept() {
    let bad = Manifest::parse("coordinator", "[dependencies]\nproto.workspace = true\n");
    assert_eq!(forbidden_arrows(&[bad]).len(), 2); // a forbidden arrow, and not pure
    let bad = Manifest::parse("client", "[dev-dependencies]\nnode.workspace = true\n");
    assert_eq!(forbidden_arrows(&[bad]), ["client must not import node"]);
    let bad = Manifest::parse("model", "[dependencies]\nrand.workspace = true\n");
    assert_eq!(forbidden_arrows(&[bad]), ["model is pure and must not use rand"]);
    assert_eq!(forbidden_arrows(&[Manifest::parse("extras", "")]).len(), 1);

    assert_none(&forbidden_arrows(&Tree::read().members()));
}

#[test]
fn the_drawing_has_no_cycle() {
    for (at, (name, allowed)) in MAY_IMPORT.iter().enumerate() {
        let before = |other: &&str| MAY_IMPORT[..at].iter().any(|(it, _)| it == other);
        assert!(allowed.iter().all(before), "{name} imports something below it");
    }
}

/// Cargo gives all crates that it builds together the features that any of them asks for: a build
/// that names no package must not take the simulator's deliberate bugs along.
fn built_with_mutants(root: &str) -> Vec<String> {
    let (members, default) = (list(root, "members"), list(root, "default-members"));
    let served = members.into_iter().filter(|it| !["sim", "tests"].contains(it));
    if served.eq(default) {
        return Vec::new();
    }
    vec!["Cargo.toml: default-members are to be all members but sim and tests".to_owned()]
}

#[test]
fn what_serves_is_built_without_deliberate_bugs() {
    let bad = "\nmembers = [\"model\", \"sim\"]\ndefault-members = [\"model\", \"sim\"]\n";
    assert_eq!(built_with_mutants(bad).len(), 1);

    let tree = Tree::read();
    assert_none(&built_with_mutants(tree.text("Cargo.toml")));
    let manifests = tree.files.iter().filter(|it| it.path.ends_with("Cargo.toml"));
    let asking = manifests.filter(|it| it.text.contains("\"mutants\""));
    assert_eq!(asking.map(|it| &it.path).collect::<Vec<_>>(), ["sim/Cargo.toml"]);
}

#[test]
fn every_crate_takes_the_lints() {
    assert!(!Manifest::parse("sample", "[lints]\n[dependencies]\n").takes_lints);
    let without = Tree::read().members().into_iter().filter(|it| !it.takes_lints);
    let complaints = without.map(|it| format!("{}: lacks `[lints] workspace = true`", it.name));
    assert_none(&complaints.collect::<Vec<_>>());
}

#[test]
fn every_dependency_is_used() {
    let bad = Manifest::parse("sample", "[dependencies]\nserde_json = \"1\"\nfoca = \"2\"\n");
    assert_eq!(unused(&bad, &["use serde_json::Value;"]), ["sample/Cargo.toml: foca is not used"]);

    let tree = Tree::read();
    let mut complaints = Vec::new();
    let mut used = Vec::new();
    for it in tree.members() {
        let folder = format!("{}/", it.name);
        let sources: Vec<_> = tree.rust(&folder).map(|it| it.text.as_str()).collect();
        complaints.extend(unused(&it, &sources));
        used.extend(it.all().cloned());
    }
    let listed = manifest::workspace_dependencies(tree.text("Cargo.toml"));
    let idle = listed.iter().filter(|name| !used.iter().any(|it| it == *name));
    complaints.extend(idle.map(|name| format!("Cargo.toml: no crate uses {name}")));
    assert_none(&complaints);
}

#[test]
fn every_dependency_has_its_reason() {
    let root =
        "[workspace.dependencies]\nbytes = \"1\"\nfoca = \"2\"\nmodel = {}\n\n[profile.dev]\n";
    let complaints = without_reason(root, "| `bytes` | buffers shared without copies |");
    assert_eq!(complaints, [format!("foca: no line of reason in {REASONS}")]);

    let tree = Tree::read();
    assert_none(&without_reason(tree.text("Cargo.toml"), tree.text(REASONS)));
}
