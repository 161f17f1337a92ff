//! The program of another commit, whose parcels this one does not understand, in the place of this one and back.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use steadfast_harness::{Load, Upstream, print_figure, wait_until};

use crate::service::{BINARY, PACKAGING, PROXY, Service, UNIT};

/// The last commit of each earlier version of the parcels, by its number.
const EARLIER: [(u8, &str); 2] =
    [(1, "4478a77598fae7b8b865556cd7ea53106911fda6"), (2, "1ab23d96d84ffe16a9aad362ffaf216a477e0e5c")];

/// The number of clients that make the load.
const CLIENTS: u64 = 10;

/// The number of clients that wait.
const IDLE: usize = 5;

#[test]
fn there_is_a_program_of_each_earlier_version_of_the_parcels() {
    let source = include_str!("../../src/handover/parcel.rs");
    let (_, version) = source.split_once("const VERSION: u8 = ").expect("the version of the parcels");
    let version: u8 = version.split_once(';').and_then(|(number, _)| number.parse().ok()).expect("a number");
    let earlier: Vec<u8> = EARLIER.iter().map(|(version, _)| *version).collect();
    assert_eq!(
        earlier,
        (1..version).collect::<Vec<_>>(),
        "the last commit before the change belongs in EARLIER"
    );
}

#[test]
#[ignore = "builds the program of an earlier commit: `just versions`"]
fn an_upgrade_and_a_downgrade_across_versions_of_the_parcels_refuse_nobody_and_count_what_they_lose() {
    let Some(service) = Service::start(file!(), PROXY) else {
        return;
    };
    let upstream = service.upstream();
    for (version, commit) in EARLIER {
        let earlier = Program::of(commit);
        // Down and up again, by each of the two ways.
        for act in [Service::restart, Service::reload] {
            for (name, program) in [("an earlier", &earlier), ("this", &Program::this())] {
                replace(&service, &upstream, program, act, &format!("version {version}: to {name} program"));
            }
        }
    }
}

/// Installs a program under load, and has it take over with what it cannot read.
fn replace(
    service: &Service,
    upstream: &Upstream,
    program: &Program,
    act: fn(&Service) -> Duration,
    what: &str,
) {
    let load: Load = service.load(CLIENTS.try_into().expect("a small number"));
    load.advance(200);
    let mut idle: Vec<_> = (0..IDLE).map(|_| service.answered()).collect();
    let mut tunnel = service.tunnel(upstream, 0);
    let predecessor = service.worker_pid();

    program.install(service);
    act(service);
    load.advance(200);

    for client in &mut idle {
        client.wait_for_close().unwrap();
    }
    assert!(tunnel.settle().is_err());
    service.wait_for_the_end_of(&predecessor);
    let account = load.finish();
    print_figure(what, &account);
    // Each client may have lost the one connection that it had.
    assert_eq!(account.refused, 0, "{account}");
    assert!(account.dropped + account.closed <= CLIENTS, "{account}");

    let taken_over =
        |kind| service.metric(&format!("steadfast_handover_taken_over_total{{kind=\"{kind}\"}}"));
    let parcels = IDLE as u64 + 1;
    let refused = wait_until("what cannot be read to be counted", || {
        Some(taken_over("refused")).filter(|refused| *refused >= parcels)
    });
    // A program before version 3 cannot open the message, and counts its descriptors: a tunnel has two, and a message without any
    // is one.
    assert!(refused <= parcels + CLIENTS + 5, "{refused}: but for the connections, some notes at most");
    assert_eq!((taken_over("connection"), taken_over("tunnel")), (0, 0));
    let warnings = service.journal(UNIT, &["-p", "warning"]);
    let why = ["of the format is not version", "came without its bytes"];
    assert!(why.iter().any(|why| warnings.contains(why)), "{warnings}");
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
    service.wait_for_store(3);
}

/// A built program, with the files that are shipped with it.
struct Program {
    binary: PathBuf,
    packaging: PathBuf,
}

impl Program {
    fn this() -> Self {
        Self { binary: BINARY.into(), packaging: PACKAGING.into() }
    }

    /// That of a commit of the repository, built where the next run finds it again.
    fn of(commit: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("versions").join(commit);
        let source = folder.join("source");
        std::fs::create_dir_all(&source).expect("the target folder can be written");
        let mut archive = Command::new("git")
            .args(["archive", commit])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("git starts");
        let archived = archive.stdout.take().expect("it is piped");
        ok(Command::new("tar").args(["-x", "-C"]).arg(&source).stdin(archived));
        assert!(archive.wait().expect("git ends").success(), "{commit} is in the history");
        ok(Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--bin", "steadfast", "--target-dir"])
            .arg(folder.join("target"))
            .current_dir(&source)
            // Nobody will debug it.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_INCREMENTAL", "0"));
        Self { binary: folder.join("target/debug/steadfast"), packaging: source.join("packaging") }
    }

    /// In the place of the program that runs, as a package would: the running file stays what it is.
    fn install(&self, service: &Service) {
        service.ok(["mv", "/usr/bin/steadfast", "/usr/bin/steadfast.before"]);
        service.install(&self.binary, &self.packaging);
    }
}

fn ok(command: &mut Command) {
    let status = command.status().expect("it starts");
    assert!(status.success(), "{command:?}: {status}");
}
