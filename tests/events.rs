//! The events that can be found by their `MESSAGE_ID`: the code, `docs/journal.md` and the catalog have the same ones, with
//! the same fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const CONSTANTS: &str = "src/event.rs";
const DOCS: &str = "docs/journal.md";
const CATALOG: &str = "packaging/systemd/catalog/steadfast.catalog";

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The events' names, by their ids.
fn constants() -> BTreeMap<String, String> {
    let text = read(CONSTANTS);
    let lines: Vec<_> = text.lines().collect();
    let mut names = BTreeMap::new();
    for (number, line) in lines.iter().enumerate() {
        let Some(constant) = line.strip_prefix("pub(crate) const ") else { continue };
        let (name, id) = constant.split_once(": &str = \"").expect("a text");
        let id = id.strip_suffix("\";").expect("one line");
        let is_hex = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        assert!(id.len() == 32 && is_hex, "{name}: {id}");
        let comment = lines[number - 1].strip_prefix("/// ").expect("a comment of one line");
        assert!(comment.ends_with('.'), "{name}: {comment}");
        assert_eq!(names.insert(id.to_owned(), name.to_owned()), None, "two events have the id {id}");
    }
    names
}

/// What the code says of an event: its level, and the fields that it always has or may have.
#[derive(Debug)]
struct Logged {
    level: String,
    always: BTreeSet<String>,
    fields: BTreeSet<String>,
}

fn logged() -> BTreeMap<String, Logged> {
    let mut logged: BTreeMap<String, Logged> = BTreeMap::new();
    for file in sources(Path::new("src")) {
        let text = read(&file);
        for (at, _) in text.match_indices("tracing::") {
            let Some((level, rest)) = text[at + "tracing::".len()..].split_once("!(") else { continue };
            if !["error", "warn", "info", "debug", "trace"].contains(&level) {
                continue;
            }
            let arguments = arguments(rest);
            let id = arguments.iter().find_map(|argument| argument.strip_prefix("message_id = "));
            let Some((_, event)) = id.and_then(|id| id.split_once("event::")) else { continue };
            let event: String =
                event.chars().take_while(|char| char.is_ascii_uppercase() || *char == '_').collect();
            let fields = arguments.iter().take_while(|argument| !argument.starts_with('"'));
            let names = fields.filter(|argument| !argument.starts_with("target:")).map(|argument| {
                argument.split(" = ").next().expect("a name").trim_start_matches(['%', '?']).to_uppercase()
            });
            let names: BTreeSet<_> = names.filter(|name| name != "MESSAGE_ID").collect();
            for name in &names {
                let is_name = name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
                assert!(is_name && !name.starts_with('_'), "{}: {event} has {name}", file.display());
            }
            logged
                .entry(event.clone())
                .and_modify(|event| {
                    assert_eq!(event.level, level, "{}", file.display());
                    event.always.retain(|name| names.contains(name));
                    event.fields.extend(names.clone());
                })
                .or_insert_with(|| Logged { level: level.into(), always: names.clone(), fields: names });
        }
    }
    logged
}

fn sources(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries =
        fs::read_dir(folder).expect("a folder of sources").map(|entry| entry.expect("an entry").path());
    let found = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    found.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The arguments of a call, of which `rest` begins behind the parenthesis.
fn arguments(rest: &str) -> Vec<String> {
    let (mut depth, mut in_text, mut escaped) = (0, false, false);
    let mut arguments = vec![String::new()];
    for char in rest.chars() {
        match char {
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            _ if in_text => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        arguments.last_mut().expect("one at least").push(char);
    }
    arguments.iter().map(|argument| argument.trim().to_owned()).filter(|a| !a.is_empty()).collect()
}

#[test]
fn every_event_is_logged_somewhere() {
    let (constants, logged) = (constants(), logged());
    let (named, used): (BTreeSet<_>, BTreeSet<_>) = (constants.values().collect(), logged.keys().collect());
    assert_eq!(named, used);
    assert_eq!(named.len(), EVENTS);
}

/// The number of the events.
const EVENTS: usize = 47;

#[test]
fn the_docs_have_every_event_with_the_level_and_the_fields_that_the_code_gives_it() {
    let (constants, logged) = (constants(), logged());
    let text = read(DOCS);
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
        .map(|row| row.split(" | ").collect())
        .filter(|row: &Vec<&str>| row.len() == 4 && row[0].len() == 33)
        .collect();
    let mut told = BTreeSet::new();
    for row in &rows {
        let [id, when, level, fields] = row[..] else { panic!("{row:?}") };
        let id = id.trim_end_matches('`');
        let name = constants.get(id).unwrap_or_else(|| panic!("{id} is no event"));
        let event = &logged[name];
        assert!(!when.is_empty(), "{name}");
        let said = match event.level.as_str() {
            "warn" => "warning",
            "info" if name == "ACCESS" => "debug",
            level => level,
        };
        assert_eq!(level, said, "{name}");
        let fields: BTreeSet<_> = fields.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        assert_eq!(fields, event.fields, "{name}");
        assert!(told.insert(id), "{name} stands there twice");
    }
    assert_eq!(told.len(), EVENTS);
    for field in logged.values().flat_map(|event| &event.fields) {
        assert!(text.contains(&format!("| `{field}` |")), "{field} has no explanation in {DOCS}");
    }
}

#[test]
fn the_catalog_explains_every_event_in_the_words_of_its_own_fields() {
    let (constants, logged) = (constants(), logged());
    let text = read(CATALOG);
    let mut explained = BTreeSet::new();
    for entry in text.split("\n-- ").skip(1) {
        let (id, rest) = entry.split_once('\n').expect("a line");
        let (head, body) = rest.split_once("\n\n").unwrap_or_else(|| panic!("{id} has no text"));
        let name = constants.get(id).unwrap_or_else(|| panic!("{id} is no event"));
        assert!(head.starts_with("Subject: ") && head.contains("\nDefined-By: steadfast"), "{name}: {head}");
        assert!(body.trim().len() > 80, "{name} says too little");
        assert!(body.lines().all(|line| line.chars().count() <= 80), "{name} is too wide for a terminal");
        let fields = entry.split('@').skip(1).step_by(2);
        for field in fields {
            // What an entry of the journal does not have is shown as it stands in the catalog.
            assert!(logged[name].always.contains(field), "{name} has not always {field}");
        }
        assert!(explained.insert(id), "{name} is explained twice");
    }
    assert_eq!(explained.len(), EVENTS);
}
