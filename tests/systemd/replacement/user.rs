//! A service of a user's own manager (`systemd --user`): the announcement of a stop asks that one.

use steadfast_harness::{Client, wait_with};

use crate::service::Service;

/// A manager for root, as `user@0.service` of systemd is where there are sessions.
const MANAGER: &str = "[Service]
Type=notify
Delegate=yes
RuntimeDirectory=user/0
Environment=XDG_RUNTIME_DIR=/run/user/0
ExecStart=/lib/systemd/systemd --user
";

/// The lines that a user's unit needs.
const UNIT: &str = "[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/steadfast run --config /etc/steadfast/user.toml
ExecReload=/usr/bin/steadfast reload
ExecStop=-/usr/bin/steadfast announce-stop
KillMode=process
FileDescriptorStoreMax=64
Environment=STEADFAST_FDSTORE=64
RuntimeDirectory=steadfast
RuntimeDirectoryPreserve=restart
";

const CONFIG: &str = "[http]
listen = [\"127.0.0.1:8083\"]
[admin]
listen = []
[[route]]
path = \"/\"
respond = \"hello\"
";

#[test]
fn under_a_users_manager_a_reload_and_a_restart_carry_and_a_stop_is_announced() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.write("/etc/systemd/system/user@0.service", MANAGER);
    service.write("/etc/systemd/user/steadfast.service", UNIT);
    service.write("/etc/steadfast/user.toml", CONFIG);
    service.ok(["systemctl", "daemon-reload"]);
    service.ok(["systemctl", "start", "user@0.service"]);
    let user = |command: &[&str]| {
        let environment = ["env", "XDG_RUNTIME_DIR=/run/user/0"];
        service.ok(environment.iter().chain(command).copied())
    };
    user(&["systemctl", "--user", "start", "steadfast"]);
    let mut client = service.enter_network(|| Client::connect("127.0.0.1:8083".parse().unwrap())).unwrap();
    assert_eq!(client.get("/").unwrap().status, 200);
    user(&["systemctl", "--user", "reload", "steadfast"]);
    user(&["systemctl", "--user", "restart", "steadfast"]);
    let answer = client.get("/").unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, None));
    // For a moment the worker that hands over may still answer on the control socket.
    let status = || user(&["/usr/bin/steadfast", "status"]);
    wait_with(|| status().contains(": serving, ").then_some(()), || format!("\"serving\" in:\n{}", status()));

    user(&["systemctl", "--user", "stop", "steadfast"]);
    let journal = service.journal("user@0.service", &[]);
    assert!(journal.contains("the service is being stopped: nothing is left"), "{journal}");
    client.wait_for_close().unwrap();
}
