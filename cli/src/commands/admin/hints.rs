//! `quorate admin hints`: what is kept for replicas that are away, and the barrier behind it.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Subcommand};
use client::Admin;
use futures_util::future::join_all;
use proto::v1;
use serde::Serialize;

use super::{
    asked::{Asked, AskedArgs, Wait, note_error, note_unknown, wait_for},
    spell_id,
};
use crate::{
    failure::{Exit, Failure},
    output::{Output, Paint},
    progress::spinner,
    table::{Cell, Table},
    values::{self, spell_bytes, spell_count, spell_duration},
};

/// Show the writes that nodes keep for replicas that are away, or wait until they are delivered
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate admin hints
  quorate admin hints wait --within 2m")]
pub(crate) struct HintsArgs {
    #[command(subcommand)]
    command: Option<HintsCommand>,

    #[command(flatten)]
    asked: AskedArgs,
}

#[derive(Clone, Debug, Subcommand)]
enum HintsCommand {
    /// Wait until every hint kept by now is delivered, or left to the exchange by a dirty mark
    Wait(WaitArgs),
}

/// Options of `wait`.
#[derive(Clone, Debug, Args)]
struct WaitArgs {
    /// Give up after this long, and say which targets are still owed what
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = values::duration)]
    within: Duration,
}

/// Shows, or waits.
pub(super) async fn run(args: HintsArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let asked = Asked::find(args.asked, admin).await?;
    match args.command {
        None => show(&asked, output).await,
        Some(HintsCommand::Wait(wait)) => wait_all(asked.in_a_layout()?, wait.within, output).await,
    }
}

#[derive(Clone, Debug, Serialize)]
struct HintsDocument {
    nodes: Vec<NodeDocument>,
    /// Nodes that are down: what they keep is not known.
    not_asked: Vec<String>,
}

/// What one node keeps.
#[derive(Clone, Debug, Serialize)]
struct NodeDocument {
    node: String,
    /// Why it did not answer.
    error: Option<String>,
    target_bytes_limit: u64,
    any_bytes_limit: u64,
    age_limit_ms: u64,
    no_hints_for: Vec<String>,
    targets: Vec<TargetDocument>,
}

/// What is kept for one target.
#[derive(Clone, Debug, Serialize)]
struct TargetDocument {
    target: String,
    target_id: String,
    datacenter: String,
    in_layout: bool,
    hints: u64,
    bytes: u64,
    oldest_age_ms: Option<u64>,
    /// Those of writes at ANY, counted apart.
    any_hints: u64,
    any_bytes: u64,
    any_oldest_age_ms: Option<u64>,
    dirty_marks: u64,
    /// Such as `delivering`, or `away`.
    state: String,
    refusal: Option<String>,
}

impl NodeDocument {
    fn new(node: &str, answer: Result<v1::GetHintsResponse, client::Error>) -> Self {
        let error = answer.as_ref().err().map(ToString::to_string);
        let answer = answer.unwrap_or_default();
        Self {
            node: node.to_owned(),
            error,
            target_bytes_limit: answer.target_bytes_limit,
            any_bytes_limit: answer.any_bytes_limit,
            age_limit_ms: answer.age_limit_ms,
            no_hints_for: answer.no_hints_for,
            targets: answer.targets.iter().map(TargetDocument::new).collect(),
        }
    }
}

impl TargetDocument {
    fn new(target: &v1::TargetHints) -> Self {
        let (ordinary, any) = (target.ordinary.unwrap_or_default(), target.any.unwrap_or_default());
        let state = target.state().as_str_name().trim_start_matches("HANDOFF_STATE_");
        Self {
            target: target.target_address.clone(),
            target_id: spell_id(&target.target_id),
            datacenter: target.datacenter.clone(),
            in_layout: target.in_layout,
            hints: ordinary.hints,
            bytes: ordinary.bytes,
            oldest_age_ms: ordinary.oldest_age_ms,
            any_hints: any.hints,
            any_bytes: any.bytes,
            any_oldest_age_ms: any.oldest_age_ms,
            dirty_marks: target.dirty_marks,
            state: state.to_lowercase(),
            refusal: Some(target.refusal.clone()).filter(|it| !it.is_empty()),
        }
    }

    fn name(&self) -> &str {
        if self.target.is_empty() { &self.target_id } else { &self.target }
    }

