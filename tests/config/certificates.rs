//! What a check says of certificates, made for each test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, SanType};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use steadfast::Config;
use steadfast_harness::certificates::{Certificate, is_ca, lasts};
use tempfile::TempDir;

/// A root, and a CA below it that issues what servers have.
static ROOT: LazyLock<Certificate> = LazyLock::new(|| Certificate::of_itself("Root", &[], is_ca));
static CA: LazyLock<Certificate> = LazyLock::new(|| ROOT.issue("CA", &[], is_ca));

/// A folder of files, and the config that names some of them.
struct Site(TempDir);

impl Site {
    /// These files. A key may be read by its owner alone.
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::write(&path, content).expect("it is written");
            let mode = if name.ends_with("key") { 0o600 } else { 0o644 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("it is ours");
        }
        Self(folder)
    }

    /// One certificate with its key and its issuer, and a config for it.
    fn of(certificate: &Certificate) -> Self {
        Self::new(&[("chain", &(certificate.pem() + &CA.pem())), ("key", &certificate.key())])
    }

    fn load(&self, https: &str) -> Result<Config, String> {
        let file = self.0.path().join("config.toml");
        fs::write(&file, self.named(&format!("[https]\n{https}\n"))).expect("it is written");
        Config::check_file(&file).map_err(|error| self.anonymous(&error.to_string()))
    }

    /// Everything that a check says of a config: what is wrong, or what is doubtful.
    fn said(&self, https: &str) -> String {
        match self.load(https) {
            Ok(config) => config
                .warnings(|_| true)
                .map_or(String::new(), |warnings| self.anonymous(&warnings.to_string())),
            Err(said) => said,
        }
    }

    fn named(&self, text: &str) -> String {
        text.replace("~/", &format!("{}/", self.0.path().display()))
    }

    /// The text without the name of the folder, which is another each time.
    fn anonymous(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.0.path().display()), "~/")
    }
}

const ONE: &str = r#"certificates = [{ chain = "~/chain", key = "~/key" }]"#;

fn server(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certificate {
    CA.issue(names.first().unwrap_or(&"nobody"), names, change)
}

/// What is said of one certificate, its title and its help.
#[track_caller]
fn assert_said(said: &str, title: &str, help: &str) {
    assert!(said.starts_with(&format!("{title}\n")), "{title}\nis not what is said:\n{said}");
    assert!(said.contains(help), "{help}\nis not in:\n{said}");
    assert!(said.contains("config.toml:2:"), "{said}");
    assert_eq!(said.matches("\n\n").count(), 0, "more is said:\n{said}");
}

#[test]
fn a_certificate_with_its_issuer_is_right() {
    let site = Site::of(&server(&["example.org", "*.example.org", "192.0.2.1"], |_| {}));
    assert_eq!(site.said(ONE), "");
    let config = site.load(ONE).expect("it is right");
    let tree = "steadfast
├── signals
├── https     127.0.0.1:8443
│   └── ~/chain
├── http      127.0.0.1:8080
├── admin     127.0.0.1:9090
└── systemd";
    assert_eq!(site.anonymous(&config.tree().to_string()), tree);
    // The root may be there, or be the issuer itself.
    let certificate = server(&["example.org"], |_| {});
    let whole = certificate.pem() + &CA.pem() + &ROOT.pem();
    assert_eq!(Site::new(&[("chain", &whole), ("key", &certificate.key())]).said(ONE), "");
    let own = Certificate::of_itself("example.org", &["example.org"], |_| {});
    assert_eq!(Site::new(&[("chain", &own.pem()), ("key", &own.key())]).said(ONE), "");
}

// ---- what cannot be served ---------------------------------------------------------------------------------------

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (one, other) = (server(&["example.org"], |_| {}), server(&["example.org"], |_| {}));
    let site = Site::new(&[("chain", &(one.pem() + &CA.pem())), ("key", &other.key())]);
    let said = site.said(ONE);
    assert_said(
        &said,
        "error: the key does not match the certificate of \"example.org\"",
        "the certificate is here",
    );
    assert!(said.contains("both must be of one renewal"), "{said}");
}

#[test]
fn a_chain_that_does_not_begin_with_the_servers_own_is_refused() {
    let certificate = server(&["example.org"], |_| {});
    let site = Site::new(&[("chain", &(CA.pem() + &certificate.pem())), ("key", &certificate.key())]);
    let title = "error: the server's own certificate is not the first of `chain`";
    assert_said(&site.said(ONE), title, "put the certificate of the key first");
}

