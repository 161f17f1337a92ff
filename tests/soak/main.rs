//! The soak: load, restarts, reloads, faults and hostile clients, all at random, under a real systemd.
//!
//! All randomness comes from one seed, which is printed: `STEADFAST_SOAK_SEED` repeats a run as far as the order of
//! events goes. `STEADFAST_SOAK_LENGTH` (`90s`, `30m`) says how long it lasts; two thirds of it are the storm, one
//! third is the life of the last process.

mod hostile;
#[expect(dead_code, reason = "what other promises need of an installed steadfast")]
#[path = "../systemd/service.rs"]
mod service;

use std::fmt;
use std::time::{Duration, Instant};

use fastrand::Rng;
use jiff::SignedDuration;
use steadfast_harness::{Account, Client, print_figure, wait_until};

use crate::hostile::Hostile;
use crate::service::{CONFIG, ROUTES, Service, UNIT};

/// The length of a run unless the environment says otherwise.
const LENGTH: Duration = Duration::from_secs(60);

/// The number of clients that make the load.
const CLIENTS: usize = 8;

/// After each event every client is answered by whoever serves then.
const SETTLED: u64 = CLIENTS as u64 * 10;

/// The most descriptors above those of the beginning: the connection that asks, and the one that asked before.
const MORE_DESCRIPTORS: u64 = 2;

/// The most memory that may be added over the last process's life: an allocator keeps some of its peak.
const MORE_BYTES: u64 = 16 << 20;

/// Every child of the binary's tree.
const CHILDREN: [&str; 4] = ["signals", "http", "admin", "systemd"];

/// Something that happens to the daemon.
#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    Restart,
    Reload,
    /// The child ends, and is restarted.
    Ends(&'static str, &'static str),
    /// The child is stuck: the main process ends the worker.
    Sticks(&'static str, &'static str),
    /// Of the main process.
    Kill,
    KillWorker,
}

impl Event {
    fn draw(rng: &mut Rng) -> Self {
        let child = CHILDREN[rng.usize(..CHILDREN.len())];
        match rng.u8(..13) {
            0..3 => Self::Restart,
            3..6 => Self::Reload,
            6..9 => Self::Ends(child, if rng.bool() { "panic" } else { "fail" }),
            9 => Self::Sticks(child, if rng.bool() { "hang" } else { "block" }),
            10 => Self::Kill,
            11 => Self::KillWorker,
            _ => Self::Nothing,
        }
    }

    /// The number of requests that it may cost: that of each client whose worker it ends.
    fn costs(self) -> u64 {
        if matches!(self, Self::Sticks(..) | Self::KillWorker) { CLIENTS as u64 } else { 0 }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Restart => f.write_str("restart"),
            Self::Reload => f.write_str("reload"),
            Self::Ends(child, kind) | Self::Sticks(child, kind) => write!(f, "{child} {kind}"),
            Self::Kill => f.write_str("kill -9 of the main process"),
            Self::KillWorker => f.write_str("kill -9 of the worker"),
        }
    }
}

#[test]
fn nothing_is_lost_but_by_an_injected_fault_and_everything_comes_back() {
    let seed = std::env::var("STEADFAST_SOAK_SEED").ok();
    let seed = seed.map_or_else(|| fastrand::u64(..), |s| s.parse().expect("the seed is a number"));
    let Some(service) = install() else {
        return;
    };
    let length = length();
    print_figure("soak", format_args!("STEADFAST_SOAK_SEED={seed}, {length:?}"));
    let mut rng = Rng::with_seed(seed);

    warm_up(&service);
    let first = Belongings::of(&service);
    storm(&service, &mut rng, length * 2 / 3);
    last_life(&service, &mut rng, length / 3, &first);
}

