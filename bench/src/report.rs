//! The results as Markdown.

use std::fmt::Write;

use crate::plots;
use crate::results::{Group, Results, Table};

/// The servers that others are compared with.
const COMPARED: [&str; 3] = ["nginx", "axum::serve", "beside"];

/// The columns of the summary.
const SUMMARY: [&str; 7] = ["steadfast", "nginx", "HAProxy", "Caddy", "net/http", "axum::serve", "ecdysis"];

/// All of RESULTS.md.
pub(crate) fn all(results: &Results) -> String {
    let mut text = String::from(
        "# Results\n\nWritten by `cargo run --release -p steadfast-bench`; no figure here is written by hand. \
         [README.md](README.md) says what is measured, and how.\n",
    );
    text += "\n";
    text += &summary(results);
    for each in &results.groups {
        text += "\n";
        text += &group(each);
    }
    text
}

/// The medians of all tables but the sweeps. The README has some of these lines.
fn summary(results: &Results) -> String {
    let bars = || results.groups.iter().flat_map(|group| &group.tables).filter(|table| table.axis.is_none());
    let measured =
        |server: &&str| bars().any(|table| table.series.iter().any(|series| series.server == *server));
    let servers: Vec<_> = SUMMARY.into_iter().filter(measured).collect();
    let mut text = format!(
        "## In short\n\nMedians; below is what they were taken of, and when.\n\n| | | {} |\n|---|---|{}\n",
        servers.join(" | "),
        "---:|".repeat(servers.len())
    );
    for table in bars() {
        for (at, point) in table.points.iter().enumerate() {
            let cell = |server: &&str| table.median(server, at).map_or_else(|| "–".into(), figure);
            let cells: Vec<_> = servers.iter().map(cell).collect();
            let _ = writeln!(text, "| {}: {point} | {} | {} |", table.title, table.unit, cells.join(" | "));
        }
    }
    text
}

/// The README with new figures in the lines that it has of the summary, below its heading "What it costs".
pub(crate) fn refresh(readme: &str, results: &Results) -> String {
    let summary = summary(results);
    // What a line is of stands in its first two cells.
    let of = |line: &str| line.split('|').take(3).map(str::to_owned).collect::<Vec<_>>();
    let mut within = false;
    let mut fresh = String::new();
    for line in readme.lines() {
        if line.starts_with("## ") {
            within = line == "## What it costs";
        }
        let newer = summary.lines().find(|newer| within && line.starts_with('|') && of(newer) == of(line));
        fresh += newer.unwrap_or(line);
        fresh += "\n";
    }
    fresh
}

/// One group of tables.
pub(crate) fn group(group: &Group) -> String {
    let circumstances = &group.circumstances;
    let versions: Vec<_> =
        group.versions.iter().map(|(server, version)| format!("{server} {version}")).collect();
    let mut text = format!(
        "## {}\n\n{}, {} cores ({}), {}, {}; {} rounds. {}.\n",
        group.name,
        circumstances.date,
        circumstances.cores,
        circumstances.processor,
        circumstances.system,
        circumstances.kernel,
        circumstances.rounds,
        versions.join("; "),
    );
    for (at, each) in group.tables.iter().enumerate() {
        let (title, plot) = (&each.title, plots::name(&group.name, at));
        let _ = write!(text, "\n### {title}\n\n![{title}]({plot})\n\n");
        text += &table(each);
    }
    text
}

/// Medians, then how far apart the rounds were, and the ratios.
fn table(table: &Table) -> String {
    let servers: Vec<_> = table.series.iter().map(|series| series.server.as_str()).collect();
    let head = |first: &str| {
        format!("| {first} | {} |\n|---|{}\n", servers.join(" | "), "---:|".repeat(servers.len()))
    };
    let mut text = head(&format!("{}, median", table.unit));
    let rows = |text: &mut String,
                name: &dyn Fn(&str) -> String,
                cell: &dyn Fn(&str, usize) -> Option<String>| {
        for (at, point) in table.points.iter().enumerate() {
            let cells: Vec<_> = servers.iter().map(|server| cell(server, at)).collect();
            if cells.iter().all(Option::is_none) {
                continue;
            }
            let cells: Vec<_> = cells.into_iter().map(|cell| cell.unwrap_or_else(|| "–".into())).collect();
            let _ = writeln!(text, "| {} | {} |", name(point), cells.join(" | "));
        }
    };
    rows(&mut text, &|point| point.into(), &|server, at| table.median(server, at).map(figure));
    for other in COMPARED.into_iter().filter(|other| servers.contains(other) && !table.counted) {
        rows(&mut text, &|point| format!("{point}: ratio to {other}"), &|server, at| {
            table.ratio(server, other, at).map(|ratio| format!("{ratio:.2}"))
        });
    }
    let several = table.series.iter().any(|series| series.samples.iter().any(|samples| samples.len() > 1));
    if several {
        rows(&mut text, &|point| format!("{point}: from, to"), &|server, at| {
            table
                .range(server, at)
                .map(|(least, greatest)| format!("{}, {}", figure(least), figure(greatest)))
        });
    }
    text
}

/// Three digits that count, and no fewer than stand before the point; of a whole number no more.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        size if size.fract() == 0.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