#[test]
fn a_certificate_of_a_ca_is_refused() {
    let site = Site::of(&server(&["example.org"], is_ca));
    let title = "error: the certificate of \"example.org\" is that of a CA";
    assert_said(&site.said(ONE), title, "basicConstraints=critical,CA:FALSE");
}

#[test]
fn files_without_what_they_are_for_are_refused_with_what_to_do() {
    let certificate = server(&["example.org"], |_| {});
    let (chain, key) = (certificate.pem() + &CA.pem(), certificate.key());
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let encrypted_as_before = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n";
    let no_key = "-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n";
    let no_certificate = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    for (chain, key, title, help) in [
        ("", &*key, "error: `chain` has no certificate", "-----BEGIN CERTIFICATE-----"),
        (&*key, &key, "error: `chain` has no certificate", "-----BEGIN CERTIFICATE-----"),
        ("\u{30}\u{2}", &key, "error: `chain` has no certificate", "openssl x509 -inform der"),
        (&chain, "", "error: `key` has no private key", "-----BEGIN PRIVATE KEY-----"),
        (&chain, &chain, "error: `key` has no private key", "-----BEGIN PRIVATE KEY-----"),
        (&chain, encrypted, "error: `key` is encrypted", "openssl pkey -in"),
        (&chain, encrypted_as_before, "error: `key` is encrypted", "openssl pkey -in"),
        (&chain, &key.repeat(2), "error: `key` has 2 private keys", "leave only that of the certificate"),
    ] {
        assert_said(&Site::new(&[("chain", chain), ("key", key)]).said(ONE), title, help);
    }
    let said = Site::new(&[("chain", no_certificate), ("key", no_key)]).said(ONE);
    assert!(said.contains("error: certificate 1 of `chain` cannot be read"), "{said}");
    assert!(said.contains("error: `key` cannot be used") && said.contains("2048 bits"), "{said}");
}

/// As where a variable or a form has taken its line breaks.
#[test]
fn a_file_that_is_not_whole_is_refused_and_nothing_of_it_is_shown() {
    let certificate = server(&["example.org"], |_| {});
    let (chain, key) = (certificate.pem() + &CA.pem(), certificate.key());
    let secret = key.lines().nth(1).expect("a line of it");
    let in_decimal = format!("{:?}", &secret.as_bytes()[..8]);
    let end = key.rfind("-----END").expect("an end");
    let broken = [
        (key.replace('\n', " "), "its last section has no end"),
        (key.replace('\n', "\\n"), "the beginning of a section does not end its line"),
        (key[..end].to_owned(), "its last section has no end"),
        (key.replace(secret, &format!("{secret}!")), "its base64 is damaged"),
    ];
    for (broken, why) in broken {
        for (chain, key, name) in [(&chain, &broken, "`key`"), (&broken, &key, "certificate 1 of `chain`")] {
            let said = Site::new(&[("chain", chain), ("key", key)]).said(ONE);
            assert!(!said.contains(&secret[..8]), "{said}");
            assert!(!said.contains(in_decimal.trim_matches(['[', ']'])), "{said}");
            assert_said(
                &said,
                &format!("error: {name} cannot be read: {why}"),
                "has it kept its line breaks?",
            );
        }
    }
}

/// The library that reads them passes over such a section in silence.
#[test]
fn a_section_that_begins_within_a_line_is_refused_and_not_passed_over() {
    let certificate = server(&["example.org"], |_| {});
    let (chain, key) = (certificate.pem(), certificate.key());
    let glued = chain.trim_end().to_owned() + &CA.pem();
    let marked = format!("\u{feff}{chain}");
    let help = "a line break is missing before it, or it is blanks or a byte order mark that must go";
    for (chain, key, name) in
        [(&glued, &key, "chain"), (&marked, &key, "chain"), (&(chain + &CA.pem()), &format!(" {key}"), "key")]
    {
        let said = Site::new(&[("chain", chain), ("key", key)]).said(ONE);
        assert_said(&said, &format!("error: `{name}` has a \"-----BEGIN\" that does not begin a line"), help);
    }
    let left_out = CA.pem().replace("-----", "# -----")
        + "as below, from -----BEGIN CERTIFICATE----- on:\n"
        + &ROOT.pem();
    assert_eq!(clients(&left_out, &ROOT.revoke(&[], 7)), "");
    let said = clients(&(ROOT.pem().trim_end().to_owned() + &CA.pem()), &ROOT.revoke(&[], 7));
    assert!(said.starts_with("error: `client_ca` has a \"-----BEGIN\""), "{said}");
}

