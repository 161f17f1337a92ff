//! The shipped units and drop-ins are accepted by systemd as they are, and lock the daemon down as far as they say.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use steadfast_harness::{Machine, print_figure};

use crate::service::{BINARY, CONFIG, PACKAGING, ROUTES, Service, UNIT};

/// The units. `systemctl` takes a template's name where no instance is meant.
const UNITS: [&str; 3] = ["steadfast.service", "steadfast.socket", "steadfast@.service"];

/// The drop-ins: the version of systemd that each needs, and the most that `systemd-analyze security` may hold against the
/// service with it, in tenths.
const DROP_INS: [(&str, u32, u32); 4] = [
    ("inherited-sockets.conf", 252, 4),
    ("notify-reload.conf", 253, MOST_EXPOSED),
    ("privileged-ports.conf", 252, 17),
    ("soft-reboot.conf", 254, MOST_EXPOSED),
];

/// The same of a unit. A server that dials upstreams over TCP cannot do without a network.
const MOST_EXPOSED: u32 = 15;

/// What the template has in the place of the unit's own.
const OF_AN_INSTANCE: [(&str, &str); 4] = [
    ("Description=steadfast HTTP server", "Description=steadfast HTTP server: %i"),
    (
        "ExecStart=/usr/bin/steadfast run --config /etc/steadfast/config.toml",
        "ExecStart=/usr/bin/steadfast run --config /etc/steadfast/%i.toml",
    ),
    ("RuntimeDirectory=steadfast", "RuntimeDirectory=steadfast-%i"),
    ("LogsDirectory=steadfast", "LogsDirectory=steadfast/%i"),
];

fn shipped(path: &str) -> String {
    fs::read_to_string(Path::new(PACKAGING).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(Path::new(PACKAGING).join(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The lines that systemd reads.
fn directives(unit: &str) -> Vec<String> {
    let lines = unit.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// systemd's major version: "systemd 252 (252.39-1~deb12u2)".
fn version(machine: &Machine) -> u32 {
    let said = machine.ok(["systemctl", "--version"]);
    let version = said.split(' ').nth(1).and_then(|version| version.parse().ok());
    version.unwrap_or_else(|| panic!("no version in {said}"))
}

fn verify(machine: &Machine, unit: &str) {
    let verify = machine.run(["systemd-analyze", "verify", unit]);
    assert!(verify.status.success() && verify.stderr.is_empty(), "{unit}: {verify:?}");
}

/// The exposure of a unit is at most this, in tenths.
fn assert_locked_down(machine: &Machine, unit: &str, most: u32, with: &str) {
    let threshold = format!("--threshold={most}");
    let security =
        machine.run(["systemd-analyze", "security", "--offline=true", "--no-pager", &threshold, unit]);
    let overall =
        security.stdout.lines().find_map(|line| line.split_once("exposure level for ")).map(|of| of.1);
    print_figure(&format!("systemd-analyze security{with}"), overall.unwrap_or("nothing"));
    assert!(security.status.success(), "{unit}:\n{}", security.stdout);
}

#[test]
fn every_shipped_unit_and_drop_in_passes_systemd_analyze_verify_and_is_locked_down() {
    let Some(machine) = Machine::boot_or_skip(file!()) else {
        return;
    };
    machine.install(Path::new(BINARY), Path::new(PACKAGING));
    assert_eq!(names("systemd/system"), UNITS.map(str::to_owned).into(), "list every shipped unit here");
    for unit in UNITS {
        verify(&machine, unit);
        // A socket unit runs nothing.
        if unit.ends_with(".service") {
            assert_locked_down(&machine, unit, MOST_EXPOSED, "");
        }
    }

    assert_eq!(
        names("systemd/drop-ins"),
        DROP_INS.map(|(name, ..)| name.to_owned()).into(),
        "list every drop-in here"
    );
    let version = version(&machine);
    for (drop_in, needs, most) in DROP_INS {
        if version < needs {
            print_figure(&format!("not verified: {drop_in} needs systemd {needs}, here is"), version);
            continue;
        }
        for unit in ["steadfast.service", "steadfast@.service"] {
            let at = format!("/etc/systemd/system/{unit}.d/{drop_in}");
            machine.write(&at, shipped(&format!("systemd/drop-ins/{drop_in}")));
            machine.ok(["systemctl", "daemon-reload"]);
            verify(&machine, unit);
            assert_locked_down(&machine, unit, most, &format!(" with {drop_in}"));
            machine.ok(["rm", &at]);
        }
    }
}

#[test]
fn the_unit_tells_the_daemon_how_large_its_store_is() {
    let unit = shipped("systemd/system/steadfast.service");
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    assert_eq!(value("Environment=STEADFAST_FDSTORE="), value("FileDescriptorStoreMax="));
}

#[test]
fn the_template_is_the_unit_but_for_what_names_the_instance() {
    let own = directives(&shipped("systemd/system/steadfast.service"));
    let of_an_instance = |line: String| {
        let other = OF_AN_INSTANCE.iter().find(|(own, _)| *own == line);
        other.map_or(line, |(_, other)| (*other).to_owned())
    };
    let expected: Vec<_> = own.into_iter().map(of_an_instance).collect();
    assert_eq!(directives(&shipped("systemd/system/steadfast@.service")), expected);
}

/// Its memory has the secrets of TLS.
#[test]
fn no_process_of_the_service_leaves_its_memory_on_a_disk() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    for process in [service.main_pid(), service.worker_pid()] {
        let limits = service.ok(["cat", &format!("/proc/{process}/limits")]);
        let core = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
        assert!(core.split_whitespace().take(2).eq(["0", "0"]), "{core}");
    }
    assert_eq!(service.show(UNIT, "MemorySwapMax"), "0");
}

/// `UMask=` is for the log; a socket that clients are to reach is open to all who reach its folder.
#[test]
fn a_log_is_for_its_group_and_a_unix_socket_for_all_but_the_control_socket() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let log =
        "[log]\naccess = \"all\"\naccess_format = \"json\"\naccess_file = \"/var/log/steadfast/access.log\"";
    let listen = "[http]\nlisten = [\"unix:/run/steadfast/http.sock\"]\n[admin]\nlisten = [\"unix:/run/steadfast/admin.sock\"]";
    service.write(CONFIG, format!("{listen}\n{log}\n{ROUTES}"));
    service.ok(["systemctl", "start", UNIT]);
    for (path, mode) in [
        ("/run/steadfast", "755"),
        ("/run/steadfast/http.sock", "666"),
        ("/run/steadfast/admin.sock", "666"),
        ("/run/steadfast/control.sock", "600"),
        ("/var/log/steadfast", "750"),
        ("/var/log/steadfast/access.log", "640"),
    ] {
        assert_eq!(
            service.ok(["stat", "--format=%a %U:%G", path]).trim(),
            format!("{mode} steadfast:steadfast"),
            "{path}"
        );
    }
    // Who may write to a socket's path may connect (unix(7)).
    for (path, is_open) in [("http.sock", true), ("control.sock", false)] {
        let path = format!("/run/steadfast/{path}");
        let asked =
            service.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "test", "-w", &path]);
        assert_eq!(asked.status.success(), is_open, "{path}");
    }
}
