//! A server as a process, with a config written for it, and what the kernel says of it.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use steadfast_harness::{Client, PATIENCE, wait_until};
use tempfile::TempDir;

use crate::config;
use crate::connection::Target;
use crate::programs::{Kind, LIBRARIES, Program};
use crate::tls::Certificate;

/// More descriptors than a server without connections has.
const FEW: usize = 500;

/// What the servers are to serve, all of them the same.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The folder that is served below `/files/`.
    pub(crate) files: PathBuf,
    /// The server that answers below `/proxied/`.
    pub(crate) upstream: SocketAddr,
    /// Routes beside these, `/route/00000` and so on.
    pub(crate) routes: u32,
    /// Whether each request is logged, in a file.
    pub(crate) access_log: bool,
    /// What it also serves all of this with, over TLS.
    pub(crate) certificate: Option<Certificate>,
}

/// The addresses of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    /// It answers here.
    pub(crate) plain: SocketAddr,
    /// And here over TLS, with a certificate.
    pub(crate) secure: SocketAddr,
    /// steadfast says here how it is.
    pub(crate) admin: SocketAddr,
}

/// A server, running. Dropping it kills all of its processes.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    addresses: Addresses,
    /// From exec to the first answer.
    pub(crate) answered_after: Duration,
    /// From exec to READY, if it says that.
    pub(crate) ready_after: Option<Duration>,
    child: Child,
    folder: TempDir,
}

// ---------------------------------------------------------------------------------------------------------------
// Its start and its end
// ---------------------------------------------------------------------------------------------------------------

impl Server {
    /// Runs a program and returns when it has answered.
    pub(crate) fn start(program: &Program, site: &Site) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let addresses = Addresses { plain: free_address(), secure: free_address(), admin: free_address() };
        let log = File::create(folder.path().join("log")).expect("the log can be made");
        let notify = folder.path().join("notify.sock");
        let manager = UnixDatagram::bind(&notify).expect("the manager's socket can be bound");

        let mut command = command(program, site, folder.path(), addresses);
        command
            .env("NOTIFY_SOCKET", &notify)
            .env("RUNTIME_DIRECTORY", folder.path())
            .env("HOME", folder.path())
            .env_remove("JOURNAL_STREAM")
            .env_remove("INVOCATION_ID")
            .env_remove("WATCHDOG_USEC")
            .env_remove("LISTEN_FDS")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be opened twice"))
            .stderr(log);
        let began = Instant::now();
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", program.binary.display()));
        let (name, kind) = (program.name.clone(), program.kind);
        let mut server =
            Self { name, kind, addresses, answered_after: Duration::ZERO, ready_after: None, child, folder };
        server.wait_for_answer(began);
        if server.says_ready() {
            server.ready_after = Some(wait_for_ready(&manager, began));
        }
        server
    }

    /// The looks are close to each other: they are the grain of the time that is measured.
    fn wait_for_answer(&mut self, began: Instant) {
        loop {
            let answered = Client::connect(self.addresses.plain).and_then(|mut client| client.get("/"));
            if answered.is_ok() {
                break;
            }
            let ended = self.child.try_wait().expect("the server is our child");
            assert!(
                ended.is_none() && began.elapsed() < PATIENCE,
                "{} does not answer ({ended:?}):\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        self.answered_after = began.elapsed();
    }

    /// The plain address that it answers on.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses.plain
    }

    /// Where clients find it, with this side of TLS if any.
    pub(crate) fn target(&self, tls: Option<&Arc<ClientConfig>>) -> Target {
        let Addresses { plain, secure, .. } = self.addresses;
        let address = if tls.is_some() { secure } else { plain };
        Target { name: self.name.clone(), address, tls: tls.cloned() }
    }

    fn says_ready(&self) -> bool {
        matches!(self.kind, Kind::Steadfast | Kind::Caddy | Kind::Go | Kind::Axum)
    }

    /// What it has written so far, requests too if they are logged.
    pub(crate) fn log(&self) -> String {
        let written = ["log", "access.log"].map(|file| fs::read_to_string(self.folder.path().join(file)));
        written.map(Result::unwrap_or_default).concat()
    }

    /// The lines of its log that are of a request of the load.
    pub(crate) fn logged(&self) -> usize {
        // The request that the start waits for is one that `asked` does not know.
        self.log().lines().filter(|line| line.contains("GET")).count().saturating_sub(1)
    }

    /// Asks it to stop, as its unit does, and returns how long that took.
    pub(crate) fn stop(mut self) -> Duration {
        // nginx's other signal would cut requests.
        let signal = if self.kind == Kind::Nginx { Signal::QUIT } else { Signal::TERM };
        let asked = Instant::now();
        kill_process(Pid::from_child(&self.child), signal).expect("the server runs");
        self.child.wait().expect("the server is our child");
        asked.elapsed()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A main process that stands still starts no other worker in the place of one that is killed.
            let main = Pid::from_child(&self.child);
            let _ = kill_process(main, Signal::STOP);
            for process in self.processes().into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(process, Signal::KILL);
            }
        }
        let _ = self.child.wait();
    }
}

