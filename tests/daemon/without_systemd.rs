//! Without a service manager, as in a terminal, a container or under another parent: a reload hands over, a crash
//! refuses nobody, and a stop is as ever although a terminal signals the whole process group.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, kill_process, kill_process_group, pidfd_getfd, pidfd_open,
};
use steadfast_harness::{Client, Daemon, Load, Signal, print_figure, runs, wait_until};

use crate::process::{BINARY, begin_upload, config, connect, example, serving};

/// Nothing but the signals ends this stop.
const NEVER: &str = "shutdown.linger = \"0s\"\nshutdown.deadline = \"never\"\n";
/// The longest that something immediate may take on a machine that has much else to do.
const AT_ONCE: Duration = Duration::from_secs(10);
/// The notifications of a worker that sends more than anybody could want.
const FLOOD: u64 = 200_000;
/// The number of clients that make the load.
const CLIENTS: usize = 4;

/// A process in a group of its own, as a shell makes one for what is typed.
fn alone(command: &mut Command) {
    command.env_remove("NOTIFY_SOCKET").process_group(0);
}

/// A process that is [`alone`], and ends with the test together with what it has started.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // None of it may be left.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// The binary, under load.
fn under_load() -> (Daemon, Load) {
    let route = "http.requests_per_connection = 1000000000\n[[route]]\npath = \"/\"\nrespond = \"hello\"\n";
    let daemon = Daemon::spawn_with(BINARY, &config(route), alone);
    serving(&daemon);
    let load = Load::start(CLIENTS, daemon.address("http"), "/");
    load.advance(50);
    (daemon, load)
}

/// `troubled`, with these lines in its config.
fn troubled(lines: &str, trouble: Option<&str>) -> Daemon {
    let daemon = Daemon::spawn_program(example("troubled"), &[], &config(lines), |command| {
        alone(command);
        if let Some(trouble) = trouble {
            command.env("CHILD", "worker").env("TROUBLE", trouble);
        }
    });
    serving(&daemon);
    daemon
}

/// `steadfast reload`, as the daemon's operator calls it.
fn reload(daemon: &Daemon) -> Output {
    reload_command(daemon).output().expect("it runs")
}

fn reload_command(daemon: &Daemon) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("reload").env("RUNTIME_DIRECTORY", daemon.folder().join("run"));
    command
}

/// Ctrl-C.
fn interrupt(daemon: &Daemon) {
    let group = Pid::from_raw(i32::try_from(daemon.pid()).unwrap()).unwrap();
    kill_process_group(group, Signal::INT).expect("it is there");
}

/// A request in flight whose body is never completed.
fn begin_request(daemon: &Daemon) -> Client {
    let mut client = begin_upload(daemon, 8);
    client.send("half").unwrap();
    client
}

fn wait_for_drain(daemon: &Daemon) {
    daemon.wait_for_line("that it drains", |line| line.contains(" in flight, "));
}

/// Waits until the worker of this process has ended.
fn wait_for_end(daemon: &Daemon, worker: u32) {
    wait_until("the worker to end", || (!daemon.workers().contains(&worker)).then_some(()));
}

fn assert_nothing_is_lost(load: Load) {
    let account = load.finish();
    print_figure("reloads without systemd, under load", &account);
    assert_eq!((account.refused, account.dropped, account.closed), (0, 0, 0), "{account}");
}

// ---------------------------------------------------------------------------
// Reload
// ---------------------------------------------------------------------------

