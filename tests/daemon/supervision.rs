//! A child that fails is restarted, one that fails too often stops the tree, and all of them stop in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use axum::routing::get;
use steadfast::{BoxError, Child, Daemon, Exit};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};
use tracing::Level;

use crate::client::Lost;
use crate::handlers::{Gate, router};
use crate::service::Service;

/// Counts how often a child was started.
#[derive(Clone, Default)]
struct Starts(Arc<AtomicU32>);

impl Starts {
    /// The number of this start, from 1.
    fn next(&self) -> u32 {
        self.0.fetch_add(1, SeqCst) + 1
    }

    fn so_far(&self) -> u32 {
        self.0.load(SeqCst)
    }
}

/// A service with a child named `worker`.
async fn service<R>(keys: &str, run: impl Fn(Child, u32) -> R + Send + Sync + 'static) -> (Service, Starts)
where
    R: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let starts = Starts::default();
    let counted = starts.clone();
    let add =
        |daemon: Daemon| daemon.router(router()).child("worker", move |child| run(child, counted.next()));
    (Service::start_with_stopped_clock(keys, add).await, starts)
}

async fn worker(service: &Service) -> serde_json::Value {
    let status = service.status().await;
    let children = status["children"].as_array().unwrap().clone();
    children.into_iter().find(|c| c["name"] == "worker").unwrap()
}

// ---------------------------------------------------------------------------
// Failing
// ---------------------------------------------------------------------------

