//! A child that must not run twice does not, whatever is replaced.

use steadfast_harness::{build_examples, print_figure, wait_until};

use super::CLIENTS;
use crate::service::{Service, UNIT};

/// The diary of `consumer.rs`.
const DIARY: &str = "/run/steadfast/diary";

fn diary(service: &Service) -> String {
    service.run(["cat", DIARY]).stdout
}

/// Returns the worker that serves, once its singleton runs.
fn wait_for_singleton(service: &Service) -> u32 {
    wait_until("the singleton of the worker that serves", || {
        let begun = diary(service).lines().last()?.strip_prefix("begin ")?.parse().ok()?;
        (service.worker() == begun).then_some(begun)
    })
}

#[test]
fn a_singleton_never_runs_twice_over_reloads_restarts_and_crashes() {
    let Some(service) = Service::install(file!(), "[supervision]\nmax_restarts = 20\nbackoff = \"10ms\"\n")
    else {
        return;
    };
    service.copy(&build_examples(&["--example", "consumer"]).join("consumer"), "/usr/bin/consumer", "0755");
    service.edit_unit("ExecStart=\nExecStart=/usr/bin/consumer /etc/steadfast/config.toml");
    service.ok(["systemctl", "start", UNIT]);
    let load = service.load(CLIENTS);
    let mut crashed = Vec::new();
    wait_for_singleton(&service);
    for round in 0..10 {
        service.reload();
        // Every other time while the one before still ends.
        if round % 2 == 0 {
            wait_for_singleton(&service);
        }
        if round % 3 == 0 {
            service.restart();
            wait_for_singleton(&service);
        }
        if round % 3 == 1 {
            let main = service.main_pid();
            service.kill_main();
            service.wait_for_another_main(&main);
            wait_for_singleton(&service);
        }
        if round % 5 == 2 {
            let worker = wait_for_singleton(&service);
            crashed.push(worker);
            service.signal("KILL", worker);
            service.wait_for_another_worker(worker);
            wait_for_singleton(&service);
        }
    }
    load.advance(100);
    let account = load.finish();
    let diary = diary(&service);
    let mut running: Option<u32> = None;
    for line in diary.lines() {
        let (what, process) = line.split_once(' ').unwrap();
        let process = process.parse().unwrap();
        match what {
            "begin" => {
                // One that was killed could not say that it ended.
                assert!(running.is_none_or(|other| crashed.contains(&other)), "{line} in:\n{diary}");
                running = Some(process);
            }
            _ => assert_eq!(running.take(), Some(process), "{line} in:\n{diary}"),
        }
    }
    let begun = diary.matches("begin").count();
    print_figure("ten reloads, four restarts and five crashes beside a singleton", &account);
    assert!(begun >= 15, "{diary}");
    assert_eq!((account.refused, account.closed), (0, 0), "{account}");
    assert!(account.dropped <= (crashed.len() * CLIENTS) as u64, "{account}");
    service.stop();
    service.assert_stopped_with(0);
}
