//! Modbus RTU: over a real pair of pseudo-terminals (socat) against pymodbus, and against raw
//! devices that answer late. A pseudo-terminal has no bit rate, so the timing of a real RS-485 line
//! is not tried here.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use andon::metrics::Health;
use andon::source::modbus::plan::Span;
use andon::source::modbus::registers::Table;
use andon::source::modbus::{Connection, Failure, Lines, Url};
use andon::types::{Cause, Quality};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[path = "support/modbus.rs"]
mod support;
use support::*;

/// Two serial devices, each the other end of the other.
struct Pair {
    socat: Child,
    dir: tempfile::TempDir,
}

impl Pair {
    fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let end = |name: &str| format!("pty,raw,echo=0,link={}", dir.path().join(name).display());
        let mut socat = Command::new("socat");
        let socat = socat.arg(end("ours")).arg(end("theirs")).stderr(Stdio::null()).spawn();
        let pair = Pair { socat: socat.expect("socat; tests/run installs it"), dir };
        let started = Instant::now();
        while !(pair.ours().exists() && pair.theirs().exists()) {
            assert!(started.elapsed() < DEADLINE, "socat makes no pseudo-terminals");
            std::thread::sleep(Duration::from_millis(5));
        }
        pair
    }

    fn ours(&self) -> PathBuf {
        self.dir.path().join("ours")
    }

    fn theirs(&self) -> PathBuf {
        self.dir.path().join("theirs")
    }

    fn url(&self) -> String {
        format!("rtu://{}?baud=115200", self.ours().display())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.socat.kill();
        let _ = self.socat.wait();
    }
}

#[tokio::test]
async fn every_type_and_order_that_pymodbus_serves_over_a_serial_line() {
    let pair = Pair::new();
    let server = Pymodbus::on_line(&pair.theirs());
    let signals: Vec<(String, String)> = (server.signals.iter().enumerate())
        .map(|(i, s)| {
            let order = s.order.as_ref().map_or(String::new(), |o| format!("order = \"{o}\""));
            (format!("s{i}"), format!("at = \"{}\"\ntype = \"{}\"\n{order}", s.at, s.r#type))
        })
        .collect();
    let mut source = Running::start(config(&source_at("plc", &pair.url(), "timeout = \"10s\"", &signals)));
    let readings = source.next().await;
    for (reading, served) in readings.iter().zip(&server.signals) {
        assert_eq!((reading.quality, reading.value), (Quality::Good, served.value), "{served:?}");
    }
    source.board(|c| c.health == Health::Up).await;
    source.stop().await;
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

/// The checksum of RTU, made anew so that a mistake in the other would show.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let mut crc = 0xFFFF_u16;
    for byte in &frame {
        crc ^= u16::from(*byte);
        for _ in 0..8 {
            let odd = crc & 1 == 1;
            crc >>= 1;
            if odd {
                crc ^= 0xA001;
            }
        }
    }
    frame.extend(crc.to_le_bytes());
    frame
}

/// A proper answer to an RTU request: each register holds its own address. Addresses from 9000 to
/// 9999 are refused.
fn answer(request: &[u8]) -> Vec<u8> {
    let word = |i: usize| u16::from_be_bytes([request[i], request[i + 1]]);
    let (at, count) = (word(2), word(4));
    if (9000..10_000).contains(&at) {
        return sealed(vec![request[0], request[1] | 0x80, 2]);
    }
    let values: Vec<u8> = match request[1] {
        1 | 2 => vec![0; usize::from(count).div_ceil(8)],
        _ => (at..).take(count.into()).flat_map(u16::to_be_bytes).collect(),
    };
    let mut frame = vec![request[0], request[1], values.len() as u8];
    frame.extend(values);
    sealed(frame)
}

/// An RTU device behind TCP that answers each request in its turn, some of them only after `late`
/// further requests have come in; what it owes it sends even through the next connection.
async fn late_device(late: impl Fn(usize) -> usize + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut owed: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
        let mut nth = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            while stream.read_exact(&mut request).await.is_ok() {
                assert_eq!(sealed(request[..6].to_vec()), request, "the checksum of a request");
                nth += 1;
                owed.push_back((nth + late(nth), answer(&request)));
                while owed.front().is_some_and(|(at, _)| *at <= nth) {
                    let (_, bytes) = owed.pop_front().unwrap();
                    if stream.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn no_late_answer_is_taken_for_a_fresh_one_in_many_tries() {
    const TRIES: u16 = 10_000;
    let mut random = fastrand::Rng::with_seed(7);
    let lateness: Vec<usize> =
        (0..8 * usize::from(TRIES)).map(|_| if random.u8(..16) == 0 { random.usize(1..4) } else { 0 }).collect();
    let device = late_device(move |nth| lateness.get(nth).copied().unwrap_or(0)).await;
    let url = Url::parse(&format!("rtu-tcp://{device}")).unwrap();
    let lines = Lines::default();
    let limit = Duration::from_millis(5);
    let mut link: Option<Connection> = None;
    let (mut fresh, mut missed) = (0, 0);
    for n in 0..TRIES {
        let mut connection = match link.take() {
            Some(connection) => connection,
            None => match Connection::dial(&lines, &url, 1, limit).await {
                Ok(connection) => connection,
                Err(_) => continue,
            },
        };
        // Always the same shape, so that nothing but the order tells answers apart. Some are refused.
        let start = if n % 7 == 0 { 9000 + n % 100 } else { n };
        match connection.read(Span { table: Table::Holding, start, count: 1 }).await {
            Ok(values) => {
                assert_eq!(values, [start], "try {n}: an answer to another request");
                fresh += 1;
                link = Some(connection);
            }
            Err(Failure::Exception(..)) => {
                assert!(start >= 9000, "try {n}: a refusal of another request");
                link = Some(connection);
            }
            Err(_) => missed += 1,
        }
    }
    assert!(fresh > usize::from(TRIES) / 4 && missed > usize::from(TRIES) / 50, "{fresh} fresh, {missed} missed");
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
