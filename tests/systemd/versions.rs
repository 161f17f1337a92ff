//! Two versions of the program, one after the other, that do not understand each other.

use std::path::{Path, PathBuf};
use std::process::Command;

use steadfast_harness::wait_until;

use crate::service::{BINARY, PROXY, Service, UNIT};

#[test]
fn a_restart_across_two_versions_of_the_parcels_crashes_nothing() {
    let Some(service) = Service::start(file!(), PROXY) else {
        return;
    };
    let other = other_version();
    let upstream = service.upstream();
    for binary in [other.as_path(), Path::new(BINARY)] {
        let mut clients: Vec<_> = (0..5).map(|_| service.answered()).collect();
        let mut tunnel = service.tunnel(&upstream, 0);
        install(&service, binary);
        service.restart();

        for client in &mut clients {
            client.wait_for_close().unwrap();
        }
        assert!(tunnel.settle().is_err());
        for (kind, count) in [("connection", 0), ("tunnel", 0), ("refused", 6)] {
            let series = format!("steadfast_handover_taken_over_total{{kind=\"{kind}\"}}");
            wait_until(&format!("{series} to be {count}"), || {
                (service.metric(&series) == count).then_some(())
            });
        }
        let warnings = service.journal(UNIT, &["-p", "warning"]);
        assert!(warnings.contains("of the format is not version"), "{warnings}");
        assert_eq!(service.connect().get("/").unwrap().status, 200);
        assert_eq!(service.show(UNIT, "NRestarts"), "0");
        service.wait_for_store(3);
    }
}

/// The program with another version of the parcels, built where the next run finds it again.
fn other_version() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parcels-3");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--bin", "steadfast", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("STEADFAST_PARCEL_VERSION", "3")
        // Nobody will debug it.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .expect("cargo starts");
    assert!(status.success(), "{status}");
    target.join("debug/steadfast")
}

/// In the place of the program, as a package would: the running file stays what it is.
fn install(service: &Service, binary: &Path) {
    service.copy(binary, "/usr/bin/steadfast.new", "0755");
    service.ok(["mv", "/usr/bin/steadfast.new", "/usr/bin/steadfast"]);
}