#[test]
fn what_is_no_file_is_refused_and_holds_up_nobody() {
    let certificate = server(&["example.org"], |_| {});
    let (chain, key, list) = (certificate.pem() + &CA.pem(), certificate.key(), ROOT.revoke(&[1], 7));
    let https = format!("{ONE}\nclient_ca = \"~/ca\"\nclient_crl = \"~/crl\"");
    for (name, value) in [("chain", "chain"), ("key", "key"), ("ca", "client_ca"), ("crl", "client_crl")] {
        let files = [("chain", &*chain), ("key", &key), ("ca", &ROOT.pem()), ("crl", &list)];
        let site = Site::new(&files.map(|(file, content)| (file, if file == name { "" } else { content })));
        let path = site.0.path().join(name);
        fs::remove_file(&path).expect("it is there");
        mknodat(CWD, &path, FileType::Fifo, Mode::from(0o600), 0).expect("a pipe that nobody writes");
        let (said, here) = mpsc::channel();
        let https = https.clone();
        thread::spawn(move || said.send(site.said(&https)));
        let said = here.recv_timeout(Duration::from_secs(30)).expect("a pipe is not waited for");
        assert!(said.starts_with(&format!("error: `{value}` is no regular file\n")), "{said}");
        assert!(said.contains("help: name one that is"), "{said}");
        assert_eq!(said.matches("\n\n").count(), 0, "more is said:\n{said}");
    }
}

#[test]
fn a_file_that_is_too_large_to_be_one_is_refused() {
    let site = Site::of(&server(&["example.org"], |_| {}));
    let file = fs::File::options().write(true).open(site.0.path().join("key")).expect("it is there");
    file.set_len((1 << 20) + 1).expect("it is ours");
    assert!(site.said(ONE).starts_with("error: `key` is too large to be one\n"));
}

/// What is said of files of CAs and of lists of revocation.
fn clients(ca: &str, crl: &str) -> String {
    let certificate = server(&["example.org"], |_| {});
    let (chain, key) = (certificate.pem() + &CA.pem(), certificate.key());
    let site = Site::new(&[("chain", &chain), ("key", &key), ("ca", ca), ("crl", crl)]);
    site.said(&format!("client_ca = \"~/ca\"\nclient_crl = \"~/crl\"\n{ONE}"))
}

#[test]
fn cas_and_lists_that_are_none_are_refused() {
    let list = ROOT.revoke(&[1], 7);
    assert_eq!(clients(&ROOT.pem(), &list), "");
    assert!(clients("", &list).starts_with("error: `client_ca` has no certificate"));
    assert!(clients(&ROOT.pem(), &ROOT.pem()).starts_with("error: `client_crl` has no list"));
    let said = clients(&ROOT.pem(), &ROOT.revoke(&[1], -3));
    assert!(
        said.starts_with("warning: the list of \"CN=Root\" in `client_crl` was to be replaced 3 days ago"),
        "{said}"
    );
    // One that has been replaced is not asked for again.
    assert_eq!(clients(&ROOT.pem(), &(ROOT.revoke(&[1], -3) + &list)), "");
}

/// A certificate that is trusted as if it were a CA's lets in whoever has its key; an intermediate one of a public CA lets
/// in everybody.
#[test]
fn a_certificate_that_is_no_cas_is_not_taken_for_one() {
    let server = server(&["example.org"], |_| {});
    let alone = Certificate::of_itself("alone", &["alone.example.org"], |_| {});
    for (pem, number) in [(server.pem() + &CA.pem(), 1), (ROOT.pem() + &server.pem(), 2), (alone.pem(), 1)] {
        let title = format!("error: certificate {number} of `client_ca` is not that of a CA");
        assert_said(
            &clients(&pem, &ROOT.revoke(&[1], 7)),
            &title,
            "leave out a server's, and those of clients",
        );
    }
}

