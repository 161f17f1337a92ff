//! The programs that are measured: steadfast and the yardsticks, which cargo and Go build, and the peers, from Debian.
//!
//! The peers' packages are unpacked into a folder of their own in the target folder, which needs no root and leaves the
//! machine as it was: an installed package would start a service.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The packages of the peers. With what they depend on, as far as the machine has not got it.
const PACKAGES: [&str; 4] = ["nginx", "haproxy", "caddy", "golang-go"];

/// The variable that tells the loader of libraries beside the machine's.
pub(crate) const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// The kinds of server, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Kind {
    Steadfast,
    Nginx,
    Haproxy,
    Caddy,
    /// Go's `net/http`.
    Go,
    /// A bare `axum::serve`.
    Axum,
    /// hyper under ecdysis.
    Ecdysis,
    /// Answers from memory by epoll.
    Floor,
}

/// A server that can be started.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    /// Its column in the tables.
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
    pub(crate) version: String,
    /// Libraries beside the machine's.
    pub(crate) libraries: PathBuf,
}

/// The folder of what is fetched and built for the benchmarks.
pub(crate) struct Workshop {
    /// A folder in cargo's target folder.
    folder: PathBuf,
}

impl Workshop {
    pub(crate) fn open() -> Self {
        let output = output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]));
        let metadata: Value = serde_json::from_str(&output).expect("cargo's metadata is JSON");
        let target = metadata["target_directory"].as_str().expect("there is a target folder");
        let folder = Path::new(target).join("bench");
        fs::create_dir_all(&folder).expect("the target folder can be written");
        Self { folder }
    }

    /// A server of this kind. Fetches and builds what is not there yet.
    pub(crate) fn program(&self, kind: Kind) -> Program {
        let (name, binary, version) = match kind {
            Kind::Steadfast => {
                let built = self.steadfast("steadfast", &build("steadfast", "steadfast"));
                let commit = commit().map(|commit| format!(" ({commit})")).unwrap_or_default();
                return Program { version: built.version + &commit, ..built };
            }
            Kind::Nginx => {
                let binary = self.peer("usr/sbin/nginx");
                let version = said_by(Command::new(&binary).arg("-v"), "nginx/");
                ("nginx", binary, version)
            }
            Kind::Haproxy => {
                let binary = self.peer("usr/sbin/haproxy");
                let version = said_by(
                    Command::new(&binary).arg("-v").env(LIBRARIES, self.libraries()),
                    "HAProxy version ",
                );
                ("HAProxy", binary, version)
            }
            Kind::Caddy => {
                let binary = self.peer("usr/bin/caddy");
                let version = said_by(Command::new(&binary).arg("version"), "");
                ("Caddy", binary, version)
            }
            Kind::Go => {
                let (binary, version) = self.build_go();
                ("net/http", binary, version)
            }
            Kind::Axum => {
                ("axum::serve", build("steadfast-bench", "bare-axum"), versions(&["axum", "hyper"]))
            }
            Kind::Ecdysis => {
                let binary = build("steadfast-bench", "ecdysis-hyper");
                ("ecdysis", binary, versions(&["ecdysis", "hyper"]))
            }
            Kind::Floor => ("floor", build("steadfast-bench", "epoll-floor"), "epoll".into()),
        };
        Program { kind, name: name.into(), binary, version, libraries: self.libraries() }
    }

    /// A build of steadfast. Of which commit it is nobody knows but who made it.
    pub(crate) fn steadfast(&self, name: &str, binary: &Path) -> Program {
        let version = said_by(Command::new(binary).arg("--version"), "steadfast ");
        let (name, binary) = (name.into(), binary.into());
        Program { kind: Kind::Steadfast, name, binary, version, libraries: self.libraries() }
    }
}

/// The commit of the workspace, if that is a clone.
fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=10"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

// ---------------------------------------------------------------------------------------------------------------
// From Debian
// ---------------------------------------------------------------------------------------------------------------

impl Workshop {
    /// The folder that the peers' packages are unpacked in.
    pub(crate) fn peers(&self) -> PathBuf {
        self.folder.join("debian")
    }

    /// A file of the peers' packages, or the one of the machine if they are installed.
    fn peer(&self, path: &str) -> PathBuf {
        self.unpack();
        let unpacked = self.peers().join(path);
        let path = if unpacked.exists() { unpacked } else { Path::new("/").join(path) };
        assert!(
            path.exists(),
            "there is no {}: remove {} and try again",
            path.display(),
            self.peers().display()
        );
        path
    }

