//! Bytes on their way to another process: in memory that nobody can change any more.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};

/// The seals that make a memfd safe to read: nobody can change or shrink it any more (`memfd_create(2)`).
const SEALS: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// A sealed memfd with these bytes. The name shows in `/proc`.
pub(crate) fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let memfd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memfd);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

/// The bytes of a sealed memfd, from the first on; an error if there are more than `longest`.
pub(crate) fn unsealed(memfd: OwnedFd, longest: usize) -> io::Result<Vec<u8>> {
    let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    if !fcntl_get_seals(&memfd)?.contains(SEALS) {
        return wrong("its bytes are not sealed");
    }
    let file = File::from(memfd);
    match usize::try_from(file.metadata()?.len()) {
        Ok(length) if length <= longest => {
            let mut bytes = vec![0; length];
            file.read_exact_at(&mut bytes, 0)?;
            Ok(bytes)
        }
        _ => wrong("its bytes are too many"),
    }
}
