//! How the demo tells what it does: chapters with facts and checks, and a summary at the end.

use std::net::SocketAddr;

use model::Key;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    encoding::readable,
    failure::Failure,
    output::{Output, Paint},
    table::Table,
    values::spell_bytes,
};

/// Tells the story as it happens and remembers what did not hold.
pub(super) struct Story {
    output: Output,
    begun: Instant,
    chapters: Vec<Chapter>,
}

/// One chapter, as JSON has it.
#[derive(Clone, Debug, Serialize)]
struct Chapter {
    title: String,
    seconds: f64,
    facts: Vec<String>,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    rows: serde_json::Value,
    #[serde(skip)]
    begun: Option<Instant>,
}

#[derive(Clone, Debug, Serialize)]
struct Check {
    held: bool,
    what: String,
}

/// What the end of the story needs to know.
pub(super) struct Summary {
    /// Memory of the process after loading.
    pub(super) memory_bytes: u64,
    /// Where the nodes listen for clients.
    pub(super) addresses: Vec<SocketAddr>,
    /// Where the data came from.
    pub(super) data: String,
}

impl Story {
    /// An untold story.
    pub(super) fn new(output: Output) -> Self {
        Self { output, begun: Instant::now(), chapters: Vec::new() }
    }

    /// Where it is told.
    pub(super) fn output(&self) -> Output {
        self.output
    }

    /// Begins a chapter.
    pub(super) fn chapter(&mut self, title: &str) -> Result<(), Failure> {
        self.end_chapter();
        self.chapters.push(Chapter {
            title: title.to_owned(),
            seconds: 0.0,
            facts: Vec::new(),
            checks: Vec::new(),
            rows: serde_json::Value::Null,
            begun: Some(Instant::now()),
        });
        let heading = format!("{}. {title}", self.chapters.len());
        self.tell(&format!("\n{}", self.output.paint(Paint::Heading, &heading)))
    }

    /// Tells something.
    pub(super) fn fact(&mut self, text: &str) -> Result<(), Failure> {
        if let Some(chapter) = self.chapters.last_mut() {
            chapter.facts.push(text.to_owned());
        }
        self.tell(&format!("   {text}"))
    }

    /// Tells something that has to hold, and whether it does.
    pub(super) fn check(&mut self, held: bool, what: &str) -> Result<(), Failure> {
        if let Some(chapter) = self.chapters.last_mut() {
            chapter.checks.push(Check { held, what: what.to_owned() });
        }
        let mark = match held {
            true => self.output.paint(Paint::Good, "ok"),
            false => self.output.paint(Paint::Bad, "FAILED"),
        };
        self.tell(&format!("   {mark}  {what}"))
    }

    /// Tells a row of the data.
    pub(super) fn row(&mut self, key: &Key, value: &[u8]) -> Result<(), Failure> {
        const SHOWN: usize = 70;
        let value: String = readable(value).chars().take(SHOWN).collect();
        self.fact(&format!("  {}  {value}", readable(&key.sort_key)))
    }

    /// Tells a table, which JSON has as `rows`.
    pub(super) fn table(&mut self, table: &Table, rows: &impl Serialize) -> Result<(), Failure> {
        if let Some(chapter) = self.chapters.last_mut() {
            chapter.rows = serde_json::to_value(rows).expect("documents have string keys only");
        }
        let text = table.aligned(self.output.colour());
        text.lines().try_for_each(|line| self.tell(&format!("   {line}")))
    }

    /// Tells something in full, such as an error, indented.
    pub(super) fn quote(&mut self, text: &str) -> Result<(), Failure> {
        if let Some(chapter) = self.chapters.last_mut() {
            chapter.facts.push(text.to_owned());
        }
        text.lines().try_for_each(|line| self.tell(&format!("   | {line}")))
    }

    /// Tells the end; whether everything held.
    pub(super) fn finish(mut self, summary: &Summary) -> Result<bool, Failure> {
        self.end_chapter();
        let checks = || self.chapters.iter().flat_map(|it| &it.checks);
        let failed: Vec<&str> = checks().filter(|it| !it.held).map(|it| it.what.as_str()).collect();
        let (all, held) = (checks().count(), failed.is_empty());
        let seconds = self.begun.elapsed().as_secs_f64();
        if self.output.is_json() {
            #[derive(Serialize)]
            struct Document<'a> {
                held: bool,
                seconds: f64,
                memory_bytes: u64,
                data: &'a str,
                addresses: &'a [SocketAddr],
                chapters: &'a [Chapter],
            }
            let Summary { memory_bytes, addresses, data } = summary;
            let (memory_bytes, chapters) = (*memory_bytes, &self.chapters);
            self.output.document(&Document {
                held,
                seconds,
                memory_bytes,
                data,
                addresses,
                chapters,
            })?;
            return Ok(held);
        }
        let heading = self.output.paint(Paint::Heading, "In short");
        self.tell(&format!("\n{heading}"))?;
        for line in IN_SHORT {
            self.tell(&format!("   {line}"))?;
        }
        let memory = spell_bytes(summary.memory_bytes);
        self.tell(&format!(
            "\n{} of {all} checks held, {seconds:.0} s, {memory} of memory for {} nodes.",
            all - failed.len(),
            summary.addresses.len(),
        ))?;
        for what in failed {
            self.tell(&format!("{}  {what}", self.output.paint(Paint::Bad, "FAILED")))?;
        }
        Ok(held)
    }

    fn end_chapter(&mut self) {
        if let Some(chapter) = self.chapters.last_mut()
            && let Some(begun) = chapter.begun.take()
        {
            chapter.seconds = begun.elapsed().as_secs_f64();
        }
    }

    fn tell(&self, text: &str) -> Result<(), Failure> {
        if self.output.is_json() { Ok(()) } else { self.output.line(text) }
    }
}

/// What a newcomer should remember.
const IN_SHORT: [&str; 6] = [
    "Every row has replicas in every datacenter. No node is special: any serves any call.",
    "Each call says how many replicas must take part, from ONE to ALL. More replicas: newer",
    "reads and safer writes, but more that has to be up. At quorum levels a read sees the last write.",
    "With a datacenter gone, LOCAL_QUORUM in the others goes on as if nothing had happened. What",
    "needs the lost one is refused before anything is written, with both numbers and what to try.",
    "A datacenter that returns serves at once; a quorum read repairs what it has missed.",
];
