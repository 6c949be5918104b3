//! How far nodes are with filling replicas whose data directory was lost, restored or put back.

use std::time::Duration;

use proto::v1;
use serde::Serialize;

use crate::{
    table::Table,
    values::{spell_count, spell_duration},
};

/// One node that fills its replicas from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct FillDocument {
    node: String,
    partitions: u64,
    partitions_filled: u64,
    age_ms: u64,
    /// Nodes without which too few sources are left.
    missing: Vec<String>,
}

impl FillDocument {
    /// What a node says; `None` if it fills nothing.
    pub(super) fn of(node: &str, answer: &v1::GetConvergenceResponse) -> Option<Self> {
        let fill = answer.fill.as_ref()?;
        Some(Self {
            node: node.to_owned(),
            partitions: fill.partitions,
            partitions_filled: fill.partitions_filled,
            age_ms: fill.age_ms,
            missing: fill.missing.clone(),
        })
    }

    fn what_to_do(&self) -> &'static str {
        match self.missing.is_empty() {
            true => "nothing: it answers reads as it is filled",
            false => "bring these back; if they are lost too, start it with --accept-loss",
        }
    }
}

/// A row for each.
pub(super) fn table(fills: &[FillDocument]) -> Table {
    let mut table = Table::new(&["is filled", ">replicas", ">of", ">for", "misses", "to do"]);
    for it in fills {
        let missing = match it.missing.is_empty() {
            true => "-".to_owned(),
            false => it.missing.join(" "),
        };
        table.row([
            it.node.as_str().into(),
            spell_count(it.partitions_filled).into(),
            spell_count(it.partitions).into(),
            spell_duration(Duration::from_millis(it.age_ms)).into(),
            missing.as_str().into(),
            it.what_to_do().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_filled_says_what_it_misses() {
        let fill = v1::FillStatus {
            partitions: 8,
            partitions_filled: 3,
            age_ms: 1_500,
            missing: vec!["n3:1".to_owned()],
        };
        let answer = v1::GetConvergenceResponse {
            fill: Some(fill),
            ..v1::GetConvergenceResponse::default()
        };
        let told = FillDocument::of("n1:1", &answer).unwrap();
        assert!(told.what_to_do().contains("--accept-loss"));
        assert!(!table(&[told]).is_empty());
        assert_eq!(FillDocument::of("n1:1", &v1::GetConvergenceResponse::default()), None);
    }
}
