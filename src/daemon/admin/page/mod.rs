//! The live page: the status for a browser, rendered here alone. Without scripts it is a page of tables that loads itself
//! anew; with them its `<main>` comes again each second, as a server-sent event, for as long as somebody looks. It is
//! rendered once, for all who look.
//!
//! It is one document: its style and script are in it, its policy names them by their hash, and nothing else is loaded
//! or run. It changes nothing, so that a page of another site that gets hold of it (DNS rebinding) can only read.

#[expect(
    clippy::inline_always,
    clippy::trivially_copy_pass_by_ref,
    clippy::unnecessary_wraps,
    clippy::unused_self,
    unreachable_pub,
    reason = "askama and its macro have them so"
)]
mod filters;
mod plot;

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use askama::Template;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::{Stream, stream};
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use self::plot::Plot;
use super::Context;
use crate::daemon::observer::Observer;
use crate::daemon::overview::Row;
use crate::daemon::phase::{Cause, Phase};
use crate::daemon::status::{InFlightRequest, Status};
use crate::printable::counted;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The time between two pictures.
const TICK: Duration = Duration::from_secs(1);
/// The time after which a browser comes again, once this process has ended what it sends.
const RETRY: Duration = Duration::from_secs(1);
/// The most requests in flight that are shown.
const REQUESTS: usize = 100;
/// The most of a method or a path that is shown, in bytes.
const LONGEST: usize = 200;
/// The most who may look at a time: each has a connection of the admin listener for as long as it looks.
const VIEWERS: usize = 32;

/// What all who look at the page share.
#[derive(Debug)]
pub(super) struct Shared {
    fields: Fields,
    /// One for each who may look.
    places: Arc<Semaphore>,
    /// The ticks of all are counted from here, so that all ask for a picture at the same time.
    began: Instant,
    /// The last event that was rendered, and of when: whoever comes first at a tick, or after a change of the phase,
    /// renders it for the others.
    latest: Mutex<Option<(Moment, Bytes)>>,
}

/// The time that a picture is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    tick: u128,
    phase: Phase,
    /// True once this process answers here no more.
    is_last: bool,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            fields: Fields::new(),
            places: Arc::new(Semaphore::new(VIEWERS)),
            began: Instant::now(),
            latest: Mutex::default(),
        }
    }

    /// The event of this moment; none if it cannot be rendered.
    fn event(&self, observer: &Observer, is_last: bool) -> Option<Bytes> {
        // Held while it is rendered: the others wait for it, where they would render the same.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let tick = self.began.elapsed().as_nanos() / TICK.as_nanos();
        let now = Moment { tick, phase: observer.lifecycle.phase(), is_last };
        if let Some((moment, event)) = &*latest
            && *moment == now
        {
            return Some(event.clone());
        }
        let (status, in_flight) = observer.brief_status(REQUESTS, LONGEST);
        let last = is_last.then(|| last_words(&status, observer.lifecycle.cause()));
        let main = rendered(&Main::of(status, in_flight, last))?;
        let event = event(if is_last { "last" } else { "now" }, &main);
        *latest = Some((now, event.clone()));
        Some(event)
    }
}

/// A template's text; `None`, and an event in the log, if it has none.
fn rendered(template: &impl Template) -> Option<String> {
    template.render().inspect_err(|error| tracing::error!("cannot render the page: {error}")).ok()
}

/// A server-sent event (HTML Living Standard, 9.2.5).
fn event(name: &str, html: &str) -> Bytes {
    let mut event = format!("event: {name}\nretry: {}\n", RETRY.as_millis());
    // A carriage return would end a line of the event.
    for line in html.split(['\n', '\r']) {
        // Writing to a string cannot fail.
        let _ = writeln!(event, "data: {line}");
    }
    event.push('\n');
    event.into()
}

/// The fields of the head that go with the page and its events.
#[derive(Clone, Debug)]
struct Fields([(HeaderName, HeaderValue); 4]);