/// The load of the storm, with an account of each event.
fn storm(service: &Service, rng: &mut Rng, length: Duration) {
    let hostile = service.enter_network(|| Hostile::start(rng.u64(..)));
    let load = service.load(CLIENTS);
    load.advance(SETTLED);
    let began = Instant::now();
    let (mut events, mut cost) = (Vec::new(), 0);
    while began.elapsed() < length {
        let event = Event::draw(rng);
        let before = load.account();
        happen(service, event);
        load.advance(SETTLED + rng.u64(..500));
        let after = load.account();
        events.push(event.to_string());
        let dropped = after.dropped - before.dropped;
        let unexpected = (after.refused, after.closed) != (0, 0) || dropped > event.costs();
        assert!(
            !unexpected,
            "{event} cost {dropped} requests: {after}\nevents: {}\n{}",
            events.join(", "),
            service.journal(UNIT, &["-n", "60"])
        );
        cost += event.costs();
        // So many starts look like a failure to systemd.
        service.ok(["systemctl", "reset-failed", UNIT]);
    }
    let account = load.finish();
    let refused = hostile.finish().refused;
    print_figure("soak, the storm", format_args!("{} events: {}", events.len(), events.join(", ")));
    print_figure(
        "soak, the storm's load",
        format_args!("{account}; the injected faults may cost {cost}; hostile clients refused {refused}"),
    );
    assert_eq!(refused, 0, "a listener that is bound refuses nobody");
}

fn happen(service: &Service, event: Event) {
    let (main, worker) = (service.main_pid(), worker(service));
    match event {
        Event::Nothing => {}
        Event::Restart => _ = service.restart(),
        Event::Reload => _ = service.reload(),
        Event::Ends(child, kind) => inject(service, child, kind),
        Event::Sticks(child, kind) => {
            inject(service, child, kind);
            wait_for_another_worker(service, &worker);
        }
        Event::Kill => {
            service.kill_main();
            service.wait_for_another_main(&main);
        }
        Event::KillWorker => {
            service.ok(["kill", "-KILL", &worker]);
            wait_for_another_worker(service, &worker);
        }
    }
}

/// The process that serves, as it says itself; none while nobody answers.
fn try_worker(service: &Service) -> Option<String> {
    let socket = service.path("/run/steadfast/control.sock");
    let status = Client::connect_unix(socket).ok()?.get("/status").ok()?;
    let status: serde_json::Value = serde_json::from_slice(&status.body).ok()?;
    Some(status["pid"].as_u64()?.to_string())
}

fn worker(service: &Service) -> String {
    wait_until("a worker that answers", || try_worker(service))
}

fn wait_for_another_worker(service: &Service, old: &str) {
    wait_until("another worker", || try_worker(service).filter(|worker| worker != old));
}

/// A worker whose whole life is known: what it counted is compared with what its clients did, what it holds at its
/// end with what it held when it was warm.
fn last_life(service: &Service, rng: &mut Rng, length: Duration, first: &Belongings) {
    service.restart();
    // Counters go on from those of the processes before.
    service.wait_for_one_worker();
    let count = |class: char| -> u64 {
        let metrics = service.admin("/metrics").text();
        let requests = metrics.lines().filter_map(|line| line.strip_prefix("steadfast_http_requests_total{"));
        let codes = requests.filter_map(|line| line.split_once("code=\"")?.1.rsplit_once(' '));
        codes
            .filter(|(code, _)| code.starts_with(class))
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum()
    };
    let child_restarts = || -> u64 {
        let restarts = CHILDREN
            .map(|child| service.metric(&format!("steadfast_child_restarts_total{{child=\"{child}\"}}")));
        restarts.iter().sum()
    };
    let before = (count('2'), count('4'), child_restarts());
    let warm = warm_up(service);
    let early = Belongings::of(service);
    let (main, first_worker) = (service.main_pid(), worker(service));

    let hostile = service.enter_network(|| Hostile::start(rng.u64(..)));
    let load = service.load(CLIENTS);
    let began = Instant::now();
    let mut restarts = 0;
    while began.elapsed() < length {
        inject(service, CHILDREN[rng.usize(..CHILDREN.len())], if rng.bool() { "panic" } else { "fail" });
        restarts += 1;
        load.advance(1000 + rng.u64(..1000));
    }
    let account = load.finish();
    let hostile = hostile.finish();
    wait_until_idle(service);
    let late = Belongings::of(service);

    let now = (service.main_pid(), worker(service));
    assert_eq!(now, (main, first_worker), "{}", service.journal(UNIT, &["-n", "60"]));
    let counted = child_restarts() - before.2;
    let (answered, large) = (count('2') - before.0, count('4') - before.1);
    print_figure(
        "soak, the last worker",
        format_args!(
            "{} requests answered, as many as its clients count; {large} of {} hostile ones; {counted} of {restarts} \
             faults; {early} at its begin, {late} at its end, {first} for the first worker",
            answered, hostile.asked
        ),
    );
    let lost = (account.refused, account.dropped, account.closed, hostile.refused);
    assert_eq!(lost, (0, 0, 0, 0), "{account}");
    // Only the load's requests are answered with 200, and warming up was the process's first work.
    assert_eq!(answered, account.answered + warm.answered);
    // Of the hostile ones some are reset before they are read.
    assert!(large <= hostile.asked, "{large} of {}", hostile.asked);
    // A fault that comes while the child is down strikes with the one before.
    assert!(counted > 0 && counted <= restarts, "{counted} of {restarts}");
    late.assert_close_to(&early);
    assert!(late.descriptors.abs_diff(first.descriptors) <= MORE_DESCRIPTORS, "{late}, not {first}");
    // Two listeners, the control socket, the mailbox's two ends, the last good config, the worker.
    assert_eq!(service.show(UNIT, "NFileDescriptorStore"), "7");
}

