//! `quorate export`: writes all rows of a keyspace to a file, and can go on where it stopped.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::Args;
use client::{Keyspace, Page, Scan, ScanRange};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    args::{ConsistencyArgs, Global},
    connect::{connect, fail, local_datacenter},
    encoding::Encoding,
    failure::{Attempt, Effect, Exit, Failure},
    output::Output,
    progress,
    signals::StopSignals,
    transfer::{
        Format,
        sink::{heading, write_rows},
        state::{ExportState, StateFile},
    },
    values::{spell_bytes, spell_count, spell_duration},
};

/// How often the position is written down.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
/// Steps of the progress bar over the ring of 2^64 tokens.
const RING_STEPS: u64 = 1_000;

/// Write all rows of a keyspace to a CSV or NDJSON file
///
/// Rows come in token order, each as it was at some instant of the export; `quorate import` reads
/// the file without options, expiry times included. An export that was interrupted goes on with
/// --resume.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  quorate export shop shop.ndjson
  quorate export shop shop.csv --consistency QUORUM
  quorate export shop - | gzip > shop.ndjson.gz
  quorate export shop shop.ndjson --resume")]
pub(crate) struct ExportArgs {
    /// The keyspace
    keyspace: String,

    /// The file, or - for standard output (which cannot be resumed)
    file: PathBuf,

    /// The file's format [default: csv if its name ends in .csv, .tsv or .txt, else ndjson]
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// How keys and values are written; rows that are no text are base64 in any case
    #[arg(long, value_enum, value_name = "ENCODING", default_value = "text")]
    encoding: Encoding,

    #[command(flatten)]
    consistency: ConsistencyArgs,

    /// Replace the file if there is one
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,

    /// Go on where the last export to this file stopped
    #[arg(long)]
    resume: bool,
}

/// Exports the keyspace and says how much it was.
pub(crate) async fn run(args: ExportArgs, global: Global, output: Output) -> Result<Exit, Failure> {
    let plan = Plan::new(&args)?;
    let client = connect(&global).await?;
    let started = Instant::now();
    let mut pages = Pages::new(&args, &client.keyspace(args.keyspace.as_str()), &plan.state)?;
    // An earlier export is worth more than one that cannot read anything.
    let first = match pages.next().await {
        Ok(Step::Signal(signal)) => {
            let failure = Failure::new("INTERRUPTED", format!("{signal}: nothing has begun"));
            return Err(failure.effect(Effect::NotApplied));
        }
        first => first?,
    };
    let mut job = plan.begin(&args)?;
    if let Some(signal) = job.run(&args, first, &mut pages, output).await? {
        job.save()?;
        let rows = spell_count(job.state.rows);
        let failure = Failure::new("INTERRUPTED", format!("{signal}: {rows} rows are in the file"))
            .effect(Effect::Partial);
        return Err(match job.state_file {
            Some(_) => failure.advise("the same with --resume"),
            None => failure,
        });
    }
    job.finish()?;
    job.report(&args, started.elapsed(), output)?;
    Ok(Exit::Ok)
}

/// What an export will do. Nothing is touched yet.
struct Plan {
    format: Format,
    /// Where it begins.
    state: ExportState,
    /// `None` for standard output.
    state_file: Option<StateFile>,
}

impl Plan {
    fn new(args: &ExportArgs) -> Result<Self, Failure> {
        let format = args.format.unwrap_or_else(|| Format::of(&args.file));
        let state = ExportState {
            keyspace: args.keyspace.clone(),
            options: format!("{format:?} {:?}", args.encoding),
            page_token: String::new(),
            file_bytes: 0,
            rows: 0,
        };
        if args.file.as_os_str() == "-" {
            if args.resume {
                return Err(Failure::usage("standard output cannot be resumed"));
            }
            return Ok(Self { format, state, state_file: None });
        }
        let state_file = StateFile::beside(&args.file, "export");
        if !args.resume {
            if !args.overwrite && args.file.exists() {
                return Err(uncreated(&args.file, &io::ErrorKind::AlreadyExists.into()));
            }
            return Ok(Self { format, state, state_file: Some(state_file) });
        }
        let Some(earlier) = state_file.load::<ExportState>()? else {
            let path = state_file.path().display();
            let problem = format!("there is no {path}: the last export finished, or never began");
            return Err(
                Failure::new("NOTHING_TO_RESUME", problem).advise("the same without --resume")
            );
        };
        check_resumable(&earlier, &state)?;
        Ok(Self { format, state: earlier, state_file: Some(state_file) })
    }

