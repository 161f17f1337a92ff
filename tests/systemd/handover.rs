//! What a restart and a reload leave untouched.

use crate::service::{Service, UNIT};

#[test]
fn an_idle_connection_survives_a_restart() {
    let Some(service) = Service::start(file!(), "") else { return };
    let mut client = service.connect();
    let r = client.get("/").unwrap();
    println!("{:?}", r.status);
    service.ok(["systemctl", "restart", UNIT]);
    let r = client.get("/");
    println!("{}", service.journal(UNIT, &[]));
    println!("{}", service.show(UNIT, "NFileDescriptorStore"));
    assert!(r.is_ok(), "{r:?}");
}

#[test]
fn an_idle_connection_survives_a_reload() {
    let Some(service) = Service::start(file!(), "") else { return };
    let mut client = service.connect();
    let r = client.get("/").unwrap();
    println!("{:?}", r.status);
    let out = service.run(["systemctl", "reload", UNIT]);
    println!("{} {}", out.stdout, out.stderr);
    let r = client.get("/");
    println!("{}", service.journal(UNIT, &[]));
    println!("{}", service.run(["systemctl", "status", UNIT]).stdout);
    assert!(r.is_ok(), "{r:?}");
}
