//! A reload that cannot succeed: it says why, and nothing has changed.

use steadfast_harness::{Client, Output, wait_until, wait_with};

use crate::service::{Service, UNIT};

/// The path by which `systemctl reload` finds the binary in these tests, whatever lies in its usual place.
const COPY: &str = "/usr/local/bin/steadfast-reload";

#[test]
fn a_mistake_in_the_config_fails_the_reload_with_its_place_and_loses_nothing() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mistake = "[shutdown]\ndeadlin = \"4s\"\n";
    let failed = fail_under_load(&service, "config.toml:8:1:", || service.configure(mistake));
    let journal = service.journal(UNIT, &[]);
    // The journal has all of it, the status one line.
    for expected in ["config.toml:8:1\n", "8 | deadlin", "the nearest known key is `deadline`"] {
        assert!(journal.contains(expected), "{expected} in:\n{journal}");
    }
    let short = "; the last reload failed: config.toml:8:1: unknown key \"deadlin\", nearest \"deadline\"";
    assert!(failed.status.ends_with(short), "{}", failed.status);
    // The program on disk is still not the one that runs: as long as that is so, the status tells.
    wait_until("the status text to be renewed", || (status(&service) != failed.status).then_some(()));
    assert!(status(&service).contains("config.toml:8:1"), "{}", status(&service));

    // The operator's own shell gets the same, with the lines as they are.
    let shell = service.run(["steadfast", "reload"]);
    assert!(!shell.status.success());
    assert!(shell.stderr.contains("config.toml:8:1\n"), "{}", shell.stderr);

    let two = fail_under_load(&service, "config.toml:8:10:", || {
        service.configure("[shutdown]\nlinger = 4\ndeadline = 2\n");
    });
    let short = "; the last reload failed: config.toml:8:10: \"linger\" is the integer 4; 1 more";
    assert!(two.status.ends_with(short), "{}", two.status);

    service.configure("[shutdown]\ndeadline = \"4s\"\n");
    service.reload();
    wait_until("the status text to forget the failure", || {
        (!status(&service).contains("failed")).then_some(())
    });
}

#[test]
fn an_address_in_use_fails_the_reload_by_name() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let _taken = service.enter_network(|| std::net::TcpListener::bind("127.0.0.1:8081").unwrap());
    let config = "[http]\nlisten = [\"127.0.0.1:8080\", \"127.0.0.1:8081\"]\n[admin]\nlisten = []\n";
    let why = "cannot listen on 127.0.0.1:8081";
    fail_under_load(&service, why, || service.write(crate::service::CONFIG, config));
    assert_eq!(service.admin("/livez").status, 200, "what the config would have given up is still there");
}

#[test]
fn a_failed_reload_leaves_every_unix_socket_where_it_was() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let paths = ["/run/steadfast/http.sock", "/run/steadfast/control.sock"];
    let listen = |more: &str| {
        let http = format!("[http]\nlisten = [\"unix:{}\"{more}]\n[admin]\nlisten = []\n", paths[0]);
        service.write(crate::service::CONFIG, http + crate::service::ROUTES);
    };
    listen("");
    service.ok(["systemctl", "start", UNIT]);
    let before = paths.map(|path| service.ok(["stat", "--format=%i", path]));
    let _taken = service.enter_network(|| std::net::TcpListener::bind("127.0.0.1:8081").unwrap());
    // The new process has taken every inherited listener by the time that it fails.
    listen(", \"127.0.0.1:8081\"");
    for _ in 0..2 {
        let reload = service.run(["systemctl", "reload", UNIT]);
        assert!(!reload.status.success(), "{}", service.journal(UNIT, &[]));
        let after = paths.map(|path| service.run(["stat", "--format=%i", path]).stdout);
        assert_eq!(after, before);
    }
    let mut client = Client::connect_unix(service.path(paths[0])).unwrap();
    assert_eq!(client.get("/").unwrap().status, 200);
    listen("");
    service.reload();
    assert_eq!(client.get("/").unwrap().status, 200);
    service.stop();
    assert!(!service.path(paths[0]).exists(), "after a stop for good nobody listens there");
}

#[test]
fn a_program_that_crashes_hangs_or_is_missing_fails_the_reload() {
    let Some(service) = Service::start(file!(), "[handover]\nready_timeout = \"5s\"\n") else {
        return;
    };
    service.ok(["cp", "/usr/bin/steadfast", COPY]);
    service.edit_unit(&format!("ExecReload=\nExecReload={COPY} reload"));

    for (script, why) in [
        ("echo bad luck >&2\nexit 1", "the new process failed: bad luck"),
        ("kill -SEGV $$", "was ended by signal 11 without a word"),
        ("exec sleep 1000", "was not ready within 5s and was ended"),
    ] {
        fail_under_load(&service, why, || replace(&service, &format!("#!/bin/sh\n{script}\n")));
    }
    // What hung is gone.
    service.wait_for_one_worker();

    let why = "cannot start /usr/bin/steadfast: No such file";
    fail_under_load(&service, why, || drop(service.ok(["rm", "/usr/bin/steadfast"])));

    service.ok(["cp", COPY, "/usr/bin/steadfast"]);
    service.reload();
}

/// The state that a reload that failed has left behind.
struct Failed {
    /// The unit's status text.
    status: String,
}

/// Breaks something and reloads while clients keep the daemon busy: the reload fails, the unit's status text says why, and
/// neither they nor the processes that serve them notice.
fn fail_under_load(service: &Service, why: &str, act: impl FnOnce()) -> Failed {
    let processes = || [service.main_pid(), service.worker_pid()];
    let before = processes();
    let load = service.load(10);
    load.advance(100);
    act();
    let Output { status: exit, .. } = service.run(["systemctl", "reload", UNIT]);
    assert!(!exit.success(), "{}", service.journal(UNIT, &[]));
    // The worker says it, which hears of it at the same time as the command.
    let told = || {
        Some(status(service))
            .filter(|status| status.contains("the last reload failed: ") && status.contains(why))
    };
    let failed = Failed { status: wait_with(told, || format!("{why:?} in {:?}", status(service))) };
    load.advance(100);
    let account = load.finish();
    assert_eq!((account.refused, account.dropped, account.closed), (0, 0, 0), "{account}");
    assert_eq!(processes(), before);
    assert_eq!(service.show(UNIT, "ActiveState"), "active");
    failed
}

/// Puts a script in the program's place, as a package would: the running file stays what it is.
fn replace(service: &Service, script: &str) {
    service.write("/usr/bin/steadfast.new", script);
    service.ok(["chmod", "0755", "/usr/bin/steadfast.new"]);
    service.ok(["mv", "/usr/bin/steadfast.new", "/usr/bin/steadfast"]);
}

fn status(service: &Service) -> String {
    service.show(UNIT, "StatusText")
}
