//! The demo's data: every character of Unicode, from the machine's own UnicodeData.txt, or else from
//! the tables in Rust's standard library.
//!
//! A row's partition key is a block of 256 code points, such as `U+22xx`; its sort key is the code
//! point, such as `U+2200`; its value is what is known of the character.

use std::{collections::BTreeMap, fs, path::Path};

use bytes::Bytes;
use model::Key;

/// Where Debian's package `unicode-data` puts it.
const UNICODE_DATA: &str = "/usr/share/unicode/UnicodeData.txt";

/// The partition shown as an example, and the prefix: mathematical operators.
const EXAMPLE_BLOCK: u32 = 0x22;
const EXAMPLE_PREFIX: &str = "U+220";

/// Rows to load.
pub(super) struct DataSet {
    rows: Vec<DataRow>,
    by_key: BTreeMap<Key, usize>,
    origin: String,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DataRow {
    /// Its name.
    pub(super) key: Key,
    /// Its value.
    pub(super) value: Bytes,
}

/// A range of one partition key.
pub(super) struct Example {
    /// The partition key.
    pub(super) partition_key: Bytes,
    /// The same for people.
    pub(super) partition: String,
    /// The prefix of the sort keys.
    pub(super) prefix: Bytes,
    /// The same for people.
    pub(super) shown_prefix: &'static str,
    /// How many rows have it.
    pub(super) rows: u64,
}

impl DataSet {
    /// The machine's UnicodeData.txt if it has one, else what the standard library knows.
    pub(super) fn find() -> Self {
        let path = Path::new(UNICODE_DATA);
        match fs::read_to_string(path) {
            Ok(text) => {
                let origin = format!("the data: {UNICODE_DATA}, one record for each character");
                Self::new(unicode_data(&text), origin)
            }
            Err(_) => {
                let (major, minor, _) = char::UNICODE_VERSION;
                let origin = format!(
                    "the data: characters of Unicode {major}.{minor} from the tables of Rust's \
                     standard library ({UNICODE_DATA} is not on this machine)"
                );
                Self::new(standard_library(), origin)
            }
        }
    }

    fn new(rows: Vec<DataRow>, origin: String) -> Self {
        let by_key = rows.iter().enumerate().map(|(index, it)| (it.key.clone(), index)).collect();
        Self { rows, by_key, origin }
    }

    /// The rows, by code point.
    pub(super) fn rows(&self) -> &[DataRow] {
        &self.rows
    }

    /// How many rows there are.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.rows.len()).expect("it is in memory")
    }

    /// Where they come from, for people.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The value of a key.
    pub(super) fn value(&self, key: &Key) -> Option<&Bytes> {
        self.by_key.get(key).map(|index| &self.rows[*index].value)
    }

    /// A range to show.
    pub(super) fn example(&self) -> Example {
        let partition = block(EXAMPLE_BLOCK << 8);
        let matching = self.rows.iter().filter(|it| {
            it.key.partition_key == partition
                && it.key.sort_key.starts_with(EXAMPLE_PREFIX.as_bytes())
        });
        Example {
            partition_key: partition.clone().into(),
            prefix: EXAMPLE_PREFIX.into(),
            shown_prefix: EXAMPLE_PREFIX,
            rows: u64::try_from(matching.count()).expect("it is in memory"),
            partition,
        }
    }
}

/// One row for each line of UnicodeData.txt. Lines that are none of it are left out.
fn unicode_data(text: &str) -> Vec<DataRow> {
    let row = |line: &str| {
        let (code, rest) = line.split_once(';')?;
        let code = u32::from_str_radix(code, 16).ok()?;
        Some(DataRow { key: key(code), value: Bytes::copy_from_slice(rest.as_bytes()) })
    };
    text.lines().filter_map(row).collect()
}

/// One row for each character that the standard library has something to say about, the large
/// blocks of ideographs and syllables left out.
fn standard_library() -> Vec<DataRow> {
    let large = [0x3400..=0x9fff, 0xac00..=0xd7a3, 0x1_7000..=0x1_8cff, 0x2_0000..=0x3_ffff];
    let row = |it: char| {
        let code = u32::from(it);
        let told = properties(it);
        let worth = !told.is_empty() && !large.iter().any(|block| block.contains(&code));
        worth.then(|| DataRow { key: key(code), value: format!("{it};{told}").into() })
    };
    ('\u{20}'..=char::MAX).filter_map(row).collect()
}

fn properties(it: char) -> String {
    let mut told: Vec<String> = Vec::new();
    for (holds, name) in [
        (it.is_alphabetic(), "alphabetic"),
        (it.is_lowercase(), "lowercase"),
        (it.is_uppercase(), "uppercase"),
        (it.is_numeric(), "numeric"),
        (it.is_whitespace(), "whitespace"),
        (it.is_control(), "control"),
        (it.is_ascii_punctuation(), "punctuation"),
        (EXAMPLE_BLOCK == u32::from(it) >> 8, "mathematical operator"),
    ] {
        if holds {
            told.push(name.to_owned());
        }
    }
    let upper: String = it.to_uppercase().collect();
    let lower: String = it.to_lowercase().collect();
    for (name, other) in [("upper", upper), ("lower", lower)] {
        if !other.chars().eq([it]) {
            told.push(format!("{name}={other}"));
        }
    }
    if !told.is_empty() {
        told.push(format!("utf8={}", crate::encoding::hex(it.to_string().as_bytes())));
    }
    told.join(";")
}

fn key(code: u32) -> Key {
    Key::with_sort_key(block(code), format!("U+{code:04X}"))
}

fn block(code: u32) -> String {
    format!("U+{:02X}xx", code >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_unicode_data_is_a_row() {
        let text =
            "2200;FOR ALL;Sm;0;ON;;;;;N;;;;;\nnonsense\n1F600;GRINNING FACE;So;0;ON;;;;;N;;;;;\n";
        let rows = unicode_data(text);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].key, Key::with_sort_key("U+22xx", "U+2200"));
        assert_eq!(rows[0].value, "FOR ALL;Sm;0;ON;;;;;N;;;;;");
        assert_eq!(rows[1].key, Key::with_sort_key("U+1F6xx", "U+1F600"));
    }

    #[test]
    fn the_standard_library_knows_enough() {
        let data = DataSet::new(standard_library(), String::new());
        assert!((20_000..60_000).contains(&data.len()), "{}", data.len());
        let sharp_s = data.value(&Key::with_sort_key("U+00xx", "U+00DF")).unwrap();
        assert_eq!(sharp_s, "ß;alphabetic;lowercase;upper=SS;utf8=c39f");
        let example = data.example();
        assert_eq!((example.partition.as_str(), example.rows), ("U+22xx", 16));
    }
}
