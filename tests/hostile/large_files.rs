//! Files that are too large for memory, on their way to clients that cooperate or do not: the bytes are those of the
//! file that was asked for, no descriptor stays behind, and nothing is held for a client that does not read.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use socket2::SockRef;
use steadfast_harness::{PATIENCE, print_figure, wait_until};

use crate::site::{IMPATIENT, Site, files};
use crate::wire::{Message, answer, connect, read_to_end};

/// More than the sockets between the daemon and a client hold.
const LARGE: usize = 16 << 20;

/// Bytes of which no two parts of a file are alike.
fn bytes(length: usize) -> Vec<u8> {
    (0_u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(length).collect()
}

/// A folder with a file of so many bytes.
fn folder(length: usize) -> (tempfile::TempDir, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let content = bytes(length);
    fs::write(folder.path().join("large"), &content).unwrap();
    (folder, content)
}

/// A client for which the kernel takes little before it reads. With room for less than a segment of the loopback's, some 64 KiB,
/// the two sides would go on by probes of the window alone, which takes minutes.
fn narrow(site: &Site) -> TcpStream {
    let stream = connect(site.http);
    SockRef::from(&stream).set_recv_buffer_size(128 << 10).unwrap();
    stream
}

/// Asks for the file and reads its head, and of the body not more than came with that.
fn begin(client: &mut (impl Read + Write)) -> Vec<u8> {
    client.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut received = Vec::new();
    loop {
        if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            return received.split_off(end + 4);
        }
        let mut some = [0; 512];
        let n = client.read(&mut some).unwrap();
        assert!(n > 0, "no head: {}", received.escape_ascii());
        received.extend_from_slice(&some[..n]);
    }
}

/// The files below a folder that the worker has open.
fn open_below(site: &Site, folder: &Path) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", site.worker())).expect("the daemon runs");
    let leads_below = |entry: std::io::Result<fs::DirEntry>| {
        fs::read_link(entry.ok()?.path()).ok().filter(|file| file.starts_with(folder))
    };
    descriptors.filter_map(leads_below).count()
}

fn wait_until_none_is_open(site: &Site, folder: &Path) {
    wait_until("the files to be closed", || (open_below(site, folder) == 0).then_some(()));
}

// ---------------------------------------------------------------------------
// A file that does not stay as it is
// ---------------------------------------------------------------------------

#[test]
fn a_file_that_becomes_shorter_ends_the_connection_and_nothing_but_its_own_bytes_is_sent() {
    const LEFT: usize = 1 << 20;
    let (folder, content) = folder(LARGE);
    let site = Site::start("", &files("/*", folder.path()));
    let mut client = narrow(&site);
    let mut body = begin(&mut client);
    File::options().write(true).open(folder.path().join("large")).unwrap().set_len(LEFT as u64).unwrap();
    body.extend(read_to_end(&mut client));
    assert!(body.len() < LARGE, "{} bytes", body.len());
    assert!(body.iter().zip(&content).take(LEFT).all(|(sent, own)| sent == own));
    // What is on its way is in the page cache, where the kernel may clear what the file has lost.
    assert!(body.iter().zip(&content).skip(LEFT).all(|(sent, own)| sent == own || *sent == 0));
    site.wait_for_line("of it", |line| line.contains("GET /large 200 broken off"));
    assert_eq!(site.metric("steadfast_http_requests_client_gone_total"), 0);
    wait_until_none_is_open(&site, folder.path());
}