/// The command of a server, whose config is written into its folder.
fn command(program: &Program, site: &Site, folder: &Path, addresses: Addresses) -> Command {
    let address = addresses.plain;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).expect("a config can be written");
        path
    };
    let mut command = Command::new(&program.binary);
    match program.kind {
        Kind::Steadfast => {
            let config = write("config.toml", config::steadfast(site, addresses));
            command.args(["run", "--config"]).arg(config);
        }
        Kind::Nginx => {
            let config = write("nginx.conf", config::nginx(site, addresses, folder));
            command.arg("-e").arg(folder.join("error.log")).arg("-p").arg(folder).arg("-c").arg(config);
        }
        Kind::Haproxy => {
            write("routes.map", config::haproxy_routes(site));
            let config = write("haproxy.cfg", config::haproxy(site, addresses, folder));
            command.arg("-f").arg(config).env(LIBRARIES, &program.libraries);
        }
        Kind::Caddy => {
            let config = write("Caddyfile", config::caddy(site, addresses, folder));
            command.args(["run", "--adapter", "caddyfile", "--config"]).arg(config);
        }
        Kind::Go => {
            command.arg(address.to_string()).arg(&site.files);
            command.arg(site.upstream.to_string()).arg(site.routes.to_string());
            if let Some(Certificate { chain, key }) = &site.certificate {
                command.arg(addresses.secure.to_string()).arg(chain).arg(key);
            }
        }
        Kind::Axum => {
            command.arg(address.to_string()).arg(site.routes.to_string());
        }
        Kind::Ecdysis => {
            command.arg(address.to_string()).arg(folder.join("pid"));
        }
        Kind::Floor => {
            let hello = Path::new(env!("CARGO_MANIFEST_DIR")).join("yardsticks/hello.html");
            command.arg(address.to_string()).arg(format!("/={}", hello.display()));
            command.arg(format!("/proxied/small={}", hello.display()));
            command.arg(format!("/proxied/100k={}", site.files.join("100k.png").display()));
        }
    }
    command
}

fn wait_for_ready(manager: &UnixDatagram, began: Instant) -> Duration {
    let mut text = [0; 4096];
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket has a read timeout");
    loop {
        let count = manager.recv(&mut text).expect("it says that it is ready");
        if text[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1") {
            return began.elapsed();
        }
    }
}

/// An address that nobody listens on.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the loopback has a free port");
    listener.local_addr().expect("a listener has an address")
}

// ---------------------------------------------------------------------------------------------------------------
// The kernel's account of it
// ---------------------------------------------------------------------------------------------------------------

impl Server {
    /// Its main process, and all that come of it.
    fn processes(&self) -> Vec<i32> {
        let mut all = vec![Pid::from_child(&self.child).as_raw_nonzero().get()];
        let mut next = 0;
        while let Some(process) = all.get(next) {
            let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            let children: Vec<_> = threads
                .flat_map(|thread| {
                    let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
                    children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()).collect::<Vec<_>>()
                })
                .collect();
            all.extend(children);
            next += 1;
        }
        all
    }

    /// The CPU time that its processes have used so far, in their own code and in the kernel, in microseconds. It is exact
    /// to the clock tick, 10 ms, for each process; how it is divided between the two is an estimate, and not asked for.
    pub(crate) fn cpu(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "it is 100")]
        let tick = 1e6 / rustix::param::clock_ticks_per_second() as f64;
        let ticks = |process: i32| {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("the server runs");
            // Its second field, the command, may hold anything; it ends at the last parenthesis.
            let (_, fields) = stat.rsplit_once(')').expect("stat has a command");
            let mut times = fields.split_whitespace().skip(11).map_while(|field| field.parse::<u32>().ok());
            let times = times.next().zip(times.next());
            let (user, system) = times.expect("stat has the two times");
            f64::from(user) + f64::from(system)
        };
        self.processes().into_iter().map(ticks).sum::<f64>() * tick
    }

    /// The memory that its processes hold, in bytes, each shared page once.
    pub(crate) fn memory(&self) -> f64 {
        let proportional = |process: i32| {
            let rollup =
                fs::read_to_string(format!("/proc/{process}/smaps_rollup")).expect("the server runs");
            let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
            let value = line.and_then(|line| line.split_whitespace().next()?.parse::<u32>().ok());
            f64::from(value.unwrap_or_else(|| panic!("no Pss in {rollup}")))
        };
        self.processes().into_iter().map(proportional).sum::<f64>() * 1024.0
    }

    /// Waits until so many connections are idle as steadfast sees it. Nothing is known of that of other servers.
    pub(crate) fn wait_until_parked(&self, connections: usize) {
        if self.kind != Kind::Steadfast {
            return;
        }
        let mut client = Client::connect(self.addresses.admin).expect("the admin listener accepts");
        wait_until("the connections to be parked", || {
            let status = client.get("/status").expect("/status answers").text();
            let status: serde_json::Value = serde_json::from_str(&status).expect("/status is JSON");
            (status["connections"]["parked"] == connections).then_some(())
        });
    }

    /// Waits until it holds no connection any more, as the kernel counts its descriptors.
    pub(crate) fn wait_until_gone(&self) {
        let descriptors =
            |process: &i32| fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
        wait_until("the connections to be gone", || {
            (self.processes().iter().map(descriptors).sum::<usize>() < FEW).then_some(())
        });
    }
}
