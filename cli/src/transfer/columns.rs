//! Which column of a file is what, and how its text becomes a row. Pure.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use clap::Args;
use model::Key;

use crate::{encoding::Encoding, values};

/// Stands for the whole record.
pub(crate) const WHOLE_RECORD: &str = "*";

/// Which column is what. A column is named by its heading, or by its number from 1.
#[derive(Clone, Debug, Args)]
pub(crate) struct ColumnArgs {
    /// The column of the partition key [default: "key", or 1 without a heading]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) key_column: Option<String>,

    /// The column of the sort key [default: "sort_key" if there is one]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) sort_key_column: Option<String>,

    /// The column of the value, or * for the whole record [default: "value", or 2 without a heading]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) value_column: Option<String>,

    /// The column of the time to live, such as 600 or 10m [default: "ttl" if there is one]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) ttl_column: Option<String>,

    /// The column that says how the row's bytes are written: text, hex or base64 [default:
    /// "encoding" if there is one]
    #[arg(long, value_name = "COLUMN")]
    pub(crate) encoding_column: Option<String>,

    /// How bytes are written in rows that do not say
    #[arg(long, value_enum, value_name = "ENCODING", default_value = "text")]
    pub(crate) encoding: Encoding,
}

/// The column of an absolute expiry, as `export` writes it.
pub(crate) const EXPIRY_COLUMN: &str = "expires_at_ms";

/// A row to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParsedRow {
    /// Its name.
    pub(crate) key: Key,
    /// Its value.
    pub(crate) value: Bytes,
    /// When it expires, from now, and never if that is zero; `None` for the keyspace's default.
    pub(crate) ttl: Option<Duration>,
}

/// What a record turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// A row.
    Row(ParsedRow),
    /// A row whose expiry has passed: there is nothing to write.
    Expired,
    /// No row, and why.
    Bad(String),
}

/// Which field is what, once the heading is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ColumnMap {
    key: String,
    sort_key: Option<String>,
    value: String,
    ttl: Option<String>,
    encoding_column: Option<String>,
    encoding: Encoding,
}

impl ColumnMap {
    /// Columns of records that carry their own names, as JSON objects do.
    pub(crate) fn by_name(args: &ColumnArgs) -> Self {
        let or =
            |given: &Option<String>, name: &str| Some(given.as_deref().unwrap_or(name).to_owned());
        Self {
            key: args.key_column.clone().unwrap_or_else(|| "key".to_owned()),
            sort_key: or(&args.sort_key_column, "sort_key"),
            value: args.value_column.clone().unwrap_or_else(|| "value".to_owned()),
            ttl: or(&args.ttl_column, "ttl"),
            encoding_column: or(&args.encoding_column, "encoding"),
            encoding: args.encoding,
        }
    }

    /// Columns under a heading; names that were asked for and are not there are refused.
    pub(crate) fn by_heading(args: &ColumnArgs, heading: &[String]) -> Result<Self, String> {
        let map = Self::by_name(args);
        let known = |name: &str| {
            name == WHOLE_RECORD
                || index(name).is_some_and(|it| it < heading.len())
                || heading.iter().any(|it| it == name)
        };
        let asked = [
            (&args.sort_key_column, &map.sort_key),
            (&args.ttl_column, &map.ttl),
            (&args.encoding_column, &map.encoding_column),
        ];
        let asked = asked.into_iter().filter(|it| it.0.is_some()).filter_map(|it| it.1.as_ref());
        for name in asked.chain([&map.key, &map.value]) {
            if !known(name) {
                let there = heading.join(", ");
                return Err(format!("there is no column {name:?}; the heading has: {there}"));
            }
        }
        Ok(map)
    }

    /// Columns of a file without a heading.
    pub(crate) fn by_number(args: &ColumnArgs) -> Result<Self, String> {
        let asked = [
            &args.key_column,
            &args.sort_key_column,
            &args.value_column,
            &args.ttl_column,
            &args.encoding_column,
        ];
        for name in asked.into_iter().flatten() {
            if name != WHOLE_RECORD && index(name).is_none() {
                return Err(format!("without a heading columns have numbers from 1, not {name:?}"));
            }
        }
        Ok(Self {
            key: args.key_column.clone().unwrap_or_else(|| "1".to_owned()),
            sort_key: args.sort_key_column.clone(),
            value: args.value_column.clone().unwrap_or_else(|| "2".to_owned()),
            ttl: args.ttl_column.clone(),
            encoding_column: args.encoding_column.clone(),
            encoding: args.encoding,
        })
    }

    /// Makes a row of a record's fields. `whole` is the record as it stands in the file.
    pub(crate) fn row(&self, fields: &Fields<'_>, whole: &[u8], now_ms: u64) -> Parsed {
        match self.try_row(fields, whole, now_ms) {
            Ok(Some(row)) => Parsed::Row(row),
            Ok(None) => Parsed::Expired,
            Err(problem) => Parsed::Bad(problem),
        }
    }

    /// True if the value of a row is the whole record, however many fields it has.
    pub(crate) fn takes_whole_record(&self) -> bool {
        self.value == WHOLE_RECORD
    }

