//! Figures of one node, for its status and for metrics. One set per node: many share a process.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::exchange::RoundReport;

/// Declares counters once: each line is the field, and its sentence the help of the metric.
///
/// `= "name"` shows a counter by another name than its field's, and `as Gauge` is for a figure that
/// is no sum of events.
macro_rules! counters {
    (
        $(#[doc = $about:literal])*
        $table:ident;
        $($(#[doc = $help:literal])* $field:ident $(= $shown:literal)? $(as $kind:ident)?,)*
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Default)]
        pub struct $table {
            $($(#[doc = $help])* pub $field: std::sync::atomic::AtomicU64,)*
        }

        impl $table {
            /// All of them, by field.
            pub fn values(&self) -> Vec<(&'static str, u64)> {
                let read = |it: &std::sync::atomic::AtomicU64| {
                    it.load(std::sync::atomic::Ordering::Relaxed)
                };
                vec![$((stringify!($field), read(&self.$field)),)*]
            }

            /// All of them, as status and metrics show them.
            pub fn figures(&self) -> Vec<$crate::counters::Figure> {
                vec![$($crate::counters::Figure {
                    name: $crate::counters::counters!(@shown $field $($shown)?),
                    help: concat!($($help),*).trim_ascii_start(),
                    kind: $crate::counters::counters!(@kind $($kind)?),
                    value: self.$field.load(std::sync::atomic::Ordering::Relaxed),
                },)*]
            }
        }
    };
    (@shown $field:ident) => { stringify!($field) };
    (@shown $field:ident $shown:literal) => { $shown };
    (@kind) => { $crate::counters::FigureKind::Counter };
    (@kind $kind:ident) => { $crate::counters::FigureKind::$kind };
}

pub(crate) use counters;

/// One figure of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figure {
    /// As status and metrics show it.
    pub name: &'static str,
    /// What it says, in a sentence.
    pub help: &'static str,
    /// What becomes of it in the course of time.
    pub kind: FigureKind,
    /// Its value now.
    pub value: u64,
}

/// What becomes of a figure in the course of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FigureKind {
    /// It only rises, from zero at the node's start.
    Counter,
    /// It goes up and down, or is no sum.
    Gauge,
}

counters! {
    /// What a node has done since it started.
    Counters;

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
    /// Reads of calls that memory does not answer, pages of scans among them.
    reads_from_disk,
    /// Those of them that were not done: too many waited, or their turn came too late.
    reads_from_disk_refused,
    /// Records read for a call that were thrown away, because calls under way held as many bytes as they may.
    answers_refused,
    /// Clients told to go away that did not take their answers while calls were refused for the room.
    connections_stalled,
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
    /// Times that a process of a node was refused because another one of it is up.
    processes_refused,
    /// Times that this process and another one of its node met, and both went on.
    doubles_met,
    /// Client connections accepted.
    connections_accepted,
    /// Connections closed because there were too many, or because what came was of no client or node of ours.
    connections_refused,
    /// Connections closed because no request came in time.
    connections_idle,
    /// Reads, writes and parts of scans counted anew because a directory was replaced.
    operations_recounted,
    /// Votes not taken because their sender knew of other directories: they are asked for again.
    votes_not_taken,
    /// Hints delivered.
    hints_delivered,
    /// Hints that the full commit queue did not take. They leave a dirty mark once it takes one.
    hints_refused,
    /// Times that a replica refused a hint of ANY as below its fence: such a hint stays.
    any_hints_stranded,
    /// Writes at ANY refused because their hints have reached their bound.
    calls_any_hints_full,
    /// Records that exchanges have sent to other replicas.
    exchange_records_sent,
    /// Records that exchanges have taken from other replicas.
    exchange_records_taken,
    /// Bytes of the records that exchanges begun here have moved, both ways.
    exchange_record_bytes,
    /// Bytes of all messages that exchanges begun here have sent.
    exchange_bytes_sent,
    /// Bytes of all messages that exchanges begun here have received.
    exchange_bytes_received,
    /// Records that differed in exchanges begun here and were refused, or are damaged.
    exchange_records_refused,
    /// Metadata adopted.
    metadata_adopted,
}

impl Counters {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what a round of an exchange has done.
    pub(crate) fn count_round(&self, report: &RoundReport) {
        for (counter, count) in [
            (&self.exchange_records_sent, report.records_sent),
            (&self.exchange_records_taken, report.records_taken),
            (&self.exchange_record_bytes, report.record_bytes),
            (&self.exchange_bytes_sent, report.bytes_sent),
            (&self.exchange_bytes_received, report.bytes_received),
            (&self.exchange_records_refused, report.refused + report.damaged_ranges),
        ] {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "tables are public")]
mod tests {
    use super::*;

    counters! {
        /// A sample.
        Sample;

        /// What is counted,
        /// on two lines.
        plain,
        /// Renamed.
        own = "shown",
        /// The most of it.
        most = "shown_max" as Gauge,
    }

    #[test]
    fn a_line_of_the_table_says_everything() {
        let sample = Sample::default();
        Counters::count(&sample.own);
        let figure = |name, help, kind, value| Figure { name, help, kind, value };
        let expected = [
            figure("plain", "What is counted, on two lines.", FigureKind::Counter, 0),
            figure("shown", "Renamed.", FigureKind::Counter, 1),
            figure("shown_max", "The most of it.", FigureKind::Gauge, 0),
        ];
        assert_eq!(sample.figures(), expected);
        assert_eq!(sample.values(), [("plain", 0), ("own", 1), ("most", 0)]);
    }
}
