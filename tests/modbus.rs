//! The Modbus source against pymodbus, against the simulated PLC, and against devices that misbehave
//! as real ones do.
#![allow(clippy::unwrap_used, dead_code)]
#![cfg(feature = "demo")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use andon::metrics::Health;
use andon::simulator::plc::Plc;
use andon::source::modbus::plan::Span;
use andon::source::modbus::registers::Table;
use andon::source::modbus::scan::{Pace, readable};
use andon::source::modbus::{Config, Connection, Lines, Url};
use andon::types::{Cause, Quality, Time};

#[path = "support/modbus.rs"]
mod support;
use support::*;

/// For devices that answer: patient, so that a busy machine fails no test.
const STEADY: &str = "poll = \"20ms\"\ntimeout = \"10s\"";
/// For devices that do not.
const FAST: &str = "poll = \"20ms\"\ntimeout = \"150ms\"";

async fn plc() -> Plc {
    Plc::start(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a simulated PLC")
}

#[tokio::test]
async fn every_type_and_order_that_pymodbus_serves() {
    let server = Pymodbus::start();
    assert!(server.signals.len() > 200, "{} signals", server.signals.len());
    let signals = served(&server.signals);
    let mut source = Running::start(config(&source_text(server.address, "timeout = \"10s\"", &signals)));
    let before = Time::now();
    let readings = source.next().await;
    assert_eq!(readings.len(), server.signals.len());
    for (reading, served) in readings.iter().zip(&server.signals) {
        assert_eq!((reading.quality, reading.value), (Quality::Good, served.value), "{served:?}");
        assert!(before <= reading.at && reading.at <= Time::now());
    }
    source.board(|c| c.health == Health::Up).await;
    source.stop().await;
}

#[tokio::test]
async fn neighbours_share_requests() {
    let mut server = Pymodbus::start();
    let signals: Vec<(String, String)> = [
        ("a", "at = \"holding:0\"\ntype = \"u16\""),
        ("b", "at = \"holding:9\"\ntype = \"u16\""),
        ("c", "at = \"holding:19\"\ntype = \"u16\""),
        ("d", "at = \"input:3\"\ntype = \"f64\""),
        ("e", "at = \"coil:1\""),
        ("f", "at = \"coil:10\""),
    ]
    .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
    .into();
    let mut source =
        Running::start(config(&source_text(server.address, "gap = 8\npoll = \"1h\"\ntimeout = \"10s\"", &signals)));
    source.next().await;
    source.stop().await;
    let asked: BTreeSet<_> = server.requests().into_iter().collect();
    assert_eq!(asked, BTreeSet::from([(3, 0, 10), (3, 19, 1), (4, 3, 4), (1, 1, 10)]));
}

#[tokio::test]
async fn a_missing_address_hides_no_neighbour() {
    let mut server = Pymodbus::start();
    // 3010 is not there; 3020 is not there either, and lies between two that are wanted.
    let wanted = registers((3000..3019).chain(3022..3030));
    let mut source = Running::start(config(&source_text(server.address, STEADY, &wanted)));
    let mut asked = BTreeSet::new();
    for round in 0..5 {
        for reading in source.next().await {
            match &*reading.signal {
                "r3010" => assert_eq!((reading.quality, reading.cause), (Quality::Bad, Cause::Exception)),
                name => assert_eq!(format!("r{}", reading.value), name, "round {round}: {reading:?}"),
            }
        }
        let requests = server.requests();
        match round {
            0 => assert!(requests.len() <= 20, "{requests:?}"),
            _ => asked.extend(requests),
        }
    }
    // What it has learnt: each island by itself.
    assert_eq!(asked, BTreeSet::from([(3, 3000, 10), (3, 3011, 8), (3, 3022, 8)]));
    let component = source.board(|c| c.health == Health::Degraded).await;
    assert_eq!(component.detail, "bad: m/r3010 (exception)");
    assert_eq!(source.metric("andon_source_connects_total{source=\"plc\"}"), 1);
    source.stop().await;
}

#[tokio::test]
async fn what_was_learnt_of_a_device_is_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Pymodbus::start();
    // As above: 3010 is not there, and 3020 lies between two that are wanted.
    let text = source_text(server.address, STEADY, &registers((3000..3019).chain(3022..3030)));
    let start = || Running::start(Config { learnt: Some(dir.path().join("modbus")), ..config(&text) });
    let good = |r: &[andon::types::Reading]| r.iter().filter(|r| r.quality == Quality::Good).count() == 26;
    let mut source = start();
    source.until(good).await;
    source.stop().await;
    assert!(server.requests().len() > 3, "it had to find out");
    let mut source = start();
    let first = source.next().await;
    source.stop().await;
    assert!(good(&first), "{first:?}");
    hold_own_address(&first);
    // The islands, and once more the one that was refused: it may be there by now.
    let asked: BTreeSet<_> = server.requests().into_iter().collect();
    assert_eq!(asked, BTreeSet::from([(3, 3000, 10), (3, 3011, 8), (3, 3022, 8), (3, 3010, 1)]));
}