    fn state_cell(&self) -> Cell {
        let paint = match self.state.as_str() {
            "idle" | "delivering" => Paint::Good,
            "away" => Paint::Warning,
            _ => Paint::Bad,
        };
        let refusal = self.refusal.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
        let left = if self.in_layout { "" } else { ", not in the layout" };
        Cell::painted(paint, format!("{}{refusal}{left}", self.state))
    }
}

/// A row for each node and target.
fn table<'a>(rows: impl Iterator<Item = (&'a str, &'a TargetDocument)>) -> Table {
    let columns =
        ["kept by", "for", "dc", ">hints", ">bytes", ">oldest", ">of ANY", ">dirty", "delivery"];
    let mut table = Table::new(&columns);
    for (node, it) in rows {
        let oldest = it.oldest_age_ms.max(it.any_oldest_age_ms);
        let any = match it.any_hints {
            0 => "-".to_owned(),
            hints => format!("{} ({})", spell_count(hints), spell_bytes(it.any_bytes)),
        };
        table.row([
            node.into(),
            it.name().into(),
            it.datacenter.as_str().into(),
            spell_count(it.hints).into(),
            spell_bytes(it.bytes).into(),
            oldest.map_or("-".to_owned(), |it| spell_duration(Duration::from_millis(it))).into(),
            any.into(),
            spell_count(it.dirty_marks).into(),
            it.state_cell(),
        ]);
    }
    table
}

async fn show(asked: &Asked, output: Output) -> Result<(), Failure> {
    let answers =
        asked.nodes.iter().map(async |(node, admin)| NodeDocument::new(node, admin.hints().await));
    let nodes = join_all(answers).await;
    let document = HintsDocument { nodes, not_asked: asked.not_asked.clone() };
    if output.is_json() {
        return output.document(&document);
    }
    let rows = |it: &'_ NodeDocument| -> Vec<_> {
        it.targets.iter().map(|target| (it.node.clone(), target.clone())).collect()
    };
    let rows: Vec<_> = document.nodes.iter().flat_map(rows).collect();
    match rows.is_empty() {
        true => output.line("No hints are kept, and nothing is dirty.")?,
        false => output.report(&table(rows.iter().map(|it| (it.0.as_str(), &it.1))))?,
    }
    for it in document.nodes.iter().filter(|it| it.error.is_some()) {
        note_error(&it.node, it.error.as_deref().unwrap_or_default(), output)?;
    }
    note_unknown(&document.not_asked, KEEPS, output)
}

/// What is not known of a node that is down.
const KEEPS: &str = "keeps";

#[derive(Clone, Debug, Serialize)]
struct WaitDocument {
    delivered: bool,
    waited_ms: u64,
    nodes: Vec<WaitedDocument>,
    /// Nodes that are down: what they keep is not waited for.
    not_asked: Vec<String>,
}

/// How far one node has come.
#[derive(Clone, Debug, Serialize)]
struct WaitedDocument {
    node: String,
    delivered: bool,
    /// Why it did not answer the last time.
    error: Option<String>,
    owed: Vec<TargetDocument>,
}

/// One node that is waited for.
struct HintsWait {
    admin: Admin,
    barrier: Bytes,
    state: WaitedDocument,
}

impl Wait for HintsWait {
    async fn look(&mut self) {
        let request = v1::WaitHintsRequest { barrier: self.barrier.clone(), wait_ms: Some(0) };
        match self.admin.wait_hints(request).await {
            Ok(answer) => {
                self.barrier = answer.barrier;
                self.state.delivered = answer.delivered;
                self.state.owed = answer.owed.iter().map(TargetDocument::new).collect();
                self.state.error = None;
            }
            Err(error) => self.state.error = Some(error.to_string()),
        }
    }

    fn is_done(&self) -> bool {
        self.state.delivered
    }
}

async fn wait_all(asked: Asked, within: Duration, output: Output) -> Result<(), Failure> {
    let wait = |(node, admin): (String, Admin)| HintsWait {
        admin,
        barrier: Bytes::new(),
        state: WaitedDocument { node, delivered: false, error: None, owed: Vec::new() },
    };
    let mut waits: Vec<_> = asked.nodes.into_iter().map(wait).collect();
    let progress = spinner(output, "asking");
    let still = |waits: &[HintsWait]| still_owed(waits.iter().map(|it| &it.state));
    let waited = wait_for(&mut waits, within, &progress, still).await;
    let document = WaitDocument {
        delivered: waits.iter().all(|it| it.state.delivered),
        waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        nodes: waits.into_iter().map(|it| it.state).collect(),
        not_asked: asked.not_asked,
    };
    document.tell(output)
}

