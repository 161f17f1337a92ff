//! What restarts, reloads and kills lose, and how long a restart takes: each server as a unit of a real systemd, which
//! boots in a box of its own. The units are those that are shipped, with what is said in `Service`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use steadfast_harness::{Account, Client, Load, Machine, wait_until};

use crate::config::{self, HELLO};
use crate::connection::Target;
use crate::cpu::Work;
use crate::load::{self, Answer};
use crate::programs::{Kind, Program};
use crate::results::{Table, count};
use crate::tls::Certificate;

/// Clients that ask without a pause, and never a second time.
const BUSY: usize = 50;
/// Connections that wait meanwhile.
const IDLE: usize = 100;
/// Time for an event to take effect.
const SETTLING: Duration = Duration::from_secs(1);
/// Answers between an event and the next.
const BETWEEN: u64 = 2_000;
/// Idle connections over which a restart is timed.
const MANY: [usize; 4] = [0, 1_000, 5_000, 15_000];
/// As many of them as come at once.
const AT_ONCE: usize = 100;

/// The address that every unit serves: the box's network is its own.
const HTTP: &str = "127.0.0.1:8080";
/// The one of those that speak TLS, too.
const HTTPS: &str = "127.0.0.1:8443";

const JOURNALD: &str = "systemd-journald.service";

/// What happens to a server while it is busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Restart,
    Reload,
    /// `SIGKILL` to the main process.
    KillMain,
    /// `SIGKILL` to a process that this one has started.
    KillWorker,
}

impl Event {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Restart, "restart"),
        (Self::Reload, "reload"),
        (Self::KillMain, "kill of the main process"),
        (Self::KillWorker, "kill of a worker"),
    ];
}

/// A server as a unit, running in a box.
struct Service<'a> {
    machine: Machine,
    program: &'a Program,
    unit: &'static str,
}

/// What an event cost, for each time that it happened.
struct Cost {
    refused: f64,
    dropped: f64,
    longest: Duration,
    /// Of the idle connections, those that it closed.
    closed: f64,
}

// ---------------------------------------------------------------------------------------------------------------
// The access log
// ---------------------------------------------------------------------------------------------------------------

/// What the access log costs steadfast, each way of it, and journald beside it.
pub(crate) fn measure_access_log(program: &Program, work: &Work, rounds: usize) -> Table {
    const OFF: &str = "access = \"off\"\nslow = \"1h\"\n";
    const FILE: &str = "access = \"all\"\naccess_file = \"/var/log/steadfast/access.log\"\n";
    let service = Service { machine: Machine::boot(), program, unit: unit_of(program.kind) };
    service.install(Path::new(""), None);
    // journald takes all of it.
    service.machine.write(
        format!("/etc/systemd/system/{}.d/log.conf", service.unit),
        "[Service]\nLogRateLimitIntervalSec=0\n",
    );
    service.machine.ok(["systemctl", "daemon-reload"]);
    let mut table =
        Table::new("A small fixed answer, and what becomes of its access", "µs of CPU per request");
    for (point, log) in [
        ("not logged", OFF.to_owned()),
        ("an event in the journal", "access = \"all\"\n".to_owned()),
        ("a combined line in a file", format!("{FILE}access_format = \"combined\"\n")),
        ("a line of JSON in a file", format!("{FILE}access_format = \"json\"\n")),
    ] {
        service.configure(&format!("[log]\n{log}"));
        service.machine.ok(["systemctl", "restart", service.unit]);
        let samples = service.cpu_per_request(work, rounds);
        let (own, journals): (Vec<_>, Vec<_>) = samples.into_iter().unzip();
        table.add(point, vec![(program.name.clone(), own)]);
        if log == "access = \"all\"\n" {
            table.add("the same, of journald", vec![(program.name.clone(), journals)]);
        }
    }
    table
}

