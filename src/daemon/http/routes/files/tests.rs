//! Promises of the files below a folder: what is found there, and which part of it whoever asks for it gets.

use std::path::{Path, PathBuf};

use axum::http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;

use crate::daemon::http::routes::tests::{ask, body_at, get, named, route, routed, text};
use crate::daemon::http::routes::{Action, Routes, files};

/// A folder with a few files, one above it that nobody may have, and a router that serves it at `/assets/`.
pub(in crate::daemon::http::routes) struct Site {
    above: tempfile::TempDir,
}

impl Site {
    pub(in crate::daemon::http::routes) fn new() -> Self {
        let above = tempfile::tempdir().expect("a folder");
        let site = Self { above };
        std::fs::create_dir_all(site.root().join("sub")).expect("a folder");
        std::fs::write(site.above.path().join("secret"), "secret").expect("a file");
        site.write("index.html", "the index");
        site.write("a b.txt", "0123456789");
        site.write("sub/index.html", "the index below");
        site.write("sub/home page.htm", "another index");
        site
    }

    fn root(&self) -> PathBuf {
        self.above.path().join("root")
    }

    fn write(&self, path: impl AsRef<Path>, content: &str) {
        std::fs::write(self.root().join(path), content).expect("a file");
    }

    pub(in crate::daemon::http::routes) fn config(&self) -> files::Config {
        files::Config {
            root: self.root(),
            index: Some("index.html".into()),
            precompressed: false,
            cache_control: None,
        }
    }

    fn serve(&self, change: impl FnOnce(&mut files::Config)) -> Routes {
        let mut config = self.config();
        change(&mut config);
        routed(&[route("/assets/*", Action::Files(config))])
    }
}

#[tokio::test]
async fn a_file_is_served_with_its_type() {
    let site = Site::new();
    let router = site.serve(|_| {});
    let response = ask(&router, get("/assets/a%20b.txt")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "10");
    assert_eq!(text(response).await, "0123456789");
}

#[tokio::test]
async fn a_folder_is_answered_by_its_index() {
    let site = Site::new();
    let router = site.serve(|_| {});
    assert_eq!(body_at(&router, "/assets/").await, "the index");
    assert_eq!(body_at(&router, "/assets/sub/").await, "the index below");

    let other = site.serve(|config| config.index = Some("home page.htm".into()));
    assert_eq!(body_at(&other, "/assets/sub/").await, "another index");
    assert_eq!(ask(&other, get("/assets/")).await.status(), StatusCode::NOT_FOUND);

    let none = site.serve(|config| config.index = None);
    assert_eq!(ask(&none, get("/assets/sub/")).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(body_at(&none, "/assets/sub/index.html").await, "the index below");
}

#[tokio::test]
async fn a_folder_without_its_slash_redirects_to_itself_with_it() {
    let site = Site::new();
    let router = site.serve(|_| {});
    for (asked, location) in [
        ("/assets", "/assets/"),
        ("/assets?q=1", "/assets/?q=1"),
        ("/assets/sub?q=1", "/assets/sub/?q=1"),
        ("/assets//sub", "/assets/sub/"),
        ("//assets", "/assets/"),
        ("/%61ssets/%73ub", "/assets/sub/"),
    ] {
        let response = ask(&router, get(asked)).await;
        assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT, "{asked}");
        assert_eq!(response.headers()[header::LOCATION], location, "{asked}");
    }
    let exact = routed(&[route("/assets/*", Action::Files(site.config())), named("/assets")]);
    assert_eq!(body_at(&exact, "/assets").await, "/assets");
}

#[tokio::test]
async fn a_redirect_stays_on_this_host() {
    let site = Site::new();
    let router = routed(&[route("/*", Action::Files(site.config()))]);
    for asked in ["//sub", "///sub", "/.//sub", "/x/..//sub"] {
        let response = ask(&router, get(asked)).await;
        assert_eq!(response.headers()[header::LOCATION], "/sub/", "{asked}");
    }
    for asked in ["/\\sub", "/%5csub", "/%2fsub", "/%2f/sub"] {
        let response = ask(&router, get(asked)).await;
        assert!(!response.headers().contains_key(header::LOCATION), "{asked}");
    }
}

