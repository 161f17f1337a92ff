//! Replacements while a stream, a download and a slow request are under way.

use std::time::Duration;

use steadfast_harness::{Load, print_figure};

use super::CLIENTS;
use super::lasting::Lasting;
use crate::service::{Service, UNIT};

/// Ten restarts or reloads: the longest of them, and the longest wait of a client.
fn ten(service: &Service, load: &Load, next: fn(&Service) -> Duration) -> (Duration, Duration) {
    // What was before does not count.
    let _ = load.longest_wait();
    let replacements = (0..10).map(|_| {
        service.reset_failed();
        let took = next(service);
        // Every client has surely been answered by the new worker.
        load.advance(500);
        took
    });
    let longest = replacements.max().expect("there are ten");
    (longest, load.longest_wait())
}

fn nobody_waits_for_what_lasts(file: &str, what: &str, next: fn(&Service) -> Duration) {
    let Some((service, upstream)) = Service::start_for_lasting(file, "") else {
        return;
    };
    let load = service.load(CLIENTS);
    load.advance(2000);
    let (took_without, wait_without) = ten(&service, &load, next);
    let lasting = Lasting::begin(&service, &upstream);
    let (took, wait) = ten(&service, &load, next);
    let outcome = lasting.end();
    let account = load.finish();
    print_figure(
        &format!(
            "longest wait of {CLIENTS} busy clients over ten {what} with a stream, a download and a slow request"
        ),
        format_args!("{} ms (without them {} ms)", wait.as_millis(), wait_without.as_millis()),
    );
    print_figure(
        &format!("longest of these ten {what}"),
        format_args!("{} ms (without them {} ms)", took.as_millis(), took_without.as_millis()),
    );
    print_figure(
        &format!("twenty {what} under load"),
        format_args!("{account}; {} events, none missing", outcome.events),
    );
    service.assert_nothing_lost(&account);
    assert!(outcome.left > 0, "the download was over before the {what}");
    assert_eq!(service.show(UNIT, "NRestarts"), "0");
    // They waited for neither: it has been ten times as much.
    assert!(took < Duration::from_secs(10) && wait < Duration::from_secs(5), "{took:?}, {wait:?}");
}

#[test]
fn ten_restarts_with_a_stream_a_download_and_a_slow_request_lose_nothing_and_hold_up_nobody() {
    nobody_waits_for_what_lasts(file!(), "restarts", Service::restart);
}

#[test]
fn ten_reloads_with_a_stream_a_download_and_a_slow_request_lose_nothing_and_hold_up_nobody() {
    nobody_waits_for_what_lasts(file!(), "reloads", Service::reload);
}
