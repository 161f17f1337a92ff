//! The image: the root that `packaging/container/` makes, with nothing else in it, as the root of a process that is the first
//! of its namespace, an unprivileged user, and can write nothing. What the `Containerfile` says of user, environment and
//! command is read out of it. Where there is Podman, that builds the image and runs it.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use steadfast::Config;
use steadfast_harness::{Client, Daemon, Upstream, wait_until, wait_with};
use tempfile::TempDir;

use crate::process::{BINARY, children, kill, not_shown, serving};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/container");

/// Mounts what a runtime mounts, and becomes the program: `sh -c SCRIPT sh ROOT USER COMMAND`.
const SCRIPT: &str = r#"
set -eu
root=$1 user=$2 command=$3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
touch "$root/dev/null"
mount --bind /dev/null "$root/dev/null"
mount -t tmpfs tmpfs "$root/run/steadfast" -o mode=1777
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setgid,+setuid \
    chroot --userspec="$user" --groups= "$root" $command
"#;

/// Builds the image in a folder, runs it, and says what came of it: `sh -c SCRIPT sh FOLDER ARGUMENTS`, in namespaces whose mounts and
/// processes are gone with it.
const PODMAN: &str = r#"
set -eu
cd "$1"
ip link set lo up
# Podman wants one hierarchy, and leaves files here.
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for folder in /run /dev/shm /var/tmp; do mount -t tmpfs tmpfs "$folder"; done
podman() {
    command podman --storage-driver vfs --root "$PWD/store" --runroot /run/store --cgroup-manager cgroupfs \
        --events-backend none --runtime crun "$@"
}
podman build --isolation chroot --tag steadfast . >&2
# With the machine's network a port (-p) is where it was. The arguments are words.
podman run --detach --name it --network host --cgroups disabled $2 >&2
until curl -fsS http://127.0.0.1:9090/readyz >&2; do sleep 0.1; done
echo "page: $(curl -fsS http://127.0.0.1:8080/)"
echo "status: $(podman exec it steadfast status --json)"
echo "reload: $(podman exec it steadfast reload)"
podman kill --signal HUP it >&2
until podman logs it 2>&1 | grep -c 'takes over from worker' | grep -qx 2; do sleep 0.1; done
# More than the times of the config, and it would be killed.
podman stop --time 60 it >&2
echo "exit: $(podman inspect it --format '{{.State.ExitCode}}')"
podman logs it 2>&1 | sed 's/^/log: /'
"#;

/// The time from SIGTERM to SIGKILL of Docker and of Podman, in seconds.
const ENGINES_WAIT: u64 = 10;

/// What follows an instruction of the `Containerfile`.
fn instruction(name: &str) -> String {
    let containerfile = fs::read_to_string(Path::new(FOLDER).join("Containerfile")).expect("it is shipped");
    let found = containerfile.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {name}")).to_owned()
}

/// The words of an instruction in the form of a JSON list.
fn words(name: &str) -> Vec<String> {
    serde_json::from_str(&instruction(name)).expect("a list")
}

/// A container of the image.
struct Container {
    /// `unshare`, which waits outside.
    daemon: Daemon,
    root: TempDir,
    /// The main process, as numbered outside.
    main: u32,
}

impl Container {
    /// Starts one whose config has these lines as well; says why if this machine cannot.
    fn start(lines: &str) -> Option<Self> {
        let namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"];
        let allowed = Command::new("unshare").args(namespaces).args(["setpriv", "true"]).output();
        if !allowed.is_ok_and(|output| output.status.success()) {
            let required = std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
            assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but there are no namespaces");
            not_shown(file!(), "only root makes namespaces, with unshare(1) and setpriv(1)");
            return None;
        }
        let root = root();
        configure(root.path(), lines);
        let (path, user) = (root.path().to_str().expect("a temporary path is text"), instruction("USER"));
        let command = [words("ENTRYPOINT"), words("CMD")].concat().join(" ");
        // The path of a config of its own, which the harness adds, is not looked at.
        let arguments = [&namespaces[..], &["sh", "-c", SCRIPT, "sh", path, &user, &command]].concat();
        let daemon = Daemon::spawn_program("unshare", &arguments, "", |command| {
            let environment = instruction("ENV");
            let pairs = environment.split(' ').map(|pair| pair.split_once('=').expect("NAME=VALUE"));
            // The script needs programs of this machine.
            command.env_remove("NOTIFY_SOCKET").envs(pairs.filter(|(name, _)| *name != "PATH"));
        });
        serving(&daemon);
        let main = wait_until("the main process", || children(daemon.pid()).pop());
        Some(Self { daemon, root, main })
    }

