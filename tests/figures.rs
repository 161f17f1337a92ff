//! The measured figures of the README are those that were measured, and what `docs/fleet.md` works out is right.

use std::path::Path;

const README: &str = include_str!("../README.md");
const FLEET: &str = include_str!("../docs/fleet.md");
const BALANCER: &str = include_str!("../packaging/haproxy/haproxy.cfg");
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

#[test]
fn what_tls_costs_has_been_measured() {
    for (group, table) in [("tls", ""), ("idle", " over TLS"), ("restart", " over TLS")] {
        let advice = format!("`just bench {group}` measures it");
        let found = RESULTS.split_once(&format!("\n## {group}\n"));
        let (_, section) = found.unwrap_or_else(|| panic!("bench/RESULTS.md has no group {group}: {advice}"));
        let section = &section[..section.find("\n## ").unwrap_or(section.len())];
        let tables = section.split("\n### ").skip(1).filter(|text| {
            let title = text.lines().next().expect("a first line");
            // The head, the rule below it, and figures.
            title.ends_with(table) && text.lines().filter(|line| line.starts_with('|')).count() > 2
        });
        assert!(tables.count() > 0, "bench/RESULTS.md has no table{table} in {group}: {advice}");
    }
}

// ---------------------------------------------------------------------------
// A fleet
// ---------------------------------------------------------------------------

/// The cells of a table's row.
fn cells(row: &str) -> Vec<&str> {
    row.trim_matches('|').split('|').map(str::trim).collect()
}

/// Two digits that count, with commas between the thousands.
fn rounded(value: f64) -> String {
    let rounded = format!("{value:.1e}");
    let exponent = rounded.split_once('e').and_then(|at| at.1.parse::<i32>().ok()).expect("it has one");
    let decimals = usize::try_from(1 - exponent).unwrap_or(0);
    let text = format!("{:.decimals$}", rounded.parse::<f64>().expect("a number"));
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let thousands: Vec<_> =
        whole.as_bytes().rchunks(3).rev().map(|digits| str::from_utf8(digits).unwrap()).collect();
    thousands.join(",") + rest
}

/// The row of `docs/fleet.md` that follows from the row of this name in the results' summary.
fn follows(name: &str) -> String {
    let (summary, _) = RESULTS.split_once("\n## respond\n").expect("the summary comes first");
    let rows = summary.lines().map(cells);
    let row = rows.into_iter().find(|row| row.first() == Some(&name));
    let row = row.unwrap_or_else(|| panic!("bench/RESULTS.md has no {name:?}"));
    let figure: f64 = row[2].parse().expect("steadfast has a figure");
    if row[1] == "bytes" {
        return format!("| {name} | {} | {} |", row[2], rounded(figure * 100_000.0 / f64::from(1 << 20)));
    }
    let size: Vec<_> = name.rsplit(' ').take(2).collect();
    let unit = [("bytes", 1), ("KiB", 1 << 10), ("MiB", 1 << 20)].into_iter().find(|unit| unit.0 == size[0]);
    let bytes = size[1].parse::<f64>().expect("a size") * f64::from(unit.expect("a unit").1);
    let per_second = 1e6 / figure;
    format!("| {name} | {} | {} | {} |", row[2], rounded(per_second), rounded(per_second * bytes * 8.0 / 1e9))
}

/// `docs/fleet.md` says this, wherever its lines end.
fn assert_said(text: &str) {
    let page: Vec<_> = FLEET.split_whitespace().collect();
    assert!(page.join(" ").contains(text), "docs/fleet.md should say {text:?}");
}

#[test]
fn what_one_machine_holds_follows_from_the_results() {
    let (_, section) = FLEET.split_once("\n## How much one machine holds\n").expect("it is said");
    let measured =
        |row: &&str| row.starts_with("| A ") || row.starts_with("| Files: ") || row.starts_with("| Proxied ");
    let rows: Vec<_> = section.lines().filter(|row| measured(row) || row.starts_with("| An ")).collect();
    let expected: Vec<_> = rows.iter().map(|row| follows(cells(row)[0])).collect();
    assert!(rows.len() > 5, "{rows:?}");
    assert_eq!(rows, expected, "docs/fleet.md should have\n{}", expected.join("\n"));

    let row = follows("Proxied requests: 46 bytes");
    let figure = cells(&row)[1];
    let cores = figure.parse::<f64>().expect("a figure") * 60_000.0 / 1e6;
    let half = 2.0 * cores;
    assert_said(&format!("60,000 × {figure} µs are {cores:.1} cores by the bench, and {half:.1} with"));
    let most = 2.8 / half * 60.0;
    assert_said(&format!("before there are {most:.0},000"));
    assert!((2.0..2.8).contains(&half), "other machines than those of the example are needed");
}

/// A setting of the shipped config of the balancer.
fn setting(name: &str) -> f64 {
    let lines = BALANCER.lines().filter(|line| !line.trim_start().starts_with('#'));
    let mut values = lines
        .filter_map(|line| format!("{line} ").split_once(&format!(" {name} ")).map(|at| at.1.to_owned()));
    let value = values.next().unwrap_or_else(|| panic!("haproxy.cfg has no {name}"));
    let value = value.split(' ').next().expect("a value");
    assert!(values.next().is_none(), "haproxy.cfg has {name} twice");
    match value.strip_suffix("ms") {
        Some(milliseconds) => milliseconds.parse::<f64>().expect("a time") / 1000.0,
        None => value.trim_end_matches('s').parse().expect("a time or a number"),
    }
}

#[test]
fn the_delay_of_the_fleet_is_what_the_shipped_check_needs_and_a_reserve() {
    let [inter, fastinter, fall] = ["inter", "fastinter", "fall"].map(setting);
    let [connect, check] = ["timeout connect", "timeout check"].map(setting);
    let needed = inter + (fall - 1.0) * fastinter + fall * (connect.min(inter) + check);
    assert_said(&format!("1 s + 0.5 s + 2 × (0.9 s + 1 s) = {needed:.1} s, and with the reserve 7 s"));
    assert!(FLEET.contains("\ndelay = \"7s\"\n") && needed + 1.0 <= 7.0, "{needed} s");
    assert_said(&format!("= {:.1} s, so 13 s", 2.0 + 2.0 * 2.0 + 3.0 * (connect + check)));
    assert_said(&format!("marked down, {needed:.1} s later at most"));
}
