//! A renewed certificate: nobody notices but those who come anew, and a mistake changes nothing.

use std::fs;

use steadfast_harness::certificates::Certificate;
use steadfast_harness::wait_with;

use super::{CERTIFICATES, Edge, https};
use crate::documents::{DEPLOY_HOOK, blocks};
use crate::service::{CONFIG, ROUTES, Service, UNIT};

/// The document whose blocks are tried here.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tls.md");

/// Where certbot calls a deploy hook.
const HOOK: &str = "/etc/letsencrypt/renewal-hooks/deploy/steadfast";

/// What certbot has of one certificate.
const LINEAGE: &str = "/etc/letsencrypt/live/example.org";

/// The blocks of the document that begin with this.
fn those_of(first: &str) -> Vec<String> {
    let all = blocks(&fs::read_to_string(DOCUMENT).unwrap()).into_iter().map(|block| block.text);
    all.filter(|text| text.starts_with(first)).collect()
}

/// The deploy hooks: for copies in a folder, and for those of systemd.
fn hooks() -> [String; 2] {
    let hooks: [String; 2] = those_of(DEPLOY_HOOK).try_into().expect("two hooks");
    for hook in &hooks {
        assert_eq!(hook.lines().nth(1), Some(&*format!("# {HOOK}")), "it says where it belongs");
    }
    hooks
}

/// Calls a hook as certbot does after a renewal.
fn call(edge: &Edge, hook: &str) {
    edge.write(HOOK, hook);
    edge.ok(["chmod", "0755", HOOK]);
    edge.ok(["env", &format!("RENEWED_LINEAGE={LINEAGE}"), "RENEWED_DOMAINS=example.org", HOOK]);
}

/// Puts a certificate where certbot does, which only root can read: each in files of its own, and links to them.
fn obtain(edge: &Edge, certificate: &Certificate, number: usize) {
    let archive = "/etc/letsencrypt/archive/example.org";
    edge.ok(["mkdir", "-p", "-m", "0700", "/etc/letsencrypt/archive", "/etc/letsencrypt/live", LINEAGE]);
    for (name, pem) in
        [("fullchain", certificate.pem() + &edge.authority.pem()), ("privkey", certificate.key())]
    {
        let file = format!("{archive}/{name}{number}.pem");
        edge.write(&file, pem);
        edge.ok(["chmod", if name == "privkey" { "0600" } else { "0644" }, &file]);
        edge.ok(["ln", "--symbolic", "--force", &file, &format!("{LINEAGE}/{name}.pem")]);
    }
}

#[test]
fn the_deploy_hook_of_the_document_serves_what_certbot_has_renewed_and_closes_nothing() {
    let Some(edge) = Edge::install(file!(), "") else {
        return;
    };
    let [hook, _] = &hooks();
    // The first one is there.
    let [chain, key] = ["pem", "key"].map(|extension| format!("{CERTIFICATES}/example.org.{extension}"));
    edge.ok(["mv", &format!("{CERTIFICATES}/chain.pem"), &chain]);
    edge.ok(["mv", &format!("{CERTIFICATES}/key.pem"), &key]);
    let config = https("").replace("chain.pem", "example.org.pem").replace("key.pem", "example.org.key");
    edge.write(CONFIG, config + ROUTES);
    edge.ok(["systemctl", "start", UNIT]);

    let mut open = vec![edge.secured()];
    for number in 1..=3 {
        let renewed = edge.issue();
        obtain(&edge, &renewed, number);
        call(&edge, hook);
        let new = edge.secured();
        assert!(new.agreed().certificate == renewed.der(), "renewal {number}");
        for client in &mut open {
            let certificate = client.agreed().certificate;
            assert_eq!(client.get("/").unwrap().status, 200, "renewal {number}");
            assert!(client.agreed().certificate == certificate);
        }
        open.push(new);
    }
    for (file, expected) in [(&chain, "644 root:steadfast"), (&key, "640 root:steadfast")] {
        assert_eq!(edge.ok(["stat", "--format=%a %U:%G", file]).trim(), expected, "{file}");
    }
    let check = edge.run(["steadfast", "check"]);
    assert!(check.status.success() && check.stderr.is_empty(), "{check:?}");
}

#[test]
fn a_certificate_by_load_credential_is_served_and_its_hook_restarts_with_a_renewed_one_and_closes_nothing() {
    let Some(edge) = Edge::install(file!(), "") else {
        return;
    };
    let first = edge.issue();
    obtain(&edge, &first, 1);
    edge.edit_unit(&those_of("# systemctl edit steadfast").concat());
    let config = blocks(&fs::read_to_string(DOCUMENT).unwrap())
        .into_iter()
        .find(|block| block.language == "toml" && block.text.contains("/run/credentials/"))
        .expect("its config");
    edge.write(CONFIG, config.text + ROUTES);
    edge.ok(["systemctl", "start", UNIT]);
    let mut open = edge.secured();
    assert!(open.agreed().certificate == first.der());
    let renewed = edge.issue();
    obtain(&edge, &renewed, 2);
    call(&edge, &hooks()[1]);
    assert!(edge.secured().agreed().certificate == renewed.der());
    assert_eq!(open.get("/").unwrap().status, 200);
    assert!(open.agreed().certificate == first.der());
    // What cannot be served is not served: the hook says so, and nothing has changed.
    edge.write(format!("{LINEAGE}/privkey.pem"), first.key());
    let hook = edge.run(["env", &format!("RENEWED_LINEAGE={LINEAGE}"), HOOK]);
    assert!(!hook.status.success() && hook.stderr.contains("the key does not match"), "{hook:?}");
    assert!(edge.secured().agreed().certificate == renewed.der());
}

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
    // Each has its own words, so that none is found in what the one before has left.
    let broken = [
        ("the key does not match the certificate", edge.issue().key()),
        ("has no private key", String::new()),
        ("cannot be read: ", edge.issue().key()[..80].to_owned()),
    ];
    let key = format!("{CERTIFICATES}/key.pem");
    for (why, broken) in broken {
        let worker = edge.worker_pid();
        edge.write(&key, broken);
        let reload = edge.run(["systemctl", "reload", UNIT]);
        assert!(!reload.status.success(), "{why}");
        let status = || edge.show(UNIT, "StatusText");
        let status =
            wait_with(|| Some(status()).filter(|s| s.contains(why)), || format!("{why:?} in {}", status()));
        assert!(status.contains("; the last reload failed: config.toml:"), "{status}");
        let journal = || edge.journal(UNIT, &[]);
        let is_told = |journal: String| {
            let (_, last) = journal.rsplit_once("the reload failed, nothing has changed: ")?;
            (last.contains(why) && last.contains(&key)).then_some(())
        };
        wait_with(|| is_told(journal()), || format!("{why:?} and {key} in:\n{}", journal()));
        assert_eq!(edge.worker_pid(), worker);
        assert_eq!(open.get("/").unwrap().status, 200);
        assert!(edge.secured().agreed().certificate == certificate);
    }
    edge.certify(&edge.issue());
    edge.reload();
    assert_eq!(open.get("/").unwrap().status, 200);
    assert!(edge.secured().agreed().certificate != certificate);
}
