//! The machine keeps account of every request, and lets no client stay for ever, whatever happens in whatever order.

use std::time::Duration;

use axum::http::{Method, Request, StatusCode, Uri};
use proptest::prelude::*;

use super::commands::Command;
use super::machine::{Event, Exchange, Look, Machine, State};
use super::progress::{Progress, Waiting};
use super::{Connection, Slot};
use crate::server::clock::{Clock, Tick};
use crate::server::limits::Limits;
use crate::server::peer::Peer;
use crate::server::registry::Registry;
use crate::server::sweep::STEP;
use crate::server::totals::{Outcome, Totals};

/// Longer than any state may last by [`Limits::default`], one after the other.
const LONG: Duration = Duration::from_secs(300);

/// Something that may happen, in any order.
#[derive(Clone, Copy, Debug)]
enum Happening {
    FirstByte,
    NoByte,
    Head { body: bool },
    BodyRead,
    Decided { status: u16, last: bool },
    Produced,
    Flushed,
    Http2,
    Streams(bool),
    Frame(bool),
    GoAway,
    Close,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        Just(Happening::FirstByte),
        Just(Happening::NoByte),
        any::<bool>().prop_map(|body| Happening::Head { body }),
        Just(Happening::BodyRead),
        (prop_oneof![4 => Just(200_u16), 1 => Just(101)], prop::bool::weighted(0.1))
            .prop_map(|(status, last)| Happening::Decided { status, last }),
        Just(Happening::Produced),
        Just(Happening::Flushed),
        Just(Happening::Http2),
        any::<bool>().prop_map(Happening::Streams),
        any::<bool>().prop_map(Happening::Frame),
        Just(Happening::GoAway),
        prop::bool::weighted(0.1).prop_filter("seldom", |close| *close).prop_map(|_| Happening::Close),
    ]
}

/// A machine, and an account of its requests that is kept beside it.
struct Subject {
    machine: Machine,
    now: Tick,
    heads: u32,
    ended: u32,
}

impl Subject {
    fn new() -> Self {
        let now = Clock::new().now();
        Self { machine: Machine::Parked { since: now }, now, heads: 0, ended: 0 }
    }

    fn on(&mut self, event: Event) -> bool {
        let ended = self.machine.on(event, || self.now).is_some();
        self.ended += u32::from(ended);
        ended
    }

    fn happens(&mut self, happening: Happening) {
        self.now = self.now.after(Duration::from_millis(1));
        match happening {
            Happening::FirstByte => _ = self.on(Event::FirstByte),
            Happening::NoByte => _ = self.on(Event::NoByte),
            Happening::Head { body } if self.takes_a_head() => {
                self.heads += 1;
                let exchange = Exchange::new(Method::GET, Uri::from_static("/"), body);
                self.on(Event::Head(Box::new(exchange)));
            }
            // hyper reads no head in this state.
            Happening::Head { .. } => {}
            Happening::BodyRead => _ = self.on(Event::BodyRead),
            Happening::Decided { status, last } => {
                let status = StatusCode::from_u16(status).expect("a status");
                self.on(Event::Decided { status, last });
            }
            Happening::Produced => _ = self.on(Event::Produced),
            Happening::Flushed => _ = self.on(Event::Flushed),
            Happening::Http2 => _ = self.on(Event::Http2),
            Happening::Streams(open) => _ = self.on(Event::Streams(open)),
            Happening::Frame(begun) => _ = self.on(Event::Frame(begun)),
            Happening::GoAway => _ = self.on(Event::GoAway),
            Happening::Close => _ = self.on(Event::Close),
        }
    }

    fn takes_a_head(&self) -> bool {
        match &self.machine {
            Machine::Reading { .. } | Machine::Parked { .. } | Machine::Discarding { .. } => true,
            Machine::Flushing { exchange, next } => next.is_none() && !exchange.body_unread,
            _ => false,
        }
    }

    fn in_flight(&self) -> u32 {
        match &self.machine {
            Machine::Answering { .. } | Machine::Tunnel { .. } | Machine::Flushing { next: None, .. } => 1,
            Machine::Flushing { next: Some(_), .. } => 2,
            _ => 0,
        }
    }
}

