//! What a node shows to Prometheus, as text in the OpenMetrics format.
//!
//! Nothing is kept twice: at each scrape one [`Collector`] reads the counters, the gauges and what
//! the loops have counted of requests. One registry per node, as many nodes share a process.

mod gauges;
mod requests;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicUsize},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use crate::{
    call_bytes::CallBytes,
    counters::{Figure, FigureKind},
    shared::Shared,
};

pub(crate) use gauges::gauges;
pub(crate) use requests::{RequestKind, RequestTable};

/// What one I/O loop counts for itself, so that no loop writes to another's memory.
#[derive(Debug)]
pub struct LoopMetrics {
    /// Its clients' requests.
    pub requests: RequestTable,
    /// What it has in flight.
    pub operations_in_flight: Arc<AtomicUsize>,
    /// What its clients' calls hold.
    pub call_bytes: Arc<CallBytes>,
}

impl LoopMetrics {
    /// Nothing has happened yet.
    pub fn new(call_bytes_max: usize) -> Self {
        let (requests, operations_in_flight) = Default::default();
        Self { requests, operations_in_flight, call_bytes: CallBytes::new(call_bytes_max) }
    }
}

/// The registry of one node.
pub(crate) fn registry(shared: &Arc<Shared>) -> Registry {
    let mut registry = Registry::with_prefix("quorate");
    registry.register_collector(Box::new(NodeCollector(Arc::clone(shared))));
    registry
}

/// All that a registry shows, now.
pub(crate) fn encode(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    text::encode(&mut text, registry)?;
    Ok(text)
}

struct NodeCollector(Arc<Shared>);

impl fmt::Debug for NodeCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NodeCollector").field(&self.0.identity.node).finish()
    }
}

impl Collector for NodeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let shared = &self.0;
        let encoder = &mut encoder;
        encode_identity(encoder, shared)?;
        let commit_figures = shared.commit_counters.load().figures();
        for figure in shared.counters.figures().into_iter().chain(commit_figures) {
            encode_figure(encoder, &figure)?;
        }
        for gauge in gauges(shared) {
            gauge.encode(encoder)?;
        }
        requests::encode(encoder, shared.loop_metrics.iter().map(|it| &it.requests))
    }
}

fn encode_identity(encoder: &mut DescriptorEncoder<'_>, shared: &Shared) -> fmt::Result {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    let help = "The version of this build.";
    encoder.encode_descriptor("build", help, None, MetricType::Info)?.encode_info(&version)?;
    let node = shared.identity.node.to_string();
    let config = &shared.config;
    let place =
        [("node", node.as_str()), ("datacenter", &config.datacenter), ("rack", &config.rack)];
    let help = "This node and where it stands.";
    encoder.encode_descriptor("node", help, None, MetricType::Info)?.encode_info(&place)
}

fn encode_figure(encoder: &mut DescriptorEncoder<'_>, figure: &Figure) -> fmt::Result {
    let Figure { name, help, kind, value } = figure;
    match kind {
        FigureKind::Counter => encoder
            .encode_descriptor(name, help, None, MetricType::Counter)?
            .encode_counter::<NoLabelSet, _, f64>(value, None),
        FigureKind::Gauge => {
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
        }
    }
}
