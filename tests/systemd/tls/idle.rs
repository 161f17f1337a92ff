//! Idle TLS connections: all of them go along, and each costs little.

use super::{Edge, https};
use crate::idle::{MANY, is_release, survive};

/// Enough of them for each run of all tests: a handshake takes its time.
const ENOUGH: usize = 3_000;

#[test]
fn three_thousand_idle_tls_connections_survive_a_restart_and_a_reload() {
    assert_survive(ENOUGH);
}

#[test]
#[ignore = "it takes a minute: `just tls-idle`"]
fn fifteen_thousand_idle_tls_connections_survive_a_restart_and_a_reload() {
    assert_survive(MANY);
}

/// Idle connections of this number survive a restart and a reload.
fn assert_survive(number: usize) {
    let Some(edge) = Edge::install(file!(), "") else {
        return;
    };
    let each = survive(&edge, number, "idle TLS connections", &https(""), || edge.secured());
    assert!(!is_release() || each <= 3000, "{each} bytes for each");
}
