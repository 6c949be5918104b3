//! What a command says when it fails: what happened, with the numbers; whether it was applied; what
//! to try. One shape for every command, for people and as JSON, and the exit code that goes with it.
//!
//! Never decides what to do about a failure: it is the last word of a command.

mod advice;

use std::{collections::BTreeMap, error::Error, fmt::Write, io};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use model::ConsistencyLevel;
use proto::{CallError, CallOutcome, Reason};
use serde::Serialize;

/// How a process ends. The numbers are part of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Everything asked for was done.
    Ok = 0,
    /// It failed, and nothing was applied.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A write may have been applied, or may take effect later.
    OutcomeUnknown = 3,
    /// Too few replicas or no node can be reached; nothing was applied.
    Unavailable = 4,
    /// `get` found no value.
    Absent = 5,
}

/// Whether a failed command changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Effect {
    /// Nothing was written.
    NotApplied,
    /// It may have been written, or may be at any later time.
    Unknown,
    /// Some of it was done; the message says what.
    Partial,
}

/// A call that failed, as the person who made it knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    /// The keyspace, if the call names one.
    pub(crate) keyspace: Option<String>,
    /// The row's name as a shell takes it, if the call names one.
    pub(crate) key: Option<String>,
    /// The level asked for; `None` for the keyspace's default.
    pub(crate) level: Option<ConsistencyLevel>,
    /// True if the call writes.
    pub(crate) writes: bool,
    /// The datacenter that local levels would mean, if there are others too.
    pub(crate) local_datacenter: Option<String>,
    /// How to ask what the command takes.
    pub(crate) help: Option<&'static str>,
}

/// A command's failure. Small, because every function here may return one.
#[derive(Clone, Debug)]
pub(crate) struct Failure(Box<Details>);

#[derive(Clone, Debug)]
struct Details {
    /// A stable name: a wire reason, or one of the command line's own in the same style.
    reason: String,
    /// What happened, with the numbers.
    message: String,
    /// Further facts, each under a short label.
    facts: Vec<(&'static str, String)>,
    /// Whether it was applied; `None` where nothing could have been.
    effect: Option<Effect>,
    /// What to try, the best first.
    advice: Vec<String>,
    /// How the process ends.
    exit: Exit,
    /// The numbers of the wire error, under its names.
    metadata: BTreeMap<String, String>,
}

impl Failure {
    /// A failure of this machine or of the command itself, without effect on the cluster.
    pub(crate) fn new(reason: &str, message: impl Into<String>) -> Self {
        Self(Box::new(Details {
            reason: reason.to_owned(),
            message: message.into(),
            facts: Vec::new(),
            effect: None,
            advice: Vec::new(),
            exit: Exit::Failed,
            metadata: BTreeMap::new(),
        }))
    }

    /// A command line that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new("USAGE", message).exit(Exit::Usage)
    }

    /// A command line that the parser refuses.
    pub(crate) fn arguments(error: &clap::Error) -> Self {
        let (none, nothing) =
            (ErrorKind::MissingSubcommand, ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        if [none, nothing].contains(&error.kind()) {
            return Self::usage("there is no command").advise("--help");
        }
        let text = error.render().to_string();
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        // Tips and the usage follow in paragraphs of their own.
        let message = text.split("\n\n").next().unwrap_or(text);
        let lines: Vec<_> = message.lines().map(str::trim).collect();
        let mut it = Self::usage(lines.join(" "));
        for (kind, value) in error.context() {
            it = match (kind, value) {
                (
                    ContextKind::SuggestedArg | ContextKind::SuggestedSubcommand,
                    ContextValue::String(name),
                ) => it.advise(name),
                (
                    ContextKind::SuggestedSubcommand | ContextKind::SuggestedValue,
                    ContextValue::Strings(names),
                ) => names.iter().fold(it, |it, name| it.advise(name)),
                _ => it,
            };
        }
        it.advise("--help")
    }

    /// A file that cannot be used. `what` says what was being done with it.
    pub(crate) fn file(what: impl Into<String>, error: &io::Error) -> Self {
        let what = what.into();
        Self::new("FILE", format!("{what}: {error}"))
    }

    /// Standard output is gone.
    pub(crate) fn output(error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::BrokenPipe => BROKEN_PIPE,
            _ => "OUTPUT",
        };
        Self::new(reason, format!("cannot write to standard output: {error}"))
    }

