//! The commands in the documents do what these say.

use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::KeyUsagePurpose;
use steadfast::Exit;
use steadfast_harness::certificates::{Certificate, is_ca};
use steadfast_harness::{PATIENCE, files_below};

use crate::service::{BINARY, CONFIG, PACKAGING, Service, UNIT};

/// A page whose commands are a session: each with what it shows.
const SESSION: &str = "docs/operations.md";

/// The blocks of commands that are for another place than a machine with the service: by their first line, with what runs
/// them.
const ELSEWHERE: [(&str, &str); 9] = [
    ("cargo run --release", "`just newcomer`"),
    ("cargo test", "this very run"),
    ("cargo install --locked cargo-deb", "`just deb` builds one, and the tests of the package install one"),
    ("podman build", "the tests of the image"),
    ("for host in", "tests/fleet"),
    ("ssh 192.0.2.12", "tests/fleet"),
    ("echo \"set server", "tests/fleet says the same to the socket"),
    ("kubectl", "nothing: there is no cluster here"),
    (DEPLOY_HOOK, "the tests of a renewed certificate call it as certbot does"),
];

/// The first line of the deploy hooks: the scripts among the blocks.
pub(crate) const DEPLOY_HOOK: &str = "#!/bin/sh";

/// A copy of the checkout in the box.
const CHECKOUT: &str = "/tmp/checkout";

/// A fenced block of a document.
pub(crate) struct Block {
    pub(crate) language: String,
    pub(crate) text: String,
    /// Where the text is in the document.
    at: Range<usize>,
}

/// The blocks of a document, in order.
pub(crate) fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, usize)> = None;
    let mut at = 0;
    for line in document.split_inclusive('\n') {
        let next = at + line.len();
        if let Some(language) = line.trim_end().strip_prefix("```") {
            open = match open.take() {
                None => Some((language.to_owned(), next)),
                Some((language, from)) => {
                    blocks.push(Block { language, text: document[from..at].to_owned(), at: from..at });
                    None
                }
            };
        }
        at = next;
    }
    assert!(open.is_none(), "every block ends");
    blocks
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// With `UPDATE_EXPECTED=1` what has come takes the place of what the page says.
#[test]
fn every_command_of_the_runbook_shows_what_it_says() {
    let page = folder().join(SESSION);
    let document = fs::read_to_string(&page).unwrap();
    let config = blocks(&document).into_iter().find(|block| block.language == "toml").expect("its config");
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.write(CONFIG, config.text);
    service.write("/srv/www/large.bin", "x".repeat(20 << 20));

    let renews = std::env::var_os("UPDATE_EXPECTED").is_some();
    let mut sessions = 0;
    let mut wrong = Vec::new();
    let mut renewed = String::new();
    let mut end = 0;
    for block in blocks(&document).into_iter().filter(|block| block.language == "console") {
        sessions += 1;
        renewed += &document[end..block.at.start];
        end = block.at.end;
        for (command, expected) in commands(&block.text) {
            let (mut status, mut came) = type_in(&service, &command);
            let mut is_as_said = status.success() && matches(&expected, &came);
            // What it looks at may be still under way.
            let began = Instant::now();
            while !is_as_said && is_look(&command) && !renews && began.elapsed() < PATIENCE {
                thread::sleep(Duration::from_millis(100));
                (status, came) = type_in(&service, &command);
                is_as_said = status.success() && matches(&expected, &came);
            }
            _ = write!(renewed, "$ {command}\n{}", if is_as_said { &expected } else { &came });
            if !is_as_said {
                wrong.push(format!("$ {command} ({status})\n{came}--- and not:\n{expected}"));
            }
        }
    }
    renewed += &document[end..];
    if renews {
        fs::write(&page, renewed).unwrap();
    }
    assert!(sessions > 10, "{sessions} sessions");
    assert!(wrong.is_empty(), "{}\nThe journal:\n{}", wrong.join("\n"), service.journal(UNIT, &[]));
}

