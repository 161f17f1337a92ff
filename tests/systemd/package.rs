//! The Debian package: it is installed, upgraded under load, removed and purged, as its operator does it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use steadfast_harness::{Account, Client, Machine, files_below, print_figure, wait_until};

use crate::service::{BINARY, CONFIG, ROUTES, Service, UNIT};

/// The clients that keep the daemon busy.
const CLIENTS: usize = 50;

/// Two packages that differ in nothing but their version.
struct Packages {
    older: PathBuf,
    newer: PathBuf,
}

impl Packages {
    /// Packages of the binary under test, built once; none where a tool is missing, which is said.
    fn built() -> Option<&'static Self> {
        static BUILT: OnceLock<Option<Packages>> = OnceLock::new();
        let build = || {
            let missing = ["cargo-deb", "dpkg", "dpkg-shlibdeps"].into_iter().find(|tool| !is_in_path(tool));
            if let Some(tool) = missing {
                let required =
                    std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
                assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but there is no `{tool}` in PATH");
                // Past the capture that the test runner puts around `eprintln!`.
                let _ =
                    writeln!(std::io::stderr(), "skipped: {}, because there is no `{tool}` in PATH", file!());
                return None;
            }
            Some(Self { older: package("0.1.0-1"), newer: package("0.1.0-2") })
        };
        BUILT.get_or_init(build).as_ref()
    }
}

fn is_in_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(tool).exists())
}

