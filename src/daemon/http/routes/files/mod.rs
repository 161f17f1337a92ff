//! `files`: the files below a folder.
//!
//! The kernel ensures that no path leads out of the folder (`beneath`). What a request is answered with follows from
//! the encodings that it accepts (`encoding`), its conditions (`conditions`), and the part that it asks for (`range`).

mod beneath;
mod conditions;
mod encoding;
mod range;
#[cfg(test)]
pub(super) mod tests;
mod text;

use std::borrow::Cow;
use std::io;
use std::io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound, PermissionDenied};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use httpdate::HttpDate;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use self::beneath::{Beneath, Entry, Opened};
use self::conditions::{Outcome, Validators};
use self::encoding::Encoding;
use self::range::{Asked, Part};
use self::text::Text;
use super::text;
use crate::event;
use crate::server::InFlight;

/// The number of fields that most answers have at most. A map with room for more takes twice the memory.
const FIELDS: usize = 6;

/// The age of a file from which on it cannot be younger than the `Date` that hyper sets, which may be a second old.
const AGED: Duration = Duration::from_secs(10);

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
    root: Beneath,
    index: Option<String>,
    precompressed: bool,
    cache_control: Option<HeaderValue>,
}

impl Files {
    /// `path` is the route's, normal: what stands in it before the last slash is no part of a file's path.
    pub(super) fn new(config: &Config, path: &str) -> Self {
        if let Some(error) = unreadable(&config.root) {
            let root = config.root.display();
            tracing::warn!(
                message_id = event::FILE_UNREADABLE,
                route = path,
                %error,
                "{root} cannot be read: nothing is found there until it can"
            );
        }
        let prefix = path.rsplit_once('/').map_or("", |(prefix, _)| prefix);
        Self(Arc::new(Folder {
            depth: prefix.matches('/').count(),
            root: Beneath::new(&config.root),
            index: config.index.clone(),
            precompressed: config.precompressed,
            cache_control: config.cache_control.clone(),
        }))
    }

    pub(super) fn answer(
        &self,
        request: Request,
        in_flight: InFlight,
    ) -> impl Future<Output = Response> + use<> {
        let folder = Arc::clone(&self.0);
        let (asked, _) = request.into_parts();
        in_flight.waits_for_nobody();
        async move { folder.answer(&asked, &in_flight).await }
    }
}

impl Folder {
    async fn answer(&self, asked: &Parts, in_flight: &InFlight) -> Response {
        if asked.method != Method::GET && asked.method != Method::HEAD {
            let mut response = match asked.method {
                Method::OPTIONS => StatusCode::NO_CONTENT.into_response(),
                _ => text(StatusCode::METHOD_NOT_ALLOWED, "files answer GET and HEAD only"),
            };
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"));
            return response;
        }
        self.read(asked, in_flight).await.unwrap_or_else(|error| failed(asked.uri.path(), in_flight, &error))
    }

    async fn read(&self, asked: &Parts, in_flight: &InFlight) -> io::Result<Response> {
        let (name, index) = self.name(&asked.uri).ok_or(NotFound)?;
        let (Opened { file, length, modified }, encoding) = match self.find(&name, &asked.headers).await? {
            (Entry::File(opened), encoding) => (opened, encoding),
            (Entry::Folder, _) if self.index.is_some() => return Ok(to_folder(&asked.uri, index)),
            (Entry::Folder, _) => return Err(NotFound.into()),
        };
        let now = SystemTime::now();
        let validators = Validators::new(modified, length);
        // A range is of GET alone (RFC 9110, section 14.2).
        let range = (asked.method == Method::GET).then(|| Asked::by(&asked.headers)).flatten();
        let range = range.filter(|_| validators.range_applies(&asked.headers, now));
        let (status, part) = match (validators.evaluate(&asked.headers), range.map(|range| range.of(length)))
        {
            (Outcome::Failed, _) => return Ok(StatusCode::PRECONDITION_FAILED.into_response()),
            (Outcome::NotModified, _) => (StatusCode::NOT_MODIFIED, None),
            (Outcome::Holds, None | Some(Part::Whole)) => (StatusCode::OK, Some(0..length)),
            (Outcome::Holds, Some(Part::Of(part))) => (StatusCode::PARTIAL_CONTENT, Some(part)),
            (Outcome::Holds, Some(Part::None)) => (StatusCode::RANGE_NOT_SATISFIABLE, None),
        };

        let mut headers = HeaderMap::with_capacity(FIELDS);
        if let Some(part) = &part {
            headers.insert(header::CONTENT_TYPE, content_type(&name));
            insert(&mut headers, header::CONTENT_LENGTH, Text::of(part.end - part.start));
            if let Some(encoding) = encoding {
                headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding.name));
            }
        }
        match (status, &part) {
            (StatusCode::PARTIAL_CONTENT, Some(part)) => {
                let range = format_args!("bytes {}-{}/{length}", part.start, part.end - 1);
                insert(&mut headers, header::CONTENT_RANGE, Text::of(range));
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => {
                insert(&mut headers, header::CONTENT_RANGE, Text::of(format_args!("bytes */{length}")));
            }
            _ => {}
        }
        if status != StatusCode::NOT_MODIFIED {
            headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        }
        // 304 repeats what 200 says of caching (RFC 9110, section 15.4.5).
        if self.precompressed {
            headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
        }
        if let Some(cache_control) = &self.cache_control
            && status != StatusCode::RANGE_NOT_SATISFIABLE
        {
            headers.insert(header::CACHE_CONTROL, cache_control.clone());
        }
        if let Some(modified) = validators.modified {
            set_dates(&mut headers, modified, now);
        }
        insert(&mut headers, header::ETAG, validators.etag);

        let body = match part {
            Some(part) if asked.method == Method::GET => in_flight.body_of(file, part).await?,
            _ => Body::empty(),
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(response)
    }

    /// The name, below the root, of the file that a request is for, and the index at its end where that was not asked
    /// for. None for a path with an encoded slash; no file has it in its name.
    fn name<'a>(&self, asked: &'a Uri) -> Option<(Cow<'a, [u8]>, &str)> {
        let mut slashes = asked.path().bytes().enumerate().filter(|(_, byte)| *byte == b'/');
        let (slash, _) = slashes.nth(self.depth)?;
        let path = &asked.path()[slash + 1..];
        let name = Cow::from(percent_decode_str(path));
        if matches!(name, Cow::Owned(_)) && path.contains("%2F") {
            return None;
        }
        match &self.index {
            Some(index) if path.is_empty() || path.ends_with('/') => {
                Some(([&name, index.as_bytes()].concat().into(), index))
            }
            _ => Some((name, "")),
        }
    }

    /// What is at a path, or the file beside it that is encoded in the best way that the client accepts.
    async fn find(&self, name: &[u8], asked: &HeaderMap) -> io::Result<(Entry, Option<&'static Encoding>)> {
        if self.precompressed {
            for encoding in encoding::accepted(asked) {
                let opened = match self.root.open(&[name, encoding.suffix.as_bytes()].concat()).await {
                    Ok(Entry::File(opened)) => opened,
                    Ok(Entry::Folder) => continue,
                    // Perhaps the longer name is too long.
                    Err(error) if matches!(error.kind(), NotFound | InvalidFilename) => continue,
                    Err(error) => return Err(error),
                };
                // What lies beside a folder is not the folder, encoded.
                return match self.root.open(name).await {
                    Ok(Entry::Folder) => Ok((Entry::Folder, None)),
                    _ => Ok((Entry::File(opened), Some(encoding))),
                };
            }
        }
        Ok((self.root.open(name).await?, None))
    }
}

