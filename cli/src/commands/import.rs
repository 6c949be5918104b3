//! `quorate import`: writes the rows of a file, many batches in flight, and can go on where it
//! stopped.
//!
//! Invariant: a record counts as written only when the cluster has acknowledged it. Records settle
//! in the order of the file; one whose outcome is unknown goes to the errors file.

mod batches;
mod writer;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use model::Token;
use serde::Serialize;

use crate::{
    args::{ConsistencyArgs, Global},
    connect::{connect_to_write, fail, local_datacenter},
    failure::{Attempt, Effect, Exit, Failure},
    output::Output,
    table::Table,
    transfer::{
        Format,
        columns::ColumnArgs,
        errors_file::{Earlier, ErrorsFile},
        source::{CsvDialect, Position, Source, SourceError},
        state::{ImportCounts, ImportState, RowsWithReason, StateFile, appended},
    },
    values::{self, spell_count, spell_duration},
};

/// So many first bytes tell one file from another.
const HEAD_BYTES: u64 = 4_096;

/// Write the rows of a CSV or NDJSON file
///
/// Each row is acknowledged at the consistency level before it counts as written. What cannot be
/// written, or whose outcome is unknown, goes to an errors file with its line. An import that was
/// interrupted goes on with --resume; the rows that were in flight are then written once more. What
/// every row would meet, such as a keyspace that does not exist, ends it at once.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate import shop users.csv --key-column id --value-column '*'
  quorate import shop dump.ndjson --consistency EACH_QUORUM
  quorate import unicode UnicodeData.txt --delimiter ';' --no-heading --no-quotes \\
      --key-column 1 --value-column '*'
  quorate import shop users.csv --resume

NDJSON fields and CSV columns that are understood without options, as `export` writes them:
  key, sort_key, value, encoding (text, hex or base64), ttl (never for no expiry),
  expires_at_ms (0 for no expiry)
A CSV record of another number of fields than its heading is malformed, and so is a JSON object that has
a field twice.

Exit codes: 0 every row was written, 1 some were certainly not, 3 some may or may not have been.")]
pub(crate) struct ImportArgs {
    /// The keyspace
    keyspace: String,

    /// The file, or - for standard input (which cannot be resumed)
    file: PathBuf,

    /// The file's format [default: csv if its name ends in .csv, .tsv or .txt, else ndjson]
    #[arg(long, value_enum)]
    format: Option<Format>,

    #[command(flatten)]
    columns: ColumnArgs,

    /// What separates CSV fields
    #[arg(long, value_name = "CHARACTER", default_value = ",")]
    delimiter: char,

    /// The CSV's first record is data, not names of columns
    #[arg(long)]
    no_heading: bool,

    /// Quotes in the CSV are ordinary characters
    #[arg(long)]
    no_quotes: bool,

    #[command(flatten)]
    consistency: ConsistencyArgs,

    /// Let every row expire after this long, or never, unless it says otherwise
    #[arg(long, value_name = "DURATION|never", value_parser = values::ttl_or_never)]
    ttl: Option<Duration>,

    /// Rows of one batch
    #[arg(long, value_name = "ROWS", default_value = "100")]
    batch_rows: NonZeroUsize,

    /// Batches in flight at once
    #[arg(long, value_name = "N", default_value = "8")]
    in_flight: NonZeroUsize,

    /// How long to go on trying a row that was not applied because the cluster could not
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    retry_for: Duration,

    /// Write rows of unknown outcome again, as new writes: the older one may still take effect, but
    /// under an older version
    #[arg(long)]
    retry_unknown: bool,

    /// Where rows go that were not written; must not be there yet [default: FILE.errors.ndjson]
    #[arg(long, value_name = "FILE")]
    errors: Option<PathBuf>,

    /// Go on where the last import of this file stopped
    #[arg(long, conflicts_with = "restart")]
    resume: bool,

    /// Forget where the last import of this file stopped, and replace its errors file
    #[arg(long)]
    restart: bool,
}

