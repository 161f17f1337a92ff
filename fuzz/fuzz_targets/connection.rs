//! A whole connection, fed any bytes: no panic, no hang, and whatever is answered is HTTP.
#![no_main]

use std::sync::LazyLock;

use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let answer = RUNTIME.block_on(steadfast::fuzzing::connection(bytes));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{}", answer.escape_ascii());
});
