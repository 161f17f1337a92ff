//! `steadfast status --watch`, on a real terminal and off one.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::num::NonZero;
use std::os::unix::ffi::OsStrExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use steadfast_harness::{Daemon, Signal, Upstream, runs, wait_until, wait_with};
use vt100::Parser;

use crate::process::{BINARY, config, connect, serving};

/// A terminal, and a program on it.
struct Terminal {
    ours: File,
    theirs: File,
    screen: Arc<Mutex<Parser>>,
    program: Child,
}

impl Terminal {
    /// Runs a command on a terminal of this size.
    fn run(command: &mut Command, rows: u16, columns: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&ours).and_then(|()| unlockpt(&ours)).expect("it can be opened");
        let path = ptsname(&ours, Vec::new()).expect("it has a name");
        let path = OsStr::from_bytes(path.as_bytes());
        let theirs = OpenOptions::new().read(true).write(true).open(path).expect("it can be opened");
        let end = || Stdio::from(theirs.try_clone().expect("a descriptor"));
        resize(&ours.try_clone().expect("a descriptor").into(), rows, columns);
        let program = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("it runs");
        let screen = Arc::new(Mutex::new(Parser::new(size(rows), size(columns), 0)));
        let ours = File::from(ours);
        let (mut shown, parser) = (ours.try_clone().expect("a descriptor"), Arc::clone(&screen));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = shown.read(&mut bytes) {
                parser.lock().unwrap_or_else(PoisonError::into_inner).process(&bytes[..read]);
            }
        });
        Self { ours, theirs, screen, program }
    }

    fn parser(&self) -> MutexGuard<'_, Parser> {
        self.screen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        self.parser().screen().contents()
    }

    /// Waits until a line has all of these words, in their order.
    fn wait_for(&self, words: &[&str]) {
        let has_all =
            |line: &str| words.iter().try_fold(line, |rest, word| Some(rest.split_once(word)?.1)).is_some();
        let look = || self.text().lines().any(has_all).then_some(());
        wait_with(look, || format!("{words:?} on:\n{}", self.text()));
    }

    fn resize(&self, rows: u16, columns: u16) {
        self.parser().screen_mut().set_size(size(rows), size(columns));
        resize(&self.ours, rows, columns);
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.theirs).expect("it is a terminal").local_modes.contains(LocalModes::ICANON)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("it is a terminal");
}

fn size(number: u16) -> NonZero<u16> {
    NonZero::new(number).expect("it has a size")
}

/// A daemon with a proxy.
fn start(upstream: &Upstream) -> Daemon {
    let route = format!("[[route]]\npath = \"/*\"\nproxy = \"http://{}\"\n", upstream.address());
    let daemon = Daemon::spawn(BINARY, &config(&route));
    serving(&daemon);
    daemon
}

/// `steadfast status --watch`, for this daemon. `setsid` (util-linux) gives it the terminal for its own.
fn watch(daemon: &Daemon) -> Command {
    let mut command = Command::new("setsid");
    command
        .args(["--ctty", BINARY, "status", "--watch"])
        .env("RUNTIME_DIRECTORY", daemon.folder().join("run"));
    command
}

#[test]
fn the_screen_follows_the_daemon_and_its_terminal_and_leaves_that_as_it_was() {
    let upstream = Upstream::start();
    let daemon = start(&upstream);
    let old = daemon.worker();
    let mut terminal = Terminal::run(&mut watch(&daemon), 24, 80);
    terminal.wait_for(&["main process", &daemon.pid().to_string(), "running"]);
    terminal.wait_for(&["└── worker", &old.to_string(), "serving"]);
    terminal.wait_for(&["├── signals", "running", "waiting for a signal"]);
    assert!(terminal.parser().screen().alternate_screen() && terminal.is_raw());

    let mut client = connect(&daemon, "http");
    client.ask("/slow").unwrap();
    let exchange = upstream.next_request();
    terminal.wait_for(&["GET /slow", "the upstream"]);

    terminal.resize(40, 120);
    wait_until("the wider screen", || {
        let header = terminal.text().lines().find(|line| line.contains("heartbeat")).map(str::len);
        header.filter(|length| *length > 80)
    });
    terminal.resize(10, 40);
    let is_narrow = || {
        let text = terminal.text();
        (!text.contains("heartbeat") && text.trim_end().ends_with("q leaves")).then_some(())
    };
    wait_with(is_narrow, || format!("the narrow screen instead of:\n{}", terminal.text()));
    terminal.resize(24, 80);

    daemon.signal(Signal::HUP);
    terminal.wait_for(&["worker ", &format!("took over from worker {old}")]);
    terminal.wait_for(&["predecessor", &old.to_string(), "draining", "1 request"]);
    exchange.answer(200, "");
    assert_eq!(client.receive().unwrap().status, 200);
    wait_until("the predecessor to be gone", || (!terminal.text().contains("predecessor")).then_some(()));

    terminal.ours.write_all(b"q").unwrap();
    let program = &mut terminal.program;
    let status = wait_until("it to leave", || program.try_wait().expect("it is our child"));
    assert!(status.success(), "{status}");
    wait_until("the screen that was", || (!terminal.parser().screen().alternate_screen()).then_some(()));
    assert!(!terminal.is_raw() && !terminal.parser().screen().hide_cursor());
}

