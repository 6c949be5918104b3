//! `quorate admin convergence`: how far replicas are known to be the same, as numbers.

mod figures;
mod fills;
mod kept;
mod own;
mod purges;
mod scrubs;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use client::Admin;
use futures_util::future::join_all;
use proto::v1;
use serde::Serialize;

use figures::{Figures, spell_age};
use fills::FillDocument;
use kept::Kept;
pub(super) use own::OwnConvergence;
use purges::PurgeDocument;
use scrubs::ScrubDocument;

use super::{
    asked::{Asked, AskedArgs, note_error, note_unknown},
    spell_id,
};
use crate::{
    failure::Failure,
    output::{Output, Paint},
    table::{Cell, Table},
    values::{spell_bytes, spell_count},
};

/// Show how far replicas are known to be the same, and what is waiting for those that are away
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Replicas are compared all the time, two nodes at a time, each partition that both hold. A partition
counts as the same if it was when the two were last compared, but for records on their way; `oldest` is
how long ago that was for the one that waits longest. Pairs of nodes of which one is down are left out.")]
pub(crate) struct ConvergenceArgs {
    #[command(flatten)]
    asked: AskedArgs,
}

/// Asks, and shows.
pub(super) async fn run(
    args: ConvergenceArgs,
    admin: &Admin,
    output: Output,
) -> Result<(), Failure> {
    let asked = Asked::find(args.asked, admin).await?.in_a_layout()?;
    let answers = join_all(asked.nodes.iter().map(|(node, admin)| Answer::of(node, admin))).await;
    let document = ConvergenceDocument::new(&asked.status, asked.down(), &answers);
    if output.is_json() { output.document(&document) } else { document.show(output) }
}

/// What one node says.
#[derive(Default)]
struct Answer {
    node: String,
    error: Option<String>,
    convergence: v1::GetConvergenceResponse,
    hints: v1::GetHintsResponse,
    counters: BTreeMap<String, u64>,
}

impl Answer {
    async fn of(node: &str, admin: &Admin) -> Self {
        let all = tokio::join!(admin.convergence(), admin.hints(), admin.status());
        let node = node.to_owned();
        match all {
            (Ok(convergence), Ok(hints), Ok(status)) => {
                let counters = status.counters.into_iter().collect();
                Self { node, error: None, convergence, hints, counters }
            }
            (Err(error), _, _) | (_, Err(error), _) | (_, _, Err(error)) => {
                Self { node, error: Some(error.to_string()), ..Self::default() }
            }
        }
    }
}

