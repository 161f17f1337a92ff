//! A daemon that is bound before it runs: its addresses are known, nothing is running, and a config made in code is
//! checked like a file.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use steadfast::config::{
    Action, Address, Admin, Files, Handover, Http, Limits, Log, Proxy, Respond, Route, Shutdown, Supervision,
    Trusted, Upstream,
};
use steadfast::{BindError, BoxError, Child, Config, Daemon, Exit, StartError};
use steadfast_harness::Signal;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::process::{config, example};

const PATIENCE: Duration = Duration::from_secs(60);

/// A config whose listeners are on ports that the kernel chooses.
fn any_ports() -> Config {
    let mut config = Config::default();
    config.http.listen = vec![any_port(), any_port()];
    config.admin.listen = vec![any_port()];
    config
}

fn any_port() -> Address {
    Address::Tcp(([127, 0, 0, 1], 0).into())
}

fn tcp(address: &Address) -> SocketAddr {
    match address {
        Address::Tcp(address) => *address,
        other => panic!("{other} is no TCP address"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_without_a_name_of_its_own_is_refused() {
    let named = |names: &[&str]| {
        let daemon = Daemon::new(any_ports());
        names.iter().fold(daemon, |daemon, name| daemon.child(name, async |_| Ok::<_, BoxError>(())))
    };
    for (names, refused) in [
        (&["worker", "Http"][..], None),
        (&["worker", "other", "worker"], Some("worker")),
        (&[""], Some("")),
        (&["http"], Some("http")),
        (&["worker", "admin"], Some("admin")),
        (&["signals"], Some("signals")),
        (&["systemd"], Some("systemd")),
    ] {
        let found = match named(names).bind() {
            Ok(_) => None,
            Err(error @ StartError::ChildName(_)) => {
                assert_eq!(error.exit(), Exit::Failed);
                Some(error.to_string())
            }
            Err(error) => panic!("{names:?}: {error}"),
        };
        match (refused, found) {
            (None, None) => {}
            (Some(name), Some(found)) => assert!(found.contains(&format!("{name:?}")), "{found}"),
            (refused, found) => panic!("{names:?}: {found:?} instead of {refused:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn binding_tells_the_ports_that_the_kernel_chose_and_starts_nothing() {
    let started = Arc::new(AtomicBool::new(false));
    let (stop, stopped) = oneshot::channel::<()>();
    let child = {
        let started = Arc::clone(&started);
        move |child: Child| {
            started.store(true, SeqCst);
            async move {
                child.stopping().await;
                Ok::<_, BoxError>(())
            }
        }
    };
    let mut wanted = any_ports();
    wanted.http.routes = vec![Route::new("/", Action::Status)];
    let daemon = Daemon::new(wanted).child("worker", child).stop_when(async {
        let _ = stopped.await;
    });
    let bound = daemon.bind().expect("the ports are free");
    let addresses = bound.addresses();
    assert_eq!(addresses["http"].len(), 2);
    assert_eq!(addresses["admin"].len(), 1);
    for address in addresses.values().flatten() {
        // The kernel takes the connection, although nobody accepts it yet.
        TcpStream::connect(tcp(address)).expect("it listens");
    }
    assert!(!started.load(SeqCst), "a child runs");

    let mut running = JoinSet::new();
    running.spawn(bound.run());
    for address in &addresses["http"] {
        let mut client = Client::connect(&tcp(address).to_string(), PATIENCE).await.expect("it accepts");
        assert_eq!(client.get("/").await.expect("it answers").status, 200);
    }
    stop.send(()).expect("it runs");
    assert_eq!(running.join_all().await, [Exit::Clean]);
    assert!(started.load(SeqCst));
}

#[tokio::test]
async fn a_bound_daemon_that_never_ran_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("http.sock");
    let mut wanted = any_ports();
    wanted.http.listen.push(Address::Unix(socket.clone()));
    let bound = Daemon::new(wanted).bind().expect("all is free");
    let port = tcp(&bound.addresses()["http"][0]);
    assert!(socket.exists());
    drop(bound);
    assert!(!socket.exists(), "the socket's path is still there");
    TcpListener::bind(port).expect("the port is free again");
}

#[test]
fn a_bound_daemon_that_never_ran_leaves_signals_as_they_were() {
    let mut daemon =
        steadfast_harness::Daemon::spawn_program(example("troubled"), &[], &config(""), |command| {
            command.env("TROUBLE", "bound and dropped");
        });
    daemon.wait_for_line("that it was dropped", |line| line.contains("bound and dropped"));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), -15, "SIGTERM ends a process that does not handle it");
}

#[tokio::test]
async fn an_address_in_use_is_an_error_that_the_caller_sees() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = Address::Tcp(taken.local_addr().expect("its address"));
    let mut wanted = any_ports();
    wanted.http.listen = vec![address.clone()];
    match Daemon::new(wanted).bind() {
        Err(error @ StartError::Bind(BindError::InUse(_))) => {
            assert_eq!(error.exit(), Exit::Failed);
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_part_of_a_config_can_be_made_in_code() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("index.html"), "from a file").expect("a file");

    let mut hello = Respond::default();
    hello.body = "hello".into();
    let mut proxy = Proxy::new(Upstream::Unix(folder.path().join("nobody.sock")));
    proxy.retry_for = Duration::ZERO;
    let mut http = Http::default();
    http.listen = vec![Address::Unix(folder.path().join("http.sock"))];
    http.limits = Limits::default();
    http.trusted_proxies = Trusted::default();
    http.routes = vec![
        Route::new("/", Action::Respond(hello)),
        Route::new("/status", Action::Status),
        Route::new("/files/*", Action::Files(Files::new(folder.path()))),
        Route::new("/app/*", Action::Proxy(proxy)),
    ];
    let mut admin = Admin::default();
    admin.listen.clear();
    let mut wanted = Config::default();
    (wanted.http, wanted.admin) = (http, admin);
    (wanted.shutdown, wanted.supervision) = (Shutdown::default(), Supervision::default());
    (wanted.handover, wanted.log) = (Handover::default(), Log::default());

    let (stop, stopped) = oneshot::channel::<()>();
    let daemon = Daemon::new(wanted).stop_when(async {
        let _ = stopped.await;
    });
    let mut running = JoinSet::new();
    running.spawn(daemon.bind().expect("it is right").run());
    let address = format!("unix:{}", folder.path().join("http.sock").display());
    let mut client = Client::connect(&address, PATIENCE).await.expect("it accepts");
    for (path, status) in [("/", 200), ("/status", 200), ("/files/", 200), ("/app/x", 502)] {
        assert_eq!(client.get(path).await.expect("an answer").status, status, "{path}");
    }
    drop(client);
    stop.send(()).expect("it runs");
    assert_eq!(running.join_all().await, [Exit::Clean]);
}

/// One mistake: as it is written in a file, and as it is made in code.
type Wrong = (&'static str, fn(&mut Config));

const WRONG: &[Wrong] = &[
    ("http.listen = []", |c| c.http.listen.clear()),
    ("http.listen = ['127.0.0.1:8080', '127.0.0.1:8080']", |c| {
        c.http.listen = vec![Address::Tcp(([127, 0, 0, 1], 8080).into()); 2];
    }),
    ("http.listen = ['127.0.0.1:9090']", |c| {
        c.http.listen = vec![Address::Tcp(([127, 0, 0, 1], 9090).into())];
    }),
    ("http.listen = ['0.0.0.0:80', '127.0.0.1:80']", |c| {
        c.http.listen =
            vec![Address::Tcp(([0, 0, 0, 0], 80).into()), Address::Tcp(([127, 0, 0, 1], 80).into())];
    }),
    ("http.listen = ['unix:run/x.sock']", |c| c.http.listen = vec![Address::Unix("run/x.sock".into())]),
    ("http.listen = ['fd:a:b']", |c| c.http.listen = vec![Address::Inherited("a:b".into())]),
    ("admin.listen = ['unix:/run/']", |c| c.admin.listen = vec![Address::Unix("/run/".into())]),
    ("http.max_connections = 0", |c| c.http.limits.max_connections = 0),
    ("http.connections_per_client = 0", |c| c.http.limits.connections_per_client = 0),
    ("http.requests_per_connection = 0", |c| c.http.limits.requests_per_connection = 0),
    ("http.header_timeout = '0s'", |c| c.http.limits.header_timeout = Duration::ZERO),
    ("http.keepalive_timeout = '0s'", |c| c.http.limits.keepalive_timeout = Duration::ZERO),
    ("http.read_timeout = '0s'", |c| c.http.limits.read_timeout = Duration::ZERO),
    ("http.write_timeout = '9999h'", |c| c.http.limits.write_timeout = Duration::from_secs(9999 * 3600)),
    ("http.min_rate_grace = '0s'", |c| c.http.limits.min_rate_grace = Duration::ZERO),
    ("http.tunnel_idle_timeout = '0s'", |c| c.http.limits.tunnel_idle_timeout = Some(Duration::ZERO)),
    ("http.header_limit = '4KiB'", |c| c.http.limits.header_limit = 4096),
    ("http.header_limit = '1GiB'", |c| c.http.limits.header_limit = 1 << 30),
    ("shutdown.delay = '9999h'", |c| c.shutdown.delay = Duration::from_secs(9999 * 3600)),
    ("shutdown.linger = '9999h'", |c| c.shutdown.linger = Duration::from_secs(9999 * 3600)),
    ("shutdown.deadline = '9999h'", |c| c.shutdown.deadline = Some(Duration::from_secs(9999 * 3600))),
    ("handover.ready_timeout = '0s'", |c| c.handover.ready_timeout = Duration::ZERO),
    ("supervision.window = '0s'", |c| c.supervision.window = Duration::ZERO),
    ("supervision.backoff = '10s'", |c| c.supervision.backoff = Duration::from_secs(10)),
    ("log.slow = '9999h'", |c| c.log.slow = Duration::from_secs(9999 * 3600)),
    ("[[route]]\npath = 'health'\nstatus = true", |c| route(c, "health", Action::Status)),
    ("[[route]]\npath = '/a/*/b'\nstatus = true", |c| route(c, "/a/*/b", Action::Status)),
    ("[[route]]\npath = '/{id}'\nstatus = true", |c| route(c, "/{id}", Action::Status)),
    ("[[route]]\npath = '/'\nstatus = true\n[[route]]\npath = '/'\nstatus = true", |c| {
        route(c, "/", Action::Status);
        route(c, "/", Action::Status);
    }),
    ("[[route]]\npath = '/'\nrespond = { status = 100 }", |c| {
        let mut respond = Respond::default();
        respond.status = axum::http::StatusCode::CONTINUE;
        route(c, "/", Action::Respond(respond));
    }),
    ("[[route]]\npath = '/'\nrespond = { status = 204, body = 'x' }", |c| {
        let mut respond = Respond::default();
        respond.status = axum::http::StatusCode::NO_CONTENT;
        respond.body = "x".into();
        route(c, "/", Action::Respond(respond));
    }),
    ("[[route]]\npath = '/'\nrespond = { headers = { Connection = 'close' } }", |c| {
        let mut respond = Respond::default();
        respond.headers.insert("connection", axum::http::HeaderValue::from_static("close"));
        route(c, "/", Action::Respond(respond));
    }),
    ("[[route]]\npath = '/*'\nfiles = 'srv'", |c| route(c, "/*", Action::Files(Files::new("srv")))),
    ("[[route]]\npath = '/*'\nfiles = { root = '/', index = 'a/b' }", |c| {
        let mut files = Files::new("/");
        files.index = Some("a/b".into());
        route(c, "/*", Action::Files(files));
    }),
    ("[[route]]\npath = '/*'\nproxy = 'http://127.0.0.1:0'", |c| {
        let upstream = axum::http::uri::Authority::from_static("127.0.0.1:0");
        route(c, "/*", Action::Proxy(Proxy::new(Upstream::Http(upstream))));
    }),
    ("[[route]]\npath = '/*'\nproxy = 'unix:run/x.sock'", |c| {
        route(c, "/*", Action::Proxy(Proxy::new(Upstream::Unix("run/x.sock".into()))));
    }),
    ("[[route]]\npath = '/*'\nproxy = { to = 'unix:/x', timeout = '0s' }", |c| {
        let mut proxy = Proxy::new(Upstream::Unix("/x".into()));
        proxy.timeout = Duration::ZERO;
        route(c, "/*", Action::Proxy(proxy));
    }),
];

fn route(config: &mut Config, path: &str, action: Action) {
    config.http.routes.push(Route::new(path, action));
}

/// The mistakes that a diagnostic names, without their places.
fn what(diagnostic: &str) -> Vec<&str> {
    diagnostic.lines().filter_map(|line| line.strip_prefix("error: ")).collect()
}

#[tokio::test]
async fn a_config_made_in_code_is_refused_for_the_same_reasons_as_a_file() {
    for (file, make) in WRONG {
        let refused = Config::parse(file, "the file").expect_err(file).to_string();
        let mut wanted = Config::default();
        make(&mut wanted);
        let error = Daemon::new(wanted).bind().expect_err(file);
        assert!(matches!(error, StartError::Config(_)), "{file}: {error:?}");
        assert_eq!(error.exit(), Exit::Config);
        let said = error.to_string();
        let reasons = what(&refused);
        assert_eq!(reasons.len(), 1, "{file}: {refused}");
        assert!(said.contains(reasons[0]), "{file}:\n{refused}\nin code:\n{said}");
    }
}

#[tokio::test]
async fn all_that_is_wrong_with_a_config_made_in_code_is_said_at_once_and_where() {
    let mut wanted = Config::default();
    wanted.http.limits.max_connections = 0;
    wanted.supervision.window = Duration::ZERO;
    route(&mut wanted, "/", Action::Status);
    route(&mut wanted, "health", Action::Status);
    let error = Daemon::new(wanted).bind().expect_err("it is wrong").to_string();
    assert_eq!(
        error,
        "http.max_connections: `max_connections` is 0, expected a whole number from 1 to 2147483647\n\
         supervision.window: `window` is zero, expected a duration of more than zero, such as \"10s\" or \"1m 30s\"\n\
         route[1].path: `path` does not begin with \"/\", expected a path such as \"/health\", or \"/app/*\" for \
         everything below"
    );
}

#[tokio::test]
async fn a_wrong_config_ends_a_run_with_exit_78() {
    let mut wanted = any_ports();
    wanted.http.limits.max_connections = 0;
    assert_eq!(Daemon::new(wanted).run().await, Exit::Config);
}

/// A folder is a thing that the file is asked for, and may come later: to bind a daemon it need not be there.
#[tokio::test]
async fn a_folder_that_is_not_there_does_not_keep_a_daemon_from_binding() {
    let folder: TempDir = tempfile::tempdir().expect("a folder");
    let mut wanted = any_ports();
    route(&mut wanted, "/*", Action::Files(Files::new(folder.path().join("later"))));
    Daemon::new(wanted).bind().expect("it binds");
}
