//! A client that does not cooperate: each has its limits, and loses what is beyond them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Method;
use axum::routing::post;
use h2::Reason;
use steadfast_harness::frames::{
    self, CONTINUATION, DATA, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, frame,
    get_head, window_update,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::{Client, PATIENCE, Raw, Service, kinds, large, run, text};
use crate::server::Registry;
use crate::server::connection::Command;
use crate::server::limits::Limits;

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_say_that_it_knows_of_the_end_is_not_waited_for() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 65_535).await;
    raw.get(1, "/").await;
    service.until(|registry| registry.totals().requests() == 1).await;
    let began = Instant::now();
    service.registry.connections()[0].commands().give(Command::Carry);
    let frames = raw.rest().await;
    // The GOAWAY that comes before the PING; none after it.
    assert_eq!(frames.iter().filter(|(kind, _)| *kind == GOAWAY).count(), 1, "{frames:?}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    service.until(Registry::is_empty).await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_on_after_it_was_told_of_the_end_has_only_what_it_had_asked_for_before() {
    for waits in [false, true] {
        let service = Service::new();
        let mut raw = Raw::connect(&service, 65_535).await;
        raw.get(1, if waits { "/slow" } else { "/" }).await;
        service.until(|registry| registry.totals().requests() + registry.in_flight() as u64 == 1).await;
        let began = Instant::now();
        service.registry.connections()[0].commands().give(Command::Carry);
        let (mut reading, mut writing) = raw.0.into_split();
        let _asking = run(async move {
            for stream in 1.. {
                let get = frames::get(2 * stream + 1, "/");
                if writing.write_all(&get).await.is_err() {
                    return;
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
        if waits {
            sleep(Duration::from_secs(60)).await;
            assert_eq!((service.registry.len(), service.registry.in_flight()), (1, 1));
            service.go.notify_waiters();
        }
        let mut bytes = Vec::new();
        let _ = timeout(PATIENCE, reading.read_to_end(&mut bytes)).await.expect("an end");
        // It may ask on for 10 s, and has 2 s after its last answer.
        let least = if waits { 60 } else { 10 };
        assert!((least..least + 6).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        service.until(Registry::is_empty).await;
        let requests = service.registry.totals().requests();
        assert!((10..14).contains(&requests), "{requests}");
        let frames = kinds(&bytes);
        assert!(frames.contains(&(DATA, 1)) && frames.contains(&(DATA, 3)), "{frames:?}");
        if waits {
            // RFC 9113, section 8.7: they may be asked again elsewhere.
            let refused = frame(RST_STREAM, 0, 101, &u32::from(Reason::REFUSED_STREAM).to_be_bytes());
            assert!(bytes.windows(refused.len()).any(|bytes| bytes == refused), "{frames:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_is_told_of_the_end_in_time() {
    let service = Service::new();
    let mut client = service.client().await;
    let new = service.client().await;
    assert_eq!(text(&client.get("/").await).0, 200);
    let began = Instant::now();
    new.ended().await;
    assert!((10..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    client.ended().await;
    assert!((75..77).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn half_a_preface_and_half_a_head_have_the_time_of_a_head() {
    let service = Service::new();
    for (said, refused) in [
        (&b"PRI * HTTP/2.0\r\n"[..], "header_timeout"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", "header_timeout"),
    ] {
        let before = service.refused(refused);
        let mut socket = service.socket();
        socket.write_all(said).await.expect("it reads");
        let began = Instant::now();
        service.until(|registry| !registry.is_empty()).await;
        service.until(Registry::is_empty).await;
        assert!((10..13).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert_eq!(service.refused(refused), before + 1);
    }
    // Also if the client has asked before, and asks for something else meanwhile.
    let mut raw = Raw::connect(&service, 65_535).await;
    raw.get(1, "/").await;
    raw.get(3, "/wait").await;
    service.until(|registry| registry.totals().requests() == 1).await;
    raw.say(&frame(HEADERS, END_STREAM, 5, &get_head("/"))).await;
    let began = Instant::now();
    raw.rest().await;
    assert!((10..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("header_timeout"), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_its_client_makes_no_room_for_ends_and_the_others_go_on() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 1000).await;
    raw.get(1, "/large").await;
    service.until(|registry| registry.in_flight() == 1).await;
    let began = Instant::now();
    service.until(|registry| registry.in_flight() == 0).await;
    assert!((30..40).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("slow_reader"), 1);
    assert_eq!(service.registry.totals().client_gone(), 1);
    raw.get(3, "/").await;
    service.until(|registry| registry.totals().requests() == 2).await;
    service.registry.connections()[0].commands().give(Command::Finish);
    let frames = raw.rest().await;
    assert!(frames.contains(&(RST_STREAM, 1)) && frames.contains(&(DATA, 3)), "{frames:?}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_makes_room_for_no_answer_at_all_loses_all_of_them() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 0).await;
    for stream in 0..128 {
        raw.get(2 * stream + 1, "/").await;
    }
    service.until(|registry| registry.in_flight() == 128).await;
    let began = Instant::now();
    service.until(|registry| registry.in_flight() == 0).await;
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!((service.registry.totals().client_gone(), service.refused("slow_reader")), (128, 128));
}

/// hyper is done with a short answer as soon as it may begin: nothing is left that could reset its stream.
#[tokio::test(start_paused = true)]
async fn a_client_that_makes_room_for_a_part_of_a_short_answer_is_dropped() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 1).await;
    raw.get(1, "/").await;
    service.until(|registry| registry.in_flight() == 1).await;
    let began = Instant::now();
    service.until(Registry::is_empty).await;
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!((service.registry.totals().client_gone(), service.refused("slow_reader")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_makes_room_byte_by_byte_is_too_slow() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 0).await;
    raw.get(1, "/large").await;
    service.until(|registry| registry.in_flight() == 1).await;
    let began = Instant::now();
    while service.registry.in_flight() > 0 {
        raw.say(&window_update(1, 1)).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert!((30..40).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("slow_reader"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_answered_with_408_on_its_stream() {
    let service = Service::new();
    let mut client = service.client().await;
    let request =
        Client::request(&Method::POST, "/").header("content-length", 10).body(()).expect("a request");
    let mut requests = client.requests.clone().ready().await.expect("it takes requests");
    let (answer, _sending) = requests.send_request(request, false).expect("a request");
    let began = Instant::now();
    assert_eq!(answer.await.expect("an answer").status(), 408);
    assert!((30..32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(service.refused("slow_body"), 1);
    assert_eq!(text(&client.get("/").await).0, 200);
}

#[tokio::test]
async fn requests_that_are_taken_back_as_fast_as_they_are_made_end_the_connection() {
    takes_back(65_535, "/wait").await;
}

#[tokio::test]
async fn answers_that_are_taken_back_before_they_are_written_end_the_connection() {
    for path in ["/large", "/"] {
        takes_back(0, path).await;
    }
}

async fn takes_back(room: u32, path: &'static str) {
    let service = Service::new();
    let raw = Raw::connect(&service, room).await;
    let (mut reading, mut writing) = raw.0.into_split();
    let attack = run(async move {
        for stream in 0.. {
            let reset = frames::cancel(2 * stream + 1);
            if writing.write_all(&frames::get(2 * stream + 1, path)).await.is_err() {
                return;
            }
            // The server sees the one before the other.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            if writing.write_all(&reset).await.is_err() {
                return;
            }
        }
    });
    let _ = timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await.expect("an end");
    drop(attack);
    service.until(Registry::is_empty).await;
    assert_eq!((service.refused("flood"), service.registry.in_flight()), (1, 0));
    let requests = service.registry.totals().requests();
    assert!((200..1000).contains(&requests), "{requests}");
}

#[tokio::test]
async fn a_flood_of_frames_that_ask_for_nothing_ends_the_connection() {
    let settings = frame(SETTINGS, 0, 0, &[]);
    for kind in [
        frame(PING, 0, 0, &[0; 8]),
        settings,
        frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]),
        frame(99, 0, 0, b"what"),
    ] {
        let service = Service::new();
        let raw = Raw::connect(&service, 65_535).await;
        let (mut reading, mut writing) = raw.0.into_split();
        let flood = kind.repeat(100);
        let attack = run(async move { while writing.write_all(&flood).await.is_ok() {} });
        let _ = timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await.expect("an end");
        drop(attack);
        service.until(Registry::is_empty).await;
        assert_eq!(service.refused("flood"), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_or_gives_up_is_not_refused() {
    let service = Service::new();
    for last in [
        // An error of its own, half a frame, half a request, nothing.
        frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2]),
        frame(PING, 0, 0, &[0; 8])[..10].to_vec(),
        frame(HEADERS, END_STREAM, 3, &get_head("/")),
        Vec::new(),
    ] {
        let mut raw = Raw::connect(&service, 1000).await;
        raw.get(1, "/large").await;
        service.until(|registry| registry.in_flight() == 1).await;
        raw.say(&last).await;
        drop(raw);
        service.until(Registry::is_empty).await;
    }
    assert_eq!((service.refused("bad_request"), service.refused("flood")), (0, 0));
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_refused_by_its_reason() {
    // Data of no stream; and requests that are taken back in the same breath, of which h2 has a limit.
    let taken_back = (0..300).flat_map(|n| {
        let stream = 2 * n + 1;
        [frames::get(stream, "/wait"), frames::cancel(stream)].concat()
    });
    for (said, refused) in [(frame(DATA, 0, 0, b"what"), [1, 0]), (taken_back.collect(), [0, 1])] {
        let service = Service::new();
        let mut raw = Raw::connect(&service, 65_535).await;
        raw.say(&said).await;
        raw.rest().await;
        service.until(Registry::is_empty).await;
        assert_eq!(["bad_request", "flood"].map(|reason| service.refused(reason)), refused);
    }
}

/// A balancer sends those of many users on one connection.
#[tokio::test]
async fn a_request_that_cannot_be_one_is_reset_and_takes_no_other_with_it_however_many_come() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 65_535).await;
    raw.get(1, "/wait").await;
    for stream in (3..1000).step_by(2) {
        raw.get(stream, "/<script>").await;
        raw.until(RST_STREAM, stream).await;
    }
    raw.get(1001, "/").await;
    raw.until(DATA, 1001).await;
    service.go.notify_one();
    raw.until(HEADERS, 1).await;
}

#[tokio::test]
async fn as_many_requests_as_may_be_taken_back_at_once_may_be_taken_back_unseen() {
    let service = Service::new();
    let mut raw = Raw::connect(&service, 65_535).await;
    let taken_back = (0..200).flat_map(|n| {
        let stream = 2 * n + 1;
        [frames::get(stream, "/wait"), frames::cancel(stream)].concat()
    });
    raw.say(&taken_back.collect::<Vec<_>>()).await;
    raw.get(1001, "/").await;
    raw.until(DATA, 1001).await;
    assert_eq!((service.refused("flood"), service.registry.totals().client_gone()), (0, 200));
}

/// h2 holds a lock while it drops what it has of an answer: that may be the last to hold the stream, and must not be the last
/// to hold the rest of its request's body, which takes the same lock.
#[tokio::test(start_paused = true)]
async fn a_body_that_its_handler_drops_after_the_end_of_its_stream_is_no_part_of_that_any_more() {
    let held = Arc::new(Mutex::new(None));
    let holds = Arc::clone(&held);
    let holds = post(async move |body: Body| {
        *holds.lock().expect("it is sound") = Some(body);
        large()
    });
    let service = Service::of(Router::new().route("/holds", holds), Arc::default(), Limits::default());
    let mut raw = Raw::connect(&service, 1000).await;
    // Of 200000 bytes, which are few enough to be discarded.
    let length = [&[0x0f, 0x0d, 6], &b"200000"[..]].concat();
    raw.say(&frames::post(1, "/holds", &length)).await;
    service.until(|registry| registry.in_flight() == 1).await;
    service.until(|registry| registry.in_flight() == 0).await;
    assert_eq!(service.refused("slow_reader"), 1);
    // Its handler has held it until now.
    assert!(held.lock().expect("it is sound").take().is_some());
    raw.until(RST_STREAM, 1).await;
    drop(raw);
    service.until(Registry::is_empty).await;
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let service = Service::new();
    let raw = Raw::connect(&service, 65_535).await;
    let (mut reading, mut writing) = raw.0.into_split();
    let attack = run(async move {
        let _ = writing.write_all(&frame(HEADERS, END_STREAM, 1, &get_head("/"))).await;
        while writing.write_all(&frame(CONTINUATION, 0, 1, &[])).await.is_ok() {}
    });
    let _ = timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await.expect("an end");
    drop(attack);
    service.until(Registry::is_empty).await;
}