impl Answer {
    fn counter(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

/// All that was asked for.
#[derive(Clone, Debug, Serialize)]
struct ConvergenceDocument {
    /// Over all keyspaces.
    #[serde(flatten)]
    all: Figures,
    hints: u64,
    hint_bytes: u64,
    oldest_hint_age_ms: Option<u64>,
    dirty_marks: u64,
    overwritten_concurrent: u64,
    keyspaces: Vec<KeyspaceDocument>,
    /// What stands in the way of removing tombstones and expired records.
    purges: Vec<PurgeDocument>,
    /// Nodes whose replicas are being filled.
    fills: Vec<FillDocument>,
    nodes: Vec<NodeDocument>,
    /// Nodes that are down: what they lack is not known.
    down: Vec<String>,
}

/// What is known of one keyspace.
#[derive(Clone, Debug, Serialize)]
struct KeyspaceDocument {
    keyspace: String,
    #[serde(flatten)]
    figures: Figures,
    /// What all nodes keep of it for others.
    #[serde(flatten)]
    kept: Kept,
    /// Acknowledged writes that a replica already held a newer version of.
    overwritten_concurrent: u64,
    pairs: Vec<PairDocument>,
}

/// What is known of two nodes, in the words of the one that is less sure of it.
#[derive(Clone, Debug, Serialize)]
struct PairDocument {
    nodes: [String; 2],
    #[serde(flatten)]
    figures: Figures,
}

/// What one node keeps for others.
#[derive(Clone, Debug, Serialize)]
struct NodeDocument {
    node: String,
    /// Why it did not answer.
    error: Option<String>,
    #[serde(flatten)]
    kept: Kept,
    /// Acknowledged writes of this node that a replica already held a newer version of.
    overwritten_concurrent: u64,
    scrub: ScrubDocument,
}

impl NodeDocument {
    fn new(answer: &Answer) -> Self {
        Self {
            node: answer.node.clone(),
            error: answer.error.clone(),
            kept: Kept::of(&answer.hints),
            overwritten_concurrent: answer.counter(OVERWRITTEN),
            scrub: ScrubDocument::of(answer),
        }
    }

    fn cells(&self) -> [Cell; 6] {
        [
            self.node.as_str().into(),
            spell_count(self.kept.hints).into(),
            spell_bytes(self.kept.hint_bytes).into(),
            spell_age(self.kept.oldest_hint_age_ms).into(),
            spell_count(self.kept.dirty_marks).into(),
            spell_count(self.overwritten_concurrent).into(),
        ]
    }
}

/// The figure of that name in a node's status.
const OVERWRITTEN: &str = "overwritten_concurrent";

impl ConvergenceDocument {
    fn new(status: &v1::GetClusterStatusResponse, down: Vec<String>, answers: &[Answer]) -> Self {
        let mut pairs = pairs(status, answers);
        let told = answers.iter().flat_map(|it| &it.convergence.keyspaces);
        let names: BTreeSet<_> = told.clone().map(|it| &it.keyspace).collect();
        let of = |name: &String| {
            let told = told.clone().filter(|it| it.keyspace == *name);
            let pairs = pairs.remove(name).unwrap_or_default();
            KeyspaceDocument {
                keyspace: name.clone(),
                figures: pairs.iter().map(|it| &it.figures).sum(),
                kept: told.clone().map(Kept::of_keyspace).sum(),
                overwritten_concurrent: told.map(|it| it.overwritten_concurrent).sum(),
                pairs,
            }
        };
        let keyspaces: Vec<_> = names.into_iter().map(of).collect();
        let nodes: Vec<_> = answers.iter().map(NodeDocument::new).collect();
        let purges = answers.iter().flat_map(|answer| {
            let keyspaces = answer.convergence.keyspaces.iter();
            keyspaces.filter_map(|it| PurgeDocument::of(&answer.node, it))
        });
        let fills = answers.iter().filter_map(|it| FillDocument::of(&it.node, &it.convergence));
        Self {
            fills: fills.collect(),
            all: keyspaces.iter().map(|it| &it.figures).sum(),
            hints: nodes.iter().map(|it| it.kept.hints).sum(),
            hint_bytes: nodes.iter().map(|it| it.kept.hint_bytes).sum(),
            oldest_hint_age_ms: nodes.iter().filter_map(|it| it.kept.oldest_hint_age_ms).max(),
            dirty_marks: nodes.iter().map(|it| it.kept.dirty_marks).sum(),
            overwritten_concurrent: nodes.iter().map(|it| it.overwritten_concurrent).sum(),
            keyspaces,
            purges: purges.collect(),
            nodes,
            down,
        }
    }

    fn show(&self, output: Output) -> Result<(), Failure> {
        let keyspaces = self.keyspace_table();
        if !keyspaces.is_empty() {
            output.report(&keyspaces)?;
            output.line("")?;
        }
        let mut nodes =
            Table::new(&["node", ">hints", ">bytes", ">oldest", ">dirty", ">overwritten"]);
        for node in self.nodes.iter().filter(|it| it.error.is_none()) {
            nodes.row(node.cells());
        }
        output.report(&nodes)?;
        if !self.fills.is_empty() {
            output.line("")?;
            output.report(&fills::table(&self.fills))?;
        }
        let differing = self.differing_table();
        if !differing.is_empty() {
            output.line("")?;
            output.report(&differing)?;
        }
        if !self.purges.is_empty() {
            output.line("")?;
            output.report(&purges::table(&self.purges))?;
        }
        let scrubs = self.nodes.iter().filter(|it| it.error.is_none());
        output.line("")?;
        output.report(&scrubs::table(scrubs.map(|it| (it.node.as_str(), &it.scrub))))?;
        output.line("")?;
        for it in &self.nodes {
            if let Some(error) = &it.error {
                note_error(&it.node, error, output)?;
            }
        }
        note_unknown(&self.down, "lacks", output)?;
        let paint = if self.all.is_same() { Paint::Good } else { Paint::Warning };
        output.line(&output.paint(paint, &self.summary()))
    }

    fn summary(&self) -> String {
        let what = if self.down.is_empty() { "everything" } else { "everything that is up" };
        if self.all.is_empty() {
            return "nothing to compare: no two of these nodes hold the same partition".to_owned();
        }
        if self.all.is_same() {
            let oldest = spell_age(self.all.oldest_age_ms);
            return format!("{what} was the same when last compared, {oldest} ago at most");
        }
        format!(
            "{} is known to be the same; the rest is being compared: `quorate admin repair` does it at \
             once and says what stands in the way",
            self.all.spell_share()
        )
    }

    fn keyspace_table(&self) -> Table {
        let mut table = Table::new(&[
            "keyspace",
            ">the same",
            ">partitions",
            ">oldest",
            ">records moved",
            ">bytes moved",
            ">overwritten",
            ">hints",
            ">dirty",
        ]);
        for it in &self.keyspaces {
            let paint = if it.figures.is_same() { Paint::Good } else { Paint::Warning };
            table.row([
                it.keyspace.as_str().into(),
                Cell::painted(paint, it.figures.spell_share()),
                it.figures.spell_parts().into(),
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

    /// Pairs of nodes that are not the same, those that differ most first.
    fn differing_table(&self) -> Table {
        let pairs =
            self.keyspaces.iter().flat_map(|it| it.pairs.iter().map(move |pair| (it, pair)));
        let mut pairs: Vec<_> = pairs.filter(|it| !it.1.figures.is_same()).collect();
        pairs.sort_by_key(|it| std::cmp::Reverse(it.1.figures.differing()));
        let mut table =
            Table::new(&["differing", "node", "with", ">the same", ">partitions", ">oldest"]);
        for (keyspace, pair) in pairs.into_iter().take(PAIRS_SHOWN_MAX) {
            let [node, with] = &pair.nodes;
            table.row([
                keyspace.keyspace.as_str().into(),
                node.as_str().into(),
                with.as_str().into(),
                pair.figures.spell_share().into(),
                pair.figures.spell_parts().into(),
                spell_age(pair.figures.oldest_age_ms).into(),
            ]);
        }
        table
    }
}

/// Pairs shown at most; JSON has all of them.
const PAIRS_SHOWN_MAX: usize = 20;

/// What is known of each pair of nodes that are up, by keyspace. Both nodes are asked, and each knows
/// only what it has been told.
fn pairs(
    status: &v1::GetClusterStatusResponse,
    answers: &[Answer],
) -> BTreeMap<String, Vec<PairDocument>> {
    let up: BTreeMap<&[u8], &str> = (status.nodes.iter())
        .filter(|it| it.up)
        .map(|it| (&it.node_id[..], it.client_address.as_str()))
        .collect();
    let ids: BTreeMap<&str, &[u8]> = up.iter().map(|(id, address)| (*address, *id)).collect();
    let mut known: BTreeMap<(&str, [&[u8]; 2]), Figures> = BTreeMap::new();
    for answer in answers {
        let Some(own) = ids.get(answer.node.as_str()) else { continue };
        for keyspace in &answer.convergence.keyspaces {
            for pair in keyspace.pairs.iter().filter(|it| up.contains_key(&it.node_id[..])) {
                let mut both = [*own, &pair.node_id[..]];
                both.sort_unstable();
                let figures = Figures::of(pair);
                known
                    .entry((&keyspace.keyspace, both))
                    .and_modify(|it| *it = it.merge(&figures))
                    .or_insert(figures);
            }
        }
    }
    let mut pairs: BTreeMap<String, Vec<PairDocument>> = BTreeMap::new();
    for ((keyspace, both), figures) in known {
        let name = |id: &[u8]| up.get(id).map_or_else(|| spell_id(id), |it| (*it).to_owned());
        let pair = PairDocument { nodes: both.map(name), figures };
        pairs.entry(keyspace.to_owned()).or_default().push(pair);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u8, up: bool) -> v1::NodeInfo {
        v1::NodeInfo {
            node_id: vec![id; 16].into(),
            client_address: format!("n{id}:1"),
            in_layout: true,
            up,
            ..v1::NodeInfo::default()
        }
    }

    /// What a node says of its pairs: the other node, how many of ten are the same, and since when.
    fn answer(node: u8, pairs: &[(u8, u64, u64)]) -> Answer {
        let sum = |hints, age| {
            Some(v1::HintSum { hints, bytes: 1_000 * hints, oldest_age_ms: Some(age) })
        };
        let pair = |(other, same, age): &(u8, u64, u64)| v1::PairConvergence {
            node_id: vec![*other; 16].into(),
            partitions: 10,
            partitions_same: *same,
            oldest_age_ms: *age,
            records_moved: 100,
            bytes_moved: 50_000,
            ..v1::PairConvergence::default()
        };
        let pairs = pairs.iter().map(pair).collect();
        let keyspaces = vec![v1::KeyspaceConvergence {
            keyspace: "shop".to_owned(),
            pairs,
            overwritten_concurrent: 3,
            hints: sum(4, 8_000),
            dirty_marks: 2,
            ..v1::KeyspaceConvergence::default()
        }];
        let target = v1::TargetHints {
            ordinary: sum(5, 9_000),
            any: sum(1, 70_000),
            dirty_marks: 3,
            ..v1::TargetHints::default()
        };
        Answer {
            node: format!("n{node}:1"),
            error: None,
            convergence: v1::GetConvergenceResponse {
                keyspaces,
                ..v1::GetConvergenceResponse::default()
            },
            hints: v1::GetHintsResponse { targets: vec![target], ..Default::default() },
            counters: [(OVERWRITTEN.to_owned(), 7)].into(),
        }
    }

    fn document(nodes: &[(u8, bool)], answers: &[Answer]) -> ConvergenceDocument {
        let status = v1::GetClusterStatusResponse {
            nodes: nodes.iter().map(|(id, up)| node(*id, *up)).collect(),
            ..v1::GetClusterStatusResponse::default()
        };
        let down = nodes.iter().filter(|it| !it.1).map(|it| format!("n{}:1", it.0)).collect();
        ConvergenceDocument::new(&status, down, answers)
    }

    #[test]
    fn each_pair_counts_once_in_the_words_of_the_less_sure() {
        let answers =
            [answer(1, &[(2, 10, 1_500), (3, 10, 900)]), answer(2, &[(1, 4, 75_000), (3, 10, 0)])];
        let document = document(&[(1, true), (2, true), (3, false)], &answers);
        // Of the node that is down nothing is known, whatever it was.
        let all = &document.all;
        assert_eq!((all.partitions, all.partitions_same, all.oldest_age_ms), (10, 4, Some(75_000)));
        assert_eq!((all.records_moved, all.bytes_moved), (200, 100_000));
        assert_eq!(
            document.keyspace_table().separated(),
            "keyspace\tthe same\tpartitions\toldest\trecords moved\tbytes moved\toverwritten\thints\tdirty
shop\t40.0%\t4 of 10\t1m15s\t200\t97 KiB\t6\t8\t4\n"
        );
        assert_eq!(
            document.differing_table().separated(),
            "differing\tnode\twith\tthe same\tpartitions\toldest
shop\tn1:1\tn2:1\t40.0%\t4 of 10\t1m15s\n"
        );
        assert_eq!((document.hints, document.hint_bytes, document.dirty_marks), (12, 12_000, 6));
        assert_eq!(document.oldest_hint_age_ms, Some(70_000));
        assert_eq!(document.overwritten_concurrent, 14);
        assert!(document.summary().starts_with("40.0% is known to be the same;"));
    }

    #[test]
    fn a_node_that_does_not_answer_is_spoken_of_by_the_others() {
        let silent =
            Answer { node: "n2:1".to_owned(), error: Some("gone".to_owned()), ..Answer::default() };
        let document = document(&[(1, true), (2, true)], &[answer(1, &[(2, 10, 1_500)]), silent]);
        assert!(document.all.is_same() && document.nodes[1].error.is_some());
        assert_eq!(
            document.summary(),
            "everything was the same when last compared, 1.5 s ago at most"
        );
        assert!(document.differing_table().is_empty());
    }

    #[test]
    fn nodes_that_share_nothing() {
        let document = document(&[(1, true)], &[answer(1, &[])]);
        assert!(document.summary().starts_with("nothing to compare"));
        assert_eq!(document.all.share, None);
    }

    #[test]
    fn names_of_the_document() {
        let document = document(&[(1, true), (2, true)], &[answer(1, &[(2, 9, 5)])]);
        let it = serde_json::to_value(&document).unwrap();
        let pair = &it["keyspaces"][0]["pairs"][0];
        assert_eq!((&it["partitions_same"], &pair["partitions"]), (&9.into(), &10.into()));
        assert_eq!((&it["share"], &pair["nodes"][1]), (&0.9.into(), &"n2:1".into()));
        assert_eq!(it["nodes"][0]["oldest_hint_age_ms"], 70_000);
    }
}