/// The package of the binary under test in this version. It has a target folder of its own, in which the binary is
/// taken for a release: so nothing is built, and no package that somebody has built is replaced.
fn package(version: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("package");
    let binary = target.join("release/steadfast");
    fs::create_dir_all(binary.parent().unwrap()).unwrap();
    fs::copy(BINARY, &binary).unwrap();
    let package = target.join(format!("steadfast_{version}.deb"));
    let output = Command::new("cargo-deb")
        .args([
            "--no-build",
            "--no-strip",
            "--offline",
            "--locked",
            "--fast",
            "--compress-type=gz",
            "--compress-system",
        ])
        .args(["--deb-version", version, "--output"])
        .arg(&package)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", &target)
        .output()
        .expect("cargo-deb starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    package
}

/// A box, and the packages.
fn start(file: &str) -> Option<(Service, &'static Packages)> {
    let packages = Packages::built()?;
    let machine = Machine::boot_or_skip(file)?;
    // The image of a container has the first, so that no service is started in it; a machine has not. Without the second,
    // no package waits for the index of the whole manual.
    machine.ok(["rm", "-f", "/usr/sbin/policy-rc.d", "/var/lib/man-db/auto-update"]);
    Some((Service::of(machine), packages))
}

impl Service {
    /// `dpkg --unpack`, which succeeds: what is left to do is `dpkg --configure`.
    fn unpack(&self, package: &Path) {
        self.copy(package, "/tmp/steadfast.deb", "0644");
        self.ok(["dpkg", "--unpack", "/tmp/steadfast.deb"]);
    }

    /// `dpkg --install`, which succeeds. Returns what it said.
    fn dpkg(&self, package: &Path) -> String {
        self.copy(package, "/tmp/steadfast.deb", "0644");
        let output = self.run(["dpkg", "--install", "/tmp/steadfast.deb"]);
        assert!(output.status.success(), "{output:?}\n{}", self.journal(UNIT, &[]));
        self.ok(["rm", "/tmp/steadfast.deb"]);
        output.stdout + &output.stderr
    }

    /// What the main process and its worker run is what is installed, or soon is.
    fn assert_up_to_date(&self) {
        for process in [self.main_pid(), self.worker_pid()] {
            self.wait_for_the_installed_program(&process);
        }
    }

    /// Returns when a process runs what is installed: a main process becomes it once its new worker serves.
    fn wait_for_the_installed_program(&self, process: &str) {
        wait_until(&format!("process {process} to be the installed program"), || {
            // That of another inode is "(deleted)".
            let program = self.run(["readlink", &format!("/proc/{process}/exe")]).stdout;
            (program.trim() == "/usr/bin/steadfast").then_some(())
        });
    }

    /// Installs a package under load. Returns the main processes before and after, and what the clients lost: nothing.
    fn upgrade_under_load(&self, package: &Path) -> ([String; 2], Account) {
        let before = self.main_pid();
        let load = self.load(CLIENTS);
        load.advance(500);
        self.dpkg(package);
        load.advance(500);
        let account = load.finish();
        assert_eq!((account.refused, account.dropped), (0, 0), "{account}\n{}", self.journal(UNIT, &[]));
        self.assert_up_to_date();
        ([before, self.main_pid()], account)
    }

    /// Every file in the folders that a package, or what runs of it, may write to; without the system's own books:
    /// dpkg's, the journal, what systemd has at run time, the index of the manual.
    fn files(&self) -> BTreeSet<String> {
        let folders = ["/etc", "/opt", "/run", "/srv", "/tmp", "/usr", "/var"];
        let books = [
            "/run/log",
            "/run/systemd",
            "/run/udev",
            "/usr/local",
            "/var/cache",
            "/var/lib/dpkg",
            "/var/lib/apt",
            "/var/log/journal",
        ];
        let mut command = vec!["find"];
        command.extend(folders);
        for book in books {
            command.extend(["-path", book, "-prune", "-o"]);
        }
        command.push("-print");
        self.ok(command).lines().map(str::to_owned).collect()
    }
}

#[test]
fn a_package_serves_once_it_is_installed_and_is_upgraded_under_load_and_leaves_nothing() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    let before = service.files();
    let catalog = service.ok(["journalctl", "--list-catalog"]);

    // Installed: it serves, and has all that belongs to it.
    service.dpkg(&packages.older);
    assert!(service.connect().get("/").unwrap().text().contains("Hello World"));
    assert_eq!(service.show(UNIT, "UnitFileState"), "enabled");
    assert_eq!(service.ok(["stat", "--format=%U:%G", "/var/log/steadfast"]).trim(), "steadfast:steadfast");
    assert!(service.ok(["journalctl", "--list-catalog"]).contains("steadfast serves"));
    service.ok(["steadfast", "check"]);

    // Edited: what a restart makes of it.
    service.configure("[[route]]\npath = \"/edited\"\nrespond = \"by the operator\"\n");
    service.restart();
    assert_eq!(service.connect().get("/edited").unwrap().text(), "by the operator");
    let config = service.ok(["cat", CONFIG]);

    // Upgraded, and back: a reload each time, by which the main process stays.
    for package in [&packages.newer, &packages.older] {
        let ([old, new], account) = service.upgrade_under_load(package);
        assert_eq!((old, account.closed), (new, 0), "{account}");
        print_figure("a package's upgrade under load", account);
    }
    assert_eq!(service.ok(["cat", CONFIG]), config);

    // Removed: it is off, and the operator's config stays.
    let processes = service.processes();
    service.ok(["dpkg", "--remove", "steadfast"]);
    assert!(service.try_connect().is_err());
    assert_eq!(processes.into_iter().filter(|process| service.runs(process)).collect::<Vec<_>>(), [0; 0]);
    assert_eq!(service.ok(["cat", CONFIG]), config);

    // Purged.
    service.ok(["dpkg", "--purge", "steadfast"]);
    let left: Vec<_> = service.files().difference(&before).cloned().collect();
    assert_eq!(left, [""; 0]);
    assert_eq!(service.ok(["journalctl", "--list-catalog"]), catalog);
    let units = service.run(["systemctl", "list-unit-files", "--no-legend", "steadfast*"]).stdout;
    assert_eq!(units, "");
    // The user stays, as Debian's do.
    let mentions = service.run(["grep", "--recursive", "--files-with-matches", "steadfast", "/etc"]).stdout;
    for file in mentions.lines() {
        let users = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"];
        assert!(users.contains(&file.trim_end_matches('-')), "{file}");
    }
}

#[test]
fn what_was_installed_hands_over() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    for (property, expected) in [
        ("NotifyAccess", "main"),
        ("KillMode", "process"),
        ("RuntimeDirectoryPreserve", "restart"),
        ("RuntimeDirectory", "steadfast"),
        ("Restart", "on-failure"),
        ("User", "steadfast"),
        // Requests and idle connections hold one each.
        ("LimitNOFILE", "524288"),
    ] {
        assert_eq!(service.show(UNIT, property), expected, "{property}");
    }
    assert!(service.show(UNIT, "Type").starts_with("notify"));
    assert!(service.show(UNIT, "ExecReload").contains("argv[]=/usr/bin/steadfast reload ;"));
    assert!(service.show(UNIT, "ExecStop").contains("argv[]=/usr/bin/steadfast announce-stop ;"));
    // The daemon is told how much room there is, for systemd does not say before version 254.
    let room = service.show(UNIT, "FileDescriptorStoreMax");
    assert!(room.parse::<u32>().unwrap() >= 64, "{room}");
    assert!(
        service.show(UNIT, "Environment").split(' ').any(|one| one == format!("STEADFAST_FDSTORE={room}"))
    );
    // systemd waits longer than a stop takes.
    let check = service.run(["steadfast", "check"]);
    assert!(check.status.success() && !check.stderr.contains("TimeoutStopSec"), "{check:?}");
}

