//! A reload, seen from the successor: it takes its predecessor's place, and waits for its end when it stops itself.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Mutex;

use crate::systemd::activation::{CHANNEL, Inherited, failed};

/// The process that started this one and drains while this one serves.
#[derive(Debug)]
pub(crate) struct Predecessor {
    pid: u32,
    process: OwnedFd,
    hears: Mutex<BufReader<OwnedReadHalf>>,
    says: Mutex<OwnedWriteHalf>,
}

impl Predecessor {
    /// Finds the predecessor; `None` if this process was not started by a reload.
    pub(crate) fn find(inherited: &mut Inherited) -> io::Result<Option<Self>> {
        let Some(channel) = inherited.take(CHANNEL).pop() else { return Ok(None) };
        let channel = StdUnixStream::from(channel);
        channel.set_nonblocking(true)?;
        let channel = UnixStream::from_std(channel)?;
        let process = channel.peer_cred()?.pid().and_then(Pid::from_raw).ok_or(ErrorKind::NotFound)?;
        let pid = process.as_raw_nonzero().get().unsigned_abs();
        let process = pidfd_open(process, PidfdFlags::empty())?;
        let (hears, says) = channel.into_split();
        Ok(Some(Self { pid, process, hears: Mutex::new(BufReader::new(hears)), says: Mutex::new(says) }))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Says that everything is bound, and returns when the predecessor has made this process the main one.
    pub(crate) async fn relieve(&self) -> io::Result<()> {
        self.says.lock().await.write_all(b"ready\n").await?;
        let mut line = String::new();
        self.hears.lock().await.read_line(&mut line).await?;
        match line.as_str() {
            "go\n" => Ok(()),
            _ => Err(io::Error::new(ErrorKind::UnexpectedEof, "the process to be relieved gave up")),
        }
    }

    /// Tells the predecessor why this process cannot take over.
    pub(crate) async fn decline(&self, reason: &str) {
        // Best effort: the predecessor may have ended.
        let _ = self.says.lock().await.write_all(failed(reason).as_bytes()).await;
    }

    /// Returns when the predecessor has ended.
    pub(crate) async fn gone(&self) {
        // It writes nothing after `go`: the read ends with the process.
        let _ = self.hears.lock().await.read_u8().await;
    }

    /// Kills a predecessor that does not end by itself.
    pub(crate) fn end(&self) {
        tracing::warn!(process = self.pid, "process {} does not end: killing it", self.pid);
        // It may have ended in this moment.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Asks the predecessor to cut what it still has in flight.
    pub(crate) async fn cut(&self) {
        let _ = self.says.lock().await.write_all(b"cut\n").await;
    }
}
