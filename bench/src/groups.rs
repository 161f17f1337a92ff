//! What is measured: each group has a name on the command line, and makes some tables.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::ValueEnum;
use rustls::ClientConfig;
use rustls::client::Resumption;
use steadfast_harness::Machine;
use tempfile::TempDir;

use crate::config::{self, HELLO};
use crate::cpu::{self, Handshakes, Work};
use crate::programs::{Kind, Program};
use crate::results::{Table, count};
use crate::server::{Server, Site};
use crate::tls::{Authority, Certificate};
use crate::{memory, starts, units};

/// The descriptors that this process and each server need.
pub(crate) const DESCRIPTORS: u64 = 20_000;

/// The groups, in the order of RESULTS.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GroupName {
    /// A small fixed answer
    Respond,
    /// Files of 1 KiB, 100 KiB and 10 MiB
    Files,
    /// A small answer and one of 100 KiB from an upstream
    Proxied,
    /// Requests and handshakes over TLS
    Tls,
    /// The small answer, each request logged in a file; and, with root and systemd, in the journal
    Log,
    /// The small answer on 16 to 4,096 connections
    Connections,
    /// The small answer on one of 1 to 10,000 routes
    Routes,
    /// The memory of 15,000 idle connections, plain and over TLS
    Idle,
    /// Starts, and stops of a server that has nothing to do
    Start,
    /// What restarts, reloads and kills lose; needs root and systemd
    Losses,
    /// The time of a restart beside 0 to 15,000 idle connections; needs root and systemd
    Restart,
}

impl fmt::Display for GroupName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value().expect("no group is hidden");
        formatter.write_str(value.get_name())
    }
}

/// The servers to measure, and what they serve.
pub(crate) struct Servers {
    programs: Vec<Program>,
    site: Site,
    /// The files' contents by their name.
    files: Vec<(&'static str, Arc<[u8]>)>,
    authority: Authority,
    /// The servers' certificates: the one that most have today, and an older kind.
    certificate: Certificate,
    certificate_rsa: Certificate,
    /// The folder that the peers' packages are unpacked in.
    peers: PathBuf,
    _folder: TempDir,
    _upstream: Server,
}

impl Servers {
    pub(crate) fn new(floor: &Program, programs: Vec<Program>, peers: PathBuf) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Of a type that every server knows by the name alone.
        let files: Vec<(_, Arc<[u8]>)> =
            [("1k.png", 1 << 10), ("100k.png", 100 << 10), ("10m.png", 10 << 20)]
                .map(|(name, size)| (name, noise(size)))
                .into();
        for (name, contents) in &files {
            let mut file = File::create(folder.path().join(name)).expect("a file can be made");
            file.write_all(contents).expect("a file can be written");
            // A file that may still change has another answer than it has later.
            let aged = SystemTime::now() - Duration::from_secs(60);
            file.set_modified(aged).expect("a file of our own");
        }
        let nobody = ([127, 0, 0, 1], 9).into();
        let mut site = Site {
            files: folder.path().into(),
            upstream: nobody,
            routes: 0,
            access_log: false,
            certificate: None,
        };
        let upstream = Server::start(floor, &site);
        site.upstream = upstream.address();
        let authority = Authority::new();
        Self {
            programs,
            site,
            files,
            certificate: authority.certify(folder.path()),
            certificate_rsa: authority.certify_rsa(folder.path()),
            authority,
            peers,
            _folder: folder,
            _upstream: upstream,
        }
    }

    pub(crate) fn versions(&self) -> BTreeMap<String, String> {
        self.programs.iter().map(|program| (program.name.clone(), program.version.clone())).collect()
    }

    /// The programs among them that can do something.
    fn which(&self, can: impl Fn(Kind) -> bool) -> Vec<&Program> {
        self.programs.iter().filter(|program| can(program.kind)).collect()
    }

    fn start(&self, site: &Site, can: impl Fn(Kind) -> bool) -> Vec<Server> {
        self.which(can).into_iter().map(|program| Server::start(program, site)).collect()
    }

    /// The site with a certificate.
    fn secure(&self, certificate: &Certificate) -> Site {
        Site { certificate: Some(certificate.clone()), ..self.site.clone() }
    }

    /// Clients that speak TLS, and resume none.
    fn client(&self) -> Arc<ClientConfig> {
        self.authority.client(Resumption::disabled())
    }

    fn file(&self, name: &str) -> Arc<[u8]> {
        let found = self.files.iter().find(|(file, _)| *file == name);
        Arc::clone(&found.expect("the file was written").1)
    }
}

