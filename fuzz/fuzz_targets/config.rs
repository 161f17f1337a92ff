//! A config file, of any text: no panic, whether it is right or wrong.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(error) = steadfast::Config::parse(text, "fuzz.toml") {
        assert!(!error.to_string().is_empty(), "a mistake is told");
    }
});
