//! Clients that finish sending with their request, as `nc -N` does, and read on.

use std::fs::File;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;
use steadfast_harness::{Upstream, wait_until};

use crate::site::{Site, files, proxy, respond};
use crate::wire::{Message, connect, read_to_end};

/// The size of a file: more than the sockets between the daemon and a client hold.
const LARGE: usize = 16 << 20;
/// The size of a fixed answer, of which several are more than that: a config cannot be larger.
const FIXED: usize = 900_000;

/// A site whose clients may take their time, with a small and a large answer of each kind.
fn site() -> (tempfile::TempDir, Site) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small"), "small").unwrap();
    File::create(folder.path().join("large")).unwrap().set_len(LARGE as u64).unwrap();
    let tables = respond("/respond/small", "small")
        + &respond("/respond/large", &"x".repeat(FIXED))
        + &files("/files/*", folder.path());
    let site = Site::start("write_timeout = \"10m\"\nmin_rate_grace = \"10m\"\n", &tables);
    (folder, site)
}

/// Sends these requests, and nothing any more.
fn send(site: &Site, paths: &[&str]) -> TcpStream {
    let mut client = connect(site.http);
    let requests = paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
    client.write_all(requests.collect::<String>().as_bytes()).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    client
}

/// Its answer has begun, and its client has not read all that there is room for.
fn wait_until_it_stands(site: &Site) {
    wait_until("an answer to begin", || {
        let answering = site.metric("steadfast_http_connections{state=\"answering\"}");
        let flushing = site.metric("steadfast_http_connections{state=\"flushing\"}");
        (answering + flushing > 0).then_some(())
    });
}

#[test]
fn files_and_fixed_answers_are_whole_for_a_client_that_has_finished_sending() {
    let (_folder, site) = site();
    let (mut answered, alone, together) = (0, 1, 9);
    for (path, length) in
        [("/respond/small", 5), ("/respond/large", FIXED), ("/files/small", 5), ("/files/large", LARGE)]
    {
        for count in [alone, together] {
            answered += count as u64;
            let mut client = send(&site, &vec![path; count]);
            if length * count > LARGE / 4 {
                wait_until_it_stands(&site);
            }
            let received = read_to_end(&mut client);
            let mut rest = &received[..];
            let bodies: Vec<usize> = std::iter::from_fn(|| Message::parse(&mut rest).ok())
                .map(|answer| answer.body.len())
                .collect();
            assert_eq!((bodies, rest.len()), (vec![length; count], 0), "{count} of {path}");
        }
    }
    assert_eq!(site.requests('2'), answered);
    assert_eq!(site.metric("steadfast_http_requests_client_gone_total"), 0);
}

#[test]
fn a_client_that_has_finished_sending_and_then_is_gone_is_noticed() {
    let (_folder, site) = site();
    for (gone, path) in (1..).zip(["/respond/large", "/files/large"]) {
        let client = send(&site, &[path; 9]);
        wait_until_it_stands(&site);
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        wait_until("it to be noticed", || {
            (site.metric("steadfast_http_requests_client_gone_total") == gone).then_some(())
        });
        assert_eq!(site.metric("steadfast_http_requests_in_flight"), 0);
    }
}

/// A client that has gone away looks the same: no upstream goes on working for it.
#[test]
fn a_request_that_waits_for_its_upstream_is_given_up_with_the_end_of_its_client() {
    let upstream = Upstream::start();
    let site = Site::start("", &proxy("/*", upstream.address(), ""));
    let mut client = connect(site.http);
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut exchange = upstream.next_request();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(exchange.is_abandoned());
    assert_eq!(read_to_end(&mut client), b"");
}

#[test]
fn a_body_that_its_client_has_not_sent_whole_keeps_no_connection() {
    let (_folder, site) = site();
    for path in ["/respond/small", "/files/small"] {
        let mut client = connect(site.http);
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
        client.write_all(request.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let received = read_to_end(&mut client);
        assert_eq!(Message::parse(&mut &received[..]).unwrap().status(), 200, "{path}");
        wait_until("it to be closed", || (site.connections() == 0).then_some(()));
    }
}
