//! Keeps the view of the cluster fresh: asks for the topology now and then, and when something
//! suggests that it changed; asks broken nodes until they answer.
//!
//! One task per client, which ends with the client's last clone.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use proto::{
    CallError, CallOutcome, Reason,
    v1::{self, admin_service_client::AdminServiceClient},
};
use tokio::time::Instant;
use tonic::Request;

use crate::{
    call::{Failure, send_within},
    cluster::Cluster,
    node::Node,
    retry::Progress,
    topology::Topology,
};

/// The shortest pause between two looks at the cluster, however many calls ask for one.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause between two questions to a node that does not answer.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Runs for ever; whoever spawned it aborts it.
pub(crate) async fn run(cluster: Arc<Cluster>) {
    let mut probe_pause = PAUSE_MIN;
    let mut next_refresh = Instant::now() + interval(&cluster);
    loop {
        let any_broken = cluster.view().all_nodes().iter().any(|it| it.is_broken());
        probe_pause = if any_broken { (probe_pause * 2).min(PROBE_PAUSE_MAX) } else { PAUSE_MIN };
        let wake_at =
            if any_broken { next_refresh.min(Instant::now() + probe_pause) } else { next_refresh };
        let woken = tokio::select! {
            biased;
            () = cluster.woken() => true,
            () = tokio::time::sleep_until(wake_at) => false,
        };
        probe_broken_nodes(&cluster).await;
        if woken || Instant::now() >= next_refresh {
            refresh(&cluster).await;
            next_refresh = Instant::now() + interval(&cluster);
        }
        tokio::time::sleep(PAUSE_MIN).await;
    }
}

/// The configured interval, less up to a quarter: clients made together do not ask together.
fn interval(cluster: &Cluster) -> Duration {
    let interval = cluster.config().topology_refresh_interval;
    let thousandths = u32::try_from(cluster.draw() % 250).expect("below 250");
    interval - interval / 1_000 * thousandths
}

/// Asks each broken node, all at once; those that answer serve again. What they say of the cluster is
/// not believed yet: a node that has just started knows less than the others.
async fn probe_broken_nodes(cluster: &Cluster) {
    let nodes = cluster.view().all_nodes();
    let hash = cluster.topology().layout_hash();
    let broken = nodes.iter().filter(|it| it.is_broken());
    join_all(broken.map(|node| async move {
        note(node, &fetch(cluster.config(), node, hash).await);
    }))
    .await;
}

/// Notes whether a node answered.
fn note(node: &Node, response: &Result<v1::GetTopologyResponse, Failure>) {
    match response {
        Err(failure) if failure.progress != Progress::Answered => {
            tracing::debug!(node = %node.address(), error = %failure.error, "no answer");
            node.note_broken();
        }
        _ => node.note_answer(),
    }
}

/// Asks one node after the other for the topology, until one answers with what can be used.
///
/// Those that may know best come first, among them any: one that is cut off from the others still answers, and
/// would be asked for ever.
pub(crate) async fn refresh(cluster: &Cluster) {
    let mut nodes = cluster.view().all_nodes();
    // Healthy ones first; among them the client's own datacenter.
    let view = cluster.topology();
    let is_local = |node: &Node| {
        view.nodes()
            .iter()
            .any(|it| it.address == **node.address() && it.datacenter == cluster.datacenter())
    };
    nodes.sort_by_cached_key(|it| (it.is_broken(), !is_local(it), cluster.draw()));
    for node in nodes {
        match refresh_from(cluster, &node).await {
            Ok(Learnt::Topology) => return,
            Ok(Learnt::Nothing) => {}
            Err(failure) => {
                tracing::debug!(node = %node.address(), error = %failure.error, "no topology");
            }
        }
    }
}

/// What a node's answer was good for.
pub(crate) enum Learnt {
    /// It is as new as what was known, or newer.
    Topology,
    /// It is older, of another cluster, or makes no sense.
    Nothing,
}

/// Asks one node for the topology, and shows it to all calls unless what is known is newer.
pub(crate) async fn refresh_from(cluster: &Cluster, node: &Node) -> Result<Learnt, Failure> {
    let known = cluster.topology();
    let response = fetch(cluster.config(), node, known.layout_hash()).await;
    note(node, &response);
    let parsed = match Topology::parse(response?, Some(&known)) {
        Ok(topology) => Ok(topology),
        // It may have left out assignments of a layout that we only thought to know.
        Err(error) => {
            tracing::debug!(node = %node.address(), %error, "asking for the whole topology");
            Topology::parse(fetch(cluster.config(), node, 0).await?, None)
        }
    };
    match parsed {
        Ok(topology) => {
            if cluster.show(topology) {
                return Ok(Learnt::Topology);
            }
            tracing::debug!(node = %node.address(), "an older topology, or a foreign one");
        }
        Err(error) => tracing::warn!(node = %node.address(), %error, "the topology is refused"),
    }
    Ok(Learnt::Nothing)
}

/// Asks one node for the topology.
pub(crate) async fn fetch(
    config: &crate::ClientConfig,
    node: &Node,
    known_layout_hash: u64,
) -> Result<v1::GetTopologyResponse, Failure> {
    let timeout = config.request_timeout;
    let mut request = Request::new(v1::GetTopologyRequest { known_layout_hash });
    request.set_timeout(timeout);
    let bytes_max = config.message_bytes_max;
    let ask = async |channel| {
        let client = AdminServiceClient::new(channel);
        client.max_decoding_message_size(bytes_max).get_topology(request).await
    };
    let response = send_within(node, timeout, ask, |_| silent(timeout));
    Ok(response.await?.into_inner())
}

/// A node that does not say what it knows of the cluster. Whoever connects has not begun a call of its
/// own: it is no read that was late, and no write that may have happened.
fn silent(timeout: Duration) -> CallError {
    let message = format!("the node did not answer within {timeout:?}");
    let mut error = CallError::new(Reason::ConnectionLost, message);
    error.outcome = CallOutcome::NotApplied;
    error
}
