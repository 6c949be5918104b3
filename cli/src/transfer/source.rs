//! Reads rows from CSV and NDJSON, each with its line and with the position after it, so that a
//! reader can be opened again there.
//!
//! A record that is no row is an item, not an end: what to do with it is the caller's decision.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fmt,
    io::{BufRead, BufReader, Read},
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, Visitor},
};

use super::{
    Format,
    columns::{ColumnArgs, ColumnMap, Fields, Parsed},
};

/// A longer line is refused before it fills the memory: a value has 1 MiB, four times that in hex
/// and JSON.
const LINE_BYTES_MAX: u64 = 16 << 20;

/// A place between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Bytes before it.
    pub(crate) byte: u64,
    /// Line breaks before it.
    pub(crate) line: u64,
}

/// One record of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The line on which it begins, from 1. In CSV blank lines before a record belong to it.
    pub(crate) line: u64,
    /// The place after it.
    pub(crate) end: Position,
    /// What it is.
    pub(crate) parsed: Parsed,
    /// The record as it stands in the file; CSV is written anew, which changes quotes at most.
    pub(crate) whole: Vec<u8>,
}

/// How to read CSV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CsvDialect {
    /// What separates fields.
    pub(crate) delimiter: u8,
    /// True if the first record names the columns.
    pub(crate) heading: bool,
    /// True if quotes enclose fields.
    pub(crate) quotes: bool,
}

/// Reads the records of one file.
pub(crate) enum Source<R: Read> {
    /// Comma-separated values.
    Csv(CsvSource<R>),
    /// One JSON object per line.
    Ndjson(NdjsonSource<R>),
}

/// Why a file cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// The file cannot be read.
    #[error("line {line}: {source}")]
    Read {
        /// Where.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The columns asked for are not those of the file.
    #[error("{0}")]
    Columns(String),
    /// A line is too long.
    #[error("line {line} has more than {limit} bytes: is it really {format}?")]
    LineTooLong {
        /// Where.
        line: u64,
        /// The most bytes of a line.
        limit: u64,
        /// The format it was read as.
        format: &'static str,
    },
}

impl<R: Read> Source<R> {
    /// Reads from the beginning.
    pub(crate) fn open(
        format: Format,
        dialect: CsvDialect,
        columns: &ColumnArgs,
        input: R,
    ) -> Result<Self, SourceError> {
        match format {
            Format::Csv => CsvSource::open(dialect, columns, input).map(Self::Csv),
            Format::Ndjson => {
                Ok(Self::Ndjson(NdjsonSource::new(columns, input, Position::default())))
            }
        }
    }

    /// Reads on from a position, with a reader that stands there. What the heading said comes from
    /// `self`, which was opened at the beginning.
    pub(crate) fn resume(self, input: R, position: Position) -> Self {
        match self {
            Self::Csv(it) => Self::Csv(it.resume(input, position)),
            Self::Ndjson(it) => Self::Ndjson(NdjsonSource {
                input: BufReader::new(input),
                position,
                columns: it.columns,
            }),
        }
    }

    /// The next record; `None` at the end.
    pub(crate) fn next(&mut self, now_ms: u64) -> Result<Option<Record>, SourceError> {
        match self {
            Self::Csv(it) => it.next(now_ms),
            Self::Ndjson(it) => it.next(now_ms),
        }
    }
}

/// Reads CSV.
pub(crate) struct CsvSource<R: Read> {
    reader: csv::Reader<R>,
    dialect: CsvDialect,
    columns: ColumnMap,
    heading: Vec<String>,
    base: Position,
    record: csv::ByteRecord,
}

impl<R: Read> CsvSource<R> {
    fn open(dialect: CsvDialect, columns: &ColumnArgs, input: R) -> Result<Self, SourceError> {
        let mut reader = dialect.reader(input);
        let mut record = csv::ByteRecord::new();
        let mut heading = Vec::new();
        let map = if dialect.heading {
            reader.read_byte_record(&mut record).map_err(|error| read_error(error, 1))?;
            let name =
                |it: &[u8]| String::from_utf8_lossy(it).trim_start_matches('\u{feff}').to_owned();
            heading = record.iter().map(name).collect();
            ColumnMap::by_heading(columns, &heading)
        } else {
            ColumnMap::by_number(columns)
        };
        let columns = map.map_err(SourceError::Columns)?;
        Ok(Self { reader, dialect, columns, heading, base: Position::default(), record })
    }

    fn resume(self, input: R, position: Position) -> Self {
        Self { reader: self.dialect.reader(input), base: position, ..self }
    }

