//! Metrics, and the text that Prometheus scrapes (exposition format 0.0.4). The library writes it: its own metrics are no
//! use for what is counted elsewhere, or comes from another process.

use prometheus::TextEncoder;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Sample, MetricFamily, MetricType,
};

/// A metric, as `docs/metrics.md` lists it.
#[derive(Debug)]
pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The names of its labels.
    pub(super) labels: &'static [&'static str],
    /// What it is, in one sentence.
    pub(super) help: &'static str,
}

/// A kind of metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows, also from one process to the next.
    Counter,
    /// A counter of one process, this one or the main process, which the next one begins anew.
    CounterOfProcess,
    /// Goes up and down.
    Gauge,
    /// Counters of values by their size.
    Histogram,
}

impl Kind {
    /// The kind as Prometheus knows it.
    pub(super) fn as_type(self) -> MetricType {
        match self {
            Self::Counter | Self::CounterOfProcess => MetricType::COUNTER,
            Self::Gauge => MetricType::GAUGE,
            Self::Histogram => MetricType::HISTOGRAM,
        }
    }

    /// True if what a process has counted goes to its successor.
    pub(super) fn is_inherited(self) -> bool {
        matches!(self, Self::Counter | Self::Histogram)
    }
}

/// A metric's samples, being gathered.
pub(super) struct Samples {
    metric: &'static Metric,
    samples: Vec<Sample>,
}

impl Samples {
    /// None yet.
    pub(super) fn of(metric: &'static Metric) -> Self {
        Self { metric, samples: Vec::new() }
    }

    /// Adds a value, with those of its labels.
    pub(super) fn add<'a>(&mut self, labels: impl IntoIterator<Item = &'a str>, value: f64) {
        let pair = |(name, value): (&&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        let mut sample = Sample::from_label(self.metric.labels.iter().zip(labels).map(pair).collect());
        if self.metric.kind.as_type() == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            sample.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            sample.set_gauge(gauge);
        }
        self.samples.push(sample);
    }

    /// Adds a histogram: the bounds of its buckets, each with the number in it and in those below; the number, and the sum,
    /// of all.
    pub(super) fn add_histogram(
        &mut self,
        buckets: impl IntoIterator<Item = (f64, u64)>,
        count: u64,
        sum: f64,
    ) {
        let buckets: Vec<_> = buckets
            .into_iter()
            .map(|(bound, number)| {
                let mut bucket = Bucket::default();
                bucket.set_upper_bound(bound);
                bucket.set_cumulative_count(number);
                bucket
            })
            .collect();
        let mut histogram = Histogram::default();
        histogram.set_sample_count(count);
        histogram.set_sample_sum(sum);
        histogram.set_bucket(buckets);
        let mut sample = Sample::default();
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }

    /// As the library has them; none where there is no sample, of which it would make an error.
    fn family(self) -> Option<MetricFamily> {
        let Metric { name, kind, help, .. } = self.metric;
        let mut family = MetricFamily::default();
        family.set_name((*name).to_owned());
        family.set_help((*help).to_owned());
        family.set_field_type(kind.as_type());
        family.set_metric(self.samples);
        Some(family).filter(|family| !family.get_metric().is_empty())
    }
}

/// The text of all.
pub(super) fn text(all: impl IntoIterator<Item = Samples>) -> String {
    let families: Vec<_> = all.into_iter().filter_map(Samples::family).collect();
    // It fails for families without a name or a sample alone.
    TextEncoder::new().encode_to_string(&families).unwrap_or_default()
}

/// A number as Prometheus has them.
#[expect(clippy::cast_precision_loss, reason = "2^53 of anything are not to be expected")]
pub(super) fn as_f64(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    //! Nothing in a label ends it.

    use super::*;

    #[test]
    fn a_label_holds_any_text_and_what_has_no_sample_is_left_out() {
        static COUNTED: Metric =
            Metric { name: "a_total", kind: Kind::Counter, labels: &["route", "method"], help: "Counted." };
        static NONE: Metric = Metric { name: "b", kind: Kind::Gauge, labels: &[], help: "None." };
        let mut counted = Samples::of(&COUNTED);
        counted.add(["/\"\\\n{}*", "GET"], 3.0);
        assert_eq!(
            text([Samples::of(&NONE), counted]),
            "# HELP a_total Counted.\n# TYPE a_total counter\n\
             a_total{route=\"/\\\"\\\\\\n{}*\",method=\"GET\"} 3\n"
        );
    }
}
