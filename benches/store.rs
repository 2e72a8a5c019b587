//! The store against a plain append file, in the same run and on the same disk: groups of
//! 512 × 256 bytes, each made durable. Only the ratio means anything; machines differ.
//! `cargo bench --bench store [-- SECONDS [DIR]]`

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
    let plain = append(&dir.path().join("plain"), time)?;
    println!("{:<34} {plain:>12.0} records/s", "append + fdatasync");
    let journal = |n: u64, _: &[String]| Commit { entry: Some(noise(n)), ..Commit::default() };
    let records = |n: u64, data: &[String]| Commit {
        records: data.iter().enumerate().map(|(i, d)| record(n * GROUP as u64 + i as u64, d)).collect(),
        first_ordinal: n * GROUP as u64,
        ..Commit::default()
    };
    run("journal, 128 KiB entries", &dir.path().join("journal"), time, plain, journal)?;
    run("routine, 512 verdicts", &dir.path().join("routine"), time, plain, records)?;
    Ok(())
}

fn run(name: &str, dir: &Path, time: Duration, plain: f64, commit: impl Fn(u64, &[String]) -> Commit) -> Outcome<()> {
    std::fs::create_dir(dir)?;
    let (store, _) = Store::open(&Config::default(), dir, &[], Shared::new())?;
    let data: Vec<String> = (0..GROUP).map(|_| verdict()).collect();
    let mut ahead: VecDeque<ReceiptWaiter> = VecDeque::new();
    let (start, mut groups) = (Instant::now(), 0);
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
    println!("{name:<34} {rate:>12.0} records/s  {:.2}x   RSS {} MB", rate / plain, rss_mb());
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