    /// True if whoever read our output has left: nothing is worth saying then.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.0.reason == BROKEN_PIPE
    }

    /// A call that the cluster, or the way to it, failed. `node` is who answered, if one did.
    pub(crate) fn call(error: &CallError, node: Option<&str>, attempt: &Attempt) -> Self {
        let unknown = attempt.writes && error.outcome == CallOutcome::Unknown;
        let mut it = Self::new(error.reason.as_str(), sentence(error));
        it.0.metadata = error.metadata.clone();
        it.0.facts = facts(error, node, attempt);
        it.0.effect =
            attempt.writes.then_some(if unknown { Effect::Unknown } else { Effect::NotApplied });
        it.0.exit = match error.reason {
            _ if unknown => Exit::OutcomeUnknown,
            Reason::ConnectionLost
            | Reason::NotEnoughReplicas
            | Reason::NoLayout
            | Reason::ClockSkew
            | Reason::Starting
            | Reason::Draining
            | Reason::ReadTimeout
            | Reason::ReadFailed
            | Reason::Overloaded
            | Reason::StorageFailed
            | Reason::DeadlinePassed => Exit::Unavailable,
            _ => Exit::Failed,
        };
        it.0.advice = advice::advice(error, attempt, unknown);
        it
    }

    /// Its stable name.
    pub(crate) fn reason(&self) -> &str {
        &self.0.reason
    }

    /// What happened.
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// How the process ends.
    pub(crate) fn exit_code(&self) -> Exit {
        self.0.exit
    }

    /// Forgets what the call's error implies for a caller of its own: this was no call of theirs.
    pub(crate) fn of_connecting(mut self) -> Self {
        self.0.effect = None;
        self.0.advice.clear();
        self
    }

    /// Adds a fact.
    pub(crate) fn fact(mut self, label: &'static str, value: impl Into<String>) -> Self {
        self.0.facts.push((label, value.into()));
        self
    }

    /// Adds something to try.
    pub(crate) fn advise(mut self, text: impl Into<String>) -> Self {
        self.0.advice.push(text.into());
        self
    }

    /// Says how the process ends.
    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.0.exit = exit;
        self
    }

    /// Says whether it was applied.
    pub(crate) fn effect(mut self, effect: Effect) -> Self {
        self.0.effect = Some(effect);
        self
    }

    /// For people. Ends with a line break.
    pub(crate) fn render(&self, colour: bool) -> String {
        let (red, bold, plain) =
            if colour { ("\x1b[31;1m", "\x1b[1m", "\x1b[0m") } else { ("", "", "") };
        let mut text =
            format!("{red}error[{}]{plain}: {bold}{}{plain}\n", self.0.reason, self.0.message);
        let mut line = |label: &str, value: &str| {
            writeln!(text, "  {label:<9} {value}").expect("a string takes everything");
        };
        for (label, value) in &self.0.facts {
            line(label, value);
        }
        match self.0.effect {
            Some(Effect::NotApplied) => line("outcome", "NOT APPLIED: nothing was written"),
            Some(Effect::Unknown) => line(
                "outcome",
                "UNKNOWN: the write may have been applied, or may become visible later",
            ),
            Some(Effect::Partial) => line("outcome", "PARTIAL: some of it was done"),
            None => {}
        }
        if !self.0.advice.is_empty() {
            line("try", &self.0.advice.join(" | "));
        }
        text
    }

    /// As one JSON document.
    pub(crate) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Document<'a> {
            error: Body<'a>,
        }
        #[derive(Serialize)]
        struct Body<'a> {
            reason: &'a str,
            message: &'a str,
            outcome: Option<Effect>,
            facts: BTreeMap<&'a str, &'a str>,
            metadata: &'a BTreeMap<String, String>,
            #[serde(rename = "try")]
            advice: &'a [String],
            exit_code: u8,
        }
        let error = Body {
            reason: &self.0.reason,
            message: &self.0.message,
            outcome: self.0.effect,
            facts: self.0.facts.iter().map(|(label, value)| (*label, value.as_str())).collect(),
            metadata: &self.0.metadata,
            advice: &self.0.advice,
            exit_code: self.0.exit as u8,
        };
        serde_json::to_string(&Document { error }).expect("strings and numbers always serialize")
    }
}

/// An error with all its causes, as one sentence.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(it) = cause {
        let said = it.to_string();
        if !text.contains(&said) {
            write!(text, ": {said}").expect("a string takes everything");
        }
        cause = it.source();
    }
    text
}

const BROKEN_PIPE: &str = "BROKEN_PIPE";

fn sentence(error: &CallError) -> String {
    if error.message.is_empty() {
        return format!("the call failed with {}", error.code);
    }
    error.message.clone()
}

