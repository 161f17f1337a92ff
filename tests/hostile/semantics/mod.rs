//! The meaning of requests, as RFC 9110 and 9112 have it: bytes, and what is answered and passed on.

mod files;
mod paths;
mod proxy;
mod respond;
mod trailers;

use std::fs;

use crate::site::Site;
use crate::wire::{Message, say};

/// The only answer to a request that asks for the connection to be closed.
fn answer(site: &Site, request: &str) -> Message {
    let answers = say(site.http, request.as_bytes());
    let mut rest = &answers[..];
    let message = Message::parse(&mut rest)
        .unwrap_or_else(|wrong| panic!("{wrong}: {} to {request}", answers.escape_ascii()));
    assert!(rest.is_empty(), "one answer to {request}, and then {}", rest.escape_ascii());
    message
}

fn status(message: &Message) -> u16 {
    message.start.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status")
}

/// Files with a folder that must not be had.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["hidden", "sub"] {
        fs::create_dir(folder.path().join(name)).expect("a folder");
        fs::write(folder.path().join(name).join("in.txt"), name).expect("a file");
    }
    fs::write(folder.path().join("in.txt"), "0123456789abcdefghij").expect("a file");
    folder
}

/// Sends each request of a table on a connection of its own. A row has the standard and its section, the request with
/// its fields (`Host` and `Connection` are added), the status, fields of the answer (behind "!" those it has not), and the
/// body; fields are set apart by " & ". `{name}` stands for its text in `names`.
fn try_all(site: &Site, names: &[(&str, &str)], table: &str) {
    let mut wrong = Vec::new();
    let rows = table.lines().map(str::trim).filter(|row| !row.is_empty() && !row.starts_with('#'));
    for row in rows {
        let filled = names.iter().fold(row.to_owned(), |row, (name, text)| row.replace(name, text));
        let cells: Vec<_> = filled.split('|').map(str::trim).collect();
        let [_, sent, status, expected, body] = cells[..] else { panic!("five cells in {row}") };
        let mut lines = sent.split(" & ");
        let line = lines.next().unwrap_or_default();
        let fields: Vec<_> = lines.collect();
        let request =
            [&[&format!("{line} HTTP/1.1"), "Host: a", "Connection: close"], &fields[..], &["", ""]];
        let answer = say(site.http, request.concat().join("\r\n").as_bytes());
        let answer = String::from_utf8(answer).expect("text");
        let (head, got) = answer.split_once("\r\n\r\n").expect("a head");
        let has = |field: &str| head.lines().any(|line| line.starts_with(field));
        let is_as_expected = |field: &str| match field.strip_prefix('!') {
            Some(field) => !has(field),
            None => has(field),
        };
        if !head.starts_with(&format!("HTTP/1.1 {status} "))
            || !expected.split(" & ").all(is_as_expected)
            || got.trim_end() != body
        {
            wrong.push(format!("{row}\n\tis answered by {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
