//! The man pages and the completions that are shipped say what the command and its config are.
//!
//! They lie in `packaging/`, so that a package can be built without the tools that make them. `UPDATE_EXPECTED=1` writes
//! them anew, of the same sources: the command line (`src/cli.rs`) and the example of a config, with its comments.

use std::collections::BTreeMap;
use std::fs;
use std::iter;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};

#[path = "../src/cli.rs"]
mod cli;

/// The folders that have nothing but what is made here.
const FOLDERS: [&str; 2] = ["packaging/man", "packaging/completions"];

/// The source of the config's page.
const EXAMPLE: &str = include_str!("../config.toml.example");

/// The name of the config's page.
const CONFIG_PAGE: &str = "steadfast-config";

/// The longest line of a page's source: mandoc warns of longer ones.
const LONGEST: usize = 80;

#[test]
fn the_manual_and_the_completions_are_those_of_the_command() {
    let made: BTreeMap<String, String> = pages().chain(completions()).collect();
    assert_eq!(made.len(), 9, "{:?}", made.keys());
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        for (path, text) in made.iter().filter(|(path, text)| !stored(path).is_some_and(|s| same(&s, text))) {
            fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    for (path, text) in &made {
        let stored = stored(path).unwrap_or_default();
        assert!(same(&stored, text), "{path} is not what it should be; UPDATE_EXPECTED=1 writes it:\n{text}");
    }
    let lie_there = FOLDERS.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    for path in lie_there.map(|entry| entry.unwrap().path()) {
        assert!(made.contains_key(path.to_str().unwrap()), "nothing makes {}: remove it", path.display());
    }
}

fn stored(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// True if they differ at most in their day: a page has that of its last change.
fn same(stored: &str, made: &str) -> bool {
    let without_day = |text: &str| text.replacen(&day(text), "", 1);
    without_day(stored) == without_day(made)
}

/// The day in the title line of a page; none of another text.
fn day(text: &str) -> String {
    let title = text.lines().find_map(|line| line.strip_prefix(".TH "));
    title.and_then(|title| title.split(' ').nth(2)).unwrap_or_default().to_owned()
}

// ---------------------------------------------------------------------------
// Of the command line
// ---------------------------------------------------------------------------

/// The command line without what is there for systemd alone.
fn command() -> Command {
    let all = cli::Cli::command().disable_help_subcommand(true);
    let visible: Vec<_> = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut command = Command::new("steadfast")
        .version(env!("CARGO_PKG_VERSION"))
        .about(all.get_about().unwrap().clone())
        .after_help(all.get_after_help().unwrap().clone())
        .disable_help_subcommand(true)
        .args(all.get_arguments())
        .subcommands(visible);
    command.build();
    command
}

/// The path and the text of each completion.
fn completions() -> impl Iterator<Item = (String, String)> {
    [(Shell::Bash, "steadfast.bash"), (Shell::Zsh, "_steadfast"), (Shell::Fish, "steadfast.fish")]
        .map(|(shell, file)| {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command(), "steadfast", &mut text);
            (format!("packaging/completions/{file}"), String::from_utf8(text).unwrap())
        })
        .into_iter()
}

/// The path and the text of each page.
fn pages() -> impl Iterator<Item = (String, String)> {
    let command = command();
    let each: Vec<_> = iter::once(&command).chain(command.get_subcommands()).map(command_page).collect();
    each.into_iter().chain(iter::once(config_page()))
}

fn command_page(command: &Command) -> (String, String) {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let man =
        Man::new(command.clone()).title(name.to_uppercase()).date(today()).source(version()).manual(MANUAL);
    let mut text = Vec::new();
    man.render_title(&mut text).unwrap();
    man.render_name_section(&mut text).unwrap();
    man.render_synopsis_section(&mut text).unwrap();
    man.render_description_section(&mut text).unwrap();
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text).unwrap();
    }
    man.render_options_section(&mut text).unwrap();
    let mut text = String::from_utf8(text).unwrap();

    let mut end = Roff::new();
    exit_status(&mut end, &cli::Cli::command().get_after_help().expect("the codes").to_string());
    end.control("SH", ["FILES"]);
    for (path, what) in FILES {
        end.control("TP", []).text([bold(path)]).text([roman(what)]);
    }
    see_also(&mut end, &name);
    text.push_str(&end.render());
    (format!("packaging/man/{name}.1"), folded(&text))
}

/// The files that an operator deals with.
const FILES: [(&str, &str); 3] = [
    (cli::CONFIG, "The config, where no other is given."),
    ("/run/steadfast/control.sock", "The socket over which the running daemon is asked."),
    ("/usr/lib/systemd/system/steadfast.service", "The unit."),
];

/// Of "Exit codes: 0 this; 1 that."
fn exit_status(page: &mut Roff, codes: &str) {
    page.control("SH", ["EXIT STATUS"]);
    let codes = codes.strip_prefix("Exit codes: ").and_then(|codes| codes.strip_suffix('.')).unwrap();
    for code in codes.split("; ") {
        let (code, meaning) = code.split_once(' ').unwrap();
        page.control("TP", []).text([bold(code)]).text([roman(format!("{meaning}."))]);
    }
}

// ---------------------------------------------------------------------------
// Of the config
// ---------------------------------------------------------------------------