#[tokio::test]
async fn files_at_an_exact_path_are_that_file_alone() {
    let site = Site::new();
    site.write("robots.txt", "none");
    let router = routed(&[route("/robots.txt", Action::Files(site.config()))]);
    assert_eq!(body_at(&router, "/robots.txt").await, "none");
    assert_eq!(ask(&router, get("/index.html")).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn no_path_leads_out_of_the_folder() {
    let site = Site::new();
    let router = site.serve(|_| {});
    for (path, reason) in [
        ("/assets/../secret", "nothing is served at this path\n"),
        ("/assets/%2e%2e/secret", "nothing is served at this path\n"),
        ("/assets//../secret", "nothing is served at this path\n"),
        ("/assets/%252e%252e/secret", "no such file\n"),
        ("/assets/sub%2fsecret", "no such file\n"),
        ("/assets/sub%5csecret", "no such file\n"),
        ("/assets/%ff", "no such file\n"),
    ] {
        let response = ask(&router, get(path)).await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(text(response).await, reason, "{path}");
    }
    for path in [
        "/assets/../../secret",
        "/assets/sub/..%2f..%2fsecret",
        "/assets/..\\secret",
        "/assets/%2e%2e%5csecret",
        "/assets/secret%00.txt",
    ] {
        assert_eq!(ask(&router, get(path)).await.status(), StatusCode::BAD_REQUEST, "{path}");
    }
    let long = format!("/assets/{}", "x".repeat(300));
    assert_eq!(ask(&router, get(&long)).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(ask(&router, get("/assets/a%20b.txt/x")).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn no_symlink_leads_out_of_the_folder_and_those_within_are_followed() {
    use std::os::unix::fs::symlink;
    let site = Site::new();
    let router = site.serve(|_| {});
    for (link, to) in [
        ("out", "../secret"),
        ("absolute", site.above.path().join("secret").to_str().expect("a path in UTF-8")),
        ("above", ".."),
        ("proc", "/proc/self/exe"),
        ("circle", "circle"),
        ("within", "sub/index.html"),
    ] {
        symlink(to, site.root().join(link)).expect("a symlink");
    }
    for path in ["/out", "/absolute", "/above/secret", "/above/", "/proc", "/circle"] {
        assert_eq!(
            ask(&router, get(&format!("/assets{path}"))).await.status(),
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    assert_eq!(body_at(&router, "/assets/within").await, "the index below");

    // The folder itself may be one, and lead elsewhere from one request to the next.
    let current = site.above.path().join("current");
    symlink(site.root(), &current).expect("a symlink");
    let served = site.serve(|config| config.root.clone_from(&current));
    assert_eq!(body_at(&served, "/assets/sub/").await, "the index below");
    std::fs::remove_file(&current).expect("removed");
    symlink(site.root().join("sub"), &current).expect("a symlink");
    assert_eq!(body_at(&served, "/assets/").await, "the index below");
}

#[tokio::test]
async fn dots_in_a_name_and_a_path_as_long_as_the_kernel_takes_are_no_obstacle() {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let site = Site::new();
    let router = site.serve(|_| {});
    site.write("a..b.txt", "dots");
    assert_eq!(body_at(&router, "/assets/a..b.txt").await, "dots");

    let open =
        |folder: &_, name: &str| openat(folder, name, OFlags::DIRECTORY, Mode::empty()).expect("a folder");
    let mut folder = openat(CWD, site.root(), OFlags::DIRECTORY, Mode::empty()).expect("the root");
    let mut path = String::new();
    for length in [250; 16].into_iter().chain([70]) {
        let name = "x".repeat(length);
        mkdirat(&folder, &name, Mode::RWXU).expect("a folder");
        folder = open(&folder, &name);
        path = format!("{path}{name}/");
    }
    let flags = OFlags::CREATE | OFlags::WRONLY;
    let file = openat(&folder, "f", flags, Mode::RUSR).expect("a file");
    rustix::io::write(file, b"far below").expect("its content");
    assert_eq!(body_at(&router, &format!("/assets/{path}f")).await, "far below");
}

#[tokio::test]
async fn what_is_no_file_is_not_waited_for() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let site = Site::new();
    mknodat(CWD, site.root().join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("a FIFO");
    let router = site.serve(|_| {});
    assert_eq!(ask(&router, get("/assets/fifo")).await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn files_answer_get_and_head_only() {
    let site = Site::new();
    let router = site.serve(|_| {});
    let mut request = get("/assets/a%20b.txt");
    *request.method_mut() = Method::POST;
    let response = ask(&router, request).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(response.headers()[header::ALLOW], "GET, HEAD, OPTIONS");

    let mut request = get("/assets/a%20b.txt");
    *request.method_mut() = Method::HEAD;
    request.headers_mut().insert(header::RANGE, HeaderValue::from_static("bytes=0-1"));
    let response = ask(&router, request).await;
    assert_eq!(response.status(), StatusCode::OK, "a range is of GET alone");
    assert_eq!(response.headers()[header::CONTENT_LENGTH], "10");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn a_range_is_a_part_of_the_file() {
    let site = Site::new();
    let router = site.serve(|_| {});
    for (range, status, body) in [
        ("bytes=2-4", StatusCode::PARTIAL_CONTENT, "234"),
        ("bytes=-3", StatusCode::PARTIAL_CONTENT, "789"),
        ("bytes=8-", StatusCode::PARTIAL_CONTENT, "89"),
        ("bytes=20-", StatusCode::RANGE_NOT_SATISFIABLE, ""),
        ("bytes=0-1,4-5", StatusCode::OK, "0123456789"),
        ("lines=1-2", StatusCode::OK, "0123456789"),
    ] {
        let mut request = get("/assets/a%20b.txt");
        request.headers_mut().insert(header::RANGE, HeaderValue::from_static(range));
        let response = ask(&router, request).await;
        assert_eq!(response.status(), status, "{range}");
        assert_eq!(text(response).await, body, "{range}");
    }
}

#[tokio::test]
async fn a_part_of_a_file_that_has_changed_is_not_mixed_with_the_new_one() {
    let site = Site::new();
    let router = site.serve(|_| {});
    let etag = ask(&router, get("/assets/a%20b.txt")).await.headers()[header::ETAG].clone();
    for (condition, range, status, body) in [
        (etag.clone(), "bytes=2-4", StatusCode::PARTIAL_CONTENT, "234"),
        (HeaderValue::from_static("\"old\""), "bytes=2-4", StatusCode::OK, "0123456789"),
        (HeaderValue::from_static("\"old\""), "bytes=20-", StatusCode::OK, "0123456789"),
    ] {
        let mut request = get("/assets/a%20b.txt");
        request.headers_mut().insert(header::RANGE, HeaderValue::from_static(range));
        request.headers_mut().insert(header::IF_RANGE, condition);
        let response = ask(&router, request).await;
        assert_eq!(response.status(), status);
        assert_eq!(text(response).await, body);
    }
}

#[tokio::test]
async fn a_client_that_has_the_file_is_not_sent_it_again() {
    let site = Site::new();
    let router = site.serve(|config| config.cache_control = Some(HeaderValue::from_static("max-age=60")));
    let response = ask(&router, get("/assets/a%20b.txt")).await;
    assert_eq!(response.headers()[header::CACHE_CONTROL], "max-age=60");
    let mut request = get("/assets/a%20b.txt");
    let etag = response.headers()[header::ETAG].clone();
    request.headers_mut().insert(header::IF_NONE_MATCH, etag);
    let response = ask(&router, request).await;
    assert_eq!(response.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(response.headers()[header::CACHE_CONTROL], "max-age=60");

    let missing = ask(&router, get("/assets/missing")).await;
    assert_eq!(missing.status(), StatusCode::NOT_FOUND);
    assert!(!missing.headers().contains_key(header::CACHE_CONTROL));
}

#[tokio::test]
async fn a_precompressed_file_answers_whoever_accepts_it() {
    let site = Site::new();
    site.write("a b.txt.gz", "gzipped");
    site.write("a b.txt.zst", "zstandard");
    let with = async |router: &Routes, accepted: &'static str| {
        let mut request = get("/assets/a%20b.txt");
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
        let response = ask(router, request).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
        text(response).await
    };
    let router = site.serve(|config| config.precompressed = true);
    assert_eq!(with(&router, "gzip").await, "gzipped");
    assert_eq!(with(&router, "zstd;q=1, gzip;q=0.5").await, "zstandard");
    assert_eq!(with(&router, "br").await, "0123456789");
    assert_eq!(with(&site.serve(|_| {}), "gzip").await, "0123456789");
}

#[tokio::test]
async fn a_large_file_comes_whole_and_in_large_pieces() {
    let site = Site::new();
    site.write("large", &"x".repeat(1 << 20));
    let mut body = ask(&site.serve(|_| {}), get("/assets/large")).await.into_body();
    let (mut length, mut pieces) = (0, 0);
    while let Some(frame) = body.frame().await {
        length += frame.expect("a frame").into_data().expect("data").len();
        pieces += 1;
    }
    assert_eq!(length, 1 << 20);
    assert!(pieces <= 16, "{pieces} reads for a mebibyte");
}

#[tokio::test]
async fn the_type_of_a_file_follows_from_its_name() {
    let site = Site::new();
    let router = site.serve(|_| {});
    for (name, expected) in [
        ("page.html", "text/html"),
        ("PAGE.HTM", "text/html"),
        ("style.css", "text/css"),
        ("code.js", "text/javascript"),
        ("module.mjs", "application/javascript"),
        ("data.json", "application/json"),
        ("program.wasm", "application/wasm"),
        ("picture.svg", "image/svg+xml"),
        ("picture.webp", "image/webp"),
        ("letters.woff2", "font/woff2"),
        ("film.mp4", "video/mp4"),
        ("both.tar.gz", "application/gzip"),
        (".hidden", "application/octet-stream"),
        ("README", "application/octet-stream"),
        ("none.of-these", "application/octet-stream"),
    ] {
        site.write(name, "x");
        let response = ask(&router, get(&format!("/assets/{name}"))).await;
        assert_eq!(response.headers()[header::CONTENT_TYPE], expected, "{name}");
    }
}

#[test]
fn a_type_that_is_looked_up_in_a_hurry_is_the_one_that_the_long_list_has() {
    for extension in ["css", "gif", "html", "jpg", "js", "json", "png", "svg", "txt", "webp", "woff2"] {
        let listed = mime_guess::from_ext(extension).first_raw().expect("a type");
        assert_eq!(super::content_type(format!("name.{extension}").as_bytes()), listed);
    }
}

#[tokio::test]
async fn a_file_of_any_date_is_served_and_its_tag_stays_the_same() {
    let site = Site::new();
    let router = site.serve(|_| {});
    let file = std::fs::File::options().write(true).open(site.root().join("a b.txt")).expect("the file");
    let epoch = std::time::UNIX_EPOCH;
    let after = |seconds| epoch + std::time::Duration::new(seconds, 7);
    for (modified, etag, date) in [
        (epoch - std::time::Duration::from_secs(1), None, None),
        (after(0), Some("\"0.00000007-a\""), Some("Thu, 01 Jan 1970 00:00:00 GMT")),
        (after(1_000_000_000), Some("\"3b9aca00.00000007-a\""), Some("Sun, 09 Sep 2001 01:46:40 GMT")),
    ] {
        file.set_modified(modified).expect("a date");
        let response = ask(&router, get("/assets/a%20b.txt")).await;
        let field = |name| response.headers().get(name).map(|value| value.to_str().expect("text"));
        assert_eq!((field(header::ETAG), field(header::LAST_MODIFIED)), (etag, date));
        assert_eq!(text(response).await, "0123456789");
    }
}

#[tokio::test]
async fn what_lies_beside_a_folder_is_not_the_folder_and_no_folder_is_an_encoded_file() {
    let site = Site::new();
    site.write("sub.gz", "a file of its own");
    std::fs::create_dir(site.root().join("a b.txt.br")).expect("a folder");
    site.write("only.zst", "the encoded one");
    let router = site.serve(|config| config.precompressed = true);
    let asked = |path| {
        let mut request = get(path);
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("zstd, br, gzip"));
        ask(&router, request)
    };
    assert_eq!(asked("/assets/sub").await.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(text(asked("/assets/a%20b.txt").await).await, "0123456789");
    let only = asked("/assets/only").await;
    assert_eq!(only.headers()[header::CONTENT_ENCODING], "zstd");
    assert_eq!(text(only).await, "the encoded one");
    assert_eq!(body_at(&router, "/assets/only").await, "no such file\n");
}

#[tokio::test]
async fn a_name_that_is_no_text_is_a_name() {
    use std::os::unix::ffi::OsStrExt;
    let site = Site::new();
    site.write(std::ffi::OsStr::from_bytes(b"caf\xe9.txt"), "latin");
    let response = ask(&site.serve(|_| {}), get("/assets/caf%e9.txt")).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/plain");
    assert_eq!(text(response).await, "latin");
}
