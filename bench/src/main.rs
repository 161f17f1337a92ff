//! Measures steadfast beside nginx, `HAProxy`, Caddy and yardsticks of its own. README.md, beside this crate's manifest,
//! says how it is used and what is measured; RESULTS.md is what came of it.
//!
//! A wrong answer fails it. No figure does: it measures, and judges nothing.

mod circumstances;
mod config;
mod connection;
mod cpu;
mod groups;
mod load;
mod memory;
mod plots;
mod programs;
mod report;
mod results;
mod server;
mod starts;
mod tls;
mod units;

use std::path::{Path, PathBuf};

use clap::Parser;

use groups::{GroupName, Servers};
use programs::{Kind, Program, Workshop};
use results::{Group, Results};

/// Measures steadfast beside other servers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Measure these alone, and write no files
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    only: Vec<GroupName>,
    /// Measure these servers alone
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    servers: Vec<Kind>,
    /// Measure this build of steadfast in the place of the workspace's
    #[arg(long, value_name = "PATH")]
    steadfast: Option<PathBuf>,
    /// Measure another build of steadfast, too
    #[arg(long, value_name = "PATH")]
    beside: Option<PathBuf>,
    /// The rounds that are measured
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Three rounds: to see the order of things
    #[arg(long)]
    quick: bool,
    /// Put what is measured with `--only` in its place in the files
    #[arg(long)]
    write: bool,
    /// The folder of RESULTS.md, results.json and the plots
    #[arg(long, value_name = "FOLDER", default_value = env!("CARGO_MANIFEST_DIR"))]
    out: PathBuf,
}

fn main() {
    let arguments = Arguments::parse();
    steadfast_harness::raise_descriptor_limit(groups::DESCRIPTORS);
    let rounds = if arguments.quick { 3 } else { arguments.rounds };
    let workshop = Workshop::open();
    let floor = workshop.program(Kind::Floor);
    let servers = Servers::new(&floor, programs(&workshop, &arguments), workshop.peers());
    let all = arguments.only.is_empty();
    let names = if all { GroupName::all() } else { arguments.only.clone() };

    let file = arguments.out.join("results.json");
    let mut results = if all { Results::default() } else { Results::read(&file) };
    for name in names {
        eprintln!("measuring: {name}");
        let Some(tables) = name.measure(&servers, name.rounds(rounds)) else { continue };
        let group = Group {
            name: name.to_string(),
            circumstances: circumstances::now(name.rounds(rounds)),
            versions: servers.versions(),
            tables,
        };
        print!("{}", report::group(&group));
        results.put(group);
        if all || arguments.write {
            // After each group: what was measured so far is not lost if a later one fails.
            let order =
                |group: &Group| GroupName::all().iter().position(|name| name.to_string() == group.name);
            results.groups.sort_by_key(order);
            write(&results, &file, &arguments.out);
        }
    }
}

/// The servers to measure, steadfast first.
fn programs(workshop: &Workshop, arguments: &Arguments) -> Vec<Program> {
    let wanted = |kind: &Kind| arguments.servers.is_empty() || arguments.servers.contains(kind);
    let kinds = <Kind as clap::ValueEnum>::value_variants();
    let mut programs: Vec<_> = kinds
        .iter()
        .filter(|kind| wanted(kind))
        .map(|&kind| match (&arguments.steadfast, kind) {
            (Some(path), Kind::Steadfast) => workshop.steadfast("steadfast", path),
            _ => workshop.program(kind),
        })
        .collect();
    if let Some(path) = &arguments.beside {
        programs.insert(1.min(programs.len()), workshop.steadfast("beside", path));
    }
    programs
}

fn write(results: &Results, file: &Path, folder: &Path) {
    results.write(file);
    let report = folder.join("RESULTS.md");
    std::fs::write(&report, report::all(results))
        .unwrap_or_else(|error| panic!("{}: {error}", report.display()));
    plots::write(results, folder);
    if folder == Path::new(env!("CARGO_MANIFEST_DIR")) {
        let readme = folder.join("../README.md");
        let text = std::fs::read_to_string(&readme).expect("the workspace has a README");
        std::fs::write(&readme, report::refresh(&text, results)).expect("the README can be written");
    }
    eprintln!("written: {}, {}", file.display(), report.display());
}
