//! Modbus RTU: over a real pair of pseudo-terminals (socat) against pymodbus, and against raw
//! devices that misbehave. A pseudo-terminal has no bit rate, so the timing of a real RS-485 line
//! is not tried here.
#![allow(clippy::unwrap_used, dead_code)]

use std::process::Command;
use std::time::Duration;

use andon::metrics::Health;
use andon::source::modbus::Lines;
use andon::types::{Cause, Quality};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[path = "support/modbus.rs"]
mod support;
use support::*;
#[path = "support/pair.rs"]
mod pair;
use pair::Pair;
#[path = "support/rtu.rs"]
mod rtu;
use rtu::answer;

#[tokio::test]
async fn every_type_and_order_that_pymodbus_serves_over_a_serial_line() {
    let pair = Pair::new();
    let server = Pymodbus::on_line(&pair.theirs());
    let signals = served(&server.signals);
    let mut source = Running::start(config(&source_at("plc", &pair.url(), "timeout = \"10s\"", &signals)));
    let readings = source.next().await;
    for (reading, served) in readings.iter().zip(&server.signals) {
        assert_eq!((reading.quality, reading.value), (Quality::Good, served.value), "{served:?}");
    }
    source.board(|c| c.health == Health::Up).await;
    source.stop().await;
}

#[tokio::test]
async fn units_on_one_line_share_it_and_a_dead_one_costs_little() {
    let pair = Pair::new();
    let server = Pymodbus::on_line(&pair.theirs());
    let lines = Lines::default();
    let keys = |unit: u8| format!("unit = {unit}\npoll = \"20ms\"\ntimeout = \"300ms\"");
    let source = |unit: u8| config(&source_at("plc", &pair.url(), &keys(unit), &registers([3000, 3029])));
    let mut alive = [Running::on(source(1), &lines), Running::on(source(2), &lines)];
    for running in &mut alive {
        running.until(all_good).await;
    }
    let mut dead = Running::on(source(9), &lines);
    dead.until(|r| r.iter().any(|r| r.cause == Cause::Timeout)).await;
    let timeouts = |dead: &Running| dead.metric("andon_modbus_requests_total{source=\"plc\",outcome=\"timeout\"}");
    // The dead one is tried again and again, and no value of the others is lost or mixed up. Its
    // readings are taken slowly, so that it mostly waits for room while its turn on the line comes:
    // a turn that is not taken up must not stay with it.
    let mut rounds = 0;
    while timeouts(&dead) < 4 {
        let _ = tokio::time::timeout(Duration::from_millis(1), dead.batches.recv()).await;
        for running in &mut alive {
            let readings = running.next().await;
            assert!(all_good(&readings), "{readings:?}");
            assert_eq!((of(&readings, "r3000").value, of(&readings, "r3029").value), (3000.0, 3029.0));
            rounds += 1;
        }
    }
    // Four time-outs of 300 ms, with pauses of some 250, 500 and 1000 ms between them, are hardly
    // half of the time: without turns there would be a handful of rounds.
    assert!(rounds > 20, "{rounds} rounds");
    drop(server);
    for running in alive {
        running.stop().await;
    }
    dead.stop().await;
}

#[test]
fn the_command_reads_a_serial_line() {
    let pair = Pair::new();
    let _server = Pymodbus::on_line(&pair.theirs());
    let andon = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_andon"));
        let out = command.args(["modbus", "read", &pair.url()]).args(words.split_whitespace()).output().unwrap();
        (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let (out, trace) = andon("--unit 2 --at holding:3000 --at holding:3010 --json --trace --timeout 20s");
    let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines[0]["value"], 3000);
    assert_eq!(lines[1]["reason"], "exception 2: illegal data address");
    let shown: Vec<&str> = trace.lines().map(|l| l.split("  ").nth(1).unwrap_or(l)).take(4).collect();
    assert_eq!(
        shown,
        [
            "unit 2, function 3, read holding 3000, 1 register",
            "unit 2, function 3, 1 register of holding: 0BB8",
            "unit 2, function 3, read holding 3010, 1 register",
            "unit 2, function 3, exception 2: illegal data address",
        ]
    );
}

#[tokio::test]
async fn damaged_answers_are_not_believed_and_the_next_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("rtu-tcp://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for nth in 0_usize.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 8];
            let mut count = nth;
            while stream.read_exact(&mut request).await.is_ok() {
                let mut bytes = answer(&request);
                count += 1;
                match count % 5 {
                    0 => *bytes.last_mut().unwrap() ^= 1,
                    1 => bytes[3] ^= 0x40,
                    2 => bytes.insert(0, 0x55),
                    _ => {}
                }
                if stream.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        }
    });
    let keys = "poll = \"5ms\"\ntimeout = \"100ms\"";
    let mut source = Running::start(config(&source_at("plc", &url, keys, &registers([100, 60200]))));
    let mut good = 0;
    while good < 20 {
        for reading in source.next().await.iter().filter(|r| r.quality == Quality::Good) {
            assert_eq!(format!("r{}", reading.value), &*reading.signal);
            good += 1;
        }
    }
    source.stop().await;
}

#[tokio::test]
async fn a_serial_device_that_is_pulled_out_is_found_again() {
    let pair = Pair::new();
    let server = Pymodbus::on_line(&pair.theirs());
    let text = source_at("plc", &pair.url(), "poll = \"20ms\"\ntimeout = \"300ms\"", &registers([3000]));
    let mut source = Running::start(config(&text));
    source.until(all_good).await;
    let ours = pair.ours();
    drop(server);
    drop(pair);
    source.until(all_bad(Cause::Disconnected)).await;
    assert!(source.board(|c| c.health == Health::Down).await.detail.contains("rtu://"));
    // The same name comes back.
    let again = Pair::new();
    std::fs::create_dir_all(ours.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(again.ours(), &ours).unwrap();
    let _server = Pymodbus::on_line(&again.theirs());
    source.until(all_good).await;
    source.stop().await;
    std::fs::remove_dir_all(ours.parent().unwrap()).unwrap();
}

#[test]
fn the_check_tells_of_a_line_that_is_asked_for_too_much() {
    let dir = tempfile::tempdir().unwrap();
    let signals = registers(0..125);
    let source =
        source_at("slow", "rtu:///dev/ttyUSB7?baud=2400", "unit = 7", &signals).replace("[modbus", "[source.modbus");
    let path = dir.path().join("andon.toml");
    std::fs::write(&path, source + "[[machine]]\nmatch = \"*\"\n").unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_andon")).args(["check", "-c"]).arg(&path).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(out.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let end = "  line /dev/ttyUSB7: 124 % of its time, if devices answer within 5ms\n    warning: unit 7 needs 1.24 s \
        in every 1 s at 2400 baud; raise its poll, or baud to 4800\n";
    assert!(text.ends_with(end), "{text}");
}
