//! `quorate get`: reads one row.

use clap::Args;
use serde::Serialize;

use super::{RowName, addresses};
use crate::{
    args::{ConsistencyArgs, Global, RowArgs},
    connect::{connect, fail, local_datacenter},
    encoding::{Encoding, readable},
    failure::{Attempt, Exit, Failure},
    output::{Output, Paint},
};

/// Read one row
///
/// On a terminal the value is shown with its version; into a pipe or a file it goes byte for byte.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate get shop user:42
  quorate get shop user:42 --sort cart:7 --consistency ONE
  quorate get shop photo:1 > photo.jpg
  quorate get shop user:42 --json | jq .version

Exit code 5 means that there is no value: never written, deleted, or expired.")]
pub(crate) struct GetArgs {
    #[command(flatten)]
    row: RowArgs,

    #[command(flatten)]
    consistency: ConsistencyArgs,
}

/// Reads the row and writes its value.
pub(crate) async fn run(args: GetArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let key = args.row.key()?;
    let client = connect(&global).await?;
    let keyspace = client.keyspace(args.row.keyspace.as_str());
    let mut call = keyspace.get(&key);
    if let Some(level) = args.consistency.consistency {
        call = call.consistency(level);
    }
    let attempt = Attempt {
        keyspace: Some(args.row.keyspace.clone()),
        key: Some(args.row.name()),
        level: args.consistency.consistency,
        local_datacenter: local_datacenter(&client),
        ..Attempt::default()
    };
    let read = call.await.map_err(|error| fail(&error, &attempt))?;
    let answered = addresses(&client, &read.answered);
    show(&args, &key, &read, &answered, output)?;
    Ok(if read.value.is_some() { Exit::Ok } else { Exit::Absent })
}

fn show(
    args: &GetArgs,
    key: &model::Key,
    read: &client::Read,
    answered: &[String],
    output: Output,
) -> Result<(), Failure> {
    let encoding = args.row.encoding.get();
    let bytes = read.value.as_deref().unwrap_or_default();
    if output.is_json() {
        let row = RowName::beside(key, bytes, encoding);
        return output.document(&ReadDocument {
            keyspace: &args.row.keyspace,
            found: read.value.is_some(),
            value: read.value.as_ref().map(|it| row.encoding.write(it)),
            row,
            version: read.version.map(|it| it.to_string()),
            expires_at_ms: read.expires_at_ms,
            required: read.required,
            answered,
            overlap: read.overlap,
        });
    }
    let version = read.version.map_or_else(|| "none".to_owned(), |it| it.to_string());
    let Some(value) = &read.value else {
        let key = args.row.name();
        output.note(&format!("no value for {key} in {}  (version {version})", args.row.keyspace));
        return Ok(());
    };
    let encoded = encoding != Encoding::Text;
    if !output.is_terminal() {
        return match encoded {
            true => output.line(&encoding.write(value)),
            false => output.bytes(value),
        };
    }
    output.line(&if encoded { encoding.write(value) } else { readable(value) })?;
    let answered = answered.join(" ");
    let details = format!("version {version}  required {}, answered: {answered}", read.required);
    output.note(&output.paint(Paint::Faint, &details));
    Ok(())
}

#[derive(Serialize)]
struct ReadDocument<'a> {
    keyspace: &'a str,
    found: bool,
    #[serde(flatten)]
    row: RowName,
    value: Option<String>,
    version: Option<String>,
    expires_at_ms: Option<u64>,
    required: u32,
    answered: &'a [String],
    overlap: bool,
}
