//! `files`: the files below a folder.

use std::path::PathBuf;

use axum::http::HeaderValue;

/// The files below a folder.
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
