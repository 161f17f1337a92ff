//! Events on their way to where they are written.
//!
//! A write to the journal waits for it, and it may be slow, or stopped. So code that logs only puts a copy of the
//! event into a queue that is bounded in events and in bytes; one thread takes events out and hands them to the layer
//! that writes. Events that the full queue refuses are counted. The copy is also where text from outside is made fit
//! to be shown.
//!
//! An event takes the spans that it was logged in with it. The writing thread opens them anew around the event, so
//! that each layer shows them in its own way: text before the message, JSON as objects, the journal as fields.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::field::{Field, ValueSet, Visit, display};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber, Value, dispatcher};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Scope};

use super::bounded::{Entrance, Outlet, bounded};
use super::sink::Destination;
use crate::printable::{excerpt, printable};

/// The events that could not be logged.
static LOST: AtomicU64 = AtomicU64::new(0);

static QUEUE: OnceLock<Queue> = OnceLock::new();

/// An event, and the spans it was logged in, outermost first.
type InSpans = (Copied, Vec<Arc<Copied>>);

/// The layer that copies events into the queue.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    entrance: Entrance<InSpans>,
    /// False where people read the events one after the other, and ids would only be in the way.
    has_ids: bool,
}

impl Queue {
    /// Starts the thread that gives the events to a writer, which must let all of them pass, and knows where they end up.
    /// `open` may wait there. The thread lives as long as the process. Once for a process; `None` ever after.
    pub(super) fn start(
        open: impl FnOnce() -> (Dispatch, Destination) + Send + 'static,
    ) -> std::io::Result<Option<Self>> {
        let (entrance, outlet) = bounded(&LOST, "events", "events");
        let queue = Self { entrance, has_ids: true };
        if QUEUE.set(queue.clone()).is_err() {
            return Ok(None);
        }
        std::thread::Builder::new().name("log".into()).spawn(move || {
            let (writer, destination) = open();
            // A span that closes also closes its parent, through the thread's default subscriber: that must be the
            // writer.
            dispatcher::with_default(&writer, || write(outlet, destination, &writer));
        })?;
        Ok(Some(queue))
    }

    /// The same, for events with their `message_id`s or without.
    pub(super) fn with_ids(self, has_ids: bool) -> Self {
        Self { has_ids, ..self }
    }
}

/// The memory of an event and its spans, in bytes. A span is counted for each of its events.
fn memory(event: &Copied, spans: &[Arc<Copied>]) -> usize {
    event.bytes() + spans.iter().map(|span| span.bytes()).sum::<usize>()
}

impl<S: Subscriber + for<'s> LookupSpan<'s>> Layer<S> for Queue {
    /// Keeps a copy of the span's fields with the span itself.
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut copied = Copied::new(attributes.metadata());
            attributes.record(&mut copied);
            span.extensions_mut().insert(Arc::new(copied));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(copied) = span.extensions_mut().get_mut::<Arc<Copied>>()
        {
            values.record(Arc::<Copied>::make_mut(copied));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut copied = Copied::new(event.metadata());
        event.record(&mut copied);
        if !self.has_ids {
            copied.remove("message_id");
        }
        let scope = context.event_scope(event).into_iter().flat_map(Scope::from_root);
        let spans: Vec<_> =
            scope.filter_map(|span| span.extensions().get::<Arc<Copied>>().cloned()).collect();
        let bytes = memory(&copied, &spans);
        self.entrance.put((copied, spans), bytes);
    }
}

/// The number of events that could not be logged.
pub(crate) fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// Waits until what was logged so far is written, for `limit` at most.
pub(crate) fn flush(limit: Duration) {
    if let Some(queue) = QUEUE.get() {
        queue.entrance.flush(limit);
    }
}

fn write(mut outlet: Outlet<InSpans>, mut destination: Destination, writer: &Dispatch) {
    while let Some(taken) = outlet.take(|(event, spans)| {
        write_event(&event, &spans, writer);
        destination.after_event()
    }) {
        outlet.count(destination.flush());
        // Not by the queue, of which this is the end.
        outlet.say_losses(&taken);
        outlet.count(destination.flush());
        taken.tell_written();
    }
}

fn write_event(event: &Copied, spans: &[Arc<Copied>], writer: &Dispatch) {
    let open = |span: &Arc<Copied>| {
        let id = span.with_values(|values| writer.new_span(&Attributes::new(span.metadata, values)));
        writer.enter(&id);
        id
    };
    let opened: Vec<Id> = spans.iter().map(open).collect();
    event.with_values(|values| writer.event(&Event::new(event.metadata, values)));
    for id in opened.into_iter().rev() {
        writer.exit(&id);
        writer.try_close(id);
    }
}

/// A copy of an event, or of a span: its values by the index of their field.
#[derive(Clone, Debug)]
struct Copied {
    metadata: &'static Metadata<'static>,
    values: Vec<Option<Owned>>,
}

#[derive(Clone, Debug)]
enum Owned {
    Bool(bool),
    F64(f64),
    I64(i64),
    U64(u64),
    Str(String),
    /// Recorded by its `Debug` or `Display`, as a message is.
    Formatted(String),
}

