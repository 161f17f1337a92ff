//! Three machines, their balancer, and the network between them.

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use steadfast_harness::{Account, Cable, Client, Exchange, Load, Machine, Network, Upstream, wait_until};

use crate::balancer::Balancer;

/// The unit under test.
pub(crate) const UNIT: &str = "steadfast.service";

/// The addresses of `docs/fleet.md`, and the test's own beside them.
const TEST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BALANCER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const HOSTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 11), Ipv4Addr::new(192, 0, 2, 12), Ipv4Addr::new(192, 0, 2, 13)];

/// The routes of each machine: an answer, and what waits for the test.
const ROUTES: &str = r#"
[[route]]
path = "/"
respond = "<h1>Hello World</h1>"

[[route]]
path = "/app/*"
proxy = "http://127.0.0.1:3000"
"#;

/// One fleet at a time: where several share the processors, a check that comes late looks like a machine that is down.
static TURN: Mutex<()> = Mutex::new(());

const PAGE: &str = include_str!("../../docs/fleet.md");

/// A block of `docs/fleet.md` by its language and what its first line begins with.
fn documented(language: &str, start: &str) -> &'static str {
    let fence = format!("\n```{language}\n");
    let block = PAGE.split(&fence).skip(1).find(|block| block.starts_with(start));
    let block = block.and_then(|block| block.split("```").next());
    block.unwrap_or_else(|| panic!("docs/fleet.md has no {language} that begins with {start}"))
}

/// What `docs/fleet.md` has the balancer told for this, of the machine that it takes as its example.
fn documented_order(purpose: &str) -> &'static str {
    let orders = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("echo \"")?.split_once("\" | socat "))
        .map(|at| at.0);
    orders.into_iter().find(|order| order.ends_with(purpose)).expect("the page has such a command")
}

/// The machine that the page takes as its example.
pub(crate) const EXAMPLE: usize = 1;

/// A machine with steadfast.
pub(crate) struct Host {
    /// Its name in `haproxy.cfg`.
    pub(crate) name: String,
    machine: Machine,
    pub(crate) cable: Cable,
    /// The server behind its `/app`. Threads share a fleet, and an upstream is no thing to be shared.
    upstream: Mutex<Upstream>,
}

impl Deref for Host {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.machine
    }
}

/// The machines behind their balancer.
pub(crate) struct Fleet {
    pub(crate) hosts: Vec<Host>,
    pub(crate) balancer: Balancer,
    pub(crate) network: Network,
    /// The balancer's.
    _cable: Cable,
    _turn: MutexGuard<'static, ()>,
}

/// A request in flight on a machine.
pub(crate) struct Held {
    /// The machine's place in the fleet.
    pub(crate) host: usize,
    client: Client,
    exchange: Exchange,
}

