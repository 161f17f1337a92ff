//! The instructions of each part, counted by gungraun under Valgrind: `just instructions`.
//!
//! Valgrind imitates a processor, on which libraries choose the same code whatever the real one is, and one thread runs
//! at a time; the runner clears the environment and the randomness of addresses. Kernel time is not in a count.
#![expect(missing_docs, clippy::disallowed_methods, reason = "of gungraun's macros: their items, and exit")]

use std::env;
use std::fs;
use std::process::{Command, ExitCode, Stdio};

use gungraun::{library_benchmark, library_benchmark_group};
use steadfast::benches::{self as parts, Work};
use steadfast_benches::{Counts, Judgement, TIMES, counted, judge, table, tools};

/// The stored counts.
const STORED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");

/// Set by whoever wants gungraun's own output instead of a judgement, as this program does to count.
const FORMAT: &str = "GUNGRAUN_OUTPUT_FORMAT";

/// Set where counts that cannot be judged are a failure.
const REQUIRE: &str = "STEADFAST_REQUIRE_COUNTS";

// ---- what is counted -------------------------------------------------------------------------------------------

/// Does the work a few times, so that what is made once for all is there.
fn warm(mut work: Work) -> Work {
    (0..10).for_each(|_| work());
    work
}

fn repeat(mut work: Work) -> Work {
    (0..TIMES).for_each(|_| work());
    work
}

#[library_benchmark]
#[bench::exact(warm(parts::routing("/some/500/page")))]
#[bench::below(warm(parts::routing("/some/501/and/below/it")))]
#[bench::encoded(warm(parts::routing("/some/./%35%300/page")))]
#[bench::of_a_host(warm(parts::routing_by_host("500.example.org", "/some/page")))]
#[bench::below_a_host(warm(parts::routing_by_host("Of.Some.501.Example.org:8080", "/some/page")))]
fn routing(work: Work) -> Work {
    repeat(work)
}

#[library_benchmark]
#[bench::opened_and_closed(warm(parts::registry()))]
#[bench::states_of_a_request(warm(parts::machine()))]
#[bench::woken_and_parked(warm(parts::parking()))]
fn connection(work: Work) -> Work {
    repeat(work)
}

#[library_benchmark]
#[bench::connection(warm(parts::connection_parcel()))]
#[bench::tunnel(warm(parts::tunnel_parcel()))]
fn parcel(work: Work) -> Work {
    repeat(work)
}

#[library_benchmark]
#[bench::to_upstream(warm(parts::headers_to_upstream()))]
#[bench::to_client(warm(parts::headers_to_client()))]
fn headers(work: Work) -> Work {
    repeat(work)
}

library_benchmark_group!(name = all, benchmarks = [routing, connection, parcel, headers]);

// ---- how it is judged ------------------------------------------------------------------------------------------

fn main() -> ExitCode {
    let has = |wanted: &str| env::args().any(|argument| argument == wanted);
    // gungraun's runner starts this program again for each part.
    if has("--gungraun-run") || env::var_os(FORMAT).is_some() {
        gungraun::main!(library_benchmark_groups = all);
        main();
        return ExitCode::SUCCESS;
    }
    match count(has("--renew")) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(renews: bool) -> Result<ExitCode, String> {
    // Asked first, for gungraun's output without Valgrind is harder to read.
    let counted_with = tools()?;
    let this = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new(this).arg("--bench").env(FORMAT, "json").stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err("gungraun has failed".into());
    }
    let counts = Counts { counted_with, instructions: counted(&String::from_utf8_lossy(&output.stdout))? };
    if renews {
        fs::write(STORED, counts.to_text()).map_err(|error| format!("cannot write {STORED}: {error}"))?;
    }
    let stored = fs::read_to_string(STORED).map_err(|error| format!("cannot read {STORED}: {error}"))?;
    let stored = Counts::read(&stored).map_err(|error| format!("{STORED}: {error}"))?;
    print!("{}", table(&stored.instructions, &counts.instructions));
    let Judgement { errors, notes } = judge(&stored, &counts, env::var_os(REQUIRE).is_some());
    for note in notes {
        eprintln!("note: {note}");
    }
    for error in &errors {
        eprintln!("error: {error}");
    }
    Ok(if errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
