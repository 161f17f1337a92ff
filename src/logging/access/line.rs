//! Records as lines that other programs read: the combined format of Apache and nginx, and JSON.

use std::io::Write;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::Serialize;

use super::{Excerpt, Record};
use crate::printable::printable;

/// A format of lines.
pub(super) enum Lines {
    /// Apache's and nginx's, with the time of the last second that was written.
    Combined {
        second: u64,
        time: String,
    },
    Json,
}

impl Lines {
    pub(super) fn combined() -> Self {
        Self::Combined { second: u64::MAX, time: String::new() }
    }

    /// Adds a record's line to a text.
    pub(super) fn write(&mut self, record: &Record, text: &mut Vec<u8>) {
        match self {
            Self::Combined { second, time } => {
                let now = record.ended.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                if *second != now {
                    *second = now;
                    *time = timestamp(record.ended).strftime("%d/%b/%Y:%H:%M:%S +0000").to_string();
                }
                combined(record, time, text);
            }
            Self::Json => json(record, text),
        }
        text.push(b'\n');
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or_default()
}

/// `192.0.2.1 - - [28/Nov/2026:21:08:54 +0000] "GET /x?y HTTP/1.1" 200 12 "referer" "user agent"`, as nginx writes
/// it: the size is that of the body, and a request without an answer has the status 000. The time is UTC.
fn combined(record: &Record, time: &str, text: &mut Vec<u8>) {
    // Nothing here can fail: a `Vec` takes all.
    match record.peer {
        Some(peer) => _ = write!(text, "{}", peer.ip().to_canonical()),
        None => text.extend(b"unix"),
    }
    _ = write!(text, " - - [{time}] \"");
    whole(&record.method, text);
    text.push(b' ');
    whole(&record.path, text);
    if let Some(query) = &record.query {
        text.push(b'?');
        whole(query, text);
    }
    _ = write!(text, " {:?}\" {:03} {}", record.version, record.status.unwrap_or_default(), record.body);
    for field in [&record.referer, &record.user_agent] {
        text.extend(b" \"");
        match field {
            Some(value) if !value.is_empty() => escape(value, text),
            _ => text.push(b'-'),
        }
        text.push(b'"');
    }
}

/// An excerpt as one word.
fn whole(excerpt: &Excerpt, text: &mut Vec<u8>) {
    escape(excerpt.text.as_bytes(), text);
    if excerpt.more > 0 {
        text.extend(b"...");
    }
}

/// Writes quotes, backslashes, and whatever is not printable ASCII as nginx does, `\x22`: none of them can end a field
/// or a line.
fn escape(value: &[u8], text: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in value {
        if matches!(byte, b'"' | b'\\') || !(b' '..=b'~').contains(&byte) {
            text.extend([b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        } else {
            text.push(byte);
        }
    }
}

/// A record as an object: the event's fields, with the time and what the client says of itself.
#[derive(Serialize)]
struct Json<'a> {
    time: String,
    request_id: &'a str,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<String>,
    route: &'a str,
    peer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    outcome: &'a str,
    duration_usec: u64,
    bytes_sent: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    referer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
}

fn json(record: &Record, text: &mut Vec<u8>) {
    let shown = |value: &Option<Box<[u8]>>| {
        value.as_ref().map(|value| printable(&String::from_utf8_lossy(value)).into_owned())
    };
    // To microseconds, so that all are equally long.
    let since = record.ended.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let whole = SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs());
    let object = Json {
        time: format!("{}.{:06}Z", timestamp(whole).strftime("%Y-%m-%dT%H:%M:%S"), since.subsec_micros()),
        request_id: &record.id,
        method: record.method.to_string(),
        path: record.path.to_string(),
        query: record.query.as_ref().map(ToString::to_string),
        route: &record.route,
        peer: record.peer.map_or("unix".to_owned(), |peer| peer.to_string()),
        status: record.status,
        outcome: record.outcome,
        duration_usec: record.duration_usec(),
        bytes_sent: record.sent,
        referer: shown(&record.referer),
        user_agent: shown(&record.user_agent),
    };
    // A `Vec` takes all, and each value can be one of JSON.
    _ = serde_json::to_writer(text, &object);
}

#[cfg(test)]
mod tests {
    //! One record is one line, which is read back as what it was, whatever a client sends.

    use axum::http::{HeaderValue, Uri, Version};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn record(target: &str, referer: Option<&[u8]>, user_agent: Option<&[u8]>) -> Record {
        let uri: Uri = target.parse().expect("a target");
        Record {
            ended: SystemTime::UNIX_EPOCH + Duration::new(1_795_900_134, 5_000),
            id: "0123456789abcdef0123456789abcdef".into(),
            method: Excerpt::of("GET"),
            path: Excerpt::of(uri.path()),
            query: uri.query().map(Excerpt::of),
            version: Version::HTTP_11,
            route: "/*".into(),
            peer: Some(([192, 0, 2, 7], 50_000).into()),
            status: Some(200),
            outcome: "answered",
            duration: Duration::from_micros(1234),
            sent: 150,
            body: 12,
            referer: referer.map(Into::into),
            user_agent: user_agent.map(Into::into),
        }
    }

    fn line(mut lines: Lines, record: &Record) -> String {
        let mut text = Vec::new();
        lines.write(record, &mut text);
        let text = String::from_utf8(text).expect("text");
        assert_eq!(text.find('\n'), Some(text.len() - 1), "one line: {text:?}");
        text.trim_end_matches('\n').to_owned()
    }

