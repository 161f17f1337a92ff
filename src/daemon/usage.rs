//! What the process takes of the machine, by its own account in `/proc`.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::exposition::as_f64;
use crate::systemd::process;

/// A look at the process. What cannot be known is 0.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// Seconds of processor time, since its start.
    pub(super) cpu: f64,
    /// Bytes of memory that are in use, and of address space.
    pub(super) resident: f64,
    pub(super) addressed: f64,
    /// Open descriptors, and the most that there may be.
    pub(super) descriptors: f64,
    pub(super) most_descriptors: f64,
    pub(super) threads: f64,
}

impl Usage {
    /// That of this process, now.
    pub(super) fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        // The fields of /proc/self/statm are in pages (proc_pid_statm(5)).
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let mut pages = statm.split(' ').map(|pages| pages.parse().unwrap_or(0.0));
        let mut bytes = || pages.next().unwrap_or(0.0) * as_f64(page_size() as u64);
        let (addressed, resident) = (bytes(), bytes());
        let entries = |folder| fs::read_dir(folder).map_or(0, Iterator::count);
        Self {
            cpu: Duration::try_from(cpu).map_or(0.0, |cpu| cpu.as_secs_f64()),
            resident,
            addressed,
            // One is the folder itself, being read.
            descriptors: as_f64(entries("/proc/self/fd").saturating_sub(1) as u64),
            most_descriptors: getrlimit(Resource::Nofile).current.map_or(f64::INFINITY, as_f64),
            threads: as_f64(entries("/proc/self/task") as u64),
        }
    }
}

/// The time at which this process started, in seconds since 1970.
pub(super) fn started() -> f64 {
    static STARTED: OnceLock<f64> = OnceLock::new();
    *STARTED.get_or_init(|| {
        // The kernel's own note of its boot, /proc/stat, is out of sight in a sandbox (systemd's `ProcSubset=pid`).
        let age = process::started(std::process::id()).map_or(Duration::ZERO, |ticks| {
            let since_boot = Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default();
            let started = as_f64(ticks) / as_f64(clock_ticks_per_second());
            since_boot.saturating_sub(Duration::try_from_secs_f64(started).unwrap_or_default())
        });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(age).as_secs_f64()
    })
}

#[cfg(test)]
mod tests {
    //! The kernel's figures are taken for what they are.

    use super::*;

    #[test]
    fn a_process_takes_something_of_everything_and_started_a_moment_ago() {
        let Usage { cpu, resident, addressed, descriptors, most_descriptors, threads } = Usage::now();
        assert!(cpu > 0.0 && cpu < 3600.0, "{cpu}");
        assert!(0.0 < resident && resident <= addressed, "{resident} of {addressed}");
        assert!(3.0 <= descriptors && descriptors <= most_descriptors, "{descriptors} of {most_descriptors}");
        assert!(threads >= 1.0, "{threads}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs_f64();
        assert!((now - 3600.0..=now).contains(&started()), "{} at {now}", started());
    }
}
