//! Listeners that come, go and move between two processes; none is forgotten, none is left behind.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use steadfast_harness::{Client, Failure, wait_until};

use crate::service::{CONFIG, PROXY, ROUTES, Service, UNIT};

/// The listener that is always there.
const CONTROL: usize = 1;

#[test]
fn listeners_are_added_moved_and_removed_by_a_restart() {
    change_listeners(Service::restart);
}

#[test]
fn listeners_are_added_moved_and_removed_by_a_reload() {
    change_listeners(Service::reload);
}

fn change_listeners(next: impl Fn(&Service) -> Duration) {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    listen(&service, &["127.0.0.1:8080"]);
    service.ok(["systemctl", "start", UNIT]);
    let mut client = service.connect();
    let mut expect = |listen_on: &[&str], refused: &[&str]| {
        listen(&service, listen_on);
        next(&service);
        for address in listen_on {
            assert_eq!(ask(&service, address).unwrap(), 200, "{address}");
        }
        for address in refused {
            // The old worker is told to let go of it when the new one serves, and `systemctl` returns at that moment, too.
            wait_until(&format!("the end of {address}"), || {
                matches!(ask(&service, address), Err(Failure::Refused(_))).then_some(())
            });
        }
        // A connection outlives the listener it came from.
        assert_eq!(client.get("/").unwrap().status, 200);
        service.wait_for_store(CONTROL + listen_on.len());
        assert_eq!(service.show(UNIT, "ActiveState"), "active");
    };

    let path = "unix:/run/steadfast/http.sock";
    expect(&["127.0.0.1:8080", "127.0.0.1:8081", path], &[]);
    expect(&["127.0.0.1:8082", path], &["127.0.0.1:8080", "127.0.0.1:8081"]);
    expect(&["[::1]:8082", "127.0.0.1:8080"], &["127.0.0.1:8082"]);
    assert!(!service.path("/run/steadfast/http.sock").exists(), "what nobody listens on has no path");
    expect(&["127.0.0.1:8080"], &["[::1]:8082"]);
}

#[test]
fn an_address_is_widened_and_narrowed_by_a_restart() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    let mut client = service.connect();
    for address in ["0.0.0.0:8080", "127.0.0.1:8080"] {
        listen(&service, &[address]);
        service.restart();
        assert_eq!(ask(&service, "127.0.0.1:8080").unwrap(), 200, "{address}");
        assert_eq!(client.get("/").unwrap().status, 200);
        service.wait_for_store(CONTROL + 1);
    }
}

#[test]
fn a_reload_that_would_widen_an_address_asks_for_a_restart() {
    let Some(service) = Service::start(file!(), "") else {
        return;
    };
    listen(&service, &["0.0.0.0:8080"]);
    let reload = service.run(["steadfast", "reload"]);
    assert!(!reload.status.success());
    for expected in ["0.0.0.0:8080", "127.0.0.1:8080", "restart instead"] {
        assert!(reload.stderr.contains(expected), "{expected} in: {}", reload.stderr);
    }
    assert_eq!(ask(&service, "127.0.0.1:8080").unwrap(), 200);
    service.restart();
    assert_eq!(ask(&service, "127.0.0.1:8080").unwrap(), 200);
}

#[test]
fn a_socket_whose_path_was_removed_is_bound_again_and_stored_once() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let path = "unix:/run/steadfast/http.sock";
    listen(&service, &[path]);
    service.ok(["systemctl", "start", UNIT]);
    for next in [Service::restart, Service::reload] {
        service.ok(["rm", "/run/steadfast/http.sock"]);
        next(&service);
        assert_eq!(ask(&service, path).unwrap(), 200);
        service.wait_for_store(CONTROL + 1);
    }
}

#[test]
fn with_the_socket_unit_the_first_connection_starts_it_and_a_restart_and_a_reload_keep_it() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    listen(&service, &["fd:http"]);
    service.ok(["systemctl", "start", "steadfast.socket"]);
    assert_eq!(service.show(UNIT, "ActiveState"), "inactive");
    let mut client = service.connect();
    assert_eq!(client.get("/").unwrap().status, 200);
    for next in [Service::restart, Service::reload] {
        next(&service);
        assert_eq!(client.get("/").unwrap().status, 200);
        assert_eq!(ask(&service, "[::1]:8080").unwrap(), 200);
        service.wait_for_store(CONTROL);
    }
}

#[test]
fn a_store_without_room_is_a_warning_that_says_how_much_it_takes_predecessors_included() {
    let room = |size: u32| format!("FileDescriptorStoreMax={size}\nEnvironment=STEADFAST_FDSTORE={size}");
    let Some(service) = Service::start_with_unit(file!(), PROXY, &room(7)) else {
        return;
    };
    // All that there is has room, but not a successor.
    service.wait_for_journal("FileDescriptorStoreMax=8", 1);
    service.edit_unit(&room(8));
    service.ok(["systemctl", "stop", UNIT]);
    service.ok(["systemctl", "start", UNIT]);
    let upstream = service.upstream();
    // One predecessor after the other comes and goes.
    for next in [Service::reload, Service::restart, Service::reload] {
        next(&service);
        service.wait_for_store(3);
    }
    let mut in_flight = Vec::new();
    for _ in 0..2 {
        assert!(!service.journal(UNIT, &[]).contains("FileDescriptorStoreMax=9"));
        in_flight.push(service.in_flight(&upstream, "/app/slow"));
        service.reload();
    }
    service.wait_for_journal("FileDescriptorStoreMax=9", 1);
}

/// Listens on these addresses, and on no admin port.
fn listen(service: &Service, addresses: &[&str]) {
    service.write(CONFIG, format!("[http]\nlisten = {addresses:?}\n[admin]\nlisten = []\n{ROUTES}"));
}

/// The status of an answer on a new connection.
fn ask(service: &Service, address: &str) -> Result<u16, Failure> {
    let mut client = if let Some(path) = address.strip_prefix("unix:") {
        Client::connect_unix(service.path(Path::new(path)))?
    } else {
        let address: SocketAddr = address.parse().expect("an address");
        service.enter_network(|| Client::connect(address))?
    };
    Ok(client.get("/")?.status)
}
