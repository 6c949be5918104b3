//! `quorate scan`: reads the rows of one partition key in sort-key order, or all rows of a keyspace.

use clap::Args;
use client::ScanRange;
use serde::Serialize;

use super::RowName;
use crate::{
    args::{ConsistencyArgs, EncodingArgs, Global},
    connect::{connect, fail, local_datacenter},
    encoding::{Encoding, readable},
    failure::{Attempt, Exit, Failure},
    output::{Output, Paint},
    table::{Cell, Table},
    values::{spell_count, spell_word},
};

/// A value's characters on a terminal, beyond which it is cut.
const VALUE_CHARACTERS_SHOWN: usize = 80;

/// Read the rows of one partition key, or of a whole keyspace
///
/// Every row meets the consistency level at some instant of the scan; a scan is no snapshot. Rows
/// of a partition key come in sort-key order, those of a keyspace in token order.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate scan shop user:42
  quorate scan shop user:42 --prefix order: --reverse --limit 10
  quorate scan shop user:42 --start 2024-01-01 --end 2025-01-01
  quorate scan shop --json --limit 1000 > some.ndjson

With --json each line is a row, in the form that `quorate import` reads.")]
pub(crate) struct ScanArgs {
    /// The keyspace
    keyspace: String,

    /// The partition key; without one, all rows of the keyspace
    partition_key: Option<String>,

    /// Only sort keys that begin with this
    #[arg(long, value_name = "SORT_KEY", requires = "partition_key")]
    prefix: Option<String>,

    /// From this sort key on
    #[arg(long, value_name = "SORT_KEY", requires = "partition_key")]
    start: Option<String>,

    /// Up to this sort key, without it
    #[arg(long, value_name = "SORT_KEY", requires = "partition_key")]
    end: Option<String>,

    /// From the last row to the first
    #[arg(long, requires = "partition_key")]
    reverse: bool,

    /// At most so many rows
    #[arg(long, value_name = "ROWS")]
    limit: Option<u64>,

    #[command(flatten)]
    encoding: EncodingArgs,

    #[command(flatten)]
    consistency: ConsistencyArgs,
}

/// Writes the rows as their pages come.
pub(crate) async fn run(args: ScanArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let client = connect(&global).await?;
    let mut scan = client.keyspace(args.keyspace.as_str()).scan(args.range()?);
    if let Some(level) = args.consistency.consistency {
        scan = scan.consistency(level);
    }
    if let Some(limit) = args.limit {
        scan = scan.limit(limit);
    }
    let attempt = Attempt {
        keyspace: Some(args.keyspace.clone()),
        key: args.partition_key.as_deref().map(spell_word),
        level: args.consistency.consistency,
        local_datacenter: local_datacenter(&client),
        ..Attempt::default()
    };
    let mut rows = 0u64;
    while let Some(page) = scan.next_page().await.map_err(|error| fail(&error, &attempt))? {
        show(&page.rows, rows == 0, &args, output)?;
        rows += u64::try_from(page.rows.len()).expect("a page is small");
    }
    if output.is_terminal() {
        output.line(&output.paint(Paint::Faint, &format!("({} rows)", spell_count(rows))))?;
    }
    Ok(Exit::Ok)
}

impl ScanArgs {
    fn range(&self) -> Result<ScanRange, Failure> {
        let Some(partition_key) = &self.partition_key else { return Ok(ScanRange::all()) };
        let mut range = ScanRange::partition(self.encoding.read(partition_key)?);
        if let Some(it) = &self.prefix {
            range = range.prefix(self.encoding.read(it)?);
        }
        if let Some(it) = &self.start {
            range = range.start(self.encoding.read(it)?);
        }
        if let Some(it) = &self.end {
            range = range.end(self.encoding.read(it)?);
        }
        Ok(if self.reverse { range.reverse().into() } else { range.into() })
    }
}

fn show(
    rows: &[client::Row],
    first_page: bool,
    args: &ScanArgs,
    output: Output,
) -> Result<(), Failure> {
    let encoding = args.encoding.get();
    if output.is_json() {
        return rows.iter().try_for_each(|it| output.document(&RowDocument::new(it, encoding)));
    }
    let columns = ["key", "sort key", "value"];
    let mut table =
        if first_page { Table::new(&columns) } else { Table::without_header(columns.len()) };
    let text = |bytes: &[u8]| match encoding {
        Encoding::Text => readable(bytes),
        other => other.write(bytes),
    };
    for row in rows {
        let value = text(&row.value);
        let value = if output.is_terminal() { cut(value) } else { value };
        table.row([text(&row.key.partition_key), text(&row.key.sort_key), value].map(Cell::from));
    }
    if table.is_empty() { Ok(()) } else { output.table(&table) }
}

fn cut(text: String) -> String {
    match text.char_indices().nth(VALUE_CHARACTERS_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// A row as `scan`, `export` and `import` know it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct RowDocument {
    #[serde(flatten)]
    name: RowName,
    value: String,
    version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_ms: Option<u64>,
}

impl RowDocument {
    /// The row in the encoding asked for, or in base64 if that cannot write it.
    pub(crate) fn new(row: &client::Row, encoding: Encoding) -> Self {
        let name = RowName::beside(&row.key, &row.value, encoding);
        Self {
            value: name.encoding.write(&row.value),
            name,
            version: row.version.to_string(),
            expires_at_ms: row.expires_at_ms,
        }
    }

    /// The row as a file has it: it says too that it never expires, so that where it is read again no
    /// keyspace's default takes its place.
    pub(crate) fn of_export(row: &client::Row, encoding: Encoding) -> Self {
        Self { expires_at_ms: row.expires_at_ms.or(Some(0)), ..Self::new(row, encoding) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(cut("é".repeat(80)), "é".repeat(80));
        assert_eq!(cut("é".repeat(81)), "é".repeat(80) + "...");
    }
}
