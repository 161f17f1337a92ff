//! Tunnels: what upgraded connections say to each other arrives, once and in order.

use steadfast_harness::{Conversation, Tunnel, print_figure};

use crate::service::{PROXY, Service, UNIT};

#[test]
fn five_hundred_tunnels_half_of_them_busy_survive_a_restart_and_a_reload() {
    let Some(service) = Service::start(file!(), PROXY) else {
        return;
    };
    let upstream = service.upstream();
    let mut idle: Vec<Tunnel> = (0..250).map(|n| service.tunnel(&upstream, n)).collect();
    let busy: Vec<Tunnel> = (250..500).map(|n| service.tunnel(&upstream, n)).collect();
    settle(&mut idle, "before");
    let conversation = Conversation::start(busy);
    conversation.advance(20_000);
    let restart = service.restart();
    conversation.advance(20_000);
    settle(&mut idle, "after the restart");
    let reload = service.reload();
    conversation.advance(20_000);
    let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| settle(&mut idle, "after the reload")));
    println!("{}", service.journal(UNIT, &[]));
    println!(
        "{}",
        service
            .admin("/metrics")
            .text()
            .lines()
            .filter(|l| l.contains("handover"))
            .collect::<Vec<_>>()
            .join("\n")
    );
    r.unwrap();
    let busy = conversation.finish().unwrap_or_else(|e| panic!("{e}\n{}", service.journal(UNIT, &[])));

    let heard: u64 = busy.iter().map(Tunnel::heard).sum();
    print_figure(
        "250 busy and 250 idle tunnels over a restart and a reload",
        format_args!(
            "{heard} messages, none lost, doubled or out of order; restart {} ms, reload {} ms",
            restart.as_millis(),
            reload.as_millis()
        ),
    );
    let journal = service.journal(UNIT, &[]);
    assert_eq!(journal.matches("handed over 0 connections and 500 tunnels").count(), 2, "{journal}");
}

#[test]
fn what_a_slow_reader_has_yet_to_take_goes_along() {
    let Some(service) = Service::start(file!(), PROXY) else {
        return;
    };
    let upstream = service.upstream();
    let mut tunnel = service.tunnel(&upstream, 0);
    // Some 20 MB: more than the kernel's buffers on the way and the tunnel's own take.
    tunnel.say_unheard(100_000).unwrap();
    service.restart();
    service.reload();
    tunnel.settle().unwrap();
}

fn settle(tunnels: &mut [Tunnel], when: &str) {
    for tunnel in tunnels {
        tunnel.settle().unwrap_or_else(|failure| panic!("{when}: {failure}"));
    }
}