impl Service<'_> {
    /// The microseconds that a request costs it, and journald, round by round.
    fn cpu_per_request(&self, work: &Work, rounds: usize) -> Vec<(f64, f64)> {
        let each = u32::try_from(work.requests.div_ceil(work.connections)).expect("it is a small number");
        let requests = f64::from(each) * count(work.connections);
        self.machine.enter_network(|| {
            let target = self.target(None);
            let answer = Arc::new(Answer::of(&target, "/", &work.body));
            let round = |_| {
                let mut load = load::Load::new(&target, &work.paths, &answer);
                load.connect(work.connections, 0);
                load.run(1);
                let before = [self.unit, JOURNALD].map(|unit| self.cpu(unit));
                load.run(each);
                let after = [self.unit, JOURNALD].map(|unit| self.cpu(unit));
                ((after[0] - before[0]) / requests, (after[1] - before[1]) / requests)
            };
            // In the first round heaps grow and caches fill.
            (0..=rounds).map(round).skip(1).collect()
        })
    }

    /// The CPU time that a unit has used so far, in microseconds.
    fn cpu(&self, unit: &str) -> f64 {
        let group = self.machine.show(unit, "ControlGroup");
        let stat = std::fs::read_to_string(self.machine.path(format!("/sys/fs/cgroup{group}/cpu.stat")));
        let stat = stat.expect("the unit runs");
        let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).expect("it has the usage");
        usage.parse().expect("a number")
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Losses
// ---------------------------------------------------------------------------------------------------------------

/// What each event costs each server.
pub(crate) fn measure_losses(programs: &[&Program], peers: &Path, rounds: usize) -> Vec<Table> {
    let mut lost =
        Table::new("Requests that an event loses, of 50 busy clients", "requests per event").counting();
    let mut closed =
        Table::new("Idle connections that an event closes, of 100", "connections per event").counting();
    let mut waits =
        Table::new("The longest that a client waits for an answer, or for its failure", "ms").counting();
    let mut costs: Vec<(String, Vec<Option<Cost>>)> = Vec::new();
    for program in programs {
        let service = Service::start(program, peers, None);
        let of_all = Event::ALL.map(|(event, _)| service.can(event).then(|| service.cost(event, rounds)));
        costs.push((program.name.clone(), of_all.into()));
    }
    for (at, (_, event)) in Event::ALL.iter().enumerate() {
        let samples = |of: fn(&Cost) -> f64| {
            let known = costs.iter().filter_map(|(name, costs)| Some((name.clone(), costs[at].as_ref()?)));
            known.map(|(name, cost)| (name, vec![of(cost)])).collect::<Vec<_>>()
        };
        lost.add(&format!("{event}: refused"), samples(|cost| cost.refused));
        lost.add(&format!("{event}: broken off"), samples(|cost| cost.dropped));
        closed.add(event, samples(|cost| cost.closed));
        waits.add(event, samples(|cost| cost.longest.as_secs_f64() * 1e3));
    }
    vec![lost, closed, waits]
}

