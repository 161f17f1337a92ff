//! The machine and the time of a measurement.

use std::fs;
use std::process::Command;
use std::thread;

use crate::results::Circumstances;

pub(crate) fn now(rounds: usize) -> Circumstances {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let date = Command::new("date").args(["--utc", "+%Y-%m-%d %H:%M UTC"]).output();
    Circumstances {
        date: date
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
            .unwrap_or_default(),
        processor: model.map_or("an unnamed processor", |(_, model)| model).to_owned(),
        cores: thread::available_parallelism().map_or(0, usize::from),
        kernel: format!("Linux {}", kernel.trim()),
        system: system.unwrap_or("an unnamed system").trim_matches('"').to_owned(),
        rounds,
    }
}
