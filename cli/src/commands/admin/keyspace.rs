//! `quorate admin keyspace`: namespaces, their replication and their defaults.

use std::time::Duration;

use clap::{Args, Subcommand};
use client::Admin;
use model::ConsistencyLevel;
use proto::v1;

use super::{change, look, status::KeyspaceDocument};
use crate::{
    connect::fail,
    failure::{Attempt, Failure},
    output::{Output, Paint},
    values,
};

/// Create, alter, drop and list keyspaces
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum KeyspaceCommand {
    Create(CreateArgs),
    Alter(AlterArgs),
    Drop(DropArgs),
    /// List the keyspaces
    List,
}

/// Create a keyspace
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate admin keyspace create shop
  quorate admin keyspace create shop --replicas fra=3,ams=3 --read LOCAL_QUORUM --write LOCAL_QUORUM
  quorate admin keyspace create sessions --ttl 30m --require-overlap

Default levels that do not satisfy R+W>N are refused, unless --accept-weak-defaults.")]
pub(crate) struct CreateArgs {
    /// The keyspace's name: a-z, 0-9 and _, at most 48 characters
    name: String,

    /// Replicas per datacenter [default: 3, or as many as there are nodes, in each]
    #[arg(long, value_name = "DC=N[,DC=N]", value_delimiter = ',', value_parser = values::replicas)]
    replicas: Vec<(String, u32)>,

    /// The level of reads that name none [default: QUORUM, or LOCAL_QUORUM with several
    /// datacenters]
    #[arg(long, value_name = "LEVEL")]
    read: Option<ConsistencyLevel>,

    /// The level of writes that name none [default: as for reads]
    #[arg(long, value_name = "LEVEL")]
    write: Option<ConsistencyLevel>,

    /// Rows expire after this long, unless their write says otherwise
    #[arg(long, value_name = "DURATION", value_parser = values::ttl)]
    ttl: Option<Duration>,

    /// Refuse calls whose level would break R+W>N
    #[arg(long)]
    require_overlap: bool,

    /// Allow writes at ANY, which a hint alone satisfies
    #[arg(long)]
    allow_any: bool,

    /// Accept default levels that do not satisfy R+W>N
    #[arg(long)]
    accept_weak_defaults: bool,
}

/// Change a keyspace's defaults; what is not named stays
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Example:
  quorate admin keyspace alter shop --write EACH_QUORUM --require-overlap true")]
pub(crate) struct AlterArgs {
    /// The keyspace
    name: String,

    /// The level of reads that name none
    #[arg(long, value_name = "LEVEL")]
    read: Option<ConsistencyLevel>,

    /// The level of writes that name none
    #[arg(long, value_name = "LEVEL")]
    write: Option<ConsistencyLevel>,

    /// When rows expire whose write does not say: a duration, or never
    #[arg(long, value_name = "DURATION", value_parser = values::ttl_or_never)]
    ttl: Option<Duration>,

    /// Refuse calls whose level would break R+W>N
    #[arg(long, value_name = "BOOL")]
    require_overlap: Option<bool>,

    /// Allow writes at ANY
    #[arg(long, value_name = "BOOL")]
    allow_any: Option<bool>,

    /// Accept default levels that do not satisfy R+W>N
    #[arg(long)]
    accept_weak_defaults: bool,
}

/// Drop a keyspace and all its data
#[derive(Clone, Debug, Args)]
pub(crate) struct DropArgs {
    /// The keyspace
    name: String,

    /// Yes, and all its data
    #[arg(long)]
    yes: bool,
}

/// Runs one of the keyspace commands.
pub(super) async fn run(
    command: KeyspaceCommand,
    admin: &Admin,
    output: Output,
) -> Result<(), Failure> {
    match command {
        KeyspaceCommand::Create(args) => create(args, admin, output).await,
        KeyspaceCommand::Alter(args) => alter(args, admin, output).await,
        KeyspaceCommand::Drop(args) => remove(&args, admin, output).await,
        KeyspaceCommand::List => list(admin, output).await,
    }
}

async fn create(args: CreateArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let replicas = args.replicas.into_iter();
    let keyspace = v1::Keyspace {
        name: args.name,
        replicas: replicas
            .map(|(datacenter, replicas)| v1::DatacenterReplicas { datacenter, replicas })
            .collect(),
        read_consistency: args.read.map(Into::into),
        write_consistency: args.write.map(Into::into),
        default_ttl_seconds: args.ttl.map_or(0, |it| it.as_secs()),
        require_overlap: args.require_overlap,
        allow_any: args.allow_any,
        id: 0,
    };
    let request = v1::CreateKeyspaceRequest {
        keyspace: Some(keyspace),
        accept_weak_defaults: args.accept_weak_defaults,
    };
    let created = admin.create_keyspace(request).await;
    let keyspace = created.map_err(|error| fail(&error, &definition(CREATE_HELP)))?;
    report("created", &keyspace, output)
}

async fn alter(args: AlterArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let request = v1::AlterKeyspaceRequest {
        name: args.name,
        read_consistency: args.read.map(Into::into),
        write_consistency: args.write.map(Into::into),
        default_ttl_seconds: args.ttl.map(|it| it.as_secs()),
        require_overlap: args.require_overlap,
        allow_any: args.allow_any,
        accept_weak_defaults: args.accept_weak_defaults,
    };
    let altered = admin.alter_keyspace(request).await;
    let keyspace = altered.map_err(|error| fail(&error, &definition(ALTER_HELP)))?;
    report("altered", &keyspace, output)
}

const CREATE_HELP: &str = "quorate admin keyspace create --help";
const ALTER_HELP: &str = "quorate admin keyspace alter --help";

/// A call that defines a keyspace, for its failure.
fn definition(help: &'static str) -> Attempt {
    Attempt { help: Some(help), ..change() }
}

async fn remove(args: &DropArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let name = &args.name;
    if !args.yes {
        let problem = format!("dropping {name} deletes all its data on every node");
        return Err(Failure::usage(problem).advise("the same with --yes"));
    }
    admin.drop_keyspace(name).await.map_err(|error| fail(&error, &change()))?;
    if output.is_json() {
        return output.document(&serde_json::json!({ "dropped": name }));
    }
    output.line(&format!("{}  dropped {name}", output.paint(Paint::Good, "ok")))
}

async fn list(admin: &Admin, output: Output) -> Result<(), Failure> {
    let keyspaces = admin.list_keyspaces().await.map_err(|error| fail(&error, &look()))?;
    let keyspaces: Vec<_> = keyspaces.iter().map(KeyspaceDocument::new).collect();
    if output.is_json() {
        return output.document(&serde_json::json!({ "keyspaces": keyspaces }));
    }
    if keyspaces.is_empty() && output.is_terminal() {
        return output.line("No keyspaces yet: `quorate admin keyspace create NAME` makes one.");
    }
    output.table(&KeyspaceDocument::table(&keyspaces))
}

fn report(verb: &str, keyspace: &v1::Keyspace, output: Output) -> Result<(), Failure> {
    let document = KeyspaceDocument::new(keyspace);
    if output.is_json() {
        return output.document(&document);
    }
    let ok = output.paint(Paint::Good, "ok");
    output.line(&format!("{ok}  {verb} {}", keyspace.name))?;
    output.table(&KeyspaceDocument::table(&[document]))
}