    /// Fetches the packages and unpacks them, once.
    fn unpack(&self) {
        let done = self.peers();
        if done.exists() {
            return;
        }
        eprintln!("fetching {} from Debian", PACKAGES.join(", "));
        let simulate = || {
            let mut apt = Command::new("apt-get");
            apt.args(["install", "--simulate", "--no-install-recommends"]).args(PACKAGES);
            apt.output().expect("apt-get runs: the peers are Debian's")
        };
        let mut plan = simulate();
        if !plan.status.success() {
            // The lists may be old, or not there. Only root can change that.
            let _ = Command::new("apt-get").arg("update").stdout(Stdio::null()).status();
            plan = simulate();
        }
        assert!(
            plan.status.success(),
            "apt-get does not know the peers; as root, `apt-get update` may help:\n{}",
            String::from_utf8_lossy(&plan.stderr)
        );
        // Inst nginx (1.22.1-9 Debian:12/stable [amd64])
        let plan = String::from_utf8_lossy(&plan.stdout).into_owned();
        let packages: Vec<_> =
            plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next()).collect();

        let downloads = tempfile::tempdir_in(&self.folder).expect("the target folder can be written");
        let root = tempfile::tempdir_in(&self.folder).expect("the target folder can be written");
        if !packages.is_empty() {
            output(
                Command::new("apt-get").args(["download", "-q"]).args(packages).current_dir(downloads.path()),
            );
        }
        for package in fs::read_dir(downloads.path()).expect("a folder of our own").flatten() {
            output(Command::new("dpkg-deb").arg("--extract").arg(package.path()).arg(root.path()));
        }
        // Servers that give up root's rights look for their files here.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(root.path(), open).expect("a folder of our own");
        fs::rename(root.keep(), done).expect("both are in the target folder");
    }

    /// The folder of the libraries that came with the peers.
    fn libraries(&self) -> PathBuf {
        self.peers().join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
    }

    /// Builds the yardstick in Go.
    fn build_go(&self) -> (PathBuf, String) {
        let go = self.peer("usr/bin/go");
        // The compiler finds its library beside itself, wherever it was unpacked.
        let real = go.canonicalize().expect("usr/bin/go leads to the compiler");
        let root = real.ancestors().nth(2).expect("it is in GOROOT/bin");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("yardsticks");
        let folder = self.folder.join("net-http");
        fs::create_dir_all(&folder).expect("the target folder can be written");
        // What is embedded has to lie beside the source.
        for file in ["net-http/main.go", "hello.html"] {
            let name = Path::new(file).file_name().expect("a file has a name");
            fs::copy(source.join(file), folder.join(name)).expect("the yardstick can be copied");
        }
        let go = |arguments: &[&str]| {
            let mut command = Command::new(&real);
            command
                .args(arguments)
                .current_dir(&folder)
                .env("GOROOT", root)
                .env("GOCACHE", self.folder.join("go-cache"))
                .env("GO111MODULE", "off")
                .env("CGO_ENABLED", "0");
            output(&mut command)
        };
        go(&["build", "-o", "net-http", "main.go"]);
        let version = go(&["version"]);
        let version = version.split_whitespace().nth(2).expect("go version goVERSION ...");
        (folder.join("net-http"), version.trim_start_matches("go").to_owned())
    }
}

// ---------------------------------------------------------------------------------------------------------------
// From the workspace
// ---------------------------------------------------------------------------------------------------------------

/// Builds a binary of the workspace as it is released, and says where it is.
fn build(package: &str, binary: &str) -> PathBuf {
    // Each by itself: together, one would get the features that the other asks its dependencies for.
    let messages = output(
        cargo()
            .args(["build", "--quiet", "--release", "--package", package, "--bin", binary])
            .args(["--message-format", "json-render-diagnostics"]),
    );
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message.get("executable")?.as_str()?))
    };
    let mut executables = messages.lines().filter_map(executable);
    executables
        .find(|path| path.file_name() == Some(OsStr::new(binary)))
        .expect("cargo says where it put the binary")
}

/// The versions of crates, as they are locked.
fn versions(names: &[&str]) -> String {
    // registry+https://...#NAME@VERSION
    let version = |name: &&str| {
        let id = output(cargo().args(["pkgid", name]));
        let version = id.trim().rsplit('@').next().expect("an id has a version");
        format!("{name} {version}")
    };
    names.iter().map(version).collect::<Vec<_>>().join(", ")
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo
}

/// What a command that has to succeed prints.
fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} does not run: {error}"));
    assert!(output.status.success(), "{command:?} failed: {}", output.status);
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

/// The word after `before` in what a program says of itself.
fn said_by(command: &mut Command, before: &str) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not run: {error}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let version = said.split_once(before).and_then(|(_, rest)| rest.split_whitespace().next());
    version.unwrap_or_else(|| panic!("{command:?} says no version: {said}")).to_owned()
}
