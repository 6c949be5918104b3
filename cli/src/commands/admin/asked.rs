//! The nodes that a command asks one by one, and waiting until all of them say that they are done.

use std::time::{Duration, Instant};

use clap::Args;
use client::Admin;
use futures_util::future::join_all;
use indicatif::ProgressBar;
use proto::{CallError, Reason, v1};

use super::look;
use crate::{
    connect::fail,
    failure::Failure,
    output::{Output, Paint},
};

/// Which nodes are asked.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct AskedArgs {
    /// Ask only the node that this command connects to, not every node that is up
    #[arg(long, global = true)]
    this_node: bool,
}

impl AskedArgs {
    /// The node that a command connects to.
    pub(super) fn of_this_node() -> Self {
        Self { this_node: true }
    }
}

/// The nodes to ask, and the cluster as the node that named them sees it.
pub(super) struct Asked {
    /// Address and calls of each.
    pub(super) nodes: Vec<(String, Admin)>,
    /// Nodes that would have been asked if they were up.
    pub(super) not_asked: Vec<String>,
    /// What the node said that this command connects to.
    pub(super) status: v1::GetClusterStatusResponse,
}

impl Asked {
    /// Asks who is there.
    pub(super) async fn find(args: AskedArgs, admin: &Admin) -> Result<Self, Failure> {
        let status = admin.status().await.map_err(|error| fail(&error, &look()))?;
        let own = usize::try_from(status.answered_by).unwrap_or(usize::MAX);
        let (mut nodes, mut not_asked) = (Vec::new(), Vec::new());
        for (at, node) in status.nodes.iter().enumerate() {
            let address = node.client_address.clone();
            if args.this_node && at != own {
                continue;
            }
            if !node.up {
                not_asked.push(address);
                continue;
            }
            let there = admin.clone().at_node(&address).map_err(|error| fail(&error, &look()))?;
            nodes.push((address, there));
        }
        Ok(Self { nodes, not_asked, status })
    }

    /// Refuses to go on before the first layout: nobody holds anything then, and waiting would not help.
    pub(super) fn in_a_layout(self) -> Result<Self, Failure> {
        if self.status.layout_version > 0 {
            return Ok(self);
        }
        let error = CallError::new(Reason::NoLayout, "the cluster has no layout yet");
        let node = usize::try_from(self.status.answered_by);
        let node = node.ok().and_then(|it| self.status.nodes.get(it));
        Err(Failure::call(&error, node.map(|it| it.client_address.as_str()), &look()))
    }

    /// The nodes of the layout that are down, asked for or not: what they lack is not known.
    pub(super) fn down(&self) -> Vec<String> {
        let down = self.status.nodes.iter().filter(|it| !it.up && it.in_layout);
        down.map(|it| it.client_address.clone()).collect()
    }
}

/// Says which nodes are not spoken of, and why.
pub(super) fn note_unknown(
    nodes: &[String],
    what_of_them: &str,
    output: Output,
) -> Result<(), Failure> {
    if nodes.is_empty() {
        return Ok(());
    }
    let text = format!("down, so what it {what_of_them} is not known: {}", nodes.join(", "));
    output.line(&output.paint(Paint::Warning, &text))
}

/// Says why a node is not spoken of.
pub(super) fn note_error(node: &str, error: &str, output: Output) -> Result<(), Failure> {
    output.line(&output.paint(Paint::Warning, &format!("{node} did not answer: {error}")))
}

/// One node that is waited for.
pub(super) trait Wait {
    /// Asks it how far it is.
    async fn look(&mut self);

    /// True if there is nothing more to wait for.
    fn is_done(&self) -> bool;
}

/// Looks at all of them until each is done or the time is up; how long that took.
pub(super) async fn wait_for<W: Wait>(
    waits: &mut [W],
    within: Duration,
    progress: &ProgressBar,
    still: impl Fn(&[W]) -> String,
) -> Duration {
    let began = Instant::now();
    loop {
        join_all(waits.iter_mut().filter(|it| !it.is_done()).map(Wait::look)).await;
        let left = within.saturating_sub(began.elapsed());
        if waits.iter().all(Wait::is_done) || left.is_zero() {
            break;
        }
        progress.set_message(still(waits));
        tokio::time::sleep(LOOK_INTERVAL.min(left)).await;
    }
    progress.finish_and_clear();
    began.elapsed()
}

const LOOK_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    /// Done when it was looked at so often.
    struct Counted(u32);

    impl Wait for Counted {
        async fn look(&mut self) {
            assert!(!self.is_done(), "nobody asks for what is known");
            self.0 -= 1;
        }

        fn is_done(&self) -> bool {
            self.0 == 0
        }
    }

    #[test]
    fn before_the_first_layout_there_is_nothing_to_ask_for() {
        let asked = |layout_version| {
            let node = v1::NodeInfo { client_address: "a:1".to_owned(), ..Default::default() };
            let nodes = vec![node];
            let status =
                v1::GetClusterStatusResponse { layout_version, nodes, ..Default::default() };
            Asked { nodes: Vec::new(), not_asked: Vec::new(), status }.in_a_layout()
        };
        assert!(asked(1).is_ok());
        let refused = asked(0).err().unwrap();
        assert_eq!((refused.reason(), refused.exit_code()), ("NO_LAYOUT", Exit::Unavailable));
        assert!(refused.render(false).contains("node      a:1"), "{}", refused.render(false));
    }

    #[tokio::test]
    async fn waits_for_the_last_and_no_longer_than_allowed() {
        let left = |waits: &[Counted]| waits.iter().map(|it| it.0).collect::<Vec<_>>();
        let wait = async |within: Duration| {
            let mut waits = [Counted(1), Counted(3)];
            let progress = ProgressBar::hidden();
            wait_for(&mut waits, within, &progress, |it| format!("{:?}", left(it))).await;
            left(&waits)
        };
        assert_eq!(wait(Duration::from_hours(1)).await, [0, 0]);
        assert_eq!(wait(Duration::ZERO).await, [0, 2], "asked once in any case");
    }
}
