//! What is measured: each group has a name on the command line, and makes some tables.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use clap::ValueEnum;
use tempfile::TempDir;

use crate::Effort;
use crate::config::HELLO;
use crate::cpu::{self, Work};
use crate::programs::{Kind, Program};
use crate::results::Table;
use crate::server::{Server, Site};

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
    /// The small answer, each request logged in a file
    Log,
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
    _folder: TempDir,
    _upstream: Server,
}

impl Servers {
    pub(crate) fn new(floor: &Program, programs: Vec<Program>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Of a type that every server knows by the name alone.
        let files: Vec<(_, Arc<[u8]>)> =
            [("1k.png", 1 << 10), ("100k.png", 100 << 10), ("10m.png", 10 << 20)]
                .map(|(name, size)| (name, noise(size)))
                .into();
        for (name, contents) in &files {
            std::fs::write(folder.path().join(name), contents).expect("a file can be written");
        }
        let nobody = ([127, 0, 0, 1], 9).into();
        let mut site = Site { files: folder.path().into(), upstream: nobody, routes: 0, access_log: false };
        let upstream = Server::start(floor, &site);
        site.upstream = upstream.address;
        Self { programs, site, files, _folder: folder, _upstream: upstream }
    }

    pub(crate) fn versions(&self) -> BTreeMap<String, String> {
        self.programs.iter().map(|program| (program.name.clone(), program.version.clone())).collect()
    }

    fn start(&self, site: &Site, can: impl Fn(Kind) -> bool) -> Vec<Server> {
        let programs = self.programs.iter().filter(|program| can(program.kind));
        programs.map(|program| Server::start(program, site)).collect()
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

    pub(crate) fn measure(self, servers: &Servers, effort: &Effort) -> Vec<Table> {
        match self {
            Self::Respond => vec![respond(servers, effort)],
            Self::Files => vec![files(servers, effort)],
            Self::Proxied => vec![proxied(servers, effort)],
            Self::Log => log(servers, effort),
        }
    }
}

/// The small answer on 64 connections.
fn small() -> Work {
    Work { paths: vec!["/".into()], body: HELLO.as_bytes().into(), connections: 64, requests: 51_200 }
}

fn respond(servers: &Servers, effort: &Effort) -> Table {
    let started = servers.start(&servers.site, |_| true);
    let mut table = cpu::table("A small fixed answer");
    let started: Vec<_> = started.iter().collect();
    table.add("46 bytes", cpu::measure(&started, &small(), effort));
    table
}

fn files(servers: &Servers, effort: &Effort) -> Table {
    let serves = |kind| matches!(kind, Kind::Steadfast | Kind::Nginx | Kind::Caddy | Kind::Go);
    let started = servers.start(&servers.site, serves);
    let started: Vec<_> = started.iter().collect();
    let mut table = cpu::table("Files");
    for (point, name, connections, requests) in
        [("1 KiB", "1k.png", 64, 51_200), ("100 KiB", "100k.png", 64, 19_200), ("10 MiB", "10m.png", 8, 320)]
    {
        let paths = vec![format!("/files/{name}")];
        let work = Work { paths, body: servers.file(name), connections, requests };
        table.add(point, cpu::measure(&started, &work, effort));
    }
    table
}

fn proxied(servers: &Servers, effort: &Effort) -> Table {
    let proxies =
        |kind| matches!(kind, Kind::Steadfast | Kind::Nginx | Kind::Haproxy | Kind::Caddy | Kind::Go);
    let started = servers.start(&servers.site, proxies);
    let started: Vec<_> = started.iter().collect();
    let mut table = cpu::table("Proxied requests");
    let small = Work { paths: vec!["/proxied/small".into()], requests: 51_200, ..small() };
    table.add("46 bytes", cpu::measure(&started, &small, effort));
    let large = Work {
        paths: vec!["/proxied/100k".into()],
        body: servers.file("100k.png"),
        requests: 12_800,
        ..small
    };
    table.add("100 KiB", cpu::measure(&started, &large, effort));
    table
}

/// The small answer with a line in a file for each, and how many of these lines there were.
fn log(servers: &Servers, effort: &Effort) -> Vec<Table> {
    let logs = |kind| matches!(kind, Kind::Steadfast | Kind::Nginx | Kind::Haproxy | Kind::Caddy);
    let started = servers.start(&Site { access_log: true, ..servers.site.clone() }, logs);
    let started: Vec<_> = started.iter().collect();
    let mut table = cpu::table("A small fixed answer with the access log on");
    table.add("46 bytes", cpu::measure(&started, &small(), effort));
    vec![table]
}
