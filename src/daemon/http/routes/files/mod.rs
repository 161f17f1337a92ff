//! `files`: the files below a folder.
//!
//! tower-http's `ServeDir` does the work: it streams, and knows content types, entity tags, conditions and encodings.
//! This module adds the rest: the name of the index, `If-Range`, ranges (`range`), fields on several lines, and dates.
//! The kernel ensures that no path leads out of the folder (`beneath`).

mod beneath;
mod range;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tower_http::services::ServeDir;
use tower_http::services::fs::DefaultServeDirFallback;

use self::beneath::Beneath;
use self::range::Range;
use super::text;
use crate::server::InFlight;

/// The part of a file that is read at once, in bytes: each read is a trip to the pool of blocking threads.
const CHUNK: usize = 128 << 10;

/// The files below a folder, by `GET` and `HEAD`.
///
/// A folder that is asked for without a slash at the end redirects to itself with one. `Range` (a single range of
/// bytes) and the conditions of RFC 9110, section 13, are honoured.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The folder.
    pub root: PathBuf,
    /// The file that answers for a folder, `index.html` unless given; `None` answers 404 there.
    pub index: Option<String>,
    /// Lets `file.br`, `file.zst` and `file.gz` beside `file` answer a client that accepts them; off unless given.
    pub precompressed: bool,
    /// The `Cache-Control` of every file; none unless given.
    pub cache_control: Option<HeaderValue>,
}

impl Config {
    /// The files below `root`, all else as it is unless given.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            index: Some("index.html".to_owned()),
            precompressed: false,
            cache_control: None,
        }
    }
}

/// The reason why a folder cannot be served now; `None` if it can.
pub(crate) fn unreadable(root: &Path) -> Option<io::Error> {
    // The dot asks for what serving needs: to enter it, not only to list it.
    std::fs::read_dir(root.join(".")).err()
}

/// Answers with the file at the rest of the path, behind the route's own.
#[derive(Clone, Debug)]
pub(super) struct Files(Arc<Folder>);

#[derive(Debug)]
struct Folder {
    /// The number of segments of a request's path that are the route's own.
    depth: usize,
    files: ServeDir<DefaultServeDirFallback, Beneath>,
    /// Percent-encoded, to stand in a path.
    index: Option<String>,
    precompressed: bool,
    cache_control: Option<HeaderValue>,
}

impl Files {
    /// `path` is the route's, normal: what stands in it before the last slash is no part of a file's path.
    pub(super) fn new(config: &Config, path: &str) -> Self {
        if let Some(error) = unreadable(&config.root) {
            let root = config.root.display();
            tracing::warn!(route = path, %error, "{root} cannot be read: nothing is found there until it can");
        }
        let prefix = path.rsplit_once('/').map_or("", |(prefix, _)| prefix);
        let mut files = ServeDir::with_backend("", Beneath::new(&config.root))
            .with_buf_chunk_size(CHUNK)
            .redirect_path_prefix(prefix)
            .append_index_html_on_directories(config.index.is_some());
        if config.precompressed {
            files = files.precompressed_br().precompressed_zstd().precompressed_gzip();
        }
        Self(Arc::new(Folder {
            depth: prefix.matches('/').count(),
            files,
            index: config.index.as_deref().map(percent_encoded),
            precompressed: config.precompressed,
            cache_control: config.cache_control.clone(),
        }))
    }

    pub(super) fn answer(
        &self,
        request: Request,
        in_flight: &InFlight,
    ) -> impl Future<Output = Response> + use<> {
        let folder = Arc::clone(&self.0);
        let (asked, _) = request.into_parts();
        in_flight.waits_for_nobody();
        async move { folder.answer(&asked).await }
    }
}

impl Folder {
    async fn answer(&self, asked: &Parts) -> Response {
        if asked.method != Method::GET && asked.method != Method::HEAD {
            let mut response = match asked.method {
                Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
                _ => text(StatusCode::METHOD_NOT_ALLOWED, "files answer GET and HEAD only"),
            };
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
            return response;
        }
        let Some(uri) = self.uri_of_file(&asked.uri) else {
            return text(StatusCode::NOT_FOUND, "no such file");
        };
        let range = (asked.method == Method::GET).then(|| Range::asked(&asked.headers)).flatten();
        let mut response = self.read(asked, &uri, range).await;
        if let Some(range) = range {
            if !range_still_applies(&asked.headers, response.headers()) {
                response = self.read(asked, &uri, None).await;
            } else if range::is_unsatisfied(&response) {
                match range {
                    // A range longer than the file is all of it (RFC 9110, section 14.1.2); an empty file is answered
                    // whole, with 200.
                    Range::Last(1..) => {
                        let all = (!range::is_of_nothing(&response)).then_some(Range::From(0, None));
                        response = self.read(asked, &uri, all).await;
                    }
                    Range::From(..) | Range::Last(0) => range::refuse(&mut response),
                }
            }
        }
        self.complete(&mut response);
        response
    }