/// Types a command into a shell. Returns how it ended, and all that it has shown.
fn type_in(service: &Service, command: &str) -> (ExitStatus, String) {
    // What it leaves in the background is not waited for.
    let output = service.run(["bash", "-c", &format!("{{ {command}\n}} > /tmp/shown 2>&1")]);
    (output.status, service.ok(["cat", "/tmp/shown"]))
}

/// True if a command changes nothing, and shows what systemd and journald may learn a moment later.
fn is_look(command: &str) -> bool {
    ["journalctl ", "steadfast status", "systemctl show ", "systemctl status "]
        .iter()
        .any(|look| command.starts_with(look))
}

#[test]
fn every_block_of_commands_in_the_documents_runs_and_every_config_is_valid() {
    let mut documents = vec![folder().join("README.md")];
    documents.extend(fs::read_dir(folder().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    documents.extend(files_below(Path::new(PACKAGING)));
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    for page in ["packaging/README.md", "packaging/kubernetes/README.md", "docs/operations.md"] {
        assert!(documents.contains(&folder().join(page)), "{page} is not in {documents:?}");
    }
    let blocks: Vec<_> = documents
        .iter()
        .flat_map(|path| {
            blocks(&fs::read_to_string(path).unwrap()).into_iter().map(move |block| (path, block))
        })
        .collect();
    let (configs, blocks): (Vec<_>, Vec<_>) = blocks
        .into_iter()
        .filter(|(_, block)| ["sh", "toml"].contains(&&*block.language))
        .partition(|(_, block)| block.language == "toml");
    let is_of =
        |block: &Block, first: &str| block.text.lines().next().is_some_and(|line| line.starts_with(first));
    for (first, by) in ELSEWHERE {
        assert!(blocks.iter().any(|(_, block)| is_of(block, first)), "{first} is in no document: {by}");
    }

    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    service.reload(); // it has something to tell of
    // A checkout in which the program is built.
    for file in files_below(Path::new(PACKAGING)).into_iter().chain([folder().join("config.toml.example")]) {
        service.copy(&file, Path::new(CHECKOUT).join(file.strip_prefix(folder()).unwrap()), "0644");
    }
    service.copy(Path::new(BINARY), Path::new(CHECKOUT).join("target/release/steadfast"), "0755");
    let before = format!("cd {CHECKOUT}; cargo() {{ echo built before; }}\n");

    service.ok(["mkdir", "-p", "/srv/www"]);
    assert!(configs.len() >= 3, "{} configs", configs.len());
    let mut certificates = 0;
    for (path, block) in configs {
        let made = certify(&service, &block.text);
        certificates += made;
        service.write("/tmp/config.toml", &block.text);
        let check = service.run(["steadfast", "check", "--config", "/tmp/config.toml"]);
        // Certificates are nothing to be in doubt of.
        let is_right = check.status.success() && (made == 0 || check.stderr.is_empty());
        assert!(is_right, "{}:\n{}{check:?}", path.display(), block.text);
    }
    assert!(certificates >= 4, "{certificates} certificates");
    let mut ran = 0;
    for (path, block) in blocks {
        if ELSEWHERE.iter().any(|(first, _)| is_of(&block, first)) {
            continue;
        }
        let output = service.run(["bash", "-euo", "pipefail", "-c", &(before.clone() + &block.text)]);
        assert!(output.status.success(), "{}:\n{}{output:?}", path.display(), block.text);
        ran += 1;
    }
    assert!(ran >= 3, "{ran} blocks");
}

/// Makes the certificates that a config names, each of the host that its file is named for, and what it names of clients'.
/// Returns the number of the certificates.
fn certify(service: &Service, config: &str) -> usize {
    let authority = Certificate::of_itself("an authority", &[], |of| {
        is_ca(of);
        of.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    });
    let named = |key: &str| -> Vec<PathBuf> {
        let key = format!("{key} = \"");
        config
            .split(&key)
            .skip(1)
            .map(|value| value.split('"').next().expect("a first part").into())
            .collect()
    };
    let (chains, keys) = (named("chain"), named("key"));
    assert_eq!(chains.len(), keys.len(), "{config}");
    for (chain, key) in chains.iter().zip(&keys) {
        let host = chain.file_stem().and_then(|stem| stem.to_str()).expect("a host");
        let certificate = authority.issue(host, &[host], |_| {});
        service.write(chain, certificate.pem() + &authority.pem());
        service.write(key, certificate.key());
        service.ok(["chgrp".as_ref(), "steadfast".as_ref(), key.as_os_str()]);
        service.ok(["chmod".as_ref(), "0640".as_ref(), key.as_os_str()]);
    }
    for path in named("client_ca") {
        service.write(path, authority.pem());
    }
    for path in named("client_crl") {
        service.write(path, authority.revoke(&[1], 7));
    }
    chains.len()
}

#[test]
fn the_runbook_has_each_exit_code() {
    let page = fs::read_to_string(folder().join(SESSION)).unwrap();
    for exit in [Exit::Clean, Exit::Failed, Exit::Usage, Exit::Cut, Exit::Config] {
        let row = format!("| {} | ", exit.code());
        assert_eq!(page.lines().filter(|line| line.starts_with(&row)).count(), 1, "{exit:?}");
    }
}

/// The commands of a session, each with the lines after it.
fn commands(session: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for line in session.split_inclusive('\n') {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push((command.trim_end().to_owned(), String::new())),
            (None, Some((_, shown))) => shown.push_str(line),
            (None, None) => panic!("{line:?} is before the first command"),
        }
    }
    commands
}

/// True if a command has shown what the page says, where a line "..." stands for any lines.
fn matches(expected: &str, came: &str) -> bool {
    let [expected, came] = [expected, came].map(|text| text.lines().map(alike).collect::<Vec<_>>());
    let mut parts: Vec<&[String]> = expected.split(|line| line == "...").collect();
    let (first, last) = (parts.remove(0), parts.pop());
    let Some(mut rest) = came.strip_prefix(first) else { return false };
    let Some(last) = last else { return rest.is_empty() };
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let Some(at) = rest.windows(part.len()).position(|lines| lines == part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A line in which numbers, their units, days and spaces are as in any other.
fn alike(line: &str) -> String {
    const LEFT_OUT: [&str; 14] =
        ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "µs", "ms", "s", "min", "B", "KiB", "MiB"];
    let mut alike = String::new();
    for word in line.split_whitespace() {
        // "0.25 ms;", "839 B/s," and "65ms" are numbers, each with its unit.
        let is_counted = word.starts_with(|first: char| first.is_ascii_digit());
        let number = word.trim_end_matches(|last: char| is_counted && last.is_ascii_alphabetic());
        let unit = word.trim_end_matches([',', ';', ':', '.']).trim_end_matches("/s");
        if LEFT_OUT.contains(&unit) {
            continue;
        }
        if !alike.is_empty() {
            alike.push(' ');
        }
        for character in number.chars() {
            match character {
                '0'..='9' | '.' if alike.ends_with('0') => {}
                '0'..='9' => alike.push('0'),
                _ => alike.push(character),
            }
        }
    }
    alike
}

#[test]
fn lines_match_but_for_numbers_and_what_is_left_out() {
    for (expected, came) in [
        ("", ""),
        ("took 12 ms, 3 KiB/s\n", "took 0.7 s, 12 B/s\n"),
        ("on Sun 2026-11-29; 65ms ago\n", "on Fri 2026-01-02; 1.5s ago\n"),
        ("a\n...\nb\n", "a\nx\ny\nb\n"),
        ("a\n...\nb\n...\n", "a\nb\nx\n"),
        ("...\n", ""),
    ] {
        assert!(matches(expected, came), "{came:?} is {expected:?}");
    }
    for (expected, came) in [
        ("", "a\n"),
        ("a\n", ""),
        ("a\n...\nb\n", "a\nx\n"),
        ("a\n...\nb\n...\nc\n", "a\nc\n"),
        ("a 1\n", "b 1\n"),
    ] {
        assert!(!matches(expected, came), "{came:?} is not {expected:?}");
    }
}