/// Load and hostile clients for a moment, and then nobody.
fn warm_up(service: &Service) -> Account {
    let hostile = service.enter_network(|| Hostile::start(0));
    let load = service.load(CLIENTS);
    load.advance(5000);
    let account = load.finish();
    hostile.finish();
    wait_until_idle(service);
    account
}

fn wait_until_idle(service: &Service) {
    wait_until("every connection to be gone", || {
        let status: serde_json::Value = serde_json::from_slice(&service.admin("/status").body).ok()?;
        let connections = status["connections"].as_object()?;
        connections.values().all(|count| *count == 0).then_some(())
    });
}

/// The resources that a worker holds.
#[derive(Debug)]
struct Belongings {
    descriptors: u64,
    bytes: u64,
}

impl Belongings {
    fn of(service: &Service) -> Self {
        Self {
            descriptors: service.metric("process_open_fds"),
            bytes: service.metric("process_resident_memory_bytes"),
        }
    }

    fn assert_close_to(&self, other: &Self) {
        assert!(self.descriptors.abs_diff(other.descriptors) <= MORE_DESCRIPTORS, "{self}, not {other}");
        assert!(self.bytes <= other.bytes + MORE_BYTES, "{self}, not {other}");
    }
}

impl fmt::Display for Belongings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} descriptors and {} KiB", self.descriptors, self.bytes >> 10)
    }
}

/// Installs and starts it, with limits that hostile clients meet soon.
fn install() -> Option<Service> {
    let service = Service::install(file!(), "")?;
    let config = format!(
        "[http]\nlisten = [\"127.0.0.1:8080\"]\nrequests_per_connection = 1000000000\n\
         header_timeout = \"2s\"\nwrite_timeout = \"2s\"\n\
         [admin]\nlisten = [\"127.0.0.1:9090\"]\n\
         [shutdown]\ndeadline = \"2s\"\n\
         [supervision]\nmax_restarts = 1000\nbackoff = \"20ms\"\nbackoff_max = \"20ms\"\n\
         [log]\naccess = \"off\"\n\
         {ROUTES}\n[[route]]\npath = \"/large\"\nrespond = {{ status = 404, body = \"{}\" }}\n",
        "x".repeat(hostile::LARGE)
    );
    service.write(CONFIG, config);
    service.edit_unit("WatchdogSec=4s\nLimitCORE=0");
    service.ok(["systemctl", "start", UNIT]);
    Some(service)
}

fn inject(service: &Service, child: &str, kind: &str) {
    let socket = service.path("/run/steadfast/control.sock");
    let mut control = Client::connect_unix(socket).expect("the control socket is there");
    let request = format!("POST /faults/{child}/{kind} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    control.send(request).expect("the control socket takes a request");
    assert_eq!(control.receive().expect("the control socket answers").status, 204);
}

fn length() -> Duration {
    let Ok(length) = std::env::var("STEADFAST_SOAK_LENGTH") else { return LENGTH };
    let length: SignedDuration = length.parse().expect("the length is a duration: 90s, 30m");
    length.unsigned_abs()
}