impl Owned {
    fn value(&self) -> Box<dyn Value + '_> {
        match self {
            Self::Bool(v) => Box::new(v),
            Self::F64(v) => Box::new(v),
            Self::I64(v) => Box::new(v),
            Self::U64(v) => Box::new(v),
            Self::Str(v) => Box::new(v.as_str()),
            Self::Formatted(v) => Box::new(display(v)),
        }
    }
}

impl Copied {
    fn new(metadata: &'static Metadata<'static>) -> Self {
        Self { metadata, values: metadata.fields().iter().map(|_| None).collect() }
    }

    fn set(&mut self, field: &Field, value: Owned) {
        if let Some(place) = self.values.get_mut(field.index()) {
            *place = Some(value);
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(field) = self.metadata.fields().field(name)
            && let Some(place) = self.values.get_mut(field.index())
        {
            *place = None;
        }
    }

    /// Lends the values in the form that a subscriber takes.
    fn with_values<T>(&self, take: impl FnOnce(&ValueSet<'_>) -> T) -> T {
        let values: Vec<_> = self.values.iter().map(|value| value.as_ref().map(Owned::value)).collect();
        let values: Vec<_> = values.iter().map(Option::as_deref).collect();
        take(&self.metadata.fields().value_set_all(&values))
    }

    /// Their memory, in bytes.
    fn bytes(&self) -> usize {
        let text = |value: &Owned| match value {
            Owned::Str(text) | Owned::Formatted(text) => text.capacity(),
            Owned::Bool(_) | Owned::F64(_) | Owned::I64(_) | Owned::U64(_) => 0,
        };
        size_of_val(&*self.values) + self.values.iter().flatten().map(text).sum::<usize>()
    }
}

/// A value as it is to be shown. A method, a path, a query and a URI are cut: their client chooses the length.
fn shown(field: &Field, text: &str) -> String {
    match field.name() {
        "method" | "path" | "query" | "uri" => excerpt(text),
        _ => printable(text),
    }
    .into_owned()
}

impl Visit for Copied {
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, Owned::Bool(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, Owned::F64(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, Owned::I64(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, Owned::U64(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, Owned::Str(shown(field, value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, Owned::Formatted(shown(field, &format!("{value:?}"))));
    }
}

#[cfg(test)]
mod tests {
    //! An event is the same after the queue as before it, with the spans it was logged in.

    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::prelude::*;

    use super::*;
    use crate::alone::is_alone;
    use crate::logging::sink::Gathered;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic while writing").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Nothing ends up there, whoever writes.
    fn nowhere() -> Destination {
        Destination::stderr(&Gathered::default())
    }

    fn writer(written: &Written) -> Dispatch {
        let written = written.clone();
        let layer =
            tracing_subscriber::fmt::layer().json().without_time().with_writer(move || written.clone());
        tracing_subscriber::registry().with(layer).into()
    }

    fn log() {
        let outer =
            tracing::info_span!("outer", id = 42_u64, who = %"a client", found = tracing::field::Empty);
        let _outer = outer.enter();
        let _inner = tracing::info_span!("inner", id = "another").entered();
        outer.record("found", true);
        let none: Option<u64> = None;
        tracing::warn!(
            target: "here",
            count = 3_u64,
            below = -1_i64,
            share = 0.5,
            yes = true,
            text = "a \"quoted\" word",
            shown = %format_args!("{}", 7),
            absent = none,
            "lost {} of {}",
            1,
            2,
        );
    }

    #[test]
    fn an_event_is_the_same_after_the_queue_as_before_it() {
        let direct = Written::default();
        dispatcher::with_default(&writer(&direct), log);

        let queued = Written::default();
        let writer = writer(&queued);
        let queue = Queue::start(|| (writer, nowhere()));
        let queue = queue.expect("a thread").expect("the first in this process");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(queue), log);
        flush(Duration::from_secs(60));

        let text = |w: &Written| String::from_utf8(w.0.lock().expect("no panic").clone()).expect("text");
        for part in ["lost 1 of 2", r#""found":true"#, r#""name":"inner""#] {
            assert!(text(&direct).contains(part), "{}", text(&direct));
        }
        assert_eq!(text(&queued), text(&direct));
        assert_eq!(lost(), 0);
    }

    /// A writer that never returns from the first event.
    struct Frozen;

    impl<S: Subscriber> Layer<S> for Frozen {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            loop {
                std::thread::park();
            }
        }
    }

    #[test]
    fn what_waits_for_a_journal_that_stands_still_is_bounded_in_bytes() {
        // A process has one queue.
        if !is_alone(concat!(
            module_path!(),
            "::what_waits_for_a_journal_that_stands_still_is_bounded_in_bytes"
        )) {
            return;
        }
        let queue = Queue::start(|| (tracing_subscriber::registry().with(Frozen).into(), nowhere()));
        let queue = queue.expect("a thread").expect("the first in this process");
        let text = "x".repeat(1 << 20);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(queue), || {
            for _ in 0..100 {
                tracing::info!(text);
            }
        });
        // The first is being written, some 8 MiB wait.
        assert!((90..=93).contains(&lost()), "{} of 100 MiB are lost", lost());
    }
}
