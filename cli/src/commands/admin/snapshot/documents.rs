//! What the snapshot commands show: the answers of nodes as documents, and as rows of tables. Pure.

use std::time::Duration;

use model::Hlc;
use proto::v1;
use serde::Serialize;

use super::{
    super::{spell_hash, spell_id},
    Answer,
};
use crate::{
    output::Paint,
    table::{Cell, Table},
    values::{spell_bytes, spell_count, spell_time},
};

/// A snapshot of one node.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct SnapshotDocument {
    pub(super) name: String,
    created_at_ms: u64,
    cluster_id: String,
    node_id: String,
    storage_id: String,
    datacenter: String,
    rack: String,
    metadata_sequence: u64,
    layout_hash: String,
    keyspaces: Vec<String>,
    /// No record in it has a newer stamp. Spelled as in versions: as a number it would be rounded by
    /// what reads JSON numbers as floating point.
    clock: String,
    files: u64,
    bytes: u64,
    software_version: String,
    /// Why its manifest says nothing.
    problem: Option<String>,
}

/// What one node answered to a call that changes its snapshots.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeDocument {
    address: String,
    /// `created`, `deleted` or `failed`.
    outcome: &'static str,
    snapshot: Option<SnapshotDocument>,
    error: Option<ErrorDocument>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct ErrorDocument {
    reason: &'static str,
    message: String,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct CallDocument<'a> {
    pub(super) snapshot: &'a str,
    pub(super) nodes: Vec<NodeDocument>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct ListDocument<'a> {
    pub(super) address: &'a str,
    snapshots_max: Option<u32>,
    pub(super) snapshots: Vec<SnapshotDocument>,
    error: Option<ErrorDocument>,
}

/// What the verification on one node came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    Whole,
    Damaged,
    Failed,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct VerifyDocument<'a> {
    pub(super) address: &'a str,
    pub(super) verdict: Verdict,
    files: u64,
    bytes: u64,
    findings: Vec<FindingDocument>,
    findings_left_out: u64,
    error: Option<ErrorDocument>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct FindingDocument {
    file: String,
    problem: String,
    detail: String,
}

impl ErrorDocument {
    fn of<T>(answer: &Answer<T>) -> Option<Self> {
        let error = answer.result.as_ref().err()?;
        let (reason, message) = (error.reason().as_str(), error.message().to_owned());
        Some(Self { reason, message })
    }
}

impl SnapshotDocument {
    pub(super) fn new(wire: &v1::Snapshot) -> Self {
        Self {
            name: wire.name.clone(),
            created_at_ms: wire.created_at_ms,
            cluster_id: spell_id(&wire.cluster_id),
            node_id: spell_id(&wire.node_id),
            storage_id: spell_id(&wire.storage_id),
            datacenter: wire.datacenter.clone(),
            rack: wire.rack.clone(),
            metadata_sequence: wire.metadata_sequence,
            layout_hash: spell_hash(wire.layout_hash),
            keyspaces: wire.keyspaces.clone(),
            clock: Hlc(wire.clock).to_string(),
            files: wire.files,
            bytes: wire.bytes,
            software_version: wire.software_version.clone(),
            problem: Some(wire.problem.clone()).filter(|it| !it.is_empty()),
        }
    }

    pub(super) fn cells(&self, address: &str) -> Vec<Cell> {
        if let Some(problem) = &self.problem {
            let said = [Cell::painted(Paint::Bad, problem.as_str())];
            let dashes = ["-", "-", "-", "-"].map(Cell::from);
            return [self.name.as_str().into(), address.into()]
                .into_iter()
                .chain(dashes)
                .chain(said)
                .collect();
        }
        vec![
            self.name.as_str().into(),
            address.into(),
            spell_time(Duration::from_millis(self.created_at_ms)).into(),
            spell_count(self.files).into(),
            spell_bytes(self.bytes).into(),
            self.keyspaces.join(",").into(),
            self.storage_id.as_str().into(),
        ]
    }
}

impl NodeDocument {
    pub(super) fn new<T>(
        answer: &Answer<T>,
        done: &'static str,
        snapshot: impl Fn(&T) -> Option<SnapshotDocument>,
    ) -> Self {
        Self {
            address: answer.address.clone(),
            outcome: if answer.result.is_ok() { done } else { "failed" },
            snapshot: answer.result.as_ref().ok().and_then(snapshot),
            error: ErrorDocument::of(answer),
        }
    }

