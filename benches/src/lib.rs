//! Judges counts of instructions by the stored ones.
//!
//! A count is that of one unit of work, the mean of [`TIMES`]. It is the same on any machine and at any load, but not
//! with another compiler or C library; so `instructions.toml` names what its counts were made with, and says nothing of
//! others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

/// The number of times that the work is done for one count. The few hash maps that are seeded at random, and a date that
/// is written anew when the second changes, have no weight in the mean.
pub const TIMES: u64 = 100;

/// The change of a count, in percent, from which on it matters.
const LIMIT: u64 = 3;

/// The command that stores the counts anew.
const RENEW: &str = "just instructions --renew";

/// The instructions of each part, by its subject and its case.
pub type Instructions = BTreeMap<String, BTreeMap<String, u64>>;

/// Counts, and the tools that have a say in them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Versions by their names.
    pub counted_with: BTreeMap<String, String>,
    /// The counts.
    pub instructions: Instructions,
}

impl Counts {
    /// The counts in a file.
    ///
    /// # Errors
    /// The text is no such file's; the error says where.
    pub fn read(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| format!("{error}`{RENEW}` writes the file anew"))
    }

    /// The file of these counts.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "# The instructions that one unit of work takes, the mean of {TIMES}. `{RENEW}` writes this file.\n\n\
             [counted_with]\n"
        );
        for (tool, version) in &self.counted_with {
            _ = writeln!(text, "{tool} = {version:?}");
        }
        text.push_str("\n[instructions]\n");
        for (part, count) in parts(&self.instructions) {
            _ = writeln!(text, "{part} = {count}");
        }
        text
    }
}

/// The counts in gungraun's output in JSON, which has a line for each part.
///
/// # Errors
/// A line has no count.
pub fn counted(output: &str) -> Result<Instructions, String> {
    let mut instructions = Instructions::new();
    for line in output.lines().filter(|line| line.starts_with('{')) {
        let part: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let name = |key: &str| part[key].as_str().map(str::to_owned);
        let total = part.pointer("/profiles/0/data/total/metrics/Ir/values/new").and_then(Value::as_u64);
        let (Some(subject), Some(case), Some(total)) = (name("function_name"), name("id"), total) else {
            return Err(format!("gungraun has changed its output: {line}"));
        };
        instructions.entry(subject).or_default().insert(case, (total + TIMES / 2) / TIMES);
    }
    Ok(instructions)
}

/// The versions of the tools of this machine that have a say in a count: the compiler; the C library, whose allocator and
/// `memcpy` are counted; Valgrind, and whether the processor that it imitates has AVX2, which some code asks for.
///
/// # Errors
/// One of them cannot be asked.
pub fn tools() -> Result<BTreeMap<String, String>, String> {
    let rustc = said("rustc", &["-vV"])?;
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or("unknown");
    let version = rustc.lines().next().unwrap_or_default().trim_start_matches("rustc ");
    let valgrind = said("valgrind", &["--version"])?;
    let processor = if has_avx2() { "with AVX2" } else { "without AVX2" };
    Ok([
        ("rustc", version),
        ("target", host),
        ("libc", &*said("getconf", &["GNU_LIBC_VERSION"])?),
        ("valgrind", valgrind.trim_start_matches("valgrind-")),
        ("processor", processor),
    ]
    .into_iter()
    .map(|(tool, version)| (tool.to_owned(), version.to_owned()))
    .collect())
}

fn said(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}; is it installed?"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::arch::is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

/// What the stored counts say of others, a line for each part that they say anything of.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// What has become dearer, or is in only one of the two.
    pub errors: Vec<String>,
    /// What has become cheaper.
    pub notes: Vec<String>,
}

/// Judges counts by the stored ones, if they were made with the same tools; if not, that is an error where they `must` be
/// judged, else a note.
#[must_use]
pub fn judge(stored: &Counts, counts: &Counts, must: bool) -> Judgement {
    let mut judgement = Judgement::default();
    if let Some(reason) = unjudged(stored, counts) {
        if must { &mut judgement.errors } else { &mut judgement.notes }.push(reason);
        return judgement;
    }
    let (before, now) = (flat(&stored.instructions), flat(&counts.instructions));
    for (part, count) in &now {
        let Some(stored) = before.get(part) else {
            judgement.errors.push(format!("{part} has no stored count: `{RENEW}` stores it"));
            continue;
        };
        let takes =
            format!("{part} takes {count} instructions instead of {stored}, {}", change(*stored, *count));
        if count * 100 > stored * (100 + LIMIT) {
            let error =
                format!("{takes}, where {LIMIT} % are allowed: if that is meant, `{RENEW}` stores it");
            judgement.errors.push(error);
        } else if count * 100 < stored * (100 - LIMIT) {
            judgement.notes.push(format!("{takes}: `{RENEW}` stores it, so that it stays so"));
        }
    }
    for part in before.keys().filter(|part| !now.contains_key(*part)) {
        judgement.errors.push(format!("{part} is stored, but no longer counted: `{RENEW}` removes it"));
    }
    judgement
}

