//! How long calls took: recorded exactly enough, told in a few numbers.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const HOUR_NS: u64 = 3_600_000_000_000;

/// A histogram of durations, three significant digits at every scale from a nanosecond to an hour;
/// what takes longer counts as an hour.
#[derive(Clone, Debug)]
pub struct Latency {
    nanoseconds: Histogram<u64>,
}

/// A histogram in the few numbers that a report shows. Times are in microseconds; all are 0 when
/// nothing was recorded.
#[derive(Copy, Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct LatencySummary {
    /// How many calls were recorded.
    pub count: u64,
    /// Arithmetic mean.
    pub mean_us: f64,
    /// Half of the calls took no longer.
    pub p50_us: f64,
    /// Nine of ten took no longer.
    pub p90_us: f64,
    /// 99 of 100 took no longer.
    pub p99_us: f64,
    /// 999 of 1,000 took no longer.
    pub p999_us: f64,
    /// The longest of all.
    pub max_us: f64,
}

impl Default for Latency {
    fn default() -> Latency {
        let nanoseconds = Histogram::new_with_bounds(1, HOUR_NS, 3);
        Latency { nanoseconds: nanoseconds.expect("the bounds are a range") }
    }
}

impl Latency {
    /// Adds one call.
    pub fn record(&mut self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(HOUR_NS);
        self.nanoseconds.saturating_record(nanoseconds);
    }

    /// Adds everything that `other` recorded.
    pub fn merge(&mut self, other: &Latency) {
        self.nanoseconds.add(&other.nanoseconds).expect("all have the same bounds");
    }

    /// The few numbers.
    #[must_use]
    pub fn summary(&self) -> LatencySummary {
        let at = |quantile| self.nanoseconds.value_at_quantile(quantile) as f64 / 1e3;
        LatencySummary {
            count: self.nanoseconds.len(),
            mean_us: self.nanoseconds.mean() / 1e3,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.nanoseconds.max() as f64 / 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_recorded_is_all_zero() {
        assert_eq!(Latency::default().summary(), LatencySummary::default());
    }

    #[test]
    fn quantiles_of_a_known_row() {
        let mut row = Latency::default();
        (1..=500).for_each(|us| row.record(Duration::from_micros(us)));
        let mut rest = Latency::default();
        (501..=1000).for_each(|us| rest.record(Duration::from_micros(us)));
        row.merge(&rest);
        let summary = row.summary();
        assert_eq!(summary.count, 1000);
        let near = |got: f64, want: f64| (got - want).abs() <= want * 0.002;
        assert!(near(summary.mean_us, 500.5), "{summary:?}");
        assert!(near(summary.p50_us, 500.0), "{summary:?}");
        assert!(near(summary.p99_us, 990.0), "{summary:?}");
        assert!(near(summary.p999_us, 999.0), "{summary:?}");
        assert!(near(summary.max_us, 1000.0), "{summary:?}");
    }

    #[test]
    fn absurd_durations_count_as_an_hour() {
        let mut row = Latency::default();
        row.record(Duration::MAX);
        row.record(Duration::ZERO);
        let summary = row.summary();
        assert_eq!(summary.count, 2);
        assert!((3.6e9..3.7e9).contains(&summary.max_us), "{summary:?}");
    }
}
