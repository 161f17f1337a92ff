//! The program of another commit, whose parcels this one does not understand, in the place of this one and back.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use steadfast_harness::{Load, Upstream, print_figure, wait_until, wait_with};

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
        let earlier = Lost { number: by_descriptors, why: "the message came without its bytes" };
        let this = Lost { number: by_connections, why: "the message cannot be decrypted" };
        let programs = [("an earlier", Program::of(commit), earlier), ("this", Program::this(), this)];
        // Down and up again, by each of the two ways.
        for act in [Service::restart, Service::reload] {
            for (name, program, lost) in &programs {
                let what = format!("version {version}: to {name} program");
                replace(&service, &upstream, program, act, lost, &what);
            }
        }
    }
}

/// What a program makes of the message of another.
struct Lost {
    /// The number that it may count as refused, of so many connections and so many tunnels.
    number: fn([u64; 2]) -> RangeInclusive<u64>,
    /// The beginning of what it says.
    why: &'static str,
}

/// A program before version 3 knows nothing of a message that it cannot open. It counts the descriptors, of which a tunnel has
/// two; and one for a message without any, which is what the worker has counted: once, and again if that has become more.
fn by_descriptors([connections, tunnels]: [u64; 2]) -> RangeInclusive<u64> {
    let descriptors = connections + 2 * tunnels;
    descriptors + 1..=descriptors + 2
}

/// This program has no key for the message of an earlier one, but reads how many connections are in it.
fn by_connections([connections, tunnels]: [u64; 2]) -> RangeInclusive<u64> {
    connections + tunnels..=connections + tunnels
}

/// Installs a program under load, and has it take over with what it cannot read.
fn replace(
    service: &Service,
    upstream: &Upstream,
    program: &Program,
    act: fn(&Service) -> Duration,
    lost: &Lost,
    what: &str,
) {
    let (stops, told) = (handed_over(service).len(), told_to_be_lost(service, lost.why));
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

    let handed_over = wait_until("the predecessor's report", || handed_over(service).get(stops).copied());
    let [connections, tunnels] = handed_over;
    assert!((IDLE as u64..=IDLE as u64 + CLIENTS).contains(&connections) && tunnels == 1, "{handed_over:?}");
    let number = (lost.number)(handed_over);
    let taken_over =
        |kind| service.metric(&format!("steadfast_handover_taken_over_total{{kind=\"{kind}\"}}"));
    let refused = wait_until("what cannot be read to be counted", || {
        Some(taken_over("refused")).filter(|refused| refused >= number.start())
    });
    assert!(number.contains(&refused), "{what}: {refused} of {handed_over:?}");
    assert_eq!((taken_over("connection"), taken_over("tunnel")), (0, 0));
    wait_with(
        || (told_to_be_lost(service, lost.why) - told >= refused).then_some(()),
        || format!("{what}: {refused} to be told of in\n{}", service.journal(UNIT, &["-p", "warning"])),
    );
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
    service.wait_for_store(3);
}

/// The numbers of the connections and of the tunnels that each worker has handed over, by its last word.
fn handed_over(service: &Service) -> Vec<[u64; 2]> {
    let numbers = |line: &str| {
        let (_, counts) = line.split_once("; handed over ")?;
        let numbers: Vec<u64> = counts.split(' ').filter_map(|word| word.parse().ok()).collect();
        numbers.try_into().ok()
    };
    service.journal(UNIT, &[]).lines().filter_map(numbers).collect()
}

/// The number of connections that the warnings say are lost, for this reason.
fn told_to_be_lost(service: &Service, why: &str) -> u64 {
    let number = |line: &str| {
        let (number, reason) = line.strip_prefix("closed ")?.split_once(" from the predecessor: ")?;
        if !reason.starts_with(why) {
            return None;
        }
        number.split(' ').next()?.parse::<u64>().ok()
    };
    service.journal(UNIT, &["-p", "warning"]).lines().filter_map(number).sum()
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
