//! The shipped units are accepted by systemd as they are.

use std::fs;
use std::path::Path;

use steadfast_harness::Machine;

use crate::service::{BINARY, PACKAGING};

/// The most that `systemd-analyze security` may hold against a unit, in tenths.
/// A server that dials upstreams over TCP cannot do without a network.
const MOST_EXPOSED: &str = "20";

#[test]
fn every_shipped_unit_passes_systemd_analyze_verify_and_is_locked_down() {
    let Some(machine) = Machine::boot_or_skip(file!()) else {
        return;
    };
    machine.install(Path::new(BINARY), Path::new(PACKAGING));
    let mut units: Vec<String> = fs::read_dir(Path::new(PACKAGING).join("systemd/system"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    units.sort();
    assert_eq!(units, ["steadfast.service", "steadfast.socket"], "list every shipped unit here");

    for unit in &units {
        let verify = machine.run(["systemd-analyze", "verify", unit]);
        assert!(verify.status.success() && verify.stderr.is_empty(), "{unit}: {verify:?}");
        if !unit.ends_with(".service") {
            continue; // it runs nothing
        }
        let security = machine.run([
            "systemd-analyze",
            "security",
            "--offline=true",
            &format!("--threshold={MOST_EXPOSED}"),
            unit,
        ]);
        assert!(security.status.success(), "{unit}:\n{}", security.stdout);
    }
}

#[test]
fn the_unit_tells_the_daemon_how_large_its_store_is() {
    let unit = fs::read_to_string(Path::new(PACKAGING).join("systemd/system/steadfast.service")).unwrap();
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    assert_eq!(value("Environment=STEADFAST_FDSTORE="), value("FileDescriptorStoreMax="));
}