fn failed(path: &str, in_flight: &InFlight, error: &io::Error) -> Response {
    match error.kind() {
        NotFound | NotADirectory | InvalidFilename | InvalidInput => {
            text(StatusCode::NOT_FOUND, "no such file")
        }
        kind => {
            let request_id = in_flight.id();
            tracing::warn!(
                message_id = event::FILE_UNREADABLE,
                %request_id,
                path,
                %error,
                "cannot read a file"
            );
            match kind {
                PermissionDenied => text(StatusCode::FORBIDDEN, "the file is not readable"),
                _ => text(StatusCode::INTERNAL_SERVER_ERROR, "the file cannot be read"),
            }
        }
    }
}

/// The type that a file's name stands for.
fn content_type(name: &[u8]) -> HeaderValue {
    let extension = extension(name);
    // What most sites are made of: to search mime_guess's long list for it would cost more than to find the file's route.
    let known = match extension {
        b"css" => Some("text/css"),
        b"gif" => Some("image/gif"),
        b"html" => Some("text/html"),
        b"jpg" => Some("image/jpeg"),
        b"js" => Some("text/javascript"),
        b"json" => Some("application/json"),
        b"png" => Some("image/png"),
        b"svg" => Some("image/svg+xml"),
        b"txt" => Some("text/plain"),
        b"webp" => Some("image/webp"),
        b"woff2" => Some("font/woff2"),
        b"" => None,
        other => std::str::from_utf8(other).ok().and_then(|other| mime_guess::from_ext(other).first_raw()),
    };
    HeaderValue::from_static(known.unwrap_or("application/octet-stream"))
}

/// What follows the last dot in a file's name, unless the name begins with it.
fn extension(name: &[u8]) -> &[u8] {
    match name.iter().rposition(|byte| matches!(byte, b'/' | b'.')) {
        Some(at @ 1..) if name[at] == b'.' && name[at - 1] != b'/' => &name[at + 1..],
        _ => b"",
    }
}

/// Sets `Last-Modified`, which is never later than the answer's `Date` (RFC 9110, section 8.8.2.1).
fn set_dates(headers: &mut HeaderMap, modified: SystemTime, now: SystemTime) {
    insert(headers, header::LAST_MODIFIED, Text::of(HttpDate::from(modified.min(now))));
    if now.duration_since(modified).is_ok_and(|age| age >= AGED) {
        return;
    }
    insert(headers, header::DATE, Text::of(HttpDate::from(now)));
}

/// Sets a field that has a value.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value);
    }
}

/// Redirects `/folder` to `/folder/`, below which the links of its index are right. `index` is what was looked for
/// below the path, and is a folder itself; empty where that is the path.
pub(super) fn to_folder(uri: &Uri, index: &str) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = StatusCode::TEMPORARY_REDIRECT.into_response();
    let location = format!("{}{}/{query}", uri.path(), percent_encoded(index));
    insert(response.headers_mut(), header::LOCATION, HeaderValue::try_from(location).ok());
    response
}

/// A file's name as it stands in a URI's path (RFC 3986, section 2.3).
fn percent_encoded(name: &str) -> String {
    const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(name, &RESERVED).to_string()
}
