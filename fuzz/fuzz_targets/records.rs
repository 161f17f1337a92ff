//! A record layer with keys that a client has, fed by a script: no panic, no plaintext that was not sealed, and the same end
//! however the bytes are cut and whenever the connection is carried.
#![no_main]

libfuzzer_sys::fuzz_target!(|script: &[u8]| steadfast::fuzzing::records(script));
