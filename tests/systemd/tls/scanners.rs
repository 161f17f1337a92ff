//! Those who look at an edge from outside find nothing at the defaults: `just scanners` runs them.

use std::process::{Command, Stdio};

use serde_json::Value;
use steadfast_harness::print_figure;

use super::program::find;
use super::{Edge, PORT};

/// The findings of testssl.sh that are none of the server's, with the reason.
const ACCEPTED: [(&str, &str); 4] = [
    ("engine_problem", "GOST is not in Debian's OpenSSL, nor in the server"),
    ("cert_revocation", "the test's authority revokes nothing"),
    ("HSTS", "the operator decides on it, by `hsts`"),
    ("security_headers", "they are those of a site"),
];

#[test]
#[ignore = "it takes two minutes: `just scanners`"]
fn testssl_finds_nothing_at_the_defaults() {
    let (Some(_), Some(edge)) = (find(file!(), "testssl"), Edge::start(file!(), "")) else {
        return;
    };
    let (mut findings, mut said) = scan(&edge);
    // One of its checks starts a client twice, and gives up on it if that is slow.
    let has_given_up =
        |finding: &Value| finding["finding"].as_str().is_some_and(|text| text.contains("connect problem"));
    if findings.iter().any(has_given_up) {
        (findings, said) = scan(&edge);
    }
    assert!(findings.len() > 100, "{said}");
    let (accepted, complaints): (Vec<_>, Vec<_>) = findings
        .iter()
        .filter(|finding| !["OK", "INFO"].contains(&finding["severity"].as_str().expect("a severity")))
        .partition(|finding| ACCEPTED.iter().any(|(id, _)| finding["id"] == *id));
    assert!(complaints.is_empty(), "{complaints:#?}\n{said}");
    for (id, reason) in ACCEPTED {
        assert!(accepted.iter().any(|finding| finding["id"] == id), "{id} ({reason}) need not be accepted");
    }
    print_figure("testssl.sh at the defaults", format_args!("{} findings, no complaint", findings.len()));
}

/// What testssl.sh finds, and what it says.
fn scan(edge: &Edge) -> (Vec<Value>, String) {
    let file = edge.folder.path().join("findings.json");
    // It does not write over it.
    let _ = std::fs::remove_file(&file);
    let output = edge.enter_network(|| {
        Command::new("testssl")
            // No name server is asked, and nobody.
            .args(["--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--ip", "127.0.0.1"])
            .args(["--add-ca", &edge.authority(), "--jsonfile", &file.display().to_string()])
            .arg(format!("localhost:{PORT}"))
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    });
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let findings = std::fs::read(&file).unwrap_or_else(|e| panic!("{e}: {said}"));
    (serde_json::from_slice(&findings).expect("a list"), said)
}

#[test]
fn sslyze_finds_what_mozilla_recommends_at_the_defaults() {
    let (Some(_), Some(edge)) = (find(file!(), "sslyze"), Edge::start(file!(), "")) else {
        return;
    };
    let file = edge.folder.path().join("scan.json");
    let output = edge.enter_network(|| {
        Command::new("sslyze")
            // Its judgement: versions, suites, groups, certificate, and the attacks that it knows.
            .args(["--mozilla_config", "intermediate", "--certinfo_ca_file", &edge.authority()])
            .args(["--json_out", &file.display().to_string(), &format!("localhost:{PORT}")])
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    });
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("OK - Compliant"), "{said}");
    let scan: Value = serde_json::from_slice(&std::fs::read(&file).expect("its results")).expect("JSON");
    let scans = scan["server_scan_results"][0]["scan_result"].as_object().expect("what it has looked at");
    let states = scans.values().filter_map(|scan| scan["status"].as_str());
    let completed = states.clone().filter(|state| *state == "COMPLETED").count();
    assert!(states.clone().all(|state| ["COMPLETED", "NOT_SCHEDULED"].contains(&state)), "{said}");
    assert!(completed > 12, "{said}");
}
