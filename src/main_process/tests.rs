//! The main process among stand-ins for its workers; and what workers of other versions say is understood.

use std::process::{Child, Command, Stdio};

use super::*;
use crate::systemd::channel::key;

/// A process in a worker's place: `cat`, which ends with 0 once its standard input is closed.
struct StandIn {
    process: Child,
    channel: Channel,
}

impl StandIn {
    /// One that has this part.
    fn join(main: &mut MainProcess, part: Part) -> Self {
        let process =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
        let (ours, theirs) = Channel::pair().expect("a pair");
        main.follow(Worker::adopt(process.id(), ours, part).expect("it is there"));
        Self { process, channel: Channel::adopt(theirs).expect("the same kind") }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Says that it can serve. Returns what the main process has not handled yet.
    async fn is_bound(&self, main: &mut MainProcess) -> Event {
        self.channel.send(&assign(key::BOUND, "1"), &[]).expect("it is sent");
        main.events.recv().await.expect("it is heard")
    }

    /// Says this much, which the main process handles.
    async fn says(&self, main: &mut MainProcess, what: &str) {
        self.channel.send(&assign(what, "1"), &[]).expect("it is sent");
        let said = main.events.recv().await.expect("it is heard");
        main.handle(said);
    }

    /// Everything that it was told since the last look.
    fn told(&self) -> Vec<Message> {
        std::iter::from_fn(|| self.channel.receive_now()).collect()
    }

    fn end(&mut self) {
        self.process.stdin = None;
    }
}

/// A main process whose worker serves, and that one.
fn serving() -> (MainProcess, StandIn) {
    let mut main = MainProcess::new();
    main.phase = Phase::Serving;
    let current = StandIn::join(&mut main, Part::Current);
    (main, current)
}

/// A reload that is under way, and the worker that is to take over.
fn reloading(main: &mut MainProcess) -> StandIn {
    main.asked.push(None);
    StandIn::join(main, Part::Candidate)
}

/// Has the main process do what is due in this time.
async fn pass(main: &mut MainProcess, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        sleep_until(main.alarm().min(end)).await;
        main.handle(Event::Alarm);
    }
}