fn facts(error: &CallError, node: Option<&str>, attempt: &Attempt) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    match (&attempt.keyspace, &attempt.key) {
        (Some(keyspace), Some(key)) => {
            facts.push(("key", format!("{key}  (keyspace {keyspace})")));
        }
        (Some(keyspace), None) => facts.push(("keyspace", keyspace.clone())),
        _ => {}
    }
    let number = |name: &str| error.metadata.get(name);
    if let Some(required) = number("required") {
        let level = attempt.level.map(|it| it.to_string());
        let level = level.or_else(|| number("level").cloned());
        let mut text = level.unwrap_or_else(|| "the keyspace's default level".to_owned());
        write!(text, "   required {required}").expect("a string takes everything");
        for name in ["alive", "received", "datacenter"] {
            if let Some(value) = number(name) {
                write!(text, ", {name} {value}").expect("a string takes everything");
            }
        }
        facts.push(("asked", text));
    }
    if let (Some(limit), Some(actual)) = (number("limit"), number("actual")) {
        facts.push(("limit", format!("{limit}, given {actual}")));
    }
    if let Some(node) = node {
        facts.push(("node", node.to_owned()));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(writes: bool) -> Attempt {
        Attempt {
            keyspace: Some("shop".to_owned()),
            key: Some("user:42".to_owned()),
            level: Some(ConsistencyLevel::EachQuorum),
            writes,
            local_datacenter: Some("dc1".to_owned()),
            help: None,
        }
    }

    #[test]
    fn an_unavailable_level_is_explained() {
        let error =
            CallError::new(Reason::NotEnoughReplicas, "EACH_QUORUM needs 2 in dc3, 0 alive")
                .with("required", 2)
                .with("alive", 0)
                .with("datacenter", "dc3");
        let failure = Failure::call(&error, Some("127.0.0.1:7400"), &attempt(true));
        assert_eq!(failure.exit_code(), Exit::Unavailable);
        assert_eq!(
            failure.render(false),
            "error[NOT_ENOUGH_REPLICAS]: EACH_QUORUM needs 2 in dc3, 0 alive
  key       user:42  (keyspace shop)
  asked     EACH_QUORUM   required 2, alive 0, datacenter dc3
  node      127.0.0.1:7400
  outcome   NOT APPLIED: nothing was written
  try       --consistency LOCAL_QUORUM | quorate admin status | the same again in a moment
"
        );
    }

    #[test]
    fn only_a_write_has_an_unknown_outcome() {
        let error = CallError::new(Reason::ConnectionLost, "the connection broke");
        let exit = |writes| Failure::call(&error, None, &attempt(writes)).exit_code();
        assert_eq!([exit(true), exit(false)], [Exit::OutcomeUnknown, Exit::Unavailable]);
    }

    #[test]
    fn every_reason_has_an_exit_code_of_its_outcome() {
        for reason in Reason::ALL {
            let failure = Failure::call(&CallError::new(*reason, "x"), None, &attempt(true));
            let unknown = reason.outcome() == CallOutcome::Unknown;
            assert_eq!(failure.exit_code() == Exit::OutcomeUnknown, unknown, "{reason}");
            assert_eq!(failure.0.effect == Some(Effect::Unknown), unknown, "{reason}");
        }
    }

    #[test]
    fn a_refused_command_line_has_the_same_shape() {
        use clap::Parser;
        let check = |line: &str, message: &str, advice: &[&str]| {
            let error = crate::args::Cli::try_parse_from(line.split(' ')).unwrap_err();
            let failure = Failure::arguments(&error);
            assert_eq!((failure.message(), failure.exit_code()), (message, Exit::Usage));
            assert_eq!(failure.0.advice, advice);
        };
        check("quorate get shop --jso", "unexpected argument '--jso' found", &["--json", "--help"]);
        check(
            "quorate get shop",
            "the following required arguments were not provided: <KEY>",
            &["--help"],
        );
        check("quorate --json", "there is no command", &["--help"]);
        check("quorate admin", "there is no command", &["--help"]);
        check("quorate pot", "unrecognized subcommand 'pot'", &["put", "--help"]);
    }

    #[test]
    fn json_has_stable_names() {
        let failure = Failure::usage("no such thing").fact("file", "a.csv").advise("--help");
        assert_eq!(
            failure.json(),
            r#"{"error":{"reason":"USAGE","message":"no such thing","outcome":null,"facts":{"file":"a.csv"},"metadata":{},"try":["--help"],"exit_code":2}}"#
        );
    }
}
