//! The servers' configs, written so that all do the same work: the same answers, a worker for each core, connections kept
//! for as long as the clients like, no access log unless it is measured. What else there is stays as shipped.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::thread;

use crate::server::Site;

/// The body of the small answer.
pub(crate) const HELLO: &str = include_str!("../yardsticks/hello.html");

const HTML: &str = "text/html; charset=utf-8";

/// More connections than any row has, and the descriptors for them.
const CONNECTIONS: u32 = 20_000;

fn cores() -> usize {
    thread::available_parallelism().expect("the number of cores is known").get()
}

/// The paths of the routes that are measured by their number.
pub(crate) fn routes(site: &Site) -> impl Iterator<Item = String> + use<> {
    (0..site.routes).map(|n| format!("/route/{n:05}"))
}

pub(crate) fn steadfast(site: &Site, address: SocketAddr, admin: SocketAddr) -> String {
    let Site { files, upstream, access_log, .. } = site;
    let files = files.display();
    // Failures and slow requests are logged as shipped.
    let log = if *access_log {
        "[log]\naccess = \"all\"\naccess_format = \"combined\"\ntarget = \"stderr\"\n"
    } else {
        ""
    };
    let mut config = format!(
        r#"
[http]
listen = ["{address}"]
max_connections = {CONNECTIONS}
requests_per_connection = 1000000000
header_timeout = "10m"
keepalive_timeout = "10m"
[admin]
listen = ["{admin}"]
{log}
[[route]]
path = "/"
respond = "{HELLO}"
[[route]]
path = "/files/*"
files = "{files}"
[[route]]
path = "/proxied/*"
proxy = "http://{upstream}"
"#
    );
    for path in routes(site) {
        let _ = write!(config, "[[route]]\npath = \"{path}\"\nrespond = \"{HELLO}\"\n");
    }
    config
}

pub(crate) fn nginx(site: &Site, address: SocketAddr, folder: &Path) -> String {
    let Site { files, upstream, access_log, .. } = site;
    let (files, folder, workers) = (files.display(), folder.display(), cores());
    let log = if *access_log { format!("{folder}/access.log") } else { "off".into() };
    // The files may lie where only root reads; anyone else cannot choose.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let answer = format!("default_type \"{HTML}\"; return 200 \"{HELLO}\";");
    // `sendfile` and `tcp_nopush` are as Debian ships them.
    let mut config = format!(
        r#"
{user}
daemon off;
pid {folder}/pid;
worker_processes {workers};
worker_rlimit_nofile {CONNECTIONS};
events {{ worker_connections {CONNECTIONS}; }}
http {{
    sendfile on;
    tcp_nopush on;
    access_log {log};
    default_type image/png;
    keepalive_requests 1000000000;
    keepalive_timeout 10m;
    client_header_timeout 10m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream upstream {{
        server {upstream};
        keepalive 8192;
        keepalive_requests 1000000000;
    }}
    server {{
        listen {address} backlog=4096;
        location = / {{ {answer} }}
        location /files/ {{ alias {files}/; }}
        location /proxied/ {{
            proxy_pass http://upstream;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $host;
            proxy_max_temp_file_size 0;
        }}
"#
    );
    for path in routes(site) {
        let _ = writeln!(config, "location = {path} {{ {answer} }}");
    }
    config + "} }\n"
}

pub(crate) fn haproxy(site: &Site, address: SocketAddr, folder: &Path) -> String {
    let Site { upstream, access_log, .. } = site;
    let (folder, threads) = (folder.display(), cores());
    let (target, log) = if *access_log {
        ("log stdout format raw local0", "log global\n    option httplog")
    } else {
        ("", "")
    };
    let answer = format!("http-request return status 200 content-type \"{HTML}\"");
    // It would ask for two descriptors for each connection, proxied or not, and not start without them.
    format!(
        r#"
global
    nbthread {threads}
    maxconn {CONNECTIONS}
    no strict-limits
    {target}
defaults
    mode http
    {log}
    timeout connect 5s
    timeout client 10m
    timeout http-request 10m
    timeout http-keep-alive 10m
    timeout server 1m
frontend front
    bind {address} backlog 4096
    {answer} string "{HELLO}" if {{ path / }}
    {answer} lf-string "%[path,map_str({folder}/routes.map)]" if {{ path -m beg /route/ }}
    default_backend back
backend back
    http-reuse safe
    option forwardfor
    http-request set-header X-Forwarded-Proto http
    http-request set-header X-Forwarded-Host %[req.hdr(Host)]
    server upstream {upstream} pool-max-conn 8192
"#
    )
}

/// The answer of each route. HAProxy's way to have many is a map.
pub(crate) fn haproxy_routes(site: &Site) -> String {
    routes(site).fold(String::new(), |map, path| map + &path + " " + HELLO + "\n")
}

pub(crate) fn caddy(site: &Site, address: SocketAddr, folder: &Path) -> String {
    let Site { files, upstream, access_log, .. } = site;
    let (files, folder) = (files.display(), folder.display());
    // An address as the site's name would be the one host that it answers.
    let (ip, port) = (address.ip(), address.port());
    let log =
        if *access_log { format!("log {{\n output file {folder}/access.log\n}}") } else { String::new() };
    let answer = format!("header Content-Type \"{HTML}\"\nrespond `{HELLO}`");
    let mut config = format!(
        r"
{{
    admin off
    auto_https off
    servers {{
        protocols h1
        timeouts {{
            idle 10m
        }}
    }}
}}
http://:{port} {{
    bind {ip}
    {log}
    handle / {{
        {answer}
    }}
    handle_path /files/* {{
        root * {files}
        file_server
    }}
    handle /proxied/* {{
        reverse_proxy {upstream} {{
            transport http {{
                keepalive_idle_conns_per_host 8192
            }}
        }}
    }}
"
    );
    for path in routes(site) {
        let _ = write!(config, "handle {path} {{\n{answer}\n}}\n");
    }
    config + "}\n"
}
