//! What became of the comparisons: a row for each pair of nodes, and a sentence about all of them.

use std::time::Duration;

use proto::v1;
use serde::Serialize;

use crate::{
    commands::admin::{
        asked::{note_error, note_unknown},
        spell_id,
    },
    failure::Failure,
    output::{Output, Paint},
    table::{Cell, Table},
    values::{spell_bytes, spell_count, spell_duration},
};

/// All comparisons.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RepairDocument {
    /// True if every comparison has ended, in whatever way.
    done: bool,
    /// True if all replicas of all nodes are the same, but for records on their way.
    same: bool,
    waited_ms: u64,
    records_moved: u64,
    /// Bytes of these records, keys included.
    record_bytes: u64,
    /// Bytes of all messages, both ways.
    message_bytes: u64,
    nodes: Vec<NodeDocument>,
    /// Nodes that are down: what they lack is not known.
    down: Vec<String>,
}

/// The comparisons that one node makes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeDocument {
    node: String,
    pub(super) done: bool,
    /// Why it did not answer the last time.
    pub(super) error: Option<String>,
    pub(super) pairs: Vec<PairDocument>,
}

/// The comparison with one other node.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PairDocument {
    with: String,
    with_id: String,
    datacenter: String,
    /// Such as `same`, or `away`.
    state: String,
    refusal: Option<String>,
    trees: u64,
    trees_differing: u64,
    ranges: u64,
    records_sent: u64,
    records_taken: u64,
    record_bytes: u64,
    bytes_sent: u64,
    bytes_received: u64,
    records_refused: u64,
}

impl NodeDocument {
    /// A node that has not been asked yet.
    pub(super) fn new(node: String) -> Self {
        Self { node, done: false, error: None, pairs: Vec::new() }
    }
}

impl PairDocument {
    /// As the node has told it.
    pub(super) fn new(pair: &v1::PairRepair) -> Self {
        let state = pair.state().as_str_name().trim_start_matches("REPAIR_STATE_");
        Self {
            with: pair.address.clone(),
            with_id: spell_id(&pair.node_id),
            datacenter: pair.datacenter.clone(),
            state: state.to_lowercase(),
            refusal: Some(pair.refusal.clone()).filter(|it| !it.is_empty()),
            trees: pair.trees,
            trees_differing: pair.trees_differing,
            ranges: pair.ranges,
            records_sent: pair.records_sent,
            records_taken: pair.records_taken,
            record_bytes: pair.record_bytes,
            bytes_sent: pair.bytes_sent,
            bytes_received: pair.bytes_received,
            records_refused: pair.records_refused,
        }
    }

    fn name(&self) -> &str {
        if self.with.is_empty() { &self.with_id } else { &self.with }
    }

    fn is_same(&self) -> bool {
        self.state == "same"
    }

    fn spell_state(&self) -> String {
        let refusal = self.refusal.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
        let refused = match self.records_refused {
            0 => String::new(),
            records => format!(", {} refused or damaged", spell_count(records)),
        };
        format!("{}{refusal}{refused}", self.state)
    }

    fn cells(&self, node: &str) -> [Cell; 11] {
        let paint = match self.state.as_str() {
            "same" => Paint::Good,
            "running" | "away" => Paint::Warning,
            _ => Paint::Bad,
        };
        [
            node.into(),
            self.name().into(),
            self.datacenter.as_str().into(),
            Cell::painted(paint, self.spell_state()),
            spell_count(self.trees).into(),
            spell_count(self.trees_differing).into(),
            spell_count(self.ranges).into(),
            spell_count(self.records_sent).into(),
            spell_count(self.records_taken).into(),
            spell_bytes(self.record_bytes).into(),
            spell_bytes(self.bytes_sent + self.bytes_received).into(),
        ]
    }

    /// What to try about it.
    fn advice(&self) -> Option<&'static str> {
        Some(match self.state.as_str() {
            "same" => return None,
            "running" => "a longer --within: the comparisons go on",
            "away" => "quorate admin status: the two nodes do not reach each other",
            "silent" => "the same again: the other node was busy, or was lost meanwhile",
            "refused" => "the same again when the other node can take part: see its log",
            "malformed" => "the same release on both nodes",
            "stuck" => "look at the disk of the node that compares",
            _ if self.records_refused > 0 => {
                "the logs and clocks of both nodes: records from the future and damaged ones are not moved"
            }
            _ => "the same again: there was more than one round moves",
        })
    }
}

impl RepairDocument {
    /// Sums up what the nodes have told.
    pub(super) fn new(nodes: Vec<NodeDocument>, down: Vec<String>, waited: Duration) -> Self {
        let pairs = || nodes.iter().flat_map(|it| &it.pairs);
        let sum = |of: fn(&PairDocument) -> u64| pairs().map(of).sum();
        let done = nodes.iter().all(|it| it.done);
        Self {
            done,
            same: done && down.is_empty() && pairs().all(PairDocument::is_same),
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            records_moved: sum(|it| it.records_sent + it.records_taken),
            record_bytes: sum(|it| it.record_bytes),
            message_bytes: sum(|it| it.bytes_sent + it.bytes_received),
            nodes,
            down,
        }
    }