/// Imports the file and says what became of its rows.
pub(crate) async fn run(args: ImportArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let mut job = Job::open(&args)?;
    let client = connect_to_write(&global).await?;
    job.begin(args.restart)?;
    let keyspace = client.keyspace(args.keyspace.as_str());
    let started = tokio::time::Instant::now();
    let done = writer::run(&mut job, &args, &keyspace, output).await;
    job.errors.sync()?;
    let stop = done.inspect_err(|_| job.keep_state())?;
    let report = job.report(&args, started.elapsed(), stop.is_none());
    show(&report, output)?;
    match stop {
        None => {}
        Some(Stop::Signal(signal)) => {
            job.save()?;
            return Err(interruption(signal, &job));
        }
        Some(Stop::Refused { error, behind }) => {
            job.keep_state();
            let attempt = Attempt {
                keyspace: Some(args.keyspace.clone()),
                level: args.consistency.consistency,
                writes: true,
                local_datacenter: local_datacenter(&client),
                ..Attempt::default()
            };
            return Err(refusal(fail(&error, &attempt), behind, &job));
        }
    }
    if let Some(state_file) = &job.state_file {
        state_file.remove()?;
    }
    Ok(match job.counts() {
        ImportCounts { unknown: 1.., .. } => Exit::OutcomeUnknown,
        ImportCounts { not_applied: 1.., .. } | ImportCounts { malformed: 1.., .. } => Exit::Failed,
        _ => Exit::Ok,
    })
}

fn interruption(signal: &str, job: &Job) -> Failure {
    let line = job.state.position.line;
    let failure =
        Failure::new("INTERRUPTED", format!("{signal}: every record up to line {line} is settled"));
    let failure = failure.effect(Effect::Partial);
    match job.state_file {
        Some(_) => failure.advise("the same with --resume"),
        None => failure,
    }
}

/// Why an import ended before its file did.
enum Stop {
    /// Somebody asked for it.
    Signal(&'static str),
    /// What every row that is left would meet, and what became of rows behind the last settled one.
    Refused { error: client::Error, behind: Effects },
}

/// What became of some rows.
#[derive(Clone, Copy, Debug, Default)]
struct Effects {
    /// Some were written.
    wrote: bool,
    /// Some may have been written.
    unknown: bool,
}

impl Effects {
    fn add(&mut self, other: Self) {
        self.wrote |= other.wrote;
        self.unknown |= other.unknown;
    }
}

fn refusal(failure: Failure, behind: Effects, job: &Job) -> Failure {
    let counts = job.counts();
    let mut all = Effects { wrote: counts.written > 0, unknown: counts.unknown > 0 };
    all.add(behind);
    let failure = if all.wrote || all.unknown { failure.effect(Effect::Partial) } else { failure };
    let failure = if all.unknown { failure.exit(Exit::OutcomeUnknown) } else { failure };
    match job.state_file {
        Some(_) if job.has_settled() => {
            let settled = format!("every record up to line {}", job.state.position.line);
            failure.fact("settled", settled).advise("then the same with --resume")
        }
        _ => failure,
    }
}

/// An import under way.
struct Job {
    source: Source<Box<dyn Read>>,
    length: Option<u64>,
    errors: ErrorsFile,
    state: ImportState,
    /// `None` for standard input, which cannot be read again.
    state_file: Option<StateFile>,
}

impl Job {
    /// Looks at all that it needs, and touches nothing.
    fn open(args: &ImportArgs) -> Result<Self, Failure> {
        let format = args.format.unwrap_or_else(|| Format::of(&args.file));
        let dialect = args.dialect()?;
        let open = |input: Box<dyn Read>| {
            Source::open(format, dialect, &args.columns, input)
                .map_err(|error| unreadable(&args.file, &error))
        };
        let fresh = |file_head: String| ImportState {
            keyspace: args.keyspace.clone(),
            options: args.meaning(format),
            file_head,
            position: Default::default(),
            counts: Default::default(),
            reasons: Default::default(),
            errors: args.errors_named(),
            errors_bytes: 0,
        };
        let anew = if args.restart { Earlier::Replace } else { Earlier::Keep };
        if args.is_stdin() {
            if args.resume {
                return Err(Failure::usage("standard input cannot be resumed"));
            }
            let path = args.errors.clone().unwrap_or_else(|| "stdin.errors.ndjson".into());
            let errors = ErrorsFile::examine(path, anew, &[])?;
            let source = open(Box::new(io::stdin()))?;
            return Ok(Self {
                source,
                length: None,
                errors,
                state: fresh(String::new()),
                state_file: None,
            });
        }
        let state_file = StateFile::beside(&args.file, "import");
        let (head, length) = examine(&args.file)?;
        let (mut state, mut errors) = (fresh(head), anew);
        if let Some(earlier) = args.earlier(&state_file)? {
            check_resumable(&earlier, &state, length, &args.file)?;
            (errors, state) = (Earlier::GoOn(earlier.errors_bytes), earlier);
        }
        let path = args.errors.clone().unwrap_or_else(|| appended(&args.file, ".errors.ndjson"));
        let errors = ErrorsFile::examine(path, errors, &[&args.file, state_file.path()])?;
        let mut source = open(Box::new(open_file(&args.file)?))?;
        if state.position.byte > 0 {
            let mut input = open_file(&args.file)?;
            let sought = input.seek(SeekFrom::Start(state.position.byte));
            sought.map_err(|error| {
                Failure::file(format!("cannot seek in {}", args.file.display()), &error)
            })?;
            source = source.resume(Box::new(input), state.position);
        }
        Ok(Self { source, length: Some(length), errors, state, state_file: Some(state_file) })
    }

