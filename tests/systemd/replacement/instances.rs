//! Several services on one machine, of the template unit: each has a config, a control socket and a log of its own, and a
//! restart, a reload or a stop of one is nothing to the others.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use steadfast_harness::{Client, wait_until};

use crate::service::{PACKAGING, Service, UNIT};

/// The instances, and their ports.
const INSTANCES: [(&str, u16); 2] = [("one", 8081), ("two", 8082)];

fn unit(name: &str) -> String {
    format!("steadfast@{name}.service")
}

/// A connection to an instance that has answered a request, with its own name.
fn connect(service: &Service, (name, port): (&str, u16)) -> Client {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut client = service.enter_network(|| Client::connect(address)).expect("it listens");
    assert_eq!(client.get("/").unwrap().text(), name);
    client
}

/// Writes the config of an instance, which answers with its name, and then what is asked for.
fn configure(service: &Service, (name, port): (&str, u16), lines: &str) {
    service.write(
        format!("/etc/steadfast/{name}.toml"),
        format!(
            "http.listen = [\"127.0.0.1:{port}\"]\nadmin.listen = []\n\
             [log]\naccess = \"all\"\naccess_format = \"json\"\naccess_file = \"/var/log/steadfast/{name}/access.log\"\n\
             [[route]]\npath = \"/\"\nrespond = \"{name}\"\n{lines}"
        ),
    );
}

/// The main process and the worker of an instance, as its own commands find them.
fn processes(service: &Service, name: &str) -> [u64; 2] {
    let worker = wait_until("a worker to serve", || {
        let status = service.ok(["steadfast", "status", "--json", "--instance", name]);
        let status: Value = serde_json::from_str(&status).expect("it is JSON");
        (status["phase"] == "serving").then(|| status["pid"].as_u64().expect("a number"))
    });
    [service.show(&unit(name), "MainPID").parse().expect("a number"), worker]
}

