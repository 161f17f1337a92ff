//! The servers' configs, written so that all do the same work: the same answers, a worker for each core, connections kept
//! for as long as the clients like, no access log unless it is measured. What else there is stays as shipped.

use std::fmt::Write;
use std::path::Path;
use std::thread;

use crate::server::{Addresses, Site};
use crate::tls::Certificate;

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

pub(crate) fn steadfast(site: &Site, addresses: Addresses) -> String {
    let Addresses { plain, secure, admin } = addresses;
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
listen = ["{plain}"]
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
    if let Some(certificate) = &site.certificate {
        config += &steadfast_https(&secure.to_string(), certificate);
    }
    for path in routes(site) {
        let _ = write!(config, "[[route]]\npath = \"{path}\"\nrespond = \"{HELLO}\"\n");
    }
    config
}

/// The section of steadfast's config for TLS.
pub(crate) fn steadfast_https(address: &str, certificate: &Certificate) -> String {
    let (chain, key) = (certificate.chain.display(), certificate.key.display());
    format!(
        "[https]\nlisten = [\"{address}\"]\ncertificates = [{{ chain = \"{chain}\", key = \"{key}\" }}]\n"
    )
}

/// nginx's lines for TLS, within a server. Its versions are Debian's own, but for the two that are no more.
pub(crate) fn nginx_https(address: &str, certificate: &Certificate) -> String {
    let (chain, key) = (certificate.chain.display(), certificate.key.display());
    format!(
        "listen {address} ssl backlog=4096;\nssl_certificate {chain};\nssl_certificate_key {key};\n\
         ssl_protocols TLSv1.2 TLSv1.3;\n"
    )
}

pub(crate) fn nginx(site: &Site, addresses: Addresses, folder: &Path) -> String {
    let Addresses { plain, secure, .. } = addresses;
    let tls = site.certificate.as_ref();
    let tls = tls.map(|certificate| nginx_https(&secure.to_string(), certificate)).unwrap_or_default();
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
        listen {plain} backlog=4096;
        {tls}
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

pub(crate) fn haproxy(site: &Site, addresses: Addresses, folder: &Path) -> String {
    let Addresses { plain, secure, .. } = addresses;
    // It finds the key beside the chain.
    let tls = site.certificate.as_ref().map(|Certificate { chain, .. }| {
        format!("bind {secure} ssl crt {} alpn http/1.1 backlog 4096", chain.display())
    });
    let tls = tls.unwrap_or_default();
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
    bind {plain} backlog 4096
    {tls}
    {answer} string "{HELLO}" if {{ path / }}
    {answer} lf-string "%[path,map_str({folder}/routes.map)]" if {{ path -m beg /route/ }}
    default_backend back
backend back
    http-reuse safe
    option forwardfor
    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
    http-request set-header X-Forwarded-Host %[req.hdr(Host)]
    server upstream {upstream} pool-max-conn 8192
"#
    )
}

/// The answer of each route. HAProxy's way to have many is a map.
pub(crate) fn haproxy_routes(site: &Site) -> String {
    routes(site).fold(String::new(), |map, path| map + &path + " " + HELLO + "\n")
}

pub(crate) fn caddy(site: &Site, addresses: Addresses, folder: &Path) -> String {
    let Addresses { plain, secure, .. } = addresses;
    let Site { files, upstream, access_log, .. } = site;
    let (files, folder) = (files.display(), folder.display());
    let log =
        if *access_log { format!("log {{\n output file {folder}/access.log\n}}") } else { String::new() };
    let answer = format!("header Content-Type \"{HTML}\"\nrespond `{HELLO}`");
    let mut served = format!(
        r"
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
        let _ = write!(served, "handle {path} {{\n{answer}\n}}\n");
    }
    // An address as the site's name would be the one host that it answers.
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
http://:{} {{
    bind {}
    {served}
}}
",
        plain.port(),
        plain.ip()
    );
    if let Some(Certificate { chain, key }) = &site.certificate {
        let (chain, key) = (chain.display(), key.display());
        let (port, ip) = (secure.port(), secure.ip());
        let _ = write!(config, "https://:{port} {{\nbind {ip}\ntls {chain} {key}\n{served}\n}}\n");
    }
    config
}
