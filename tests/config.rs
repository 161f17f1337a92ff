//! The config files that are valid, and the diagnostics of those that are not.
//!
//! The files in `tests/config/valid` and `tests/config/invalid` are named for what they promise. Beside each stands
//! what becomes of it, in `.expected`: the tree, or the diagnostic, to the letter. `UPDATE_EXPECTED=1` writes these.

#[path = "config/certificates.rs"]
mod certificates;

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use steadfast::config::{CertificateFiles, ClientAuth, Https};
use steadfast::{Config, ConfigError};

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(Path::new("tests/config").join(folder))
        .expect("the folder is there")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

/// The files of which something else became than stands beside them.
fn surprises(files: &[PathBuf], outcome: impl Fn(&Path) -> String) -> Vec<String> {
    let update = std::env::var_os("UPDATE_EXPECTED").is_some();
    let compare = |file: &PathBuf| {
        let outcome = outcome(file) + "\n";
        let beside = file.with_extension("expected");
        if update {
            fs::write(&beside, &outcome).expect("the expected outcome can be written");
        }
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        (outcome != expected)
            .then(|| format!("{}\n\nexpected:\n{expected}\nfound:\n{outcome}", file.display()))
    };
    files.iter().filter_map(compare).collect()
}

#[test]
fn every_valid_file_becomes_its_tree() {
    let files = files("valid");
    let surprises = surprises(&files, |file| match Config::check_file(file) {
        Ok(config) => config.tree().to_string(),
        Err(error) => format!("refused:\n{error}"),
    });
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    assert_eq!(files.len(), 21);
}

#[test]
fn every_invalid_file_is_refused_with_all_its_mistakes() {
    let files = files("invalid");
    let surprises = surprises(&files, |file| match Config::check_file(file) {
        Ok(config) => format!("taken for valid:\n{config:#?}"),
        Err(error) => {
            let said = error.to_string();
            assert!(!said.contains(|char: char| char.is_control() && char != '\n'), "{said:?}");
            said
        }
    });
    assert!(surprises.is_empty(), "{}", surprises.join("\n"));
    assert_eq!(files.len(), 105);
}

/// A pipe with a name, in a folder of its own.
fn pipe() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::from(0o600), 0).expect("a pipe");
    (folder, pipe)
}

/// A pipe, and what is read of it as a config within a minute.
fn read_of_a_pipe(write: impl FnOnce(&Path)) -> Result<Config, ConfigError> {
    let (_folder, pipe) = pipe();
    let (read, here) = mpsc::channel();
    let path = pipe.clone();
    thread::spawn(move || _ = read.send(Config::check_file(&path)));
    write(&pipe);
    here.recv_timeout(Duration::from_secs(60)).expect("it is not waited for ever")
}

#[test]
fn a_pipe_is_read_as_long_as_somebody_writes_and_refused_if_nobody_does() {
    let config = read_of_a_pipe(|pipe| {
        thread::sleep(Duration::from_millis(100));
        let mut pipe = fs::File::options().write(true).open(pipe).expect("it has a reader");
        for part in ["[http]\n", "max_connections", " = 7\n"] {
            thread::sleep(Duration::from_millis(100));
            pipe.write_all(part.as_bytes()).expect("it is read");
        }
    });
    assert_eq!(config.expect("it is right").http.limits.max_connections, 7);
    // An empty config would be every default, which nobody has asked for here.
    let error = read_of_a_pipe(|_| {}).expect_err("there is nothing to read").to_string();
    assert!(error.contains("nothing is written to this pipe"), "{error}");
}

#[test]
fn a_folder_that_is_not_there_is_a_mistake_to_a_check_and_none_to_a_start() {
    let file = Path::new("tests/config/invalid/files_that_are_not_there.toml");
    assert!(Config::check_file(file).is_err());
    let config = Config::load(file).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.http.routes.len(), 2);
}