impl Fields {
    /// They are computed once, for each process.
    fn new() -> Self {
        let hash = |text: &str| format!("'sha256-{}'", BASE64.encode(Sha256::digest(text)));
        // `img-src` is for the icon, which is in the page as well.
        let policy = format!(
            "default-src 'none'; style-src {}; script-src {}; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        // Base64 and ASCII words are a field's value.
        let policy = HeaderValue::try_from(policy).unwrap_or(HeaderValue::from_static("default-src 'none'"));
        Self([
            (header::CONTENT_SECURITY_POLICY, policy),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ])
    }
}

/// `GET /`.
pub(super) async fn page(State(context): State<Arc<Context>>) -> Response {
    let (status, in_flight) = context.daemon.observer.brief_status(REQUESTS, LONGEST);
    let page = Page { main: Main::of(status, in_flight, None), style: STYLE, script: SCRIPT };
    let body = match rendered(&page) {
        Some(html) => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response(),
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    };
    (context.page.fields.0.clone(), body).into_response()
}

/// `GET /events`: `now` each second, and at each change of the phase; `last` when this process answers here no more.
/// 503 while there are as many viewers as there may be: the page's script comes again by itself.
pub(super) async fn events(State(context): State<Arc<Context>>) -> Response {
    let fields = context.page.fields.0.clone();
    let body = if let Ok(place) = Arc::clone(&context.page.places).try_acquire_owned() {
        let events = Body::from_stream(Viewer::new(context, place).events());
        ([(header::CONTENT_TYPE, "text/event-stream")], events).into_response()
    } else {
        let retry = [(header::RETRY_AFTER, HeaderValue::from(RETRY.as_secs()))];
        let reason = format!("{VIEWERS} look at the page, and no more may at a time: try again later\n");
        (StatusCode::SERVICE_UNAVAILABLE, retry, reason).into_response()
    };
    (fields, body).into_response()
}

/// One who looks.
struct Viewer {
    context: Arc<Context>,
    tick: Interval,
    phase: watch::Receiver<Phase>,
    has_ended: bool,
    /// Free again when the viewer has gone.
    _place: OwnedSemaphorePermit,
}

impl Viewer {
    fn new(context: Arc<Context>, place: OwnedSemaphorePermit) -> Self {
        let phase = context.daemon.observer.lifecycle.watch();
        // The first tick is now, and the next ones are those of all.
        let mut tick = interval_at(context.page.began, TICK);
        // One who reads slowly gets fewer pictures.
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Self { context, tick, phase, has_ended: false, _place: place }
    }

