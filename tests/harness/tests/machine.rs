//! The box keeps what it promises to the tests that stand on it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;

use steadfast_harness::{Client, Failure, Machine, wait_until};

#[test]
fn a_service_of_the_box_is_reached_by_the_test_and_seen_in_its_journal() {
    let Some(machine) = Machine::boot_or_skip(file!()) else {
        return;
    };
    machine.write(
        "/etc/systemd/system/stand-in.service",
        "[Service]\nType=exec\nExecStart=sh -c 'echo up and well; echo oh dear >&2; exec sleep infinity'\n",
    );
    machine.ok(["systemctl", "daemon-reload"]);
    machine.ok(["systemctl", "start", "stand-in"]);
    assert_eq!(machine.show("stand-in", "ActiveState"), "active");
    wait_until("the unit's words in the journal", || {
        let journal = machine.journal("stand-in", &["-p", "info"]);
        (journal.contains("up and well") && journal.contains("oh dear")).then_some(())
    });
    assert!(machine.journal_json("stand-in", &[]).contains("\"MESSAGE\":\"up and well\""));

    let failed = machine.run(["systemctl", "start", "nonesuch"]);
    assert_eq!(failed.status.code(), Some(5), "{failed:?}");
    assert!(failed.stderr.contains("nonesuch"), "{failed:?}");
}

#[test]
fn sockets_of_the_box_are_its_own_and_outlive_the_visit() {
    let Some(machine) = Machine::boot_or_skip(file!()) else {
        return;
    };
    let address: SocketAddr = "127.0.0.1:80".parse().unwrap();
    let listener = machine.enter_network(|| TcpListener::bind(address).unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 16];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    });
    let mut client = machine.enter_network(|| Client::connect(address).unwrap());
    let response = client.get("/").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    server.join().unwrap();
    client.wait_for_close().unwrap();

    let nobody = machine.enter_network(|| Client::connect(address));
    assert!(matches!(nobody, Err(Failure::Refused(_))), "{nobody:?}");
}

#[test]
fn nothing_of_the_box_is_left_after_a_panic() {
    let Some(machine) = Machine::boot_or_skip(file!()) else {
        return;
    };
    machine.write("/etc/steadfast/left-behind", "by a test");
    machine.write("/usr/lib/left-behind", "by a test");
    let init = machine.path("/").parent().unwrap().to_owned();
    assert!(init.exists());
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _machine = machine;
        panic!("as a failing test does");
    }));
    assert!(panicked.is_err());
    assert!(!init.exists(), "PID 1 of the box still runs");
    assert!(!Path::new("/usr/lib/left-behind").exists());
    assert!(!Path::new("/etc/steadfast/left-behind").exists());
    drop(Machine::boot()); // the next test's box boots
}