fn valid(name: &str) -> Config {
    let file = Path::new("tests/config/valid").join(name).with_extension("toml");
    Config::load(&file).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn an_empty_file_is_every_default() {
    assert_eq!(valid("an_empty_file_is_every_default"), Config::default());
}

#[test]
fn durations_are_what_they_say() {
    let config = valid("durations_have_units");
    assert_eq!(config.http.limits.header_timeout, Duration::from_secs(90));
    assert_eq!(config.http.limits.keepalive_timeout, Duration::from_secs(90 * 60));
    assert_eq!(config.shutdown.delay, Duration::from_millis(250));
    assert_eq!(config.shutdown.linger, Duration::from_secs(2));
    assert_eq!(config.shutdown.deadline, Some(Duration::from_secs(600)));
    assert_eq!(config.log.slow, Duration::from_micros(1500));
    assert_eq!(valid("a_drain_may_take_forever").shutdown.deadline, None);
    assert_eq!(valid("a_restart_may_wait_for_nothing").shutdown.deadline, Some(Duration::ZERO));
}

#[test]
fn what_becomes_of_a_predecessor_is_what_the_config_says() {
    let config = valid("a_predecessor_may_take_forever").handover;
    assert_eq!((config.deadline, config.predecessors, config.last_good), (None, 64, false));
    assert_eq!(Config::default().handover.deadline, Some(Duration::from_secs(60 * 60)));
}

#[test]
fn sizes_are_what_they_say() {
    let size = |written: &str| {
        Config::parse(&format!("[http]\nbody_limit = {written:?}"), "sizes")
            .map(|config| config.http.limits.body_limit)
            .ok()
    };
    assert_eq!(size("0B"), Some(0));
    assert_eq!(size("1KiB"), Some(1024));
    assert_eq!(size("1 kB"), Some(1000));
    assert_eq!(size("1.5 MiB"), Some(1_572_864));
    assert_eq!(size("4096"), Some(4096));
    assert_eq!(size("8EiB"), Some(1 << 63));
    for wrong in ["", "B", "MiB", "1 fathom", "1..5MiB", "inf", "-0", "99999999999999999999EiB"] {
        assert_eq!(size(wrong), None, "{wrong:?}");
    }
}

#[test]
fn sections_may_stand_in_any_order() {
    let config = valid("sections_in_any_order");
    assert_eq!(config.http.limits.max_connections, 256);
    assert_eq!(config.supervision.max_restarts, 1000);
    assert_eq!(config.shutdown.delay, Duration::from_secs(5));
    let paths: Vec<_> = config.http.routes.iter().map(|route| route.path.as_str()).collect();
    assert_eq!(paths, ["/b", "/a"]);
}

#[test]
fn a_key_may_be_written_with_its_section() {
    let config = valid("a_key_may_be_written_with_its_section");
    assert_eq!(config.http.limits.max_connections, 500);
    assert_eq!(config.http.listen.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:8081"]);
    assert!(config.admin.listen.is_empty());
    assert!(config.http.routes.is_empty());
}

#[test]
fn a_body_without_a_type_is_html_if_it_begins_with_a_tag_and_plain_text_otherwise() {
    let type_of = |respond: &str| {
        let config =
            Config::parse(&format!("[[route]]\npath = \"/\"\nrespond = {respond}"), "types").expect("valid");
        // Debug is all that is known of a route outside the crate.
        format!("{:?}", config.http.routes[0].action)
    };
    assert!(type_of("'<p>hello'").contains(r#""content-type": "text/html; charset=utf-8""#));
    assert!(type_of("'hello'").contains(r#""content-type": "text/plain; charset=utf-8""#));
    assert!(
        type_of("{ body = 'x', headers = { Content-Type = 'a/b' } }").contains(r#""content-type": "a/b""#)
    );
    assert!(type_of("{ body = '<', content_type = 'a/b' }").contains(r#""content-type": "a/b""#));
    assert!(!type_of("{ status = 204 }").contains("content-type"));
}

// ---- what ships ------------------------------------------------------------------------------------------------

const EXAMPLE: &str = include_str!("../config.toml.example");

#[test]
fn the_embedded_default_says_hello_world_and_the_status() {
    let tree = "steadfast
├── signals
├── http      127.0.0.1:8080
│   ├── /     respond 200, 46 bytes
│   └── /*    status
├── admin     127.0.0.1:9090
└── systemd";
    assert_eq!(Config::embedded("the embedded default").tree().to_string(), tree);
}

#[test]
fn the_example_as_it_ships_is_the_embedded_default() {
    let example = Config::parse(EXAMPLE, "config.toml.example").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(example, Config::embedded("the embedded default"));
}

/// The example with every `#key` a key.
fn example_in_full() -> String {
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.is_empty() && !key.starts_with(' ') => key.to_owned(),
        _ => line.to_owned(),
    };
    let lines: Vec<_> = EXAMPLE.lines().map(uncommented).collect();
    // The one line that depends on the machine.
    lines.join("\n").replace("root = \"/srv/www\"", "root = \"/\"")
}

#[test]
fn every_default_in_the_example_is_the_default() {
    let mut config =
        Config::parse(&example_in_full(), "config.toml.example").unwrap_or_else(|error| panic!("{error}"));
    let routes = std::mem::take(&mut config.http.routes);
    let https = config.https.take().expect("the section");
    assert_eq!(config, Config::default());
    assert_eq!(routes.len(), 5);

    // In `[https]`, but for what is an example there.
    let mut default =
        Https::new(vec![CertificateFiles::new("/etc/ssl/example.org.pem", "/etc/ssl/example.org.key")]);
    assert_eq!(https.client_auth.unwrap_or_default(), ClientAuth::default());
    (default.client_ca, default.client_auth) = (https.client_ca.clone(), https.client_auth);
    (default.client_crl, default.client_hosts) = (https.client_crl.clone(), https.client_hosts.clone());
    default.client_subject_header = https.client_subject_header.clone();
    default.hsts = https.hsts.clone();
    assert_eq!(https, default);

    // The defaults of a route are those of its short form.
    let short = "
        [[route]]
        path = '/assets/*'
        files = { root = '/', cache_control = 'public, max-age=3600' }
        [[route]]
        path = '/app/*'
        proxy = 'http://127.0.0.1:3000'
    ";
    let short = Config::parse(short, "short").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(routes[3..], short.http.routes);
}

#[test]
fn the_example_has_every_key() {
    let full = example_in_full();
    let has = |key: &str| {
        let key = format!("{key} = ");
        // Those of a certificate stand within a line.
        full.lines().any(|line| line.trim_start().starts_with(&key) || line.contains(&format!(" {key}\"/")))
    };
    // The mistakes know all keys: an unknown one in a section is answered with those there are.
    let sections = "
        [http]\nx = 1\n[https]\nx = 1\ncertificates = [{ chain = '/c', key = '/k', x = 1 }]\n[[route]]\npath = '/'\nstatus = true\nx = 1\n[admin]\nx = 1\n[shutdown]\nx = 1
        [handover]\nx = 1\n[supervision]\nx = 1\n[log]\nx = 1\n[[route]]\npath = '/f'\nfiles = { root = '/', x = 1 }
        [[route]]\npath = '/p'\nproxy = { to = 'unix:/x', x = 1 }\n";
    let error = Config::parse(sections, "").expect_err("x is unknown everywhere").to_string();
    let lists = error.lines().filter_map(|line| line.split_once("expected one of ")).map(|(_, keys)| keys);
    let keys: Vec<_> = lists.flat_map(|keys| keys.split(", ")).map(|key| key.trim_matches('`')).collect();
    let short = ["files", "proxy"]; // written as `[route.files]` there
    let missing: Vec<_> = keys.iter().filter(|key| !has(key) && !short.contains(key)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(keys.len(), 64);
}

// ---- files that cannot be read ---------------------------------------------------------------------------------

fn refusal(path: &Path) -> String {
    let error = Config::load(path).expect_err("it cannot be read");
    assert!(matches!(error, ConfigError::Unreadable { .. }), "{error:?}");
    assert!(error.source().is_some());
    error.to_string()
}

#[test]
fn a_file_that_is_not_there_is_named_with_what_to_do() {
    let said = refusal(Path::new("/nonexistent/steadfast.toml"));
    assert!(said.contains("/nonexistent/steadfast.toml: No such file or directory"), "{said}");
    assert!(said.contains("--config"), "{said}");
}

#[test]
fn a_directory_is_not_a_config() {
    assert!(refusal(Path::new("/")).contains("name the file in it"));
}

#[test]
fn an_endless_file_is_not_read_to_its_end() {
    assert!(refusal(Path::new("/dev/zero")).contains("at most 1 MiB"));
}

#[test]
fn a_device_with_nothing_in_it_is_not_a_config() {
    // An empty config would be every default, which nobody has asked for here.
    let said = refusal(Path::new("/dev/null"));
    assert!(said.contains("/dev/null: it is no file, and nothing is in it"), "{said}");
    assert!(said.contains("name a file with --config"), "{said}");
}

#[test]
fn a_pipe_with_a_name_may_be_served_from() {
    // Whoever writes it can do so again, for the next worker.
    let (folder, pipe) = pipe();
    let writing = thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, "http.max_connections = 7\n")
    });
    let config = Config::load(&pipe).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.http.limits.max_connections, 7);
    writing.join().expect("no panic").expect("it is written");
    drop(folder);
}

#[test]
fn a_file_that_may_not_be_read_says_who_must_be_let_in() {
    // Made here, because root may read everything.
    let source = io::ErrorKind::PermissionDenied.into();
    let said = ConfigError::Unreadable { path: "/etc/steadfast/config.toml".into(), source }.to_string();
    assert!(said.contains("/etc/steadfast/config.toml: permission denied"), "{said}");
    assert!(said.contains("let the user that runs steadfast read the file"), "{said}");
}

// ---- input from anywhere ---------------------------------------------------------------------------------------

/// Reads a text, and shows what is wrong with it in both ways.
fn read(text: &str) {
    match Config::parse(text, "any.toml") {
        Ok(config) => _ = config.tree().to_string(),
        Err(error) => _ = (error.to_string(), error.for_stderr(), format!("{error:#}")),
    }
}

/// A valid or invalid file with a few places changed.
fn changed() -> impl Strategy<Value = String> {
    // Text that is not an address might be looked up as a name, and that takes its time.
    let texts: Vec<_> = [files("valid"), files("invalid")]
        .concat()
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .filter(|text| !text.contains("listen"))
        .collect();
    let piece = prop_oneof![
        Just(String::new()),
        "[\"'\\[\\]{}=.,#\n\r\t\\\\ _0é😀\u{0}\u{1b}-]{1,3}",
        proptest::sample::select(texts.clone()),
        "\\PC{1,8}",
    ];
    let change = (any::<prop::sample::Index>(), 0..12_usize, piece);
    (proptest::sample::select(texts), prop::collection::vec(change, 1..6)).prop_map(|(text, changes)| {
        changes.into_iter().fold(text, |text, (at, length, piece)| {
            let mut chars: Vec<_> = text.chars().collect();
            let start = at.index(chars.len() + 1);
            let end = (start + length).min(chars.len());
            chars.splice(start..end, piece.chars());
            chars.into_iter().collect()
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        read(&text);
    }

    #[test]
    fn no_value_makes_it_panic(value in "(\"[^\"\\\\\n]{0,40}\"|[0-9a-fx_.+-]{1,60}|[\\[{]{1,90})") {
        for key in ["http.header_timeout", "http.body_limit", "http.max_connections", "shutdown.deadline", "log.level"] {
            read(&format!("{key} = {value}"));
        }
        for key in ["path", "respond", "respond.headers.a", "respond.status", "files.index", "proxy"] {
            read(&format!("[[route]]\n{key} = {value}"));
        }
    }

    #[test]
    fn no_change_of_a_file_makes_it_panic(text in changed()) {
        read(&text);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in changed()) {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let mut content = text.into_bytes();
        let middle = content.len() / 2;
        content.splice(middle..middle, bytes);
        fs::write(file.path(), content).expect("its bytes");
        if let Err(error) = Config::load(file.path()) {
            _ = (error.to_string(), format!("{error:#}"));
        }
    }
}

#[test]
fn a_huge_file_of_mistakes_is_answered_soon() {
    let started = std::time::Instant::now();
    let unknown: Vec<_> = (0..60_000).map(|number| format!("key_{number} = 1")).collect();
    let said = Config::parse(&unknown.join("\n"), "huge.toml").expect_err("no key is known").to_string();
    assert!(said.ends_with("and 59980 more mistakes"), "{}", &said[said.len() - 80..]);
    read(&"[".repeat(1 << 20));
    read(&"a.".repeat(1 << 19));
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn the_error_is_one_that_a_program_can_pass_on() {
    let error: Box<dyn Error + Send + Sync> =
        Config::load(Path::new("/nonexistent")).expect_err("not there").into();
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    assert_eq!(source, Some(io::ErrorKind::NotFound));
}