impl Fleet {
    /// Starts all of it, or says that it cannot be.
    pub(crate) fn start(file: &str) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let balancer = Balancer::boot_or_skip(file)?;
        let network = Network::new(TEST);
        let cable = network.join(&balancer, BALANCER);
        let hosts = thread::scope(|scope| {
            let start = |number| Host::start(number, Machine::boot(), &network);
            let starting: Vec<_> =
                (0..HOSTS.len()).map(|number| scope.spawn(move || start(number))).collect();
            starting.into_iter().map(|host| host.join().expect("a machine boots")).collect()
        });
        let fleet = Self { hosts, balancer, network, _cable: cable, _turn: turn };
        fleet.balancer.start(documented("ini", "# /etc/default/haproxy"));
        for host in &fleet.hosts {
            fleet.balancer.wait_for(&host.name, "UP");
        }
        Some(fleet)
    }

    /// Kills all that runs on a machine, and begins anew with another one in its place.
    pub(crate) fn replace(&mut self, host: usize) {
        let Host { machine, cable, .. } = self.hosts.remove(host);
        drop(machine);
        // Its network is not gone as long as its upstream listens, a thread of the test; the next one has its address.
        self.network.unplug(&cable);
        self.hosts.insert(host, Host::start(host, Machine::boot(), &self.network));
    }

    /// Does what a block of `docs/fleet.md` says, as an operator who reaches every machine by ssh.
    pub(crate) fn operate(&self, block: &str) {
        self.operate_on(EXAMPLE, block);
    }

    /// The same on another machine than the page's example.
    pub(crate) fn operate_on(&self, host: usize, block: &str) {
        let commands = documented("sh", block).replace(&HOSTS[EXAMPLE].to_string(), &HOSTS[host].to_string());
        let folder = tempfile::tempdir().expect("a temporary folder");
        let boxes =
            HOSTS.iter().zip(&self.hosts).map(|(at, host)| format!("{at}) init={} ;;\n", host.init()));
        let ssh = format!(
            "#!/bin/sh\ncase $1 in\n{}esac\nshift\nexec env -i PATH=\"$PATH\" nsenter --all --target $init -- \
             sh -c \"$*\"\n",
            boxes.collect::<String>()
        );
        let program = folder.path().join("ssh");
        fs::write(&program, ssh).expect("a temporary folder can be written to");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("a file of one's own");
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
        let output =
            Command::new("sh").args(["-ec", &commands]).env("PATH", path).output().expect("sh starts");
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(output.status.success(), "{commands}{said:?}");
    }

    /// Tells the balancer what `docs/fleet.md` has it told for this.
    pub(crate) fn tell_balancer(&self, purpose: &str) {
        self.balancer.tell(documented_order(purpose));
    }

    /// Clients of the balancer that send this request again and again.
    pub(crate) fn load(&self, clients: usize, request: &str) -> Load {
        self.network.enter(|| Load::sending(clients, SocketAddr::from((BALANCER, 80)), request))
    }

    /// Requests in flight, as many on each machine as on any other.
    pub(crate) fn hold(&self, each: usize) -> Vec<Held> {
        let mut held: Vec<_> = (0..each * self.hosts.len()).map(|_| self.hold_one()).collect();
        held.sort_by_key(|held| held.host);
        // Nothing else is in flight, and the balancer gives to whichever has the least.
        let hosts: Vec<_> = held.iter().map(|held| held.host).collect();
        let expected: Vec<_> = (0..self.hosts.len()).flat_map(|host| vec![host; each]).collect();
        assert_eq!(hosts, expected, "{}", self.balancer.log());
        held
    }

    fn hold_one(&self) -> Held {
        let mut client = self.network.enter(|| Client::connect((BALANCER, 80).into())).expect("it accepts");
        client.send(POST_APP).expect("the balancer takes a request");
        let (host, exchange) = wait_until("a request to reach a machine", || {
            let arrived = |(at, host): (usize, &Host)| {
                Some((at, host.upstream.lock().expect("nobody panicked").try_next_request()?))
            };
            self.hosts.iter().enumerate().find_map(arrived)
        });
        Held { host, client, exchange }
    }

    /// A connection to a machine, past the balancer.
    pub(crate) fn connect(&self, host: usize) -> Client {
        self.network.enter(|| Client::connect((HOSTS[host], 8080).into())).expect("the machine accepts")
    }

    /// What has failed on a machine, or on all of them (`BACKEND`), as the balancer counts it: connections, answers,
    /// and attempts that it has made again.
    pub(crate) fn trouble(&self, server: &str) -> Vec<(String, u64)> {
        let statistics = self.balancer.statistics(server);
        let number = |name: &str| statistics[name].parse().expect("a number");
        let counted =
            ["econ", "eresp", "srv_abrt", "wretr", "wredis"].map(|name| (name.to_owned(), number(name)));
        counted.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Every request was answered.
    pub(crate) fn assert_nothing_lost(&self, account: &Account) {
        let lost = (account.refused, account.dropped, account.closed);
        assert_eq!(lost, (0, 0, 0), "{account}\n{}", self.balancer.log());
    }
}

impl Host {
    fn start(number: usize, machine: Machine, network: &Network) -> Self {
        let cable = network.join(&machine, HOSTS[number]);
        let upstream = machine
            .enter_network(|| Upstream::on(TcpListener::bind("127.0.0.1:3000").expect("the port is free")));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        machine.install(Path::new(env!("CARGO_BIN_EXE_steadfast")), &root.join("packaging"));
        let config = documented("toml", "[http]").replace(&HOSTS[0].to_string(), &HOSTS[number].to_string());
        machine.write("/etc/steadfast/config.toml", format!("{config}{ROUTES}"));
        machine.ok(["systemctl", "start", UNIT]);
        Self { name: format!("host{}", number + 1), machine, cable, upstream: Mutex::new(upstream) }
    }
}

impl Held {
    /// Has it answered; it is.
    pub(crate) fn finish(mut self) {
        self.exchange.answer(200, "worth the wait");
        let response = self.client.receive().expect("what was in flight is answered");
        assert_eq!((response.status, response.text().as_str()), (200, "worth the wait"));
    }

    /// Its client is told that it will not be answered, in whatever way.
    pub(crate) fn assert_lost(mut self) {
        let is_answered = self.client.receive().is_ok_and(|response| response.status == 200);
        assert!(!is_answered, "nobody can answer it");
    }
}

/// A request that a balancer must not repeat.
pub(crate) const POST: &str = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";

/// One that it may.
pub(crate) const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

/// The same as [`POST`], to the server behind a machine.
const POST_APP: &str = "POST /app/ HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n";