    /// The worker that was started last.
    fn worker(&self) -> u32 {
        wait_until("a worker", || children(self.main).pop())
    }

    /// The events of its log, each of them an object on a line of its own.
    fn log(&self) -> Vec<Value> {
        let lines = self.daemon.stderr().0;
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    }

    /// Returns once the log says this, and returns the event.
    fn wait_for_event(&self, message: &str) -> Value {
        self.wait_for_events(1, message)
    }

    /// The same of so many events; returns the last.
    fn wait_for_events(&self, count: usize, message: &str) -> Value {
        let is_it = |event: &Value| event["message"].as_str().is_some_and(|text| text.contains(message));
        wait_with(
            || self.log().into_iter().filter(is_it).nth(count - 1),
            || format!("{message:?}, {count} times, in:\n{}", self.daemon.stderr()),
        )
    }

    fn connect(&self, child: &str) -> Client {
        let listening = self.log().into_iter().rfind(|event| {
            event["child"] == child
                && event["message"].as_str().is_some_and(|text| text.starts_with("listening on 1"))
        });
        let address: SocketAddr = listening
            .and_then(|event| event["address"].as_str()?.parse().ok())
            .unwrap_or_else(|| panic!("no address of {child} in {:#?}", self.log()));
        Client::connect(address).expect("it accepts")
    }

    /// A command of the image's in the running container, as `podman exec` runs it.
    fn exec(&self, arguments: &[&str]) -> Output {
        let (main, user) = (self.main.to_string(), instruction("USER"));
        let (user, group) = user.split_once(':').expect("USER:GROUP");
        let mut command = Command::new("nsenter");
        command.args(["--target", &main, "--pid", "--mount", "--root", "--wd=/"]);
        command.args(["--setuid", user, "--setgid", group, "/usr/bin/steadfast"]).args(arguments);
        command.env("RUNTIME_DIRECTORY", "/run/steadfast").output().expect("it runs")
    }

    /// A request that the upstream has yet to answer.
    fn in_flight(&self, upstream: &Upstream) -> (Client, steadfast_harness::Exchange) {
        let mut client = self.connect("http");
        client.ask("/app/slow").expect("it takes a request");
        (client, upstream.next_request())
    }
}

/// The root of the image, made as its build makes it.
fn root() -> TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).expect("it is ours");
    let folder = Path::new(FOLDER);
    let mut layout = Command::new(folder.join("root.sh"));
    let layout =
        layout.arg(BINARY).arg(folder.join("config.toml")).arg(root.path()).output().expect("it runs");
    assert!(layout.status.success(), "{layout:?}");
    root
}

/// Gives the config, the image's own, ports that nobody else has, and more lines.
fn configure(root: &Path, lines: &str) {
    let own = fs::read_to_string(Path::new(FOLDER).join("config.toml")).expect("it is shipped");
    let config = own.replace("0.0.0.0:8080", "127.0.0.1:0").replace("0.0.0.0:9090", "127.0.0.1:0");
    assert_eq!(config.matches("127.0.0.1:0").count(), 2, "{own}");
    fs::write(root.join("etc/steadfast/config.toml"), config + lines).expect("it is ours");
}

/// A route to an upstream.
fn proxy(upstream: &Upstream) -> String {
    format!("\n[[route]]\npath = \"/app/*\"\nproxy = \"http://{}\"\n", upstream.address())
}

/// The number of a process in its own namespace (`NSpid`, `proc_pid_status(5)`).
fn own_number(process: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).expect("it has a number");
    numbers.split_whitespace().last().expect("it has one").to_owned()
}

/// Every file below a folder, by its path in there.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).expect("it is below").to_owned());
            }
        }
    }
    found
}

#[test]
fn the_image_has_the_program_its_libraries_and_a_config_and_no_shell() {
    let root = root();
    let files = files(root.path());
    let others: Vec<_> =
        files.iter().map(|file| file.to_str().expect("text")).filter(|file| !file.contains(".so")).collect();
    assert_eq!(others, ["etc/nsswitch.conf", "etc/steadfast/config.toml", "usr/bin/steadfast"]);
    assert!(files.len() > others.len(), "the program of a test is linked with libraries");
    assert_eq!(instruction("STOPSIGNAL"), "SIGTERM");
}

