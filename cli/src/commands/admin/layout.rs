//! `quorate admin layout`: who holds which partition, planned first and committed second.

use clap::{Args, Subcommand};
use client::Admin;
use proto::v1;
use serde::Serialize;

use super::{change, look, spell_hash, spell_id, status::NodeDocument};
use crate::{
    connect::fail,
    failure::Failure,
    output::{Output, Paint},
    table::{Cell, Table},
};

/// Show, plan and commit who holds which partition
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LayoutCommand {
    /// Show the present layout
    Show,
    /// Compute the layout for the nodes that are up, and change nothing
    Plan(PlanArgs),
    /// Commit the layout that was planned; refused if anything has changed since
    Commit(CommitArgs),
}

/// Options of `plan`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate admin layout plan
  quorate admin layout commit --plan 0123456789abcdef")]
pub(crate) struct PlanArgs {
    /// Partitions of the ring, a power of two; fixed with the first layout [default: 256]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    partitions: u32,
}

/// Options of `commit`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CommitArgs {
    /// The plan, as `plan` named it
    #[arg(long, value_name = "HASH", value_parser = read_hash)]
    plan: u64,

    /// As given to `plan`
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    partitions: u32,
}

/// Runs one of the layout commands.
pub(super) async fn run(
    command: LayoutCommand,
    admin: &Admin,
    output: Output,
) -> Result<(), Failure> {
    match command {
        LayoutCommand::Show => show(admin, output).await,
        LayoutCommand::Plan(args) => plan(&args, admin, output).await,
        LayoutCommand::Commit(args) => commit(&args, admin, output).await,
    }
}

async fn show(admin: &Admin, output: Output) -> Result<(), Failure> {
    let topology = admin.topology().await.map_err(|error| fail(&error, &look()))?;
    let document = LayoutDocument {
        cluster_id: spell_id(&topology.cluster_id),
        layout_version: topology.layout_version,
        layout_hash: spell_hash(topology.layout_hash),
        partitions: topology.partitions,
        nodes: topology.nodes.iter().map(NodeDocument::new).collect(),
        assignments: topology.assignments.iter().map(AssignmentDocument::new).collect(),
    };
    if output.is_json() {
        return output.document(&document);
    }
    if document.layout_version == 0 {
        return output.line("No layout yet: `quorate admin layout plan` computes the first.");
    }
    output.line(&format!(
        "Layout {}  hash {}  {} partitions  cluster {}",
        document.layout_version, document.layout_hash, document.partitions, document.cluster_id
    ))?;
    output.line("")?;
    output.report(&holders(&topology))
}

/// How many partitions each node holds, and how many as the first replica of its datacenter.
fn holders(topology: &v1::GetTopologyResponse) -> Table {
    let mut table = Table::new(&["clients", "dc", "rack", ">partitions", ">first in", "node"]);
    let mut nodes: Vec<_> = topology.nodes.iter().enumerate().collect();
    nodes.sort_by_key(|(_, it)| (&it.datacenter, &it.rack, &it.client_address));
    for (index, node) in nodes {
        let first: usize = topology
            .assignments
            .iter()
            .map(|it| firsts(it).filter(|first| usize::try_from(*first) == Ok(index)).count())
            .sum();
        table.row([
            node.client_address.as_str().into(),
            node.datacenter.as_str().into(),
            node.rack.as_str().into(),
            node.partitions.to_string().into(),
            first.to_string().into(),
            spell_id(&node.node_id).into(),
        ]);
    }
    table
}

/// The first node of every partition's list.
fn firsts(assignment: &v1::Assignment) -> impl Iterator<Item = u32> + '_ {
    let length = usize::try_from(assignment.list_length).unwrap_or_default().max(1);
    assignment.nodes.iter().copied().step_by(length)
}

async fn plan(args: &PlanArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let planned = admin.plan_layout(args.partitions).await;
    let plan = planned.map_err(|error| fail(&error, &look()))?;
    let document = PlanDocument::new(&plan);
    if output.is_json() {
        return output.document(&document);
    }
    output.line(&format!(
        "Plan {}: layout {} of {} partitions. Nothing has changed yet.",
        document.plan, document.layout_version, document.partitions
    ))?;
    output.line("")?;
    output.report(&document.table())?;
    for violation in &document.violations {
        output.line(&output.paint(Paint::Warning, &format!("WARNING: {violation}")))?;
    }
    if document.layout_version > 1 {
        return output
            .line("\nIt cannot be committed: this version changes no layout that is in force.");
    }
    let mut command = format!("quorate admin layout commit --plan {}", document.plan);
    if args.partitions != 0 {
        command += &format!(" --partitions {}", args.partitions);
    }
    output.line(&format!("\nTo commit it: {command}"))
}