    /// Adds the fields that `ServeDir` does not: dates, `Cache-Control`, and the `Vary` of a 304.
    fn complete(&self, response: &mut Response) {
        let status = response.status();
        let headers = response.headers_mut();
        date(headers);
        if let Some(cache_control) = &self.cache_control
            && (status.is_success() || status == StatusCode::NOT_MODIFIED)
        {
            headers.insert(header::CACHE_CONTROL, cache_control.clone());
        }
        // 304 repeats what 200 says of caching (RFC 9110, section 15.4.5).
        if self.precompressed && status == StatusCode::NOT_MODIFIED {
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
    }

    /// The URI by which `ServeDir` finds the file: without the route's own path, and with the index. None for a path
    /// with an encoded slash, which `ServeDir` would take for one between folders; no file has it in its name.
    fn uri_of_file(&self, asked: &Uri) -> Option<Uri> {
        let (slash, _) = asked.path().match_indices('/').nth(self.depth)?;
        let path = &asked.path()[slash + 1..];
        if path.contains("%2F") {
            return None;
        }
        let index = match &self.index {
            Some(index) if path.is_empty() || path.ends_with('/') => index,
            _ => "",
        };
        let query = asked.query().map(|query| format!("?{query}")).unwrap_or_default();
        PathAndQuery::try_from(format!("/{path}{index}{query}")).ok().map(Uri::from)
    }

    /// Asks `ServeDir` for a file, or a range of it.
    async fn read(&self, asked: &Parts, uri: &Uri, range: Option<Range>) -> Response {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = asked.method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = asked.headers.clone();
        normalise_conditions(request.headers_mut());
        match range {
            Some(range) => request.headers_mut().insert(header::RANGE, range.into()),
            None => request.headers_mut().remove(header::RANGE),
        };
        match self.files.clone().try_call(request).await {
            Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                text(StatusCode::NOT_FOUND, "no such file")
            }
            Ok(response) => response.into_response(),
            Err(error) => failed(uri.path(), &error),
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

/// Joins a list on several lines into one, which means the same (RFC 9110, section 5.3). A date counts only if it
/// stands on one line and there is no list of tags (sections 13.1.3 and 13.1.4).
fn normalise_conditions(headers: &mut HeaderMap) {
    for (list, date) in
        [(header::IF_MATCH, header::IF_UNMODIFIED_SINCE), (header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE)]
    {
        let lines: Vec<&[u8]> = headers.get_all(&list).iter().map(HeaderValue::as_bytes).collect();
        let joined = (!lines.is_empty()).then(|| HeaderValue::from_bytes(&lines.join(b", ".as_slice())));
        if joined.is_some() || headers.get_all(&date).iter().count() > 1 {
            headers.remove(date);
        }
        if let Some(Ok(joined)) = joined {
            headers.insert(list, joined);
        }
    }
}

/// True if the file is still the one that the client has a part of, or the client does not ask: it sends no
/// `If-Range` (RFC 9110, section 13.1.5). A tag is compared strongly: those of files are never weak. A date counts
/// once it is a second old, for within one a file can change twice (section 8.8.2.2).
fn range_still_applies(asked: &HeaderMap, file: &HeaderMap) -> bool {
    let mut conditions = asked.get_all(header::IF_RANGE).iter();
    let condition = match (conditions.next(), conditions.next()) {
        (None, _) => return true,
        (Some(condition), None) => condition,
        (Some(_), Some(_)) => return false,
    };
    if file.get(header::ETAG) == Some(condition) {
        return true;
    }
    let modified = file.get(header::LAST_MODIFIED).and_then(time);
    modified.is_some_and(|modified| {
        let is_old =
            SystemTime::now().duration_since(modified).is_ok_and(|age| age >= Duration::from_secs(1));
        is_old && time(condition) == Some(modified)
    })
}

/// Sets `Date`, and a `Last-Modified` that is later to the same (RFC 9110, section 8.8.2.1).
fn date(headers: &mut HeaderMap) {
    let Some(modified) = headers.get(header::LAST_MODIFIED).and_then(time) else {
        return;
    };
    let now = SystemTime::now();
    let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) else {
        return;
    };
    if modified > now {
        headers.insert(header::LAST_MODIFIED, date.clone());
    }
    headers.insert(header::DATE, date);
}

/// A date in any of the three forms (RFC 9110, section 5.6.7).
fn time(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

/// Redirects `/folder` to `/folder/`, below which the links of its index are right.
pub(super) fn to_folder(uri: &Uri) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = StatusCode::TEMPORARY_REDIRECT.into_response();
    if let Ok(location) = HeaderValue::try_from(format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A file's name as it stands in a URI's path (RFC 3986, section 2.3).
fn percent_encoded(name: &str) -> String {
    const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(name, &RESERVED).to_string()
}
