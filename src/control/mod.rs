//! The commands that talk to the running daemon, over its control socket.

mod screen;

use std::io::{self, IsTerminal, Write};
use std::process::{Command, ExitCode};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use steadfast::Exit;
use steadfast::status::Status;
use tokio::net::UnixStream;

use crate::unit::Unit;

/// The time between two looks of `status --watch`.
const WATCH: Duration = Duration::from_secs(1);

/// The number of times that a request is made, should its connection be closed each time.
const ATTEMPTS: u32 = 5;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// `steadfast reload`.
pub(crate) fn reload(unit: &Unit) -> Exit {
    finish(block_on(async {
        loop {
            let (status, text) = ask(unit, Method::POST, "/reload").await?;
            match status {
                StatusCode::OK => {
                    print!("{text}");
                    return Ok(());
                }
                // Another reload has come first: the process that it brought is asked.
                StatusCode::SERVICE_UNAVAILABLE => {}
                _ => return Err(text.trim_end().into()),
            }
        }
    }))
}

/// `steadfast announce-stop`, the unit's `ExecStop=`. systemd runs that before SIGTERM for a stop and for a restart
/// alike; only its list of jobs tells which.
pub(crate) fn announce_stop(unit: &Unit) -> Exit {
    let announced = unit_is_stopped().and_then(|stopped| {
        if !stopped {
            return Ok(());
        }
        match block_on(ask(unit, Method::POST, "/announce-stop"))? {
            (status, _) if status.is_success() => Ok(()),
            refused => Err(refusal(refused)),
        }
    });
    // The unit goes on with the stop all the same ("ExecStop=-"): what is lost by that is a warning.
    finish(announced.map_err(|error| {
        format!("{}cannot announce the stop, so that clients are not told of it: {error}", warning()).into()
    }))
}

/// The prefix that makes a line on stderr a warning where the journal reads it (sd-daemon(3)).
fn warning() -> &'static str {
    if std::env::var_os("JOURNAL_STREAM").is_some() { "<4>" } else { "" }
}

/// True if the job that is under way for the unit of this process is a stop, not a restart.
fn unit_is_stopped() -> Result<bool, Failure> {
    // "0::/system.slice/steadfast.service" (cgroups(7)).
    let cgroup = std::fs::read_to_string("/proc/self/cgroup")?;
    let unit = cgroup.trim_end().rsplit('/').find(|part| part.ends_with(".service"));
    let unit = unit.ok_or("this is for the ExecStop= of a unit")?;
    // ".../user@1000.service/app.slice/steadfast.service" is a unit of that user's own manager (`systemd --user`).
    let manager = if cgroup.contains("/user@") { "--user" } else { "--system" };
    let jobs = Command::new("systemctl").args([manager, "list-jobs", "--no-legend", unit]).output()?;
    // "123 steadfast.service stop running"
    let jobs = String::from_utf8_lossy(&jobs.stdout);
    Ok(jobs.lines().any(|job| job.split_whitespace().nth(2) == Some("stop")))
}

/// `steadfast status`: once, or with `watch` again and again: on a screen where there is one. A signal that ends the
/// screen makes the exit code 128 and its number, as a shell has it.
pub(crate) fn status(unit: &Unit, watch: bool, json: bool) -> ExitCode {
    if watch && !json && io::stdout().is_terminal() && io::stdin().is_terminal() {
        let unit = unit.clone();
        let ended = screen::watch(move || {
            let text = block_on(ask_for_status(&unit))?;
            Ok(serde_json::from_str(&text)?)
        });
        return match ended {
            Ok(Some(signal)) => (128 + signal).into(),
            ended => finish(ended.map(drop)).into(),
        };
    }
    let told = finish(block_on(async {
        loop {
            let mut text = ask_for_status(unit).await?;
            if json {
                text.push('\n');
            } else {
                text = serde_json::from_str::<Status>(&text)?.to_string();
            }
            match io::stdout().lock().write_all(text.as_bytes()) {
                // Whoever read it has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
            if !watch {
                return Ok(());
            }
            tokio::time::sleep(WATCH).await;
        }
    }));
    told.into()
}

async fn ask_for_status(unit: &Unit) -> Result<String, Failure> {
    match ask(unit, Method::GET, "/status").await? {
        (StatusCode::OK, text) => Ok(text),
        refused => Err(refusal(refused)),
    }
}

/// The error of an answer that is none.
fn refusal((status, text): (StatusCode, String)) -> Failure {
    format!("the daemon answers {status} {}", text.trim()).trim_end().into()
}

fn finish(result: Result<(), Failure>) -> Exit {
    match result {
        Ok(()) => Exit::Clean,
        Err(error) => {
            eprintln!("{error}");
            Exit::Failed
        }
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// One request to the daemon. A process that is being replaced may close a connection before it has been asked; then
/// its successor is. No request means anything else for being made twice.
async fn ask(unit: &Unit, method: Method, path: &str) -> Result<(StatusCode, String), Failure> {
    let mut attempts = ATTEMPTS;
    loop {
        attempts -= 1;
        match ask_once(unit, &method, path).await {
            Err(error) if attempts > 0 && is_closed(&*error) => {}
            outcome => return outcome,
        }
    }
}

/// True if a connection was closed without an answer.
fn is_closed(error: &(dyn std::error::Error + 'static)) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(|e| !e.is_parse() && !e.is_user())
}

async fn ask_once(unit: &Unit, method: &Method, path: &str) -> Result<(StatusCode, String), Failure> {
    let socket = unit.control_path();
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        let socket = socket.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                format!(
                    "no daemon listens on {socket}: is the service running? `systemctl status {}` tells",
                    unit.shown()
                )
            }
            io::ErrorKind::PermissionDenied => format!("{socket} is the daemon's own: run this as root"),
            _ => format!("cannot reach the daemon on {socket}: {error}"),
        }
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method.clone())
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONNECTION, "close")
        .body(Body::empty())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        Ok::<_, Failure>((status, String::from_utf8_lossy(&text).into_owned()))
    };
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

#[cfg(test)]
mod tests {
    //! What the daemon says that is no answer is passed on.

    use super::*;

    #[test]
    fn a_refusal_is_said_with_its_status_and_its_reason() {
        let said = |status, text: &str| refusal((status, text.to_owned())).to_string();
        let (failed, draining) = (StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(said(failed, ""), "the daemon answers 500 Internal Server Error");
        assert_eq!(said(draining, "draining\n"), "the daemon answers 503 Service Unavailable draining");
    }
}
