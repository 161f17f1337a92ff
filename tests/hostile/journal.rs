//! The promises that need a box: a journal that does not take what it is given, and clients from other addresses.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use steadfast_harness::{Client, Load, Machine, print_figure, wait_until};

use crate::site::{BINARY, PACKAGING, metric_in};

const UNIT: &str = "steadfast.service";
const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 8080);
const ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 9090);
/// The lines of accesses, and the other events, that the log had no room for.
const ACCESS_LOST: &str = "steadfast_access_log_lost_total";
const LOST: &str = "steadfast_log_lost_total";

fn start(config: &str) -> Option<Machine> {
    let machine = Machine::boot_or_skip(file!())?;
    machine.install(Path::new(BINARY), Path::new(PACKAGING));
    machine.write("/etc/steadfast/config.toml", config);
    machine.ok(["systemctl", "start", UNIT]);
    Some(machine)
}

fn metric(machine: &Machine, series: &str) -> u64 {
    let answer = machine.enter_network(|| Client::connect(ADMIN.into()).and_then(|mut c| c.get("/metrics")));
    metric_in(&answer.expect("the admin child answers").text(), series)
}

#[test]
fn no_request_waits_for_the_journal_and_what_it_does_not_take_is_counted() {
    // The longest that anybody may wait while the journal takes nothing at all: a request that waited for it would
    // wait for as long as it stands.
    const LONG: Duration = Duration::from_secs(2);
    let Some(machine) = start(
        "[http]\nlisten = [\"127.0.0.1:8080\"]\n[log]\naccess = \"all\"\n[[route]]\npath = \"/\"\nrespond = \"hello\"\n",
    ) else {
        return;
    };
    let load = machine.enter_network(|| Load::start(4, HTTP.into(), "/"));
    load.advance(1000);
    let _ = load.longest_wait();
    load.advance(1000);
    let before = load.longest_wait();

    machine.ok(["systemctl", "kill", "--signal=STOP", "systemd-journald.service"]);
    // More than the queue and the kernel's buffer hold.
    wait_until("events to be lost", || {
        load.advance(1000);
        (metric(&machine, ACCESS_LOST) > 0).then_some(())
    });
    load.advance(5000);
    let frozen = load.longest_wait();
    let lost = metric(&machine, ACCESS_LOST);
    machine.ok(["systemctl", "kill", "--signal=CONT", "systemd-journald.service"]);
    assert!(frozen < LONG, "{before:?} became {frozen:?}");

    // It is slow, or gone: the same.
    machine.ok(["systemctl", "restart", "systemd-journald.service"]);
    load.advance(5000);
    let restarted = load.longest_wait();
    assert!(restarted < LONG, "{before:?} became {restarted:?}");
    let account = load.finish();
    assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
    print_figure(
        "the longest wait of a request whose line is logged",
        format_args!(
            "{before:?} with the journal, {frozen:?} while it is stopped ({lost} lines lost and counted), {restarted:?} while it restarts"
        ),
    );
    // The daemon logs on where the journal is back.
    let mut client = machine.enter_network(|| Client::connect(HTTP.into())).unwrap();
    assert_eq!(client.get("/?after").unwrap().status, 200);
    wait_until("the journal to have a line again", || {
        machine.journal_json(UNIT, &["-n", "50"]).contains("after").then_some(())
    });
    assert_eq!(machine.show(UNIT, "ActiveState"), "active");
}

#[test]
fn what_is_logged_while_there_is_no_journal_is_counted_as_lost() {
    const REQUESTS: u64 = 100;
    let Some(machine) = start(
        "[http]\nlisten = [\"127.0.0.1:8080\"]\n[log]\naccess = \"all\"\n[[route]]\npath = \"/\"\nrespond = \"hello\"\n",
    ) else {
        return;
    };
    let (socket, moved) = ("/run/systemd/journal/socket", "/run/systemd/journal/moved");
    machine.ok(["mv", socket, moved]);
    let mut client = machine.enter_network(|| Client::connect(HTTP.into())).unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(client.get("/").unwrap().status, 200);
    }
    wait_until("each to be counted", || (metric(&machine, ACCESS_LOST) == REQUESTS).then_some(()));
    // The event that says so is lost itself.
    wait_until("an event to be counted", || (metric(&machine, LOST) > 0).then_some(()));
    machine.ok(["mv", moved, socket]);
    assert_eq!(client.get("/?after").unwrap().status, 200);
    wait_until("the journal to have a line again", || {
        machine.journal_json(UNIT, &["-n", "50"]).contains("after").then_some(())
    });
    assert_eq!(metric(&machine, ACCESS_LOST), REQUESTS);
}