/// The counters of a client that never does anything again: it is waited for wherever it can be.
fn silent_client(state: State) -> Progress {
    let progress = Progress::new();
    progress.begin(u64::MAX);
    match state {
        State::Answering => progress.set_waiting(Waiting::RequestBody),
        State::Flushing => progress.write_blocked(),
        _ => {}
    }
    progress
}

proptest! {
    #[test]
    fn every_request_that_begins_ends_once(happenings in prop::collection::vec(happening(), 0..60)) {
        let mut subject = Subject::new();
        for happening in happenings {
            subject.happens(happening);
            prop_assert_eq!(subject.heads, subject.ended + subject.in_flight(), "after {:?}", happening);
            prop_assert_eq!(subject.machine.exchange().is_some(), subject.in_flight() > 0);
        }
        while subject.on(Event::End(Outcome::Cut)) {}
        prop_assert_eq!(subject.heads, subject.ended);
        prop_assert_eq!(subject.machine.state(), State::Closed);
    }

    #[test]
    fn no_state_lasts_for_a_client_that_never_does_anything_again(
        happenings in prop::collection::vec(happening(), 0..60),
        leaving: bool,
    ) {
        let limits = Limits { tunnel_idle_timeout: Some(Duration::from_secs(60)), ..Limits::default() };
        let mut subject = Subject::new();
        for happening in happenings {
            subject.happens(happening);
        }
        // Each has limits of its own, as a request has.
        subject.on(Event::Streams(false));
        let end = subject.now.after(LONG);
        let command = if leaving { Command::Finish } else { Command::Serve };
        while subject.now < end && subject.machine.state() != State::Closed {
            let progress = silent_client(subject.machine.state());
            let look = Look {
                now: subject.now,
                passed: STEP,
                command,
                answered: subject.ended > 0,
                progress: &progress,
                limits: &limits,
            };
            let due = subject.machine.due(&look);
            // As the connection's task does it.
            match due {
                None => {}
                Some(Command::TimeOut) if subject.machine.state() == State::Reading => _ = subject.on(Event::Close),
                Some(Command::TimeOut) if subject.machine.state() == State::Http2 => {
                    while subject.on(Event::End(Outcome::Stalled)) {}
                }
                Some(Command::Finish) if subject.machine.state() == State::Http2 => {
                    _ = subject.on(Event::GoAway);
                }
                Some(Command::TimeOut) => {
                    subject.on(Event::Decided { status: StatusCode::REQUEST_TIMEOUT, last: true });
                    subject.on(Event::Produced);
                }
                Some(Command::Finish | Command::Drop) => while subject.on(Event::End(Outcome::Stalled)) {},
                Some(command) => prop_assert!(false, "the sweep gave {:?}", command),
            }
            subject.now = subject.now.after(STEP);
        }
        prop_assert_eq!(subject.machine.state(), State::Closed, "it stayed for {:?}", LONG);
        prop_assert_eq!(subject.heads, subject.ended);
    }
}

/// Without this the property above could be that of a machine which closes at once.
#[test]
fn a_state_lasts_until_its_limit() {
    let limits = Limits::default();
    let clock = Clock::new();
    let progress = Progress::new();
    let since = clock.now();
    for (mut machine, answered, limit, due) in [
        (Machine::Parked { since }, false, limits.header_timeout, Command::Finish),
        (Machine::Parked { since }, true, limits.keepalive_timeout, Command::Finish),
        (Machine::Reading { since, idle: since }, false, limits.header_timeout, Command::TimeOut),
        (Machine::Closing { since }, true, Duration::from_secs(2), Command::Drop),
    ] {
        let mut at = |after: Duration| {
            let now = since.after(after);
            let command = Command::Serve;
            machine.due(&Look { now, passed: STEP, command, answered, progress: &progress, limits: &limits })
        };
        assert_eq!(at(limit.saturating_sub(Duration::from_micros(1))), None);
        assert_eq!(at(limit), Some(due));
    }
}

