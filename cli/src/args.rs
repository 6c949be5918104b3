//! The command line as a whole: global options, and the options that several commands share.
//! Each command's own options stand beside the command.

use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand};
use model::{ConsistencyLevel, Key};

use crate::{
    bench, commands, demo,
    encoding::Encoding,
    failure::Failure,
    output::ColorChoice,
    values::{self, spell_word},
};

const EXIT_CODES: &str = "\
Exit codes:
  0  everything asked for was done
  1  it failed, and nothing was applied; what consists of several calls says what was done
  2  the command line makes no sense
  3  a write's outcome is unknown: it may have been applied, or may take effect later
  4  too few replicas or no node can be reached; nothing was applied
  5  get: there is no value

First steps:
  quorate demo                     three datacenters on this machine, and what they survive
  quorate demo --serve             the same, left running for the commands below
  quorate admin status             who is in the cluster, and who is up
  quorate put demo greeting hello --consistency LOCAL_QUORUM
  quorate get demo greeting";

/// Quorate: a masterless key-value database for several datacenters, with tunable consistency.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Global {
    /// Nodes to connect to, as HOST:PORT; any of the cluster will do
    #[arg(
        id = "seed_nodes",
        long = "node",
        global = true,
        env = "QUORATE_NODE",
        value_name = "ADDR[,ADDR]",
        value_delimiter = ',',
        default_value = "127.0.0.1:7400"
    )]
    pub(crate) nodes: Vec<String>,

    /// Prefer coordinators of this datacenter: local levels then mean its replicas
    #[arg(long, global = true, env = "QUORATE_PREFER_DC", value_name = "DC")]
    pub(crate) prefer_dc: Option<String>,

    /// Give up on a call after this long; the node gets the same deadline, or its own
    /// --request-timeout if that is shorter
    #[arg(long, global = true, value_name = "DURATION", default_value = "5s", value_parser = values::timeout)]
    pub(crate) timeout: Duration,

    /// Write results as JSON: one document, or one per line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// When to colour
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    pub(crate) color: ColorChoice,

    /// What to log on standard error, such as "info" or "node=debug,warn"
    #[arg(long, global = true, env = "QUORATE_LOG", value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Start(Box<commands::start::StartArgs>),
    Demo(demo::DemoArgs),
    Put(commands::put::PutArgs),
    Get(commands::get::GetArgs),
    Delete(commands::delete::DeleteArgs),
    Scan(commands::scan::ScanArgs),
    Import(commands::import::ImportArgs),
    Export(commands::export::ExportArgs),
    #[command(subcommand)]
    Admin(commands::admin::AdminCommand),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Answers every call at once: the server side of `bench floor`
    #[command(hide = true)]
    EchoServer(bench::echo::EchoArgs),
}

/// Names one row.
#[derive(Clone, Debug, Args)]
pub(crate) struct RowArgs {
    /// The keyspace
    pub(crate) keyspace: String,

    /// The partition key: decides which replicas hold the row
    pub(crate) key: String,

    /// The sort key: orders the rows of one partition key
    #[arg(long = "sort", value_name = "SORT_KEY", default_value = "", hide_default_value = true)]
    pub(crate) sort_key: String,

    #[command(flatten)]
    pub(crate) encoding: EncodingArgs,
}

impl RowArgs {
    /// The row's key in bytes.
    pub(crate) fn key(&self) -> Result<Key, Failure> {
        let read = |text: &str| self.encoding.get().read(text).map_err(Failure::usage);
        Ok(Key { partition_key: read(&self.key)?.into(), sort_key: read(&self.sort_key)?.into() })
    }

    /// The row's name for people, as a shell takes it.
    pub(crate) fn name(&self) -> String {
        let (key, mut options) = (spell_word(&self.key), String::new());
        if !self.sort_key.is_empty() {
            // An option's value that looks like an option has to be joined to it.
            let joint = if self.sort_key.starts_with('-') { '=' } else { ' ' };
            options += &format!(" --sort{joint}{}", spell_word(&self.sort_key));
        }
        options += match self.encoding.get() {
            Encoding::Text => "",
            Encoding::Hex => " --hex",
            Encoding::Base64 => " --base64",
        };
        match self.key.starts_with('-') {
            false => key + &options,
            true => format!("{} -- {key}", options.trim_start()).trim_start().to_owned(),
        }
    }
}

/// How bytes are written on the command line and in results.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct EncodingArgs {
    /// Keys and values are written as hexadecimal
    #[arg(long, conflicts_with = "base64")]
    pub(crate) hex: bool,

    /// Keys and values are written as base64
    #[arg(long)]
    pub(crate) base64: bool,
}

impl EncodingArgs {
    /// The encoding asked for.
    pub(crate) fn get(self) -> Encoding {
        match self {
            Self { hex: true, .. } => Encoding::Hex,
            Self { base64: true, .. } => Encoding::Base64,
            _ => Encoding::Text,
        }
    }

    /// Reads bytes that are written so.
    pub(crate) fn read(self, text: &str) -> Result<Bytes, Failure> {
        self.get().read(text).map(Bytes::from).map_err(Failure::usage)
    }
}

/// How many replicas must take part.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ConsistencyArgs {
    /// ANY (writes), ONE, TWO, THREE, QUORUM, ALL, LOCAL_ONE, LOCAL_QUORUM, EACH_QUORUM, or a count
    /// of replicas; without it, the keyspace's default
    #[arg(long, short, value_name = "LEVEL")]
    pub(crate) consistency: Option<ConsistencyLevel>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().global;
        assert!(parse("quorate --json get ks key").json);
        let it = parse("quorate get ks key --node a:1,b:2 --timeout 250ms");
        assert_eq!(it.nodes, ["a:1", "b:2"]);
        assert_eq!(it.timeout, Duration::from_millis(250));
    }

    #[test]
    fn a_row_is_named_as_it_is_asked_for() {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            row: RowArgs,
        }
        let name = |line: &[&str]| {
            let line = [&["get", "shop"], line].concat();
            Line::try_parse_from(line).unwrap().row.name()
        };
        for named in [
            &["user:42"][..],
            &["user:42", "--sort", "cart:7"],
            &["00ff", "--hex"],
            &["AP8=", "--sort", "AQ==", "--base64"],
            &["--sort=-1", "--hex", "--", "-2"],
            &["--", "-2"],
        ] {
            assert_eq!(name(named).replace('\'', ""), named.join(" "));
        }
        assert_eq!(name(&["it's", "--sort", "a b"]), r"'it'\''s' --sort 'a b'");
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "quorate",
            "quorate get ks",
            "quorate get ks key -c SOME",
            "quorate put ks key value --hex --base64",
            "quorate put ks key value --ttl 1ms",
            "quorate get ks key --timeout soon",
            "quorate get ks key --timeout 0s",
            "quorate admin status --timeout 0",
            "quorate start --data d --dc a --request-timeout 0ms",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
