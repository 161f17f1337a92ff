//! Paths that would lead out of the folder whose files are served.

use std::fs;
use std::os::unix::fs::symlink;

use crate::site::{IMPATIENT, Site, files};
use crate::wire::{say, statuses};

#[test]
fn no_request_reads_a_file_outside_of_the_root() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    fs::create_dir_all(root.join("sub")).unwrap();
    fs::write(folder.path().join("secret"), "the secret").unwrap();
    fs::write(root.join("open"), "open").unwrap();
    symlink(folder.path().join("secret"), root.join("absolute")).unwrap();
    symlink("../secret", root.join("relative")).unwrap();
    symlink("..", root.join("sub/up")).unwrap();
    symlink("../..", root.join("sub/out")).unwrap();
    symlink("/", root.join("slash")).unwrap();
    symlink("/proc/self/root", root.join("magic")).unwrap();
    symlink("open", root.join("within")).unwrap();
    let site = Site::start(IMPATIENT, &files("/files/*", &root));

    let outside = folder.path().join("secret").display().to_string();
    let absolute = outside.replace('/', "%2F");
    let mut paths: Vec<String> = [
        "../secret",
        "./../secret",
        "sub/../../secret",
        "sub/up/../secret",
        "..//secret",
        "%2e%2e/secret",
        "%2E%2E/secret",
        ".%2e/secret",
        "%2e%2e%2fsecret",
        "..%2fsecret",
        "..%5csecret",
        "..\\secret",
        "%5c..%5csecret",
        "%252e%252e/secret",
        "%252e%252e%252fsecret",
        "..%252fsecret",
        "%c0%ae%c0%ae/secret",
        "%e0%80%ae%e0%80%ae/secret",
        "%uff0e%uff0e/secret",
        "..;/secret",
        "..%00/secret",
        "../secret%00",
        "open%00/../../secret",
        "%00../secret",
        "..%0d%0a/secret",
        "..%c0%afsecret",
        "%2e%2e%c0%afsecret",
        "....//secret",
        ".../secret",
        "sub/%2e%2e/%2e%2e/secret",
        "sub/out/secret",
        "absolute",
        "relative",
        "slash/etc/hostname",
        "slash/etc/passwd",
        "magic/etc/passwd",
        "absolute/",
        "..",
        "../",
        "%2e%2e",
        "%2e%2e/",
    ]
    .map(str::to_owned)
    .into();
    paths.extend([outside.clone(), format!("/{outside}"), absolute, format!("..{outside}")]);
    for path in &paths {
        for target in [format!("/files/{path}"), format!("/files//{path}"), format!("http://a/files/{path}")]
        {
            let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answers = say(site.http, request.as_bytes());
            let answered = statuses(&answers);
            let text = String::from_utf8_lossy(&answers);
            assert!(!text.contains("the secret") && !text.contains("root:"), "{target}: {text}");
            assert!(matches!(answered[..], [400 | 404 | 307]), "{target}: {text}");
        }
    }
    for (path, text) in [("open", "open"), ("within", "open"), ("sub/up/open", "open"), ("%6fpen", "open")] {
        let answer = site.client().get(&format!("/files/{path}")).unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, text), "{path}");
    }
    // None of it is the operator's fault.
    assert_eq!(site.lines(|line| line.contains("WARN") || line.contains("ERROR")), 0, "{}", site.stderr());
}

#[test]
fn a_redirect_to_a_folder_leads_to_no_other_host_and_splits_no_head() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["evil.example", "a"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let site = Site::start(IMPATIENT, &files("/*", folder.path()));
    for path in [
        "//evil.example",
        "/%0d%0aX:%20y/../a",
        "/a?%0d%0aX:y",
        "/\\evil.example",
        "///evil.example/..//evil.example",
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answers = say(site.http, request.as_bytes());
        let text = String::from_utf8_lossy(&answers).to_ascii_lowercase();
        assert!(!text.contains("location: //") && !text.contains("location: /\\"), "{path}: {text}");
        assert!(!text.contains("\nx:"), "{path}: {text}");
    }
}