#[test]
fn a_file_that_is_replaced_is_sent_as_it_was_and_the_next_answer_is_the_new_one() {
    let (folder, content) = folder(LARGE);
    let site = Site::start("", &files("/*", folder.path()));
    let mut client = connect(site.http);
    let mut body = begin(&mut client);
    let new = folder.path().join("new");
    fs::write(&new, vec![b'n'; LARGE]).unwrap();
    fs::rename(&new, folder.path().join("large")).unwrap();
    client.write_all(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    body.extend(read_to_end(&mut client));
    assert!(body[..LARGE] == content);
    let next = Message::parse(&mut &body[LARGE..]).unwrap();
    assert!(next.body == vec![b'n'; LARGE]);
}

#[test]
fn a_file_that_grows_is_sent_as_long_as_was_announced() {
    let (folder, content) = folder(LARGE);
    let site = Site::start("", &files("/*", folder.path()));
    let mut client = connect(site.http);
    let mut body = begin(&mut client);
    let mut file = File::options().append(true).open(folder.path().join("large")).unwrap();
    file.write_all(&vec![b'g'; 100_000]).unwrap();
    client.write_all(b"GET /none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    body.extend(read_to_end(&mut client));
    assert!(body[..LARGE] == content);
    assert_eq!(Message::parse(&mut &body[LARGE..]).unwrap().status(), 404);
}

// ---------------------------------------------------------------------------
// A client that does not
// ---------------------------------------------------------------------------

#[test]
fn however_an_answer_ends_its_file_is_closed() {
    let (folder, content) = folder(LARGE);
    let tables = files("/*", folder.path());
    let mut site = Site::start("write_timeout = \"4s\"", &tables);
    let ask = |site: &Site, request: &str| {
        let mut client = connect(site.http);
        client.write_all(format!("{request}\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        read_to_end(&mut client)
    };
    // Read to its end; nothing of it, or a part, was asked for; the client has it already.
    let whole = ask(&site, "GET /large HTTP/1.1");
    let whole = Message::parse(&mut &whole[..]).unwrap();
    assert!(whole.body == content);
    let etag = whole.field("etag").unwrap();
    for (request, status, length) in [
        ("HEAD /large HTTP/1.1".to_owned(), 200, 0),
        (format!("GET /large HTTP/1.1\r\nIf-None-Match: {etag}"), 304, 0),
        ("GET /large HTTP/1.1\r\nIf-Match: \"x\"".to_owned(), 412, 0),
        (format!("GET /large HTTP/1.1\r\nRange: bytes={LARGE}-"), 416, 0),
        ("GET /large HTTP/1.1\r\nRange: bytes=1-9999999".to_owned(), 206, 9_999_999),
    ] {
        let answered = ask(&site, &request);
        let parse = if request.starts_with("HEAD") { Message::parse_answer_to_head } else { Message::parse };
        let message = parse(&mut &answered[..]).unwrap();
        assert_eq!((message.status(), message.body.len()), (status, length), "{request}");
    }
    wait_until_none_is_open(&site, folder.path());

    // Half-closed, by a client that reads on.
    let mut client = connect(site.http);
    let mut body = begin(&mut client);
    client.shutdown(Shutdown::Write).unwrap();
    body.extend(read_to_end(&mut client));
    assert!(body == content);
    wait_until_none_is_open(&site, folder.path());

    // Gone, in the middle of it.
    let mut gone: Vec<_> = (0..20).map(|_| narrow(&site)).collect();
    for client in &mut gone {
        drop(begin(client));
    }
    assert_eq!(open_below(&site, folder.path()), 20);
    drop(gone);
    wait_until_none_is_open(&site, folder.path());

    // Never read by a client that stays.
    let mut stays: Vec<_> = (0..20).map(|_| narrow(&site)).collect();
    for client in &mut stays {
        drop(begin(client));
    }
    wait_until_none_is_open(&site, folder.path());
    wait_until("every connection to be closed", || (site.connections() == 0).then_some(()));
    drop(stays);

    // Cut by a stop that is hurried.
    let mut client = connect(site.http);
    let mut body = begin(&mut client);
    site.signal(steadfast_harness::Signal::TERM);
    site.wait_for_line("that it drains", |line| line.contains("draining") || line.contains("stopping"));
    site.signal(steadfast_harness::Signal::TERM);
    // Until then its client reads nothing, which might come to have all.
    assert_eq!(site.wait(), 3, "{}", site.stderr());
    body.extend(read_to_end(&mut client));
    assert!(body.len() < LARGE && content.starts_with(&body), "{} bytes", body.len());
}

#[test]
fn a_client_that_does_not_read_a_file_costs_no_memory() {
    const CLIENTS: u64 = 200;
    let (folder, _) = folder(LARGE);
    let site = Site::start("write_timeout = \"10m\"\nmin_rate_grace = \"10m\"", &files("/*", folder.path()));
    drop(begin(&mut connect(site.http)));
    let before = site.resident();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| narrow(&site)).collect();
    for client in &mut clients {
        drop(begin(client));
    }
    let each = site.resident().saturating_sub(before) / CLIENTS;
    print_figure("KiB for a client that does not read a file", each >> 10);
    // hyper's own buffers, and none of the file.
    assert!(each < 64 << 10, "{each} bytes");
}

// ---------------------------------------------------------------------------
// In any part, over any socket
// ---------------------------------------------------------------------------

#[test]
fn pipelined_requests_for_large_files_get_their_own_files_in_their_order() {
    let (folder, content) = folder(LARGE);
    let other = vec![b'o'; 3 << 20];
    fs::write(folder.path().join("other"), &other).unwrap();
    fs::write(folder.path().join("small"), "small").unwrap();
    let site = Site::start("", &files("/*", folder.path()));
    let mut client = connect(site.http);
    let paths = ["large", "other", "small", "large", "none", "other"];
    let requests = paths.map(|path| format!("GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n")).concat();
    client.write_all(requests.as_bytes()).unwrap();
    let mut received = Vec::new();
    for path in paths {
        let answer = answer(&mut client, &mut received, false).unwrap();
        let expected: &[u8] = match path {
            "large" => &content,
            "other" => &other,
            "small" => b"small",
            _ => b"no such file\n",
        };
        assert!(answer.body == expected, "{path}");
    }
}

#[test]
fn a_file_of_more_than_four_gibibytes_is_sent_from_wherever_it_is_asked_for() {
    const HUGE: u64 = (5 << 30) + 123;
    let folder = tempfile::tempdir().unwrap();
    let file = File::create(folder.path().join("huge")).unwrap();
    file.set_len(HUGE).unwrap();
    // On either side of what 32 bits can count.
    let written = bytes(3 << 20);
    let at = (4 << 30) - (1 << 20) - 7;
    file.write_all_at(&written, at).unwrap();
    file.write_all_at(b"the end", HUGE - 7).unwrap();
    let site = Site::start("", &files("/*", folder.path()));
    let mut client = site.client();
    for (first, last, expected) in [
        (at, at + (3 << 20) - 1, &written[..]),
        (at + 1000, at + 2_000_000, &written[1000..2_000_001]),
        (HUGE - 7, HUGE - 1, b"the end"),
    ] {
        client.send(format!("GET /huge HTTP/1.1\r\nHost: a\r\nRange: bytes={first}-{last}\r\n\r\n")).unwrap();
        let answer = client.receive().unwrap();
        assert_eq!(answer.header("content-range"), Some(&*format!("bytes {first}-{last}/{HUGE}")));
        assert!(answer.body == expected, "{first}-{last}");
    }
    client.send("GET /huge HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let head = client.receive_head().unwrap();
    assert_eq!(head.header("content-length"), Some(&*HUGE.to_string()));
    assert!(client.take(10 << 20).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn a_large_file_is_whole_over_a_unix_socket_and_for_http_1_0() {
    let (folder, content) = folder(LARGE);
    let sockets = tempfile::tempdir().unwrap();
    let socket = sockets.path().join("http");
    let listen = format!("listen = [\"unix:{}\", \"127.0.0.1:0\"]", socket.display());
    let config = format!(
        "[http]\n{listen}\n{IMPATIENT}\n[admin]\nlisten = [\"127.0.0.1:0\"]\n[log]\ntarget = \"stderr\"\n{}",
        files("/*", folder.path())
    );
    let daemon = steadfast_harness::Daemon::spawn(crate::site::BINARY, &config);
    daemon.wait_for_notification("READY=1", |text| text.lines().any(|line| line == "READY=1"));
    for version in ["1.0", "1.1"] {
        let request = format!("GET /large HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut unix = UnixStream::connect(&socket).unwrap();
        unix.set_read_timeout(Some(PATIENCE)).unwrap();
        unix.write_all(request.as_bytes()).unwrap();
        let mut by_unix = Vec::new();
        unix.read_to_end(&mut by_unix).unwrap();
        let mut tcp = connect(daemon.address("http"));
        tcp.write_all(request.as_bytes()).unwrap();
        for received in [by_unix, read_to_end(&mut tcp)] {
            assert!(Message::parse(&mut &received[..]).unwrap().body == content, "HTTP/{version}");
        }
    }
}

#[test]
fn what_only_seems_to_be_a_file_is_empty_or_not_there() {
    let proc = Site::start("", &files("/*", Path::new("/proc/self")));
    let answer = proc.client().get("/status").unwrap();
    // Its size is 0, whatever can be read of it.
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    let devices = Site::start("", &files("/*", Path::new("/dev")));
    let folder = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let sockets = Site::start("", &files("/*", folder.path()));
    for (site, path) in [(&devices, "/zero"), (&devices, "/null"), (&sockets, "/socket")] {
        for method in ["GET", "HEAD"] {
            let mut client = site.client();
            client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
            assert_eq!(client.receive_head().unwrap().status, 404, "{method} {path}");
        }
    }
    // A file that cannot be read as far as it says is an error before there is an answer.
    let sys = Site::start("", &files("/*", Path::new("/sys/kernel")));
    assert_eq!(sys.client().get("/uevent_seqnum").unwrap().status, 500);
}
