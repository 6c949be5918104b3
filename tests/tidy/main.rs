//! The rules of this workspace that no compiler knows: who may import whom, what pure code may
//! name, how long a file gets, what the documents have to mention.
//!
//! Each rule is a function from text to complaints. It is tried on a bad sample, so that it is
//! known to bite, and then on the tree. Nothing here runs the database.

mod documents;
mod errors;
mod files;
mod imports;
mod manifest;
mod purity;
mod tree;

/// Fails with every complaint at once, one a line.
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
