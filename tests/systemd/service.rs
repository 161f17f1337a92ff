//! An installed steadfast, as its operator sees it.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::path::Path;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use steadfast_harness::{
    Client, Exchange, Failure, Load, Machine, Output, Response, Tunnel, Upstream, wait_until, wait_with,
};

/// The descriptors in systemd's store beside one for each listener: the mailbox's two ends, the last good config, and the
/// channel to the one worker.
const KEPT: usize = 4;

/// The unit under test.
pub(crate) const UNIT: &str = "steadfast.service";

/// The address that the daemon serves. The box's network is the test's alone.
const HTTP: &str = "127.0.0.1:8080";

/// The address that it answers its operator on.
const ADMIN: &str = "127.0.0.1:9090";

/// The config that the shipped unit reads.
pub(crate) const CONFIG: &str = "/etc/steadfast/config.toml";

/// The routes of the embedded default.
pub(crate) const ROUTES: &str = r#"
[[route]]
path = "/"
respond = "<h1>Hello World</h1>"

[[route]]
path = "/*"
status = true
"#;

/// The files that are shipped with the binary.
pub(crate) const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging");

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_steadfast");

/// A box with steadfast installed, and perhaps running.
pub(crate) struct Service {
    machine: Machine,
}

impl Deref for Service {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

/// The course of a stop.
pub(crate) struct Stop {
    /// From the call of `systemctl stop` to its return.
    pub(crate) took: Duration,
    /// The output of `systemctl stop`.
    pub(crate) output: Output,
}

impl Service {
    /// Installs steadfast and writes its config: the two listeners, then `rest`,
    /// which may open further tables, and then the routes of the embedded default.
    pub(crate) fn install(file: &str, rest: &str) -> Option<Self> {
        let machine = Machine::boot_or_skip(file)?;
        // A unit that nothing refers to is forgotten as soon as it has stopped, and how it stopped with it.
        machine.write("/etc/systemd/system/operator.target", format!("[Unit]\nAfter={UNIT}\n"));
        machine.install(Path::new(BINARY), Path::new(PACKAGING));
        machine.ok(["systemctl", "start", "operator.target"]);
        let service = Self { machine };
        service.configure(rest);
        Some(service)
    }

    /// What a package has installed, or will install, in a box.
    pub(crate) fn of(machine: Machine) -> Self {
        Self { machine }
    }

    /// Installs and starts it.
    pub(crate) fn start(file: &str, rest: &str) -> Option<Self> {
        let service = Self::install(file, rest)?;
        service.ok(["systemctl", "start", UNIT]);
        Some(service)
    }

    /// The same with lines of the operator's own in the unit.
    pub(crate) fn start_with_unit(file: &str, rest: &str, lines: &str) -> Option<Self> {
        let service = Self::install(file, rest)?;
        service.edit_unit(lines);
        service.ok(["systemctl", "start", UNIT]);
        Some(service)
    }

    /// The same as [`Self::start`], with an upstream where [`PROXY`] leads.
    pub(crate) fn start_with_upstream(file: &str, rest: &str) -> Option<(Self, Upstream)> {
        let service = Self::start(file, &format!("{rest}{PROXY}"))?;
        let upstream = service.upstream();
        Some((service, upstream))
    }

    pub(crate) fn configure(&self, rest: &str) {
        // No connection is closed for having asked often: what closes is what a test looks for.
        let http = format!("[http]\nlisten = [\"{HTTP}\"]\nrequests_per_connection = 1000000000\n");
        self.write(CONFIG, format!("{http}[admin]\nlisten = [\"{ADMIN}\"]\n\n{rest}\n{ROUTES}"));
    }

    /// Changes the unit as `systemctl edit` does.
    pub(crate) fn edit_unit(&self, lines: &str) {
        self.write(format!("/etc/systemd/system/{UNIT}.d/test.conf"), format!("[Service]\n{lines}\n"));
        self.ok(["systemctl", "daemon-reload"]);
    }