#[tokio::test]
async fn a_frozen_device_times_out_and_comes_back_on_a_fresh_connection() {
    let server = Pymodbus::start();
    let mut source = Running::start(config(&source_text(server.address, FAST, &registers([3000, 3029]))));
    source.until(all_good).await;
    server.freeze();
    source.until(|r| r.iter().any(|r| r.cause == Cause::Timeout)).await;
    source.until(all_bad(Cause::Disconnected)).await;
    let component = source.board(|c| c.health == Health::Down).await;
    assert!(component.detail.ends_with("no answer within 150ms"), "{}", component.detail);
    server.thaw();
    let readings = source.until(all_good).await;
    assert_eq!((of(&readings, "r3000").value, of(&readings, "r3029").value), (3000.0, 3029.0));
    assert!(source.metric("andon_source_connects_total{source=\"plc\"}") >= 2);
    assert!(source.metric("andon_modbus_requests_total{source=\"plc\",outcome=\"timeout\"}") >= 1);
    source.board(|c| c.health == Health::Up).await;
    source.stop().await;
}

/// Each register holds its own address, so that an answer to another request is seen.
fn hold_own_address(readings: &[andon::types::Reading]) {
    for reading in readings.iter().filter(|r| r.quality == Quality::Good) {
        assert_eq!(format!("r{}", reading.value), &*reading.signal, "an answer to another request");
    }
}

#[tokio::test]
async fn a_late_answer_is_never_taken_for_a_fresh_one() {
    // Every third request is answered after the next one has been sent.
    let count = Arc::new(AtomicUsize::new(0));
    let address = raw_device(move |asked| {
        let late = count.fetch_add(1, Ordering::Relaxed) % 3 == 2;
        Does::Sends(Duration::from_millis(if late { 200 } else { 0 }), asked.answer())
    })
    .await;
    let mut source = Running::start(config(&source_text(address, FAST, &registers([100, 60200]))));
    let (mut good, mut timeouts) = (0, 0);
    while good < 20 || timeouts < 3 {
        let readings = source.next().await;
        hold_own_address(&readings);
        good += readings.iter().filter(|r| r.quality == Quality::Good).count();
        timeouts += readings.iter().filter(|r| r.cause == Cause::Timeout).count();
    }
    source.stop().await;
}

#[tokio::test]
async fn an_answer_under_another_number_is_never_taken() {
    // Always one behind: the answer to each request but the first repeats the one before.
    let before = Arc::new(std::sync::Mutex::new(None::<Asked>));
    let address = raw_device(move |asked| {
        let mut before = before.lock().expect("the request before");
        let answer = before.filter(|_| asked.nth > 0).unwrap_or(asked).answer();
        *before = Some(asked);
        Does::Sends(Duration::ZERO, answer)
    })
    .await;
    let mut source = Running::start(config(&source_text(address, FAST, &registers([100, 60200]))));
    let mut good = 0;
    while good < 10 {
        let readings = source.next().await;
        hold_own_address(&readings);
        good += readings.iter().filter(|r| r.quality == Quality::Good).count();
    }
    source.stop().await;
}

