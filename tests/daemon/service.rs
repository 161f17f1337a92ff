//! The daemon within the test's own process.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use steadfast::{Config, Daemon, Exit};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::client::{Client, Response};
use crate::handlers::Gate;

/// A running daemon on the test's own runtime. It listens on unix sockets, where what one side writes the other can
/// read at once: so a stopped clock never runs ahead of the bytes.
pub(crate) struct Service {
    pub(crate) log: Log,
    folder: TempDir,
    patience: Duration,
    stop: Option<oneshot::Sender<()>>,
    running: JoinSet<Exit>,
    _subscriber: DefaultGuard,
}

impl Service {
    /// Runs a daemon with these keys (`http.body_limit = "1KiB"`) beside its listeners, and what `add` adds to it.
    /// Returns when it serves.
    pub(crate) async fn start(keys: &str, add: impl FnOnce(Daemon) -> Daemon) -> Self {
        Self::run(keys, add, Duration::from_secs(60)).await
    }

    /// The same with a clock that stands while anyone has anything to do, and else jumps to what is next. Needs a
    /// runtime of one thread.
    pub(crate) async fn start_with_stopped_clock(keys: &str, add: impl FnOnce(Daemon) -> Daemon) -> Self {
        tokio::time::pause();
        Self::run(keys, add, Duration::from_secs(24 * 3600)).await
    }

    /// The same, and returns when it listens: it may be long until it serves.
    pub(crate) async fn begin_with_stopped_clock(keys: &str, add: impl FnOnce(Daemon) -> Daemon) -> Self {
        tokio::time::pause();
        let service = Self::spawn(keys, add, Duration::from_secs(24 * 3600));
        service.wait_for("that it listens", |e| e.field("child") == "admin").await;
        service
    }

    async fn run(keys: &str, add: impl FnOnce(Daemon) -> Daemon, patience: Duration) -> Self {
        let service = Self::spawn(keys, add, patience);
        service.wait_for("that it serves", |e| e.message.starts_with("serving")).await;
        service
    }

    fn spawn(keys: &str, add: impl FnOnce(Daemon) -> Daemon, patience: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = |name| folder.path().join(name).display().to_string();
        let config = format!(
            "http.listen = [\"unix:{}\"]\nadmin.listen = [\"unix:{}\"]\n{keys}",
            socket("http.sock"),
            socket("admin.sock")
        );
        let config = Config::parse(&config, "the test").unwrap_or_else(|error| panic!("{error}"));
        let log = Log::default();
        let subscriber = tracing_subscriber::registry().with(log.clone());
        let subscriber = tracing::subscriber::set_default(subscriber);
        let (stop, stopped) = oneshot::channel::<()>();
        let daemon = add(Daemon::new(config)).stop_when(async {
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let mut running = JoinSet::new();
        running.spawn(daemon.run());
        Self { log, folder, patience, stop: Some(stop), running, _subscriber: subscriber }
    }

    /// A folder of this test's own; the listeners' sockets are in it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn http_socket(&self) -> PathBuf {
        self.folder().join("http.sock")
    }

    /// A new connection to the http child.
    pub(crate) async fn connect(&self) -> Client {
        self.try_connect().await.expect("the service accepts")
    }

    /// A connection whose request, at this path, has arrived at a gate.
    pub(crate) async fn held(&self, gate: &Gate, path: &str) -> Client {
        let mut client = self.connect().await;
        client.ask(path).await;
        gate.arrived().await;
        client
    }

    pub(crate) async fn try_connect(&self) -> io::Result<Client> {
        let address = format!("unix:{}", self.http_socket().display());
        Client::connect(&address, self.patience).await
    }

    /// One answer of the admin child.
    pub(crate) async fn admin(&self, path: &str) -> Response {
        let address = format!("unix:{}", self.folder().join("admin.sock").display());
        let mut client = Client::connect(&address, self.patience).await.expect("the admin child accepts");
        client.get(path).await.expect("the admin child answers")
    }

    /// The answer of `/status`.
    pub(crate) async fn status(&self) -> Value {
        serde_json::from_slice(&self.admin("/status").await.body).expect("the status is JSON")
    }

    /// Looks at `/status` until it satisfies `wanted`.
    pub(crate) async fn wait_for_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let status = self.status().await;
                if wanted(&status) {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(self.patience, wait).await {
            Ok(status) => status,
            Err(Elapsed { .. }) => panic!("never {what}: {:#}", self.status().await),
        }
    }

    /// Waits for an event, among those that have been already too.
    pub(crate) async fn wait_for(&self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let mut events = self.log.0.subscribe();
        let found = timeout(self.patience, events.wait_for(|all| all.iter().any(&wanted))).await;
        let Ok(Ok(all)) = found else {
            panic!("never heard {what} in:\n{}", self.log.text());
        };
        all.iter().find(|e| wanted(e)).expect("it was there").clone()
    }

    /// Asks for a stop, and returns when it has begun.
    pub(crate) async fn begin_stop(&mut self) {
        let stop = self.stop.take().expect("a service is stopped once");
        stop.send(()).expect("the daemon still runs");
        self.wait_for("that it drains", |e| e.message.starts_with("draining")).await;
    }

    /// Waits for its end.
    pub(crate) async fn exit(&mut self) -> Exit {
        match timeout(self.patience, self.running.join_next()).await {
            Ok(exit) => exit.expect("it runs").expect("it does not panic"),
            Err(Elapsed { .. }) => panic!("it runs on:\n{}", self.log.text()),
        }
    }

    /// The time that the stop took, by its report. The rest is done by another thread, for which a stopped clock does
    /// not wait.
    pub(crate) fn stopped_in(&self) -> Duration {
        let events = self.log.events();
        let reports: Vec<_> = events.iter().filter(|e| e.message.starts_with("stopped by")).collect();
        assert_eq!(reports.len(), 1, "{}", self.log.text());
        Duration::from_micros(reports[0].field("duration_usec").parse().expect("a number"))
    }

    /// True if it has not ended, although it could have.
    pub(crate) async fn still_runs(&mut self) -> bool {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.running.try_join_next().is_none()
    }

    /// Asks for a stop, and waits for its end.
    pub(crate) async fn stop(&mut self) -> Exit {
        self.begin_stop().await;
        self.exit().await
    }
}

/// The number of connections in `/status`, whatever they are doing.
pub(crate) fn open_connections(status: &Value) -> u64 {
    let by_state = status["connections"].as_object().expect("connections by their state");
    by_state.values().map(|count| count.as_u64().expect("a number")).sum()
}

/// The events of one service.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<watch::Sender<Vec<Event>>>);

/// An event that was logged.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) level: Level,
    pub(crate) message: String,
    pub(crate) fields: BTreeMap<&'static str, String>,
}

impl Event {
    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Log {
    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.borrow().clone()
    }

    /// The events at this level.
    pub(crate) fn at(&self, level: Level) -> Vec<Event> {
        self.events().into_iter().filter(|e| e.level == level).collect()
    }

    fn text(&self) -> String {
        self.events().iter().fold(String::new(), |mut text, e| {
            let _ = writeln!(text, "{} {} {:?}", e.level, e.message, e.fields);
            text
        })
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if !event.metadata().target().starts_with("steadfast") {
            return;
        }
        let mut heard =
            Event { level: *event.metadata().level(), message: String::new(), fields: BTreeMap::new() };
        event.record(&mut heard);
        self.0.send_modify(|events| events.push(heard));
    }
}

impl Visit for Event {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.fields.insert(field.name(), value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}