    /// Copies a shipped drop-in to where it says itself.
    pub(crate) fn add_drop_in(&self, name: &str) {
        let shipped = Path::new(PACKAGING).join("systemd/drop-ins").join(name);
        self.copy(&shipped, format!("/etc/systemd/system/{UNIT}.d/{name}"), "0644");
        self.ok(["systemctl", "daemon-reload"]);
    }

    /// Begins `systemctl stop` and returns when the daemon says that it drains.
    pub(crate) fn begin_stop<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
    ) -> ScopedJoinHandle<'scope, Stop> {
        self.begin(scope, Self::stop)
    }

    /// Begins what waits for a drain, and returns when the daemon says that it drains.
    pub(crate) fn begin<'scope, T: Send + 'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        act: impl FnOnce(&Self) -> T + Send + 'scope,
    ) -> ScopedJoinHandle<'scope, T> {
        let under_way = scope.spawn(|| act(self));
        self.wait_for_drain();
        under_way
    }

    /// Does something while a stop waits for what is in flight. Returns how the stop went: it succeeded.
    pub(crate) fn stop_meanwhile(&self, act: impl FnOnce()) -> Stop {
        thread::scope(|scope| {
            let stop = self.begin_stop(scope);
            assert!(!stop.is_finished(), "it waits for nothing");
            act();
            let stop = stop.join().expect("a stop does not panic");
            assert!(stop.output.status.success(), "{:?}", stop.output);
            stop
        })
    }

    /// `systemctl stop`, timed.
    pub(crate) fn stop(&self) -> Stop {
        let began = Instant::now();
        let output = self.run(["systemctl", "stop", UNIT]);
        Stop { took: began.elapsed(), output }
    }

    /// `systemctl restart`, which succeeds; timed.
    pub(crate) fn restart(&self) -> Duration {
        let began = Instant::now();
        self.ok(["systemctl", "restart", UNIT]);
        began.elapsed()
    }

    /// `systemctl reload`, which succeeds; timed.
    pub(crate) fn reload(&self) -> Duration {
        let began = Instant::now();
        let output = self.run(["systemctl", "reload", UNIT]);
        assert!(output.status.success(), "{output:?}\n{}", self.journal(UNIT, &[]));
        began.elapsed()
    }

    /// Has systemd forget how often it has started the unit: so many starts in a minute look like a failure to it.
    pub(crate) fn reset_failed(&self) {
        self.ok(["systemctl", "reset-failed", UNIT]);
    }

    /// Ten restarts and ten reloads, with something after each.
    pub(crate) fn replace_twenty_times(&self, mut then: impl FnMut(&str)) {
        for (what, next) in [("restart", Self::restart as fn(&Self) -> _), ("reload", Self::reload)] {
            for number in 1..=10 {
                self.reset_failed();
                next(self);
                then(&format!("{what} {number}"));
            }
        }
    }

    /// Ends the main process as a crash does.
    pub(crate) fn kill_main(&self) {
        self.ok(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT]);
    }

    /// Ends the current worker as a crash does.
    pub(crate) fn kill_worker(&self) {
        self.ok(["kill", "-KILL", &self.worker_pid()]);
    }

    /// The process that systemd supervises.
    pub(crate) fn main_pid(&self) -> String {
        self.show(UNIT, "MainPID")
    }

    /// The process that serves.
    pub(crate) fn worker_pid(&self) -> String {
        // One that hands over may have the last word.
        let serving = wait_until("a worker to serve", || {
            Some(self.control_status()?).filter(|s| s["phase"] == "serving")
        });
        serving["pid"].to_string()
    }

    /// The workers that finish what they had in flight: each one's last word on its state.
    pub(crate) fn predecessors(&self) -> Vec<String> {
        let status = self.control_status().expect("the control socket answers");
        let predecessors = status["predecessors"].as_array().expect("a list");
        predecessors.iter().map(|one| one["status"].as_str().expect("a text").to_owned()).collect()
    }

    /// Returns when so many workers finish what they had in flight beside the one that serves.
    pub(crate) fn wait_for_predecessors(&self, count: usize) {
        let are_there = || {
            let predecessors = self.predecessors();
            (predecessors.len() == count && predecessors.iter().all(|p| p.starts_with("draining")))
                .then_some(())
        };
        wait_with(are_there, || {
            format!("{count} predecessors to drain: {:?}\n{}", self.predecessors(), self.journal(UNIT, &[]))
        });
    }

    /// What `steadfast status --json` shows; none from a worker that has ended meanwhile. Needs no program in the box.
    fn control_status(&self) -> Option<Value> {
        let mut client = Client::connect_unix(self.path("/run/steadfast/control.sock")).ok()?;
        serde_json::from_slice(&client.get("/status").ok()?.body).ok()
    }

    /// Every process of the service.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        let group = self.show(UNIT, "ControlGroup");
        let file = self.path(format!("/sys/fs/cgroup{group}/cgroup.procs"));
        // Read in the box: elsewhere the processes have other numbers.
        if group.is_empty() || !file.exists() {
            return BTreeSet::new();
        }
        let listed = self.run(["cat", &format!("/sys/fs/cgroup{group}/cgroup.procs")]).stdout;
        listed.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Returns when a process of the box has ended.
    pub(crate) fn wait_for_the_end_of(&self, process: impl Display) {
        wait_until(&format!("process {process} to end"), || (!self.runs(&process)).then_some(()));
    }

    /// True if there is such a process in the box.
    pub(crate) fn runs(&self, process: impl Display) -> bool {
        self.path(format!("/proc/{process}")).exists()
    }

    /// Returns when another worker serves than this one, which has been told to end, and returns its process.
    pub(crate) fn wait_for_another_worker(&self, worker: impl Display) -> u32 {
        // Until then it may take a connection and not answer any more.
        self.wait_for_the_end_of(&worker);
        self.worker_pid().parse().expect("a number")
    }

    /// The unit has a main process and a worker, or soon has.
    pub(crate) fn wait_for_one_worker(&self) {
        let pair = [self.main_pid(), self.worker_pid()].map(|pid| pid.parse().expect("a number"));
        wait_until("all but the main process and its worker to end", || {
            (self.processes() == pair.into()).then_some(())
        });
    }

    /// systemd's store holds so many listeners, and nothing but what a service with one worker needs, or soon does.
    pub(crate) fn wait_for_store(&self, listeners: usize) {
        let expected = (KEPT + listeners).to_string();
        wait_until(&format!("the store to hold {expected} descriptors"), || {
            (self.show(UNIT, "NFileDescriptorStore") == expected).then_some(())
        });
    }

    /// Returns when the journal has this text so many times, and returns the journal.
    pub(crate) fn wait_for_journal(&self, text: &str, times: usize) -> String {
        let journal = || self.journal(UNIT, &[]);
        wait_with(
            || Some(journal()).filter(|journal| journal.matches(text).count() >= times),
            || format!("{text:?} in the journal:\n{}", journal()),
        )
    }

    /// Returns when systemd has replaced this main process by another that serves.
    pub(crate) fn wait_for_another_main(&self, pid: &str) {
        wait_until("systemd to start another main process", || {
            // In this order: between two there is none, and the unit was active a moment ago.
            let now = self.main_pid();
            (now != pid && now != "0" && self.show(UNIT, "ActiveState") == "active").then_some(())
        });
    }

    /// Clients that keep the daemon busy.
    pub(crate) fn load(&self, clients: usize) -> Load {
        self.enter_network(|| Load::start(clients, address(HTTP), "/"))
    }

    /// The same with this request, and up to `depth` of them on their way at a time.
    pub(crate) fn load_of(&self, clients: usize, request: &str, depth: usize) -> Load {
        self.enter_network(|| Load::pipelining(clients, address(HTTP), request, depth))
    }

    /// A tunnel through [`PROXY`], to an upstream that gets no other request meanwhile.
    pub(crate) fn tunnel(&self, upstream: &Upstream, number: usize) -> Tunnel {
        let (client, exchange) = self.ask_for_tunnel(upstream);
        let [client, upstream] = agree_to_tunnel(client, exchange);
        Tunnel::new(number, client, upstream)
    }

    /// A request for a tunnel, unanswered.
    pub(crate) fn ask_for_tunnel(&self, upstream: &Upstream) -> (Client, Exchange) {
        let mut client = self.connect();
        client.send(UPGRADE).expect("the daemon takes a request");
        (client, upstream.next_request())
    }

    /// A value of the admin listener's metrics.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        // A worker that has not heard yet what the one before has counted leaves the counters out.
        wait_until(&format!("a value of {series}"), || {
            let metrics = self.admin("/metrics").text();
            let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
            Some(value.parse().expect("a number"))
        })
    }

    /// A total of `/status`: of the process that serves.
    pub(crate) fn total(&self, name: &str) -> u64 {
        let status: Value = serde_json::from_slice(&self.admin("/status").body).expect("it is JSON");
        status["totals"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status:#}"))
    }

    fn wait_for_drain(&self) {
        wait_until("the status text to say that it drains", || {
            self.show(UNIT, "StatusText").starts_with("draining").then_some(())
        });
    }

    /// A connection to the daemon that has answered nothing yet.
    pub(crate) fn connect(&self) -> Client {
        self.try_connect().expect("steadfast accepts connections")
    }

    /// A connection to the daemon that has answered a request.
    pub(crate) fn answered(&self) -> Client {
        let mut client = self.connect();
        assert_eq!(client.get("/").expect("it is answered").status, 200);
        client
    }

    /// A request that the upstream has yet to answer.
    pub(crate) fn in_flight(&self, upstream: &Upstream, path: &str) -> (Client, Exchange) {
        let mut client = self.connect();
        client.ask(path).expect("the daemon takes a request");
        (client, upstream.next_request())
    }

    pub(crate) fn try_connect(&self) -> Result<Client, Failure> {
        self.enter_network(|| Client::connect(address(HTTP)))
    }

    /// A connection to the admin listener.
    pub(crate) fn connect_to_admin(&self) -> Client {
        self.enter_network(|| Client::connect(address(ADMIN))).expect("the admin listener accepts")
    }

    /// One answer of the admin listener.
    pub(crate) fn admin(&self, path: &str) -> Response {
        // A worker that hands over may take a connection and close it: those of this listener are not carried.
        wait_until("the admin listener to answer", || self.connect_to_admin().get(path).ok())
    }

    /// An upstream in the box, where [`PROXY`] leads.
    pub(crate) fn upstream(&self) -> Upstream {
        self.enter_network(|| Upstream::on(self.listen_upstream()))
    }

    /// A listener in the box, where [`PROXY`] leads.
    pub(crate) fn listen_upstream(&self) -> TcpListener {
        self.enter_network(|| TcpListener::bind(UPSTREAM).expect("the port is free"))
    }

    /// The stop left the unit as a success does, with this exit status.
    pub(crate) fn assert_stopped_with(&self, status: u8) {
        let state = ["ActiveState", "Result", "ExecMainStatus"].map(|name| self.show(UNIT, name));
        assert_eq!(state, ["inactive", "success", &status.to_string()], "\n{}", self.journal(UNIT, &[]));
    }
}

/// The address of the upstream of [`PROXY`].
const UPSTREAM: &str = "127.0.0.1:3000";

/// Asks the upstream for another protocol.
const UPGRADE: &str =
    "GET /app/numbers HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: numbers\r\n\r\n";

/// The upstream makes a request a tunnel: the client's end and the upstream's.
pub(crate) fn agree_to_tunnel(mut client: Client, mut exchange: Exchange) -> [TcpStream; 2] {
    exchange.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: numbers\r\n\r\n");
    let head = client.receive_head().expect("the upgrade is answered");
    assert_eq!(head.status, 101);
    [client.into_stream().expect("it is a TCP connection"), exchange.into_stream()]
}

/// A route to [`Service::upstream`].
pub(crate) const PROXY: &str = "[[route]]\npath = \"/app/*\"\nproxy = \"http://127.0.0.1:3000\"\n";

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a constant address")
}
