//! Metrics as plain data.
//!
//! The node keeps counters per core and sums them when asked; what it hands over here knows nothing
//! of the library that encodes it. A name carries its whole meaning, unit last
//! (`memkv_read_bytes_total`), and is exported as it stands: nothing is prefixed or suffixed later.

/// One label of a sample: a name that is fixed in the code and a value.
pub type Label = (&'static str, String);

/// A value that only rises while the process lives.
#[derive(Clone, Debug, PartialEq)]
pub struct Counter {
    /// The full exported name, ending in `_total`.
    pub name: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Labels; every sample of a name has the same label names.
    pub labels: Vec<Label>,
    /// The sum so far.
    pub value: u64,
}

/// A value that goes up and down.
#[derive(Clone, Debug, PartialEq)]
pub struct Gauge {
    /// The full exported name.
    pub name: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Labels; every sample of a name has the same label names.
    pub labels: Vec<Label>,
    /// The value now.
    pub value: f64,
}

/// One bucket: how many observations were at most this many seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Inclusive upper bound in seconds; finite. The bucket without a bound is implied.
    pub upper_bound_seconds: f64,
    /// Observations at or below the bound, all lower buckets included.
    pub cumulative_count: u64,
}

/// A distribution of durations.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// The full exported name, ending in `_seconds`.
    pub name: &'static str,
    /// One sentence for people.
    pub help: &'static str,
    /// Labels; every sample of a name has the same label names.
    pub labels: Vec<Label>,
    /// Rising bounds with rising counts.
    pub buckets: Vec<Bucket>,
    /// The sum of all observations, in seconds.
    pub sum_seconds: f64,
    /// How many observations there were, those above the last bound included.
    pub count: u64,
}

impl Histogram {
    /// A histogram from counts per bucket as the reactors keep them: `counts[i]` observations fell
    /// in `(bounds[i-1], bounds[i]]`, and `counts[bounds.len()]` above the last bound.
    pub fn from_counts(
        name: &'static str,
        help: &'static str,
        labels: Vec<Label>,
        bounds_seconds: &[f64],
        counts: &[u64],
        sum_seconds: f64,
    ) -> Self {
        assert_eq!(counts.len(), bounds_seconds.len() + 1, "one count more than bounds");
        let mut total = 0;
        let mut buckets = Vec::with_capacity(bounds_seconds.len());
        for (&upper_bound_seconds, &count) in bounds_seconds.iter().zip(counts) {
            total += count;
            buckets.push(Bucket { upper_bound_seconds, cumulative_count: total });
        }
        total += counts[bounds_seconds.len()];
        Self { name, help, labels, buckets, sum_seconds, count: total }
    }
}

/// Bounds for a stage of waiting, in seconds: 10 µs to 10 s, each step at most 2.5 times the last.
/// A stage takes microseconds in memory and seconds behind a dying drive; one set of bounds keeps
/// stages comparable.
pub const STAGE_BUCKETS_SECONDS: [f64; 19] = [
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Everything `/v1/metrics` shows. Samples of one name must agree in help and in label names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsSnapshot {
    /// Values that only rise.
    pub counters: Vec<Counter>,
    /// Values that go both ways.
    pub gauges: Vec<Gauge>,
    /// Distributions of durations.
    pub histograms: Vec<Histogram>,
}

impl MetricsSnapshot {
    /// Adds a counter sample.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Vec<Label>,
        value: u64,
    ) -> &mut Self {
        self.counters.push(Counter { name, help, labels, value });
        self
    }

    /// Adds a gauge sample.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Vec<Label>,
        value: f64,
    ) -> &mut Self {
        self.gauges.push(Gauge { name, help, labels, value });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_become_cumulative() {
        let h = Histogram::from_counts("x_seconds", "x", vec![], &[0.1, 1.0], &[2, 3, 4], 9.5);
        let counts: Vec<u64> = h.buckets.iter().map(|b| b.cumulative_count).collect();
        assert_eq!(counts, [2, 5]);
        assert_eq!(h.count, 9);
        assert_eq!(h.sum_seconds, 9.5);
    }

    #[test]
    fn stage_bounds_rise_by_small_steps() {
        for pair in STAGE_BUCKETS_SECONDS.windows(2) {
            assert!(pair[1] > pair[0] && pair[1] <= pair[0] * 2.5 + 1e-12, "{pair:?}");
        }
    }
}