    fn try_row(
        &self,
        fields: &Fields<'_>,
        whole: &[u8],
        now_ms: u64,
    ) -> Result<Option<ParsedRow>, String> {
        let optional = |name: &Option<String>| name.as_ref().and_then(|it| fields.get(it));
        let encoding = text(optional(&self.encoding_column).unwrap_or_default())?;
        let encoding = Encoding::named(encoding)?.unwrap_or(self.encoding);
        let read = |name: &str, bytes: &[u8]| match encoding {
            Encoding::Text => Ok(bytes.to_vec()),
            other => other.read(text(bytes)?).map_err(|problem| format!("{name}: {problem}")),
        };
        let missing = |name: &str| format!("there is no field {name:?}");
        let key = fields.get(&self.key).ok_or_else(|| missing(&self.key))?;
        let value = match self.value.as_str() {
            WHOLE_RECORD => whole.to_vec(),
            name => read(name, fields.get(name).ok_or_else(|| missing(name))?)?,
        };
        let key = Key {
            partition_key: read(&self.key, key)?.into(),
            sort_key: read("the sort key", optional(&self.sort_key).unwrap_or_default())?.into(),
        };
        if key.partition_key.is_empty() {
            return Err("the partition key is empty".to_owned());
        }
        let mut ttl = match text(optional(&self.ttl).unwrap_or_default())? {
            "" => None,
            given => Some(values::ttl_or_never(given)?),
        };
        let expires_at_ms = text(fields.get(EXPIRY_COLUMN).unwrap_or_default())?;
        if ttl.is_none() && expires_at_ms == "0" {
            ttl = Some(Duration::ZERO);
        } else if ttl.is_none() && !expires_at_ms.is_empty() {
            let wrong = |_| format!("{EXPIRY_COLUMN} {expires_at_ms:?} is no time in milliseconds");
            let left_ms = expires_at_ms.parse::<u64>().map_err(wrong)?.saturating_sub(now_ms);
            if left_ms < 1_000 {
                return Ok(None);
            }
            ttl = Some(Duration::from_secs(left_ms / 1_000));
        }
        Ok(Some(ParsedRow { key, value: value.into(), ttl }))
    }
}

/// The fields of one record.
pub(crate) enum Fields<'a> {
    /// By name.
    Named(&'a BTreeMap<String, String>),
    /// By position, under a heading that may be empty.
    Positioned {
        /// The names, if the file has any.
        heading: &'a [String],
        /// The fields.
        record: &'a csv::ByteRecord,
    },
}

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&[u8]> {
        match self {
            Self::Named(fields) => fields.get(name).map(String::as_bytes),
            Self::Positioned { heading, record } => {
                let named = heading.iter().position(|it| it == name);
                named.or_else(|| index(name)).and_then(|it| record.get(it))
            }
        }
    }
}

/// The index of a column named by its number.
fn index(name: &str) -> Option<usize> {
    name.parse::<usize>().ok()?.checked_sub(1)
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("it is no UTF-8: {error}"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn no_columns() -> ColumnArgs {
        ColumnArgs {
            key_column: None,
            sort_key_column: None,
            value_column: None,
            ttl_column: None,
            encoding_column: None,
            encoding: Encoding::Text,
        }
    }

    const NOW_MS: u64 = 1_000_000;

    fn parse(fields: &[(&str, &str)]) -> Parsed {
        let fields: BTreeMap<_, _> =
            fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        ColumnMap::by_name(&no_columns()).row(&Fields::Named(&fields), b"whole", NOW_MS)
    }

    fn row(key: Key, value: &'static [u8], ttl: Option<u64>) -> Parsed {
        Parsed::Row(ParsedRow { key, value: value.into(), ttl: ttl.map(Duration::from_secs) })
    }

    #[test]
    fn rows() {
        assert_eq!(parse(&[("key", "a"), ("value", "")]), row(Key::new("a"), b"", None));
        assert_eq!(
            parse(&[("key", "a"), ("sort_key", "b"), ("value", "c"), ("ttl", "10m")]),
            row(Key::with_sort_key("a", "b"), b"c", Some(600))
        );
        assert_eq!(
            parse(&[("key", "AAE="), ("value", "/w=="), ("encoding", "base64")]),
            row(Key::new(&b"\0\x01"[..]), b"\xff", None)
        );
    }

    #[test]
    fn expiry_is_absolute_in_a_file_and_relative_in_a_write() {
        let with = |expires: &str| parse(&[("key", "a"), ("value", "b"), (EXPIRY_COLUMN, expires)]);
        assert_eq!(with("1061000"), row(Key::new("a"), b"b", Some(61)));
        assert_eq!(
            with("0"),
            row(Key::new("a"), b"b", Some(0)),
            "never, whatever the keyspace says"
        );
        assert_eq!(with(""), row(Key::new("a"), b"b", None));
        let never = parse(&[("key", "a"), ("value", "b"), ("ttl", "never")]);
        assert_eq!(never, row(Key::new("a"), b"b", Some(0)));
        assert_eq!(with("1000999"), Parsed::Expired);
        assert_eq!(with("5"), Parsed::Expired);
    }

    #[test]
    fn bad_rows() {
        let bad: [&[(&str, &str)]; 6] = [
            &[("value", "b")],
            &[("key", "a")],
            &[("key", ""), ("value", "b")],
            &[("key", "a"), ("value", "b"), ("encoding", "rot13")],
            &[("key", "zz"), ("value", "00"), ("encoding", "hex")],
            &[("key", "a"), ("value", "b"), ("ttl", "soon")],
        ];
        for fields in bad {
            assert!(matches!(parse(fields), Parsed::Bad(_)), "{fields:?}");
        }
    }

    #[test]
    fn columns_that_are_not_there_are_refused() {
        let heading = ["id".to_owned(), "name".to_owned()];
        let args = ColumnArgs { key_column: Some("id".to_owned()), ..no_columns() };
        let problem = ColumnMap::by_heading(&args, &heading).unwrap_err();
        assert_eq!(problem, r#"there is no column "value"; the heading has: id, name"#);
        let args = ColumnArgs { value_column: Some("*".to_owned()), ..args };
        assert!(ColumnMap::by_heading(&args, &heading).is_ok());
        assert!(ColumnMap::by_number(&args).is_err());
    }
}
