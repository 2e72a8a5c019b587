//! The store against a plain append file, in the same run and on the same disk: groups of
//! 512 × 256 bytes, each made durable. Only the ratio means anything; machines differ. Then a backlog:
//! how long the store takes to open with it after a crash, how fast it drains, what is left on disk.
//! `cargo bench --bench store [-- SECONDS [DIR [BACKLOG]]]`
//!
//! Write amplification is what the kernel says this process has caused to be written (`write_bytes` in
//! /proc/self/io: whole pages, sled's and ours, not the file system's own) over the bytes of the records.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use andon::metrics::Shared;
use andon::store::{Commit, Config, Store};
use andon::types::{Kind, Receipt, ReceiptWaiter, Record, RecordId, Time};

const GROUP: usize = 512;
const RECORD: usize = 256;
/// Groups on their way at a time.
const AHEAD: usize = 4;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let time = Duration::from_secs_f64(words.first().map_or(Ok(2.0), |s| s.parse())?);
    let base = words.get(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(base)?;
    let before = written();
    let plain = append(&dir.path().join("plain"), time)?;
    let amplified = (written() - before) as f64 / (plain * time.as_secs_f64() * RECORD as f64);
    println!("{:<34} {plain:>12.0} records/s         {amplified:>5.2} written per byte", "append + fdatasync");
    let journal = |n: u64, _: &[String]| Commit { entry: Some(noise(n)), ..Commit::default() };
    let records = |n: u64, data: &[String]| Commit {
        records: data.iter().enumerate().map(|(i, d)| record(n * GROUP as u64 + i as u64, d)).collect(),
        first_ordinal: n * GROUP as u64,
        ..Commit::default()
    };
    run("journal, 128 KiB entries", &dir.path().join("journal"), time, plain, journal)?;
    run("routine, 512 verdicts", &dir.path().join("routine"), time, plain, records)?;
    backlog(words.get(2).map_or(Ok(1_000_000), |s| s.parse())?, &dir.path().join("backlog"))
}

/// So many verdicts that nobody takes; then a crash, a start, and a sink that takes all.
fn backlog(n: u64, dir: &Path) -> Outcome<()> {
    std::fs::create_dir(dir)?;
    let config = Config { max_bytes: 64 << 30, ..Config::default() };
    let (store, _) = Store::open(&config, dir, &["cloud"], Shared::new())?;
    let data: Vec<String> = (0..GROUP).map(|_| verdict()).collect();
    let (start, mut last) = (Instant::now(), None);
    for first_ordinal in (0..n).step_by(GROUP) {
        let records = (first_ordinal..n).zip(&data).map(|(i, d)| record(i, d)).collect();
        let (receipt, waiter) = Receipt::new();
        store.sender().blocking_send(Commit {
            records,
            first_ordinal,
            receipts: vec![receipt],
            ..Commit::default()
        })?;
        last = Some(waiter);
    }
    last.into_iter().try_for_each(ReceiptWaiter::blocking_recv)?;
    let (rate, rss) = (n as f64 / start.elapsed().as_secs_f64(), rss_mb());
    println!("{:<34} {rate:>12.0} records/s         RSS {rss} MB", format!("backlog of {n} verdicts"));
    drop(store);
    let start = Instant::now();
    let (store, _) = Store::open(&config, dir, &["cloud"], Shared::new())?;
    println!("{:<34} {:>12.1} ms", "  opening it after a crash", start.elapsed().as_secs_f64() * 1e3);
    let outbox = store.outbox("cloud").ok_or("no such sink")?.live_first();
    let (start, mut taken) = (Instant::now(), 0);
    while taken < n {
        let some = outbox.read(4_096, 8 << 20)?;
        outbox.ack(&some);
        taken += some.len() as u64;
    }
    let rate = n as f64 / start.elapsed().as_secs_f64();
    println!("{:<34} {rate:>12.0} records/s         RSS {} MB", "  draining it", rss_mb());
    std::thread::sleep(Duration::from_secs(1));
    let disk: u64 = store.status().lanes.values().map(|l| l.disk_bytes).sum();
    println!("{:<34} {:>12.1} MiB", "  left on disk", disk as f64 / f64::from(1 << 20));
    store.close()?;
    Ok(())
}

/// Bytes this process has caused to be written to the medium.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|l| l.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0)
}

fn run(name: &str, dir: &Path, time: Duration, plain: f64, commit: impl Fn(u64, &[String]) -> Commit) -> Outcome<()> {
    std::fs::create_dir(dir)?;
    let (store, _) = Store::open(&Config::default(), dir, &[], Shared::new())?;
    let data: Vec<String> = (0..GROUP).map(|_| verdict()).collect();
    let mut ahead: VecDeque<ReceiptWaiter> = VecDeque::new();
    let (start, mut groups, before) = (Instant::now(), 0, written());
    while start.elapsed() < time {
        let (receipt, waiter) = Receipt::new();
        store.sender().blocking_send(Commit { receipts: vec![receipt], ..commit(groups, &data) })?;
        ahead.push_back(waiter);
        groups += 1;
        if ahead.len() > AHEAD
            && let Some(oldest) = ahead.pop_front()
        {
            oldest.blocking_recv()?;
        }
    }
    for waiter in ahead {
        waiter.blocking_recv()?;
    }
    let rate = (groups as usize * GROUP) as f64 / start.elapsed().as_secs_f64();
    let amplified = (written() - before) as f64 / (groups as usize * GROUP * RECORD) as f64;
    let ratio = rate / plain;
    println!("{name:<34} {rate:>12.0} records/s  {ratio:.2}x  {amplified:>5.2} written per byte  RSS {} MB", rss_mb());
    store.close()?;
    Ok(())
}

/// The same bytes with a checksum, one `fdatasync` for each group.
fn append(path: &Path, time: Duration) -> Outcome<f64> {
    let mut file = File::create(path)?;
    let (start, mut groups) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        let group = noise(groups);
        file.write_all(&crc32fast::hash(&group).to_le_bytes())?;
        file.write_all(&group)?;
        file.sync_data()?;
        groups += 1;
    }
    Ok((groups as usize * GROUP) as f64 / start.elapsed().as_secs_f64())
}

/// Bytes that do not compress.
fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; GROUP * RECORD];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn verdict() -> String {
    let score = fastrand::f64();
    let head =
        format!("{{\"machine\":\"press-04\",\"anomaly_score\":{score},\"p_value\":{},\"pad\":\"", fastrand::f64());
    let padding = RECORD.saturating_sub(head.len() + 2);
    format!("{head}{}\"}}", "bearing-ae ".repeat(24).chars().take(padding).collect::<String>())
}

fn record(n: u64, data: &str) -> Record {
    let id = RecordId::of(&[&n.to_le_bytes()]);
    Record { id, kind: Kind::Verdict, subject: "press-04".into(), at: Time(n as i64), data: data.to_owned() }
}

fn rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024
}
