//! Files beneath a folder, and nothing else: the kernel refuses every path that leads out of it, by `..` or by a
//! symlink, also while somebody moves things about (`openat2(2)`, `RESOLVE_BENEATH`).

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::Errno;

/// The number of times that a path is looked up anew because something was moved meanwhile.
const TRIES: usize = 100;

/// The folder whose files are opened.
#[derive(Clone, Debug)]
pub(super) struct Beneath {
    root: Arc<Path>,
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
        Self { root: root.into() }
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

fn open(root: &Path, path: &[u8], how: ResolveFlags) -> Result<Entry, Errno> {
    // The root is opened each time anew: it may be a symlink that is made to lead to another folder.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat2(CWD, root, flags, Mode::empty(), how)?;

    let path = OsStr::from_bytes(if path.is_empty() { b"." } else { path });
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | how;
    let open = |flags| openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
    // `NONBLOCK`, because opening a FIFO would otherwise wait for its writer.
    let file = match open(OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => file,
        // There is no such file here: the path leads out of the folder, or its symlinks form a loop; or it is a socket,
        // or a device that has no driver.
        Err(Errno::XDEV | Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Err(Errno::NOENT),
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
