//! `quorate admin snapshot`: copies of every node's data at one moment, on the nodes' own disks.
//!
//! Each node makes its own, and is asked for it alone: what one of them answers says nothing of another.

mod documents;

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use clap::{Args, Subcommand};
use client::Admin;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use proto::{CallOutcome, v1};

use documents::{
    CallDocument, ListDocument, NodeDocument, SnapshotDocument, Verdict, VerifyDocument,
};

use super::{change, look};
use crate::{
    connect::fail,
    failure::{Attempt, Effect, Exit, Failure},
    output::{Output, Paint},
    progress,
    table::Table,
    values::spell_time,
};

/// Make, list, verify and delete snapshots of the nodes' data
#[derive(Clone, Debug, Subcommand)]
#[command(after_help = "\
A snapshot lies in the node's data directory, under snapshots/NAME, and shares its files with the
database: what is overwritten or deleted later stays in it, but a file that the disk damages is damaged
in both. Copy it to another disk to survive the loss of this one. `quorate start --restore` begins with
one.")]
pub(crate) enum SnapshotCommand {
    Create(CreateArgs),
    /// List the snapshots of every node
    List(WhichArgs),
    /// Compare a snapshot with its manifest on every node: names every file missing, extra or changed
    Verify(NameArgs),
    /// Delete a snapshot on every node
    Delete(NameArgs),
}

/// Make a snapshot on every node, without a pause
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate admin snapshot create before-upgrade
  quorate admin snapshot create --only 10.0.0.1:7400

The nodes make theirs at about the same time, not at one instant.")]
pub(crate) struct CreateArgs {
    /// Its name: letters and digits, and between them - _ . [default: the present time in UTC]
    name: Option<String>,

    #[command(flatten)]
    which: WhichArgs,
}

/// A snapshot, and where.
#[derive(Clone, Debug, Args)]
pub(crate) struct NameArgs {
    /// Its name
    name: String,

    #[command(flatten)]
    which: WhichArgs,
}

/// Which nodes are asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct WhichArgs {
    /// Ask this node alone, not every node of the cluster
    #[arg(long, value_name = "ADDR")]
    only: Option<String>,
}

/// Runs one of the snapshot commands.
pub(super) async fn run(
    command: SnapshotCommand,
    admin: &Admin,
    output: Output,
) -> Result<(), Failure> {
    let (which, name) = match &command {
        SnapshotCommand::Create(args) => (&args.which, args.name.clone().unwrap_or_else(time_name)),
        SnapshotCommand::List(which) => (which, String::new()),
        SnapshotCommand::Verify(args) | SnapshotCommand::Delete(args) => {
            (&args.which, args.name.clone())
        }
    };
    let asked = Asked { addresses: addresses(which, admin).await?, admin, output };
    match command {
        SnapshotCommand::Create(_) => asked.create(&name).await,
        SnapshotCommand::List(_) => asked.list().await,
        SnapshotCommand::Verify(_) => asked.verify(&name).await,
        SnapshotCommand::Delete(_) => asked.delete(&name).await,
    }
}

/// The node asked for, or every node that the cluster knows, up or not.
async fn addresses(which: &WhichArgs, admin: &Admin) -> Result<Vec<String>, Failure> {
    if let Some(only) = &which.only {
        return Ok(vec![only.clone()]);
    }
    let status = admin.status().await.map_err(|error| fail(&error, &look()))?;
    let mut nodes: Vec<_> = status.nodes.into_iter().map(|it| it.client_address).collect();
    nodes.sort();
    Ok(nodes)
}

/// A name that sorts by time: `20261121-185631`.
fn time_name() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let text = spell_time(now.unwrap_or_default());
    text.chars().filter(|it| it.is_ascii_digit() || *it == ' ').map(dash).collect()
}

fn dash(it: char) -> char {
    if it == ' ' { '-' } else { it }
}

/// The nodes that are asked, and how.
struct Asked<'a> {
    addresses: Vec<String>,
    admin: &'a Admin,
    output: Output,
}

/// What one node answered.
struct Answer<T> {
    address: String,
    result: Result<T, client::Error>,
}

