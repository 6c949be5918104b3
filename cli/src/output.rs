//! Where results go: standard output as tables and sentences for a terminal, as plain lines for a
//! pipe, as JSON when asked. Progress and errors go to standard error.
//!
//! Tables and colour are only for a terminal. A result never depends on either.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

use crate::{failure::Failure, table::Table};

/// When to colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How this process writes its results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    terminal: bool,
    colour: bool,
    error_colour: bool,
}

impl Output {
    /// Looks at the streams once.
    pub(crate) fn new(json: bool, color: ColorChoice) -> Self {
        let coloured = |terminal: bool| match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
        };
        let (terminal, errors) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self { json, terminal, colour: coloured(terminal), error_colour: coloured(errors) }
    }

    /// True if results are JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// True if a person reads the results as they come.
    pub(crate) fn is_terminal(self) -> bool {
        self.terminal && !self.json
    }

    /// True if results may be coloured.
    pub(crate) fn colour(self) -> bool {
        self.colour
    }

    /// True if what goes to standard error may be coloured.
    pub(crate) fn error_colour(self) -> bool {
        self.error_colour
    }

    /// Writes one JSON document on a line of its own.
    pub(crate) fn document<T: Serialize>(self, document: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(document).expect("documents have string keys only");
        self.line(&text)
    }

    /// Writes one line.
    pub(crate) fn line(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let written = writeln!(out, "{text}").and_then(|()| out.flush());
        written.map_err(|error| Failure::output(&error))
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        let written = out.write_all(bytes).and_then(|()| out.flush());
        written.map_err(|error| Failure::output(&error))
    }

    /// Writes a table: aligned for a terminal, tab-separated for a pipe.
    pub(crate) fn table(self, table: &Table) -> Result<(), Failure> {
        let text = if self.terminal { table.aligned(self.colour) } else { table.separated() };
        self.bytes(text.as_bytes())
    }

    /// Writes an aligned table wherever it goes: for reports, which people read from files too.
    pub(crate) fn report(self, table: &Table) -> Result<(), Failure> {
        self.bytes(table.aligned(self.colour).as_bytes())
    }

    /// Says something beside the result, on standard error.
    pub(crate) fn note(self, text: &str) {
        // Nobody is left to tell if standard error is gone.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Reports a failure on standard error.
    pub(crate) fn failure(self, failure: &Failure) {
        if failure.is_broken_pipe() {
            return;
        }
        let text =
            if self.json { failure.json() + "\n" } else { failure.render(self.error_colour) };
        // Nobody is left to tell if standard error is gone.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// Paints a text for a terminal that wants colour.
    pub(crate) fn paint(self, paint: Paint, text: &str) -> String {
        if self.colour { paint.over(text) } else { text.to_owned() }
    }
}

/// What a colour means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum Paint {
    /// As it is.
    #[default]
    Plain,
    /// Went well, is up.
    Good,
    /// Failed, is down.
    Bad,
    /// Deserves a look.
    Warning,
    /// A heading.
    Heading,
    /// Less important than the rest.
    Faint,
}

impl Paint {
    /// The text between the escape sequences of this paint.
    pub(crate) fn over(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => "32",
            Self::Bad => "31;1",
            Self::Warning => "33",
            Self::Heading => "1",
            Self::Faint => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
