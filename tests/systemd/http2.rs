//! Clients that speak HTTP/2: a reload or a restart ends their connections, and none of their requests.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use axum::http::Request;
use bytes::Bytes;
use h2::client::SendRequest;
use steadfast_harness::{Trust, print_figure, wait_until};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::service::{CONFIG, ROUTES, Service, UNIT};

const HTTP: &str = "127.0.0.1:8080";

/// The number of clients, each with a connection, and of streams that each has open at a time.
const CLIENTS: usize = 20;
const STREAMS: usize = 10;

fn start(file: &str) -> Option<Service> {
    let service = Service::install(file, "")?;
    let listen = format!("[http]\nlisten = [\"{HTTP}\"]\nh2c = true\nrequests_per_connection = 1000000000\n");
    service.write(CONFIG, format!("{listen}[admin]\nlisten = [\"127.0.0.1:9090\"]\n{ROUTES}"));
    service.ok(["systemctl", "start", UNIT]);
    Some(service)
}

/// The account of strict clients: what they have asked for is answered, or lost.
#[derive(Default)]
pub(crate) struct Book {
    stop: AtomicBool,
    answered: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
    /// Connections that the server has ended.
    ended: AtomicU64,
}

impl Book {
    /// Returns when so many more requests have been answered.
    pub(crate) fn advance(&self, requests: u64) {
        let until = self.answered.load(Relaxed) + requests;
        wait_until("requests to be answered", || (self.answered.load(Relaxed) >= until).then_some(()));
    }

    /// A connection was refused. The processor is needed elsewhere.
    async fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A client that opens a connection when the one before was ended by GOAWAY, and repeats no request.
async fn client(book: &Book, address: SocketAddr, trust: Option<&Trust>) {
    while !book.stop.load(Relaxed) {
        let Ok(socket) = TcpStream::connect(address).await else {
            book.refuse().await;
            continue;
        };
        let Some(trust) = trust else {
            converse(book, socket).await;
            continue;
        };
        match trust.shake_hands_for_http2(socket).await {
            Ok(secured) => converse(book, secured).await,
            Err(error) => {
                eprintln!("a handshake has failed: {error}");
                book.refuse().await;
            }
        }
    }
}

/// A connection, from the preface to its end.
async fn converse(book: &Book, stream: impl AsyncRead + AsyncWrite + Unpin) {
    // Otherwise it was ended before it has asked for anything.
    if let Ok((requests, connection)) = h2::client::handshake(stream).await {
        let streams = (0..STREAMS).map(|_| ask(book, requests.clone()));
        let streams = futures_util::future::join_all(streams);
        drop(requests);
        let _ = tokio::join!(connection, streams);
    }
    book.ended.fetch_add(1, Relaxed);
}

/// Asks, one request after the other, until the connection takes no more.
async fn ask(book: &Book, mut requests: SendRequest<Bytes>) {
    while !book.stop.load(Relaxed) {
        let Ok(mut ready) = requests.ready().await else { return };
        let request = Request::get("http://test/").body(()).expect("a request");
        // Not sent: the connection was about to end.
        let Ok((answer, _)) = ready.send_request(request, true) else { return };
        let whole = async {
            let answer = answer.await?;
            assert_eq!(answer.status(), 200);
            let mut body = answer.into_body();
            while let Some(bytes) = body.data().await.transpose()? {
                body.flow_control().release_capacity(bytes.len())?;
            }
            Ok::<_, h2::Error>(())
        };
        match whole.await {
            Ok(()) => book.answered.fetch_add(1, Relaxed),
            Err(error) => {
                eprintln!("a request is lost: {error}");
                book.lost.fetch_add(1, Relaxed)
            }
        };
        requests = ready;
    }
}

/// Has strict clients, which speak TLS if there is somebody to trust, ask while something happens: none of their requests is
/// lost. Returns the number of their connections that the server has ended.
pub(crate) fn lose_nothing(
    service: &Service,
    address: SocketAddr,
    trust: Option<Trust>,
    what: &str,
    happens: impl FnOnce(&Book),
) -> u64 {
    let book: &'static Book = Box::leak(Box::default());
    let clients = service.enter_network(|| {
        thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let mut clients = JoinSet::new();
                for _ in 0..CLIENTS {
                    let trust = trust.clone();
                    clients.spawn(async move { client(book, address, trust.as_ref()).await });
                }
                clients.join_all().await;
            });
        })
    });
    happens(book);
    book.stop.store(true, Relaxed);
    clients.join().expect("the clients are sound");
    let [answered, lost, refused, ended] =
        [&book.answered, &book.lost, &book.refused, &book.ended].map(|count| count.load(Relaxed));
    print_figure(
        what,
        format_args!("{answered} answered, {lost} lost, {refused} refused; {ended} connections ended"),
    );
    assert_eq!((lost, refused), (0, 0), "{}", service.journal(UNIT, &[]));
    ended
}

/// Ten restarts and ten reloads beside such clients.
pub(crate) fn lose_nothing_over_twenty(
    service: &Service,
    address: SocketAddr,
    trust: Option<Trust>,
    how: &str,
) {
    let what = format!("ten restarts and ten reloads under {how}");
    let ended = lose_nothing(service, address, trust, &what, |book| {
        book.advance(2000);
        service.replace_twenty_times(|_| book.advance(500));
    });
    assert!(ended >= 20 * CLIENTS as u64, "{ended}: they were on other connections");
}

#[test]
fn ten_restarts_and_ten_reloads_lose_no_request_of_clients_that_speak_http2() {
    let Some(service) = start(file!()) else { return };
    lose_nothing_over_twenty(&service, HTTP.parse().expect("an address"), None, "HTTP/2");
}