#[tokio::test]
async fn answers_of_the_wrong_length_or_shape_do_no_harm() {
    type Answer = fn(Asked) -> Vec<u8>;
    let answers: [(&str, Answer); 7] = [
        ("too short", |a| a.answer_as(a.transaction, (a.at..).take(usize::from(a.count) - 1))),
        ("too long", |a| a.answer_as(a.transaction, [a.at; 4])),
        ("empty", |a| a.answer_as(a.transaction, [])),
        ("another function", |a| Asked { function: 4, ..a }.answer()),
        ("no Modbus", |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("length 0", |a| [&a.transaction.to_be_bytes()[..], &[0, 0, 0, 0, 1]].concat()),
        ("odd bytes", |a| [&a.transaction.to_be_bytes()[..], &[0, 0, 0, 6, 1, 3, 3, 0, 0, 0]].concat()),
    ];
    for (what, answer) in answers {
        let address = raw_device(move |asked| Does::Sends(Duration::ZERO, answer(asked))).await;
        let mut source = Running::start(config(&source_text(address, FAST, &registers([100, 101]))));
        for _ in 0..5 {
            let readings = source.next().await;
            assert!(readings.iter().all(|r| r.quality == Quality::Bad), "{what}: {readings:?}");
        }
        source.stop().await;
    }
}

#[tokio::test]
async fn a_device_that_cuts_long_answers_short_is_read_in_parts() {
    let address = raw_device(|asked| {
        let words = (asked.at..).take(asked.count.min(5).into());
        Does::Sends(Duration::ZERO, asked.answer_as(asked.transaction, words))
    })
    .await;
    let mut source = Running::start(config(&source_text(address, STEADY, &registers(100..117))));
    for _ in 0..3 {
        let readings = source.next().await;
        assert!(all_good(&readings), "{readings:?}");
        hold_own_address(&readings);
    }
    source.stop().await;
}

#[tokio::test]
async fn a_device_that_closes_after_each_answer_is_read_all_the_same() {
    let address = raw_device(|asked| Does::SendsAndCloses(asked.answer())).await;
    let mut source = Running::start(config(&source_text(address, STEADY, &registers([100, 60200]))));
    for _ in 0..10 {
        let readings = source.next().await;
        assert!(all_good(&readings), "{readings:?}");
    }
    assert!(source.metric("andon_source_connects_total{source=\"plc\"}") == 20);
    source.stop().await;
}

#[tokio::test]
async fn an_address_that_is_never_answered_hides_no_other_for_long() {
    let address = raw_device(|asked| match asked.covers(5) {
        true => Does::Ignores,
        false => Does::Sends(Duration::ZERO, asked.answer()),
    })
    .await;
    let mut source = Running::start(config(&source_text(address, FAST, &registers(0..16))));
    let readings = source.until(|r| r.iter().filter(|r| r.quality == Quality::Good).count() == 15).await;
    assert_eq!(of(&readings, "r5").quality, Quality::Bad);
    hold_own_address(&readings);
    source.stop().await;
}

#[tokio::test]
async fn an_address_that_makes_the_device_hang_up_hides_no_other_for_long() {
    let address = raw_device(|asked| match asked.covers(5) {
        true => Does::Closes,
        false => Does::Sends(Duration::ZERO, asked.answer()),
    })
    .await;
    let mut source = Running::start(config(&source_text(address, FAST, &registers(0..16))));
    source.until(|r| r.iter().filter(|r| r.quality == Quality::Good).count() == 15).await;
    source.stop().await;
}

#[tokio::test]
async fn the_simulated_plc_and_its_faults() {
    let plc = plc().await;
    plc.set_f32(Table::Holding, 10, 23.5);
    plc.set(Table::Input, 7, 0xFFFE);
    plc.set_bit(Table::Coil, 3, true);
    let signals: Vec<(String, String)> = [
        ("temperature", "at = \"holding:10\"\ntype = \"f32\""),
        ("level", "at = \"30008\"\ntype = \"i16\"\nscale = 0.5"),
        ("running", "at = \"coil:3\""),
        ("broken", "at = \"holding:12\"\ntype = \"f32\""),
    ]
    .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
    .into();
    plc.set_f32(Table::Holding, 12, f32::NAN);
    let keys = "poll = \"20ms\"\ntimeout = \"1s\"";
    let mut source = Running::start(config(&source_text(plc.address(), keys, &signals)));
    let readings = source.next().await;
    let values = ["temperature", "level", "running"].map(|name| of(&readings, name).value);
    assert_eq!(values, [23.5, -1.0, 1.0]);
    assert_eq!(of(&readings, "broken").cause, Cause::NotFinite);
    let component = source.board(|c| c.health == Health::Degraded).await;
    assert_eq!(component.detail, "bad: m/broken (not_finite)");
    plc.set_f32(Table::Holding, 12, 1.0);
    source.until(all_good).await;

    // Busy: everything is bad, the connection stays.
    plc.set_exception(Some(6));
    source.until(all_bad(Cause::Exception)).await;
    plc.set_exception(None);
    source.until(all_good).await;
    assert_eq!(plc.connections(), 1);

    plc.set_silent(true);
    source.until(|r| r.iter().any(|r| r.cause == Cause::Timeout)).await;
    plc.set_silent(false);
    source.until(all_good).await;

    plc.unmap(Table::Holding, 12..14);
    let readings = source.until(|r| of(r, "broken").cause == Cause::Exception).await;
    assert_eq!(readings.iter().filter(|r| r.quality == Quality::Good).count(), 3);
    source.stop().await;
}

#[tokio::test]
async fn an_absent_device_is_bad_at_the_rate_of_each_signal_and_found_when_it_comes() {
    let gone = plc().await;
    let address = gone.address();
    drop(gone);
    let signals: Vec<(String, String)> = [("fast", "poll = \"20ms\""), ("slow", "poll = \"200ms\"")]
        .map(|(name, poll)| (name.to_owned(), format!("at = \"holding:1\"\ntype = \"u16\"\n{poll}")))
        .into();
    let mut source = Running::start(config(&source_text(address, "timeout = \"150ms\"", &signals)));
    let (mut fast, mut slow) = (Vec::new(), Vec::new());
    while slow.len() < 4 {
        for reading in source.next().await {
            assert_eq!((reading.quality, reading.cause), (Quality::Bad, Cause::Disconnected));
            if &*reading.signal == "fast" { fast.push(reading.at) } else { slow.push(reading.at) }
        }
    }
    // Late rounds are left out, never made up for, so there may be fewer but not more.
    let most = |times: &[Time], period: u128| times[times.len() - 1].since(times[0]).as_millis() / period + 2;
    assert!(fast.len() > slow.len());
    assert!(fast.len() as u128 <= most(&fast, 20) && slow.len() as u128 <= most(&slow, 200), "{fast:?} {slow:?}");
    let component = source.board(|c| c.health == Health::Down).await;
    assert!(component.detail.starts_with("cannot connect to tcp://127.0.0.1:"), "{}", component.detail);
    assert_eq!(source.metric("andon_source_connected{source=\"plc\"}"), 0);
    let plc = restart(address).await;
    plc.set(Table::Holding, 1, 42);
    source.until(|r| r.iter().any(|r| r.value == 42.0)).await;
    assert_eq!(source.metric("andon_source_connected{source=\"plc\"}"), 1);
    source.stop().await;
}

/// The port was free a moment ago; it may take a moment more.
async fn restart(address: SocketAddr) -> Plc {
    let trying = async {
        loop {
            match Plc::start(address).await {
                Ok(plc) => return plc,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(DEADLINE, trying).await.expect("the port again")
}

#[tokio::test]
async fn a_full_channel_holds_polling_and_queues_nothing_up() {
    let plc = plc().await;
    let mut source = Running::start(config(&source_text(plc.address(), "poll = \"5ms\"", &registers([1]))));
    source.next().await;
    // One batch is in the channel and one waits for room: at most three requests in all.
    let held = async {
        while plc.requests() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        plc.requests()
    };
    assert_eq!(tokio::time::timeout(DEADLINE, held).await.expect("three requests"), 3);
    let stale = [source.next().await[0].at, source.next().await[0].at];
    let fresh = source.next().await[0].at;
    assert!(fresh.since(stale[1]) >= Duration::from_millis(90), "{stale:?} then {fresh}");
    source.stop().await;
}

#[tokio::test]
async fn a_scan_finds_the_readable_ranges_and_stops_at_its_limit() {
    let plc = plc().await;
    for hole in [0..7, 100..101, 250..1000, 65535..65536] {
        plc.unmap(Table::Holding, hole);
    }
    let holding = |start, count| Span { table: Table::Holding, start, count };
    let url = Url::parse(&format!("tcp://{}", plc.address())).unwrap();
    let look = async |within, requests| {
        let mut connection = Connection::dial(&Lines::default(), &url, 1, DEADLINE).await.unwrap();
        let pace = Pace { longest: 100, requests, pause: Duration::ZERO };
        let found = readable(&mut connection, within, pace, |_, _| {}).await;
        assert_eq!(found.failure, None);
        (found.readable, found.complete)
    };
    let all = vec![holding(7, 93), holding(101, 149), holding(1000, 200)];
    assert_eq!(look(holding(0, 1200), 5000).await, (all, true));
    assert_eq!(look(holding(65500, 36), 1000).await, (vec![holding(65500, 35)], true));
    assert_eq!(look(holding(1000, 1000), 3).await, (vec![holding(1000, 300)], false));
}
