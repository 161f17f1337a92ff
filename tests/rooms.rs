//! The rooms of the house, which are the modules right below `src/`: none uses one above it, so none is in a circle.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms that it may use. `lib.rs`, `main.rs` and their like use any.
const ROOMS: [(&str, &[&str]); 16] = [
    // Of tests alone.
    ("alone", &[]),
    ("event", &[]),
    ("printable", &[]),
    ("rules", &[]),
    ("exit", &[]),
    ("tls", &["printable", "rules"]),
    ("systemd", &["alone", "event", "printable"]),
    ("logging", &["alone", "event", "printable", "rules", "systemd"]),
    ("handover", &["alone", "printable", "rules", "systemd", "tls"]),
    ("server", &["event", "handover", "logging", "printable", "rules", "systemd", "tls"]),
    ("main_process", &["event", "exit", "logging", "printable", "systemd"]),
    (
        "daemon",
        &[
            "event",
            "exit",
            "handover",
            "logging",
            "main_process",
            "printable",
            "rules",
            "server",
            "systemd",
            "tls",
        ],
    ),
    (
        "config",
        &["daemon", "event", "exit", "handover", "logging", "printable", "rules", "server", "systemd", "tls"],
    ),
    ("status", &["daemon", "server", "systemd"]),
    // A fuzz target reaches into whatever it feeds.
    ("fuzzing", &["handover", "server", "tls"]),
    // So does a bench.
    ("benches", &["daemon", "handover", "server"]),
];

/// The binary's own files, which see the library as everybody does, and the root that names the rooms.
const OUTSIDE: [&str; 5] = ["lib", "main", "cli", "control", "unit"];

/// The items that the crate's root gives another name, with the rooms that they stand for.
const AT_ROOT: [(&str, &str); 2] = [("Exit", "exit"), ("Config", "daemon")];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The room that a file is in.
fn room(path: &Path) -> String {
    let first = path.iter().nth(1).expect("it is below src").to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The names right after each `crate::`, and of each `crate::{..}`.
fn used(text: &str) -> Vec<String> {
    let code: Vec<_> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            Some(list) => {
                let list = list.split_once('}').expect("it is closed").0;
                names.extend(list.split(',').map(|name| first_name(name.trim())).filter(|n| !n.is_empty()));
            }
            None => names.push(first_name(rest)),
        }
    }
    names
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect()
}

#[test]
fn no_room_uses_one_above_it() {
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let allowed: BTreeMap<_, _> = ROOMS.into_iter().collect();
    let (mut checked, mut wrong) = (0, Vec::new());
    for file in &files {
        let from = room(file);
        if OUTSIDE.contains(&&*from) {
            continue;
        }
        let text = fs::read_to_string(file).expect("a source file");
        let may_use = allowed.get(&*from).unwrap_or_else(|| panic!("{from} has no place among the rooms"));
        for name in used(&text) {
            let to = AT_ROOT.iter().find(|(other, _)| *other == name).map_or(&*name, |(_, room)| room);
            checked += 1;
            if to != from && !may_use.contains(&to) {
                wrong.push(format!("{} uses {to}, which is not below {from}", file.display()));
            }
        }
        if file.ends_with(format!("{from}/mod.rs")) || file == &Path::new("src").join(format!("{from}.rs")) {
            assert!(!text.lines().any(|line| line.starts_with("use super::")), "{}", file.display());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(files.len() > 40 && checked > 100, "looked at {checked} uses in {} files", files.len());
}

#[test]
fn the_rooms_are_in_an_order() {
    for (index, (room, may_use)) in ROOMS.iter().enumerate() {
        for used in *may_use {
            let below = ROOMS[..index].iter().any(|(other, _)| other == used);
            assert!(below, "{room} may use {used}, which does not stand before it");
        }
    }
}