#[test]
fn an_upgrade_that_changes_the_unit_restarts_the_main_process_and_loses_nothing() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    // As if the older package had another unit.
    let unit = format!("/usr/lib/systemd/system/{UNIT}");
    service.ok(["sed", "-i", "s/^LimitNOFILE=.*/LimitNOFILE=4096/", &unit]);
    service.ok(["systemctl", "daemon-reload"]);
    service.restart();

    let ([old, new], _) = service.upgrade_under_load(&packages.newer);
    assert_ne!(old, new);
    // As many as the package's unit says, or as the box may have.
    let limits = service.ok(["cat", &format!("/proc/{new}/limits")]);
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(!files.contains(" 4096 "), "{files}");
}

#[test]
fn an_upgrade_with_a_config_that_is_broken_leaves_what_runs_as_it_is() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    let (main, worker) = (service.main_pid(), service.worker_pid());
    service.write(CONFIG, "[http]\nlistne = []\n");
    let said = service.dpkg(&packages.newer);
    assert!(
        said.contains("unknown key `listne`") && said.contains("is as it was before the upgrade"),
        "{said}"
    );
    assert_eq!((service.main_pid(), service.worker_pid()), (main, worker));
    assert_eq!(service.connect().get("/").unwrap().status, 200);

    // Corrected, a reload is all that is left to do.
    service.configure("");
    service.reload();
    service.assert_up_to_date();
}

#[test]
fn an_upgrade_with_an_address_that_is_taken_leaves_what_runs_as_it_is() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    let (main, worker) = (service.main_pid(), service.worker_pid());
    // Nothing is wrong with the config by itself.
    let _taken = service.enter_network(|| TcpListener::bind("127.0.0.1:8081").unwrap());
    let config = "[http]\nlisten = [\"127.0.0.1:8080\", \"127.0.0.1:8081\"]\n[admin]\nlisten = []\n";
    service.write(CONFIG, format!("{config}{ROUTES}"));
    service.ok(["steadfast", "check"]);
    let said = service.dpkg(&packages.newer);
    assert_eq!((service.main_pid(), service.worker_pid()), (main, worker), "{said}");
    assert_eq!(service.connect().get("/").unwrap().status, 200);
    assert!(
        said.contains("cannot listen on 127.0.0.1:8081") && said.contains("is as it was before the upgrade"),
        "{said}"
    );
}

#[test]
fn an_upgrade_hands_over_each_instance_and_leaves_stopped_what_the_operator_has_stopped() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    service.stop();
    service.ok(["systemctl", "disable", UNIT]);
    let config = "[http]\nlisten = [\"127.0.0.1:8081\"]\n[admin]\nlisten = []\n";
    service.write("/etc/steadfast/one.toml", config);
    let one = "steadfast@one.service";
    service.ok(["systemctl", "enable", "--now", one]);
    let main = service.show(one, "MainPID");

    service.dpkg(&packages.newer);
    assert_eq!(service.show(UNIT, "ActiveState"), "inactive");
    assert_eq!(service.show(UNIT, "UnitFileState"), "disabled");
    assert_eq!(service.show(one, "MainPID"), main);
    service.wait_for_the_installed_program(&main);

    service.ok(["dpkg", "--purge", "steadfast"]);
    assert!(!service.runs(&main));
    assert!(service.enter_network(|| TcpStream::connect("127.0.0.1:8081")).is_err());
    assert_eq!(service.run(["find", "/etc/systemd", "/run", "-name", "steadfast*"]).stdout, "");
}

#[test]
fn an_upgrade_tries_again_what_has_failed() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    service.write(CONFIG, "[http]\nlistne = []\n");
    service.stop();
    assert!(!service.run(["systemctl", "start", UNIT]).status.success());
    assert_eq!(service.show(UNIT, "ActiveState"), "failed");
    service.configure("");
    service.dpkg(&packages.newer);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
}

