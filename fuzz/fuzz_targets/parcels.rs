//! A message from the mailbox, of any bytes: no panic, and no record without its descriptors.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| steadfast::fuzzing::parcels(message));