async fn commit(args: &CommitArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let committed = admin.commit_layout(args.plan, args.partitions).await;
    let layout = committed.map_err(|error| fail(&error, &change()))?;
    let document = CommittedDocument {
        layout_version: layout.layout_version,
        layout_hash: spell_hash(layout.layout_hash),
        cluster_id: spell_id(&layout.cluster_id),
    };
    if output.is_json() {
        return output.document(&document);
    }
    output.line(&format!(
        "{}  layout {} of cluster {} is committed",
        output.paint(Paint::Good, "ok"),
        document.layout_version,
        document.cluster_id
    ))
}

#[derive(Clone, Debug, Serialize)]
struct LayoutDocument {
    cluster_id: String,
    layout_version: u64,
    layout_hash: String,
    partitions: u32,
    nodes: Vec<NodeDocument>,
    assignments: Vec<AssignmentDocument>,
}

/// For each partition in order, `list_length` indexes into `nodes`.
#[derive(Clone, Debug, Serialize)]
struct AssignmentDocument {
    datacenter: String,
    list_length: u32,
    nodes: Vec<u32>,
}

impl AssignmentDocument {
    fn new(it: &v1::Assignment) -> Self {
        let nodes = it.nodes.clone();
        Self { datacenter: it.datacenter.clone(), list_length: it.list_length, nodes }
    }
}

#[derive(Clone, Debug, Serialize)]
struct CommittedDocument {
    layout_version: u64,
    layout_hash: String,
    cluster_id: String,
}

#[derive(Clone, Debug, Serialize)]
struct PlanDocument {
    plan: String,
    layout_version: u64,
    partitions: u32,
    nodes: Vec<PlannedNodeDocument>,
    violations: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct PlannedNodeDocument {
    client_address: String,
    datacenter: String,
    rack: String,
    node_id: String,
    partitions: u32,
    gains: u32,
    losses: u32,
}

impl PlanDocument {
    fn new(plan: &v1::PlanLayoutResponse) -> Self {
        let node = |it: &v1::PlannedNode| {
            let node = it.node.clone().unwrap_or_default();
            PlannedNodeDocument {
                client_address: node.client_address,
                datacenter: node.datacenter,
                rack: node.rack,
                node_id: spell_id(&node.node_id),
                partitions: it.partitions,
                gains: it.gains,
                losses: it.losses,
            }
        };
        Self {
            plan: spell_hash(plan.plan_hash),
            layout_version: plan.layout_version,
            partitions: plan.partitions,
            nodes: plan.nodes.iter().map(node).collect(),
            violations: plan.violations.clone(),
        }
    }

    fn table(&self) -> Table {
        let columns = ["clients", "dc", "rack", ">partitions", ">gains", ">gives up", "node"];
        let mut table = Table::new(&columns);
        let mut nodes: Vec<_> = self.nodes.iter().collect();
        nodes.sort_by_key(|it| (&it.datacenter, &it.rack, &it.client_address));
        for it in nodes {
            table.row([
                it.client_address.as_str().into(),
                it.datacenter.as_str().into(),
                it.rack.as_str().into(),
                it.partitions.to_string().into(),
                signed("+", it.gains),
                signed("-", it.losses),
                it.node_id.as_str().into(),
            ]);
        }
        table
    }
}

fn signed(sign: &str, count: u32) -> Cell {
    if count == 0 { "".into() } else { format!("{sign}{count}").into() }
}

fn read_hash(text: &str) -> Result<u64, String> {
    let digits = text.len() == 16 && text.bytes().all(|it| it.is_ascii_hexdigit());
    let hash = if digits { u64::from_str_radix(text, 16).ok() } else { None };
    hash.ok_or_else(|| format!("{text:?} is no plan: it has 16 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_named_as_it_is_read() {
        assert_eq!(read_hash(&spell_hash(77)), Ok(77));
        for wrong in ["", "77", "000000000000004g", "+00000000000004d"] {
            assert!(read_hash(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_plan_shows_what_moves() {
        let node = v1::NodeInfo {
            client_address: "127.0.0.1:7400".to_owned(),
            datacenter: "dc1".to_owned(),
            rack: "r1".to_owned(),
            node_id: vec![1; 16].into(),
            ..v1::NodeInfo::default()
        };
        let plan = v1::PlanLayoutResponse {
            nodes: vec![v1::PlannedNode {
                node: Some(node),
                partitions: 256,
                gains: 256,
                losses: 0,
            }],
            ..v1::PlanLayoutResponse::default()
        };
        assert_eq!(
            PlanDocument::new(&plan).table().aligned(false),
            "clients         dc   rack  partitions  gains  gives up  node
127.0.0.1:7400  dc1  r1           256   +256            01010101-0101-0101-0101-010101010101
"
        );
    }

    #[test]
    fn the_first_of_each_list() {
        let assignment = v1::Assignment {
            nodes: vec![2, 0, 1, 0, 1, 2],
            list_length: 3,
            ..v1::Assignment::default()
        };
        assert_eq!(firsts(&assignment).collect::<Vec<_>>(), [2, 0]);
    }
}
