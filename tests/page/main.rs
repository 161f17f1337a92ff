//! The live page in a real browser: what an operator sees of a daemon that serves, drains, and is replaced. The pictures
//! are in `target/page`.

mod browser;

use std::net::SocketAddr;

use steadfast_harness::{Client, Daemon, Exchange, Load, Signal, Upstream, wait_until};

use crate::browser::Browser;

const BINARY: &str = env!("CARGO_BIN_EXE_steadfast");

/// A daemon with a fixed answer, and a proxy whose upstream answers when the test says so.
struct Site {
    daemon: Daemon,
    upstream: Upstream,
}

impl Site {
    fn start(lines: &str) -> Self {
        let upstream = Upstream::start();
        let config = format!(
            "http.listen = [\"127.0.0.1:0\"]\nadmin.listen = [\"127.0.0.1:0\"]\nhttp.requests_per_connection = 1000000000\n\
             {lines}\n[[route]]\npath = \"/app/*\"\nproxy = \"http://{}\"\n\
             [[route]]\npath = \"/*\"\nrespond = \"hello\"\n",
            upstream.address()
        );
        let daemon = Daemon::start(BINARY, &config);
        Self { daemon, upstream }
    }

    fn address(&self, child: &str) -> SocketAddr {
        self.daemon.address(child)
    }

    /// The page's address.
    fn page(&self) -> String {
        format!("http://{}/", self.address("admin"))
    }

    /// A request that waits for the upstream.
    fn in_flight(&self, path: &str) -> (Client, Exchange) {
        let mut client = Client::connect(self.address("http")).expect("it accepts");
        client.ask(path).expect("it takes a request");
        (client, self.upstream.next_request())
    }

    /// Some clients that ask again and again, and a few that do nothing.
    fn used(&self) -> (Load, Vec<Client>) {
        let load = Load::start(2, self.address("http"), "/");
        load.advance(1000);
        let idle = (0..8).map(|_| {
            let mut client = Client::connect(self.address("http")).expect("it accepts");
            client.get("/").expect("it answers");
            client
        });
        (load, idle.collect())
    }
}

/// The requests in flight have all been answered: each gets its answer.
fn answer(requests: impl IntoIterator<Item = (Client, Exchange)>) {
    for (mut client, exchange) in requests {
        exchange.answer(200, "worth the wait");
        assert_eq!(client.receive().expect("it is answered").text(), "worth the wait");
    }
}