    /// Opens what the export goes to.
    fn begin(self, args: &ExportArgs) -> Result<Job, Failure> {
        let Self { format, state, state_file } = self;
        let out = match &state_file {
            None => Out::Stdout(io::stdout()),
            Some(_) if args.resume => Out::File(reopen(&args.file, &state)?),
            Some(state_file) => {
                let file = create(&args.file, args.overwrite)?;
                state_file.remove()?;
                Out::File(file)
            }
        };
        Ok(Job { format, out, state, state_file })
    }
}

/// The pages of the scan, from where the export begins.
struct Pages {
    scan: Scan,
    signals: StopSignals,
    attempt: Attempt,
    ended: bool,
}

/// What comes next.
enum Step {
    Page(Page),
    End,
    Signal(&'static str),
}

impl Pages {
    fn new(args: &ExportArgs, keyspace: &Keyspace, state: &ExportState) -> Result<Self, Failure> {
        let level = args.consistency.consistency;
        let mut scan = keyspace.scan(ScanRange::all());
        if let Some(level) = level {
            scan = scan.consistency(level);
        }
        if !state.page_token.is_empty() {
            let decoded = STANDARD.decode(&state.page_token);
            let damaged = |error| Failure::new("STATE_DAMAGED", format!("the page token: {error}"));
            scan = scan.page_token(Bytes::from(decoded.map_err(damaged)?));
        }
        Ok(Self {
            scan,
            signals: StopSignals::new()?,
            attempt: Attempt {
                keyspace: Some(args.keyspace.clone()),
                level,
                local_datacenter: local_datacenter(keyspace.client()),
                ..Attempt::default()
            },
            // With rows but no token the last page was read, and only the end was not noted.
            ended: state.page_token.is_empty() && state.rows > 0,
        })
    }

    async fn next(&mut self) -> Result<Step, Failure> {
        if self.ended {
            return Ok(Step::End);
        }
        tokio::select! {
            page = self.scan.next_page() => {
                let page = page.map_err(|error| fail(&error, &self.attempt))?;
                Ok(page.map_or(Step::End, Step::Page))
            }
            signal = self.signals.next() => Ok(Step::Signal(signal)),
        }
    }
}

/// An export under way.
struct Job {
    format: Format,
    out: Out,
    state: ExportState,
    /// `None` for standard output, which cannot be taken back.
    state_file: Option<StateFile>,
}

enum Out {
    File(File),
    Stdout(io::Stdout),
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(it) => it.write(bytes),
            Self::Stdout(it) => it.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(it) => it.flush(),
            Self::Stdout(it) => it.flush(),
        }
    }
}

