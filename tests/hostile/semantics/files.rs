//! Files: ranges, conditions, encodings, dates.

use std::fs;

use super::{answer, folder, try_all};
use crate::site::{IMPATIENT, Site};

const WHOLE: &str = "0123456789abcdefghij";

/// A site of files, and the entity tag of its file of 20 bytes, which was last modified in 2001.
fn dated_files(more: &str) -> (tempfile::TempDir, Site, String) {
    let folder = folder();
    for name in ["in.txt", "in.txt.gz"] {
        let file = fs::File::create(folder.path().join(name)).expect("a file");
        std::io::Write::write_all(&mut &file, WHOLE.as_bytes()).expect("its content");
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
            .expect("a date");
    }
    fs::write(folder.path().join("empty"), "").expect("a file");
    let tables = format!(
        "[[route]]\npath = \"/files/*\"\nfiles = {{ root = \"{}\"{more} }}\n",
        folder.path().display()
    );
    let site = Site::start(IMPATIENT, &tables);
    let whole = answer(&site, "GET /files/in.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let etag = whole.field("etag").expect("an entity tag").to_owned();
    (folder, site, etag)
}

#[test]
fn ranges_of_a_file_are_those_of_the_standard() {
    let (_folder, site, etag) = dated_files("");
    let names = [
        ("{etag}", etag.as_str()),
        ("{whole}", WHOLE),
        ("{all}", "content-length: 20 & accept-ranges: bytes & !content-range"),
        ("{unsatisfiable}", "content-range: bytes */20 & content-length: 0"),
    ];
    try_all(
        &site,
        &names,
        r#"
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-99999 | 206 | content-range: bytes 0-19/20 & content-length: 20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-20 | 206 | content-range: bytes 0-19/20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-1 | 206 | content-range: bytes 19-19/20 | j
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-99999999999999999999999 | 206 | content-range: bytes 0-19/20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=0-99999 | 206 | content-range: bytes 0-19/20 | {whole}
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=5-99999999999999999999999 | 206 | content-range: bytes 5-19/20 | 56789abcdefghij
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=05-06 | 206 | content-range: bytes 5-6/20 & content-length: 2 | 56
        9110, 14.1 | GET /files/in.txt & Range: BYTES=0-0 | 206 | content-range: bytes 0-0/20 | 0
        9110, 15.3.7 | GET /files/in.txt & Range: bytes=1-2 | 206 | etag: {etag} & last-modified: Sun, 09 Sep 2001 01:46:40 GMT & date: | 12
        9110, 15.5.17 | GET /files/in.txt & Range: bytes=20- | 416 | {unsatisfiable} |
        9110, 15.5.17 | GET /files/in.txt & Range: bytes=99999999999999999999999- | 416 | {unsatisfiable} |
        9110, 14.1.2 | GET /files/in.txt & Range: bytes=-0 | 416 | {unsatisfiable} |
        9110, 14.1.2 | GET /files/empty & Range: bytes=0- | 416 | content-range: bytes */0 |
        9110, 14.1.2 | GET /files/empty & Range: bytes=-5 | 200 | content-length: 0 |
        # A malformed range is ignored, as the whole is better than none (section 14.2).
        9110, 14.2 | GET /files/in.txt & Range: bytes=5-2 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes= | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=- | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=a-b | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=+1-2 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=0-1,3-4 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: bytes=0-1 & Range: bytes=3-4 | 200 | {all} | {whole}
        9110, 14.2 | GET /files/in.txt & Range: lines=0-1 | 200 | {all} | {whole}
        9110, 14.2 | HEAD /files/in.txt & Range: bytes=0-1 | 200 | {all} |
        9110, 14.2 | HEAD /files/in.txt & Range: bytes=99- | 200 | {all} |
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: {etag} | 206 | date: | 0
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: W/{etag} | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: "other" | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=99- & If-Range: "other" | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sun, 09 Sep 2001 01:46:40 GMT | 206 | date: | 0
        9110, 5.6.7 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sunday, 09-Sep-01 01:46:40 GMT | 206 | date: | 0
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sun, 09 Sep 2001 01:46:41 GMT | 200 | {all} | {whole}
        9110, 13.1.5 | GET /files/in.txt & Range: bytes=0-0 & If-Range: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.2.2 | GET /files/in.txt & Range: bytes=0-0 & If-None-Match: {etag} | 304 | !content-range |
        9110, 13.2.2 | GET /files/in.txt & Range: bytes=0-0 & If-Match: "other" | 412 | !content-range |
    "#,
    );
}

#[test]
fn conditions_on_a_file_are_those_of_the_standard() {
    let (_folder, site, etag) = dated_files(", cache_control = \"max-age=5\"");
    let names = [
        ("{all}", "content-length: 20 & etag: {etag}"),
        (
            "{unmodified}",
            "etag: {etag} & cache-control: max-age=5 & date: & !content-type & !content-encoding",
        ),
        ("{etag}", etag.as_str()),
        ("{whole}", WHOLE),
    ];
    try_all(
        &site,
        &names,
        r#"
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: {etag} | 304 | {unmodified} |
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: W/{etag} | 304 | {unmodified} |
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: * | 304 | {unmodified} |
        9110, 13.1.2 | HEAD /files/in.txt & If-None-Match: {etag} | 304 | {unmodified} |
        9110, 13.1.2 | GET /files/in.txt & If-None-Match: "a", "b,c" , {etag} | 304 | {unmodified} |
        9110, 5.3 | GET /files/in.txt & If-None-Match: "a" & If-None-Match: {etag} | 304 | {unmodified} |
        9110, 5.3 | GET /files/in.txt & If-None-Match: {etag} & If-None-Match: "a" | 304 | {unmodified} |
        9110, 5.3 | GET /files/in.txt & If-None-Match: "a" & If-None-Match: "b" | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 304 | {unmodified} |
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sunday, 09-Sep-01 01:46:40 GMT | 304 | {unmodified} |
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun Sep  9 01:46:40 2001 | 304 | {unmodified} |
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-None-Match: & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 200 | {all} | {whole}
        9110, 13.1.4 | GET /files/in.txt & If-Match: * & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: yesterday | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-None-Match: "a" & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 200 | {all} | {whole}
        9110, 13.1.3 | GET /files/in.txt & If-Modified-Since: Sun, 09 Sep 2001 01:46:40 GMT & If-Modified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.1.1 | GET /files/in.txt & If-Match: {etag} | 200 | {all} | {whole}
        9110, 13.1.1 | GET /files/in.txt & If-Match: * | 200 | {all} | {whole}
        9110, 13.1.1 | GET /files/in.txt & If-Match: W/{etag} | 412 | content-length: 0 |
        9110, 13.1.1 | GET /files/in.txt & If-Match: "a" | 412 |  |
        9110, 5.3 | GET /files/in.txt & If-Match: "a" & If-Match: {etag} | 200 | {all} | {whole}
        9110, 13.1.4 | GET /files/in.txt & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:40 GMT | 200 | {all} | {whole}
        9110, 13.1.4 | GET /files/in.txt & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 412 |  |
        9110, 13.1.4 | GET /files/in.txt & If-Match: {etag} & If-Unmodified-Since: Sun, 09 Sep 2001 01:46:39 GMT | 200 | {all} | {whole}
        9110, 13.2.1 | GET /files/none & If-Match: * | 404 | date: | no such file
        9110, 15.5.6 | POST /files/in.txt & Content-Length: 0 | 405 | allow: GET, HEAD, OPTIONS | files answer GET and HEAD only
        9110, 15.5.6 | TRACE /files/in.txt | 405 | allow: GET, HEAD, OPTIONS | files answer GET and HEAD only
        9110, 9.3.7 | OPTIONS /files/in.txt | 204 | allow: GET, HEAD, OPTIONS & !content-length |
        9110, 9.3.2 | HEAD /files/in.txt | 200 | {all} |
        9110, 9.3.2 | HEAD /files/none | 404 | content-length: 13 |
        9110, 10.2.2 | GET /files?a=//b | 307 | location: /files/?a=//b |
        9110, 10.2.2 | GET //files/sub?a | 307 | location: /files/sub/?a |
        # Nothing is encoded here: no answer depends on what a client accepts.
        9110, 12.5.5 | GET /files/in.txt & Accept-Encoding: gzip | 200 | !vary & !content-encoding | {whole}
    "#,
    );
}

#[test]
fn a_precompressed_file_is_negotiated_as_the_standard_says() {
    let (folder, site, etag) = dated_files(", precompressed = true");
    fs::write(folder.path().join("in.txt.gz"), "zipped").expect("a file");
    let names = [
        ("{plain}", "vary: accept-encoding & !content-encoding & content-length: 20"),
        (
            "{zipped}",
            "vary: accept-encoding & content-encoding: gzip & content-length: 6 & content-type: text/plain",
        ),
        ("{etag}", etag.as_str()),
        ("{whole}", WHOLE),
    ];
    try_all(
        &site,
        &names,
        r"
        9110, 12.5.3 | GET /files/in.txt | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: gzip | 200 | {zipped} | zipped
        9110, 12.5.3 | HEAD /files/in.txt & Accept-Encoding: gzip | 200 | {zipped} |
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: GZIP;q=0.1 | 200 | {zipped} | zipped
        9110, 5.3 | GET /files/in.txt & Accept-Encoding: br & Accept-Encoding: gzip | 200 | {zipped} | zipped
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: gzip;q=0 | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: gzip;q=0.000, *;q=0.5 | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: identity | 200 | {plain} | {whole}
        9110, 12.5.3 | GET /files/in.txt & Accept-Encoding: | 200 | {plain} | {whole}
        9110, 15.4.5 | GET /files/in.txt & If-None-Match: {etag} | 304 | vary: accept-encoding & etag: {etag} |
        9110, 14.2 | GET /files/in.txt & Range: bytes=0-1 & Accept-Encoding: gzip | 206 | content-range: bytes 0-1/6 & content-encoding: gzip & vary: accept-encoding | zi
    ",
    );
}

#[test]
fn a_file_was_never_modified_after_its_answer() {
    let (folder, site, _) = dated_files("");
    let file = fs::File::options().write(true).open(folder.path().join("in.txt")).expect("the file");
    let now = std::time::SystemTime::now();
    for ahead in [0, 3, 86_400] {
        file.set_modified(now + std::time::Duration::from_secs(ahead)).expect("a date");
        for more in ["", "Range: bytes=0-1\r\n", "If-None-Match: *\r\n"] {
            let request = format!("GET /files/in.txt HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{more}\r\n");
            let answer = answer(&site, &request);
            let date =
                |field| httpdate::parse_http_date(answer.field(field).expect("a date")).expect("a date");
            assert!(date("last-modified") <= date("date"), "{answer:?}");
        }
    }
}
