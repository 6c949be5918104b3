//! `quorate admin`: looks at a cluster and changes its shape.

mod asked;
mod convergence;
mod explain;
mod hints;
mod keyspace;
mod layout;
mod repair;
mod scrub;
mod snapshot;
mod status;

use clap::Subcommand;
use proto::v1;

use crate::{
    args::Global,
    connect::{connect, connect_to_write},
    encoding::hex,
    failure::{Attempt, Exit, Failure},
    output::Output,
};

/// Look at the cluster and change its shape
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum AdminCommand {
    Status(status::StatusArgs),
    #[command(subcommand)]
    Layout(layout::LayoutCommand),
    #[command(subcommand)]
    Keyspace(keyspace::KeyspaceCommand),
    Explain(explain::ExplainArgs),
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    Hints(hints::HintsArgs),
    Convergence(convergence::ConvergenceArgs),
    Repair(repair::RepairArgs),
    Scrub(scrub::ScrubArgs),
}

impl AdminCommand {
    /// True if it changes the cluster, or its nodes' snapshots.
    fn writes(&self) -> bool {
        use self::{
            keyspace::KeyspaceCommand::{Alter, Create, Drop},
            layout::LayoutCommand::Commit,
            snapshot::SnapshotCommand,
        };
        match self {
            Self::Layout(it) => matches!(it, Commit(_)),
            Self::Keyspace(it) => matches!(it, Create(_) | Alter(_) | Drop(_)),
            Self::Snapshot(it) => {
                matches!(it, SnapshotCommand::Create(_) | SnapshotCommand::Delete(_))
            }
            _ => false,
        }
    }
}

/// Runs one of the admin commands.
pub(crate) async fn run(
    command: AdminCommand,
    global: Global,
    output: Output,
) -> Result<Exit, Failure> {
    let client = match command.writes() {
        true => connect_to_write(&global).await?,
        false => connect(&global).await?,
    };
    let admin = client.admin();
    match command {
        AdminCommand::Status(_) => status::run(&admin, output).await?,
        AdminCommand::Layout(command) => layout::run(command, &admin, output).await?,
        AdminCommand::Keyspace(command) => keyspace::run(command, &admin, output).await?,
        AdminCommand::Explain(args) => explain::run(args, &admin, output).await?,
        AdminCommand::Snapshot(command) => snapshot::run(command, &admin, output).await?,
        AdminCommand::Hints(args) => hints::run(args, &admin, output).await?,
        AdminCommand::Convergence(args) => convergence::run(args, &admin, output).await?,
        AdminCommand::Repair(args) => repair::run(args, &admin, output).await?,
        AdminCommand::Scrub(args) => scrub::run(args, &admin, output).await?,
    }
    Ok(Exit::Ok)
}

/// A call that changes the cluster's shape, for its failure.
fn change() -> Attempt {
    Attempt { writes: true, ..Attempt::default() }
}

/// A call that only looks, for its failure.
fn look() -> Attempt {
    Attempt::default()
}

/// A hash as commands and results spell it.
fn spell_hash(hash: u64) -> String {
    format!("{hash:016x}")
}

/// Sixteen bytes as an id; empty for none.
fn spell_id(bytes: &[u8]) -> String {
    match <[u8; 16]>::try_from(bytes) {
        Ok(it) => uuid::Uuid::from_bytes(it).to_string(),
        Err(_) => hex(bytes),
    }
}

/// A level as commands spell it; `default` stands for none.
fn spell_level(consistency: Option<&v1::Consistency>) -> String {
    let level = consistency.and_then(|it| it.level().ok().flatten());
    level.map_or_else(|| "default".to_owned(), |it| it.to_string())
}

/// Replicas by datacenter, as `dc1=3,dc2=3`.
fn spell_replicas(replicas: &[v1::DatacenterReplicas]) -> String {
    let spelled: Vec<_> =
        replicas.iter().map(|it| format!("{}={}", it.datacenter, it.replicas)).collect();
    spelled.join(",")
}