impl Job {
    /// Writes pages to the end of the keyspace; the signal that interrupted it, if one did.
    async fn run(
        &mut self,
        args: &ExportArgs,
        first: Step,
        pages: &mut Pages,
        output: Output,
    ) -> Result<Option<&'static str>, Failure> {
        if self.state.file_bytes == 0 {
            self.write(args, &heading(self.format))?;
        }
        let bar = progress::steps_bar(output, RING_STEPS);
        let mut saved: Option<Instant> = None;
        let mut step = first;
        loop {
            let page = match step {
                Step::Page(page) => page,
                Step::End => break,
                Step::Signal(signal) => return Ok(Some(signal)),
            };
            self.take(args, &page)?;
            self.advance(&bar, &page);
            if saved.is_none_or(|it| it.elapsed() >= SAVE_INTERVAL) {
                self.save()?;
                saved = Some(Instant::now());
            }
            step = pages.next().await.map_err(|failure| self.fail(failure))?;
        }
        bar.finish_and_clear();
        Ok(None)
    }

    fn take(&mut self, args: &ExportArgs, page: &Page) -> Result<(), Failure> {
        let mut text = Vec::new();
        let written = write_rows(self.format, args.encoding, &page.rows, &mut text);
        written.map_err(|error| Failure::file("cannot format a row", &error))?;
        self.write(args, &text)?;
        self.state.rows += u64::try_from(page.rows.len()).expect("a page is small");
        self.state.page_token = STANDARD.encode(&page.next_page_token);
        Ok(())
    }

    fn write(&mut self, args: &ExportArgs, text: &[u8]) -> Result<(), Failure> {
        let written = self.out.write_all(text).and_then(|()| self.out.flush());
        written.map_err(|error| match self.out {
            Out::Stdout(_) => Failure::output(&error),
            Out::File(_) => Failure::file(format!("cannot write {}", args.file.display()), &error),
        })?;
        self.state.file_bytes += u64::try_from(text.len()).expect("a page is small");
        Ok(())
    }

    /// Moves the bar to the token of the page's last row: tokens are evenly spread.
    fn advance(&self, bar: &ProgressBar, page: &Page) {
        let Some(last) = page.rows.last() else { return };
        bar.set_position(last.key.token().0 / (u64::MAX / RING_STEPS));
        let (rows, bytes) = (spell_count(self.state.rows), spell_bytes(self.state.file_bytes));
        bar.set_message(format!("{rows} rows, {bytes}"));
    }

    /// The failure of the scan, after what was read is safe.
    fn fail(&mut self, failure: Failure) -> Failure {
        match self.save() {
            Err(second) => failure.fact("besides", second.message()),
            Ok(()) if self.state_file.is_some() => failure.advise("the same with --resume"),
            Ok(()) => failure,
        }
    }

    /// Writes down where the export stands, once the rows before are durable.
    fn save(&mut self) -> Result<(), Failure> {
        let (Out::File(file), Some(state_file)) = (&self.out, &self.state_file) else {
            return Ok(());
        };
        let synced = file.sync_data();
        synced.map_err(|error| Failure::file("cannot write the export", &error))?;
        state_file.save(&self.state)
    }

    fn finish(&mut self) -> Result<(), Failure> {
        if let Out::File(file) = &self.out {
            let synced = file.sync_all();
            synced.map_err(|error| Failure::file("cannot write the export", &error))?;
        }
        self.state_file.as_ref().map_or(Ok(()), StateFile::remove)
    }

    fn report(&self, args: &ExportArgs, elapsed: Duration, output: Output) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct Report<'a> {
            keyspace: &'a str,
            file: String,
            rows: u64,
            bytes: u64,
            seconds: f64,
        }
        let (rows, bytes) = (self.state.rows, self.state.file_bytes);
        let file = args.file.display().to_string();
        let text = format!(
            "{} rows, {}, in {}",
            spell_count(rows),
            spell_bytes(bytes),
            spell_duration(elapsed)
        );
        match &self.out {
            // The rows themselves are on standard output.
            Out::Stdout(_) => output.note(&text),
            Out::File(_) if output.is_json() => {
                let seconds = elapsed.as_secs_f64();
                output.document(&Report {
                    keyspace: &args.keyspace,
                    file,
                    rows,
                    bytes,
                    seconds,
                })?;
            }
            Out::File(_) => output.line(&format!("{text} to {file}"))?,
        }
        Ok(())
    }
}

fn create(path: &Path, overwrite: bool) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    options.write(true);
    let opened = if overwrite {
        options.create(true).truncate(true).open(path)
    } else {
        options.create_new(true).open(path)
    };
    opened.map_err(|error| uncreated(path, &error))
}

fn uncreated(path: &Path, error: &io::Error) -> Failure {
    let failure = Failure::file(format!("cannot create {}", path.display()), error);
    match error.kind() {
        io::ErrorKind::AlreadyExists => failure.advise("--overwrite").advise("--resume"),
        _ => failure,
    }
}

fn cannot_resume(problem: &str) -> Failure {
    Failure::new("CANNOT_RESUME", format!("the earlier export cannot go on: {problem}"))
        .advise("--overwrite to begin anew")
}

fn check_resumable(earlier: &ExportState, now: &ExportState) -> Result<(), Failure> {
    if earlier.keyspace == now.keyspace && earlier.options == now.options {
        return Ok(());
    }
    let (keyspace, options) = (&earlier.keyspace, &earlier.options);
    Err(cannot_resume(&format!("it was of keyspace {keyspace} with {options}")))
}

/// Opens the file of an earlier export and cuts off what was not yet written down.
fn reopen(path: &Path, earlier: &ExportState) -> Result<File, Failure> {
    let failure = |error| Failure::file(format!("cannot open {}", path.display()), &error);
    let file = OpenOptions::new().append(true).open(path).map_err(failure)?;
    let length = file.metadata().map_err(failure)?.len();
    if length < earlier.file_bytes {
        let expected = earlier.file_bytes;
        return Err(cannot_resume(&format!("the file has {length} bytes of {expected}")));
    }
    file.set_len(earlier.file_bytes).map_err(failure)?;
    Ok(file)
}
