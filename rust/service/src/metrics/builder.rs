//! Creation and registration of the metrics of one process, under the prefix `wardrop` and one label `router_id`.
//!
//! Metrics are created once, at the start of their part. The number of series is bounded by the
//! labels' values: models, workers, roles and fixed words, never a value from a request.

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry,
};

/// A registry to which the service, its shadows and a door add their metrics.
///
/// Every method fails for a name that is taken, and for a name or label that Prometheus does not allow.
#[derive(Clone)]
pub struct MetricBuilder {
    /// Registry of all metrics of the process, read when a page is rendered.
    pub(super) registry: Registry,
}

impl MetricBuilder {
    /// Registers a metric.
    ///
    /// The registry holds a clone, and both share the values.
    pub fn keep<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    /// A counter for each combination of labels.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// A counter without labels.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.keep(IntCounter::new(name, help)?)
    }

    /// A gauge of whole numbers, without labels.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.keep(IntGauge::new(name, help)?)
    }

    /// A counter of seconds or of another amount that is no whole number, without labels.
    pub fn float_counter(&self, name: &str, help: &str) -> Result<Counter, prometheus::Error> {
        self.keep(Counter::new(name, help)?)
    }

    /// A counter of amounts that are no whole numbers, for each combination of labels.
    pub fn float_counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<CounterVec, prometheus::Error> {
        self.keep(CounterVec::new(Opts::new(name, help), labels)?)
    }

    /// A gauge for each combination of labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
        self.keep(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// A histogram for each combination of labels.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        self.keep(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
            labels,
        )?)
    }
}