/// Whoever begins to ask in time has the time of a head; whoever has begun again and again, and asked nothing, has not.
#[test]
fn a_head_has_its_time_after_any_idleness_and_no_idleness_lasts_for_what_comes_to_nothing() {
    let limits = Limits::default();
    let progress = Progress::new();
    let idle = Clock::new().now();
    for (answered, idleness) in [(true, limits.keepalive_timeout), (false, limits.header_timeout)] {
        let end = idle.after(idleness);
        for (since, due) in [
            (idle, idle.after(limits.header_timeout)),
            (end, end.after(limits.header_timeout)),
            (end.after(limits.header_timeout / 2), end.after(limits.header_timeout)),
        ] {
            let mut machine = Machine::Reading { since, idle };
            let mut at = |now| {
                let command = Command::Serve;
                machine.due(&Look {
                    now,
                    passed: STEP,
                    command,
                    answered,
                    progress: &progress,
                    limits: &limits,
                })
            };
            assert_eq!(at(due.before(Duration::from_micros(1))), None);
            assert_eq!(at(due), Some(Command::TimeOut));
        }
    }
}

/// Otherwise parts of records would keep a client from being the first that has to go.
#[test]
fn a_client_is_without_a_request_since_it_was_idle_and_not_since_it_has_begun_again() {
    let registry = Registry::new(Totals::unobserved());
    let clock = Clock::new();
    let idle = clock.now();
    let machine = Machine::Reading { since: idle.after(STEP), idle };
    let slot = Slot { id: 0, thread: 0 };
    let connection = Connection::new(slot, Peer::Unix, false, registry, None, machine, 1);
    assert_eq!(connection.without_request_since(), Some(idle));
}

/// The seconds for which a client that moves one byte in each is borne with.
fn endures_a_trickle(connection: &Connection, limits: &Limits, trickle: impl Fn(&Progress)) -> u64 {
    let mut now = connection.registry.clock().now();
    for look in 0..8000 {
        if look % 4 == 0 {
            trickle(connection.progress());
        }
        now = now.after(STEP);
        connection.look(now, STEP, limits);
        if connection.commands().strongest() > Command::Serve {
            return look / 4;
        }
    }
    panic!("it is borne with for ever");
}

/// Otherwise whoever has uploaded or downloaded something once had ten times the grace at each later request.
#[test]
fn what_a_client_has_moved_before_earns_it_no_time_for_another_request() {
    let limits = Limits::default();
    let trickles: [fn(&Progress); 2] = [
        |progress| {
            progress.add_received(1);
            progress.set_waiting(Waiting::RequestBody);
        },
        |progress| {
            progress.add_sent(1);
            progress.write_blocked();
        },
    ];
    let grace = limits.min_rate_grace.as_secs();
    for pipelined in [false, true] {
        for trickle in trickles {
            let registry = Registry::new(Totals::unobserved());
            let machine = Machine::Parked { since: registry.clock().now() };
            let slot = Slot { id: 0, thread: 0 };
            let connection = Connection::new(slot, Peer::Unix, false, registry, None, machine, 0);
            let request = Request::post("/").body(()).expect("a request");
            connection.progress().add_received(1 << 20);
            if pipelined {
                connection.head(&request, 0);
                connection.produced();
                connection.head(&request, 1000);
            }
            connection.progress().add_sent(1 << 20);
            if pipelined {
                assert_eq!(connection.flushed(), None);
            } else {
                connection.head(&request, 1000);
            }
            let endured = endures_a_trickle(&connection, &limits, trickle);
            assert!((grace..2 * grace).contains(&endured), "{endured} s, pipelined: {pipelined}");
        }
    }
}

/// The head of a pipelined request may be there before the answer to an upload has been read.
#[test]
fn a_head_that_comes_while_an_answer_is_flushed_has_its_turn_afterwards() {
    let mut subject = Subject::new();
    for happening in [
        Happening::FirstByte,
        Happening::Head { body: true },
        Happening::Decided { status: 200, last: false },
        Happening::Produced,
        Happening::BodyRead,
        Happening::Head { body: false },
    ] {
        subject.happens(happening);
    }
    assert_eq!((subject.machine.state(), subject.in_flight()), (State::Flushing, 2));
    subject.happens(Happening::Flushed);
    assert_eq!((subject.machine.state(), subject.in_flight(), subject.ended), (State::Answering, 1, 1));
    for happening in
        [Happening::Decided { status: 200, last: false }, Happening::Produced, Happening::Flushed]
    {
        subject.happens(happening);
    }
    assert_eq!((subject.machine.state(), subject.in_flight(), subject.ended), (State::Parked, 0, 2));
}
