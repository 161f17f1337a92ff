//! A process that has no descriptors left.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use steadfast_harness::{Client, wait_until};

use crate::site::{BINARY, Site, files, respond};
use crate::wire::connect;

/// The number of descriptors that the daemon may have.
const LIMIT: u64 = 64;

/// A daemon that may have no more than [`LIMIT`].
fn limited(tables: &str) -> Site {
    let site = Site::start("", tables);
    let pid = Pid::from_raw(i32::try_from(site.worker()).unwrap());
    let limit = Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) };
    prlimit(pid, Resource::Nofile, limit).unwrap();
    site
}

fn cannot_accept(line: &str) -> bool {
    line.contains("WARN") && line.contains("cannot accept")
}

#[test]
fn out_of_descriptors_the_daemon_serves_what_it_has_says_so_once_and_recovers_by_itself() {
    let site = limited(&respond("/hello", "hello"));
    let mut kept = site.client();
    assert_eq!(kept.get("/hello").unwrap().status, 200);
    let mut admin = Client::connect(site.admin).unwrap();
    assert_eq!(admin.get("/livez").unwrap().status, 200);

    let flood: Vec<_> = (0..2 * LIMIT).map(|_| connect(site.http)).collect();
    site.wait_for_line("that it cannot accept", cannot_accept);
    let mut late = site.client();
    late.ask("/hello").unwrap();
    // Long enough for a line at every attempt to be a flood: there are ten of them a second.
    for _ in 0..30 {
        assert_eq!(kept.get("/hello").unwrap().status, 200);
        assert_eq!(admin.get("/livez").unwrap().status, 200);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(site.lines(cannot_accept), 1, "{}", site.stderr());

    drop(flood);
    assert_eq!(late.receive().unwrap().status, 200);
    for _ in 0..3 {
        site.assert_available("/hello");
    }
    thread::sleep(Duration::from_millis(1200));
    site.assert_available("/hello");
    site.wait_for_line("that it accepts again", |line| line.contains("accepting again"));
    assert_eq!(site.lines(cannot_accept), 1, "{}", site.stderr());
}

#[test]
fn out_of_descriptors_a_file_cannot_be_read_and_that_is_no_ones_death() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "file").unwrap();
    let site = limited(&(respond("/hello", "hello") + &files("/files/*", folder.path())));
    let mut kept = site.client();
    assert_eq!(kept.get("/files/file").unwrap().status, 200);
    let flood: Vec<_> = (0..2 * LIMIT).map(|_| connect(site.http)).collect();
    site.wait_for_line("that it cannot accept", cannot_accept);
    assert_eq!(kept.get("/files/file").unwrap().status, 500);
    assert_eq!(kept.get("/hello").unwrap().status, 200);
    drop(flood);
    wait_until("files to be read again", || (kept.get("/files/file").unwrap().status == 200).then_some(()));
}

/// As an operator's shell with a low `ulimit -n` would start it.
#[test]
fn a_daemon_that_starts_with_few_descriptors_serves_with_them() {
    let few = |command: &mut Command| {
        let limited = std::mem::replace(command, Command::new("prlimit"));
        command.args(["--nofile=32:32", "--"]).arg(limited.get_program()).args(limited.get_args());
        for (name, value) in limited.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stderr(std::process::Stdio::piped()).process_group(0);
    };
    let site = Site::start_with("", &respond("/hello", "hello"), few);
    for _ in 0..100 {
        site.assert_available("/hello");
    }
}

#[test]
fn a_process_that_has_not_even_the_descriptors_to_start_says_so_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    std::fs::write(&config, "[http]\nlisten = [\"127.0.0.1:0\"]\n").unwrap();
    for few in (4..=7).flat_map(|few| [few; 10]) {
        let limit = format!("--nofile={few}:{few}");
        let mut command = Command::new("prlimit");
        command.args([&limit, "--", BINARY, "run", "--config"]).arg(&config).env_remove("JOURNAL_STREAM");
        let output = command.output().unwrap();
        assert!(!output.status.success(), "with {few} descriptors it starts");
        assert!(!output.stderr.is_empty(), "with {few} descriptors: {}, without a word", output.status);
    }
}
