//! Prometheus series: the registry of a process, and how its parts register theirs. The series themselves stand
//! beside the code that they count: `http/metrics.rs`, `service/metrics.rs`.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    core::Collector,
};

/// The series of one process, in a registry of its own: two masters may live in one process.
#[derive(Debug, Default)]
pub struct Series(Registry);

impl Series {
    /// A registry that tells the program's version.
    ///
    /// # Errors
    /// Infallible: the registry is empty.
    pub fn new() -> prometheus::Result<Self> {
        let series = Self::default();
        let info = IntGauge::with_opts(
            Opts::new("fl_build_info", "Always 1; the label is the master's version.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        info.set(1);
        series.add(info)?;
        Ok(series)
    }

    /// The page of `GET /metrics`.
    ///
    /// # Errors
    /// If the encoder fails, which a registered series cannot make it.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.0.gather())
    }

    /// Registers a series.
    ///
    /// # Errors
    /// If another one has its name.
    pub fn add<C: Collector + Clone + 'static>(&self, collector: C) -> prometheus::Result<C> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    /// A whole number that goes up and down.
    ///
    /// # Errors
    /// If another series has its name.
    pub fn gauge(&self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.add(IntGauge::new(name, help)?)
    }

    /// A number that only grows.
    ///
    /// # Errors
    /// If another series has its name.
    pub fn counter(&self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.add(IntCounter::new(name, help)?)
    }

    /// Counters by one label.
    ///
    /// # Errors
    /// If another series has their name.
    pub fn counters(&self, name: &str, help: &str, label: &str) -> prometheus::Result<IntCounterVec> {
        self.add(IntCounterVec::new(Opts::new(name, help), &[label])?)
    }

    /// Gauges by one label.
    ///
    /// # Errors
    /// If another series has their name.
    pub fn gauges(&self, name: &str, help: &str, label: &str) -> prometheus::Result<GaugeVec> {
        self.gauges_of(name, help, &[label])
    }

    /// Gauges by any number of labels; without one there is a single series, which is absent until it is set.
    ///
    /// # Errors
    /// If another series has their name.
    pub fn gauges_of(&self, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<GaugeVec> {
        self.add(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// A distribution over the given upper bounds.
    ///
    /// # Errors
    /// If another series has its name.
    pub fn histogram(&self, name: &str, help: &str, bounds: Vec<f64>) -> prometheus::Result<Histogram> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds))?)
    }
}
