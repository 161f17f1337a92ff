//! `slowhttptest`, with a client beside it that is served all along.

use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::recorder::Recorder;
use crate::site::{Site, proxy};

/// The length of each mode, in seconds.
const LENGTH: &str = "15";

#[test]
fn slowhttptest_does_not_make_the_service_unavailable() {
    if Command::new("slowhttptest").arg("-h").output().is_err() {
        let required = std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
        assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but there is no `slowhttptest` in PATH");
        // Past the capture that the test runner puts around `eprintln!`.
        let _ =
            writeln!(std::io::stderr(), "skipped: {} , because there is no `slowhttptest` in PATH", file!());
        return;
    }
    let upstream = Recorder::answering(
        [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1 << 20).into_bytes(), vec![b'x'; 1 << 20]]
            .concat(),
    );
    let limits = "header_timeout = \"5s\"\nread_timeout = \"5s\"\nwrite_timeout = \"5s\"";
    let modes: [&[&str]; 3] = [
        &["-H", "-u"],
        &["-B", "-u"],
        &["-X", "-k", "3", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-u"],
    ];
    thread::scope(|scope| {
        for mode in modes {
            let tables = proxy("/app/*", upstream.address, "");
            scope.spawn(move || {
                let site = Site::start(limits, &(tables + "[[route]]\npath = \"/*\"\nstatus = true\n"));
                let path = if mode[0] == "-X" { "app/" } else { "" };
                let mut attack = Command::new("slowhttptest")
                    .args(["-c", "500", "-r", "200", "-i", "2", "-p", "5", "-l", LENGTH])
                    .args(mode)
                    .arg(format!("http://{}/{path}", site.http))
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut kept = site.client();
                let mut asked = 0;
                while attack.try_wait().unwrap().is_none() {
                    assert_eq!(kept.get("/kept").expect("it is served all along").status, 200);
                    site.assert_available("/fresh");
                    asked += 2;
                    thread::sleep(Duration::from_millis(50));
                }
                let output = attack.wait_with_output().unwrap();
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                // Its own probes agree.
                assert!(said.contains("service available:"), "{said}");
                let available =
                    said.lines().filter_map(|line| line.split_once("service available:")).next_back();
                assert!(available.is_some_and(|(_, rest)| rest.contains("YES")), "{said}");
                assert!(asked > 50, "{asked}");
                assert!(site.metric("steadfast_http_connections_accepted_total") > 400, "{said}");
            });
        }
    });
}
