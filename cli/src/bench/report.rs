//! What a load measured, for people and as JSON.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    latency::{LatencySummary, spell_us},
    load::{Kind, Load, Measured},
};
use crate::{
    failure::Failure,
    output::{Output, Paint},
    table::{Cell, Table},
    values::spell_count,
};

/// One load and what it measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LoadDocument {
    pub(crate) name: String,
    pub(crate) clients: usize,
    pub(crate) batch: usize,
    pub(crate) rate: Option<f64>,
    pub(crate) seconds: f64,
    pub(crate) calls_per_second: f64,
    pub(crate) keys_per_second: f64,
    pub(crate) errors: u64,
    pub(crate) not_begun: u64,
    pub(crate) processor_us_per_call: ProcessorDocument,
    pub(crate) operations: Vec<OperationDocument>,
}

/// Microseconds of processor time per call.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ProcessorDocument {
    pub(crate) load: f64,
    pub(crate) servers: f64,
    pub(crate) total: f64,
}

/// Calls of one kind.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct OperationDocument {
    operation: Kind,
    calls: u64,
    keys: u64,
    absent: u64,
    calls_per_second: f64,
    latency: LatencySummary,
    /// From when a call did begin; differs from `latency` in an open loop only.
    service: LatencySummary,
    errors: BTreeMap<String, u64>,
}

impl LoadDocument {
    /// The document of a load.
    pub(crate) fn new(name: &str, load: &Load, measured: &Measured) -> Self {
        let seconds = measured.elapsed.as_secs_f64();
        let operations = measured.tallies.iter().map(|(kind, it)| OperationDocument {
            operation: *kind,
            calls: it.calls,
            keys: it.keys,
            absent: it.absent,
            calls_per_second: rate(it.calls, measured.elapsed),
            latency: it.latencies.summary(),
            service: it.service.summary(),
            errors: it.errors.clone(),
        });
        Self {
            name: name.to_owned(),
            clients: load.clients,
            batch: load.batch,
            rate: load.rate,
            seconds,
            calls_per_second: measured.calls_per_second(),
            keys_per_second: measured.keys_per_second(),
            errors: measured.errors(),
            not_begun: measured.not_begun,
            processor_us_per_call: ProcessorDocument {
                load: measured.us_per_call(measured.load_processor),
                servers: measured.us_per_call(measured.server_processor),
                total: measured.processor_us_per_call(),
            },
            operations: operations.collect(),
        }
    }

    /// The latencies of the first kind of call; loads of the bars have only one.
    pub(crate) fn latency(&self) -> Option<&LatencySummary> {
        self.operations.first().map(|it| &it.latency)
    }

    /// Shows the document.
    pub(crate) fn show(&self, output: Output) -> Result<(), Failure> {
        if output.is_json() {
            return output.document(self);
        }
        output.report(&self.table())?;
        let mut line = format!(
            "{} calls/s  {} keys/s  in {:.1} s",
            spell_rate(self.calls_per_second),
            spell_rate(self.keys_per_second),
            self.seconds
        );
        let processor = &self.processor_us_per_call;
        line += &format!("  processor per call: {:.1} us load generator", processor.load);
        if processor.servers > 0.0 {
            line += &format!(", {:.1} us servers", processor.servers);
        }
        output.line(&line)?;
        if self.not_begun > 0 {
            let begun =
                format!("{} calls should have begun and did not", spell_count(self.not_begun));
            output.line(&output.paint(Paint::Bad, &format!("{begun}: the rate is too high")))?;
        }
        for (operation, reason, count) in self.failures() {
            let text = format!("{operation:?}: {} keys failed with {reason}", spell_count(count));
            output.line(&output.paint(Paint::Bad, &text))?;
        }
        Ok(())
    }

    fn failures(&self) -> impl Iterator<Item = (Kind, &str, u64)> {
        self.operations.iter().flat_map(|it| {
            it.errors.iter().map(|(reason, count)| (it.operation, reason.as_str(), *count))
        })
    }

    fn table(&self) -> Table {
        let columns = [
            "operation",
            ">calls",
            ">calls/s",
            ">p50",
            ">p95",
            ">p99",
            ">p99.9",
            ">max",
            ">failed",
            ">absent",
        ];
        let mut table = Table::new(&columns);
        let mut row = |name: String, it: &OperationDocument, latency: &LatencySummary| {
            let failed: u64 = it.errors.values().sum();
            let paint = if failed > 0 { Paint::Bad } else { Paint::Plain };
            table.row([
                name.into(),
                spell_count(it.calls).into(),
                spell_rate(it.calls_per_second).into(),
                spell_us(latency.p50_us).into(),
                spell_us(latency.p95_us).into(),
                spell_us(latency.p99_us).into(),
                spell_us(latency.p999_us).into(),
                spell_us(latency.max_us).into(),
                Cell::painted(paint, spell_count(failed)),
                spell_count(it.absent).into(),
            ]);
        };
        for it in &self.operations {
            let mut name = match it.operation {
                Kind::Put => "put".to_owned(),
                Kind::Get => "get".to_owned(),
            };
            if self.batch > 1 {
                name += &format!(" x{}", self.batch);
            }
            row(name, it, &it.latency);
            if self.rate.is_some() {
                row("  once begun".to_owned(), it, &it.service);
            }
        }
        table
    }
}

/// Something per second.
#[expect(clippy::cast_precision_loss, reason = "a rate has few digits")]
pub(crate) fn rate(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// A rate for people.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate is positive, and for people a whole number"
)]
pub(crate) fn spell_rate(rate: f64) -> String {
    spell_count(rate.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{keys::KeySpace, load::Tally};

    fn load(rate: Option<f64>) -> Load {
        Load {
            clients: 64,
            rate,
            warm_up: Duration::ZERO,
            duration: Duration::from_secs(2),
            read_share: 0.0,
            batch: 1,
            space: KeySpace::uniform(10, 100),
        }
    }

    fn measured() -> Measured {
        let mut tally = Tally { calls: 2_000, keys: 2_000, ..Tally::default() };
        (0..2_000).for_each(|_| tally.latencies.record(Duration::from_micros(1_500)));
        (0..2_000).for_each(|_| tally.service.record(Duration::from_micros(500)));
        tally.errors.insert("WRITE_TIMEOUT (unknown)".to_owned(), 3);
        Measured {
            tallies: [(Kind::Put, tally)].into(),
            elapsed: Duration::from_secs(2),
            not_begun: 0,
            load_processor: Duration::from_millis(20),
            server_processor: Duration::from_millis(60),
        }
    }

    #[test]
    fn a_closed_loop() {
        let document = LoadDocument::new("run", &load(None), &measured());
        assert_eq!(
            document.table().aligned(false),
            "operation  calls  calls/s      p50      p95      p99    p99.9      max  failed  absent
put        2,000    1,000  1.50 ms  1.50 ms  1.50 ms  1.50 ms  1.50 ms       3       0
"
        );
        assert!((document.processor_us_per_call.total - 40.0).abs() < 1e-9);
        assert!((document.processor_us_per_call.servers - 30.0).abs() < 1e-9);
        assert_eq!(document.errors, 3);
    }

    #[test]
    fn an_open_loop_tells_both_latencies() {
        let text = LoadDocument::new("run", &load(Some(1e3)), &measured()).table().aligned(false);
        assert!(text.contains("\n  once begun  2,000    1,000   500 us"), "{text}");
    }
}