/// Five reloads under load, each asked for in this way, lose nothing.
fn assert_reloads_lose_nothing(ask: impl Fn(&Daemon)) {
    let (mut daemon, load) = under_load();
    for _ in 0..5 {
        let old = daemon.worker();
        ask(&daemon);
        let taken = format!(" takes over from worker {old}");
        daemon.wait_for_line(&taken, |line| line.contains(&taken));
        load.advance(50);
        wait_for_end(&daemon, old);
    }
    assert_nothing_is_lost(load);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn a_workers_allocator_is_told_to_give_back_what_is_free_unless_the_operator_tells_it_something() {
    let tunables = |own: Option<&str>| {
        let daemon = Daemon::spawn_with(BINARY, &config(""), |command| {
            alone(command);
            command.env_remove("GLIBC_TUNABLES").envs(own.map(|own| ("GLIBC_TUNABLES", own)));
        });
        serving(&daemon);
        let environment = fs::read(format!("/proc/{}/environ", daemon.worker())).expect("it runs");
        // glibc divides them where they are.
        let environment = String::from_utf8_lossy(&environment).replace('\0', ":");
        environment.split_once("GLIBC_TUNABLES=").expect("they are there").1.to_owned()
    };
    let [ours, own] = [None, Some("glibc.malloc.arena_max=1")].map(tunables);
    assert!(ours.starts_with("glibc.malloc.mxfast=0:glibc.malloc.trim_threshold=131072:"), "{ours}");
    assert!(own.starts_with("glibc.malloc.arena_max=1:") && !own.contains("mxfast"), "{own}");
}

#[test]
fn the_reload_command_hands_over_under_load_and_nothing_is_lost() {
    assert_reloads_lose_nothing(|daemon| {
        let old = daemon.worker();
        let output = reload(daemon);
        assert!(output.status.success(), "{output:?}\n{}", daemon.stderr());
        assert_ne!(daemon.worker(), old);
    });
}

#[test]
fn sighup_hands_over_under_load_and_nothing_is_lost() {
    assert_reloads_lose_nothing(|daemon| daemon.signal(Signal::HUP));
}

#[test]
fn over_sighup_counters_go_on_and_come_to_what_the_clients_count() {
    let (daemon, load) = under_load();
    for _ in 0..5 {
        let old = daemon.worker();
        daemon.signal(Signal::HUP);
        load.advance(50);
        wait_for_end(&daemon, old);
    }
    // One that fails counts, too.
    fs::write(daemon.folder().join("config.toml"), "nonsense").unwrap();
    daemon.signal(Signal::HUP);
    daemon.wait_for_line("the reload failed", |line| line.contains("the reload failed"));
    let account = load.finish();
    for (series, value) in [
        ("steadfast_http_requests_total{route=\"/\",method=\"GET\",code=\"200\"}", account.answered),
        ("steadfast_http_connections_accepted_total", CLIENTS as u64),
        ("steadfast_reloads_total{outcome=\"succeeded\"}", 5),
        ("steadfast_reloads_total{outcome=\"failed\"}", 1),
    ] {
        let line = format!("{series} {value}");
        wait_until(&line, || {
            let metrics = connect(&daemon, "admin").get("/metrics").ok()?.text();
            metrics.lines().any(|found| found == line).then_some(())
        });
    }
}

#[test]
fn a_reload_that_fails_counts_once_whoever_asked_for_it() {
    let daemon = troubled("", None);
    fs::write(daemon.folder().join("config.toml"), "nonsense").unwrap();
    daemon.signal_worker(Signal::HUP);
    daemon.wait_for_line("the reload failed", |line| line.contains("the reload failed"));
    // What it is told of this one comes after all that it is told of the first.
    assert!(!reload(&daemon).status.success());
    let metrics = connect(&daemon, "admin").get("/metrics").unwrap().text();
    let failed = "steadfast_reloads_total{outcome=\"failed\"} ";
    let line = metrics.lines().find(|line| line.starts_with(failed));
    assert_eq!(line, Some(&*format!("{failed}2")), "{}", daemon.stderr());
}

#[test]
fn a_reload_leaves_a_request_in_flight_to_the_old_worker_and_takes_the_idle_connections_along() {
    let mut daemon = troubled("", None);
    let mut idle = connect(&daemon, "http");
    assert_eq!(idle.get("/").unwrap().status, 200);
    let mut busy = begin_request(&daemon);
    let old = daemon.worker();
    assert!(reload(&daemon).status.success());
    assert_eq!(idle.get("/").unwrap().status, 200);
    assert!(daemon.workers().contains(&old));
    busy.send("half").unwrap();
    assert_eq!(busy.take(8).unwrap(), b"halfhalf");
    wait_for_end(&daemon, old);
    drop((idle, busy));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn two_reloads_at_once_both_succeed() {
    let (daemon, load) = under_load();
    for _ in 0..5 {
        thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| reload(&daemon)));
            for output in both {
                let output = output.join().unwrap();
                assert!(output.status.success(), "{output:?}\n{}", daemon.stderr());
            }
        });
    }
    load.advance(50);
    assert_nothing_is_lost(load);
}