    /// Puts what an earlier import left behind out of the way. `anew` forgets where it stopped.
    fn begin(&mut self, anew: bool) -> Result<(), Failure> {
        self.errors.begin()?;
        match &self.state_file {
            Some(file) if anew => file.remove(),
            _ => Ok(()),
        }
    }

    fn counts(&self) -> ImportCounts {
        self.state.counts
    }

    /// Writes down where the import stands.
    fn save(&mut self) -> Result<(), Failure> {
        self.errors.sync()?;
        self.state.errors_bytes = self.errors.bytes();
        match &self.state_file {
            Some(file) => file.save(&self.state),
            None => Ok(()),
        }
    }

    /// True if there is something that need not be done again.
    fn has_settled(&self) -> bool {
        self.state.position > Position::default()
    }

    /// Writes down where the import stands because of another failure, which is the one to report.
    fn keep_state(&mut self) {
        if !self.has_settled() {
            return;
        }
        if let Err(failure) = self.save() {
            tracing::warn!(reason = failure.reason(), "{}", failure.message());
        }
    }

    fn report(&self, args: &ImportArgs, elapsed: Duration, complete: bool) -> Report {
        let some_errors = self.errors.bytes() > 0;
        Report {
            keyspace: args.keyspace.clone(),
            file: args.file.display().to_string(),
            complete,
            counts: self.counts(),
            reasons: self.state.reasons.clone(),
            lines: self.state.position.line,
            seconds: elapsed.as_secs_f64(),
            errors_file: some_errors.then(|| self.errors.path().display().to_string()),
        }
    }
}

#[derive(Serialize)]
struct Report {
    keyspace: String,
    file: String,
    complete: bool,
    #[serde(flatten)]
    counts: ImportCounts,
    /// Why rows were not written, or perhaps not.
    reasons: BTreeMap<String, RowsWithReason>,
    lines: u64,
    seconds: f64,
    errors_file: Option<String>,
}

fn show(report: &Report, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.document(report);
    }
    let counts = &report.counts;
    let mut table = Table::without_header(2);
    let mut line = |name: &str, value: String| table.row([name.into(), value.into()]);
    line("written", spell_count(counts.written));
    let others = [
        ("not applied", counts.not_applied),
        ("outcome unknown", counts.unknown),
        ("malformed", counts.malformed),
        ("expired already", counts.expired),
    ];
    for (name, count) in others.into_iter().filter(|it| it.1 > 0) {
        line(name, spell_count(count));
    }
    line("took", spell_duration(Duration::from_secs_f64(report.seconds)));
    if let Some(path) = &report.errors_file {
        line("errors in", path.clone());
    }
    for (reason, it) in &report.reasons {
        let rows = spell_count(it.rows);
        line(reason, format!("{rows}, the first in line {}: {}", it.line, it.message));
    }
    output.table(&table)
}