#[test]
fn a_flood_of_accesses_takes_no_room_from_what_an_operator_must_see() {
    let Some(machine) = start(
        "[http]\nlisten = [\"127.0.0.1:8080\"]\n[log]\naccess = \"all\"\n[[route]]\npath = \"/\"\nrespond = \"hello\"\n\
         [[route]]\npath = \"/absent\"\nproxy = { to = \"http://127.0.0.1:9\", retry_for = \"0s\" }\n",
    ) else {
        return;
    };
    machine.ok(["systemctl", "kill", "--signal=STOP", "systemd-journald.service"]);
    let load = machine.enter_network(|| Load::start(4, HTTP.into(), "/"));
    wait_until("accesses to be lost", || {
        load.advance(1000);
        (metric(&machine, ACCESS_LOST) > 0).then_some(())
    });
    // There is no room for a line of an access any more, and there is for this.
    let mut client = machine.enter_network(|| Client::connect(HTTP.into())).unwrap();
    assert_eq!(client.get("/absent").unwrap().status, 502);
    load.advance(1000);
    let lost = metric(&machine, LOST);
    machine.ok(["systemctl", "kill", "--signal=CONT", "systemd-journald.service"]);
    let account = load.finish();
    assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
    assert_eq!(lost, 0, "events are lost with the accesses");
    wait_until("the journal to have the event", || {
        machine.journal(UNIT, &["-p", "warning"]).contains("proxied request failed").then_some(())
    });
}

#[test]
fn neither_a_reload_nor_a_restart_waits_for_a_journal_that_takes_nothing() {
    let Some(machine) = start(
        "[http]\nlisten = [\"127.0.0.1:8080\"]\nrequests_per_connection = 1000000\n[log]\naccess = \"all\"\n[[route]]\npath = \"/\"\nrespond = \"hello\"\n",
    ) else {
        return;
    };
    let load = machine.enter_network(|| Load::start(4, HTTP.into(), "/"));
    load.advance(1000);
    machine.ok(["systemctl", "kill", "--signal=STOP", "systemd-journald.service"]);
    wait_until("accesses to be lost", || {
        load.advance(1000);
        (metric(&machine, ACCESS_LOST) > 0).then_some(())
    });
    // A process that waited would be given up by the main process, or by systemd.
    for verb in ["reload", "restart", "reload"] {
        machine.ok(["systemctl", verb, UNIT]);
        load.advance(1000);
    }
    machine.ok(["systemctl", "kill", "--signal=CONT", "systemd-journald.service"]);
    let account = load.finish();
    assert_eq!((account.refused, account.dropped, account.closed), (0, 0, 0), "{account}");
    assert_eq!(machine.show(UNIT, "NRestarts"), "0");
}

#[test]
fn long_paths_fill_no_memory_while_the_journal_stands_still() {
    /// The queue's 8 MiB, and several times as much for all else.
    const MOST: u64 = 64 << 20;
    let Some(machine) = start(
        "[http]\nlisten = [\"127.0.0.1:8080\"]\n[log]\naccess = \"all\"\n[[route]]\npath = \"/*\"\nrespond = \"hello\"\n",
    ) else {
        return;
    };
    machine.ok(["systemctl", "kill", "--signal=STOP", "systemd-journald.service"]);
    // The queue has room for 8,192 events: twice `MOST`, if they were kept whole.
    let path: &'static str = format!("/{}", "a".repeat(16_000)).leak();
    let load = machine.enter_network(|| Load::start(8, HTTP.into(), path));
    let mut most = 0;
    wait_until("events to be lost", || {
        load.advance(200);
        most = most.max(metric(&machine, "process_resident_memory_bytes"));
        (metric(&machine, ACCESS_LOST) > 0).then_some(())
    });
    machine.ok(["systemctl", "kill", "--signal=CONT", "systemd-journald.service"]);
    let account = load.finish();
    assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
    print_figure(
        "memory in use while the journal takes no line of 16 KB paths",
        format_args!("{} MiB", most >> 20),
    );
    assert!(most < MOST, "{} MiB", most >> 20);
}

#[test]
fn a_client_with_too_many_connections_is_turned_away_and_no_other_is() {
    let Some(machine) = start(
        "[http]\nlisten = [\"0.0.0.0:8080\"]\nconnections_per_client = 5\ntrusted_proxies = [\"192.0.2.9\"]\n[[route]]\npath = \"/\"\nrespond = \"hello\"\n",
    ) else {
        return;
    };
    // Addresses that are not the loopback's, on its device.
    for host in 1..=9 {
        machine.ok(["ip", "addr", "add", &format!("192.0.2.{host}/32"), "dev", "lo"]);
    }
    let connect = |host: u8| -> TcpStream {
        machine.enter_network(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::new(IpAddr::from([192, 0, 2, host]), 0).into()).unwrap();
            socket.connect(&SocketAddr::from(([192, 0, 2, 1], 8080)).into()).unwrap();
            socket.into()
        })
    };
    let served = |stream: &mut TcpStream| -> bool {
        use std::io::{Read, Write};
        let mut bytes = [0; 15];
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_ok()
            && stream.read_exact(&mut bytes).is_ok()
            && bytes == *b"HTTP/1.1 200 OK"
    };
    let mut greedy: Vec<TcpStream> = (0..5).map(|_| connect(2)).collect();
    assert!(greedy.iter_mut().all(served));
    for _ in 0..20 {
        assert!(!served(&mut connect(2)));
    }
    assert_eq!(metric(&machine, "steadfast_http_refused_total{reason=\"connections_per_client\"}"), 20);
    // Others have connections of their own, and a trusted proxy is not one client.
    let mut others: Vec<TcpStream> = (3..9).map(connect).collect();
    assert!(others.iter_mut().all(served));
    let mut proxied: Vec<TcpStream> = (0..20).map(|_| connect(9)).collect();
    assert!(proxied.iter_mut().all(served));
    // One that closes makes room for one.
    drop(greedy.pop());
    wait_until("a connection to be free", || served(&mut connect(2)).then_some(()));
}