#[test]
fn two_instances_run_side_by_side_and_each_is_restarted_reloaded_and_stopped_alone() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    // Beside the one that is no instance.
    service.ok(["systemctl", "start", UNIT]);
    for instance in INSTANCES {
        configure(&service, instance, "");
        service.ok(["systemctl", "start", &unit(instance.0)]);
    }
    let [mut one, mut two] = INSTANCES.map(|instance| connect(&service, instance));
    let (before_one, before_two) = (processes(&service, "one"), processes(&service, "two"));

    service.ok(["systemctl", "restart", &unit("one")]);
    let restarted = processes(&service, "one");
    assert!(restarted[0] != before_one[0] && restarted[1] != before_one[1], "{restarted:?}");
    assert_eq!(processes(&service, "two"), before_two);

    configure(&service, INSTANCES[1], "[[route]]\npath = \"/new\"\nrespond = \"new\"\n");
    service.ok(["systemctl", "reload", &unit("two")]);
    let reloaded = processes(&service, "two");
    assert!(reloaded[0] == before_two[0] && reloaded[1] != before_two[1], "{reloaded:?}");
    service.ok(["steadfast", "reload", "--instance", "two"]);
    assert_ne!(processes(&service, "two")[1], reloaded[1]);
    assert_eq!(processes(&service, "one"), restarted);

    // Until it has handed over, the old worker answers.
    wait_until("the predecessor to end", || {
        let status = service.ok(["steadfast", "status", "--json", "--instance", "two"]);
        let status: Value = serde_json::from_str(&status).expect("it is JSON");
        status["predecessors"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    // Each connection is still the one that it was.
    for (client, path, text) in [(&mut one, "/", "one"), (&mut two, "/new", "new")] {
        let answer = client.get(path).unwrap();
        assert_eq!((answer.text().as_str(), answer.header("connection")), (text, None));
    }

    // A stop is announced to the one that is stopped, and takes nothing of the others with it.
    service.ok(["systemctl", "stop", &unit("one")]);
    service.ok(["systemctl", "stop", UNIT]);
    assert!(!one.is_open());
    for (unit, stopped) in [(unit("one"), true), (unit("two"), false), (UNIT.to_owned(), true)] {
        let journal = service.journal(&unit, &[]);
        assert_eq!(journal.contains("the service is being stopped"), stopped, "{unit}:\n{journal}");
    }
    assert_eq!(two.get("/new").unwrap().text(), "new");
    connect(&service, INSTANCES[1]);
    for (name, requests) in [("one", 2), ("two", 4)] {
        let log = || service.ok(["cat", &format!("/var/log/steadfast/{name}/access.log")]);
        // A line may come after the answer.
        wait_until("each request to be logged", || (log().lines().count() >= requests).then_some(()));
        assert_eq!(log().lines().count(), requests, "{name}: {}", log());
    }
}

#[test]
fn what_asks_an_instance_names_it_and_checks_its_own_config_and_unit() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    configure(&service, INSTANCES[0], "[shutdown]\ndeadline = \"1h\"\n");
    // The unit makes it, at its first start.
    let check = service.run(["steadfast", "check", "--instance", "one"]);
    assert!(check.stderr.contains("make the directory /var/log/steadfast/one"), "{check:?}");
    service.ok(["mkdir", "-p", "/var/log/steadfast/one"]);
    let check = service.run(["steadfast", "check", "--instance", "one"]);
    assert!(
        check.status.success() && check.stdout.starts_with("/etc/steadfast/one.toml: valid"),
        "{check:?}"
    );
    assert!(check.stderr.contains("TimeoutStopSec= of steadfast@one.service is 45s"), "{check:?}");
    let status = service.run(["steadfast", "status", "--instance", "one"]);
    let expected = "no daemon listens on /run/steadfast-one/control.sock: is the service running? \
                    `systemctl status steadfast@one` tells";
    assert!(!status.status.success() && status.stderr.contains(expected), "{status:?}");
    service.ok(["systemctl", "start", &unit("one")]);
    connect(&service, INSTANCES[0]);
}

#[test]
fn a_rotation_as_documented_reloads_every_service_that_runs_and_starts_none() {
    let page = include_str!("../../../docs/journal.md");
    let rotated = page.lines().skip_while(|line| line.trim() != "postrotate").nth(1).expect("its command");
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let rotate = || service.ok(["sh", "-c", rotated]);
    let states = || [unit("one"), UNIT.to_owned()].map(|unit| service.show(&unit, "ActiveState"));
    rotate();
    configure(&service, INSTANCES[0], "");
    service.ok(["systemctl", "start", &unit("one")]);
    let before = processes(&service, "one");
    rotate();
    assert_eq!(states(), ["active", "inactive"]);
    let after = processes(&service, "one");
    assert!(after[0] == before[0] && after[1] != before[1], "{before:?} {after:?}");

    service.ok(["systemctl", "start", UNIT]);
    let worker = service.worker_pid();
    rotate();
    assert_ne!(service.worker_pid(), worker);
    assert_ne!(processes(&service, "one")[1], after[1]);

    service.ok(["systemctl", "stop", &unit("one"), UNIT]);
    rotate();
    assert_eq!(states(), ["inactive"; 2]);
}

#[test]
fn an_instance_without_a_network_of_its_own_serves_by_its_own_socket_unit_over_a_restart() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let shipped = |path: &str| fs::read_to_string(Path::new(PACKAGING).join("systemd").join(path)).unwrap();
    let (name, port) = INSTANCES[0];
    let socket = shipped("system/steadfast.socket")
        .replace("ListenStream=8080\n", &format!("ListenStream={port}\nService={}\n", unit(name)));
    service.write("/etc/systemd/system/steadfast-one.socket", socket);
    let drop_in = "inherited-sockets.conf";
    service.write(
        format!("/etc/systemd/system/steadfast@.service.d/{drop_in}"),
        shipped(&format!("drop-ins/{drop_in}")),
    );
    let listen = "listen = [\"fd:http\", \"unix:/run/steadfast-one/http.sock\"]";
    service.write(
        "/etc/steadfast/one.toml",
        format!("[http]\n{listen}\n[admin]\nlisten = []\n[[route]]\npath = \"/\"\nrespond = \"{name}\"\n"),
    );
    service.ok(["systemctl", "daemon-reload"]);
    service.ok(["systemctl", "start", "steadfast-one.socket", &unit(name)]);
    let mut tcp = connect(&service, INSTANCES[0]);
    let mut unix = Client::connect_unix(service.path("/run/steadfast-one/http.sock")).expect("it listens");
    service.ok(["systemctl", "restart", &unit(name)]);
    for client in [&mut tcp, &mut unix] {
        assert_eq!(client.get("/").unwrap().text(), name);
    }
}
