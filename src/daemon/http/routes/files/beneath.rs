//! Files beneath a folder, and nothing else: the kernel refuses every path that leads out of it, by `..` or by a
//! symlink, also while somebody moves things about (`openat2(2)`: `RESOLVE_BENEATH`, or where the path has no `..`,
//! `RESOLVE_NO_SYMLINKS`).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::Errno;

/// The number of times that a path is looked up anew because something was moved meanwhile.
const TRIES: usize = 100;

/// The folder whose files are opened.
#[derive(Clone, Debug)]
pub(super) struct Beneath {
    /// Its path, with a slash at the end.
    root: Arc<[u8]>,
}

/// What there is at a path. All else, such as a FIFO or a device, is not there.
#[derive(Debug)]
pub(super) enum Entry {
    File(Opened),
    Folder,
}

/// A file, and what was known of it when it was opened.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    /// In bytes.
    pub(super) length: u64,
    /// The time of its last change, since 1970; none if that was before.
    pub(super) modified: Option<Duration>,
}

impl Beneath {
    pub(super) fn new(root: &Path) -> Self {
        // An empty path, and a relative one, is one below the current folder.
        let root: PathBuf = [Path::new("."), root, Path::new("")].iter().collect();
        Self { root: root.as_os_str().as_bytes().into() }
    }

    /// Opens what is at a path. The lookup is done here if the kernel has all of the path in memory, as it has of a
    /// path that was asked for before; if not, on a thread that may wait for the disk.
    pub(super) async fn open(&self, path: &[u8]) -> io::Result<Entry> {
        match open(&self.root, path, ResolveFlags::CACHED) {
            // Kernels before 5.12 do not know the flag.
            Err(Errno::AGAIN | Errno::INVAL) => {
                let (root, path) = (Arc::clone(&self.root), path.to_owned());
                let open = move || {
                    // The kernel asks for another try when it cannot tell where a `..` leads, as something is moved.
                    let mut tries = (0..TRIES).map(|_| open(&root, &path, ResolveFlags::empty()));
                    tries.find(|opened| !matches!(opened, Err(Errno::AGAIN))).unwrap_or(Err(Errno::AGAIN))
                };
                Ok(tokio::task::spawn_blocking(open).await.map_err(io::Error::other)??)
            }
            opened => Ok(opened?),
        }
    }
}

/// Opens what is at a path beneath a root. Both are looked up anew each time: the root may be a symlink that is made to
/// lead to another folder.
fn open(root: &[u8], path: &[u8], how: ResolveFlags) -> Result<Entry, Errno> {
    // Most paths are beneath the root by what they say, if none of the folders on the way is a symlink: one lookup.
    if !path.windows(2).any(|two| two == b"..") {
        match open_at(CWD, &[root, path].concat(), ResolveFlags::NO_SYMLINKS | how) {
            // There is a symlink, or the two are too long together.
            Err(Errno::LOOP | Errno::NAMETOOLONG) => {}
            opened => return opened,
        }
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat2(CWD, root, flags, Mode::empty(), how)?;
    let path = if path.is_empty() { b"." } else { path };
    match open_at(&root, path, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | how) {
        // There is no such file here: the path leads out of the folder, or its symlinks form a loop.
        Err(Errno::XDEV | Errno::LOOP) => Err(Errno::NOENT),
        opened => opened,
    }
}

fn open_at(folder: impl AsFd, path: &[u8], how: ResolveFlags) -> Result<Entry, Errno> {
    let open = |flags| openat2(&folder, path, flags | OFlags::CLOEXEC, Mode::empty(), how);
    // `NONBLOCK`, because opening a FIFO would otherwise wait for its writer.
    let file = match open(OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => file,
        // It is a socket, or a device that has no driver.
        Err(Errno::NXIO | Errno::NODEV) => return Err(Errno::NOENT),
        // A folder need not be readable for what is below it to be.
        Err(Errno::ACCESS) => {
            let is_folder = kind(&fstat(open(OFlags::PATH)?)?) == FileType::Directory;
            return if is_folder { Ok(Entry::Folder) } else { Err(Errno::ACCESS) };
        }
        Err(error) => return Err(error),
    };
    let stat = fstat(&file)?;
    match kind(&stat) {
        FileType::RegularFile => Ok(Entry::File(Opened {
            file: file.into(),
            length: u64::try_from(stat.st_size).unwrap_or_default(),
            modified: modified(&stat),
        })),
        FileType::Directory => Ok(Entry::Folder),
        _ => Err(Errno::NOENT),
    }
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn modified(stat: &Stat) -> Option<Duration> {
    let seconds = u64::try_from(stat.st_mtime).ok()?;
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).ok()?;
    Some(Duration::new(seconds, nanoseconds))
}