    /// Reports; fails if some replicas are not known to be the same after all was `waited` for.
    pub(super) fn tell(&self, waited: bool, output: Output) -> Result<(), Failure> {
        if output.is_json() {
            output.document(self)?;
        } else {
            let table = self.table();
            if !table.is_empty() {
                output.report(&table)?;
            }
            for it in &self.nodes {
                if let Some(error) = &it.error {
                    note_error(&it.node, error, output)?;
                }
            }
            note_unknown(&self.down, "lacks", output)?;
        }
        let failure = self.failure(waited);
        if failure.is_none() && !output.is_json() {
            let ok = output.paint(Paint::Good, "ok");
            output.line(&format!("{ok}  {}", self.summary(waited)))?;
        }
        failure.map_or(Ok(()), Err)
    }

    /// What went as it should.
    fn summary(&self, waited: bool) -> String {
        let pairs = self.pairs().count();
        if pairs == 0 {
            return "nothing to compare: no two of these nodes hold the same partition".to_owned();
        }
        if !waited {
            return format!(
                "comparisons of {} have begun: `quorate admin convergence` shows how far they are",
                count(pairs, "pair")
            );
        }
        format!(
            "everything is the same: {} compared in {}, {} moved ({}), {} of messages",
            count(pairs, "pair"),
            spell_duration(Duration::from_millis(self.waited_ms)),
            match self.records_moved {
                1 => "1 record".to_owned(),
                records => format!("{} records", spell_count(records)),
            },
            spell_bytes(self.record_bytes),
            spell_bytes(self.message_bytes),
        )
    }

    /// What did not; none if everything is the same, or if it was only to begin and has begun.
    fn failure(&self, waited: bool) -> Option<Failure> {
        let silent = self.nodes.iter().filter(|it| it.error.is_some());
        let silent: Vec<_> = silent.map(|it| format!("{} does not answer", it.node)).collect();
        if !waited {
            let message = format!("not all comparisons have begun: {}", silent.join("; "));
            let failure = Failure::new("NODES_FAILED", message).advise("quorate admin status");
            return (!silent.is_empty()).then_some(failure);
        }
        if self.same {
            return None;
        }
        // A pair whose other node is down is told of by that node.
        let is_down = |it: &PairDocument| it.state == "away" && self.down.contains(&it.with);
        let open: Vec<_> = self.pairs().filter(|(_, it)| !it.is_same() && !is_down(it)).collect();
        let mut said: Vec<_> = (open.iter())
            .take(NAMED_MAX)
            .map(|(node, it)| format!("{node} with {}: {}", it.name(), it.spell_state()))
            .collect();
        let more = open.len().saturating_sub(NAMED_MAX);
        said.extend((more > 0).then(|| format!("{} more", count(more, "pair"))));
        let mut advice: Vec<_> = open.iter().filter_map(|(_, it)| it.advice()).collect();
        advice.extend((!silent.is_empty()).then_some("quorate admin status"));
        said.extend(silent);
        let mut message = match said.is_empty() {
            true => "everything that is up is the same".to_owned(),
            false => format!("not known to be the same: {}", said.join("; ")),
        };
        if !self.down.is_empty() {
            message += &format!("; {} down", self.down.join(", "));
            advice.push("bring back what is down: it catches up by itself");
        }
        advice.sort_unstable();
        advice.dedup();
        let failure = Failure::new("REPLICAS_DIFFER", message);
        Some(advice.into_iter().fold(failure, Failure::advise))
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &PairDocument)> {
        self.nodes.iter().flat_map(|it| it.pairs.iter().map(|pair| (it.node.as_str(), pair)))
    }

    /// A row for each pair.
    fn table(&self) -> Table {
        let columns = [
            "node",
            "with",
            "dc",
            "state",
            ">trees",
            ">differing",
            ">ranges",
            ">sent",
            ">taken",
            ">bytes",
            ">messages",
        ];
        let mut table = Table::new(&columns);
        for (node, pair) in self.pairs() {
            table.row(pair.cells(node));
        }
        table
    }
}

/// How far all comparisons are, in a line.
pub(super) fn under_way<'a>(nodes: impl Iterator<Item = &'a NodeDocument>) -> String {
    let (mut ended, mut all, mut moved, mut silent) = (0_usize, 0_usize, 0, Vec::new());
    for node in nodes {
        all += node.pairs.len();
        ended += node.pairs.iter().filter(|it| it.state != "running").count();
        moved += node.pairs.iter().map(|it| it.records_sent + it.records_taken).sum::<u64>();
        silent.extend(node.error.is_some().then_some(node.node.as_str()));
    }
    let mut text =
        format!("{ended} of {} compared, {} records moved", count(all, "pair"), spell_count(moved));
    if !silent.is_empty() {
        text += &format!("; {} does not answer", silent.join(", "));
    }
    text
}

