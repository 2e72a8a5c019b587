//! Many devices at once, some of which fall silent and some of which answer too late: no wrong value
//! comes through, and the others keep their period. The devices are in a process of their own.
//!
//! The large one, a minute of 100 devices with 200 registers at 10 Hz, prints its figures:
//! `cargo test --release --test modbus_load -- --ignored --nocapture the_large`
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use andon::metrics::Shared;
use andon::source::modbus::{Lines, run};
use andon::types::{Batch, Quality, Time};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

#[path = "support/modbus.rs"]
mod support;
use support::*;

/// Names this process the one with the devices, and says how many.
const DEVICES: &str = "ANDON_TEST_LOAD_DEVICES";
const PERIOD: Duration = Duration::from_millis(100);
const TIMEOUT: Duration = Duration::from_millis(250);
/// How late the late ones are.
const LATE: Duration = Duration::from_millis(750);

/// What the registers of a device hold: in each pair whose they are, then when they were read, in
/// milliseconds, as far as 16 bits go.
fn register(device: u16, at: u16, now: Time) -> u16 {
    if at.is_multiple_of(2) { device.wrapping_mul(257) ^ at } else { (now.0 / 1_000_000) as u16 }
}

/// A unit in the child: it answers at once, or late, or never.
#[derive(Copy, Clone, PartialEq)]
enum Manner {
    Well,
    Late,
    Silent,
}

const ALL: &[Manner] = &[Manner::Well, Manner::Late, Manner::Silent];

/// Of twenty, two fall silent and one becomes late.
fn manner(device: usize) -> Manner {
    match device % 20 {
        3 | 11 => Manner::Silent,
        7 => Manner::Late,
        _ => Manner::Well,
    }
}

async fn device(mut stream: TcpStream, number: usize, ill: Arc<AtomicBool>) {
    stream.set_nodelay(true).unwrap();
    let mut frame = [0; 12];
    while stream.read_exact(&mut frame).await.is_ok() {
        let word = |i: usize| u16::from_be_bytes([frame[i], frame[i + 1]]);
        let asked = Asked { nth: 0, transaction: word(0), function: frame[7], at: word(8), count: word(10) };
        let now = Time::now();
        let words = (asked.at..).take(asked.count.into()).map(|at| register(number as u16, at, now));
        let bytes = asked.answer_as(asked.transaction, words);
        let manner = if ill.load(Ordering::Relaxed) { manner(number) } else { Manner::Well };
        match manner {
            Manner::Silent => continue,
            Manner::Late => tokio::time::sleep(LATE).await,
            Manner::Well => {}
        }
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Not a test: the process with the devices. It prints their ports, and a line of input makes them
/// ill; it ends with its input.
#[test]
#[ignore = "the devices of the other tests"]
fn devices() {
    let Ok(count) = std::env::var(DEVICES) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ill = Arc::new(AtomicBool::new(false));
    let mut ports = Vec::new();
    for number in 0..count.parse().unwrap() {
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        ports.push(listener.local_addr().unwrap().port().to_string());
        let ill = ill.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(device(stream, number, ill.clone()));
            }
        });
    }
    println!("\nports {}", ports.join(" "));
    let reading = runtime.spawn_blocking(move || {
        let mut line = String::new();
        while std::io::stdin().lock().read_line(&mut line).is_ok_and(|n| n > 0) {
            ill.store(true, Ordering::Relaxed);
        }
    });
    runtime.block_on(reading).unwrap();
}

struct Devices {
    child: Child,
    stdin: ChildStdin,
    /// Kept open: the child tells of a test that takes long, and would end if nobody could hear it.
    _stdout: BufReader<ChildStdout>,
    ports: Vec<u16>,
}