/// As `openssl x509 -req -signkey` makes it: of X.509's first version, which has no word for a CA.
#[test]
fn a_root_of_the_first_version_is_taken_for_a_ca() {
    const OLD: &str = "\
-----BEGIN CERTIFICATE-----\n\
MIIBIjCByQIUUz1D5g0yZ0Q9y/TMnglVyP0/irowCgYIKoZIzj0EAwIwEzERMA8G\n\
A1UEAwwIT2xkIHJvb3QwIBcNMjYxMTI5MDkwNzI1WhgPMjEyNjExMDUwOTA3MjVa\n\
MBMxETAPBgNVBAMMCE9sZCByb290MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n\
6msqxVHD/VYIkGwdIHToAz7NPWvEq46xPONX+5vxjyUjPaKw/kh8fPFMOg/2p1lS\n\
Icvyi+1hpUgwPToAzEeLnTAKBggqhkjOPQQDAgNIADBFAiAoX4rPaPEFUb45WBbh\n\
JI+1zN63Hl3jKHLwBz/1esRXOwIhALEL4dW5vAkQhbIOHRT8NWpLgEWGpf3T+jpo\n\
5fxO+SWH\n\
-----END CERTIFICATE-----\n";
    let said = clients(OLD, &ROOT.revoke(&[1], 7));
    assert!(said.starts_with("warning: `client_crl` has no list of the CA \"CN=Old root\"\n"), "{said}");
}

// ---- what is doubtful --------------------------------------------------------------------------------------------

#[test]
fn a_certificate_that_has_expired_or_soon_will_is_served_and_said() {
    let said =
        |from, to| Site::of(&server(&["example.org"], |parameters| lasts(parameters, from, to))).said(ONE);
    assert_said(
        &said(-90, -3),
        "warning: the certificate of \"example.org\" expired 3 days ago",
        "and reload",
    );
    // The time that passes meanwhile may make it a little less.
    let soon = said(-70, 20);
    assert!(soon.starts_with("warning: the certificate of \"example.org\" expires in 19 days"), "{soon}");
    assert_eq!(said(-59, 31), "");
    // A third of a short life.
    assert_eq!(said(-4, 3), "");
    let soon = said(-5, 2);
    assert!(soon.starts_with("warning: the certificate of \"example.org\" expires in 47 hours"), "{soon}");
    let early = said(3, 90);
    assert!(early.contains("is not valid yet: it will be in 2 days") && early.contains("clock"), "{early}");
}

#[test]
fn a_ca_of_clients_that_has_expired_or_has_no_list_is_said() {
    let old = Certificate::of_itself("Old", &[], |parameters| {
        is_ca(parameters);
        lasts(parameters, -90, -3);
    });
    let list = ROOT.revoke(&[1], 7);
    let said = clients(&(ROOT.pem() + &old.pem()), &(old.revoke(&[], 7) + &list));
    assert_said(
        &said,
        "warning: the CA \"CN=Old\" in `client_ca` expired 3 days ago",
        "its clients are still let in",
    );
    let said = clients(&(ROOT.pem() + &CA.pem()), &list);
    assert!(said.starts_with("warning: `client_crl` has no list of the CA \"CN=CA\"\n"), "{said}");
    assert!(
        said.contains("config.toml:3:")
            && said.contains("nobody is let in with a certificate of it, or of a CA below it"),
        "{said}"
    );
}

#[test]
fn a_chain_that_lacks_a_part_or_has_another_is_served_and_said() {
    let certificate = server(&["example.org"], |_| {});
    let said = |rest: &[&Certificate]| {
        let chain: String = rest.iter().fold(certificate.pem(), |chain, next| chain + &next.pem());
        Site::new(&[("chain", &chain), ("key", &certificate.key())]).said(ONE)
    };
    assert_said(&said(&[]), "warning: `chain` has no certificate of the issuer, \"CN=CA\"", "fullchain.pem");
    let title =
        "warning: certificate 2 of `chain` is in the wrong order: it has not issued the one before it";
    assert_said(&said(&[&ROOT, &CA]), title, "put behind each certificate the one that has issued it");
    let other = Certificate::of_itself("CA", &[], is_ca);
    let title =
        "warning: certificate 2 of `chain` has not issued the one before it, whose issuer is \"CN=CA\"";
    assert_said(&said(&[&other]), title, "nothing else");
}

