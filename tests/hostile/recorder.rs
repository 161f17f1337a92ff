//! An upstream that notes every request it gets, as strictly read as the standard allows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::wire::{Message, Wrong};

/// A running recorder.
pub(crate) struct Recorder {
    pub(crate) address: SocketAddr,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    requests: Vec<Message>,
    broken: Vec<String>,
}

impl Recorder {
    /// Starts one that answers every request with `ok`.
    pub(crate) fn start() -> Self {
        Self::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    }

    /// Starts one with another answer.
    pub(crate) fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let book = Arc::<Mutex<Book>>::default();
        let answer: Arc<[u8]> = answer.into().into();
        let all = Arc::clone(&book);
        // The thread ends with the test process; it waits in `accept` until then.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (book, answer) = (Arc::clone(&all), Arc::clone(&answer));
                thread::spawn(move || record(stream, &book, &answer));
            }
        });
        Self { address, book }
    }

    /// Every whole request that has come until now.
    pub(crate) fn requests(&self) -> Vec<Message> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).requests.clone()
    }

    /// The bytes that came and were no request.
    pub(crate) fn malformed(&self) -> Vec<String> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner).broken.clone()
    }
}

fn record(mut stream: TcpStream, book: &Mutex<Book>, answer: &[u8]) {
    let mut received = Vec::new();
    let mut bytes = [0; 16 * 1024];
    loop {
        let mut rest = &received[..];
        match Message::parse(&mut rest) {
            Ok(request) => {
                received = rest.to_vec();
                book.lock().unwrap_or_else(PoisonError::into_inner).requests.push(request);
                if stream.write_all(answer).is_err() {
                    return;
                }
                continue;
            }
            Err(Wrong::Short) => {}
            Err(Wrong::Malformed(what)) => {
                let what = format!("{what} in {}", received.escape_ascii());
                book.lock().unwrap_or_else(PoisonError::into_inner).broken.push(what);
                return;
            }
        }
        match stream.read(&mut bytes) {
            Ok(0) | Err(_) => return,
            Ok(count) => received.extend_from_slice(&bytes[..count]),
        }
    }
}