/// The example's sections are the page's. A comment over keys says what they are; over anything else, it stands before it.
fn config_page() -> (String, String) {
    let mut page = Roff::new();
    page.control("TH", [&*CONFIG_PAGE.to_uppercase(), "5", &*today(), &*version(), MANUAL]);
    page.control("SH", ["NAME"]).text([roman(format!("{CONFIG_PAGE} - the config of steadfast"))]);
    page.control("SH", ["SYNOPSIS"]).text([bold(cli::CONFIG)]);
    page.control("SH", ["DESCRIPTION"]);
    let mut begins = true;
    for block in EXAMPLE.split("\n\n").filter(|block| !block.trim().is_empty()) {
        let mut lines = block.lines().peekable();
        if let Some(section) = lines.next_if(|line| line.starts_with('[') && !line.starts_with("[[")) {
            page.control("SH", [section]);
            begins = true;
        }
        let (prose, code): (Vec<_>, Vec<_>) = lines.partition(|line| is_prose(line));
        let paragraphs = paragraphs(&prose);
        if !code.is_empty() && code.iter().all(|line| is_key(line)) {
            keys(&mut page, &code, &paragraphs);
        } else {
            for paragraph in &paragraphs {
                // The first one follows the heading.
                if !begins {
                    page.control("PP", []);
                }
                begins = false;
                page.text(marked_up(paragraph));
            }
            example(&mut page, &code);
        }
        begins = false;
    }
    see_also(&mut page, CONFIG_PAGE);
    (format!("packaging/man/{CONFIG_PAGE}.5"), folded(&page.render()))
}

/// A comment that explains, as opposed to a key at its default.
fn is_prose(line: &str) -> bool {
    line == "#" || line.starts_with("# ")
}

/// A key at its default.
fn is_key(line: &str) -> bool {
    line.strip_prefix('#').and_then(|line| line.split_once(" = ")).is_some_and(|(key, _)| !key.contains(' '))
}

/// Lines of a comment, joined to what is between its empty lines.
fn paragraphs(comment: &[&str]) -> Vec<String> {
    let paragraphs = comment.split(|line| *line == "#");
    paragraphs
        .map(|lines| lines.iter().map(|line| &line[2..]).collect::<Vec<_>>().join(" "))
        .filter(|paragraph| !paragraph.is_empty())
        .collect()
}

/// Keys with what they are.
fn keys(page: &mut Roff, keys: &[&str], paragraphs: &[String]) {
    for (number, key) in keys.iter().enumerate() {
        page.control(if number == 0 { "TP" } else { "TQ" }, []).text([bold(&key[1..])]);
    }
    for (number, paragraph) in paragraphs.iter().enumerate() {
        if number > 0 {
            page.control("IP", []);
        }
        page.text(marked_up(paragraph));
    }
}

/// Lines of a config as they are.
fn example(page: &mut Roff, code: &[&str]) {
    if code.is_empty() {
        return;
    }
    page.control("PP", []).control("RS", ["4"]).control("EX", []);
    for line in code {
        page.text([roman(line.trim_start_matches('#'))]);
    }
    page.control("EE", []).control("RE", []);
}

/// What stands in backticks is bold.
fn marked_up(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(number, part)| if number % 2 == 0 { roman(part) } else { bold(part) }).collect()
}

// ---------------------------------------------------------------------------
// Of both
// ---------------------------------------------------------------------------

/// The manual that the pages belong to.
const MANUAL: &str = "steadfast";

fn version() -> String {
    concat!("steadfast ", env!("CARGO_PKG_VERSION")).to_owned()
}

fn today() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d").to_string()
}

/// The other pages that a reader may want, and where the rest is.
fn see_also(page: &mut Roff, from: &str) {
    let pages = [("steadfast", "1"), (CONFIG_PAGE, "5"), ("systemctl", "1"), ("journalctl", "1")];
    let others: Vec<_> = pages.into_iter().filter(|(name, _)| *name != from).collect();
    page.control("SH", ["SEE ALSO"]);
    for (number, (name, section)) in others.iter().enumerate() {
        let comma = if number + 1 < others.len() { "," } else { "" };
        page.text([bold(*name), roman(format!("({section}){comma}"))]);
    }
    page.control("PP", []).text([roman("More is in /usr/share/doc/steadfast.")]);
}

/// A page whose lines of text are short, outside of what is shown as it is; and that defines its apostrophe but once,
/// instead of in every part that was rendered.
fn folded(page: &str) -> String {
    let mut folded = String::new();
    let mut as_it_is = false;
    let apostrophe = |line: &str| line.contains(".ds Aq");
    let body = page.lines().skip_while(|line| apostrophe(line)).filter(|line| !apostrophe(line));
    for line in page.lines().take_while(|line| apostrophe(line)).chain(body) {
        as_it_is = (as_it_is || line == ".EX") && line != ".EE";
        let mut rest = if as_it_is { line } else { line.trim_end() };
        while !as_it_is && !rest.starts_with(['.', '\'']) && rest.len() > LONGEST {
            // A line that began with a period or an apostrophe would be an instruction.
            let fits = |at: &usize| *at <= LONGEST && !rest[at + 1..].starts_with(['.', '\'']);
            let Some(at) = rest.match_indices(' ').map(|(at, _)| at).rfind(fits) else { break };
            folded.push_str(&rest[..at]);
            folded.push('\n');
            rest = &rest[at + 1..];
        }
        folded.push_str(rest);
        folded.push('\n');
    }
    folded
}
