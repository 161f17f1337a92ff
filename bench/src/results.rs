//! What was measured: tables of samples, and where and of what they were taken. They are kept as JSON, from which all
//! else is made (`report.rs`, `plots.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The results of a run, or of several that measured one group each.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) groups: Vec<Group>,
}

/// Tables that are measured together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Group {
    /// Its name on the command line.
    pub(crate) name: String,
    /// The time, the machine, and how much it was asked for.
    pub(crate) circumstances: Circumstances,
    /// The servers' versions.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) tables: Vec<Table>,
}

/// Where and when a group was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Circumstances {
    pub(crate) date: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) system: String,
    pub(crate) rounds: usize,
}

/// One figure of several servers, perhaps at several points.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) unit: String,
    /// What the points differ in, if they are numbers that grow: a plot has lines then, else bars.
    pub(crate) axis: Option<Axis>,
    /// Whether things were counted, so that a ratio says nothing.
    pub(crate) counted: bool,
    /// The rows of the table.
    pub(crate) points: Vec<String>,
    pub(crate) series: Vec<Series>,
}

/// What the points of a table differ in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Axis {
    pub(crate) label: String,
    /// Whether a plot gives each power of ten the same room, on both axes.
    pub(crate) logarithmic: bool,
}

/// The figures of one server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Series {
    pub(crate) server: String,
    /// The samples at each point, one of each round; none where the server has no such thing.
    pub(crate) samples: Vec<Vec<f64>>,
}

impl Table {
    pub(crate) fn new(title: &str, unit: &str) -> Self {
        let (title, unit) = (title.into(), unit.into());
        Self { title, unit, axis: None, counted: false, points: Vec::new(), series: Vec::new() }
    }

    /// The same with points that grow.
    pub(crate) fn along(self, label: &str, logarithmic: bool) -> Self {
        Self { axis: Some(Axis { label: label.into(), logarithmic }), ..self }
    }

    /// The same with figures that count something.
    pub(crate) fn counting(self) -> Self {
        Self { counted: true, ..self }
    }

    /// Adds a point, with the samples of the servers that have it.
    pub(crate) fn add(&mut self, point: &str, samples: Vec<(String, Vec<f64>)>) {
        for (server, samples) in samples {
            let at = self.series.iter().position(|series| series.server == server);
            let at = at.unwrap_or_else(|| {
                self.series.push(Series { server, samples: Vec::new() });
                self.series.len() - 1
            });
            self.series[at].samples.resize(self.points.len(), Vec::new());
            self.series[at].samples.push(samples);
        }
        self.points.push(point.into());
        for series in &mut self.series {
            series.samples.resize(self.points.len(), Vec::new());
        }
    }

    /// The samples of a server at a point.
    fn samples(&self, server: &str, point: usize) -> &[f64] {
        let series = self.series.iter().find(|series| series.server == server);
        series.map_or(&[], |series| &series.samples[point])
    }

    /// The median of a server's samples at a point.
    pub(crate) fn median(&self, server: &str, point: usize) -> Option<f64> {
        median(self.samples(server, point))
    }

    /// The least and the greatest of them.
    pub(crate) fn range(&self, server: &str, point: usize) -> Option<(f64, f64)> {
        let samples = self.samples(server, point);
        let least = samples.iter().copied().reduce(f64::min)?;
        Some((least, samples.iter().copied().reduce(f64::max)?))
    }

    /// The ratio of a server's median to that of another one, where both are there and mean something.
    pub(crate) fn ratio(&self, server: &str, other: &str, point: usize) -> Option<f64> {
        let other = self.median(other, point).filter(|&other| other > 0.0)?;
        Some(self.median(server, point)? / other)
    }
}

/// The middle of some samples.
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    Some(f64::midpoint(sorted[last / 2], sorted[sorted.len() / 2]))
}

/// A number of things as a figure.
#[expect(clippy::cast_precision_loss, reason = "nothing here is counted beyond 2^52")]
pub(crate) fn count(number: usize) -> f64 {
    number as f64
}

impl Results {
    /// The results in a file; none if there is no file.
    pub(crate) fn read(path: &Path) -> Self {
        let Ok(text) = fs::read_to_string(path) else {
            return Self::default();
        };
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}: remove it, and measure all again", path.display()))
    }

    /// Puts a group in the place of an earlier one, or behind all.
    pub(crate) fn put(&mut self, group: Group) {
        match self.groups.iter_mut().find(|earlier| earlier.name == group.name) {
            Some(earlier) => *earlier = group,
            None => self.groups.push(group),
        }
    }

    pub(crate) fn write(&self, path: &Path) {
        let text = serde_json::to_string_pretty(self).expect("results are JSON");
        fs::write(path, text + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}