#[test]
fn a_version_that_never_came_to_be_configured_misleads_no_later_one() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    // Two versions one after the other: the one that runs had another unit than both.
    let unit = format!("/usr/lib/systemd/system/{UNIT}");
    service.ok(["sed", "-i", "s/^LimitNOFILE=.*/LimitNOFILE=4096/", &unit]);
    let main = service.main_pid();
    service.unpack(&packages.newer);
    service.unpack(&packages.older);
    service.ok(["dpkg", "--configure", "steadfast"]);
    assert_ne!(service.main_pid(), main);
    service.assert_up_to_date();

    // One that is removed before its time: the next is an installation, which starts the service.
    service.stop();
    service.unpack(&packages.newer);
    service.ok(["dpkg", "--remove", "steadfast"]);
    service.dpkg(&packages.newer);
    assert_eq!(service.connect().get("/").unwrap().status, 200);
}

#[test]
fn an_upgrade_that_is_aborted_starts_nothing_and_changes_nothing() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    // It ends in the middle of its files.
    let whole = fs::read(&packages.newer).unwrap();
    service.write("/tmp/broken.deb", &whole[..whole.len() / 2]);
    let abort = || {
        let output = service.run(["dpkg", "--install", "/tmp/broken.deb"]);
        assert!(!output.status.success(), "{output:?}");
        let version =
            service.ok(["dpkg-query", "--show", "--showformat=${Version} ${db:Status-Status}", "steadfast"]);
        assert_eq!(version, "0.1.0-1 installed");
    };

    let processes = [service.main_pid(), service.worker_pid()];
    abort();
    assert_eq!([service.main_pid(), service.worker_pid()], processes);
    service.stop();
    abort();
    assert_eq!(service.show(UNIT, "ActiveState"), "inactive");
    // Nor does the next upgrade, which is one.
    service.dpkg(&packages.newer);
    assert_eq!(service.show(UNIT, "ActiveState"), "inactive");
}

#[test]
fn a_removal_ends_the_sockets_that_would_start_a_service_again() {
    let Some((service, packages)) = start(file!()) else {
        return;
    };
    service.dpkg(&packages.older);
    service.stop();
    service.write(CONFIG, format!("[http]\nlisten = [\"fd:http\"]\n[admin]\nlisten = []\n{ROUTES}"));
    // As packaging/README.md says it of an instance.
    let socket = service.ok(["cat", "/usr/lib/systemd/system/steadfast.socket"]);
    let socket = socket.replace("ListenStream=8080", "ListenStream=8081\nService=steadfast@one.service");
    service.write("/etc/systemd/system/steadfast-one.socket", socket);
    service.ok(["cp", CONFIG, "/etc/steadfast/one.toml"]);
    service.ok(["systemctl", "daemon-reload"]);
    service.ok(["systemctl", "start", "steadfast.socket", "steadfast-one.socket"]);
    let connect = |address: &str| service.enter_network(|| Client::connect(address.parse().unwrap()));
    for address in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        assert_eq!(connect(address).unwrap().get("/").unwrap().status, 200);
    }
    let mains = [UNIT, "steadfast@one.service"].map(|unit| service.show(unit, "MainPID"));

    service.ok(["dpkg", "--remove", "steadfast"]);
    assert!(mains.iter().all(|main| !service.runs(main)));
    for address in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        assert!(connect(address).is_err(), "{address}");
    }
}

#[test]
fn every_link_of_an_installed_document_leads_to_an_installed_file() {
    /// What belongs to the source alone; the licences are in the package's `copyright`.
    const SOURCE: [&str; 9] = [
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "bench/src",
        "bench/yardsticks",
        "packaging/debian",
        "packaging/release.sh",
    ];
    let Some(packages) = Packages::built() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let extracted =
        Command::new("dpkg-deb").arg("--extract").args([&packages.newer, root.path()]).status().unwrap();
    assert!(extracted.success());
    let documents = root.path().join("usr/share/doc/steadfast");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap();
    let files = files_below(&documents);
    let pages = files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md"));
    assert!(pages.clone().count() > 5, "{files:?}");
    for page in pages {
        for link in fs::read_to_string(page).unwrap().split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            let leads_to_source = || {
                let page = source.join(page.strip_prefix(&documents).unwrap());
                let file = page.with_file_name(target).canonicalize();
                file.is_ok_and(|file| SOURCE.iter().any(|one| file.starts_with(source.join(one))))
            };
            let is_known =
                target.contains("://") || page.with_file_name(target).exists() || leads_to_source();
            assert!(is_known, "{target} in {}", page.display());
        }
    }
}

#[test]
fn the_changelog_of_the_package_begins_with_the_version_of_the_program() {
    let changelog = include_str!("../../packaging/debian/changelog");
    let expected = concat!("steadfast (", env!("CARGO_PKG_VERSION"), "-");
    assert!(changelog.starts_with(expected), "packaging/debian/changelog does not begin with {expected}...");
}