fn count(many: usize, what: &str) -> String {
    format!("{many} {what}{}", if many == 1 { "" } else { "s" })
}

/// Pairs named in one sentence.
const NAMED_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(port: u16, state: v1::RepairState) -> v1::PairRepair {
        v1::PairRepair {
            node_id: vec![7; 16].into(),
            address: format!("10.0.0.1:{port}"),
            datacenter: "fra".to_owned(),
            state: state.into(),
            trees: 1_024,
            trees_differing: 3,
            ranges: 17,
            records_sent: 1_200,
            records_taken: 34,
            record_bytes: 123_456,
            bytes_sent: 100_000,
            bytes_received: 50_000,
            ..v1::PairRepair::default()
        }
    }

    fn document(pairs: &[v1::PairRepair], error: Option<&str>, down: &[&str]) -> RepairDocument {
        let mut node = NodeDocument::new("10.0.0.9:7400".to_owned());
        node.pairs = pairs.iter().map(PairDocument::new).collect();
        node.error = error.map(ToOwned::to_owned);
        node.done = error.is_none() && node.pairs.iter().all(|it| it.state != "running");
        let down = down.iter().map(|it| (*it).to_owned()).collect();
        RepairDocument::new(vec![node], down, Duration::from_millis(2_100))
    }

    fn check(document: &RepairDocument, waited: bool, expected: &str) {
        let failure = document.failure(waited);
        let said = failure.map_or_else(|| document.summary(waited), |it| it.render(false));
        assert_eq!(said, expected);
    }

    #[test]
    fn a_row_for_each_pair() {
        let refused = v1::PairRepair {
            refusal: "OVERLOADED".to_owned(),
            address: String::new(),
            records_refused: 2,
            ..pair(1, v1::RepairState::Refused)
        };
        let document = document(&[pair(1, v1::RepairState::Same), refused], None, &[]);
        assert_eq!(
            document.table().separated(),
            "node\twith\tdc\tstate\ttrees\tdiffering\tranges\tsent\ttaken\tbytes\tmessages
10.0.0.9:7400\t10.0.0.1:1\tfra\tsame\t1,024\t3\t17\t1,200\t34\t120 KiB\t146 KiB
10.0.0.9:7400\t07070707-0707-0707-0707-070707070707\tfra\trefused OVERLOADED, 2 refused or damaged\t1,024\t3\t17\t1,200\t34\t120 KiB\t146 KiB\n"
        );
    }

    #[test]
    fn what_is_the_same() {
        let two = [pair(1, v1::RepairState::Same), pair(2, v1::RepairState::Same)];
        let all = document(&two, None, &[]);
        assert!(all.same && all.done);
        check(
            &all,
            true,
            "everything is the same: 2 pairs compared in 2.1 s, 2,468 records moved (241 KiB), \
             292 KiB of messages",
        );
        check(
            &document(&[], None, &[]),
            true,
            "nothing to compare: no two of these nodes hold the same partition",
        );
        check(
            &document(&[pair(1, v1::RepairState::Running)], None, &["10.0.0.1:1"]),
            false,
            "comparisons of 1 pair have begun: `quorate admin convergence` shows how far they are",
        );
    }

    #[test]
    fn what_is_not_known_to_be_the_same() {
        let pairs = [
            pair(1, v1::RepairState::Same),
            pair(2, v1::RepairState::Away),
            pair(3, v1::RepairState::Running),
        ];
        let open = document(&pairs, None, &[]);
        assert!(!open.same && !open.done);
        check(
            &open,
            true,
            "error[REPLICAS_DIFFER]: not known to be the same: 10.0.0.9:7400 with 10.0.0.1:2: away; \
             10.0.0.9:7400 with 10.0.0.1:3: running
  try       a longer --within: the comparisons go on | quorate admin status: the two nodes do not \
             reach each other\n",
        );
        // Which of two nodes compares both is nobody's business: down is down.
        for pairs in [&pairs[..1], &pairs[..2]] {
            let down = document(pairs, None, &["10.0.0.1:2"]);
            assert!(!down.same && down.done);
            check(
                &down,
                true,
                "error[REPLICAS_DIFFER]: everything that is up is the same; 10.0.0.1:2 down
  try       bring back what is down: it catches up by itself\n",
            );
        }
        check(
            &document(&[], Some("it is gone"), &[]),
            false,
            "error[NODES_FAILED]: not all comparisons have begun: 10.0.0.9:7400 does not answer
  try       quorate admin status\n",
        );
    }

    #[test]
    fn how_far_it_is() {
        let open = document(
            &[pair(1, v1::RepairState::Same), pair(2, v1::RepairState::Running)],
            Some("gone"),
            &[],
        );
        assert_eq!(
            under_way(open.nodes.iter()),
            "1 of 2 pairs compared, 2,468 records moved; 10.0.0.9:7400 does not answer"
        );
    }
}
