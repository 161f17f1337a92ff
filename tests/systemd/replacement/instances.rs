//! Instances of one unit file: each has its own main process, store, control socket and announcement of a stop.

use std::fs;
use std::path::Path;

use steadfast_harness::Client;

use crate::service::{PACKAGING, Service};

/// The instances, and where each listens.
const INSTANCES: [(&str, u16); 2] = [("one", 8081), ("two", 8082)];

fn unit(instance: &str) -> String {
    format!("steadfast@{instance}.service")
}

#[test]
fn each_instance_is_reloaded_restarted_and_stopped_alone() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    let shipped = Path::new(PACKAGING).join("systemd/system/steadfast.service");
    let shipped = fs::read_to_string(shipped).unwrap();
    let template = shipped
        .replace("/etc/steadfast/config.toml", "/etc/steadfast/%i.toml")
        .replace("RuntimeDirectory=steadfast\n", "RuntimeDirectory=steadfast/%i\n");
    assert_ne!(template, shipped);
    service.write("/etc/systemd/system/steadfast@.service", template);
    service.ok(["systemctl", "daemon-reload"]);
    let mut clients = Vec::new();
    for (instance, port) in INSTANCES {
        let config = format!("[http]\nlisten = [\"127.0.0.1:{port}\"]\n[admin]\nlisten = []\n");
        let route = "[[route]]\npath = \"/\"\nrespond = \"hello\"\n";
        service.write(format!("/etc/steadfast/{instance}.toml"), config + route);
        service.ok(["systemctl", "start", &unit(instance)]);
        let mut client =
            service.enter_network(|| Client::connect(format!("127.0.0.1:{port}").parse().unwrap())).unwrap();
        assert_eq!(client.get("/").unwrap().status, 200);
        clients.push(client);
    }
    let [(one, _), (two, _)] = INSTANCES;
    let others = service.show(&unit(two), "MainPID");
    service.ok(["systemctl", "reload", &unit(one)]);
    service.ok(["systemctl", "restart", &unit(one)]);
    assert_eq!(service.show(&unit(two), "MainPID"), others);
    for client in &mut clients {
        let answer = client.get("/").unwrap();
        assert_eq!((answer.status, answer.header("connection")), (200, None));
    }
    service.ok(["systemctl", "stop", &unit(one)]);
    let journal = service.journal(&unit(one), &[]);
    assert!(journal.contains("the service is being stopped: nothing is left"), "{journal}");
    assert_eq!(clients[1].get("/").unwrap().status, 200);
    assert_eq!(service.show(&unit(two), "ActiveState"), "active");
}
