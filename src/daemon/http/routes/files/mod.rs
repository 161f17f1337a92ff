//! `files`: the files below a folder.
//!
//! tower-http's `ServeDir` does the work: it refuses paths that lead out of the folder by `..`, streams, and knows
//! content types, entity tags and conditions. Here is what it leaves open: the name of the index, `If-Range`, and
//! ranges that a server is to ignore. That no path leads out of the folder is the kernel's word (`beneath`).

mod beneath;

use std::convert::Infallible;
use std::fmt::Write;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tower::Service;
use tower_http::services::ServeDir;
use tower_http::services::fs::DefaultServeDirFallback;

use self::beneath::Beneath;
use super::text;

/// How much of a file is read at once, in bytes: each read is a trip to the pool of blocking threads.
const CHUNK: usize = 128 << 10;

/// The files below a folder, by `GET` and `HEAD`.
///
/// A folder that is asked for without a slash at the end redirects to itself with one. `Range` (a single range of
/// bytes) and the conditions of RFC 9110, section 13, are honoured.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The folder.
    pub root: PathBuf,
    /// The file that answers for a folder, `index.html` unless given; `None` answers 404 there.
    pub index: Option<String>,
    /// Whether `file.br`, `file.zst` and `file.gz` beside `file` answer a client that accepts them; off unless given.
    pub precompressed: bool,
    /// The `Cache-Control` of every file; none unless given.
    pub cache_control: Option<HeaderValue>,
}

/// The reason why a folder cannot be served now; `None` if it can.
pub(crate) fn unreadable(root: &Path) -> Option<io::Error> {
    // The dot asks for what serving needs: to enter it, not only to list it.
    std::fs::read_dir(root.join(".")).err()
}

/// Answers with the file at what follows the route's own path.
#[derive(Clone, Debug)]
pub(super) struct Files(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    /// The part of the request's path that is the route's, without the last slash.
    prefix: String,
    files: ServeDir<DefaultServeDirFallback, Beneath>,
    /// Percent-encoded, to stand in a path.
    index: Option<String>,
    cache_control: Option<HeaderValue>,
}

impl Files {
    /// `path` is the route's: what stands in it before the last slash is no part of a file's path.
    pub(super) fn new(config: &Config, path: &str) -> Self {
        if let Some(error) = unreadable(&config.root) {
            let root = config.root.display();
            tracing::warn!(route = path, %error, "{root} cannot be read: nothing is found there until it can");
        }
        let prefix = path.rsplit_once('/').map_or("", |(prefix, _)| prefix);
        let mut files = ServeDir::with_backend("", Beneath::new(&config.root))
            .with_buf_chunk_size(CHUNK)
            .redirect_path_prefix(prefix)
            .append_index_html_on_directories(config.index.is_some())
            .ignore_multi_range_requests(true);
        if config.precompressed {
            files = files.precompressed_br().precompressed_zstd().precompressed_gzip();
        }
        Self(Arc::new(Folder {
            prefix: prefix.to_owned(),
            files,
            index: config.index.as_deref().map(percent_encoded),
            cache_control: config.cache_control.clone(),
        }))
    }
}

impl Service<Request> for Files {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let folder = Arc::clone(&self.0);
        let (asked, _) = request.into_parts();
        Box::pin(async move { Ok(folder.answer(&asked).await) })
    }
}

impl Folder {
    async fn answer(&self, asked: &Parts) -> Response {
        if asked.method != Method::GET && asked.method != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "files answer GET and HEAD only");
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let Some(uri) = self.uri_of_file(&asked.uri) else {
            return text(StatusCode::NOT_FOUND, "no such file");
        };
        let mut request = Request::new(Body::empty());
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = asked.headers.clone();
        if asked.method == Method::HEAD || !is_of_bytes(&asked.headers) {
            request.headers_mut().remove(header::RANGE);
        }

        let whole = request.headers().contains_key(header::RANGE).then(|| {
            let mut whole = Request::new(Body::empty());
            *whole.uri_mut() = request.uri().clone();
            *whole.headers_mut() = request.headers().clone();
            whole.headers_mut().remove(header::RANGE);
            whole
        });
        let mut response = self.read(request).await;
        if let Some(whole) = whole
            && !range_still_applies(&asked.headers, response.headers())
        {
            response = self.read(whole).await;
        }
        if let Some(cache_control) = &self.cache_control
            && (response.status().is_success() || response.status() == StatusCode::NOT_MODIFIED)
        {
            response.headers_mut().insert(header::CACHE_CONTROL, cache_control.clone());
        }
        response
    }

    /// Where the file is for `ServeDir`, which takes the whole path to be below its root.
    fn uri_of_file(&self, asked: &Uri) -> Option<Uri> {
        let path = asked.path().strip_prefix(self.prefix.as_str())?;
        // A path of two slashes would be the name of a host, once it stands in a redirect.
        let path = path.trim_start_matches('/');
        let index = match &self.index {
            Some(index) if path.is_empty() || path.ends_with('/') => index,
            _ => "",
        };
        let query = asked.query().map(|query| format!("?{query}")).unwrap_or_default();
        PathAndQuery::try_from(format!("/{path}{index}{query}")).ok().map(Uri::from)
    }

    async fn read(&self, request: Request) -> Response {
        let mut files = self.files.clone();
        let path = request.uri().path().to_owned();
        match files.try_call(request).await {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                text(StatusCode::NOT_FOUND, "no such file")
            }
            Ok(response) => response.into_response(),
            Err(error) => failed(&path, &error),
        }
    }
}

fn failed(path: &str, error: &io::Error) -> Response {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
    match error.kind() {
        NotFound | NotADirectory | InvalidFilename | InvalidInput => {
            text(StatusCode::NOT_FOUND, "no such file")
        }
        kind => {
            tracing::warn!(path, %error, "cannot read a file");
            match kind {
                PermissionDenied => text(StatusCode::FORBIDDEN, "the file is not readable"),
                _ => text(StatusCode::INTERNAL_SERVER_ERROR, "the file cannot be read"),
            }
        }
    }
}

/// A server ignores a range in a unit it does not know (RFC 9110, section 14.2).
fn is_of_bytes(headers: &HeaderMap) -> bool {
    headers.get(header::RANGE).is_some_and(|range| range.as_bytes().starts_with(b"bytes="))
}

/// Whether the file is still the one the client has a part of: without `If-Range` it says that it does not mind
/// (RFC 9110, section 13.1.5).
fn range_still_applies(asked: &HeaderMap, file: &HeaderMap) -> bool {
    let Some(condition) = asked.get(header::IF_RANGE) else {
        return true;
    };
    [header::ETAG, header::LAST_MODIFIED].iter().any(|name| file.get(name) == Some(condition))
}

/// Redirects `/folder` to `/folder/`, below which the links of its index are right.
pub(super) async fn to_folder(request: Request) -> Result<Response, Infallible> {
    let path = request.uri().path();
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = StatusCode::TEMPORARY_REDIRECT.into_response();
    if let Ok(location) = HeaderValue::try_from(format!("{path}/{query}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// A file's name as it stands in a URI's path (RFC 3986, section 2.3).
fn percent_encoded(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(byte.into());
            }
            _ => {
                // A string takes whatever is written.
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}