impl Service<'_> {
    /// Whether something can happen to it.
    fn can(&self, event: Event) -> bool {
        match event {
            Event::Restart | Event::KillMain => true,
            Event::Reload => self.machine.show(self.unit, "CanReload") == "yes",
            Event::KillWorker => self.worker().is_some(),
        }
    }

    /// A process that its main process has started.
    fn worker(&self) -> Option<String> {
        let main = self.machine.show(self.unit, "MainPID");
        let children = self.machine.run(["cat", &format!("/proc/{main}/task/{main}/children")]);
        children.stdout.split_whitespace().next_back().map(str::to_owned)
    }

    fn cost(&self, event: Event, times: usize) -> Cost {
        let clients = self.machine.enter_network(|| Load::start(BUSY, address(), "/"));
        clients.advance(BETWEEN);
        let before = clients.account();
        let _ = clients.longest_wait();
        let mut closed = 0;
        for _ in 0..times {
            let mut idle = self.connect(IDLE);
            self.happen(event);
            // Some reloads are only begun when `systemctl` returns.
            std::thread::sleep(SETTLING);
            clients.advance(BETWEEN);
            closed += idle.iter_mut().filter_map(|client| (!client.is_open()).then_some(())).count();
        }
        let longest = clients.longest_wait();
        let after = clients.finish();
        let each = |of: fn(&Account) -> u64| {
            let happened = usize::try_from(of(&after) - of(&before)).expect("it is some thousands");
            count(happened) / count(times)
        };
        let closed = count(closed) / count(times);
        Cost {
            refused: each(|account| account.refused),
            dropped: each(|account| account.dropped),
            longest,
            closed,
        }
    }

    fn happen(&self, event: Event) {
        match event {
            Event::Restart => drop(self.machine.ok(["systemctl", "restart", self.unit])),
            Event::Reload => drop(self.machine.ok(["systemctl", "reload", self.unit])),
            Event::KillMain => {
                let main = self.machine.show(self.unit, "MainPID");
                self.machine.ok(["kill", "-KILL", &main]);
                wait_until("another main process", || {
                    let now = self.machine.show(self.unit, "MainPID");
                    (now != "0" && now != main).then_some(())
                });
            }
            Event::KillWorker => {
                let worker = self.worker().expect("it has one");
                self.machine.ok(["kill", "-KILL", &worker]);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The time of a restart
// ---------------------------------------------------------------------------------------------------------------

/// How long `systemctl restart` takes beside idle connections, and how many of them it closes.
pub(crate) fn measure_restarts(programs: &[&Program], peers: &Path, rounds: usize) -> Vec<Table> {
    let mut time = Table::new("systemctl restart", "ms").along("idle connections", false);
    let mut answer = Table::new("From the restart to the next answer", "ms").along("idle connections", false);
    let closed = Table::new("Connections that a restart closes", "connections").counting();
    let mut closed = closed.along("idle connections", false);
    let services: Vec<_> = programs
        .iter()
        .map(|program| {
            let service = Service::start(program, peers, None);
            let target = service.target(None);
            MANY.map(|many| (0..rounds).map(|_| service.restart(&target, many)).collect::<Vec<_>>())
        })
        .collect();
    for (at, many) in MANY.iter().enumerate() {
        let samples = |of: fn(&Restart) -> f64| {
            let all = programs.iter().zip(&services);
            all.map(|(program, restarts)| (program.name.clone(), restarts[at].iter().map(of).collect()))
                .collect()
        };
        time.add(&many.to_string(), samples(|restart| restart.took));
        answer.add(&many.to_string(), samples(|restart| restart.answered));
        closed.add(&many.to_string(), samples(|restart| restart.closed));
    }
    vec![time, answer, closed]
}

/// The same beside as many as there can be, over TLS.
pub(crate) fn measure_restarts_over_tls(
    programs: &[&Program],
    peers: &Path,
    certificate: &Certificate,
    tls: &Arc<ClientConfig>,
    rounds: usize,
) -> Vec<Table> {
    const MOST: usize = MANY[MANY.len() - 1];
    let all: Vec<_> = programs
        .iter()
        .map(|program| {
            let service = Service::start(program, peers, Some(certificate));
            let target = service.target(Some(tls));
            (program, (0..rounds).map(|_| service.restart(&target, MOST)).collect::<Vec<_>>())
        })
        .collect();
    let samples = |of: fn(&Restart) -> f64| {
        let samples = |(program, restarts): &(&&Program, Vec<Restart>)| {
            (program.name.clone(), restarts.iter().map(of).collect())
        };
        all.iter().map(samples).collect::<Vec<_>>()
    };
    let mut time = Table::new(&format!("A restart beside {MOST} idle connections over TLS"), "ms");
    time.add("systemctl restart", samples(|restart| restart.took));
    time.add("to the next answer", samples(|restart| restart.answered));
    let closed = Table::new(&format!("Connections that a restart closes, of {MOST} over TLS"), "connections");
    let mut closed = closed.counting();
    closed.add("idle", samples(|restart| restart.closed));
    vec![time, closed]
}

/// Whether [`measure_restarts_over_tls`] can have a server of this kind: one that keeps its connections, and one that
/// does not.
pub(crate) fn speaks_tls(kind: Kind) -> bool {
    matches!(kind, Kind::Steadfast | Kind::Nginx)
}

/// What a restart costs.
struct Restart {
    /// The milliseconds of `systemctl restart`.
    took: f64,
    /// Those to the next answer.
    answered: f64,
    /// The connections that it closes.
    closed: f64,
}

impl Service<'_> {
    /// Restarts it beside so many connections that have each been answered once.
    fn restart(&self, target: &Target, many: usize) -> Restart {
        self.machine.enter_network(|| {
            // Right after an event a client may meet a process that ends.
            let answer = Arc::new(Answer::await_of(target, "/", HELLO.as_bytes()));
            let mut load = load::Load::new(target, &["/".into()], &answer);
            // Of a unit as shipped, none may wait long for its first request.
            for _ in (0..many).step_by(AT_ONCE) {
                load.connect(AT_ONCE, 0);
                load.run_newest(AT_ONCE);
            }
            let began = Instant::now();
            self.happen(Event::Restart);
            let took = began.elapsed();
            Answer::await_of(target, "/", HELLO.as_bytes());
            let answered = began.elapsed();
            let closed = many - load.keep_open();
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            Restart { took: milliseconds(took), answered: milliseconds(answered), closed: count(closed) }
        })
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The units
// ---------------------------------------------------------------------------------------------------------------

fn address() -> SocketAddr {
    HTTP.parse().expect("it is an address")
}

impl<'a> Service<'a> {
    /// Installs a server in a box and starts it; with a certificate, it serves TLS, too.
    fn start(program: &'a Program, peers: &Path, certificate: Option<&Certificate>) -> Self {
        let machine = Machine::boot();
        let service = Self { machine, program, unit: unit_of(program.kind) };
        let certificate = certificate.map(|certificate| service.place(certificate));
        service.install(peers, certificate.as_ref());
        service.machine.ok(["systemctl", "start", service.unit]);
        service
    }

    /// Copies a certificate to where any service finds it.
    fn place(&self, certificate: &Certificate) -> Certificate {
        let inside = Certificate { chain: "/etc/tls/chain.pem".into(), key: "/etc/tls/key.pem".into() };
        self.machine.copy(&certificate.chain, &inside.chain, "0644");
        self.machine.copy(&certificate.key, &inside.key, "0644");
        inside
    }

    /// Where clients in the box's network find it, with this side of TLS if any.
    fn target(&self, tls: Option<&Arc<ClientConfig>>) -> Target {
        let address = if tls.is_some() { HTTPS } else { HTTP };
        let address = address.parse().expect("it is an address");
        Target { name: self.program.name.clone(), address, tls: tls.cloned() }
    }

    /// So many connections that have each been answered once. Right after an event one may meet a process that ends.
    fn connect(&self, many: usize) -> Vec<Client> {
        let connect = || {
            let mut client = Client::connect(address()).ok()?;
            client.get("/").ok().filter(|answer| answer.body == HELLO.as_bytes())?;
            Some(client)
        };
        self.machine.enter_network(|| (0..many).map(|_| wait_until("a connection", connect)).collect())
    }

    /// Writes steadfast's config, with these sections beside the others.
    fn configure(&self, sections: &str) {
        let config = format!(
            "[http]\nlisten = [\"{HTTP}\"]\nmax_connections = 20000\nrequests_per_connection = 1000000000\n\
             [[route]]\npath = \"/\"\nrespond = \"{HELLO}\"\n{sections}"
        );
        self.machine.write("/etc/steadfast/config.toml", config);
    }

    fn install(&self, peers: &Path, certificate: Option<&Certificate>) {
        let machine = &self.machine;
        let html = "text/html; charset=utf-8";
        // Restarted as steadfast's unit says, where a unit as shipped leaves that to its operator. Descriptors for all.
        let mut drop_in = String::from("LimitNOFILE=524288\nRestart=on-failure\nRestartSec=100ms\n");
        match self.program.kind {
            Kind::Steadfast => {
                let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging");
                machine.install(&self.program.binary, &packaging);
                let https = certificate.map(|certificate| config::steadfast_https(HTTPS, certificate));
                self.configure(&https.unwrap_or_default());
                drop_in.clear();
            }
            Kind::Nginx => {
                self.copy(peers);
                let tls = certificate.map(|certificate| config::nginx_https(HTTPS, certificate));
                let tls = tls.unwrap_or_default();
                machine.write(
                    "/etc/nginx/nginx.conf",
                    format!(
                        "user www-data;\nworker_processes auto;\npid /run/nginx.pid;\n\
                         events {{ worker_connections 20000; }}\n\
                         http {{ access_log off; keepalive_requests 1000000000; server {{ listen {HTTP}; {tls} \
                         location = / {{ default_type \"{html}\"; return 200 \"{HELLO}\"; }} }} }}\n"
                    ),
                );
            }
            Kind::Haproxy => {
                self.copy(peers);
                machine.write("/etc/sysusers.d/haproxy.conf", "u haproxy - - /var/lib/haproxy\n");
                machine.ok(["systemd-sysusers"]);
                machine.write(
                    "/etc/haproxy/haproxy.cfg",
                    format!(
                        "global\n chroot /var/lib/haproxy\n user haproxy\n group haproxy\n daemon\n \
                         maxconn 20000\n no strict-limits\n\
                         defaults\n mode http\n timeout connect 5s\n timeout client 50s\n timeout server 50s\n\
                         frontend front\n bind {HTTP}\n \
                         http-request return status 200 content-type \"{html}\" string \"{HELLO}\"\n"
                    ),
                );
            }
            Kind::Caddy => {
                self.copy(peers);
                machine.write("/etc/sysusers.d/caddy.conf", "u caddy - - /var/lib/caddy\n");
                machine.ok(["systemd-sysusers"]);
                machine.ok(["install", "-d", "-o", "caddy", "-g", "caddy", "/var/lib/caddy"]);
                machine.write(
                    "/etc/caddy/Caddyfile",
                    format!("http://:8080 {{\n header Content-Type \"{html}\"\n respond / `{HELLO}`\n}}\n"),
                );
            }
            Kind::Go => {
                self.write_unit("Type=notify\nExecStart=/usr/bin/server 127.0.0.1:8080 /srv 127.0.0.1:9 0\n");
            }
            Kind::Axum => self.write_unit("Type=notify\nExecStart=/usr/bin/server 127.0.0.1:8080 0\n"),
            Kind::Floor => unreachable!("nobody restarts the floor"),
            // systemd follows the process whose number the file has.
            Kind::Ecdysis => self.write_unit(
                "Type=forking\nPIDFile=/run/server.pid\nExecReload=kill -HUP $MAINPID\n\
                 ExecStart=sh -c '/usr/bin/server 127.0.0.1:8080 /run/server.pid & \
                 until [ -s /run/server.pid ]; do sleep 0.01; done'\n",
            ),
        }
        if !drop_in.is_empty() {
            let file = format!("/etc/systemd/system/{}.d/bench.conf", self.unit);
            machine.write(file, format!("[Unit]\nStartLimitIntervalSec=0\n[Service]\n{drop_in}"));
        }
        machine.ok(["systemctl", "daemon-reload"]);
    }

    /// A unit for a yardstick, which has none.
    fn write_unit(&self, lines: &str) {
        self.machine.copy(&self.program.binary, "/usr/bin/server", "0755");
        self.machine.write("/etc/systemd/system/server.service", format!("[Service]\n{lines}"));
    }

    /// Copies what was unpacked of the peers to where it would have been installed.
    fn copy(&self, peers: &Path) {
        // From outside: the box does not see every folder of this machine.
        for (from, to) in [
            ("usr/sbin", "/usr/sbin"),
            ("usr/bin/caddy", "/usr/bin"),
            ("usr/lib/tmpfiles.d", "/usr/lib/tmpfiles.d"),
            ("lib/systemd/system", "/usr/lib/systemd/system"),
            ("usr/lib/systemd/system", "/usr/lib/systemd/system"),
            ("etc/nginx", "/etc/nginx"),
            ("etc/haproxy", "/etc/haproxy"),
            ("var/lib/nginx", "/var/lib/nginx"),
            ("var/lib/haproxy", "/var/lib/haproxy"),
            ("var/log/nginx", "/var/log/nginx"),
        ] {
            let (from, to) = (peers.join(from), self.machine.path(to));
            if from.exists() {
                let _ = std::fs::create_dir_all(&to);
                let from = if from.is_dir() { from.join(".") } else { from };
                let copied = Command::new("cp").arg("--archive").args([from, to]).status();
                assert!(copied.expect("cp runs").success(), "the peers cannot be copied into the box");
            }
        }
        for library in std::fs::read_dir(&self.program.libraries).into_iter().flatten().flatten() {
            if library.path().is_file() {
                self.machine.copy(
                    &library.path(),
                    Path::new("/usr/lib/peers").join(library.file_name()),
                    "0644",
                );
            }
        }
        self.machine.write("/etc/ld.so.conf.d/peers.conf", "/usr/lib/peers\n");
        self.machine.ok(["ldconfig"]);
        let _ = self.machine.run(["systemd-tmpfiles", "--create"]);
    }
}

fn unit_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Steadfast => "steadfast.service",
        Kind::Nginx => "nginx.service",
        Kind::Haproxy => "haproxy.service",
        Kind::Caddy => "caddy.service",
        Kind::Go | Kind::Axum | Kind::Ecdysis | Kind::Floor => "server.service",
    }
}