/// Bytes that no two places have alike.
fn noise(size: usize) -> Arc<[u8]> {
    let mut state = 1_u64;
    let next = || {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(size).collect()
}

impl GroupName {
    pub(crate) fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    /// The rounds that a group has where so many are asked for. Those that take long have fewer.
    pub(crate) fn rounds(self, asked: usize) -> usize {
        match self {
            Self::Respond | Self::Files | Self::Proxied | Self::Log | Self::Start => asked,
            Self::Tls => asked.div_ceil(2),
            Self::Connections | Self::Routes | Self::Losses | Self::Restart => asked.div_ceil(3),
            Self::Idle => 1,
        }
    }

    /// Measures a group. None where this machine cannot, which is said.
    pub(crate) fn measure(self, servers: &Servers, rounds: usize) -> Option<Vec<Table>> {
        if let (Self::Losses | Self::Restart, Err(reason)) = (self, Machine::available()) {
            eprintln!("skipped: {self}, because {reason}");
            return None;
        }
        Some(match self {
            Self::Respond => vec![respond(servers, rounds)],
            Self::Files => vec![files(servers, rounds)],
            Self::Proxied => vec![proxied(servers, rounds)],
            Self::Tls => tls(servers, rounds),
            Self::Log => log(servers, rounds),
            Self::Connections => vec![connections(servers, rounds)],
            Self::Routes => vec![routes(servers, rounds)],
            Self::Idle => idle(servers),
            Self::Start => starts::measure(&servers.which(is_real), &servers.site, rounds),
            Self::Losses => units::measure_losses(&servers.which(is_real), &servers.peers, rounds),
            Self::Restart => restart(servers, rounds),
        })
    }
}

/// The small answer on 64 connections.
fn small() -> Work {
    Work {
        paths: vec!["/".into()],
        body: HELLO.as_bytes().into(),
        connections: 64,
        requests: 51_200,
        tls: None,
    }
}

fn respond(servers: &Servers, rounds: usize) -> Table {
    let started = servers.start(&servers.site, |_| true);
    let mut table = cpu::table("A small fixed answer");
    let started: Vec<_> = started.iter().collect();
    table.add("46 bytes", cpu::measure(&started, &small(), rounds));
    table
}

fn files(servers: &Servers, rounds: usize) -> Table {
    let can = |kind| matches!(kind, Kind::Steadfast | Kind::Nginx | Kind::Caddy | Kind::Go);
    let started = servers.start(&servers.site, can);
    let started: Vec<_> = started.iter().collect();
    let mut table = cpu::table("Files");
    for (point, name, connections, requests) in
        [("1 KiB", "1k.png", 64, 51_200), ("100 KiB", "100k.png", 64, 19_200), ("10 MiB", "10m.png", 8, 320)]
    {
        let paths = vec![format!("/files/{name}")];
        let work = Work { paths, body: servers.file(name), connections, requests, tls: None };
        table.add(point, cpu::measure(&started, &work, rounds));
    }
    table
}

fn proxied(servers: &Servers, rounds: usize) -> Table {
    let proxies =
        |kind| matches!(kind, Kind::Steadfast | Kind::Nginx | Kind::Haproxy | Kind::Caddy | Kind::Go);
    let started = servers.start(&servers.site, proxies);
    let started: Vec<_> = started.iter().collect();
    let mut table = cpu::table("Proxied requests");
    let small = Work { paths: vec!["/proxied/small".into()], requests: 51_200, ..small() };
    table.add("46 bytes", cpu::measure(&started, &small, rounds));
    let large = Work {
        paths: vec!["/proxied/100k".into()],
        body: servers.file("100k.png"),
        requests: 12_800,
        ..small
    };
    table.add("100 KiB", cpu::measure(&started, &large, rounds));
    table
}

/// The servers that speak TLS here.
fn speaks_tls(kind: Kind) -> bool {
    matches!(kind, Kind::Steadfast | Kind::Nginx | Kind::Haproxy | Kind::Caddy | Kind::Go)
}

/// Requests over TLS on 64 connections, and connections that come for one request each.
fn tls(servers: &Servers, rounds: usize) -> Vec<Table> {
    let started = servers.start(&servers.secure(&servers.certificate), speaks_tls);
    let all: Vec<_> = started.iter().collect();
    let files: Vec<_> = all.iter().copied().filter(|server| server.kind != Kind::Haproxy).collect();
    let small = Work { tls: Some(servers.client()), requests: 25_600, ..small() };
    let file = |name: &'static str, requests| Work {
        paths: vec![format!("/files/{name}")],
        body: servers.file(name),
        requests,
        ..small.clone()
    };
    let mut requests = cpu::table("Over TLS");
    requests.add("a small fixed answer", cpu::measure(&all, &small, rounds));
    requests.add("a file of 1 KiB", cpu::measure(&files, &file("1k.png", 25_600), rounds));
    requests.add("a file of 100 KiB", cpu::measure(&files, &file("100k.png", 9_600), rounds));
    let proxied = Work { paths: vec!["/proxied/small".into()], ..small.clone() };
    requests.add("a small proxied answer", cpu::measure(&all, &proxied, rounds));

    let mut connections = Table::new("A new connection for a small fixed answer", "µs of CPU per connection");
    let mut measure = |point, all: &[&Server], handshakes: Handshakes| {
        connections.add(point, handshakes.measure(all, &servers.authority, rounds));
    };
    measure("without TLS", &all, Handshakes::None);
    measure("a handshake with ECDSA P-256", &all, Handshakes::Full);
    measure("a handshake that resumes", &all, Handshakes::Resumed);
    drop(started);
    let started = servers.start(&servers.secure(&servers.certificate_rsa), speaks_tls);
    measure("a handshake with RSA 2048", &started.iter().collect::<Vec<_>>(), Handshakes::Full);
    vec![requests, connections]
}