    fn next(&mut self, now_ms: u64) -> Result<Option<Record>, SourceError> {
        let line = self.position().line + 1;
        let read = self.reader.read_byte_record(&mut self.record);
        if !read.map_err(|error| read_error(error, line))? {
            return Ok(None);
        }
        let begins = self.record.position().map_or(line, |it| self.base.line + it.line());
        let whole = self.dialect.write(&self.record);
        let fields = Fields::Positioned { heading: &self.heading, record: &self.record };
        let (found, named) = (self.record.len(), self.heading.len());
        let parsed = if named > 0 && found != named && !self.columns.takes_whole_record() {
            let delimiter = char::from(self.dialect.delimiter);
            let mut problem = format!("it has {found} fields, and the heading {named}");
            if found > named && self.dialect.quotes {
                problem += &format!(": a field with {delimiter:?} needs quotes");
            }
            Parsed::Bad(problem)
        } else {
            self.columns.row(&fields, &whole, now_ms)
        };
        Ok(Some(Record { line: begins, end: self.position(), parsed, whole }))
    }

    fn position(&self) -> Position {
        let it = self.reader.position();
        Position { byte: self.base.byte + it.byte(), line: self.base.line + it.line() - 1 }
    }
}

impl CsvDialect {
    fn reader<R: Read>(self, input: R) -> csv::Reader<R> {
        csv::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .quoting(self.quotes)
            .has_headers(false)
            .flexible(true)
            .from_reader(input)
    }

    fn write(self, record: &csv::ByteRecord) -> Vec<u8> {
        let style = if self.quotes { csv::QuoteStyle::Necessary } else { csv::QuoteStyle::Never };
        let mut writer = csv::WriterBuilder::new()
            .delimiter(self.delimiter)
            .quote_style(style)
            .from_writer(Vec::new());
        writer.write_byte_record(record).expect("memory takes everything");
        let mut written = writer.into_inner().expect("memory takes everything");
        written.truncate(written.len().saturating_sub(1));
        written
    }
}

fn read_error(error: csv::Error, line: u64) -> SourceError {
    let source = match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => std::io::Error::other(format!("{other:?}")),
    };
    SourceError::Read { line, source }
}

/// Reads one JSON object per line. Blank lines are skipped.
pub(crate) struct NdjsonSource<R: Read> {
    input: BufReader<R>,
    position: Position,
    columns: ColumnMap,
}

impl<R: Read> NdjsonSource<R> {
    fn new(columns: &ColumnArgs, input: R, position: Position) -> Self {
        Self { input: BufReader::new(input), position, columns: ColumnMap::by_name(columns) }
    }

    fn next(&mut self, now_ms: u64) -> Result<Option<Record>, SourceError> {
        loop {
            let line = self.position.line + 1;
            let mut whole = Vec::new();
            let read = (&mut self.input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut whole);
            let bytes = read.map_err(|source| SourceError::Read { line, source })?;
            if bytes == 0 {
                return Ok(None);
            }
            let bytes = u64::try_from(bytes).expect("a line is short");
            if bytes > LINE_BYTES_MAX {
                let limit = LINE_BYTES_MAX;
                return Err(SourceError::LineTooLong { line, limit, format: "NDJSON" });
            }
            self.position = Position { byte: self.position.byte + bytes, line };
            whole.truncate(whole.trim_ascii_end().len());
            if whole.is_empty() {
                continue;
            }
            let parsed = match named_fields(&whole) {
                Ok(fields) => self.columns.row(&Fields::Named(&fields), &whole, now_ms),
                Err(problem) => Parsed::Bad(problem),
            };
            return Ok(Some(Record { line, end: self.position, parsed, whole }));
        }
    }
}

/// The fields of a JSON object that are text or numbers. A nested value has no one spelling in
/// bytes, so it is refused where it is asked for, as a field that is not there.
fn named_fields(line: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let ObjectFields(object) =
        serde_json::from_slice(line).map_err(|error| format!("it is no JSON object: {error}"))?;
    let mut fields = BTreeMap::new();
    for (name, value) in object {
        match fields.entry(name) {
            // Whichever counted, the other would be lost without a word.
            Entry::Occupied(it) => return Err(format!("it has the field {:?} twice", it.key())),
            Entry::Vacant(it) => it.insert(value),
        };
    }
    let text = |value| match value {
        serde_json::Value::String(it) => Some(it),
        serde_json::Value::Number(it) => Some(it.to_string()),
        _ => None,
    };
    Ok(fields.into_iter().filter_map(|(name, value)| Some((name, text(value)?))).collect())
}