#[tokio::test]
async fn a_candidate_that_a_stop_has_ended_does_not_take_over() {
    let (mut main, mut current) = serving();
    let candidate = reloading(&mut main);
    let bound = candidate.is_bound(&mut main).await;
    main.handle(Event::Stop("SIGINT"));
    main.handle(bound);
    assert_eq!(main.current().map(|worker| worker.pid), Some(current.pid()));
    let told = current.told();
    assert!(told.iter().any(|message| message.has(key::STOP)), "{told:?}");
    assert!(!told.iter().any(|message| message.has(key::HAND_OVER)), "{told:?}");

    current.end();
    while main.exit.is_none() {
        let event = main.events.recv().await.expect("both end");
        main.handle(event);
    }
    assert_eq!(main.exit, Some(Exit::Clean));
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_was_ended_for_being_late_does_not_take_over() {
    let (mut main, current) = serving();
    let candidate = reloading(&mut main);
    let bound = candidate.is_bound(&mut main).await;
    pass(&mut main, Settings::default().ready_timeout).await;
    main.handle(bound);
    assert_eq!(main.current().map(|worker| worker.pid), Some(current.pid()));

    let ended = main.events.recv().await.expect("it ends");
    main.handle(ended);
    let told = current.told();
    assert!(!told.iter().any(|message| message.has(key::HAND_OVER)), "{told:?}");
    let refused = told.iter().filter(|message| message.has(key::REFUSED)).filter_map(|m| m.value(key::TEXT));
    let refused: Vec<_> = refused.collect();
    assert!(matches!(refused[..], [why] if why.contains("not ready within 30s")), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_whole_service_stood_still_counts_against_no_worker() {
    // As long as a look takes at most, and much longer.
    for standstill in [4, 60, 3600].map(Duration::from_secs) {
        let (mut main, current) = serving();
        let predecessor = StandIn::join(&mut main, Part::Predecessor);
        main.handle(Event::Stop("SIGINT"));
        let [most, rest] = [30, 4].map(Duration::from_secs);
        pass(&mut main, most).await;
        tokio::time::advance(standstill).await;
        main.handle(Event::Alarm);
        pass(&mut main, rest).await;
        let is_spared = |main: &mut MainProcess, stand_in: &StandIn| {
            main.worker(stand_in.pid()).unwrap().kill_at.is_some()
        };
        assert!(is_spared(&mut main, &current) && is_spared(&mut main, &predecessor), "{standstill:?}");
        pass(&mut main, GRACE).await;
        assert!(!is_spared(&mut main, &current) && !is_spared(&mut main, &predecessor), "{standstill:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_has_all_of_its_time_although_the_whole_service_stood_still() {
    let (mut main, _current) = serving();
    let candidate = reloading(&mut main);
    pass(&mut main, Duration::from_secs(1)).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    main.handle(Event::Alarm);
    pass(&mut main, Settings::default().ready_timeout / 2).await;
    let bound = candidate.is_bound(&mut main).await;
    main.handle(bound);
    assert_eq!(main.current().map(|worker| worker.pid), Some(candidate.pid()));
}

/// What systemd, or whoever is in its place, hears from a main process.
fn systemd(main: &mut MainProcess) -> impl FnMut() -> usize + use<> {
    let (ours, theirs) = Channel::pair().expect("a pair");
    let theirs = Channel::adopt(theirs).expect("the same kind");
    main.systemd = Manager::main_process(std::sync::Arc::new(ours));
    // The number of times that it has heard READY since it was asked last.
    move || std::iter::from_fn(|| theirs.receive_now()).filter(|message| message.has("READY")).count()
}

#[tokio::test(start_paused = true)]
async fn a_reload_is_over_once_its_predecessor_accepts_nobody_any_more() {
    for hangs in [false, true] {
        let (mut main, old) = serving();
        let mut ready = systemd(&mut main);
        let candidate = reloading(&mut main);
        let bound = candidate.is_bound(&mut main).await;
        main.handle(bound);
        assert!(old.told().iter().any(|message| message.has(key::HAND_OVER)));
        // Its own word tells nothing of the other.
        candidate.says(&mut main, "READY").await;
        main.program = Program::at("/bin/false");
        main.handle(Event::Hangup);
        pass(&mut main, Duration::from_millis(1900)).await;
        assert_eq!((ready(), main.waiting.len()), (0, 1));
        if hangs {
            pass(&mut main, Duration::from_millis(100)).await;
        } else {
            old.says(&mut main, key::RETIRED).await;
        }
        assert_eq!((ready(), main.waiting.len()), (1, 0), "hangs: {hangs}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_not_ready_yet_is_replaced_by_a_reload_at_once() {
    let mut main = MainProcess::new();
    let worker = StandIn::join(&mut main, Part::Candidate);
    let bound = worker.is_bound(&mut main).await;
    main.handle(bound);
    main.program = Program::at("/bin/false");
    main.handle(Event::Hangup);
    assert!(main.candidate().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_main_process_becomes_no_other_program_amid_a_takeover_nor_a_stop() {
    let (mut main, old) = serving();
    let candidate = reloading(&mut main);
    let bound = candidate.is_bound(&mut main).await;
    main.handle(bound);
    main.is_upgraded = true;
    candidate.says(&mut main, "READY").await;
    assert!(!main.may_follow_upgrade());
    old.says(&mut main, key::RETIRED).await;
    assert!(main.may_follow_upgrade());
    main.handle(Event::Stop("SIGINT"));
    assert!(!main.may_follow_upgrade());
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_over_once_the_worker_of_the_main_process_before_accepts_nobody_any_more() {
    for ends in [false, true] {
        let mut main = MainProcess::new();
        let mut ready = systemd(&mut main);
        let mut old = StandIn::join(&mut main, Part::Predecessor);
        let worker = StandIn::join(&mut main, Part::Candidate);
        let bound = worker.is_bound(&mut main).await;
        main.handle(bound);
        pass(&mut main, Duration::from_secs(10)).await;
        assert!(!old.told().iter().any(|message| message.has(key::HAND_OVER)));
        worker.says(&mut main, "READY").await;
        assert!(old.told().iter().any(|message| message.has(key::HAND_OVER)));
        assert_eq!(ready(), 0);
        if ends {
            old.end();
            while ready() == 0 {
                let event = main.events.recv().await.expect("it ends");
                main.handle(event);
            }
        } else {
            old.says(&mut main, key::RETIRED).await;
            assert_eq!(ready(), 1);
        }
    }
}

#[test]
fn a_worker_of_another_version_may_say_less_of_its_drain_or_more() {
    let read = |json| serde_json::from_str::<DrainProgress>(json).expect("it is understood");
    assert_eq!(read("{}"), DrainProgress::default());
    let more = read(r#"{"in_flight":2,"left":17.5,"newer":[1]}"#);
    assert_eq!(more, DrainProgress { in_flight: Some(2), left: Some(17.5) });
}

#[test]
fn a_main_process_of_another_version_may_say_less_of_predecessors_or_more() {
    let json = r#"[{"pid":1,"since":2.5,"status":"draining"},
                   {"pid":2,"since":1.5,"status":"draining","in_flight":3,"left":null,"newer":{}}]"#;
    let read: Vec<Predecessor> = serde_json::from_str(json).expect("it is understood");
    assert_eq!(read.iter().map(|one| one.in_flight).collect::<Vec<_>>(), [None, Some(3)]);
}