    /// The bytes that a field of the combined format stands for.
    fn unescaped(field: &str) -> Vec<u8> {
        let mut bytes = field.bytes();
        let mut plain = Vec::new();
        while let Some(byte) = bytes.next() {
            if byte == b'\\' {
                assert_eq!(bytes.next(), Some(b'x'));
                let digits = [bytes.next(), bytes.next()].map(|digit| digit.expect("a digit"));
                let digits = std::str::from_utf8(&digits).expect("digits");
                plain.push(u8::from_str_radix(digits, 16).expect("hex digits"));
            } else {
                plain.push(byte);
            }
        }
        plain
    }

    #[test]
    fn a_combined_line_is_as_nginx_writes_it() {
        let whole = record("/\"x\"?y", Some(b"http://a/"), Some(b"curl/8"));
        assert_eq!(
            line(Lines::combined(), &whole),
            r#"192.0.2.7 - - [28/Nov/2026:21:08:54 +0000] "GET /\x22x\x22?y HTTP/1.1" 200 12 "http://a/" "curl/8""#
        );
        let bare = Record {
            version: Version::HTTP_10,
            peer: None,
            status: None,
            body: 0,
            ..record("/", None, Some(b""))
        };
        assert_eq!(
            line(Lines::combined(), &bare),
            r#"unix - - [28/Nov/2026:21:08:54 +0000] "GET / HTTP/1.0" 000 0 "-" "-""#
        );
        let newer = Record { version: Version::HTTP_2, ..record("/", None, None) };
        assert!(line(Lines::combined(), &newer).contains("] \"GET / HTTP/2.0\" 200 "));
        let mapped = Record {
            peer: Some("[::ffff:192.0.2.1]:1".parse().expect("an address")),
            ..record("/", None, None)
        };
        assert!(line(Lines::combined(), &mapped).starts_with("192.0.2.1 - - "));
    }

    #[test]
    fn a_json_line_has_the_events_fields_and_a_time() {
        let whole = record("/x?y=1", Some(b"http://a/"), Some(b"caf\xe9 \x1b[31m"));
        let object: Value = serde_json::from_str(&line(Lines::Json, &whole)).expect("an object");
        assert_eq!(
            object,
            serde_json::json!({
                "time": "2026-11-28T21:08:54.000005Z",
                "request_id": "0123456789abcdef0123456789abcdef",
                "method": "GET", "path": "/x", "query": "y=1", "route": "/*", "peer": "192.0.2.7:50000",
                "status": 200, "outcome": "answered", "duration_usec": 1234, "bytes_sent": 150,
                "referer": "http://a/", "user_agent": "caf\u{fffd} \\u{1b}[31m",
            })
        );
    }

    #[test]
    fn the_time_of_the_combined_format_goes_on() {
        let mut lines = Lines::combined();
        let mut text = Vec::new();
        for seconds in [0, 0, 1, 60] {
            let first = record("/", None, None);
            lines.write(&Record { ended: first.ended + Duration::from_secs(seconds), ..first }, &mut text);
        }
        let text = String::from_utf8(text).expect("text");
        let times: Vec<_> =
            text.lines().map(|line| &line[line.find(":21:").expect("a time") + 4..][..5]).collect();
        assert_eq!(times, ["08:54", "08:54", "08:55", "09:54"]);
    }

    #[test]
    fn what_is_too_long_is_cut_to_one_word() {
        let long = record(&format!("/{}", "a".repeat(5000)), None, None);
        let combined = line(Lines::combined(), &long);
        assert!(combined.contains("aaa... HTTP/1.1\" 200"), "{combined}");
        let object: Value = serde_json::from_str(&line(Lines::Json, &long)).expect("an object");
        assert!(object["path"].as_str().expect("a path").ends_with("aaa...(3977 B more)"), "{object}");
        let field = Record::field(&HeaderValue::from_bytes(&[b'u'; 5000]).expect("a value"));
        assert_eq!(field.len(), 1024);
        let method = Record { method: Excerpt::of(&"M".repeat(60 << 10)), ..record("/", None, None) };
        assert!(method.bytes() < 2048, "{} B", method.bytes());
        let combined = line(Lines::combined(), &method);
        assert!(combined.contains("MMM... / HTTP/1.1\" 200") && combined.len() < 1200, "{combined}");
        let object: Value = serde_json::from_str(&line(Lines::Json, &method)).expect("an object");
        assert!(object["method"].as_str().expect("a method").ends_with("MMM...(60416 B more)"), "{object}");
    }

    proptest! {
        #[test]
        fn a_record_is_one_line_and_reads_back_whatever_its_client_sent(
            referer: Option<Vec<u8>>,
            user_agent in prop::option::of("\\PC{0,40}"),
            query in "[!$-;=?-~]{0,30}",
        ) {
            let user_agent = user_agent.map(String::into_bytes);
            let target = format!("/path?{query}");
            let record = record(&target, referer.as_deref(), user_agent.as_deref());
            let combined = line(Lines::combined(), &record);
            let fields: Vec<_> = combined.split('"').collect();
            let [_, request, numbers, first, _, second, ""] = fields[..] else { panic!("{combined}") };
            prop_assert_eq!(unescaped(request), format!("GET {target} HTTP/1.1").into_bytes());
            prop_assert_eq!(numbers, " 200 12 ");
            for (field, sent) in [(first, &referer), (second, &user_agent)] {
                let sent = sent.clone().filter(|sent| !sent.is_empty()).unwrap_or(b"-".into());
                prop_assert_eq!(unescaped(field), sent);
            }
            let object: Value = serde_json::from_str(&line(Lines::Json, &record)).expect("an object");
            prop_assert_eq!(object["query"].as_str(), Some(&*query));
            let shown = user_agent.map(|sent| printable(&String::from_utf8_lossy(&sent)).into_owned());
            prop_assert_eq!(object["user_agent"].as_str(), shown.as_deref());
        }
    }
}