#[test]
fn a_certificate_that_clients_refuse_for_a_server_is_served_and_said() {
    let said =
        |names: &[&str], change: fn(&mut CertificateParams)| Site::of(&server(names, change)).said(ONE);
    let title = "warning: the certificate of \"CN=nobody\" has no name of a host in its subjectAltName";
    assert_said(&said(&[], |_| {}), title, "clients look nowhere else");
    let title = "warning: the certificate of \"example.org\" is not for TLS servers (extendedKeyUsage)";
    let for_clients = |parameters: &mut CertificateParams| {
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    assert_said(&said(&["example.org"], for_clients), title, "clients refuse it");
    let for_both = |parameters: &mut CertificateParams| {
        parameters.is_ca = IsCa::NoCa;
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        parameters.subject_alt_names = vec![SanType::IpAddress([192, 0, 2, 1].into())];
    };
    assert_eq!(said(&[], for_both), "");
}

#[test]
fn a_name_in_two_certificates_is_said_unless_they_are_of_two_algorithms() {
    let site = |one: &Certificate, other: &Certificate| {
        let files = [one.pem() + &CA.pem(), one.key(), other.pem() + &CA.pem(), other.key()];
        Site::new(&[("chain", &files[0]), ("key", &files[1]), ("chain2", &files[2]), ("2.key", &files[3])])
    };
    let two =
        r#"certificates = [{ chain = "~/chain", key = "~/key" }, { chain = "~/chain2", key = "~/2.key" }]"#;
    let one = server(&["example.org", "www.example.org"], |_| {});
    let said = site(&one, &server(&["www.EXAMPLE.org", "example.net"], |_| {})).said(two);
    let title = "warning: the name \"www.example.org\" is in an earlier certificate, which is served for it";
    assert_said(&said, title, "the earlier one");
    assert_eq!(site(&one, &CA.issue_rsa("RSA", &["example.org"])).said(two), "");
    let said = site(&one, &server(&["192.0.2.1"], |_| {})).said(two);
    assert_said(
        &said,
        "warning: this certificate has no name of a host, so it is never chosen",
        "only the first",
    );
}

#[test]
fn a_name_that_a_certificate_has_twice_is_one_name() {
    let twice = |one: &str, other: &str| {
        let dns = |name: &str| SanType::DnsName(name.try_into().expect("a name that a certificate can have"));
        server(&[], |parameters| parameters.subject_alt_names = vec![dns(one), dns(other)])
    };
    for other in ["example.org", "EXAMPLE.org", "example.org."] {
        assert_eq!(Site::of(&twice("example.org", other)).said(ONE), "", "{other}");
    }
}

#[test]
fn a_host_that_asks_for_certificates_and_has_none_to_show_is_said() {
    let certificate = server(&["example.org", "*.a.example.org"], |_| {});
    let (chain, key) = (certificate.pem() + &CA.pem(), certificate.key());
    let site = Site::new(&[("chain", &chain), ("key", &key), ("ca", &CA.pem())]);
    let said = |host: &str| site.said(&format!("client_hosts = [{host:?}]\nclient_ca = \"~/ca\"\n{ONE}"));
    for shown in
        ["example.org", "EXAMPLE.org.", "x.a.example.org", "*.a.example.org", "*.example.org", "*.org"]
    {
        assert_eq!(said(shown), "", "{shown}");
    }
    for other in
        ["a.example.org", "www.example.org", "x.y.a.example.org", "*.www.example.org", "*.b.org", "org"]
    {
        let title = format!("warning: no certificate has the name {other:?}");
        assert_said(&said(other), &title, "its clients are shown the first certificate");
    }
    for address in ["192.0.2.1", "2001:db8::1"] {
        assert_said(&said(address), &format!("warning: {address:?} is an address"), "answered with 421");
    }
}

#[test]
fn a_redirect_that_nothing_comes_to_is_said() {
    let site = Site::of(&server(&["example.org"], |_| {}));
    let said = |http: &str| site.said(&format!("{ONE}\n[http]\n{http}"));
    assert_eq!(said("redirect_to_https = true"), "");
    assert_eq!(said("listen = []"), "");
    let elsewhere = said("listen = [\"0.0.0.0:8080\"]\nredirect_to_https = true");
    let what = "warning: clients are sent to a port that only this machine reaches\n";
    assert!(elsewhere.starts_with(what), "{elsewhere}");
    assert!(elsewhere.contains("config.toml:5:21") && elsewhere.contains("https.listen"), "{elsewhere}");
    let said = said("listen = []\nredirect_to_https = true");
    assert!(said.starts_with("warning: there is nothing to redirect\n"), "{said}");
    assert!(said.contains("config.toml:5:21") && said.contains("nothing listens without TLS"), "{said}");
}

#[test]
fn a_file_that_the_wrong_users_may_read_is_said() {
    let site = Site::of(&server(&["example.org"], |_| {}));
    let key = site.0.path().join("key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let title = "warning: `key` can be read by every user of this machine";
    assert_said(&site.said(ONE), title, "chmod o= ~/key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("it is ours");
    let config = site.load(ONE).expect("it is right");
    let warnings = config.warnings(|path: &Path| !path.ends_with("key")).expect("a warning");
    let title = "warning: ~/key may not be read by the user that steadfast runs as";
    assert_said(&site.anonymous(&warnings.to_string()), title, "chgrp");
}