/// The tools that differ, if any does.
fn unjudged(stored: &Counts, counts: &Counts) -> Option<String> {
    let differs = |tool: &&String| stored.counted_with.get(*tool) != counts.counted_with.get(*tool);
    let version =
        |counts: &Counts, tool| counts.counted_with.get(tool).cloned().unwrap_or_else(|| "none".to_owned());
    let tools: BTreeSet<_> = stored.counted_with.keys().chain(counts.counted_with.keys()).collect();
    let tools = tools.into_iter().filter(differs);
    let tools =
        tools.map(|tool| format!("{tool}: {} then, {} now", version(stored, tool), version(counts, tool)));
    let tools = tools.collect::<Vec<_>>().join("; ");
    (!tools.is_empty()).then(|| {
        format!("nothing is judged, for the stored counts were made with other tools ({tools}): `{RENEW}` stores these")
    })
}

/// The counts beside the stored ones, for people to read.
#[must_use]
pub fn table(stored: &Instructions, instructions: &Instructions) -> String {
    let before = flat(stored);
    let mut text = format!("{:32}{:>10}{:>10}\n", "instructions of", "stored", "now");
    for (part, count) in parts(instructions) {
        let (stored, change) = match before.get(&part) {
            Some(stored) => (stored.to_string(), change(*stored, count)),
            None => ("-".to_owned(), String::new()),
        };
        _ = writeln!(text, "{part:32}{stored:>10}{count:>10}  {change}");
    }
    text
}

/// The change of a count in tenths of a percent.
fn change(stored: u64, count: u64) -> String {
    let (sign, difference) = if count < stored { ("-", stored - count) } else { ("+", count - stored) };
    let tenths = (difference * 1000 + stored / 2) / stored.max(1);
    format!("{sign}{}.{} %", tenths / 10, tenths % 10)
}

fn parts(instructions: &Instructions) -> impl Iterator<Item = (String, u64)> {
    instructions.iter().flat_map(|(subject, cases)| {
        cases.iter().map(move |(case, count)| (format!("{subject}.{case}"), *count))
    })
}

fn flat(instructions: &Instructions) -> BTreeMap<String, u64> {
    parts(instructions).collect()
}

#[cfg(test)]
mod tests {
    //! What the stored counts say, and when they say nothing.

    use super::*;

    fn counts(parts: &[(&str, u64)]) -> Counts {
        let mut instructions = Instructions::new();
        for (case, count) in parts {
            instructions.entry("routing".to_owned()).or_default().insert((*case).to_owned(), *count);
        }
        Counts { counted_with: [("rustc".to_owned(), "1.95.0".to_owned())].into(), instructions }
    }

    fn judged(stored: &Counts, counts: &Counts) -> Judgement {
        judge(stored, counts, true)
    }

    #[test]
    fn three_percent_more_are_allowed_and_not_one_instruction_beyond() {
        let stored = counts(&[("exact", 1000)]);
        assert_eq!(judged(&stored, &counts(&[("exact", 1030)])), Judgement::default());
        let error = "routing.exact takes 1031 instructions instead of 1000, +3.1 %, where 3 % are allowed: \
                     if that is meant, `just instructions --renew` stores it";
        let wrong = Judgement { errors: vec![error.to_owned()], notes: vec![] };
        assert_eq!(judged(&stored, &counts(&[("exact", 1031)])), wrong);
    }

    #[test]
    fn what_has_become_cheaper_is_told_and_allowed() {
        let stored = counts(&[("exact", 1000)]);
        assert_eq!(judged(&stored, &counts(&[("exact", 970)])), Judgement::default());
        let note = "routing.exact takes 900 instructions instead of 1000, -10.0 %: \
                    `just instructions --renew` stores it, so that it stays so";
        let right = Judgement { errors: vec![], notes: vec![note.to_owned()] };
        assert_eq!(judged(&stored, &counts(&[("exact", 900)])), right);
    }

    #[test]
    fn a_part_that_only_one_side_has_is_an_error() {
        let (one, both) = (counts(&[("exact", 1000)]), counts(&[("exact", 1000), ("below", 1)]));
        for (stored, counts) in [(&one, &both), (&both, &one)] {
            let errors = judged(stored, counts).errors;
            assert!(errors[0].starts_with("routing.below "), "{errors:?}");
        }
    }

    #[test]
    fn counts_of_other_tools_are_not_judged_which_is_an_error_only_where_they_must_be() {
        let (stored, mut counts) = (counts(&[("exact", 1000)]), counts(&[("exact", 9000)]));
        counts.counted_with.insert("rustc".to_owned(), "1.96.0".to_owned());
        let judgement = judge(&stored, &counts, false);
        assert!(judgement.errors.is_empty());
        assert!(judgement.notes[0].contains("(rustc: 1.95.0 then, 1.96.0 now)"), "{judgement:?}");
        assert_eq!(judge(&stored, &counts, true).errors, judgement.notes);
    }

    #[test]
    fn what_is_stored_is_read() {
        let stored = counts(&[("exact", 1000), ("below", 2000)]);
        assert_eq!(Counts::read(&stored.to_text()), Ok(stored));
        assert!(Counts::read("").is_err());
    }

    #[test]
    fn a_count_is_the_mean() {
        let line = |total| {
            format!(
                r#"{{"function_name":"routing","id":"exact","profiles":[{{"data":{{"total":{{"metrics":{{"Ir":{{"values":{{"new":{total}}}}}}}}}}}}}]}}"#
            )
        };
        assert_eq!(counted(&line(207_519)), Ok(counts(&[("exact", 2075)]).instructions));
        assert!(counted("{}").is_err());
    }
}