/// The fields of a JSON object as they stand in it: maps keep only the last of one name.
struct ObjectFields(Vec<(String, serde_json::Value)>);

impl<'de> Deserialize<'de> for ObjectFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = ObjectFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(ObjectFields(fields))
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transfer::columns::tests::no_columns;

    const DIALECT: CsvDialect = CsvDialect { delimiter: b',', heading: true, quotes: true };

    fn read_all(mut source: Source<&[u8]>) -> Vec<Record> {
        std::iter::from_fn(|| source.next(0).unwrap()).collect()
    }

    fn csv(text: &str) -> Source<&[u8]> {
        Source::open(Format::Csv, DIALECT, &no_columns(), text.as_bytes()).unwrap()
    }

    fn ndjson(text: &str) -> Source<&[u8]> {
        Source::open(Format::Ndjson, DIALECT, &no_columns(), text.as_bytes()).unwrap()
    }

    fn story(records: &[Record]) -> Vec<String> {
        let tell = |it: &Record| match &it.parsed {
            Parsed::Row(row) => {
                let key = String::from_utf8_lossy(&row.key.partition_key);
                format!("{} {key}={}", it.line, String::from_utf8_lossy(&row.value))
            }
            Parsed::Expired => format!("{} expired", it.line),
            Parsed::Bad(problem) => format!("{} bad: {problem}", it.line),
        };
        records.iter().map(tell).collect()
    }

    #[test]
    fn csv_rows_have_their_lines() {
        let text = "key,value\na,1\n\"b\",\"two\nlines\"\n\nc\nd,4,extra";
        assert_eq!(
            story(&read_all(csv(text))),
            [
                "2 a=1",
                "3 b=two\nlines",
                "5 bad: it has 1 fields, and the heading 2",
                "7 bad: it has 3 fields, and the heading 2: a field with ',' needs quotes",
            ]
        );
    }

    #[test]
    fn ndjson_rows_have_their_lines() {
        let text = "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value\":2}\r\nnonsense\n[]\n{\"key\":\"c\",\"value\":{}}";
        let story = story(&read_all(ndjson(text)));
        assert_eq!(story[..2], ["1 a=1", "3 b=2"]);
        assert!(story[2].starts_with("4 bad: it is no JSON object"), "{}", story[2]);
        assert!(story[3].starts_with("5 bad: it is no JSON object"), "{}", story[3]);
        assert_eq!(story[4], r#"6 bad: there is no field "value""#);
    }

    #[test]
    fn a_field_that_comes_twice_is_no_row() {
        let text = "{\"key\":\"a\",\"value\":\"1\",\"key\":\"b\"}\n\
                    {\"key\":\"a\",\"value\":\"1\",\"x\":{},\"x\":null}";
        assert_eq!(
            story(&read_all(ndjson(text))),
            [r#"1 bad: it has the field "key" twice"#, r#"2 bad: it has the field "x" twice"#]
        );
    }

    #[test]
    fn a_source_resumes_after_any_record() {
        let csv_text = "key,value\na,1\n\"b\",\"two\nlines\"\n\nc,3\r\nd,4";
        let ndjson_text = "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value\":\"2\"}\r\n{\"key\":\"c\",\"value\":\"3\"}";
        for (open, text) in [(csv as fn(&str) -> Source<&[u8]>, csv_text), (ndjson, ndjson_text)] {
            let all = read_all(open(text));
            assert!(all.len() > 2);
            for (index, record) in all.iter().enumerate() {
                let rest = &text.as_bytes()[usize::try_from(record.end.byte).unwrap()..];
                let resumed = open(text).resume(rest, record.end);
                assert_eq!(read_all(resumed), all[index + 1..], "after {index} of {text:?}");
            }
        }
    }

    #[test]
    fn a_whole_record_is_the_value() {
        let dialect = CsvDialect { delimiter: b';', heading: false, quotes: false };
        let columns = ColumnArgs { value_column: Some("*".to_owned()), ..no_columns() };
        let text = "0022;QUOTATION \"MARK;Po\n0023;NUMBER SIGN;Po\n";
        let source = Source::open(Format::Csv, dialect, &columns, text.as_bytes()).unwrap();
        assert_eq!(
            story(&read_all(source)),
            ["1 0022=0022;QUOTATION \"MARK;Po", "2 0023=0023;NUMBER SIGN;Po"]
        );
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_heading() {
        assert_eq!(story(&read_all(csv("\u{feff}key,value\na,1\n"))), ["2 a=1"]);
    }
}