impl Devices {
    fn start(count: usize) -> Devices {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["devices", "--exact", "--ignored", "--nocapture"])
            .env(DEVICES, count.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.starts_with("ports ") {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "the ports of the devices");
        }
        let ports: Vec<u16> = line.split_whitespace().skip(1).map(|p| p.parse().unwrap()).collect();
        assert_eq!(ports.len(), count);
        Devices { child, stdin, _stdout: stdout, ports }
    }

    fn fall_ill(&mut self) {
        writeln!(self.stdin).unwrap();
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// All devices being polled into one channel, as the agent does it, and everything held against what
/// it should be.
struct Plant {
    shared: Shared,
    batches: mpsc::Receiver<Batch>,
    /// By device: when its rounds arrived in which all was good.
    rounds: BTreeMap<usize, Vec<Time>>,
    good: u64,
    bad: u64,
    oldest: u16,
}

impl Plant {
    fn start(devices: &Devices, registers: u16) -> Plant {
        let (lines, shared) = (Lines::default(), Shared::new());
        let (tx, batches) = mpsc::channel(256);
        let signals: Vec<(String, String)> = (0..registers)
            .step_by(2)
            .map(|at| (format!("{at}"), format!("at = \"holding:{at}\"\ntype = \"u32\"")))
            .collect();
        let keys = format!("poll = \"{}ms\"\ntimeout = \"{}ms\"", PERIOD.as_millis(), TIMEOUT.as_millis());
        for (number, port) in devices.ports.iter().enumerate() {
            let text = source_at(&number.to_string(), &format!("tcp://127.0.0.1:{port}"), &keys, &signals);
            tokio::spawn(run(config(&text), lines.clone(), shared.clone(), tx.clone()));
        }
        Plant { shared, batches, rounds: BTreeMap::new(), good: 0, bad: 0, oldest: 0 }
    }

    async fn take(&mut self) {
        let batch = tokio::time::timeout(DEADLINE, self.batches.recv()).await.unwrap().unwrap();
        let device: usize = batch.source.parse().unwrap();
        for reading in &batch.readings {
            if reading.quality != Quality::Good {
                self.bad += 1;
                continue;
            }
            self.good += 1;
            let value = reading.value as u32;
            let expected = register(device as u16, reading.signal.parse().unwrap(), reading.at);
            assert_eq!((value >> 16) as u16, expected, "device {device}: {reading:?}");
            let age = register(0, 1, reading.at).wrapping_sub(value as u16);
            // Beyond the time-out only by as much as this process is held up after it.
            assert!(Duration::from_millis(age.into()) < LATE, "device {device}: {age} ms old: {reading:?}");
            self.oldest = self.oldest.max(age);
        }
        if all_good(&batch.readings) {
            self.rounds.entry(device).or_default().push(batch.arrived);
        }
    }

    async fn take_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.take().await;
        }
    }

    /// The fewest rounds of any device of this manner.
    fn fewest(&self, count: usize, wanted: Manner) -> usize {
        let rounds = |n| self.rounds.get(&n).map_or(0, Vec::len);
        (0..count).filter(|n| manner(*n) == wanted).map(rounds).min().unwrap_or(0)
    }

    /// How far rounds of these devices were apart, in milliseconds, in order.
    fn periods(&self, wanted: Manner) -> Vec<f64> {
        let of = self.rounds.iter().filter(|(n, _)| manner(**n) == wanted);
        let mut all: Vec<f64> =
            of.flat_map(|(_, at)| at.windows(2).map(|w| w[1].since(w[0]).as_secs_f64() * 1e3)).collect();
        all.sort_by(f64::total_cmp);
        all
    }

    /// Requests with that outcome to devices of these manners.
    fn requests(&self, outcome: &str, manners: &[Manner]) -> u64 {
        let text = self.shared.metrics.render();
        let of = |l: &&str| l.starts_with("andon_modbus_requests_total{") && l.contains(&format!("\"{outcome}\""));
        let device = |l: &str| l.split("source=\"").nth(1)?.split('"').next()?.parse::<usize>().ok();
        let wanted = |l: &&str| device(l).is_some_and(|n| manners.contains(&manner(n)));
        text.lines().filter(of).filter(wanted).filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }
}

fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

/// Seconds of CPU that this process has used.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[tokio::test]
async fn some_fall_silent_and_late_and_the_rest_keep_their_period() {
    const COUNT: usize = 20;
    let mut devices = Devices::start(COUNT);
    let mut plant = Plant::start(&devices, 20);
    while plant.fewest(COUNT, Manner::Well) < 3 {
        plant.take().await;
    }
    devices.fall_ill();
    plant.rounds.clear();
    while plant.fewest(COUNT, Manner::Well) < 25 || plant.requests("timeout", ALL) < 9 {
        plant.take().await;
    }
    let periods = plant.periods(Manner::Well);
    // The median stands a machine that is busy with other tests.
    assert!(at(&periods, 0.5) < 1.5 * PERIOD.as_secs_f64() * 1e3, "{periods:?}");
    assert!(plant.good > 1000 && plant.bad > 0, "{} good, {} bad", plant.good, plant.bad);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and a half and prints figures"]
async fn the_large_one() {
    const COUNT: usize = 100;
    let minute = Duration::from_secs(60);
    let mut devices = Devices::start(COUNT);
    let mut plant = Plant::start(&devices, 200);
    while plant.fewest(COUNT, Manner::Well) < 10 {
        plant.take().await;
    }
    let mut before = 0.0;
    for (what, time) in [("all well", minute / 2), ("10 silent, 5 late", minute)] {
        if time == minute {
            devices.fall_ill();
            // Until the first time-outs are through.
            plant.take_for(TIMEOUT * 2).await;
        }
        plant.rounds.clear();
        let (requests, used) = (plant.requests("ok", ALL), cpu());
        let timeouts = [ALL, &[Manner::Well]].map(|m| plant.requests("timeout", m));
        let (good, started) = (plant.good, Instant::now());
        plant.take_for(time).await;
        let seconds = started.elapsed().as_secs_f64();
        let periods = plant.periods(Manner::Well);
        let off: Vec<f64> = {
            let mut off: Vec<f64> = periods.iter().map(|p| (p - 100.0).abs()).collect();
            off.sort_by(f64::total_cmp);
            off
        };
        println!(
            "{what}: {:.0} requests/s, {} time-outs ({} of them of healthy devices), {:.0} values/s; period of the healthy p50 {:.1} ms, p99 {:.1} \
             ms, longest {:.1} ms; off by p50 {:.2} ms, p99 {:.2} ms; CPU {:.1} %; oldest value {} ms; 0 wrong",
            (plant.requests("ok", ALL) - requests) as f64 / seconds,
            plant.requests("timeout", ALL) - timeouts[0],
            plant.requests("timeout", &[Manner::Well]) - timeouts[1],
            (plant.good - good) as f64 / seconds,
            at(&periods, 0.5),
            at(&periods, 0.99),
            at(&periods, 1.0),
            at(&off, 0.5),
            at(&off, 0.99),
            (cpu() - used) / seconds * 100.0,
            plant.oldest,
        );
        // A machine that is busy with other things leaves rounds out; then so it did when all was well.
        let rate = plant.fewest(COUNT, Manner::Well) as f64 / seconds;
        assert!(rate > 0.9 * before, "{what}: {rate:.2} rounds/s, {before:.2} when all was well");
        before = rate;
    }
}