#[test]
fn a_reload_that_finds_its_connection_closed_asks_the_successor() {
    let folder = tempfile::tempdir().unwrap();
    let socket = UnixListener::bind(folder.path().join("control.sock")).unwrap();
    let mut command = Command::new(BINARY);
    let command = command.arg("reload").env("RUNTIME_DIRECTORY", folder.path());
    thread::spawn(move || {
        // A process that is being replaced closes it before it is asked, another while it is.
        drop(socket.accept().unwrap());
        let asked = || {
            let (mut connection, _) = socket.accept().unwrap();
            assert!(connection.read(&mut [0; 1024]).unwrap() > 0);
            connection
        };
        drop(asked());
        asked().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\ndone\n").unwrap();
    });
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"done\n");
}

/// It first waits a while for its log to be written, which nobody reads here.
#[test]
fn a_stop_that_comes_while_the_main_process_becomes_another_program_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let [program, stderr, socket, config] =
        ["program", "stderr", "http.sock", "config.toml"].map(|name| folder.path().join(name));
    let put_the_program = || {
        let new = program.with_extension("new");
        // By another process: what this one writes to may be open in a child of another test when it is to be run.
        assert!(Command::new("cp").arg(BINARY).arg(&new).status().unwrap().success());
        fs::rename(new, &program).unwrap();
    };
    put_the_program();
    fs::write(&config, format!("http.listen = [\"unix:{}\"]\nadmin.listen = []\n", socket.display()))
        .unwrap();
    mknodat(CWD, &stderr, FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let pipe = fs::File::options().read(true).write(true).open(&stderr).unwrap();
    let mut command = Command::new(&program);
    alone(&mut command);
    command.args(["run", "--config"]).arg(config).env("RUNTIME_DIRECTORY", folder.path()).stderr(pipe);
    let mut daemon = Group(command.spawn().unwrap());
    wait_until("it to serve", || Client::connect_unix(&socket).ok()?.get("/").ok());
    let unwaiting = open(&stderr, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    while rustix::io::write(&unwaiting, b"x").is_ok() {}

    put_the_program();
    let mut reload = Command::new(&program);
    let reload = reload.arg("reload").env("RUNTIME_DIRECTORY", folder.path()).output().unwrap();
    assert!(reload.status.success(), "{reload:?}");
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).unwrap();
    let status = wait_until("it to stop", || daemon.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_reload_with_a_broken_config_changes_nothing_and_says_why() {
    let (daemon, load) = under_load();
    let worker = daemon.worker();
    fs::write(daemon.folder().join("config.toml"), "http.listen = 7\n").unwrap();
    let output = reload(&daemon);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("config.toml:1:"), "{said}");
    daemon.signal(Signal::HUP);
    wait_until("the second refusal", || {
        let log = daemon.stderr().to_string();
        (log.matches("the reload failed, nothing has changed").count() == 2).then_some(())
    });
    assert_eq!(daemon.workers(), [worker]);
    load.advance(50);
    assert_nothing_is_lost(load);
}

/// As in a chroot: there is no way to this very program, which is to be run once more for the sake of its title.
#[test]
fn it_serves_where_proc_is_not_mounted() {
    let script = "mount -t tmpfs none /proc && exec \"$0\" run --config \"$@\"";
    let arguments = ["--map-root-user", "--mount", "sh", "-c", script, BINARY];
    let mut daemon = Daemon::spawn_program("unshare", &arguments, &config(""), alone);
    serving(&daemon);
    daemon.wait_for_line("that it has no title", |line| line.contains("WARN") && line.contains("title"));
    assert_eq!(connect(&daemon, "http").get("/").unwrap().status, 404);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
}

#[test]
fn a_refusal_of_any_length_is_told_whoever_asked_and_its_end_is_kept() {
    let daemon = Daemon::spawn_with(BINARY, &config(""), alone);
    serving(&daemon);
    let many = (0..20).map(|key| format!("{}_{key} = 1", "x".repeat(5000))).collect::<Vec<_>>().join("\n");
    let long = format!("{} = 1", "x".repeat(150_000));
    // All that a text grows by, on its way as JSON and made fit to be shown.
    let quotes = format!("\"{}\\u0007\" = 1", "\\\\".repeat(20_000));
    for wrong in [many, long, quotes] {
        fs::write(daemon.folder().join("config.toml"), wrong).unwrap();
        let mut asking = reload_command(&daemon).stderr(Stdio::piped()).spawn().expect("it runs");
        let status = wait_until("an answer", || asking.try_wait().unwrap());
        let mut said = String::new();
        asking.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!status.success() && said.contains("config.toml:") && said.ends_with("`log`\n"), "{said}");
        let shown = connect(&daemon, "admin").get("/status").unwrap().text();
        assert!(shown.contains("unknown key"), "{shown}");
    }
}

