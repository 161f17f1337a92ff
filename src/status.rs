//! A running daemon's status, on `GET /status` and on its control socket; `steadfast status` shows it.
//!
//! A [`Status`] is read from the JSON that the daemon answers with:
//!
//! ```
//! # let answer = r#"{"phase":"serving","version":"0.1.0","pid":1,"uptime":2.5,"children":[],"connections":{"parked":1,
//! #   "reading":0,"answering":0,"flushing":0,"discarding":0,"tunnel":0,"closing":0},"totals":{"connections":1,"requests":1,"client_gone":0,"broken_off":0,"cut":0,
//! #   "handed_over":[0,0],"taken_over":[0,0]},"requests":[]}"#;
//! let status: steadfast::status::Status = serde_json::from_str(answer)?;
//! println!("{status}");
//! # Ok::<(), serde_json::Error>(())
//! ```

pub use crate::daemon::overview::{Health, Row};
pub use crate::daemon::status::{
    CertificateStatus, ChildStatus, Connections, Drain, Handshakes, History, InFlightRequest, MainProcess,
    Named, Predecessor, Rates, Report, Status, Tls, Totals,
};

/// What comes from outside, and numbers, fit to be shown to people.
pub mod shown {
    pub use crate::daemon::status::{grouped, lasting, printable, rate, size};
}
pub use crate::server::State;
pub use crate::systemd::runtime::control_path;