#[test]
fn the_images_config_cuts_by_name_before_an_engine_kills() {
    let config = Config::check_file(&Path::new(FOLDER).join("config.toml")).expect("it is valid");
    let stop = config.shutdown.delay + config.shutdown.deadline.expect("it has one");
    assert!(stop.as_secs() < ENGINES_WAIT, "{stop:?}");
}

#[test]
fn podman_builds_the_images_last_stage_runs_it_as_the_readme_says_and_stops_it() {
    // Its first stage compiles, for which it needs a registry: what that makes is made here.
    let containerfile = fs::read_to_string(Path::new(FOLDER).join("Containerfile")).expect("it is shipped");
    let (_, last_stage) = containerfile.split_once("\nFROM scratch\n").expect("a last stage");
    let last_stage = last_stage.replace("COPY --from=build /image /\n", "COPY image /\n");
    assert!(last_stage.contains("COPY image /\n") && !last_stage.contains("build"), "{last_stage}");
    let (root, folder) = (root(), tempfile::tempdir().expect("a temporary folder"));
    fs::rename(root.path(), folder.path().join("image")).expect("it is ours");
    fs::write(folder.path().join("Containerfile"), format!("FROM scratch\n{last_stage}"))
        .expect("it is ours");
    fs::create_dir(folder.path().join("www")).expect("it is ours");
    fs::write(folder.path().join("www/index.html"), "from the volume").expect("it is ours");
    let readme = fs::read_to_string(Path::new(FOLDER).join("../README.md")).expect("it is shipped");
    let run =
        readme.lines().find_map(|line| line.strip_prefix("podman run ")).expect("it says how to run it");
    assert!(containerfile.contains(&format!("podman run {run}\n")), "{run}");

    let engine = Command::new("podman").arg("--version").output();
    if engine.is_err() || !rustix::process::geteuid().is_root() {
        let required = std::env::var_os("STEADFAST_REQUIRE_SYSTEMD").is_some_and(|value| value == "1");
        assert!(!required, "STEADFAST_REQUIRE_SYSTEMD=1, but there is no Podman for root");
        not_shown(file!(), "there is no Podman, or no root to run it");
        return;
    }
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "600", "unshare", "--mount", "--propagation", "private"]);
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--net",
        "--ipc",
        "sh",
        "-c",
        PODMAN,
        "sh",
    ]);
    let Output { status, stdout, stderr } = command.arg(folder.path()).arg(run).output().expect("it runs");
    let (said, complained) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{status}\n{said}\n{complained}");
    let after = |name: &str| -> Vec<&str> {
        said.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
    };
    assert_eq!(after("page"), ["from the volume"]);
    let running: Value = serde_json::from_str(after("status")[0]).expect("it is JSON");
    assert_eq!(
        (&running["phase"], &running["main_process"]["pid"]),
        (&"serving".into(), &1.into()),
        "{running}"
    );
    assert!(after("reload")[0].contains("has taken over"), "{said}");
    assert_eq!(after("exit"), ["0"]);
    let log = after("log");
    assert!(
        log.iter().all(|line| serde_json::from_str::<Value>(line).is_ok_and(|event| event.is_object())),
        "{log:#?}"
    );
    assert!(log.iter().any(|line| line.contains("stopped by SIGTERM")), "{log:#?}");
}

