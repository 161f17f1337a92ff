//! Another process, by a descriptor of it: its end can be waited for, and no signal meant for it reaches another.

use std::io;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::UnixDatagram;

/// A process that may have ended.
///
/// tokio watches no `pidfd_open(2)`; as a datagram socket it watches one just as well: it is readable once the process
/// has ended.
#[derive(Debug)]
pub(crate) struct Process(UnixDatagram);

impl Process {
    /// The process of this number; an error if there is none. Needs a runtime.
    pub(crate) fn open(pid: Pid) -> io::Result<Self> {
        let descriptor = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        Ok(Self(UnixDatagram::from_std(descriptor.into())?))
    }

    /// Returns when it has ended.
    pub(crate) async fn gone(&self) {
        // An error is as good as an end: there is nothing left to wait for.
        let _ = self.0.readable().await;
    }

    /// Sends it a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.0, signal);
    }
}

/// The time at which a process started, in ticks since the boot; `None` if it has ended.
pub(crate) fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field of proc_pid_stat(5) is a name in parentheses, which may have any character; this is the 22nd.
    let (_, from_the_third) = stat.rsplit_once(") ")?;
    from_the_third.split(' ').nth(22 - 3)?.parse().ok()
}

/// The time since a process started; `None` if it has ended.
pub(crate) fn age(pid: u32) -> Option<Duration> {
    // Not /proc/uptime: `ProcSubset=pid` of the unit hides it.
    let since_boot = Duration::try_from(clock_gettime(ClockId::Boottime)).ok()?;
    let ticks = u32::try_from(rustix::param::clock_ticks_per_second()).ok()?;
    let started = Duration::from_secs(started(pid)?) / ticks;
    Some(since_boot.saturating_sub(started))
}

#[cfg(test)]
mod tests {
    //! The end of a process is seen, also by who comes late; and so is its start.

    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_seen_again_and_again() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("it runs");
        let process = Process::open(Pid::from_child(&child)).expect("it is there");
        tokio::select! {
            biased;
            () = process.gone() => panic!("it runs"),
            () = std::future::ready(()) => {}
        }
        process.signal(Signal::KILL);
        process.gone().await;
        process.gone().await;
        child.wait().expect("it has ended");
    }

    #[test]
    fn the_starts_of_processes_are_in_order() {
        let own = started(std::process::id()).expect("it runs");
        let mut child = Command::new("sleep").arg("1000").spawn().expect("it runs");
        let childs = started(child.id()).expect("it is there");
        assert!(started(1).expect("it is there") <= own && own <= childs, "{own}, {childs}");
        child.kill().expect("it runs");
        child.wait().expect("it has ended");
        assert_eq!(started(child.id()), None);
        assert_eq!(age(child.id()), None);
        assert!(age(1) >= age(std::process::id()));
    }
}
