//! The journal's entries, field by field.

use serde_json::{Value, json};
use steadfast_harness::{build_examples, wait_until};

use crate::service::{CONFIG, Service, UNIT};

#[test]
fn the_fields_of_a_users_spans_are_fields_of_their_own_in_the_journal() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    // A service with spans of its own, in place of the binary.
    service.copy(&build_examples(&["--example", "troubled"]).join("troubled"), "/usr/bin/troubled", "0755");
    service.write(CONFIG, "http.listen = [\"127.0.0.1:8080\"]\n");
    service.edit_unit(&format!("ExecStart=\nExecStart=/usr/bin/troubled {CONFIG}"));
    service.ok(["systemctl", "start", UNIT]);
    assert_eq!(service.connect().get("/traced/42").unwrap().status, 200);

    let entry = wait_until("the handler's words in the journal", || {
        let journal = service.journal_json(UNIT, &[]);
        let mut entries = journal.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        entries.find(|entry| entry["MESSAGE"] == "looked it up")
    });
    for (field, value) in [("ID", "42"), ("FOUND", "true"), ("NUMBER", "7")] {
        assert_eq!(entry[field], value, "{field} in {entry:#}");
    }
    assert_eq!(entry["SPAN_NAME"], json!(["traced", "step"]), "{entry:#}");
}