#[test]
fn a_signal_that_ends_the_screen_leaves_the_terminal_as_it_was() {
    let upstream = Upstream::start();
    let daemon = start(&upstream);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let mut terminal = Terminal::run(&mut watch(&daemon), 24, 80);
        terminal.wait_for(&["└── worker", "serving"]);
        assert!(terminal.is_raw());
        kill_process(Pid::from_child(&terminal.program), signal).unwrap();
        let program = &mut terminal.program;
        let status = wait_until("it to leave", || program.try_wait().expect("it is our child"));
        assert_eq!(status.code(), Some(128 + signal.as_raw()), "{status}");
        wait_until("the screen that was", || (!terminal.parser().screen().alternate_screen()).then_some(()));
        assert!(!terminal.is_raw() && !terminal.parser().screen().hide_cursor());
    }
}

#[test]
fn the_screen_ends_with_its_terminal() {
    let upstream = Upstream::start();
    let daemon = start(&upstream);
    // `script` (util-linux) holds the other end of the terminal; killed, it leaves nobody who does.
    let mut command = Command::new("script");
    command
        .args([
            "--quiet",
            "--command",
            &format!("stty rows 24 cols 80; exec {BINARY} status --watch"),
            "/dev/null",
        ])
        .env("RUNTIME_DIRECTORY", daemon.folder().join("run"))
        .env("TERM", "xterm");
    let mut holder = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut shown = holder.stdout.take().expect("a pipe");
    let (mut parser, mut bytes) = (Parser::new(size(24), size(80), 0), [0; 4096]);
    while !parser.screen().contents().contains("signals") {
        let read = shown.read(&mut bytes).expect("it is shown");
        assert!(read > 0, "it has ended: {}", parser.screen().contents());
        parser.process(&bytes[..read]);
    }
    let on_it = |pid: u32| {
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(|pid| pid.parse().expect("a number")).collect::<Vec<u32>>()
    };
    let mut programs = on_it(holder.id());
    programs.extend(programs.clone().into_iter().flat_map(on_it));
    assert!(!programs.is_empty());
    holder.kill().expect("it runs");
    holder.wait().expect("it has ended");
    wait_until("the screen to end", || programs.iter().all(|pid| !runs(*pid)).then_some(()));
}

#[test]
fn while_no_worker_answers_the_screen_says_that_it_reconnects() {
    let upstream = Upstream::start();
    let mut daemon = start(&upstream);
    let mut terminal = Terminal::run(&mut watch(&daemon), 24, 80);
    terminal.wait_for(&["└── worker", "serving"]);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    terminal.wait_for(&["reconnecting for", "no daemon listens"]);
    terminal.wait_for(&["└── worker"]);
    // Ctrl-C.
    terminal.ours.write_all(&[3]).unwrap();
    let program = &mut terminal.program;
    assert!(wait_until("it to leave", || program.try_wait().expect("it is our child")).success());
}

#[test]
fn off_a_terminal_the_text_comes_again_each_second_until_nobody_reads_it() {
    let upstream = Upstream::start();
    let daemon = start(&upstream);
    let mut command = Command::new(BINARY);
    command.args(["status", "--watch"]).env("RUNTIME_DIRECTORY", daemon.folder().join("run"));
    let mut program = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut heads =
        lines.by_ref().filter(|line| line.starts_with("steadfast ") && line.contains(": serving"));
    assert!(heads.next().is_some() && heads.next().is_some());
    drop(lines);
    let output = program.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
