//! From a snapshot of plain numbers to Prometheus text.
//!
//! ```text
//! GET /v1/metrics ─► node.metrics() ─► latest snapshot ─► registry.gather() ─► text
//!                                          ▲   ▲               │   │
//!               observable counters, gauges┘   └─histograms    │   │
//!               (OpenTelemetry, its exporter is a collector) ◄─┘   │
//!                              (our collector, one per family) ◄───┘
//! ```
//!
//! Counters and gauges are observable OpenTelemetry instruments: at every scrape the SDK calls back,
//! and the callback reads the snapshot taken for this scrape, so all numbers of one answer belong
//! together. OpenTelemetry has no observable histogram, so histograms, which the reactors count in
//! their own buckets, go into the same registry by a collector of ours.
//!
//! Names leave as they came: the exporter's habit of adding `_total` and units is switched off.
//! Families are registered when first seen, so the node alone decides which there are.

use memkv_admin_api::{Histogram, Label, MetricsSnapshot, NodeAdmin};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, MeterProvider};
use opentelemetry_sdk::error::OTelSdkError;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::core::{Collector, Desc};
use prometheus::{Registry, TextEncoder, proto};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// Why there is no metrics text. Everything but `Exporter` and `Encode` is a fault of the node's code.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The exporter could not be built.
    #[error("the metrics exporter: {0}")]
    Exporter(#[from] OTelSdkError),
    /// A name that Prometheus does not take.
    #[error("`{0}` is not a metric name")]
    BadName(&'static str),
    /// One name is used for two kinds of metric.
    #[error("{name} is both a {first} and a {second}")]
    TwoKinds {
        /// The name.
        name: &'static str,
        /// Its first kind.
        first: &'static str,
        /// Its second.
        second: &'static str,
    },
    /// The registry refused a family, or the text could not be written.
    #[error("metrics: {0}")]
    Encode(#[from] prometheus::Error),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// The snapshot that callbacks and collectors read, replaced at each scrape.
#[derive(Clone, Default)]
struct Latest(Arc<Mutex<Arc<MetricsSnapshot>>>);

impl Latest {
    fn lock(&self) -> MutexGuard<'_, Arc<MetricsSnapshot>> {
        // The lock is held for one pointer copy; a poisoned one still holds a whole snapshot.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> Arc<MetricsSnapshot> {
        self.lock().clone()
    }
}

/// Answers scrapes.
pub struct Exporter {
    latest: Latest,
    registry: Registry,
    meter: Meter,
    /// Collects for the exporter as long as it lives.
    provider: SdkMeterProvider,
    families: Mutex<BTreeMap<&'static str, Kind>>,
}

impl Exporter {
    /// An exporter that knows no family yet.
    pub fn new() -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build()?;
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        let meter = provider.meter("memkv");
        let (latest, families) = (Latest::default(), Mutex::default());
        Ok(Self { latest, registry, meter, provider, families })
    }

    /// Takes a snapshot of the node and writes it in the Prometheus text format, version 0.0.4.
    pub fn text(&self, node: &dyn NodeAdmin) -> Result<String, MetricsError> {
        // Held to the end: two scrapes at once would mix their snapshots.
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = Arc::new(node.metrics());
        self.register_new(&snapshot, &mut families)?;
        *self.latest.lock() = snapshot;
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }

    fn register_new(
        &self,
        snapshot: &MetricsSnapshot,
        families: &mut BTreeMap<&'static str, Kind>,
    ) -> Result<(), MetricsError> {
        for counter in &snapshot.counters {
            if is_new(families, counter.name, Kind::Counter)? {
                self.register_counter(counter.name, counter.help);
            }
        }
        for gauge in &snapshot.gauges {
            if is_new(families, gauge.name, Kind::Gauge)? {
                self.register_gauge(gauge.name, gauge.help);
            }
        }
        for histogram in &snapshot.histograms {
            if is_new(families, histogram.name, Kind::Histogram)? {
                let collector = HistogramCollector::new(histogram, self.latest.clone())?;
                self.registry.register(Box::new(collector))?;
            }
        }
        Ok(())
    }

    fn register_counter(&self, name: &'static str, help: &'static str) {
        let latest = self.latest.clone();
        self.meter
            .u64_observable_counter(name)
            .with_description(help)
            .with_callback(move |observer| {
                for sample in latest.get().counters.iter().filter(|sample| sample.name == name) {
                    observer.observe(sample.value, &attributes(&sample.labels));
                }
            })
            .build();
    }

    fn register_gauge(&self, name: &'static str, help: &'static str) {
        let latest = self.latest.clone();
        self.meter
            .f64_observable_gauge(name)
            .with_description(help)
            .with_callback(move |observer| {
                for sample in latest.get().gauges.iter().filter(|sample| sample.name == name) {
                    observer.observe(sample.value, &attributes(&sample.labels));
                }
            })
            .build();
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // A provider that is dropped without says so in the log of the node.
        if let Err(error) = self.provider.shutdown() {
            tracing::debug!(%error, "the metrics provider did not shut down");
        }
    }
}

fn attributes(labels: &[Label]) -> Vec<KeyValue> {
    labels.iter().map(|(name, value)| KeyValue::new(*name, value.clone())).collect()
}

/// Notes a name; whether it was unknown.
fn is_new(
    families: &mut BTreeMap<&'static str, Kind>,
    name: &'static str,
    kind: Kind,
) -> Result<bool, MetricsError> {
    match families.get(name) {
        Some(known) if *known == kind => Ok(false),
        Some(known) => {
            Err(MetricsError::TwoKinds { name, first: known.word(), second: kind.word() })
        }
        None if !is_metric_name(name) => Err(MetricsError::BadName(name)),
        None => {
            families.insert(name, kind);
            Ok(true)
        }
    }
}

/// `[a-zA-Z_][a-zA-Z0-9_]*`: what both Prometheus and OpenTelemetry take unchanged.
fn is_metric_name(name: &str) -> bool {
    let head = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    name.len() <= 255
        && name.bytes().next().is_some_and(head)
        && name.bytes().all(|b| head(b) || b.is_ascii_digit())
}

/// Hands one histogram family of the latest snapshot to the registry.
struct HistogramCollector {
    desc: Desc,
    latest: Latest,
}

impl HistogramCollector {
    fn new(histogram: &Histogram, latest: Latest) -> Result<Self, prometheus::Error> {
        let labels = histogram.labels.iter().map(|(name, _)| (*name).to_owned()).collect();
        let (name, help) = (histogram.name.to_owned(), histogram.help.to_owned());
        Ok(Self { desc: Desc::new(name, help, labels, HashMap::new())?, latest })
    }
}

impl Collector for HistogramCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let snapshot = self.latest.get();
        let ours = snapshot.histograms.iter().filter(|h| h.name == self.desc.fq_name);
        let samples: Vec<proto::Metric> = ours.map(sample).collect();
        if samples.is_empty() {
            // The encoder refuses a family without samples.
            return Vec::new();
        }
        let mut family = proto::MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(proto::MetricType::HISTOGRAM);
        family.set_metric(samples);
        vec![family]
    }
}