// ---------------------------------------------------------------------------
// Crash
// ---------------------------------------------------------------------------

#[test]
fn a_killed_worker_is_replaced_and_refuses_nobody() {
    let (daemon, load) = under_load();
    let killed = daemon.worker();
    daemon.signal_worker(Signal::KILL);
    let replaced = format!("worker {killed} was ended by signal 9; starting another in 0 ms");
    daemon.wait_for_line(&replaced, |line| line.contains("ERROR") && line.contains(&replaced));
    load.advance(100);
    let account = load.finish();
    print_figure("a killed worker without systemd, under load", &account);
    // Who was being answered loses that answer.
    assert_eq!(account.refused, 0, "{account}");
    assert!(account.dropped <= CLIENTS as u64, "{account}");
}

#[test]
fn a_worker_whose_main_process_is_killed_finishes_what_it_has_and_ends() {
    let mut daemon = troubled(NEVER, None);
    let worker = daemon.worker();
    let mut client = begin_request(&daemon);
    daemon.signal(Signal::KILL);
    wait_for_drain(&daemon);
    client.send("half").unwrap();
    assert_eq!(client.take(8).unwrap(), b"halfhalf");
    drop(client);
    assert_eq!(daemon.wait(), -9);
    wait_until("the worker to end", || (!runs(worker)).then_some(()));
}

// ---------------------------------------------------------------------------
// Stop
// ---------------------------------------------------------------------------

#[test]
fn ctrl_c_drains_once_although_the_terminal_signals_the_whole_group() {
    let mut daemon = troubled(NEVER, None);
    let mut client = begin_request(&daemon);
    interrupt(&daemon);
    wait_for_drain(&daemon);
    client.send("half").unwrap();
    assert_eq!(client.take(8).unwrap(), b"halfhalf");
    assert_eq!(daemon.wait(), 0);
    let log = daemon.stderr().to_string();
    assert_eq!(log.matches("SIGINT: draining; the same again cuts").count(), 1, "{log}");
    assert!(log.contains("stopped by SIGINT in") && !log.contains("again: cutting"), "{log}");
}

