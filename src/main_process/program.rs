//! The program that the service runs, by the path that it was started by.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use command_fds::{CommandFdExt, FdMapping};

use crate::systemd::activation::FIRST;

/// The titles in the list of processes.
pub(super) const MAIN: &str = "steadfast: main process";
pub(super) const WORKER: &str = "steadfast: worker";

/// The environment variable that has the path, once the title has taken the place of the program's name.
const PROGRAM: &str = "STEADFAST_PROGRAM";

/// This very program, whatever is at its path by now.
const THIS: &str = "/proc/self/exe";

/// The program and its arguments.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// That of this process. Its path is the one that it was started by and not where that led to: a deployment may
    /// replace a symlink.
    pub(super) fn of_this_process() -> Self {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_default();
        let path = if name == MAIN {
            std::env::var_os(PROGRAM).map(PathBuf::from)
        } else if name.as_bytes().contains(&b'/') {
            std::path::absolute(&name).ok()
        } else {
            find_in_path(Path::new(&name))
        };
        let path = path.or_else(|| std::env::current_exe().ok()).unwrap_or_else(|| THIS.into());
        Self { path, arguments: arguments.collect() }
    }

    /// The one at this path, without arguments.
    #[cfg(test)]
    pub(super) fn at(path: &str) -> Self {
        Self { path: path.into(), arguments: Vec::new() }
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// True if another program is at the path than the one that this process runs.
    pub(super) fn is_another(&self) -> bool {
        let file = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
        match (file(&self.path), file(Path::new(THIS))) {
            (Ok(there), Ok(this)) => there != this,
            _ => false,
        }
    }

    /// True if this process runs under its title already.
    pub(super) fn has_title() -> bool {
        std::env::args_os().next().is_some_and(|name| name == MAIN)
    }

    /// Gives this process the program's name, by which `pgrep` and the journal's `_COMM=` know it: a start by way of
    /// [`THIS`] has lost it.
    pub(super) fn take_name(&self) {
        let name = self.path.file_name().and_then(|name| CString::new(name.as_bytes()).ok());
        if let Some(name) = name {
            // Best effort: it is for people.
            let _ = rustix::thread::set_name(&name);
        }
    }

    /// The program that is at the path now, under a title, with named descriptors.
    pub(super) fn command(&self, title: &str, passed: Vec<(String, OwnedFd)>) -> io::Result<Command> {
        self.command_at(&self.path, title, passed)
    }

    /// This process's own program, which is there even if the file is not.
    pub(super) fn command_of_this(&self, title: &str, passed: Vec<(String, OwnedFd)>) -> io::Result<Command> {
        self.command_at(Path::new(THIS), title, passed)
    }

    fn command_at(&self, path: &Path, title: &str, passed: Vec<(String, OwnedFd)>) -> io::Result<Command> {
        let names: Vec<_> = passed.iter().map(|(name, _)| name.as_str()).collect();
        let mut command = Command::new(path);
        command
            .arg0(title)
            .args(&self.arguments)
            .env(PROGRAM, &self.path)
            .env("LISTEN_FDS", passed.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let mappings =
            (FIRST..).zip(passed).map(|(child_fd, (_, parent_fd))| FdMapping { parent_fd, child_fd });
        command.fd_mappings(mappings.collect()).map_err(io::Error::other)?;
        Ok(command)
    }
}

/// Finds a program as a shell does.
fn find_in_path(name: &Path) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    //! A program is found again by the name that it was started by.

    use super::*;

    #[test]
    fn a_name_without_a_folder_is_looked_for_as_a_shell_does() {
        let sh = find_in_path(Path::new("sh")).expect("there is a shell");
        assert!(sh.is_absolute() && sh.ends_with("sh"), "{}", sh.display());
        assert_eq!(find_in_path(Path::new("no-such-program-anywhere")), None);
    }

    #[test]
    fn another_file_at_the_path_is_another_program() {
        let this = std::env::current_exe().expect("a test is a file");
        let program = |path: PathBuf| Program { path, arguments: Vec::new() };
        assert!(!program(this).is_another());
        assert!(program(find_in_path(Path::new("sh")).expect("there is a shell")).is_another());
        assert!(!program("/no/such/program".into()).is_another());
    }
}