impl ImportArgs {
    fn is_stdin(&self) -> bool {
        self.file.as_os_str() == "-"
    }

    fn dialect(&self) -> Result<CsvDialect, Failure> {
        let delimiter = match u8::try_from(self.delimiter) {
            Ok(it) if it.is_ascii() => it,
            _ => {
                let problem = format!("--delimiter {:?} is no ASCII character", self.delimiter);
                return Err(Failure::usage(problem));
            }
        };
        Ok(CsvDialect { delimiter, heading: !self.no_heading, quotes: !self.no_quotes })
    }

    /// The options that decide what a record means: an import goes on only under the same.
    fn meaning(&self, format: Format) -> String {
        let Self { columns, delimiter, no_heading, no_quotes, ttl, .. } = self;
        format!("{format:?} {delimiter:?} {no_heading} {no_quotes} {ttl:?} {columns:?}")
    }

    /// The errors file, if it is named: wherever an import is resumed, it has to be the same.
    fn errors_named(&self) -> Option<String> {
        let path = self.errors.as_ref()?;
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        Some(path.display().to_string())
    }

    /// The state to go on from, if there is one and it is wanted.
    fn earlier(&self, file: &StateFile) -> Result<Option<ImportState>, Failure> {
        if self.restart {
            return Ok(None);
        }
        let state: Option<ImportState> = file.load()?;
        match state {
            Some(state) if !self.resume => {
                let (line, path) = (state.position.line, file.path().display());
                Err(Failure::new(
                    "IMPORT_UNFINISHED",
                    format!("an earlier import of this file stopped after line {line}"),
                )
                .fact("state", path.to_string())
                .advise("--resume to go on there")
                .advise("--restart to begin anew"))
            }
            None if self.resume => Err(Failure::new(
                "NOTHING_TO_RESUME",
                format!(
                    "there is no {}: the last import finished, or never began",
                    file.path().display()
                ),
            )
            .advise("the same without --resume")),
            other => Ok(other),
        }
    }
}

fn check_resumable(
    earlier: &ImportState,
    now: &ImportState,
    length: u64,
    path: &Path,
) -> Result<(), Failure> {
    let changed = if earlier.keyspace != now.keyspace {
        format!("it wrote to keyspace {}, not {}", earlier.keyspace, now.keyspace)
    } else if earlier.options != now.options {
        "its options gave the records another meaning".to_owned()
    } else if earlier.file_head != now.file_head || earlier.position.byte > length {
        format!("{} is not the same file any more", path.display())
    } else if earlier.errors != now.errors {
        let beside = || "the file beside the data".to_owned();
        format!("its errors went to {}", earlier.errors.clone().unwrap_or_else(beside))
    } else {
        return Ok(());
    };
    Err(Failure::new("CANNOT_RESUME", format!("the earlier import cannot go on: {changed}"))
        .advise("--restart to begin anew"))
}

/// The hash of a file's beginning, and its length.
fn examine(path: &Path) -> Result<(String, u64), Failure> {
    let failure =
        |error: &io::Error| Failure::file(format!("cannot read {}", path.display()), error);
    let file = open_file(path)?;
    let length = file.metadata().map_err(|error| failure(&error))?.len();
    let mut head = Vec::new();
    file.take(HEAD_BYTES).read_to_end(&mut head).map_err(|error| failure(&error))?;
    Ok((Token::of(&head).to_string(), length))
}

fn open_file(path: &Path) -> Result<File, Failure> {
    File::open(path)
        .map_err(|error| Failure::file(format!("cannot open {}", path.display()), &error))
}

fn unreadable(path: &Path, error: &SourceError) -> Failure {
    Failure::new("FILE", format!("{}: {error}", path.display()))
        .advise("--format, --delimiter, --no-heading and --key-column say how to read it")
}