#[tokio::test]
async fn a_child_that_fails_is_restarted_and_the_log_says_why() {
    let (service, _) = service("", async |child, start| {
        if start == 1 {
            return Err("no luck".into());
        }
        child.stopping().await;
        Ok(())
    })
    .await;
    service
        .wait_for("the failure", |e| {
            e.level == Level::ERROR
                && e.field("child") == "worker"
                && e.message.starts_with("worker failed: no luck; restarting it in ")
        })
        .await;
    let status = service
        .wait_for_status("restarted", |s| {
            s["children"][4]["restarts"] == 1 && s["children"][4]["running"] == true
        })
        .await;
    assert_eq!(status["children"][4]["name"], "worker");
    assert_eq!(service.connect().await.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn the_status_tells_what_a_child_waits_for_and_what_it_does() {
    let keys = "supervision.backoff = \"1h\"\nsupervision.backoff_max = \"1h\"\n";
    let queue = Arc::new(Notify::new());
    let waited_for = Arc::clone(&queue);
    let run = move |child: Child, start| {
        let queue = Arc::clone(&waited_for);
        async move {
            if start == 1 {
                return Err("no luck".into());
            }
            child.doing("waiting for the queue");
            queue.notified().await;
            Ok(())
        }
    };
    let (service, _) = service(keys, run).await;
    let is = |state: &'static str| move |s: &serde_json::Value| s["children"][4]["state"] == state;
    let waiting = service.wait_for_status("that it waits", is("waiting")).await;
    assert_eq!(waiting["children"][4].get("heartbeat"), None, "{waiting}");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let running = service.wait_for_status("that it runs", is("running")).await;
    assert_eq!(running["children"][4]["doing"], "waiting for the queue");
    assert!(running["children"][4]["heartbeat"].as_f64().is_some_and(|age| age < 5.0), "{running}");
    queue.notify_one();
    service.wait_for_status("that it has ended", is("ended")).await;
}

#[tokio::test]
async fn a_child_that_panics_is_restarted_and_the_log_says_why() {
    let (service, _) = service("", async |child: Child, start| {
        assert!(start > 2, "start {start} went wrong");
        child.stopping().await;
        Ok(())
    })
    .await;
    for start in [1, 2] {
        let begins = format!("worker panicked: start {start} went wrong; restarting it in ");
        service.wait_for("the panic", |e| e.message.starts_with(&begins)).await;
    }
    assert_eq!(service.connect().await.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_child_that_ends_well_is_not_started_again() {
    let (mut service, starts) = service("", async |_, _| Ok(())).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(starts.so_far(), 1);
    assert_eq!(worker(&service).await["running"], false);
    assert_eq!(service.admin("/readyz").await.status, 200);
    assert_eq!(service.stop().await, Exit::Clean);
}

#[tokio::test]
async fn each_wait_before_a_restart_is_longer_than_the_last_up_to_the_longest() {
    let keys = "supervision.max_restarts = 8\nsupervision.window = \"1h\"\nsupervision.backoff = \"1s\"\nsupervision.backoff_max = \"16s\"\n";
    let (mut service, _) = service(keys, async |_, _| Err("no luck".into())).await;
    assert_eq!(service.exit().await, Exit::Failed);
    let waits: Vec<u64> = service.log.at(Level::ERROR)[..8]
        .iter()
        .map(|e| {
            let wait = e.message.rsplit("restarting it in ").next().unwrap();
            wait.trim_end_matches(" ms").parse().unwrap()
        })
        .collect();
    for (wait, most) in waits.iter().zip([1000, 2000, 4000, 8000, 16000, 16000, 16000, 16000]) {
        assert!((most / 2..=most).contains(wait), "{waits:?}");
    }
}

#[tokio::test]
async fn failing_too_often_stops_the_tree_which_first_finishes_what_is_in_flight() {
    let gate = Gate::new();
    let (fail, failing) = oneshot::channel::<()>();
    let failing = Arc::new(Mutex::new(Some(failing)));
    let route = gate.route();
    let add = |daemon: Daemon| {
        let router = router().route("/gate", route);
        daemon.router(router).child("worker", move |_| {
            let failing = Arc::clone(&failing);
            async move {
                // It holds until the request is there, and never again.
                if let Some(failing) = failing.lock().await.take() {
                    let _ = failing.await;
                }
                Err::<(), BoxError>("no luck".into())
            }
        })
    };
    let keys = "supervision.max_restarts = 2\nsupervision.window = \"60s\"\n";
    let mut service = Service::start_with_stopped_clock(keys, add).await;
    let mut client = service.held(&gate, "/gate").await;

    fail.send(()).unwrap();
    service.wait_for("that it drains", |e| e.message.starts_with("draining")).await;
    assert_eq!(service.admin("/readyz").await.status, 503);
    gate.open();
    let response = client.receive().await.unwrap();
    assert_eq!((response.text(), response.header("connection")), ("passed", Some("close")));
    assert_eq!(service.exit().await, Exit::Failed);
    let errors = service.log.at(Level::ERROR);
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(
        errors[2].message.contains("it was restarted 2 times within 60s: the daemon stops"),
        "{}",
        errors[2].message
    );
    service.wait_for("the report", |e| e.field("cause") == "the failure of worker").await;
}

#[tokio::test]
async fn failing_now_and_then_never_stops_the_tree() {
    let keys = "supervision.max_restarts = 2\nsupervision.window = \"60s\"\n";
    let (service, starts) = service(keys, async |_, _| {
        tokio::time::sleep(Duration::from_secs(45)).await;
        Err("no luck".into())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(starts.so_far() > 50, "{}", starts.so_far());
    assert_eq!(service.admin("/readyz").await.status, 200);
}

// ---------------------------------------------------------------------------
// Stopping
// ---------------------------------------------------------------------------

#[tokio::test]
async fn a_child_is_told_to_stop_when_no_request_needs_it_any_more() {
    let gate = Gate::new();
    let (ask, asked) = mpsc::channel::<oneshot::Sender<&'static str>>(1);
    let asked = Arc::new(Mutex::new(asked));
    let handler_gate = gate.clone();
    let add = |daemon: Daemon| {
        let needs_the_worker = get(async move || {
            handler_gate.pass().await;
            let (answer, answered) = oneshot::channel();
            ask.send(answer).await.expect("the worker is there");
            answered.await.expect("the worker answers")
        });
        daemon.router(router().route("/work", needs_the_worker)).child("worker", move |child| {
            let asked = Arc::clone(&asked);
            async move {
                let mut asked = asked.lock().await;
                loop {
                    tokio::select! {
                        Some(answer) = asked.recv() => answer.send("worked").unwrap(),
                        () = child.stopping() => return Ok::<_, BoxError>(()),
                    }
                }
            }
        })
    };
    let mut service = Service::start_with_stopped_clock("", add).await;
    let mut client = service.held(&gate, "/work").await;
    service.begin_stop().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    gate.open();
    assert_eq!(client.receive().await.unwrap().text(), "worked");
    assert_eq!(service.exit().await, Exit::Clean);
}

#[tokio::test]
async fn a_child_may_take_its_time_to_stop() {
    let (mut service, _) = service("", async |child, _| {
        child.stopping().await;
        tokio::time::sleep(Duration::from_secs(20)).await;
        Ok(())
    })
    .await;
    assert_eq!(service.stop().await, Exit::Clean);
    let took = service.stopped_in();
    assert!((20..21).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test]
async fn a_child_that_does_not_stop_is_cut_at_the_deadline_and_named() {
    let (mut service, _) =
        service("shutdown.deadline = \"4s\"\n", async |_, _| std::future::pending().await).await;
    assert_eq!(service.stop().await, Exit::Cut);
    let took = service.stopped_in();
    assert!((4..6).contains(&took.as_secs()), "{took:?}");
    let cuts = service.log.at(Level::WARN);
    assert_eq!(cuts.len(), 1, "{cuts:?}");
    assert_eq!(cuts[0].message, "cut by the deadline: the child worker");
    assert_eq!(cuts[0].field("child"), "worker");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_child_that_waits_to_be_restarted() {
    let keys = "supervision.backoff = \"1h\"\nsupervision.backoff_max = \"1h\"\n";
    let (mut service, starts) = service(keys, async |_, _| Err("no luck".into())).await;
    service.wait_for("the failure", |e| e.message.starts_with("worker failed")).await;
    assert_eq!(service.stop().await, Exit::Clean);
    let took = service.stopped_in();
    assert!(took < Duration::from_secs(1), "{took:?}");
    // It was started once more, for what it may have begun.
    assert_eq!(starts.so_far(), 2);
}

#[tokio::test]
async fn a_child_that_fails_while_it_stops_is_not_started_again() {
    let (mut service, starts) = service("", async |child, _| {
        child.stopping().await;
        Err("could not finish".into())
    })
    .await;
    service.stop().await;
    assert_eq!(starts.so_far(), 1);
    service.wait_for("the failure", |e| e.message.contains("could not finish")).await;
}

#[tokio::test]
async fn a_child_hears_of_the_stop_only_after_the_last_answer() {
    let (told, tell) = oneshot::channel::<()>();
    let told = Arc::new(std::sync::Mutex::new(Some(told)));
    let (mut service, _) = service("shutdown.linger = \"5s\"\n", move |child, _| {
        let told = Arc::clone(&told);
        async move {
            child.stopping().await;
            let told = told.lock().unwrap().take();
            told.expect("it is told once").send(()).unwrap();
            Ok(())
        }
    })
    .await;
    let mut client = service.connect().await;
    client.get("/").await.unwrap();
    service.begin_stop().await;
    tokio::pin!(tell);
    tokio::select! {
        biased;
        _ = &mut tell => panic!("it was told while an idle connection could still ask"),
        () = tokio::time::sleep(Duration::from_secs(4)) => {}
    }
    client.get("/").await.unwrap();
    assert_eq!(client.receive().await, Err(Lost::Closed));
    tell.await.unwrap();
    assert_eq!(service.exit().await, Exit::Clean);
}
