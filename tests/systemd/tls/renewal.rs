//! A renewed certificate: nobody notices but those who come anew, and a mistake changes nothing.

use steadfast_harness::wait_until;

use super::{CERTIFICATES, Edge};
use crate::service::{Service, UNIT};

#[test]
fn a_renewed_certificate_is_for_new_connections_and_those_that_are_open_go_on() {
    let Some(edge) = Edge::start(file!(), "") else {
        return;
    };
    let mut open = edge.secured();
    for next in [Service::reload, Service::restart] {
        let old = open.agreed().certificate;
        let renewed = edge.issue();
        edge.certify(&renewed);
        assert!(edge.secured().agreed().certificate != renewed.der(), "nobody has told it yet");
        next(&edge);
        assert_eq!(open.get("/").unwrap().status, 200);
        assert!(open.agreed().certificate == old);
        let new = edge.secured();
        assert!(new.agreed().certificate == renewed.der());
        let mut old = std::mem::replace(&mut open, new);
        assert_eq!(old.get("/").unwrap().status, 200);
    }
}

#[test]
fn a_pair_that_does_not_match_fails_the_reload_by_name_and_changes_nothing() {
    let Some(edge) = Edge::start(file!(), "") else {
        return;
    };
    let mut open = edge.secured();
    let certificate = open.agreed().certificate;
    let broken = [
        ("another key", edge.issue().key()),
        ("no key", String::new()),
        ("half a key", edge.issue().key()[..80].to_owned()),
    ];
    let key = format!("{CERTIFICATES}/key.pem");
    for (what, broken) in broken {
        let worker = edge.worker_pid();
        edge.write(&key, broken);
        let reload = edge.run(["systemctl", "reload", UNIT]);
        assert!(!reload.status.success(), "{what}");
        let status = wait_until("the status to tell", || {
            Some(edge.show(UNIT, "StatusText")).filter(|status| status.contains("the last reload failed: "))
        });
        assert!(status.contains("failed: config.toml:") && status.contains("key"), "{what}: {status}");
        let journal = edge.journal(UNIT, &[]);
        assert!(journal.contains(&key), "{what}: {journal}");
        assert_eq!(edge.worker_pid(), worker);
        assert_eq!(open.get("/").unwrap().status, 200);
        assert!(edge.secured().agreed().certificate == certificate);
    }
    edge.certify(&edge.issue());
    edge.reload();
    assert_eq!(open.get("/").unwrap().status, 200);
    assert!(edge.secured().agreed().certificate != certificate);
}
