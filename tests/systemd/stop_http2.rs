//! Stopping under clients that speak HTTP/2: each of their streams is a request, which is finished or named.

use std::time::Duration;

use axum::http::Request;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use steadfast_harness::{Upstream, wait_until};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::service::{CONFIG, PROXY, Service, UNIT};

const HTTP: &str = "127.0.0.1:8080";

/// A client on one connection, which is served while a test goes on.
struct Client {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    connection: tokio::task::JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    fn connect(service: &Service) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let connect = service.enter_network(|| runtime.block_on(TcpStream::connect(HTTP)));
        let (requests, connection) = runtime
            .block_on(h2::client::handshake(connect.expect("steadfast accepts")))
            .expect("it speaks HTTP/2");
        let connection = runtime.spawn(connection);
        Self { runtime, requests, connection }
    }

    fn ask(&self, path: &str) -> ResponseFuture {
        let request = Request::get(format!("http://test{path}")).body(()).expect("a request");
        let mut requests = self.runtime.block_on(self.requests.clone().ready()).expect("it takes requests");
        requests.send_request(request, true).expect("a request").0
    }

    /// Returns when it knows that it may ask for nothing more here.
    fn wait_for_the_end_of_requests(&self) {
        wait_until("the client to be told of the end", || {
            self.runtime.block_on(self.requests.clone().ready()).is_err().then_some(())
        });
    }

    /// The status of an answer, and its whole body.
    fn receive(&self, answer: ResponseFuture) -> Result<(u16, Vec<u8>), h2::Error> {
        self.runtime.block_on(async {
            let (head, mut body) = answer.await?.into_parts();
            let mut whole = Vec::new();
            while let Some(bytes) = body.data().await.transpose()? {
                body.flow_control().release_capacity(bytes.len())?;
                whole.extend_from_slice(&bytes);
            }
            Ok((head.status.as_u16(), whole))
        })
    }
}

fn start(file: &str, rest: &str) -> Option<(Service, Upstream)> {
    let service = Service::install(file, "")?;
    let listen =
        format!("[http]\nlisten = [\"{HTTP}\"]\nh2c = true\n[admin]\nlisten = [\"127.0.0.1:9090\"]\n");
    service.write(CONFIG, format!("{listen}{rest}{PROXY}"));
    service.ok(["systemctl", "start", UNIT]);
    let upstream = service.upstream();
    Some((service, upstream))
}

#[test]
fn a_stream_in_flight_at_systemctl_stop_is_answered_and_its_connection_ends_well() {
    let Some((service, upstream)) = start(file!(), "") else { return };
    let client = Client::connect(&service);
    let answer = client.ask("/app/slow");
    let exchange = upstream.next_request();
    service.stop_meanwhile(|| {
        client.wait_for_the_end_of_requests();
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive(answer).expect("it is whole"), (200, b"worth the wait".to_vec()));
        client.runtime.block_on(client.connection).expect("it is served").expect("it was told of the end");
    });
    service.assert_stopped_with(0);
}

#[test]
fn a_stream_longer_than_the_deadline_is_cut_then_by_name_and_the_one_beside_it_is_answered() {
    let Some((service, upstream)) = start(file!(), "[shutdown]\ndeadline = \"4s\"\n") else { return };
    let client = Client::connect(&service);
    let [answer, cut] = ["/app/slow", "/app/export?all=1"].map(|path| client.ask(path));
    let mut exchanges = [upstream.next_request(), upstream.next_request()];
    exchanges.sort_by_key(|exchange| exchange.head.contains("/app/export"));
    let [slow, _unanswered] = exchanges;
    let stop = service.stop_meanwhile(|| {
        client.wait_for_the_end_of_requests();
        slow.answer(200, "worth the wait");
        assert_eq!(client.receive(answer).expect("it is whole"), (200, b"worth the wait".to_vec()));
    });
    assert!(stop.took >= Duration::from_secs(4), "{:?}", stop.took);
    client.receive(cut).expect_err("nobody has answered it");
    service.assert_stopped_with(3);

    let warnings = service.journal(UNIT, &["-p", "warning"]);
    let cut: Vec<_> = warnings.lines().filter(|line| line.contains("cut by the deadline")).collect();
    let [line] = &cut[..] else { panic!("one warning per stream that is cut:\n{warnings}") };
    assert!(line.contains("GET /app/export from 127.0.0.1:"), "{line}");
    let report = service.journal(UNIT, &[]);
    assert!(report.contains(": 1 request finished, 1 cut;"), "{report}");
}
