//! The README's measured figures are those that were measured.

use std::path::Path;

const README: &str = include_str!("../README.md");
const RESULTS: &str = include_str!("../bench/RESULTS.md");

/// The README from "What it costs" to the next heading, or to a rule.
fn what_it_costs() -> &'static str {
    let (_, section) = README.split_once("\n## What it costs\n").expect("the README says what it costs");
    let end = ["\n## ", "\n---"].into_iter().filter_map(|end| section.find(end)).min();
    &section[..end.unwrap_or(section.len())]
}

#[test]
fn every_figure_of_the_readme_stands_in_the_results() {
    let (rows, prose): (Vec<_>, Vec<_>) = what_it_costs().lines().partition(|line| line.starts_with('|'));
    // The head, the rule below it, and figures.
    assert!(rows.len() > 2, "the README has no figures");
    for row in rows {
        assert!(RESULTS.lines().any(|line| line == row), "not in bench/RESULTS.md:\n{row}");
    }
    for line in prose {
        let measured = ["µs", " ms", "KiB", " bytes", "%", "times"].iter().any(|unit| line.contains(unit));
        let figures = line.contains(|c: char| c.is_ascii_digit());
        assert!(!(measured && figures), "a figure outside of the table, where nothing checks it:\n{line}");
    }
}

#[test]
fn every_plot_of_the_readme_is_there() {
    let links = README.split("](bench/plots/").skip(1);
    let plots: Vec<_> = links.filter_map(|rest| rest.split(')').next()).collect();
    assert!(!plots.is_empty(), "the README shows no plot");
    for plot in plots {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/plots").join(plot);
        assert!(path.exists(), "there is no {}", path.display());
    }
}
