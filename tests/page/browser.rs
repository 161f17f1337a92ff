//! Chromium, by the protocol of `chromedriver` (W3C, `WebDriver`).

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use steadfast_harness::{Client, wait_with};
use tempfile::TempDir;

/// The time between two looks at a page.
const GLANCE: Duration = Duration::from_millis(100);

/// A browser with one window. Dropping it ends it.
pub(crate) struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// Removed with this.
    profile: TempDir,
}

impl Browser {
    /// Starts one; `None` where there is none, which it says, unless the environment asks for all tests to be run.
    pub(crate) fn start(file: &str) -> Option<Self> {
        Self::start_with(file, true)
    }

    /// The same, which may refuse scripts.
    pub(crate) fn start_with(file: &str, scripts: bool) -> Option<Self> {
        let driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let driver =
            driver.and_then(|driver| Command::new("chromium").arg("--version").output().map(|_| driver));
        let mut driver = match driver {
            Ok(driver) => driver,
            Err(error) => {
                let why = format!("there is no `chromium` with `chromedriver` in PATH ({error})");
                let required =
                    std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
                assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but {why}");
                // Past the capture of the test runner.
                let _ = writeln!(io::stderr().lock(), "skipped: {file}, because {why}");
                return None;
            }
        };
        let mut said =
            BufReader::new(driver.stdout.take().expect("it is piped")).lines().map_while(Result::ok);
        // "ChromeDriver was started successfully on port 12345."
        let port = said
            .find_map(|line| line.rsplit_once("successfully on port ")?.1.trim_end_matches('.').parse().ok());
        let address = (Ipv4Addr::LOCALHOST, port.expect("it says its port")).into();
        let profile = tempfile::tempdir().expect("a temporary folder");
        let mut browser = Self { driver, address, session: String::new(), profile };
        let scripts = if scripts { 1 } else { 2 };
        let answer = browser.ask(
            "POST",
            "/session",
            &json!({"capabilities": {"alwaysMatch": {
                "browserName": "chrome",
                "goog:loggingPrefs": {"browser": "ALL"},
                "goog:chromeOptions": {
                    "args": [
                        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                        "--window-size=1000,900", format!("--user-data-dir={}", browser.profile.path().display()),
                    ],
                    "prefs": {"profile.managed_default_content_settings.javascript": scripts},
                },
            }}}),
        );
        answer["sessionId"].as_str().expect("a session").clone_into(&mut browser.session);
        Some(browser)
    }

    /// One command, outside of a session.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let mut client = Client::connect(self.address).expect("the driver listens");
        let length = body.len();
        client
            .send(format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            ))
            .expect("the driver takes a command");
        let answer = client.receive().expect("the driver answers");
        let value: Value = serde_json::from_str(&answer.text()).expect("JSON");
        assert_eq!(answer.status, 200, "{method} {path}: {value:#}");
        value["value"].clone()
    }

    fn command(&self, name: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{name}", self.session), body)
    }

    /// A command of Chromium's own protocol.
    fn devtools(&self, name: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({"cmd": name, "params": parameters}))
    }

    /// Opens a page.
    pub(crate) fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// The value of an expression in the page.
    pub(crate) fn value(&self, expression: &str) -> Value {
        self.command("execute/sync", &json!({"script": format!("return {expression}"), "args": []}))
    }

    /// The text of an element, as it is shown; none if there is no such element.
    pub(crate) fn text(&self, selector: &str) -> Option<String> {
        let found = self.command("elements", &json!({"using": "css selector", "value": selector}));
        let element = found.get(0)?.as_object()?.values().next()?.as_str()?.to_owned();
        // It may be another one by now.
        let path = format!("/session/{}/element/{element}/text", self.session);
        let mut client = Client::connect(self.address).expect("the driver listens");
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).ok()?;
        let answer = client.receive().ok().filter(|answer| answer.status == 200)?;
        serde_json::from_str::<Value>(&answer.text()).ok()?["value"].as_str().map(str::to_owned)
    }

    /// Waits until an element's text has all of these words, and returns it.
    pub(crate) fn wait_for(&self, selector: &str, words: &[&str]) -> String {
        self.wait_until(selector, &words.join(" and "), |text| words.iter().all(|word| text.contains(word)))
    }

    /// Waits until an element's text is as wanted, and returns it.
    pub(crate) fn wait_until(&self, selector: &str, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let look = || {
            let found = self.text(selector).filter(|text| wanted(text));
            if found.is_none() {
                std::thread::sleep(GLANCE);
            }
            found
        };
        wait_with(look, || format!("{what} in {selector} of:\n{}", self.text("body").unwrap_or_default()))
    }

    /// Shows the page as on a phone, 390 pixels wide.
    pub(crate) fn be_a_phone(&self) {
        let phone = json!({"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": true});
        self.devtools("Emulation.setDeviceMetricsOverride", &phone);
    }

    /// Prefers dark pages.
    pub(crate) fn be_dark(&self) {
        let dark = json!({"features": [{"name": "prefers-color-scheme", "value": "dark"}]});
        self.devtools("Emulation.setEmulatedMedia", &dark);
    }

    /// Keeps a picture of the whole page in `target/page`.
    pub(crate) fn keep_picture(&self, name: &str) {
        let picture = self.devtools("Page.captureScreenshot", &json!({"captureBeyondViewport": true}));
        let png = BASE64.decode(picture["data"].as_str().expect("a picture")).expect("it is Base64");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target").join("page");
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(folder.join(format!("{name}.png")), png).expect("the picture can be kept");
    }

    /// Everything that the console has said since it was looked at last.
    pub(crate) fn console(&self) -> Vec<String> {
        let log = self.command("se/log", &json!({"type": "browser"}));
        let entries = log.as_array().into_iter().flatten();
        entries.filter_map(|entry| entry["message"].as_str().map(str::to_owned)).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(self.address) {
            // Best effort: it ends the browser's processes, and the driver ends those that are left.
            let path = format!("/session/{}", self.session);
            let _ = client
                .send(format!("DELETE {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
            let _ = client.receive();
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
