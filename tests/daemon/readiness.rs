//! READY, the phase and `/readyz` wait for the children that hold them back.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use steadfast::{BoxError, Child, Daemon, Exit};
use steadfast_harness::{Client, Signal};
use tokio::sync::Semaphore;
use tracing::Level;

use crate::handlers::router;
use crate::process::{config, connect, example};
use crate::service::Service;

/// A service whose child `worker` holds it back and runs `run`, with the number of its start.
async fn service<R>(keys: &str, run: impl Fn(Child, u32) -> R + Send + Sync + 'static) -> Service
where
    R: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let starts = Arc::new(AtomicU32::new(0));
    let add = |daemon: Daemon| {
        let run = move |child| run(child, starts.fetch_add(1, SeqCst) + 1);
        daemon.router(router()).child_with_readiness("worker", run)
    };
    Service::begin_with_stopped_clock(keys, add).await
}

fn has_served(service: &Service) -> bool {
    service.log.events().iter().any(|e| e.message.starts_with("serving"))
}

#[tokio::test]
async fn nothing_is_served_before_a_child_that_holds_it_back_is_ready() {
    let gate = Arc::new(Semaphore::new(0));
    let wait = Arc::clone(&gate);
    let mut service = service("", move |child, _| {
        let wait = Arc::clone(&wait);
        async move {
            let _ = wait.acquire().await;
            child.ready();
            child.stopping().await;
            Ok(())
        }
    })
    .await;
    let ready = service.admin("/readyz").await;
    assert_eq!((ready.status, ready.text()), (503, "starting\n"));
    // A client waits, as before the start of a process that takes another's place.
    let mut client = service.connect().await;
    client.ask("/").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(service.status().await["totals"]["requests"], 0);
    assert!(!has_served(&service));

    gate.add_permits(1);
    assert_eq!(client.receive().await.unwrap().status, 200);
    service.wait_for("that it serves", |e| e.message.starts_with("serving")).await;
    assert_eq!(service.admin("/readyz").await.status, 200);
    drop(client);
    assert_eq!(service.stop().await, Exit::Clean);
}

#[tokio::test]
async fn a_child_that_fails_before_it_is_ready_is_restarted_and_holds_on_until_it_is() {
    let mut service = service("", async |child, start| {
        if start < 3 {
            return Err("not yet".into());
        }
        child.ready();
        child.stopping().await;
        Ok(())
    })
    .await;
    service.wait_for("that it serves", |e| e.message.starts_with("serving")).await;
    assert_eq!(service.log.at(Level::ERROR).len(), 2);
    assert_eq!(service.stop().await, Exit::Clean);
}

#[tokio::test]
async fn a_child_that_ends_before_it_is_ready_has_failed() {
    let mut service = service("supervision.max_restarts = 1\n", async |_, _| Ok(())).await;
    assert_eq!(service.exit().await, Exit::Failed);
    let errors = service.log.at(Level::ERROR);
    assert!(errors[0].message.starts_with("worker ended before it was ready"), "{errors:?}");
    assert!(!has_served(&service));
}

#[tokio::test]
async fn a_child_that_is_never_ready_does_not_hold_up_a_stop() {
    let mut service = service("", async |child, _| {
        child.stopping().await;
        Ok(())
    })
    .await;
    service.admin("/readyz").await;
    assert_eq!(service.stop().await, Exit::Clean);
    assert!(service.stopped_in() < Duration::from_secs(1));
    assert!(!has_served(&service));
}

#[tokio::test]
async fn a_child_that_fails_after_it_was_ready_does_not_take_readiness_back() {
    let failed = Arc::new(Semaphore::new(0));
    let fail = Arc::clone(&failed);
    let service = service("", move |child, start| {
        let fail = Arc::clone(&fail);
        async move {
            if start == 1 {
                child.ready();
                let _ = fail.acquire().await;
                return Err("no luck".into());
            }
            child.stopping().await;
            Ok(())
        }
    })
    .await;
    service.wait_for("that it serves", |e| e.message.starts_with("serving")).await;
    failed.add_permits(1);
    service.wait_for("the failure", |e| e.message.starts_with("worker failed")).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(service.admin("/readyz").await.status, 200);
}

/// The gate that the worker of `troubled` comes to, and waits at.
struct Gate {
    listener: UnixListener,
    /// The folder of its socket.
    _folder: tempfile::TempDir,
}

impl Gate {
    fn worker(&self) -> UnixStream {
        let (worker, _) = self.listener.accept().expect("the worker comes");
        worker
    }
}

/// `troubled`, held back by a worker that waits to be let through this gate.
fn held_back() -> (steadfast_harness::Daemon, Gate) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gate.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon = steadfast_harness::Daemon::spawn_program(example("troubled"), &[], &config(""), |command| {
        command.env("CHILD", "worker").env("TROUBLE", "waits at the gate").env("GATE", &path);
    });
    (daemon, Gate { listener, _folder: folder })
}

#[test]
fn ready_is_not_said_to_the_manager_before_a_child_that_holds_it_back_is_ready() {
    let (mut daemon, gate) = held_back();
    let mut worker = gate.worker();
    let admin = || connect(&daemon, "admin").get("/readyz").unwrap().status;
    daemon.wait_for_line("the admin listener", |line| line.contains("for admin"));
    assert_eq!(admin(), 503);
    let said_ready = || daemon.notifications().iter().any(|n| n.text.contains("READY=1"));
    assert!(!said_ready());
    worker.write_all(b"!").unwrap();
    daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
    assert_eq!(admin(), 200);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    // The worker's end of the line is closed with it.
    assert_eq!(worker.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_stop_while_a_child_holds_it_back_is_a_clean_one_and_ready_is_never_said() {
    let (mut daemon, gate) = held_back();
    let _worker = gate.worker();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), 0);
    assert!(!daemon.notifications().iter().any(|n| n.text.contains("READY=1")));
}

#[test]
fn a_reload_is_served_by_the_old_process_until_the_children_of_the_new_one_are_ready() {
    let (mut daemon, gate) = held_back();
    gate.worker().write_all(b"!").unwrap();
    daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
    let mut asking = Client::connect_unix(daemon.control_socket()).unwrap();
    asking.send("POST /reload HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n").unwrap();

    // The new process's worker: it runs, and nothing else of that process is to be seen.
    let mut worker = gate.worker();
    let took_over = || daemon.stderr().0.iter().any(|line| line.contains("takes over"));
    for _ in 0..20 {
        assert_eq!(connect(&daemon, "http").get("/").unwrap().status, 200);
        assert_eq!(connect(&daemon, "admin").get("/readyz").unwrap().status, 200);
    }
    assert!(!took_over());

    worker.write_all(b"!").unwrap();
    let answer = asking.receive().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    daemon.wait_for_line("that it took over", |line| line.contains("takes over"));
    assert_eq!(answer.text().split(' ').nth(1).unwrap(), daemon.worker().to_string());
    assert_eq!(connect(&daemon, "http").get("/").unwrap().status, 200);
    daemon.signal(Signal::TERM);
    // The end of its worker's line is that of the process's own work.
    assert_eq!(worker.read(&mut [0]).unwrap(), 0);
    assert_eq!(daemon.wait(), 0);
}
