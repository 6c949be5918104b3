//! `quorate admin scrub`: has one node compare its Merkle trees with its data at once.
//!
//! Nothing depends on it: every node does so all the time, slowly.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use client::Admin;
use proto::v1;
use serde::Serialize;

use super::{
    asked::{Asked, AskedArgs, Wait, wait_for},
    look,
};
use crate::{
    connect::fail,
    failure::Failure,
    output::{Output, Paint},
    progress::spinner,
    values::{spell_bytes, spell_count, spell_duration},
};

/// Compare one node's Merkle trees with its data now, and mend what its disk has lost
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
The node that this command connects to reads all its data once and counts its Merkle trees again. Every
node does so all the time, slowly: see --scrub-interval of `quorate start`. What a disk has lost comes
back from the other replicas with the next comparison; a record that fails its checksum is replaced by
what they hold, some seconds later.

Examples:
  quorate admin scrub --wait
  quorate --node 10.0.0.3:7400 admin scrub --wait --within 6h")]
pub(crate) struct ScrubArgs {
    /// Wait until the pass has ended, and report what it found
    #[arg(long)]
    wait: bool,

    /// Give up waiting after this long; the pass goes on
    #[arg(long, value_name = "DURATION", default_value = "1h", requires = "wait", value_parser = crate::values::duration)]
    within: Duration,
}

/// What a pass has found.
#[derive(Clone, Debug, Default, Serialize)]
struct ScrubDocument {
    node: String,
    /// True if the pass has ended.
    done: bool,
    /// Why the node did not answer the last time.
    error: Option<String>,
    waited_ms: u64,
    partitions: u64,
    leaves: u64,
    records: u64,
    bytes: u64,
    /// Leaves that were not what the data say, and are again.
    mismatches: u64,
    /// Records that fail their checksum: they are healed by the other replicas.
    damaged: u64,
    /// Rows of which not even the key can be read.
    unreadable: u64,
    /// Leaves whose data the storage engine cannot read.
    leaves_unreadable: u64,
}

/// Begins a pass, and waits for its end if asked to.
pub(super) async fn run(args: ScrubArgs, admin: &Admin, output: Output) -> Result<(), Failure> {
    let asked = Asked::find(AskedArgs::of_this_node(), admin).await?;
    let Some((node, admin)) = asked.nodes.into_iter().next() else {
        return Err(Failure::new("NODES_FAILED", "the node does not count itself among those up"));
    };
    let document = ScrubDocument { node, ..ScrubDocument::default() };
    let mut pass = [Pass { admin, pass: Bytes::new(), document }];
    pass[0].ask().await.map_err(|error| fail(&error, &look()))?;
    if args.wait {
        let progress = spinner(output, "reading");
        let waited =
            wait_for(&mut pass, args.within, &progress, |it| it[0].document.so_far()).await;
        pass[0].document.waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    }
    let [Pass { document, .. }] = pass;
    document.tell(args.wait, output)
}

/// A pass that is waited for.
struct Pass {
    admin: Admin,
    pass: Bytes,
    document: ScrubDocument,
}

impl Pass {
    async fn ask(&mut self) -> Result<(), client::Error> {
        let request = v1::ScrubRequest { pass: self.pass.clone(), wait_ms: Some(0) };
        let answer = self.admin.scrub(request).await?;
        self.pass = answer.pass;
        let it = &mut self.document;
        let report = answer.report.unwrap_or_default();
        (it.done, it.error) = (answer.done, None);
        (it.partitions, it.leaves) = (report.partitions, report.leaves);
        (it.records, it.bytes) = (report.records, report.bytes);
        (it.mismatches, it.damaged) = (report.mismatches, report.damaged);
        (it.unreadable, it.leaves_unreadable) = (report.unreadable, report.leaves_unreadable);
        Ok(())
    }
}

impl Wait for Pass {
    async fn look(&mut self) {
        if let Err(error) = self.ask().await {
            self.document.error = Some(error.to_string());
        }
    }

    fn is_done(&self) -> bool {
        self.document.done
    }
}

impl ScrubDocument {
    fn so_far(&self) -> String {
        let text = format!(
            "{} of data read, {} leaves were wrong",
            spell_bytes(self.bytes),
            spell_count(self.mismatches)
        );
        match &self.error {
            None => text,
            Some(_) => format!("{text}; {} does not answer", self.node),
        }
    }

    fn tell(&self, waited: bool, output: Output) -> Result<(), Failure> {
        if output.is_json() {
            output.document(self)?;
        }
        if waited && !self.done {
            let message = format!("the pass of {} has not ended: {}", self.node, self.so_far());
            return Err(Failure::new("SCRUB_UNFINISHED", message)
                .advise("a longer --within: the pass goes on"));
        }
        if output.is_json() {
            return Ok(());
        }
        let ok = output.paint(Paint::Good, "ok");
        if !waited {
            return output.line(&format!("{ok}  {} compares its trees with its data", self.node));
        }
        output.line(&format!(
            "{ok}  {} read {} records in {} partitions, {}, in {}",
            self.node,
            spell_count(self.records),
            spell_count(self.partitions),
            spell_bytes(self.bytes),
            spell_duration(Duration::from_millis(self.waited_ms)),
        ))?;
        for (count, what) in [
            (
                self.mismatches,
                "leaves were not what the data say: the exchange brings what was lost",
            ),
            (self.damaged, "records are damaged: the other replicas heal them"),
            (self.unreadable, "rows have keys that cannot be read: look at that disk"),
            (self.leaves_unreadable, "leaves have data that cannot be read: replace that disk"),
        ] {
            if count > 0 {
                let text = format!("{} {what}", spell_count(count));
                output.line(&output.paint(Paint::Warning, &text))?;
            }
        }
        Ok(())
    }
}