    fn events(self) -> impl Stream<Item = Result<Bytes, Infallible>> {
        stream::unfold(self, async |mut viewer| {
            let event = viewer.next().await?;
            Some((Ok(event), viewer))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.has_ended {
            return None;
        }
        tokio::select! {
            biased;
            // New connections reach the successor, if there is one.
            () = self.context.closed.cancelled() => self.has_ended = true,
            _ = self.tick.tick() => {}
            // Its sender is part of the context.
            _ = self.phase.changed() => {}
        }
        self.context.page.event(&self.context.daemon.observer, self.has_ended)
    }
}

/// What the page says when this process answers no more.
fn last_words(status: &Status, cause: Option<&Cause>) -> String {
    match (cause, status.report) {
        (Some(cause), _) if cause.is_handover() => {
            format!("Worker {} has handed over because of {cause}.", status.pid)
        }
        (_, Some(report)) => {
            format!("Stopped: {} finished, {} cut.", counted(report.finished, "request"), report.cut)
        }
        _ => "Stopped.".to_owned(),
    }
}

/// The whole document.
#[derive(Template)]
#[template(path = "page.html")]
struct Page {
    main: Main,
    style: &'static str,
    script: &'static str,
}

/// The part of it that comes again and again.
#[derive(Template)]
#[template(path = "main.html")]
struct Main {
    /// The hash of the style and the script that it goes with: by it, a page that outlives an upgrade loads itself anew.
    build: String,
    status: Status,
    says: String,
    tree: Vec<Row>,
    warnings: Vec<String>,
    plots: [Plot; 2],
    /// Requests in flight, also those that are not shown.
    in_flight: u64,
    /// Those that are not.
    more: u64,
}

impl Main {
    /// The status has the oldest of the requests `in_flight`; `last` are the words with which this process ends.
    fn of(status: Status, in_flight: usize, last: Option<String>) -> Self {
        let says = last.unwrap_or_else(|| match (&*status.phase, &status.drain) {
            ("draining", Some(drain)) => format!("Draining because of {}.", drain.cause),
            ("starting", _) => "Starting.".to_owned(),
            ("serving", _) => "Serving.".to_owned(),
            _ => "Stopped.".to_owned(),
        });
        Self {
            build: BASE64.encode(Sha256::new().chain_update(STYLE).chain_update(SCRIPT).finalize()),
            says,
            tree: status.tree(),
            warnings: status.warnings(),
            plots: [Plot::throughput(&status.history), Plot::latency(&status.history)],
            in_flight: in_flight as u64,
            more: in_flight.saturating_sub(REQUESTS) as u64,
            status,
        }
    }

    fn requests(&self) -> impl Iterator<Item = &InFlightRequest> {
        self.status.requests.iter().take(REQUESTS)
    }
}

#[cfg(test)]
mod tests {
    //! The page shows what it is given, and nothing that it is given becomes part of it.

    use super::*;

    fn page(change: impl FnOnce(&mut Status)) -> String {
        let mut status = Status::example();
        change(&mut status);
        let in_flight = status.requests.len();
        Page { main: Main::of(status, in_flight, None), style: STYLE, script: SCRIPT }
            .render()
            .expect("it renders")
    }

    #[test]
    fn what_comes_from_outside_is_text() {
        let hostile = "/<script>alert(1)</script>\"'&\r\u{1b}[31m";
        let html = page(|status| {
            status.requests[0].path = hostile.to_owned();
            status.requests[0].method = hostile.to_owned();
            status.requests[0].peer = hostile.to_owned();
            status.requests[0].id = hostile.to_owned();
            status.children[0].name = hostile.to_owned();
            status.children[0].doing = hostile.to_owned();
            status.predecessors[0].status = hostile.to_owned();
            status.predecessors[0].in_flight = None;
            status.stale_config = Some(hostile.to_owned());
            status.reload_failure = Some(hostile.to_owned());
        });
        assert!(html.matches("&#60;script&#62;alert(1)").count() >= 8, "{html}");
        assert!(!html.contains("alert(1)</script>") && !html.contains(['\r', '\u{1b}']), "{html}");
        assert_eq!(html.matches("<script").count(), 1);
    }

    #[test]
    fn of_many_requests_the_oldest_are_shown_and_the_rest_is_counted() {
        let html = page(|status| status.requests = vec![status.requests[0].clone(); 1203]);
        assert!(html.contains("and 1,103 more"), "{html}");
        assert_eq!(html.matches("/app/export").count(), 100);
    }

    #[test]
    fn every_figure_of_the_status_is_on_it() {
        let html = page(|_| {});
        for shown in [
            "main process 800",
            "worker 830",
            "predecessor 815",
            "1,203",
            "312",
            "18 s left",
            "4.2 ms",
            "/app/*",
            "title=\"4bf92f3577b34da6a3ce929d0e0e4736\">4bf92f35<",
            "stuck",
        ] {
            assert!(html.contains(shown), "{shown} in {html}");
        }
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere_and_no_style_is_out_of_the_policy() {
        let html = page(|_| {});
        for absent in ["style=\"", " onclick", " onload", "src=", "@import", "url(", "https:"] {
            assert!(!html.contains(absent), "{absent} in {html}");
        }
        let Fields([(_, policy), ..]) = Fields::new();
        let policy = policy.to_str().expect("ASCII");
        assert!(
            policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"),
            "{policy}"
        );
    }
}
