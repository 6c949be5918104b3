//! Writes rows as CSV or NDJSON, in the form that `import` reads without options.

use std::io::{self, Write};

use super::Format;
use crate::{commands::scan::RowDocument, encoding::Encoding};

const HEADING: [&str; 5] = ["key", "sort_key", "value", "encoding", "expires_at_ms"];

/// The heading of a file of this format; empty for none.
pub(crate) fn heading(format: Format) -> Vec<u8> {
    match format {
        Format::Csv => (HEADING.join(",") + "\n").into_bytes(),
        Format::Ndjson => Vec::new(),
    }
}

/// Writes rows to `out`; how many bytes.
pub(crate) fn write_rows(
    format: Format,
    encoding: Encoding,
    rows: &[client::Row],
    out: &mut impl Write,
) -> io::Result<u64> {
    let mut text = Vec::new();
    match format {
        Format::Csv => write_csv(encoding, rows, &mut text)?,
        Format::Ndjson => {
            for row in rows {
                serde_json::to_writer(&mut text, &RowDocument::of_export(row, encoding))?;
                text.push(b'\n');
            }
        }
    }
    out.write_all(&text)?;
    Ok(u64::try_from(text.len()).expect("a page is small"))
}

fn write_csv(encoding: Encoding, rows: &[client::Row], text: &mut Vec<u8>) -> io::Result<()> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(text);
    for row in rows {
        let key = &row.key;
        let fitting = encoding.fitting(&[&key.partition_key, &key.sort_key, &row.value]);
        writer.write_record([
            fitting.write(&key.partition_key),
            fitting.write(&key.sort_key),
            fitting.write(&row.value),
            fitting.name().to_owned(),
            row.expires_at_ms.unwrap_or(0).to_string(),
        ])?;
    }
    writer.flush()
}