impl Asked<'_> {
    /// Asks all of them at once.
    async fn ask<T>(
        &self,
        call: impl AsyncFn(&Admin, &str) -> Result<T, client::Error>,
    ) -> Vec<Answer<T>> {
        let ask = async |address: &String| {
            let result = match self.admin.clone().at_node(address) {
                Ok(admin) => call(&admin, address).await,
                Err(error) => Err(error),
            };
            Answer { address: address.clone(), result }
        };
        join_all(self.addresses.iter().map(ask)).await
    }

    async fn create(&self, name: &str) -> Result<(), Failure> {
        let bar = Bar::new(self.output);
        let answers = self
            .ask(async |admin, address| {
                admin.create_snapshot(name, |it| bar.show(address, &it)).await
            })
            .await;
        bar.finish();
        let created = |it: &_| Some(SnapshotDocument::new(it));
        let nodes = answers.iter().map(|it| NodeDocument::new(it, "created", created));
        self.report("created", name, nodes.collect(), &answers)
    }

    async fn delete(&self, name: &str) -> Result<(), Failure> {
        let answers = self.ask(async |admin, _| admin.delete_snapshot(name).await).await;
        let nodes = answers.iter().map(|it| NodeDocument::new(it, "deleted", |_| None));
        self.report("deleted", name, nodes.collect(), &answers)
    }

    /// Says what became of a call that changes each node's own snapshots.
    fn report<T>(
        &self,
        verb: &str,
        name: &str,
        nodes: Vec<NodeDocument>,
        answers: &[Answer<T>],
    ) -> Result<(), Failure> {
        let failed = failure(answers, &change());
        if self.output.is_json() {
            self.output.document(&CallDocument { snapshot: name, nodes })?;
            return failed.map_or(Ok(()), Err);
        }
        if failed.is_none() {
            let (ok, nodes) = (self.output.paint(Paint::Good, "ok"), count(nodes.len(), "node"));
            self.output.line(&format!("{ok}  {verb} {name} on {nodes}"))?;
        }
        let mut table = Table::new(&["node", ">files", ">bytes", "what happened"]);
        for node in &nodes {
            table.row(node.cells());
        }
        self.output.table(&table)?;
        failed.map_or(Ok(()), Err)
    }

    async fn list(&self) -> Result<(), Failure> {
        let answers = self.ask(async |admin, _| admin.list_snapshots().await).await;
        let failed = failure(&answers, &look());
        let nodes: Vec<_> = answers.iter().map(ListDocument::new).collect();
        if self.output.is_json() {
            self.output.document(&serde_json::json!({ "nodes": nodes }))?;
            return failed.map_or(Ok(()), Err);
        }
        let columns =
            ["snapshot", "node", "made (UTC)", ">files", ">bytes", "keyspaces", "storage"];
        let mut table = Table::new(&columns);
        let mut rows: Vec<_> =
            nodes.iter().flat_map(|it| it.snapshots.iter().map(|one| (one, it.address))).collect();
        rows.sort_by(|a, b| (&a.0.name, a.1).cmp(&(&b.0.name, b.1)));
        for (snapshot, address) in &rows {
            table.row(snapshot.cells(address));
        }
        if rows.is_empty() && failed.is_none() && self.output.is_terminal() {
            let hint = "No snapshots yet: `quorate admin snapshot create` makes one on every node.";
            return self.output.line(hint);
        }
        self.output.table(&table)?;
        failed.map_or(Ok(()), Err)
    }

    async fn verify(&self, name: &str) -> Result<(), Failure> {
        let bar = Bar::new(self.output);
        let answers = self
            .ask(async |admin, address| {
                admin.verify_snapshot(name, |it| bar.show(address, &it)).await
            })
            .await;
        bar.finish();
        let failed = failure(&answers, &look());
        let nodes: Vec<_> = answers.iter().map(VerifyDocument::new).collect();
        let damaged: Vec<_> = nodes.iter().filter(|it| it.verdict == Verdict::Damaged).collect();
        let damage = (!damaged.is_empty()).then(|| {
            let nodes: Vec<_> = damaged.iter().map(|it| it.address).collect();
            let message = format!("snapshot {name} is not as it was made on {}", nodes.join(", "));
            Failure::new("SNAPSHOT_DAMAGED", message)
                .advise("delete it there, and make another")
                .advise("look at the disk, which the database shares")
        });
        if self.output.is_json() {
            self.output.document(&serde_json::json!({ "snapshot": name, "nodes": nodes }))?;
            return damage.or(failed).map_or(Ok(()), Err);
        }
        let mut table = Table::new(&["node", "verdict", "file", "problem", "detail"]);
        for node in &nodes {
            node.rows(&mut table);
        }
        self.output.table(&table)?;
        damage.or(failed).map_or(Ok(()), Err)
    }
}

/// The failure of a call to several nodes; none if all of them did it.
fn failure<T>(answers: &[Answer<T>], attempt: &Attempt) -> Option<Failure> {
    let errors: Vec<_> =
        answers.iter().filter_map(|it| Some((&it.address, it.result.as_ref().err()?))).collect();
    let (_, first) = errors.first()?;
    if answers.len() == 1 {
        return Some(fail(first, attempt));
    }
    let spelled: Vec<_> =
        errors.iter().map(|(address, it)| format!("{address}: {}", it.message())).collect();
    let (failed, asked) = (errors.len(), answers.len());
    let message = format!("{failed} of {asked} nodes failed: {}", spelled.join("; "));
    let it = Failure::new("NODES_FAILED", message).advise("quorate admin status");
    let none_answered = errors.len() == asked && errors.iter().all(|it| !it.1.is_answer());
    let it = if none_answered { it.exit(Exit::Unavailable) } else { it };
    if !attempt.writes {
        return Some(it.advise("--only ADDRESS for one of the others"));
    }
    let unknown = errors.iter().any(|it| it.1.outcome() == CallOutcome::Unknown);
    Some(match (failed < asked, unknown) {
        (true, _) => it.effect(Effect::Partial),
        (false, true) => it.effect(Effect::Unknown).exit(Exit::OutcomeUnknown),
        (false, false) => it.effect(Effect::NotApplied),
    })
}

/// How far all nodes are together.
struct Bar {
    bar: ProgressBar,
    nodes: Mutex<BTreeMap<String, v1::SnapshotProgress>>,
}

impl Bar {
    fn new(output: Output) -> Self {
        Self { bar: progress::bytes_bar(output, Some(0)), nodes: Mutex::default() }
    }

    fn show(&self, address: &str, progress: &v1::SnapshotProgress) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(address.to_owned(), *progress);
        let sum = |of: fn(&v1::SnapshotProgress) -> u64| nodes.values().map(of).sum::<u64>();
        self.bar.set_length(sum(|it| it.bytes));
        self.bar.set_position(sum(|it| it.bytes_done));
        let (done, all) = (sum(|it| it.files_done), sum(|it| it.files));
        self.bar.set_message(format!("{done} of {all} files on {}", count(nodes.len(), "node")));
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn count(many: usize, what: &str) -> String {
    format!("{many} {what}{}", if many == 1 { "" } else { "s" })
}