/// Nothing that the page does is against its policy, and no script has failed.
fn assert_no_complaint(browser: &Browser) {
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn the_page_shows_the_tree_and_a_request_that_comes_and_goes() {
    let Some(browser) = Browser::start(file!()) else { return };
    let site = Site::start("");
    let (_load, _idle) = site.used();
    browser.open(&site.page());
    let (main, worker) = (site.daemon.pid(), site.daemon.worker());
    let names = [format!("main process {main}"), format!("worker {worker}")];
    let tree = browser.wait_for("#tree", &[&names[0], &names[1], "signals", "http", "admin", "systemd"]);
    assert_eq!(tree.matches("running").count(), 5, "{tree}");
    assert!(tree.contains("waiting for a signal"), "{tree}");
    assert_eq!(browser.text("#says").as_deref(), Some("Serving."));
    let first = site.in_flight("/app/reports/2026?format=csv");
    let second = site.in_flight("/app/events");
    let listed = browser.wait_for("#requests", &["GET /app/reports/2026", "GET /app/events", "127.0.0.1"]);
    assert!(
        listed.find("/app/reports").unwrap() < listed.find("/app/events").unwrap(),
        "oldest first: {listed}"
    );
    // A few points of the plots.
    browser.wait_until("#plots", "a rate", |text| text.contains("p50"));
    browser.keep_picture("serving");
    answer([first, second]);
    browser.wait_until("#requests", "none", |text| !text.contains("/app/"));
    assert_no_complaint(&browser);
}

#[test]
fn a_drain_counts_down_to_its_end_and_the_page_says_what_came_of_it() {
    let Some(browser) = Browser::start(file!()) else { return };
    let mut site = Site::start("shutdown.deadline = \"90s\"");
    browser.open(&site.page());
    browser.wait_for("#says", &["Serving."]);
    let requests = [site.in_flight("/app/export"), site.in_flight("/app/backup")];
    browser.wait_for("#requests", &["GET /app/export", "GET /app/backup"]);
    site.daemon.signal(Signal::TERM);
    browser.wait_for("#says", &["Draining because of SIGTERM."]);
    let first = browser.wait_for("#countdown", &[" left"]);
    browser.wait_until("#countdown", "less", |text| text.contains(" left") && text != first);
    browser.wait_for("#drain", &["2 still to finish"]);
    browser.wait_for("#requests", &["GET /app/export", "GET /app/backup"]);
    let passed = browser.value("document.querySelector('#drain progress').value").as_f64().expect("a number");
    assert!(passed > 0.0 && passed < 1.0, "{passed}");
    browser.keep_picture("draining");
    assert_no_complaint(&browser);
    answer(requests);
    browser.wait_for("#says", &["Stopped: 2 requests finished, 0 cut."]);
    browser.wait_for("#news", &["Waiting for a successor"]);
    assert_eq!(site.daemon.wait(), 0);
    assert_eq!(browser.value("document.querySelector('main').className"), "past");
    browser.keep_picture("stopped");
    // Nobody listens there any more, which the browser is right to say.
    assert!(browser.console().iter().all(|said| said.contains("ERR_CONNECTION_REFUSED")));
}

#[test]
fn after_a_reload_the_page_goes_on_with_the_successor_and_shows_what_the_predecessor_still_does() {
    let Some(browser) = Browser::start(file!()) else { return };
    let site = Site::start("handover.deadline = \"90s\"");
    let (_load, _idle) = site.used();
    browser.open(&site.page());
    browser.wait_for("#says", &["Serving."]);
    let request = site.in_flight("/app/export");
    browser.wait_for("#requests", &["GET /app/export"]);
    let old = site.daemon.worker();
    site.daemon.signal(Signal::HUP);
    let took_over = format!(" took over from worker {old}");
    browser.wait_for("#news", &[&took_over]);
    let new = site.daemon.worker();
    assert_ne!(new, old);
    let (worker, predecessor) = (format!("worker {new}"), format!("predecessor {old}"));
    browser.wait_for("#tree", &[&worker, &predecessor, "1 request in flight", "left"]);
    browser.wait_for("#says", &["Serving."]);
    assert_eq!(browser.value("document.querySelector('main').className"), "");
    browser.keep_picture("after-a-takeover");
    answer([request]);
    browser.wait_until("#tree", "no predecessor", |text| !text.contains("predecessor"));
    assert_no_complaint(&browser);
}

#[test]
fn a_worker_that_is_killed_is_seen_to_be_gone_and_the_page_goes_on_with_the_next() {
    let Some(browser) = Browser::start(file!()) else { return };
    let site = Site::start("");
    browser.open(&site.page());
    browser.wait_for("#says", &["Serving."]);
    let old = site.daemon.worker();
    site.daemon.signal_worker(Signal::KILL);
    browser.wait_for("#news", &[&format!(" took over from worker {old}")]);
    browser.wait_until("#tree", "the restart", |text| {
        text.lines().any(|line| line.starts_with("main process") && line.contains(" 1 "))
    });
}

#[test]
fn a_page_of_another_version_loads_itself_anew() {
    let Some(browser) = Browser::start(file!()) else { return };
    let site = Site::start("");
    browser.open(&site.page());
    browser.wait_for("#says", &["Serving."]);
    let loaded = browser.value("performance.timeOrigin");
    browser.value("document.querySelector('main').dataset.build = 'another'");
    wait_until("another page", || (browser.value("performance.timeOrigin") != loaded).then_some(()));
    browser.wait_for("#says", &["Serving."]);
    let build = browser.value("document.querySelector('main').dataset.build");
    assert_ne!(build, "another");
    assert_no_complaint(&browser);
}

#[test]
fn with_scripts_refused_the_page_shows_the_same_and_loads_itself_anew() {
    let Some(browser) = Browser::start_with(file!(), false) else { return };
    let site = Site::start("");
    browser.open(&site.page());
    browser.wait_for("#tree", &["main process", "signals", "http"]);
    assert!(!browser.text("#requests").unwrap().contains("/app/"));
    let loaded = browser.value("performance.timeOrigin");
    let request = site.in_flight("/app/export");
    browser.wait_for("#requests", &["GET /app/export"]);
    // Scripts would have put it there without loading the page.
    assert_ne!(browser.value("performance.timeOrigin"), loaded);
    answer([request]);
    assert_no_complaint(&browser);
}

#[test]
fn on_a_phone_and_in_the_dark_all_of_it_can_be_read() {
    let Some(browser) = Browser::start(file!()) else { return };
    let site = Site::start("");
    let (_load, _idle) = site.used();
    let long = format!("/app/{}", "a-long-path-without-a-space".repeat(20));
    let requests = [site.in_flight("/app/export"), site.in_flight(&long)];
    browser.be_a_phone();
    browser.open(&site.page());
    browser.wait_for("#requests", &["GET /app/export"]);
    let back = "getComputedStyle(document.body).backgroundColor";
    let light = browser.value(back);
    browser.be_dark();
    assert_ne!(browser.value(back), light);
    browser.wait_until("#plots", "a rate", |text| text.contains("p50"));
    let width = browser.value("[innerWidth, document.documentElement.scrollWidth]");
    assert_eq!(width, serde_json::json!([390, 390]));
    answer(requests);
    let request = site.in_flight("/app/export");
    browser.wait_until("#requests", "the short one", |text| {
        text.contains("/app/export") && !text.contains("a-long")
    });
    browser.keep_picture("dark-phone");
    answer([request]);
    assert_no_complaint(&browser);
}

/// The pictures in `docs/images`, of a daemon that has been used for a while.
#[test]
#[ignore = "takes two minutes, and shows nothing that the others do not"]
fn the_readmes_pictures() {
    let Some(browser) = Browser::start(file!()) else { return };
    let site = Site::start("handover.deadline = \"90s\"\nshutdown.deadline = \"90s\"");
    let use_it = |rounds: [usize; 6]| {
        for clients in rounds {
            let load = Load::start(clients, site.address("http"), "/");
            std::thread::sleep(std::time::Duration::from_secs(9));
            let account = load.finish();
            assert_eq!((account.refused, account.dropped), (0, 0), "{account}");
        }
    };
    let (load, _idle) = site.used();
    browser.open(&site.page());
    use_it([1, 3, 6, 2, 4, 1]);
    let requests = [site.in_flight("/app/reports/2026"), site.in_flight("/app/export")];
    browser.wait_for("#requests", &["GET /app/export"]);
    browser.keep_picture("readme-serving");
    site.daemon.signal(Signal::HUP);
    browser.wait_for("#tree", &["predecessor", "2 requests in flight"]);
    use_it([2, 1, 4, 0, 1, 2]);
    browser.keep_picture("readme-takeover");
    answer(requests);
    browser.wait_until("#tree", "no predecessor", |text| !text.contains("predecessor"));
    let requests = [site.in_flight("/app/reports/2026"), site.in_flight("/app/export")];
    browser.be_a_phone();
    browser.be_dark();
    browser.wait_for("#requests", &["GET /app/export"]);
    browser.keep_picture("readme-dark-phone");
    drop(browser);

    let Some(browser) = Browser::start(file!()) else { return };
    browser.open(&site.page());
    drop(load);
    site.daemon.signal(Signal::TERM);
    browser.wait_for("#countdown", &["1 min 1"]);
    browser.keep_picture("readme-draining");
    answer(requests);
}

#[test]
fn the_events_end_in_order_with_the_worker_and_the_head_has_the_policy() {
    let mut site = Site::start("");
    let mut client = Client::connect(site.address("admin")).expect("it accepts");
    let page = client.get("/").expect("it answers");
    let policy = page.header("content-security-policy").expect("a policy");
    for part in ["default-src 'none'", "script-src 'sha256-", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(part), "{part} in {policy}");
    }
    assert_eq!(page.header("cache-control"), Some("no-store"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    client.ask("/events").expect("it takes a request");
    let head = client.receive_head().expect("it answers");
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(head.header("cache-control"), Some("no-store"));
    client.receive_chunk().expect("it goes on").expect("a picture");
    site.daemon.signal(Signal::TERM);
    let mut said = Vec::new();
    while let Some(chunk) = client.receive_chunk().expect("it ends in order") {
        said.extend(chunk);
    }
    let said = String::from_utf8(said).expect("it is text");
    let (_, last) = said.rsplit_once("event: ").expect("an event");
    assert!(last.starts_with("last\n") && last.contains("Stopped: 0 requests finished, 0 cut."), "{said}");
    assert_eq!(site.daemon.wait(), 0);
}
