//! The commands, one file each, and the way from a parsed command line to one of them.

pub(crate) mod admin;
pub(crate) mod delete;
pub(crate) mod export;
pub(crate) mod get;
pub(crate) mod import;
pub(crate) mod put;
pub(crate) mod scan;
pub(crate) mod start;

use std::{future::Future, io};

use client::Client;
use model::{Key, NodeIndex};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::{
    args::{Cli, Command},
    bench, demo,
    encoding::Encoding,
    failure::{Exit, Failure},
    output::Output,
};

/// Runs one command to its end.
pub(crate) fn run(cli: Cli, output: Output) -> Result<Exit, Failure> {
    let Cli { global, command } = cli;
    let default_filter = match &command {
        Command::Start(_) => "info",
        _ => "off",
    };
    log_to_stderr(global.log.as_deref().unwrap_or(default_filter), &command, output)?;
    match command {
        Command::Start(args) => block_on(start::run(*args, output)),
        Command::Demo(args) => block_on(demo::run(args, global, output)),
        Command::Put(args) => block_on(put::run(args, global, output)),
        Command::Get(args) => block_on(get::run(args, global, output)),
        Command::Delete(args) => block_on(delete::run(args, global, output)),
        Command::Scan(args) => block_on(scan::run(args, global, output)),
        Command::Import(args) => block_on(import::run(args, global, output)),
        Command::Export(args) => block_on(export::run(args, global, output)),
        Command::Admin(command) => block_on(admin::run(command, global, output)),
        Command::Bench(command) => block_on(bench::run(command, global, output)),
        Command::EchoServer(args) => block_on(bench::echo::run(args, output)),
    }
}

/// One thread for the whole command: a load generator with more disturbs what it measures.
fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::file("cannot start the I/O loop", &error))?;
    runtime.block_on(command)
}

fn log_to_stderr(filter: &str, command: &Command, output: Output) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| Failure::usage(format!("--log {filter:?}: {error}")))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if output.is_json() && matches!(command, Command::Start(_)) {
        log.json().flatten_event(true).init();
    } else {
        log.with_ansi(output.error_colour()).init();
    }
    Ok(())
}

/// Where the nodes of a reply listen for clients; `?` for one that the client does not know yet.
pub(crate) fn addresses(client: &Client, nodes: &[NodeIndex]) -> Vec<String> {
    let topology = client.topology();
    let address = |it: &NodeIndex| topology.node(*it).map_or("?", |it| it.address.as_str());
    nodes.iter().map(|it| address(it).to_owned()).collect()
}

/// A row's name in JSON.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RowName {
    pub(crate) key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) sort_key: String,
    /// How `key`, `sort_key` and `value` are written.
    pub(crate) encoding: Encoding,
}

impl RowName {
    /// The name in the encoding asked for, or in base64 if that cannot write it.
    pub(crate) fn new(key: &Key, encoding: Encoding) -> Self {
        Self::beside(key, b"", encoding)
    }

    /// The name in an encoding that can write `value` too.
    pub(crate) fn beside(key: &Key, value: &[u8], encoding: Encoding) -> Self {
        let encoding = encoding.fitting(&[&key.partition_key, &key.sort_key, value]);
        Self {
            key: encoding.write(&key.partition_key),
            sort_key: encoding.write(&key.sort_key),
            encoding,
        }
    }
}
