//! `quorate admin repair`: has every node compare its replicas at once, and reports what moved.
//!
//! Nothing depends on it: replicas are compared all the time. Of two nodes one compares both, so that
//! asking all nodes covers all pairs.

mod report;

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use client::Admin;
use futures_util::future::join_all;
use proto::{Reason, v1};

use report::{NodeDocument, PairDocument, RepairDocument};

use super::asked::{Asked, AskedArgs, Wait, wait_for};
use crate::{
    connect::fail,
    failure::{Attempt, Failure},
    output::Output,
    progress::spinner,
};

/// Compare all replicas now, and move what differs
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Replicas are compared all the time, and mended without this command. It does it at once and tells what
it found: a second one right after it moves nothing. Exit code 1 means that some pair of nodes is not
known to be the same, because it differs still, or because one of the two is down.

Examples:
  quorate admin repair
  quorate admin repair --keyspace shop --within 1h
  quorate admin repair --no-wait && quorate admin convergence")]
pub(crate) struct RepairArgs {
    /// Compare this keyspace alone
    #[arg(long, value_name = "KEYSPACE")]
    keyspace: Option<String>,

    /// Wait until every comparison has ended, and report on each: so it is unless --no-wait is given
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,

    /// Begin the comparisons, and return
    #[arg(long, conflicts_with = "within")]
    no_wait: bool,

    /// Give up waiting after this long; the comparisons go on
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = crate::values::duration)]
    within: Duration,

    #[command(flatten)]
    asked: AskedArgs,
}

/// Begins the comparisons, and waits for their ends.
pub(super) async fn run(args: RepairArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let asked = Asked::find(args.asked, admin).await?;
    let down = asked.down();
    let mut repairs: Vec<_> =
        asked.nodes.into_iter().map(|it| Repair::new(it, args.keyspace.as_deref())).collect();
    let began = join_all(repairs.iter_mut().map(Repair::ask)).await;
    // Waiting would not help.
    let hopeless =
        |it: &&client::Error| matches!(it.reason(), Reason::KeyspaceNotFound | Reason::NoLayout);
    if let Some(error) = began.iter().flatten().find(hopeless) {
        let attempt = Attempt { keyspace: args.keyspace, ..Attempt::default() };
        return Err(fail(error, &attempt));
    }
    let mut waited = Duration::ZERO;
    if !args.no_wait {
        let progress = spinner(output, "comparing");
        let still = |repairs: &[Repair]| report::under_way(repairs.iter().map(|it| &it.state));
        waited = wait_for(&mut repairs, args.within, &progress, still).await;
    }
    let nodes = repairs.into_iter().map(|it| it.state).collect();
    RepairDocument::new(nodes, down, waited).tell(!args.no_wait, output)
}

/// One node that compares its replicas.
struct Repair {
    admin: Admin,
    keyspace: String,
    round: Bytes,
    state: NodeDocument,
}

impl Repair {
    fn new((node, admin): (String, Admin), keyspace: Option<&str>) -> Self {
        let keyspace = keyspace.unwrap_or_default().to_owned();
        Self { admin, keyspace, round: Bytes::new(), state: NodeDocument::new(node) }
    }

    /// Asks once more; the error, if it did not answer.
    async fn ask(&mut self) -> Option<client::Error> {
        let request = v1::RepairRequest {
            keyspace: self.keyspace.clone(),
            round: self.round.clone(),
            wait_ms: Some(0),
        };
        match self.admin.repair(request).await {
            Ok(answer) => {
                self.round = answer.round;
                self.state.done = answer.done;
                self.state.pairs = answer.pairs.iter().map(PairDocument::new).collect();
                self.state.error = None;
                None
            }
            Err(error) => {
                self.state.error = Some(error.to_string());
                Some(error)
            }
        }
    }
}

impl Wait for Repair {
    async fn look(&mut self) {
        self.ask().await;
    }

    fn is_done(&self) -> bool {
        self.state.done
    }
}
