//! Tests that change their whole process, and so need one of their own.

use std::process::Command;

/// Set in the process that runs one test alone.
const ALONE: &str = "STEADFAST_TEST_ALONE";

/// Whether the test of this path (`module_path!()` and its name) runs alone. If it does not, another process runs it,
/// which has to succeed, and there is nothing left to do.
pub(crate) fn is_alone(path: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let (_, name) = path.split_once("::").expect("a path begins with the crate");
    let test = std::env::current_exe().expect("a test is a file");
    let output = Command::new(test).args(["--exact", name]).env(ALONE, "1").output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    false
}
