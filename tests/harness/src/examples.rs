//! The examples of the package under test, as programs.

use std::path::PathBuf;
use std::process::Command;

/// Builds examples with these arguments to `cargo build`, and returns the folder that they are in. Plain `cargo test` has
/// built them, but one that names its targets has not.
///
/// # Panics
///
/// If they cannot be built.
#[must_use]
pub fn build_examples(arguments: &[&str]) -> PathBuf {
    // TARGET/PROFILE/deps/NAME-HASH
    let test = std::env::current_exe().expect("a test is a file");
    let profile = test.ancestors().nth(2).expect("it is in a profile's folder");
    let mut build = Command::new(env!("CARGO"));
    build
        .args(["build", "--quiet", "--target-dir"])
        .arg(profile.parent().expect("which is in the target folder"))
        .args(arguments)
        // The workspace, whose default is the package under test.
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    let status = build.status().expect("cargo runs");
    assert!(status.success(), "the examples cannot be built");
    profile.join("examples")
}
