//! The matrix: each child, each fault, each situation, and what it costs.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread;

use steadfast_harness::{Account, Client, Daemon, Failure, Load, Signal, print_figure};

use crate::process::{Child, Kind, Rehearsal, WATCHDOG, doing, inject, post, still_waits};

/// The daemon's situation when the fault comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Situation {
    /// It holds an idle connection.
    Idle,
    /// Clients keep it busy, and one request waits for its upstream.
    Load,
    /// It was told to stop, and waits for one request.
    Draining,
    /// Its successor is being started, under load.
    Reload,
}

impl Situation {
    const ALL: [Self; 4] = [Self::Idle, Self::Load, Self::Draining, Self::Reload];
}

/// The outcome of each fault in each situation. Nowhere is a connection refused, and but for `replaced` and `killed` is
/// no request lost and no connection closed that would otherwise not be: a cell would name it after `lost`.
///
/// * `restarted`: the log names the child, the child runs again in the same worker.
/// * `replaced`: log and STATUS name the child with what it did last, and the main process ends the worker and starts
///   another with the same listeners. Who was being answered loses that answer, and only that.
/// * `exit N`: the drain, of the stop or of the worker that was replaced, ended as it would have without the fault.
///   3 is the own worker that had to be cut: only it knows how to stop.
/// * `killed`: the predecessor could not be told that another worker serves, and was ended as in `replaced`.
#[rustfmt::skip]
const MATRIX: [(Child, Kind, [&str; 4]); 20] = [
    //                        idle         under load   draining    during a reload
    ("signals", Kind::Panic, ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("signals", Kind::Fail,  ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("signals", Kind::Hang,  ["replaced",  "replaced",  "exit 0",   "killed"]),
    ("signals", Kind::Block, ["replaced",  "replaced",  "exit 0",   "killed"]),
    ("http",    Kind::Panic, ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("http",    Kind::Fail,  ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("http",    Kind::Hang,  ["replaced",  "replaced",  "exit 0",   "exit 0"]),
    ("http",    Kind::Block, ["replaced",  "replaced",  "exit 0",   "exit 0"]),
    ("admin",   Kind::Panic, ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("admin",   Kind::Fail,  ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("admin",   Kind::Hang,  ["replaced",  "replaced",  "exit 0",   "exit 0"]),
    ("admin",   Kind::Block, ["replaced",  "replaced",  "exit 0",   "exit 0"]),
    ("systemd", Kind::Panic, ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("systemd", Kind::Fail,  ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("systemd", Kind::Hang,  ["replaced",  "replaced",  "exit 0",   "exit 0"]),
    ("systemd", Kind::Block, ["replaced",  "replaced",  "exit 0",   "exit 0"]),
    ("worker",  Kind::Panic, ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("worker",  Kind::Fail,  ["restarted", "restarted", "exit 0",   "exit 0"]),
    ("worker",  Kind::Hang,  ["replaced",  "replaced",  "exit 3",   "exit 3"]),
    ("worker",  Kind::Block, ["replaced",  "replaced",  "exit 3",   "exit 3"]),
];

/// The number of cells that are tried at once: most of the time each of them waits.
const AT_ONCE: usize = 3;

/// The number of clients that make the load.
const CLIENTS: usize = 2;

#[test]
fn every_fault_of_every_child_costs_what_the_matrix_says() {
    let cells = (0..MATRIX.len()).flat_map(|row| (0..Situation::ALL.len()).map(move |column| (row, column)));
    // One child or situation alone, while looking for its fault.
    let only = std::env::var("STEADFAST_FAULTS_ONLY").unwrap_or_default();
    let chosen = |&(row, column): &(usize, usize)| {
        let (child, kind, _) = MATRIX[row];
        format!("{child} {kind} {:?}", Situation::ALL[column]).contains(&only)
    };
    let left = Mutex::new(cells.filter(chosen));
    let outcomes = Mutex::new(BTreeMap::new());
    crate::process::program();
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((row, column)) = next else { return };
                    let (child, kind, _) = MATRIX[row];
                    let cell = AssertUnwindSafe(|| try_one(child, kind, Situation::ALL[column]));
                    let outcome = catch_unwind(cell).unwrap_or_else(|panic| words(&*panic));
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert((row, column), outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);

    let mut table =
        format!("\n{:17}{:12}{:12}{:12}{}", "", "idle", "under load", "draining", "during a reload");
    let mut wrong = String::new();
    for (row, (child, kind, expected)) in MATRIX.iter().enumerate() {
        write!(table, "\n  {child:8} {kind:6}").expect("a string takes text");
        for (column, expected) in expected.iter().enumerate() {
            let outcome = outcomes.get(&(row, column)).map_or("-", String::as_str);
            let short = if outcome.len() < 12 { outcome } else { "WRONG" };
            write!(table, "{short:12}").expect("a string takes text");
            if outcome != "-" && outcome != *expected {
                let situation = Situation::ALL[column];
                writeln!(wrong, "{child} {kind} {situation:?}: {outcome}, not {expected}").expect("a string");
            }
        }
    }
    print_figure("what each fault of each child came to; nobody was refused", &table);
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// The message of a cell that went wrong.
fn words(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no words").to_owned()
}

/// One cell: starts a daemon, brings it into the situation, injects the fault, and looks.
fn try_one(child: Child, kind: Kind, situation: Situation) -> String {
    let lines = "shutdown.deadline = \"8s\"\nhandover.deadline = \"8s\"\nshutdown.linger = \"200ms\"\n\
                 supervision.backoff = \"20ms\"\n";
    let rehearsal = Rehearsal::start(lines, |command| {
        if !kind.ends_the_child() {
            command.env("WATCHDOG_USEC", WATCHDOG);
        }
    });
    match situation {
        Situation::Idle => idle(&rehearsal, child, kind),
        Situation::Load => load(&rehearsal, child, kind),
        Situation::Draining => draining(rehearsal, child, kind),
        Situation::Reload => reload(rehearsal, child, kind),
    }
}

fn idle(rehearsal: &Rehearsal, child: Child, kind: Kind) -> String {
    let mut client = rehearsal.connect();
    assert_eq!(client.get("/").expect("it serves").status, 200);
    let worker = rehearsal.daemon.worker();
    rehearsal.inject(child, kind);
    let came = reaction(rehearsal, child, kind, worker);
    let answer = client.get("/");
    if came == "replaced" {
        assert!(matches!(answer, Err(Failure::Closed)), "the old worker has ended");
    } else {
        assert_eq!(answer.expect("an open connection goes on").status, 200);
    }
    newcomer(rehearsal, came)
}

fn load(rehearsal: &Rehearsal, child: Child, kind: Kind) -> String {
    let mut client = rehearsal.connect();
    client.ask("/app/slow").expect("it takes a request");
    let exchange = rehearsal.upstream.next_request();
    let load = Load::start(CLIENTS, rehearsal.daemon.address("http"), "/");
    load.advance(100);
    let worker = rehearsal.daemon.worker();
    rehearsal.inject(child, kind);
    let came = reaction(rehearsal, child, kind, worker);
    load.advance(100);
    let lost = if came == "replaced" {
        client.receive().expect_err("the old worker has ended");
        own_answers(&load.finish())
    } else {
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().expect("a request in flight goes on").text(), "worth the wait");
        losses(&load.finish())
    };
    newcomer(rehearsal, came) + &lost
}

fn draining(rehearsal: Rehearsal, child: Child, kind: Kind) -> String {
    let Rehearsal { mut daemon, upstream } = rehearsal;
    let address = daemon.address("http");
    let connect = || Client::connect(address).expect("it accepts");
    let mut control = Client::connect_unix(daemon.control_socket()).expect("it is there");
    let (mut client, mut idle) = (connect(), connect());
    assert_eq!(idle.get("/").expect("it serves").status, 200);
    client.ask("/app/slow").expect("it takes a request");
    let exchange = upstream.next_request();
    daemon.signal(Signal::TERM);
    daemon.wait_for_line("that it drains", |line| line.contains("draining: "));

    inject(&mut control, child, kind);
    if kind.ends_the_child() {
        wait_for_the_end_of(&daemon, child, kind);
    }
    still_waits(&mut client);
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().expect("a request in flight goes on").text(), "worth the wait");
    let exit = daemon.wait();
    let report = daemon.wait_for_line("the report", |line| line.contains("stopped by SIGTERM"));
    let cut = u8::from(child == "worker" && !kind.ends_the_child());
    assert!(report.contains(&format!("{cut} cut")), "{report}");
    format!("exit {exit}")
}

fn reload(rehearsal: Rehearsal, child: Child, kind: Kind) -> String {
    let old = rehearsal.daemon.worker();
    let mut asking = rehearsal.control();
    let mut control = rehearsal.control();
    // Both are the predecessor's, whoever accepts by then.
    for connection in [&mut asking, &mut control] {
        assert_eq!(connection.get("/livez").expect("it answers").status, 200);
    }
    let (mut client, mut idle) = (rehearsal.connect(), rehearsal.connect());
    assert_eq!(idle.get("/").expect("it serves").status, 200);
    client.ask("/app/slow").expect("it takes a request");
    let exchange = rehearsal.upstream.next_request();
    let load = Load::start(CLIENTS, rehearsal.daemon.address("http"), "/");
    load.advance(100);

    post(&mut asking, "/reload");
    rehearsal.daemon.wait_for_line("that it reloads", |line| line.contains("reloading"));
    inject(&mut control, child, kind);
    let is_deaf = child == "signals" && !kind.ends_the_child();
    let answer = asking.receive();
    if is_deaf {
        // It does not even hear that the reload has succeeded.
        answer.expect_err("the old worker has ended");
    } else {
        let answer =
            answer.unwrap_or_else(|lost| panic!("the reload: {lost}\n{}", rehearsal.daemon.stderr()));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    if kind.ends_the_child() {
        wait_for_the_end_of(&rehearsal.daemon, child, kind);
    }
    load.advance(100);
    let (end, lost) = if is_deaf {
        end_of(&rehearsal.daemon, old, " before it had finished");
        client.receive().expect_err("the old worker has ended");
        ("killed".to_owned(), own_answers(&load.finish()))
    } else {
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().expect("a request in flight goes on").text(), "worth the wait");
        let how = end_of(&rehearsal.daemon, old, ": it has finished");
        for connection in [&mut client, &mut idle] {
            assert_eq!(connection.get("/").expect("a connection follows").status, 200);
        }
        (how.replace("exited with code", "exit"), losses(&load.finish()))
    };
    let Rehearsal { mut daemon, .. } = rehearsal;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0, "the successor knows nothing of it");
    end + &lost
}

/// Waits until the main process has noted the end of a predecessor, and says what it was.
fn end_of(daemon: &Daemon, worker: u32, then: &str) -> String {
    let begins = format!(" worker {worker} ");
    let end = |line: &str| Some(line.split_once(&begins)?.1.split_once(then)?.0.to_owned());
    end(&daemon.wait_for_line("the end of the predecessor", |line| end(line).is_some()))
        .expect("it was found")
}

/// Waits for what the daemon makes of the fault of a child that runs.
fn reaction(rehearsal: &Rehearsal, child: Child, kind: Kind, worker: u32) -> &'static str {
    if kind.ends_the_child() {
        wait_for_the_end_of(&rehearsal.daemon, child, kind);
        rehearsal.wait_for_restarts(child, 1);
        return "restarted";
    }
    let doing = doing(child);
    let line = rehearsal.daemon.wait_for_line("that it is stuck", |line| line.contains("is stuck"));
    assert!(line.contains("ERROR") && line.contains(child) && line.contains(doing), "{line}");
    let status = format!("STATUS=stuck: no heartbeat from {child} (last {doing})");
    rehearsal.daemon.wait_for_notification(&status, |text| text.lines().any(|line| line == status));
    let ended = format!("worker {worker} was ended by signal 6; starting another in 0 ms");
    rehearsal.daemon.wait_for_line(&ended, |line| line.contains(&ended));
    "replaced"
}

fn wait_for_the_end_of(daemon: &Daemon, child: Child, kind: Kind) {
    let said = format!("{child} {}: a fault on demand", kind.verb());
    daemon.wait_for_line(&said, |line| line.contains("ERROR") && line.contains(&said));
}

/// A client that comes after the fault.
fn newcomer(rehearsal: &Rehearsal, came: &str) -> String {
    assert_eq!(rehearsal.connect().get("/").expect("it serves").status, 200);
    came.to_owned()
}

/// The losses of clients under load, as a cell of the matrix has them.
fn losses(account: &Account) -> String {
    if (account.refused, account.dropped, account.closed) == (0, 0, 0) {
        String::new()
    } else {
        format!("; lost: {account}")
    }
}

/// The losses of clients whose worker was ended: nobody is refused, and each loses the answer that it waited for.
fn own_answers(account: &Account) -> String {
    let is_that = account.refused == 0 && account.dropped <= CLIENTS as u64 && account.closed == 0;
    if is_that { String::new() } else { format!("; lost: {account}") }
}

#[test]
fn a_child_that_is_stuck_is_found_out_where_no_manager_has_a_watchdog() {
    let rehearsal = Rehearsal::start("", |_| {});
    let worker = rehearsal.daemon.worker();
    rehearsal.inject("signals", Kind::Hang);
    assert_eq!(reaction(&rehearsal, "signals", Kind::Hang, worker), "replaced");
    newcomer(&rehearsal, "replaced");
}
