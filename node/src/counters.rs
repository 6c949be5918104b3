//! Figures of one node, for its status and for metrics. One set per node: many share a process.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a node has done since it started.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)*
        }

        impl Counters {
            /// All of them, by name.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

counters! {
    /// Writes acknowledged.
    writes_acknowledged,
    /// Writes answered with an unknown outcome.
    writes_unknown,
    /// Writes refused because too few replicas were up.
    writes_unavailable,
    /// Writes whose first stamp died and was replaced.
    writes_restamped,
    /// Acknowledged writes that a replica already held a newer version of.
    overwritten_concurrent,
    /// Reads answered.
    reads_answered,
    /// Reads that failed.
    reads_failed,
    /// Reads that asked one replica more because one was slow.
    reads_speculative,
    /// Records written back before a read was answered.
    read_write_backs,
    /// Records written to stale replicas behind a read.
    read_repairs,
    /// Pages of scans answered.
    scan_pages,
    /// Mutations judged for other coordinators.
    mutations_served,
    /// Queries answered for other coordinators.
    queries_served,
    /// Reads that missed the block cache.
    reads_from_disk,
    /// Records that failed their checksum, here or on arrival.
    checksum_failures,
    /// Requests of peers refused.
    peer_requests_refused,
    /// Messages of peers that made no sense.
    peer_messages_malformed,
    /// Answers to peers that their full queues did not take.
    peer_answers_dropped,
    /// Clock readings refused as too far ahead.
    clocks_refused,
    /// Times that this node stopped coordinating because of its wall clock.
    clock_suspensions,
    /// Calls refused because of this node's wall clock.
    calls_clock_skew,
    /// Calls refused because too much was in flight.
    calls_overloaded,
    /// Calls refused as invalid.
    calls_invalid,
    /// Client connections accepted.
    connections_accepted,
    /// Client connections closed because there were too many.
    connections_refused,
    /// Connections closed because no request came in time.
    connections_idle,
    /// Hints delivered.
    hints_delivered,
    /// Hints that the full commit queue did not take, nor a dirty mark for them.
    hints_refused,
    /// Times that a replica refused a hint of ANY as below its fence: such a hint stays.
    any_hints_stranded,
    /// Writes at ANY refused because their hints have reached their bound.
    calls_any_hints_full,
    /// Metadata adopted.
    metadata_adopted,
}

impl Counters {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