fn sample(histogram: &Histogram) -> proto::Metric {
    let mut out = proto::Histogram::default();
    out.set_sample_count(histogram.count);
    out.set_sample_sum(histogram.sum_seconds);
    let bucket = |bucket: &memkv_admin_api::Bucket| {
        let mut out = proto::Bucket::default();
        out.set_upper_bound(bucket.upper_bound_seconds);
        out.set_cumulative_count(bucket.cumulative_count);
        out
    };
    out.set_bucket(histogram.buckets.iter().map(bucket).collect());
    let label = |(name, value): &Label| {
        let mut out = proto::LabelPair::default();
        out.set_name((*name).to_owned());
        out.set_value(value.clone());
        out
    };
    let mut metric = proto::Metric::default();
    metric.set_label(histogram.labels.iter().map(label).collect());
    metric.set_histogram(out);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_both_libraries_take() {
        for name in ["memkv_read_total", "_x", "A1"] {
            assert!(is_metric_name(name), "{name}");
        }
        for name in ["", "1x", "memkv.read", "memkv-read", "memkv read", "größe"] {
            assert!(!is_metric_name(name), "{name}");
        }
    }

    #[test]
    fn one_name_is_one_kind() {
        let mut families = BTreeMap::new();
        assert!(is_new(&mut families, "a", Kind::Counter).expect("a good name"));
        assert!(!is_new(&mut families, "a", Kind::Counter).expect("known"));
        let error = is_new(&mut families, "a", Kind::Histogram).expect_err("already a counter");
        assert_eq!(error.to_string(), "a is both a counter and a histogram");
        assert!(matches!(is_new(&mut families, "b c", Kind::Gauge), Err(MetricsError::BadName(_))));
    }
}
