//! A small plot of the last minutes, as SVG: its lines are drawn here, its colours are the style's.

use crate::daemon::status::{History, Rates, lasting, rate};

/// The size of what is drawn within the axes, in units of the picture.
const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 110.0;
/// The times that a plot shows, in seconds: the shortest that has all of the history, or the last one.
const SPANS: [f64; 3] = [60.0, 120.0, 300.0];

/// A plot.
#[derive(Debug)]
pub(super) struct Plot {
    pub(super) title: &'static str,
    /// The begin of the horizontal axis: "5 min ago".
    pub(super) since: String,
    /// The labels of the vertical axis, with the height of each.
    pub(super) labels: [(f64, String); 3],
    pub(super) lines: Vec<Line>,
    /// The newest values, in words.
    pub(super) summary: String,
}

/// A line of a plot.
#[derive(Debug)]
pub(super) struct Line {
    /// Its name, which is that of its colour, too.
    pub(super) name: &'static str,
    /// Its way, as the `d` of a `<path>`.
    pub(super) way: String,
}

/// A value of a moment; none if it has none.
type Value = fn(&Rates) -> Option<f64>;

impl Plot {
    /// Requests in a second.
    pub(super) fn throughput(history: &History) -> Self {
        Self::new("Requests per second", history, &[("requests", |r| Some(r.requests))], rate)
    }

    /// How long requests took.
    pub(super) fn latency(history: &History) -> Self {
        Self::new("Time of a request", history, &[("p50", |r| r.p50), ("p99", |r| r.p99)], lasting)
    }

    fn new(
        title: &'static str,
        history: &History,
        lines: &[(&'static str, Value)],
        label: fn(f64) -> String,
    ) -> Self {
        let values = lines.iter().flat_map(|(_, value)| history.rates.iter().filter_map(value));
        let top = round_above(values.fold(0.0, f64::max));
        let newest = |(name, value): &(&str, Value)| {
            let value = history.rates.iter().rev().find_map(value)?;
            let value = label(value);
            Some(if lines.len() > 1 { format!("{name} {value}") } else { value })
        };
        let summary: Vec<_> = lines.iter().filter_map(newest).collect();
        let span = span(history);
        Self {
            title,
            since: format!("{} ago", lasting(span)),
            labels: [1.0, 0.5, 0.0].map(|part| (HEIGHT * (1.0 - part), label(top * part))),
            lines: lines
                .iter()
                .map(|(name, value)| Line { name, way: way(history, span, top, value) })
                .collect(),
            summary: if summary.is_empty() { "no requests".to_owned() } else { summary.join(", ") },
        }
    }
}

/// The time that a plot of this history shows.
#[expect(clippy::cast_precision_loss, reason = "there are few")]
fn span(history: &History) -> f64 {
    let length = history.rates.len() as f64 * history.interval;
    SPANS.into_iter().find(|span| *span >= length).unwrap_or(SPANS[2])
}

/// The way of a line, with a gap where there is no value. The newest is at the right.
fn way(history: &History, span: f64, top: f64, value: impl Fn(&Rates) -> Option<f64>) -> String {
    use std::fmt::Write;

    let step = WIDTH * history.interval / span;
    let mut way = String::new();
    let (mut x, mut draws) = (WIDTH, false);
    for rates in history.rates.iter().rev() {
        match value(rates) {
            Some(value) => {
                let y = HEIGHT * (1.0 - value / top);
                let command = if draws { 'L' } else { 'M' };
                // Writing to a string cannot fail. `h0` makes a dot of a value that stands alone.
                let _ = write!(way, "{command}{x:.1} {y:.1}h0");
                draws = true;
            }
            None => draws = false,
        }
        x -= step;
        if x < 0.0 {
            break;
        }
    }
    way
}

/// The least number that is not below a value and has one figure, of which the half has two at most.
fn round_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0];
    steps.map(|step| step * power).into_iter().find(|step| *step >= value).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    //! A plot's lines are within its axes.

    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_above_all_values() {
        let tops = [0.0, 0.7, 1.0, 1.1, 4.9, 7.0, 1203.0, 0.0042].map(round_above);
        for (top, expected) in tops.into_iter().zip([1.0, 0.8, 1.0, 2.0, 6.0, 8.0, 2000.0, 0.006]) {
            assert!((top - expected).abs() < 1e-9, "{top} is not {expected}");
        }
    }

    #[test]
    fn a_line_has_a_gap_where_nothing_ended() {
        let [fast, slow] = [0.5, 1.0].map(|p50| Rates { p50: Some(p50), ..Rates::default() });
        let history = History { interval: 2.0, rates: vec![slow, Rates::default(), fast] };
        assert_eq!(way(&history, 300.0, 1.0, |rates| rates.p50), "M520.0 55.0h0M513.1 0.0h0");
    }

    #[test]
    fn no_line_leaves_the_plot_however_long_the_history_is() {
        let history =
            History { interval: 2.0, rates: vec![Rates { requests: 3.0, ..Rates::default() }; 1000] };
        let plot = Plot::throughput(&history);
        assert_eq!(plot.summary, "3.0");
        let points = plot.lines[0].way.matches(['M', 'L']).count();
        assert!((150..=151).contains(&points), "{points}");
        assert_eq!(plot.since, "5 min ago");
    }
}
