//! The shipped drop-ins, with what they are for. (`unit` has what systemd says of them.)

use std::net::SocketAddr;

use steadfast_harness::{Client, wait_until};

use crate::service::{CONFIG, Service, UNIT};

/// The first line that a daemon logs which is stopped for good.
const FOR_GOOD: &str = "the service is being stopped: nothing is left for a next process";

/// More than the sockets of both ends hold, in bytes.
const LARGE: usize = 64 << 20;

fn over_tcp(service: &Service) -> Client {
    let address: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
    service.enter_network(|| Client::connect(address)).expect("systemd listens")
}

#[test]
fn without_a_network_of_its_own_it_serves_files_by_sockets_of_systemds_and_unix_sockets_over_restarts() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.add_drop_in("inherited-sockets.conf");
    service.write(
        CONFIG,
        "[http]\nlisten = [\"fd:http\", \"unix:/run/steadfast/http.sock\"]\n\
         [admin]\nlisten = [\"unix:/run/steadfast/admin.sock\"]\n[[route]]\npath = \"/*\"\nfiles = \"/srv/www\"\n",
    );
    service.write("/srv/www/hello", "from a file");
    service.ok(["truncate", "--size", &LARGE.to_string(), "/srv/www/large"]);
    service.ok(["systemctl", "start", "steadfast.socket", UNIT]);

    let unix = || Client::connect_unix(service.path("/run/steadfast/http.sock")).expect("it listens");
    let mut clients = [over_tcp(&service), unix()];
    let mut hello = || {
        for client in &mut clients {
            assert_eq!(client.get("/hello").unwrap().text(), "from a file");
        }
    };
    hello();
    // Whoever would dial from there finds nobody: no address but the loopback's own, which is down.
    let main = service.main_pid();
    let own = service.ok(["readlink", &format!("/proc/{main}/ns/net")]);
    assert_ne!(own, service.ok(["readlink", "/proc/1/ns/net"]));
    let status = service.ok(["cat", &format!("/proc/{main}/status")]);
    assert!(status.contains("CapEff:\t0000000000000000\n"), "{status}");

    for next in [Service::restart, Service::reload] {
        // One answer is on its way in each worker that is replaced.
        let mut slow = over_tcp(&service);
        slow.ask("/large").unwrap();
        assert_eq!(slow.receive_head().unwrap().status, 200);
        next(&service);
        hello();
        service.wait_for_predecessors(1);
        assert_eq!(slow.take(LARGE).unwrap().len(), LARGE);
        drop(slow);
        service.wait_for_one_worker();
        hello();
    }
    let mut admin = Client::connect_unix(service.path("/run/steadfast/admin.sock")).expect("it listens");
    assert_eq!(admin.get("/readyz").unwrap().status, 200);
    drop(admin);
    // Nothing that it needs is forbidden to it.
    let journal = service.journal(UNIT, &["-p", "warning", "_COMM=steadfast"]);
    assert_eq!(journal, "");
    service.stop();
    assert!(service.journal(UNIT, &[]).contains(FOR_GOOD));
    service.assert_stopped_with(0);
}

/// The part of it that an older systemd understands: why the service is stopped.
#[test]
fn a_stop_by_a_soft_reboot_hands_over_and_any_other_stop_is_for_good() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.add_drop_in("soft-reboot.conf");
    // systemd 254 and later has its own.
    let target = "[Unit]\nConflicts=steadfast.service\nAfter=steadfast.service\n";
    service.write("/etc/systemd/system/soft-reboot.target", target);
    service.ok(["systemctl", "daemon-reload"]);
    service.ok(["systemctl", "start", UNIT]);
    let worker = service.worker_pid();
    service.ok(["systemctl", "start", "soft-reboot.target"]);
    service.wait_for_journal("SIGTERM: the worker hands over to the next process", 1);
    assert!(!service.journal(UNIT, &[]).contains(FOR_GOOD));
    service.wait_for_the_end_of(worker);

    service.ok(["systemctl", "start", UNIT]);
    wait_until("the target to end, for it conflicts", || {
        (service.show("soft-reboot.target", "ActiveState") == "inactive").then_some(())
    });
    service.stop();
    service.wait_for_journal(FOR_GOOD, 1);
    service.assert_stopped_with(0);
}
