//! Waiting until the nodes of a benchmark have all found that they hold the same.

use std::time::{Duration, Instant};

use proto::v1;

use super::cluster::{BenchCluster, KEYSPACE};
use crate::{args::Global, failure::Failure};

/// So long a datacenter may take to catch up.
const PATIENCE: Duration = Duration::from_mins(20);
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Waits until every node has found all that it shares with others the same, later than now.
pub(super) async fn wait_converged(cluster: &BenchCluster, global: &Global) -> Result<(), Failure> {
    let (begun, others) = (Instant::now(), cluster.nodes().len() - 1);
    for admin in cluster.admins(global).await? {
        loop {
            // Taken first: what was found the same before it was asked for does not count.
            let waited_ms = begun.elapsed().as_millis();
            let known = admin.convergence().await;
            if known.is_ok_and(|it| is_converged(&it, others, waited_ms)) {
                break;
            }
            if begun.elapsed() > PATIENCE {
                return Err(Failure::new("BENCH_STUCK", "the replicas do not become the same"));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
    Ok(())
}

/// Whether a node is filled, and was found the same as each of the others within this time.
fn is_converged(known: &v1::GetConvergenceResponse, others: usize, within_ms: u128) -> bool {
    let is_same = |it: &v1::PairConvergence| {
        it.partitions_same == it.partitions && u128::from(it.oldest_age_ms) < within_ms
    };
    let mut keyspaces = known.keyspaces.iter().filter(|it| it.keyspace == KEYSPACE);
    known.fill.is_none()
        && keyspaces.any(|it| it.pairs.len() == others && it.pairs.iter().all(is_same))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> v1::GetConvergenceResponse {
        let pair = v1::PairConvergence {
            partitions: 4,
            partitions_same: 4,
            oldest_age_ms: 10,
            ..v1::PairConvergence::default()
        };
        let keyspace = v1::KeyspaceConvergence {
            keyspace: KEYSPACE.to_owned(),
            pairs: vec![pair.clone(), pair],
            ..v1::KeyspaceConvergence::default()
        };
        v1::GetConvergenceResponse { keyspaces: vec![keyspace], ..Default::default() }
    }

    #[test]
    fn converged_is_filled_and_the_same_as_all_since() {
        assert!(is_converged(&known(), 2, 11));
        assert!(!is_converged(&known(), 2, 10), "it was so before");
        assert!(!is_converged(&known(), 3, 11), "a node has not been met");
        let mut differs = known();
        differs.keyspaces[0].pairs[1].partitions_same = 3;
        assert!(!is_converged(&differs, 2, 11));
        let filling =
            v1::GetConvergenceResponse { fill: Some(v1::FillStatus::default()), ..known() };
        assert!(!is_converged(&filling, 2, 11));
        assert!(!is_converged(&v1::GetConvergenceResponse::default(), 0, 11));
    }
}
