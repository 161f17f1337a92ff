//! What the process takes of the machine, by its own account in `/proc`.

use std::fs;
use std::sync::OnceLock;
use std::time::Duration;

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

/// The time at which this process started, in seconds since 1970; 0 if it cannot be known.
pub(super) fn started() -> f64 {
    static STARTED: OnceLock<f64> = OnceLock::new();
    *STARTED.get_or_init(|| {
        // proc_stat(5): the boot, in seconds since 1970.
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        let ticks = process::started(std::process::id());
        boot.zip(ticks).map_or(0.0, |(boot, ticks)| boot + as_f64(ticks) / as_f64(clock_ticks_per_second()))
    })
}
