//! `quorate put`: writes one row.

use std::{io::Read, time::Duration};

use bytes::Bytes;
use clap::Args;
use client::Keyspace;
use serde::Serialize;

use super::{RowName, addresses};
use crate::{
    args::{ConsistencyArgs, Global, RowArgs},
    connect::{connect_to_write, fail, local_datacenter},
    failure::{Attempt, Exit, Failure},
    output::{Output, Paint},
    values,
};

/// Write one row
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate put shop user:42 '{\"name\":\"Ada\"}'
  quorate put shop user:42 yes --sort cart:7 --consistency EACH_QUORUM --ttl 30m
  quorate put shop photo:1 - < photo.jpg
  quorate put shop 00ff 01 --hex

Exit code 3 means that the outcome is unknown: the write may have been applied, or may take effect
later. Writing again is a new write, with a newer version.")]
pub(crate) struct PutArgs {
    #[command(flatten)]
    row: RowArgs,

    /// The value; `-` reads it from standard input, byte for byte
    #[arg(allow_hyphen_values = true)]
    value: String,

    #[command(flatten)]
    consistency: ConsistencyArgs,

    /// Let the row expire after this long, such as 10m or 7d, or never, whatever the keyspace says
    #[arg(long, value_name = "DURATION|never", value_parser = values::ttl_or_never)]
    ttl: Option<Duration>,

    /// Name this write: part of its version, so that `admin explain` can find it
    #[arg(long, value_name = "NUMBER")]
    request_id: Option<u64>,
}

/// Writes the row and says under which version.
pub(crate) async fn run(args: PutArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let key = args.row.key()?;
    let value = args.value()?;
    let client = connect_to_write(&global).await?;
    let keyspace = client.keyspace(args.row.keyspace.as_str());
    let mut call = keyspace.put(key.clone(), value);
    if let Some(level) = args.consistency.consistency {
        call = call.consistency(level);
    }
    call = match args.ttl {
        Some(ttl) if ttl.is_zero() => call.no_ttl(),
        Some(ttl) => call.ttl(ttl),
        None => call,
    };
    if let Some(request_id) = args.request_id {
        call = call.request_id(request_id);
    }
    let attempt = Attempt {
        keyspace: Some(args.row.keyspace.clone()),
        key: Some(args.row.name()),
        level: args.consistency.consistency,
        writes: true,
        local_datacenter: local_datacenter(&client),
        ..Attempt::default()
    };
    let written = call.await.map_err(|error| fail(&error, &attempt))?;
    let name = RowName::new(&key, args.row.encoding.get());
    report(&WrittenDocument::new(&keyspace, name, &written), output)?;
    Ok(Exit::Ok)
}

impl PutArgs {
    fn value(&self) -> Result<Bytes, Failure> {
        if self.value != "-" {
            return self.row.encoding.read(&self.value);
        }
        let mut value = Vec::new();
        let read = std::io::stdin().lock().read_to_end(&mut value);
        read.map_err(|error| Failure::file("cannot read standard input", &error))?;
        Ok(value.into())
    }
}

/// A write that was acknowledged.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WrittenDocument<'a> {
    keyspace: &'a str,
    #[serde(flatten)]
    row: RowName,
    version: String,
    required: u32,
    answered: Vec<String>,
    overlap: bool,
}

impl<'a> WrittenDocument<'a> {
    pub(super) fn new(keyspace: &'a Keyspace, row: RowName, written: &client::Written) -> Self {
        Self {
            keyspace: keyspace.name(),
            row,
            version: written.version.to_string(),
            required: written.required,
            answered: addresses(keyspace.client(), &written.answered),
            overlap: written.overlap,
        }
    }
}

/// Says what a write did.
pub(super) fn report(written: &WrittenDocument<'_>, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(written);
    }
    let ok = output.paint(Paint::Good, "ok");
    let details = format!(
        "version {}  required {}, answered {}: {}{}",
        written.version,
        written.required,
        written.answered.len(),
        written.answered.join(" "),
        if written.overlap { "" } else { "  (R+W>N does not hold at this level)" },
    );
    output.line(&format!("{ok}  {}", output.paint(Paint::Faint, &details)))
}
