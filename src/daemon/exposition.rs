//! The text that Prometheus scrapes (exposition format 0.0.4).

use std::fmt::{Display, Write};

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
    /// A counter of one process, which the next one begins anew.
    CounterOfProcess,
    /// Goes up and down.
    Gauge,
    /// Counters of values by their size.
    Histogram,
}

impl Kind {
    /// Its name in the text.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Counter | Self::CounterOfProcess => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }

    /// True if what a process has counted goes to its successor.
    pub(super) fn is_inherited(self) -> bool {
        matches!(self, Self::Counter | Self::Histogram)
    }
}

/// The text, being written.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a metric. Its samples follow.
    pub(super) fn begin(&mut self, metric: &Metric) {
        let Metric { name, kind, help, .. } = metric;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.name()));
    }

    /// Adds a sample, with labels by name and value.
    pub(super) fn sample<V: AsRef<str>>(
        &mut self,
        name: impl Display,
        labels: impl IntoIterator<Item = (&'static str, V)>,
        value: impl Display,
    ) {
        self.write(format_args!("{name}"));
        let mut bracket = '{';
        for (label, value) in labels {
            self.write(format_args!("{bracket}{label}=\""));
            self.0.extend(value.as_ref().chars().flat_map(escaped));
            self.0.push('"');
            bracket = ',';
        }
        if bracket == ',' {
            self.0.push('}');
        }
        self.write(format_args!(" {value}\n"));
    }

    /// The whole text.
    pub(super) fn into_text(self) -> String {
        self.0
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = self.0.write_fmt(text);
    }
}

/// A character of a label's value.
fn escaped(char: char) -> impl Iterator<Item = char> {
    let (backslash, char) = match char {
        '\n' => (Some('\\'), 'n'),
        '\\' | '"' => (Some('\\'), char),
        char => (None, char),
    };
    backslash.into_iter().chain([char])
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
    fn a_label_holds_any_text() {
        let mut text = Exposition::default();
        text.sample("a_total", [("route", "/\"\\\n{}*"), ("method", "GET")], 3);
        text.sample::<&str>("b", [], 0.5);
        assert_eq!(text.into_text(), "a_total{route=\"/\\\"\\\\\\n{}*\",method=\"GET\"} 3\nb 0.5\n");
    }
}