#[test]
fn a_container_serves_as_nobody_in_particular_on_a_root_that_it_cannot_write() {
    let Some(container) = Container::start("") else { return };
    fs::write(container.root.path().join("srv/www/index.html"), "from the image").unwrap();
    assert_eq!(container.connect("http").get("/").unwrap().text(), "from the image");
    assert_eq!(container.connect("admin").get("/readyz").unwrap().status, 200);

    let worker = container.worker();
    for process in [container.main, worker] {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        for line in ["Uid:\t65532\t65532\t65532\t65532\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n"]
        {
            assert!(status.contains(line), "{line:?} in {status}");
        }
    }
    let denied = fs::write(format!("/proc/{}/root/etc/written", container.main), "").unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);

    let status = container.exec(&["status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_else(|_| panic!("{status:?}"));
    assert_eq!(status["phase"], "serving");
}

#[test]
fn a_name_in_the_containers_hosts_is_an_upstream() {
    let upstream = Upstream::start();
    let route = proxy(&upstream).replace("127.0.0.1", "upstream");
    let Some(container) = Container::start(&route) else { return };
    fs::write(container.root.path().join("etc/hosts"), "127.0.0.1 upstream\n").unwrap();
    let (mut client, exchange) = container.in_flight(&upstream);
    exchange.answer(200, "found");
    assert_eq!(client.receive().unwrap().text(), "found");
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_ends_with_0_and_the_whole_log_is_json() {
    let upstream = Upstream::start();
    let Some(mut container) = Container::start(&proxy(&upstream)) else { return };
    let (mut client, exchange) = container.in_flight(&upstream);
    kill("TERM", container.main);
    container.wait_for_event("SIGTERM: draining");
    exchange.answer(200, "worth the wait");
    assert_eq!(client.receive().unwrap().text(), "worth the wait");
    assert_eq!(container.daemon.wait(), 0);
    let report = container.wait_for_event("stopped by SIGTERM");
    assert_eq!((&report["level"], &report["message_id"].is_string()), (&"INFO".into(), &true), "{report}");
}

#[test]
fn a_second_sigint_cuts_names_what_it_cut_and_ends_with_3() {
    let upstream = Upstream::start();
    let Some(mut container) = Container::start(&proxy(&upstream)) else { return };
    let (mut client, _exchange) = container.in_flight(&upstream);
    kill("INT", container.main);
    container.wait_for_event("SIGINT: draining");
    kill("INT", container.main);
    assert_eq!(container.daemon.wait(), 3);
    assert!(client.receive().is_err());
    let cut = container.wait_for_event("cut by the second signal: GET /app/slow");
    assert_eq!(cut["level"], "WARN");
}

#[test]
fn sighup_takes_a_changed_config_into_a_new_worker_and_refuses_a_broken_one() {
    let Some(container) = Container::start("") else { return };
    let mut client = container.connect("http");
    assert_eq!(client.get("/changed").unwrap().status, 404);
    let old = container.worker();
    configure(container.root.path(), "\n[[route]]\npath = \"/changed\"\nrespond = \"changed\"\n");
    kill("HUP", container.main);
    container.wait_for_event("takes over from worker");
    wait_until("the old worker to end", || (!children(container.main).contains(&old)).then_some(()));
    // On the same connection.
    assert_eq!(client.get("/changed").unwrap().text(), "changed");

    configure(container.root.path(), "nonsense");
    kill("HUP", container.main);
    let refused = container.wait_for_event("the reload failed, nothing has changed");
    assert_eq!(refused["level"], "ERROR");
    let output = container.exec(&["reload"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("/etc/steadfast/config.toml:"), "{said}");
    assert_eq!(client.get("/changed").unwrap().text(), "changed");
}

/// As PID 1 it inherits whatever a process leaves behind that was started beside it, and hears of the end of each in the
/// same way as of its worker's.
#[test]
fn a_hundred_orphans_are_reaped_and_none_is_taken_for_a_worker() {
    let upstream = Upstream::start();
    let Some(mut container) = Container::start(&proxy(&upstream)) else { return };
    let orphans = || {
        let main = container.main.to_string();
        let script = "for i in $(seq 50); do (sleep 0.$i > /dev/null 2>&1 &); done";
        let status = Command::new("nsenter").args(["--target", &main, "--pid", "sh", "-c", script]).status();
        assert!(status.expect("it runs").success());
    };
    let killed = container.worker();
    let its_own = own_number(killed);
    orphans();
    kill("KILL", killed);
    container.wait_for_event(&format!("worker {its_own} was ended by signal 9; starting another"));
    orphans();
    container.wait_for_events(2, "serving; took over");
    wait_until("the worker to be the only child", || (children(container.main).len() == 1).then_some(()));
    assert_ne!(container.worker(), killed);

    // The exit code is still the worker's, though others end meanwhile; one that runs on is nobody's business.
    let (_client, _exchange) = container.in_flight(&upstream);
    let main = container.main.to_string();
    let forever = ["--target", &main, "--pid", "sh", "-c", "(sleep 1000 > /dev/null 2>&1 &)"];
    assert!(Command::new("nsenter").args(forever).status().expect("it runs").success());
    orphans();
    kill("TERM", container.main);
    container.wait_for_event("SIGTERM: draining");
    orphans();
    kill("TERM", container.main);
    assert_eq!(container.daemon.wait(), 3);
    assert!(
        !container
            .log()
            .iter()
            .any(|event| event["message"].as_str().is_some_and(|text| text.contains("gave up")))
    );
}
