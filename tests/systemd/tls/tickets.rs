//! Sessions are resumed by tickets, also by those of a process that has ended.

use std::process::{Command, Output, Stdio};

use super::program::find;
use super::{Edge, PORT};
use crate::service::Service;

/// One connection of `openssl s_client`, with a session from a file, or into it.
fn connect(edge: &Edge, version: &str, session: [&str; 2]) -> String {
    let Output { stdout, stderr, .. } = edge.enter_network(|| {
        // It ends after the answer, which comes with or after the tickets.
        let request = "printf 'GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'";
        let ask = format!("{request} | openssl s_client -ign_eof \"$@\"");
        Command::new("sh")
            .args(["-c", &ask, "sh", version, "-connect", &format!("127.0.0.1:{PORT}")])
            .args(["-servername", "localhost", "-verify_return_error", "-CAfile", &edge.authority()])
            .args(session)
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    });
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(said.contains("HTTP/1.1 200 OK"), "{said}{}", String::from_utf8_lossy(&stderr));
    said
}

#[test]
fn a_session_is_resumed_over_a_restart_and_a_reload_and_not_after_its_keys_were_thrown_away() {
    let (Some(_), Some(edge)) = (find(file!(), "openssl"), Edge::start(file!(), "")) else {
        return;
    };
    for version in ["-tls1_3", "-tls1_2"] {
        let file = edge.folder.path().join(version).display().to_string();
        assert!(connect(&edge, version, ["-sess_out", &file]).contains("\nNew, "), "{version}");
        for next in [Service::restart, Service::reload] {
            next(&edge);
            // The last of what the other had has come.
            edge.wait_for_one_worker();
            let said = connect(&edge, version, ["-sess_in", &file]);
            assert!(said.contains("\nReused, "), "{version}: {said}");
        }
    }
    // A start after a stop has keys of its own.
    let file = edge.folder.path().join("-tls1_3").display().to_string();
    edge.stop();
    edge.ok(["systemctl", "start", crate::service::UNIT]);
    assert!(connect(&edge, "-tls1_3", ["-sess_in", &file]).contains("\nNew, "));
}