/// Whether it is more than the floor, which shows what CPU time the kernel takes, and has nothing to say of anything else.
fn is_real(kind: Kind) -> bool {
    kind != Kind::Floor
}

fn idle(servers: &Servers) -> Vec<Table> {
    let mut tables = memory::measure(&servers.which(is_real), &servers.site);
    let secure = servers.secure(&servers.certificate);
    tables.push(memory::measure_tls(&servers.which(speaks_tls), &secure, &servers.client()));
    tables
}

fn restart(servers: &Servers, rounds: usize) -> Vec<Table> {
    let Servers { peers, certificate, .. } = servers;
    let plain = servers.which(is_real);
    let mut tables = units::measure_restarts(&plain, peers, rounds);
    let secure = servers.which(units::speaks_tls);
    tables.extend(units::measure_restarts_over_tls(&secure, peers, certificate, &servers.client(), rounds));
    tables
}

/// The small answer with a line in a file for each, and how many of these lines there were.
fn log(servers: &Servers, rounds: usize) -> Vec<Table> {
    let logs = |kind| matches!(kind, Kind::Steadfast | Kind::Nginx | Kind::Haproxy | Kind::Caddy);
    let started = servers.start(&Site { access_log: true, ..servers.site.clone() }, logs);
    let all: Vec<_> = started.iter().collect();
    let mut cost = cpu::table("A small fixed answer with the access log on");
    let work = small();
    cost.add("46 bytes", cpu::measure(&all, &work, rounds));
    // Those that write behind their answers have a second to come to the end.
    std::thread::sleep(Duration::from_secs(1));
    let mut lines = Table::new("Requests that stand in the log", "percent").counting();
    let asked = cpu::asked(&work, rounds);
    let share = |server: &Server| count(server.logged()) / count(asked) * 100.0;
    let shares = started.iter().map(|server| (server.name.clone(), vec![share(server)]));
    lines.add("of those that were answered", shares.collect());
    let mut tables = vec![cost, lines];
    match (Machine::available(), servers.which(|kind| kind == Kind::Steadfast).first()) {
        (Ok(()), Some(steadfast)) => tables.push(units::measure_access_log(steadfast, &small(), rounds)),
        (Err(reason), _) => eprintln!("skipped: the access log in the journal, because {reason}"),
        (Ok(()), None) => {}
    }
    tables
}

fn connections(servers: &Servers, rounds: usize) -> Table {
    let started = servers.start(&servers.site, |_| true);
    let started: Vec<_> = started.iter().collect();
    let mut table = cpu::table("A small fixed answer on many connections").along("connections", true);
    for connections in [16, 64, 256, 1024, 4096] {
        let work = Work { connections, requests: 32_768, ..small() };
        table.add(&connections.to_string(), cpu::measure(&started, &work, rounds));
    }
    table
}

fn routes(servers: &Servers, rounds: usize) -> Table {
    let routes = |kind| !matches!(kind, Kind::Ecdysis | Kind::Floor);
    let mut table = cpu::table("A small fixed answer on one of many routes").along("routes", true);
    for routes_each in [1, 10, 100, 1000, 10_000] {
        let site = Site { routes: routes_each, ..servers.site.clone() };
        let started = servers.start(&site, routes);
        let started: Vec<_> = started.iter().collect();
        let all: Vec<_> = config::routes(&site).collect();
        // From the first to the last, for a list may be searched from its beginning.
        let paths = (0..64).map(|n| all[n * all.len() / 64].clone()).collect();
        let work = Work { paths, requests: 25_600, ..small() };
        table.add(&routes_each.to_string(), cpu::measure(&started, &work, rounds));
    }
    table
}
