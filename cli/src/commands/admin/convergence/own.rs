//! What one node says of itself and of the others that are up, for `quorate admin status`.

use client::Admin;
use proto::v1;
use serde::Serialize;

use super::{
    figures::{Figures, spell_age},
    kept::Kept,
    purges::{self, PurgeDocument},
};
use crate::{
    failure::Failure,
    output::Output,
    table::Table,
    values::{spell_bytes, spell_count},
};

/// How far the replicas of the node that answered are known to be the same as those of the others that
/// are up, and what it keeps for all others.
#[derive(Clone, Debug, Default, Serialize)]
pub(in crate::commands::admin) struct OwnConvergence {
    /// Over all keyspaces.
    #[serde(flatten)]
    all: Figures,
    keyspaces: Vec<KeyspaceFigures>,
    #[serde(flatten)]
    kept: Kept,
    /// What stands in the way of removing tombstones and expired records.
    purges: Vec<PurgeDocument>,
}

#[derive(Clone, Debug, Serialize)]
struct KeyspaceFigures {
    keyspace: String,
    #[serde(flatten)]
    figures: Figures,
    #[serde(flatten)]
    kept: Kept,
    /// Acknowledged writes of this node that a replica already held a newer version of.
    overwritten_concurrent: u64,
}

impl KeyspaceFigures {
    /// True if there is nothing to say of it.
    fn is_empty(&self) -> bool {
        self.figures.is_empty() && self.kept.is_empty() && self.overwritten_concurrent == 0
    }
}

impl OwnConvergence {
    /// Asks the node that has answered; none if it does not say.
    pub(in crate::commands::admin) async fn of(
        status: &v1::GetClusterStatusResponse,
        admin: &Admin,
    ) -> Option<Self> {
        let own = usize::try_from(status.answered_by).ok().and_then(|it| status.nodes.get(it))?;
        let admin = admin.clone().at_node(&own.client_address).ok()?;
        let (convergence, hints) = tokio::join!(admin.convergence(), admin.hints());
        Some(Self::new(status, &own.client_address, &convergence.ok()?, &hints.ok()?))
    }

    fn new(
        status: &v1::GetClusterStatusResponse,
        own: &str,
        convergence: &v1::GetConvergenceResponse,
        hints: &v1::GetHintsResponse,
    ) -> Self {
        let up = |id: &[u8]| status.nodes.iter().any(|it| it.up && it.node_id == id);
        let of = |it: &v1::KeyspaceConvergence| {
            let pairs = it.pairs.iter().filter(|it| up(&it.node_id));
            KeyspaceFigures {
                keyspace: it.keyspace.clone(),
                figures: pairs.map(Figures::of).collect::<Vec<_>>().iter().sum(),
                kept: Kept::of_keyspace(it),
                overwritten_concurrent: it.overwritten_concurrent,
            }
        };
        let keyspaces: Vec<_> = convergence.keyspaces.iter().map(of).collect();
        let purges = convergence.keyspaces.iter().filter_map(|it| PurgeDocument::of(own, it));
        Self {
            all: keyspaces.iter().map(|it| &it.figures).sum(),
            keyspaces,
            kept: Kept::of(hints),
            purges: purges.collect(),
        }
    }