impl WaitDocument {
    fn tell(&self, output: Output) -> Result<(), Failure> {
        let waited = spell_duration(Duration::from_millis(self.waited_ms));
        if output.is_json() {
            output.document(self)?;
        } else if self.delivered {
            let (ok, nodes) = (output.paint(Paint::Good, "ok"), self.nodes.len());
            output.line(&format!("{ok}  hints of {nodes} nodes delivered, after {waited}"))?;
            note_unknown(&self.not_asked, KEEPS, output)?;
        } else {
            let owed = self.nodes.iter().filter(|it| !it.delivered);
            let rows = owed.flat_map(|it| it.owed.iter().map(|target| (it.node.as_str(), target)));
            let table = table(rows);
            if !table.is_empty() {
                output.report(&table)?;
            }
            note_unknown(&self.not_asked, KEEPS, output)?;
        }
        if self.delivered {
            return Ok(());
        }
        let message = format!("after {waited} {}", still_owed(self.nodes.iter()));
        let failure = Failure::new("HINTS_OWED", message).exit(Exit::Failed);
        Err(failure.advise("bring back the targets that are away, and wait again"))
    }
}

/// Who is still waited for, and why.
fn still_owed<'a>(nodes: impl Iterator<Item = &'a WaitedDocument>) -> String {
    let owes = |it: &WaitedDocument| match &it.error {
        Some(error) => format!("{} does not answer: {error}", it.node),
        None => {
            let owed = it.owed.iter().map(|target| {
                let hints = target.hints + target.any_hints;
                format!("{} to {} ({})", spell_count(hints), target.name(), target.state)
            });
            format!("{} owes {}", it.node, owed.collect::<Vec<_>>().join(", "))
        }
    };
    nodes.filter(|it| !it.delivered).map(owes).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(hints: u64, any: u64) -> v1::TargetHints {
        let sum = |hints| v1::HintSum {
            hints,
            bytes: hints * 1_000,
            oldest_age_ms: (hints > 0).then_some(75_000),
        };
        v1::TargetHints {
            target_id: vec![7; 16].into(),
            target_address: "127.0.0.1:7404".to_owned(),
            datacenter: "fra".to_owned(),
            in_layout: true,
            ordinary: Some(sum(hints)),
            any: Some(sum(any)),
            dirty_marks: 3,
            state: v1::HandoffState::Refused.into(),
            refusal: "DISK_FULL".to_owned(),
        }
    }

    #[test]
    fn a_row_for_each_target() {
        let gone = v1::TargetHints {
            target_address: String::new(),
            in_layout: false,
            state: v1::HandoffState::Away.into(),
            refusal: String::new(),
            ..target(0, 12)
        };
        let targets = [target(1_234, 0), gone].map(|it| TargetDocument::new(&it));
        let table = table(targets.iter().map(|it| ("127.0.0.1:7400", it)));
        assert_eq!(
            table.separated(),
            "kept by\tfor\tdc\thints\tbytes\toldest\tof ANY\tdirty\tdelivery
127.0.0.1:7400\t127.0.0.1:7404\tfra\t1,234\t1205 KiB\t1m15s\t-\t3\trefused DISK_FULL
127.0.0.1:7400\t07070707-0707-0707-0707-070707070707\tfra\t0\t0 B\t1m15s\t12 (11 KiB)\t3\taway, not in the layout\n"
        );
    }

    #[test]
    fn who_is_waited_for() {
        let node = |node: &str, delivered, error: Option<&str>, owed: &[v1::TargetHints]| {
            let owed = owed.iter().map(TargetDocument::new).collect();
            let (node, error) = (node.to_owned(), error.map(ToOwned::to_owned));
            WaitedDocument { node, delivered, error, owed }
        };
        let nodes = [
            node("a:1", true, None, &[]),
            node("b:1", false, None, &[target(1_000, 5)]),
            node("c:1", false, Some("gone"), &[]),
        ];
        assert_eq!(
            still_owed(nodes.iter()),
            "b:1 owes 1,005 to 127.0.0.1:7404 (refused); c:1 does not answer: gone"
        );
    }
}
