//! What stands in the way of removing tombstones and expired records.

use std::time::Duration;

use proto::v1;
use serde::Serialize;

use crate::{table::Table, values::spell_duration};

/// Why one node cannot purge a keyspace now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct PurgeDocument {
    keyspace: String,
    /// Who would begin.
    node: String,
    /// Such as `away`.
    block: String,
    /// The node that is waited for, if it is one.
    waits_for: Option<String>,
    since_ms: u64,
}

impl PurgeDocument {
    /// What a node says of a keyspace; `None` if nothing stands in its way.
    pub(super) fn of(node: &str, keyspace: &v1::KeyspaceConvergence) -> Option<Self> {
        let block = keyspace.purge_block();
        if matches!(block, v1::PurgeBlock::Unspecified | v1::PurgeBlock::Nothing) {
            return None;
        }
        let waits_for = keyspace.purge_waits_for_address.clone();
        Some(Self {
            keyspace: keyspace.keyspace.clone(),
            node: node.to_owned(),
            block: block.as_str_name().trim_start_matches("PURGE_BLOCK_").to_lowercase(),
            waits_for: Some(waits_for).filter(|it| !it.is_empty()),
            since_ms: keyspace.purge_blocked_ms,
        })
    }

    fn what_to_do(&self) -> &'static str {
        match self.block.as_str() {
            "away" => "bring it back: until then these tombstones stay",
            "ended" => "it is busy, or keeps older hints of ANY: it is asked again",
            "unsigned" => "a replica differs still, or has damaged records: see admin repair",
            _ => "see the node's log",
        }
    }
}

/// A row for each.
pub(super) fn table(purges: &[PurgeDocument]) -> Table {
    let mut table = Table::new(&["cannot purge", "node", "because", "waits for", ">for", "to do"]);
    for it in purges {
        table.row([
            it.keyspace.as_str().into(),
            it.node.as_str().into(),
            it.block.as_str().into(),
            it.waits_for.as_deref().unwrap_or("-").into(),
            spell_duration(Duration::from_millis(it.since_ms)).into(),
            it.what_to_do().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_way_is_told() {
        let told = |block: v1::PurgeBlock| {
            let keyspace = v1::KeyspaceConvergence {
                keyspace: "shop".to_owned(),
                purge_block: block.into(),
                purge_waits_for_address: "n3:1".to_owned(),
                purge_blocked_ms: 5_000,
                ..v1::KeyspaceConvergence::default()
            };
            PurgeDocument::of("n1:1", &keyspace)
        };
        assert_eq!(told(v1::PurgeBlock::Nothing), None);
        assert_eq!(told(v1::PurgeBlock::Unspecified), None);
        let away = told(v1::PurgeBlock::Away).unwrap();
        assert_eq!((away.block.as_str(), away.waits_for.as_deref()), ("away", Some("n3:1")));
        assert!(!table(&[away]).is_empty());
    }
}