#[test]
fn a_second_ctrl_c_cuts_and_names_what_it_cut() {
    let mut daemon = troubled(NEVER, None);
    let _client = begin_request(&daemon);
    interrupt(&daemon);
    wait_for_drain(&daemon);
    let began = Instant::now();
    interrupt(&daemon);
    assert_eq!(daemon.wait(), 3);
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    daemon.wait_for_line("what was cut", |line| line.contains("cut by the second signal: POST /echo"));
}

#[test]
fn a_third_ctrl_c_exits_at_once_and_leaves_no_worker() {
    let mut daemon = troubled(NEVER, None);
    let worker = daemon.worker();
    let _client = begin_request(&daemon);
    // It hears nothing of what the main process is told.
    daemon.signal_worker(Signal::STOP);
    for line in ["SIGINT: draining", "SIGINT again: cutting", "SIGINT for the third time"] {
        interrupt(&daemon);
        daemon.wait_for_line(line, |l| l.contains(line));
    }
    assert_eq!(daemon.wait(), 3);
    wait_until("the worker to end", || (!runs(worker)).then_some(()));
}

#[test]
fn a_hung_child_without_a_deadline_is_cut_by_the_second_signal() {
    let mut daemon = troubled(NEVER, Some("blocks"));
    interrupt(&daemon);
    wait_for_drain(&daemon);
    let began = Instant::now();
    interrupt(&daemon);
    assert_eq!(daemon.wait(), 3);
    print_figure("a hung child, from the second signal to the exit", format!("{:.1?}", began.elapsed()));
    assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    daemon.wait_for_line("the child", |line| line.contains("cut by the second signal: the child worker"));
}

#[test]
fn a_worker_that_stands_still_without_a_deadline_is_killed_after_the_second_signal() {
    let mut daemon = troubled(NEVER, None);
    let _client = begin_request(&daemon);
    daemon.signal_worker(Signal::STOP);
    interrupt(&daemon);
    daemon.wait_for_line("the first", |line| line.contains("SIGINT: draining"));
    let began = Instant::now();
    interrupt(&daemon);
    assert_eq!(daemon.wait(), 3);
    assert!(began.elapsed() < 2 * AT_ONCE, "{:?}", began.elapsed());
    daemon.wait_for_line("that it was killed", |line| line.contains("does not end: killing it"));
}

/// A worker that tells the main process more than that can listen to, from within: its channel is its descriptor 3.
#[test]
fn a_worker_that_floods_its_notifications_holds_up_no_reload_and_no_client() {
    let daemon = troubled("", None);
    let busy = begin_request(&daemon);
    let old = daemon.worker();
    let process = Pid::from_raw(i32::try_from(old).unwrap()).unwrap();
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    let channel = pidfd_getfd(&process, 3, PidfdGetfdFlags::empty()).expect("it is this test's grandchild");
    let flood = thread::spawn(move || {
        let mut sent = 0_u64;
        // Full again and again; broken once the worker, and so the other end's interest, has gone.
        loop {
            match rustix::net::send(&channel, b"STATUS=a lot to say\nWATCHDOG=1", SendFlags::DONTWAIT) {
                Ok(_) => sent += 1,
                Err(Errno::AGAIN) => thread::yield_now(),
                Err(_) => return sent,
            }
            if sent == FLOOD {
                return sent;
            }
        }
    });
    // The first one asks the main process itself: through the flood the worker has no word.
    daemon.signal(Signal::HUP);
    daemon.wait_for_line("who takes over", |line| line.contains(&format!("takes over from worker {old}")));
    for _ in 0..3 {
        let output = reload(&daemon);
        assert!(output.status.success(), "{output:?}\n{}", daemon.stderr());
        assert_eq!(connect(&daemon, "http").get("/").unwrap().status, 200);
    }
    assert!(daemon.workers().contains(&old));
    assert_eq!(flood.join().unwrap(), FLOOD);
    drop(busy);
    wait_for_end(&daemon, old);
}
