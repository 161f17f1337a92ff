//! A log that cannot be written, or that nobody reads for a while: of every request it is known if it was logged.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use steadfast_harness::{Client, Daemon, Load, Signal, wait_until};

use crate::site::{BINARY, Site, metric_in};

/// The requests, and the other events, that could not be logged.
const ACCESS_LOST: &str = "steadfast_access_log_lost_total";
const LOST: &str = "steadfast_log_lost_total";

const RESPOND: &str = "[[route]]\npath = \"/\"\nrespond = \"hello\"\n";

/// Makes a command write its stderr there.
fn with_stderr(path: &str) -> impl FnOnce(&mut Command) {
    let redirect = format!("exec \"$0\" \"$@\" 2> {path}");
    move |command| {
        let program = std::mem::replace(command, Command::new("sh"));
        command.args(["-c", &redirect]).arg(program.get_program()).args(program.get_args());
        for (name, value) in program.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    }
}

/// The binary, once it serves, that listens here and logs every request to such a stderr.
fn start(listen: &str, log: &str, stderr: &str) -> Daemon {
    let config = format!(
        "[http]\nlisten = [{listen:?}]\n[log]\ntarget = \"stderr\"\naccess = \"all\"\n{log}\n{RESPOND}"
    );
    let daemon = Daemon::spawn_with(BINARY, &config, with_stderr(stderr));
    wait_until("it to serve", || {
        let mut client = Client::connect_unix(daemon.control_socket()).ok()?;
        (client.get("/readyz").ok()?.status == 200).then_some(())
    });
    daemon
}

fn control(daemon: &Daemon, path: &str) -> String {
    let mut client = Client::connect_unix(daemon.control_socket()).expect("the control socket");
    client.get(path).expect("it answers").text()
}

fn metric(daemon: &Daemon, series: &str) -> u64 {
    metric_in(&control(daemon, "/metrics"), series)
}

#[test]
fn requests_are_served_while_the_access_logs_disk_is_full_and_each_that_is_lost_is_counted_and_said() {
    const REQUESTS: u64 = 100;
    let log = format!("access = \"all\"\naccess_format = \"json\"\naccess_file = \"/dev/full\"\n{RESPOND}");
    let mut site = Site::start("", &log);
    let mut client = site.client();
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    drop(client);
    wait_until("each to be counted", || (site.metric(ACCESS_LOST) == REQUESTS).then_some(()));
    site.signal(Signal::TERM);
    assert_eq!(site.wait(), 0);
    let log = site.stderr().0;
    let reason =
        "requests could not be logged: cannot write the access log /dev/full: No space left on device";
    let said = log.iter().filter(|line| line.contains("ERROR") && line.contains(reason));
    let lost = said.map(|line| line.split("lost=").nth(1).expect("a number").split(' ').next().unwrap());
    let lost: u64 = lost.map(|number| number.parse::<u64>().expect("a number")).sum();
    assert_eq!(lost, REQUESTS, "{log:#?}");
}

#[test]
fn requests_are_served_while_stderr_takes_nothing_and_all_that_is_lost_is_counted() {
    const REQUESTS: u64 = 100;
    for log in ["format = \"text\"", "format = \"json\"", "access_format = \"combined\""] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("http.sock");
        let mut daemon = start(&format!("unix:{}", socket.display()), log, "/dev/full");
        let mut client = Client::connect_unix(&socket).unwrap();
        for _ in 0..REQUESTS {
            assert_eq!(client.get("/").unwrap().status, 200);
        }
        drop(client);
        wait_until("each to be counted", || {
            let lost = metric(&daemon, ACCESS_LOST);
            assert!(lost <= REQUESTS, "{lost} with {log}");
            (lost == REQUESTS).then_some(())
        });
        assert!(metric(&daemon, LOST) > 0, "{log}");
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait(), 0, "{log}");
    }
}

#[test]
fn each_request_is_logged_or_lost_where_nobody_reads_stderr_for_a_while() {
    for (log, mark) in
        [("", "steadfast::access"), ("access_format = \"combined\"", "\"GET / HTTP/1.1\" 200 5 \"-\" \"-\"")]
    {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("stderr");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        // For writing as well, so that to open it waits for nobody.
        let frozen = File::options().read(true).write(true).open(&pipe).unwrap();
        let mut daemon = start("127.0.0.1:0", log, pipe.to_str().unwrap());
        let mut lines = BufReader::new(frozen).lines().map(|line| line.expect("text"));
        let listening = lines.find(|line| line.contains("child=\"http\"")).expect("where it listens");
        let address = listening.split("address=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        let address = address.trim_matches('"').parse().expect("an address");
        let load = Load::start(4, address, "/");
        wait_until("requests to be lost", || {
            load.advance(1000);
            (metric(&daemon, ACCESS_LOST) > 0).then_some(())
        });
        load.advance(1000);
        let logged = Arc::new(AtomicU64::new(0));
        thread::spawn({
            let logged = Arc::clone(&logged);
            // It never ends, as a pipe that is open for writing has no end.
            move || {
                for line in lines {
                    logged.fetch_add(u64::from(line.contains(mark)), Relaxed);
                }
            }
        });
        load.advance(1000);
        let account = load.finish();
        assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
        wait_until("each request to be logged or lost", || {
            let (logged, lost) = (logged.load(Relaxed), metric(&daemon, ACCESS_LOST));
            assert!(logged + lost <= account.answered, "{logged} logged, {lost} lost of {account}");
            (logged + lost == account.answered).then_some(())
        });
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait(), 0);
    }
}