    pub(super) fn cells(&self) -> [Cell; 4] {
        let dash = || "-".to_owned();
        let files = self.snapshot.as_ref().map_or_else(dash, |it| spell_count(it.files));
        let bytes = self.snapshot.as_ref().map_or_else(dash, |it| spell_bytes(it.bytes));
        let outcome = match &self.error {
            None => Cell::painted(Paint::Good, self.outcome),
            error => error_cell(error.as_ref()),
        };
        [self.address.as_str().into(), files.into(), bytes.into(), outcome]
    }
}

impl<'a> ListDocument<'a> {
    pub(super) fn new(answer: &'a Answer<v1::ListSnapshotsResponse>) -> Self {
        let listed = answer.result.as_ref().ok();
        let snapshots = listed.map(|it| it.snapshots.iter().map(SnapshotDocument::new).collect());
        Self {
            address: &answer.address,
            snapshots_max: listed.map(|it| it.snapshots_max),
            snapshots: snapshots.unwrap_or_default(),
            error: ErrorDocument::of(answer),
        }
    }
}

impl<'a> VerifyDocument<'a> {
    pub(super) fn new(answer: &'a Answer<v1::SnapshotReport>) -> Self {
        let report = answer.result.as_ref().ok();
        let snapshot = report.and_then(|it| it.snapshot.as_ref());
        let findings = report.map(|it| it.findings.as_slice()).unwrap_or_default();
        Self {
            address: &answer.address,
            verdict: match report {
                None => Verdict::Failed,
                Some(it) if it.findings.is_empty() => Verdict::Whole,
                Some(_) => Verdict::Damaged,
            },
            files: snapshot.map_or(0, |it| it.files),
            bytes: snapshot.map_or(0, |it| it.bytes),
            findings: findings.iter().map(FindingDocument::new).collect(),
            findings_left_out: report.map_or(0, |it| it.findings_left_out),
            error: ErrorDocument::of(answer),
        }
    }

    pub(super) fn rows(&self, table: &mut Table) {
        let address = || Cell::from(self.address);
        match self.verdict {
            Verdict::Whole => {
                let (files, bytes) = (spell_count(self.files), spell_bytes(self.bytes));
                let whole = Cell::painted(Paint::Good, "whole");
                let detail = format!("{files} files, {bytes}");
                table.row([address(), whole, "-".into(), "-".into(), detail.into()]);
            }
            Verdict::Damaged => {
                for it in &self.findings {
                    table.row([
                        address(),
                        Cell::painted(Paint::Bad, "damaged"),
                        it.file.as_str().into(),
                        it.problem.as_str().into(),
                        it.detail.as_str().into(),
                    ]);
                }
                if self.findings_left_out > 0 {
                    let more = format!("and {} more", spell_count(self.findings_left_out));
                    let cells = [address(), "damaged".into(), "-".into(), "-".into(), more.into()];
                    table.row(cells);
                }
            }
            Verdict::Failed => {
                let error = error_cell(self.error.as_ref());
                table.row([address(), "failed".into(), "-".into(), "-".into(), error]);
            }
        }
    }
}

impl FindingDocument {
    pub(super) fn new(wire: &v1::SnapshotFinding) -> Self {
        let problem = wire.problem().as_str_name().trim_start_matches("SNAPSHOT_PROBLEM_");
        Self {
            file: wire.path.clone(),
            problem: problem.to_lowercase(),
            detail: wire.detail.clone(),
        }
    }
}

fn error_cell(error: Option<&ErrorDocument>) -> Cell {
    let text = error.map(|it| format!("{}: {}", it.reason, it.message)).unwrap_or_default();
    Cell::painted(Paint::Bad, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_spelled_as_in_versions() {
        let clock = Hlc::from_ms(1_795_000_000_000).0 | 7;
        assert!(clock > 1 << 53, "beyond what a double holds");
        let wire = v1::Snapshot { clock, ..v1::Snapshot::default() };
        let it = serde_json::to_value(SnapshotDocument::new(&wire)).unwrap();
        assert_eq!(it["clock"], "1795000000000.7");
    }
}
