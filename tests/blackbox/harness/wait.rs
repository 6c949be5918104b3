//! Waiting for what must come true. Every wait has an end, far beyond what a healthy machine takes:
//! these bounds tell a hang from an answer and measure nothing.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep, timeout};

/// How long anything may take on a busy machine before it counts as never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);

const AGAIN: Duration = Duration::from_millis(25);

/// Tries until it succeeds. Panics with the last complaint when `PATIENCE` is over.
pub(crate) async fn eventually<T>(
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let complaint = match timeout(PATIENCE, attempt()).await {
            Ok(Ok(it)) => return it,
            Ok(Err(complaint)) => complaint,
            Err(_) => "no answer".to_owned(),
        };
        assert!(Instant::now() < deadline, "never: {what}: {complaint}");
        sleep(AGAIN).await;
    }
}

/// Awaits what must come within a bound.
pub(crate) async fn within<F: Future>(what: &str, bound: Duration, future: F) -> F::Output {
    match timeout(bound, future).await {
        Ok(it) => it,
        Err(_) => panic!("not within {bound:?}: {what}"),
    }
}
