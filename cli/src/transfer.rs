//! Rows in files: reading and writing CSV and NDJSON, and where an interrupted transfer stopped.
//!
//! Nothing here talks to a cluster.

pub(crate) mod columns;
pub(crate) mod errors_file;
pub(crate) mod sink;
pub(crate) mod source;
pub(crate) mod state;

use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// The format of a file of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    /// Comma-separated values, as RFC 4180 has them.
    Csv,
    /// One JSON object per line.
    Ndjson,
}

impl Format {
    /// The format that a file's name promises; NDJSON unless it ends like CSV.
    pub(crate) fn of(path: &Path) -> Self {
        let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
        if ["csv", "tsv", "txt"].contains(&extension) { Self::Csv } else { Self::Ndjson }
    }
}
