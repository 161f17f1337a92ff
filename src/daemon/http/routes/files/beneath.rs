//! Files beneath a folder, and nothing else: the kernel refuses every path that leads out of it, by `..` or by a
//! symlink, also while somebody moves things about (`openat2(2)`, `RESOLVE_BENEATH`).

use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tower_http::services::fs::{Backend, File};

/// The backend of `ServeDir`: a folder whose files it opens.
#[derive(Clone, Debug)]
pub(super) struct Beneath {
    root: Arc<Path>,
}

type Later<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

impl Beneath {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Opens a path on a thread that may wait for the disk.
    fn resolve<T: Send + 'static>(
        &self,
        path: PathBuf,
        flags: OFlags,
        then: impl FnOnce(std::fs::File) -> io::Result<T> + Send + 'static,
    ) -> Later<'static, T> {
        let root = Arc::clone(&self.root);
        Box::pin(async move {
            let resolve = move || {
                // The root is opened each time anew: it may be a symlink that is made to lead to another folder.
                let root = open(&*root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let path = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
                match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                    Ok(file) => then(file.into()),
                    // The path leads out of the folder, or its symlinks form a loop: there is no such file here.
                    Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
                        Err(io::ErrorKind::NotFound.into())
                    }
                    Err(error) => Err(error.into()),
                }
            };
            tokio::task::spawn_blocking(resolve).await.unwrap_or_else(|error| Err(io::Error::other(error)))
        })
    }
}

impl Backend for Beneath {
    type File = OpenFile;
    type Metadata = Metadata;
    type OpenFuture = Later<'static, OpenFile>;
    type MetadataFuture = Later<'static, Metadata>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        // `NONBLOCK`, because opening a FIFO would otherwise wait for its writer.
        self.resolve(path, OFlags::RDONLY | OFlags::NONBLOCK, |file| {
            let kind = file.metadata()?.file_type();
            if kind.is_file() || kind.is_dir() {
                Ok(OpenFile(file.into()))
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        self.resolve(path, OFlags::PATH, |file| file.metadata())
    }
}

/// A file that was opened beneath the folder.
#[derive(Debug)]
pub(super) struct OpenFile(tokio::fs::File);

impl File for OpenFile {
    type Metadata = Metadata;
    type MetadataFuture<'a> = Later<'a, Metadata>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        Box::pin(self.0.metadata())
    }
}

impl AsyncRead for OpenFile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncSeek for OpenFile {
    fn start_seek(mut self: Pin<&mut Self>, position: io::SeekFrom) -> io::Result<()> {
        Pin::new(&mut self.0).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Pin::new(&mut self.0).poll_complete(cx)
    }
}
