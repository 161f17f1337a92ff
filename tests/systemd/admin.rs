//! The admin listener, when others than its operator know where it is.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use steadfast_harness::print_figure;

use crate::service::{CONFIG, ROUTES, Service, UNIT};

/// An address of the box that is not of the loopback's network.
const ELSEWHERE: &str = "192.0.2.1";

/// More connections than the listener takes.
const MANY: usize = 300;

/// Sooner than any half head has had its time.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn a_flood_of_half_heads_from_elsewhere_leaves_the_admin_listener_to_the_local_machine() {
    let Some(service) = Service::install(file!(), "") else {
        return;
    };
    service.ok(["ip", "address", "add", &format!("{ELSEWHERE}/32"), "dev", "lo"]);
    let listen = "[http]\nlisten = [\"127.0.0.1:8080\"]\n[admin]\nlisten = [\"0.0.0.0:9090\"]\n";
    service.write(CONFIG, format!("{listen}{ROUTES}"));
    service.ok(["systemctl", "start", UNIT]);
    assert_eq!(service.admin("/livez").status, 200);

    let _flood = service.enter_network(Flood::start);
    let began = Instant::now();
    for path in ["/livez", "/readyz", "/metrics", "/status"] {
        assert_eq!(service.admin(path).status, 200);
    }
    let took = began.elapsed();
    print_figure("the admin listener behind half heads from elsewhere", format_args!("{took:.1?}"));
    assert!(took < SOON, "{took:?}");
}

/// Connections with half a head, each opened anew when it is closed. Ends when it is dropped.
struct Flood(Arc<AtomicBool>);

impl Flood {
    fn start() -> Self {
        let mut heads: Vec<TcpStream> = (0..MANY).map(|_| half_a_head()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let flood = Self(Arc::clone(&stop));
        thread::spawn(move || {
            while !stop.load(Relaxed) {
                for head in &mut heads {
                    let mut byte = [0];
                    let open =
                        matches!(head.peek(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock);
                    if !open {
                        *head = half_a_head();
                    }
                }
                thread::sleep(Duration::from_millis(10));
            }
        });
        flood
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn half_a_head() -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let from: SocketAddr = format!("{ELSEWHERE}:0").parse().unwrap();
    let to: SocketAddr = format!("{ELSEWHERE}:9090").parse().unwrap();
    socket.bind(&from.into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    // A client that is turned away at once may not even be read from.
    let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nHost: te");
    stream.set_nonblocking(true).unwrap();
    stream
}
