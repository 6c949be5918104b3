//! `quorate delete`: deletes one row.

use clap::Args;

use super::{
    RowName,
    put::{WrittenDocument, report},
};
use crate::{
    args::{ConsistencyArgs, Global, RowArgs},
    connect::{connect_to_write, fail, local_datacenter},
    failure::{Attempt, Exit, Failure},
    output::Output,
};

/// Delete one row
///
/// Deleting a row that is not there succeeds: the deletion is a version of its own, and wins over
/// every older write.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate delete shop user:42
  quorate delete shop user:42 --sort cart:7 --consistency ALL")]
pub(crate) struct DeleteArgs {
    #[command(flatten)]
    row: RowArgs,

    #[command(flatten)]
    consistency: ConsistencyArgs,
}

/// Deletes the row and says under which version.
pub(crate) async fn run(args: DeleteArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let key = args.row.key()?;
    let client = connect_to_write(&global).await?;
    let keyspace = client.keyspace(args.row.keyspace.as_str());
    let mut call = keyspace.delete(&key);
    if let Some(level) = args.consistency.consistency {
        call = call.consistency(level);
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