    /// Nothing of what there is nothing of.
    pub(in crate::commands::admin) fn show(&self, output: Output) -> Result<(), Failure> {
        if let Some(sentence) = self.all.sentence() {
            output.line(&format!("\n{sentence}"))?;
        }
        let table = self.table();
        if !table.is_empty() {
            output.report(&table)?;
        }
        if let Some(sentence) = self.hints_sentence() {
            output.line(&format!("\n{sentence}"))?;
        }
        if !self.purges.is_empty() {
            output.line("")?;
            output.report(&purges::table(&self.purges))?;
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "keyspace",
            ">same",
            ">oldest",
            ">moved",
            ">bytes",
            ">overwritten",
            ">hints",
            ">dirty",
        ]);
        for it in self.keyspaces.iter().filter(|it| !it.is_empty()) {
            table.row([
                it.keyspace.as_str().into(),
                it.figures.spell_share().into(),
                spell_age(it.figures.oldest_age_ms).into(),
                spell_count(it.figures.records_moved).into(),
                spell_bytes(it.figures.bytes_moved).into(),
                spell_count(it.overwritten_concurrent).into(),
                spell_count(it.kept.hints).into(),
                spell_count(it.kept.dirty_marks).into(),
            ]);
        }
        table
    }

    fn hints_sentence(&self) -> Option<String> {
        let Kept { hints, hint_bytes, oldest_hint_age_ms, dirty_marks } = self.kept;
        (hints + dirty_marks > 0).then(|| {
            format!(
                "Kept for other nodes: {} hints ({}, oldest {}), and {} dirty marks",
                spell_count(hints),
                spell_bytes(hint_bytes),
                spell_age(oldest_hint_age_ms),
                spell_count(dirty_marks),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_with_nodes_that_are_down_are_left_out_and_hints_are_added_up() {
        let node = |id: u8, up| v1::NodeInfo {
            node_id: vec![id; 16].into(),
            up,
            ..v1::NodeInfo::default()
        };
        let status = v1::GetClusterStatusResponse {
            nodes: vec![node(1, true), node(2, true), node(3, false)],
            ..v1::GetClusterStatusResponse::default()
        };
        let pair = |id: u8, same| v1::PairConvergence {
            node_id: vec![id; 16].into(),
            partitions: 8,
            partitions_same: same,
            records_moved: 3,
            bytes_moved: 300,
            ..v1::PairConvergence::default()
        };
        let convergence = v1::GetConvergenceResponse {
            keyspaces: vec![v1::KeyspaceConvergence {
                keyspace: "shop".to_owned(),
                pairs: vec![pair(2, 7), pair(3, 0)],
                purge_block: v1::PurgeBlock::Away.into(),
                overwritten_concurrent: 2,
                hints: Some(v1::HintSum { hints: 3, ..v1::HintSum::default() }),
                dirty_marks: 5,
                ..v1::KeyspaceConvergence::default()
            }],
            ..v1::GetConvergenceResponse::default()
        };
        let sum = |hints, bytes, age| Some(v1::HintSum { hints, bytes, oldest_age_ms: Some(age) });
        let target = v1::TargetHints {
            ordinary: sum(2, 2_048, 4_000),
            any: sum(1, 1_024, 9_000),
            dirty_marks: 5,
            ..v1::TargetHints::default()
        };
        let hints =
            v1::GetHintsResponse { targets: vec![target], ..v1::GetHintsResponse::default() };
        let it = OwnConvergence::new(&status, "n1:1", &convergence, &hints);
        assert_eq!((it.all.partitions, it.all.partitions_same, it.purges.len()), (8, 7, 1));
        assert_eq!(
            it.hints_sentence().unwrap(),
            "Kept for other nodes: 3 hints (3072 B, oldest 9.0 s), and 5 dirty marks"
        );
        assert_eq!(
            it.table().aligned(false),
            "\
keyspace   same  oldest  moved  bytes  overwritten  hints  dirty
shop      87.5%  0.0 ms      3  300 B            2      3      5
"
        );
        assert_eq!(OwnConvergence::default().hints_sentence(), None);
        // With all others down hints and marks are what there is to say.
        let alone = v1::GetClusterStatusResponse { nodes: vec![node(1, true)], ..status };
        assert_eq!(
            OwnConvergence::new(&alone, "n1:1", &convergence, &hints).table().separated(),
            "keyspace\tsame\toldest\tmoved\tbytes\toverwritten\thints\tdirty
shop\t-\t-\t0\t0 B\t2\t3\t5\n"
        );
    }
}
