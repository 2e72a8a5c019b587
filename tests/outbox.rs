//! `andon outbox` on a real store, and a store as the first version wrote it: both are what a person
//! at a gateway, or a newer agent, finds on disk.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use andon::agent::input::{Group, Input};
use andon::metrics::Shared;
use andon::store::{Commit, Config, DeadLetter, Offline, OpenError, Outbox, Snapshot, Store};
use andon::types::{Kind, Name, Reading, Record, RecordId, Reject, Time};
use serde_json::Value;

#[path = "support/mod.rs"]
mod support;

use support::daemon::{andon, repository, until};

/// 2025-01-01T00:00:00Z.
const EPOCH: i64 = 1_735_689_600_000_000_000;
const RECORDS: u64 = 60;
/// How many verdicts the cloud has taken.
const DELIVERED: usize = 10;

/// Small segments, so that there are sealed ones.
fn small() -> Config {
    Config { segment_slots: 24, segment_bytes: 64 << 10, ..Config::default() }
}

fn time(n: u64) -> Time {
    Time(EPOCH + n as i64 * 1_000_000_000)
}

/// Every tenth is an alarm, the rest are verdicts.
fn record(n: u64) -> Record {
    Record {
        id: RecordId::of(&[b"sample", &n.to_le_bytes()]),
        kind: if n.is_multiple_of(10) { Kind::Alarm } else { Kind::Verdict },
        subject: "pump-1".into(),
        at: time(n),
        data: format!("{{\"number\":{n},\"machine\":\"pump-1\"}}"),
    }
}

fn entry(n: u64) -> Group {
    let reading = Reading::good("pump-1".into(), Name::from("flow"), time(n), n as f64 / 2.0);
    Group { inputs: vec![Input::Readings(time(n), vec![reading])] }
}

fn open(dir: &Path) -> Store {
    Store::open(&small(), dir, &["cloud"], Shared::new()).unwrap().0
}

fn verdicts(outbox: &Outbox, most: usize) -> Vec<andon::types::Stored> {
    let mut out = outbox.read(most, 1 << 20).unwrap();
    if out.first().is_some_and(|s| s.record.kind != Kind::Verdict) {
        outbox.ack(&out);
        out = outbox.read(most, 1 << 20).unwrap();
    }
    out
}

/// A store with all that can be in one: entries, a checkpoint, records delivered and not, and both
/// kinds of dead letters.
fn fill(dir: &Path) {
    let store = open(dir);
    for n in 0..RECORDS {
        let payload = |payload: &[u8]| Reject {
            at: time(n),
            source: "shop".into(),
            origin: "plant/pump-1/flow".into(),
            reason: "not JSON".into(),
            payload: payload.to_vec(),
        };
        let commit = Commit {
            entry: Some(entry(n).encode()),
            checkpoint: (n == RECORDS / 2).then(|| Snapshot::whole(b"a checkpoint".to_vec())),
            records: vec![record(n)],
            first_ordinal: n,
            rejects: if n == 7 { vec![payload(b"{oops")] } else { Vec::new() },
            receipts: Vec::new(),
        };
        store.sender().blocking_send(commit).unwrap();
        until("it is on disk", || store.status().lanes["journal"].records > n);
    }
    let outbox = store.outbox("cloud").unwrap();
    until("it can be read", || outbox.depth().0 == RECORDS);
    let taken = verdicts(&outbox, DELIVERED);
    outbox.ack(&taken);
    let refused = verdicts(&outbox, 1).remove(0);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(outbox.dead_letter(refused, "400: no such machine")).unwrap();
    store.close().unwrap();
}

fn run(args: &[&str], dir: &Path) -> (i32, String, String) {
    let out = andon(["outbox"].iter().chain(args).map(|a| a.to_string()).chain([dir.display().to_string()]));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

fn lines(args: &[&str], dir: &Path) -> Vec<Value> {
    let (code, out, err) = run(args, dir);
    assert_eq!(code, 0, "{err}");
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn numbers(events: &[Value]) -> Vec<u64> {
    events.iter().map(|e| e["data"]["number"].as_u64().unwrap()).collect()
}

#[test]
fn what_waits_is_shown_exported_and_sent_again() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    fill(dir);
    let stat = &lines(&["stat", "--json"], dir)[0];
    assert_eq!(stat["sinks"]["cloud"]["routine"], 54 - DELIVERED as u64 - 1);
    assert_eq!(stat["lanes"]["dead"]["records"], 1);
    assert_eq!(stat["lanes"]["refused"]["records"], 1);
    let (_, text, _) = run(&["stat"], dir);
    assert!(text.contains("sink cloud: 0 alarms and the like, 43 verdicts to deliver"), "{text}");

    let next = lines(&["peek", "--sink", "cloud", "-n", "3"], dir);
    assert_eq!(numbers(&next), [13, 14, 15], "ten were taken, one refused");
    assert_eq!(next[0]["type"], "io.andon.verdict.v1");
    assert_eq!(next[0]["id"], record(13).id.to_string());
    assert_eq!(lines(&["peek", "--dead"], dir)[0]["payload"], "{oops");

    let all = lines(&["export"], dir);
    let mut seen = numbers(&all);
    seen.sort_unstable();
    assert_eq!(seen, (0..RECORDS).collect::<Vec<_>>());
    let file = dir.join("waiting.ndjson");
    let (code, said, _) = run(&["export", "--sink", "cloud", "-o", file.to_str().unwrap()], dir);
    assert_eq!((code, said.starts_with("43 lines in")), (0, true), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count(), 43);
    let (_, csv, _) = run(&["export", "--readings"], dir);
    assert_eq!(csv.lines().count() as u64, RECORDS + 1);
    assert!(
        csv.starts_with("timestamp,machine,signal,value,quality\n2025-01-01T00:00:00.000Z,pump-1,flow,0,good\n"),
        "{csv}"
    );

    let (code, said, err) = run(&["requeue"], dir);
    assert_eq!((code, said.trim()), (0, "1 records wait to be sent once more"), "{err}");
    assert_eq!(lines(&["peek", "--sink", "cloud", "-n", "100"], dir).len(), 44);
    let (_, said, _) = run(&["requeue"], dir);
    assert_eq!(said.trim(), "0 records wait to be sent once more", "each goes once");
}

#[test]
fn what_cannot_be_shown_is_said() {
    let place = tempfile::tempdir().unwrap();
    let (code, _, err) = run(&["stat"], place.path());
    assert_eq!(code, 1);
    assert!(err.contains("there is no store in"), "{err}");
    let store = open(place.path());
    let (code, _, err) = run(&["requeue"], place.path());
    assert_eq!(code, 1);
    assert!(err.contains("stop the agent first") && err.contains(&std::process::id().to_string()), "{err}");
    store.close().unwrap();
    let (code, _, err) = run(&["peek", "--sink", "clod"], place.path());
    assert_eq!(code, 1);
    assert!(err.contains("there is no sink \"clod\"; this store has cloud"), "{err}");
}

/// A hole in the middle of a segment: it is set aside whole when the store is opened, and what can be
/// read of it can be got out.
#[test]
fn what_is_left_of_a_damaged_segment_can_be_exported() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    fill(dir);
    let before = lines(&["export"], dir).len();
    let segments = dir.join("queue").join("routine");
    let mut files: Vec<PathBuf> = fs::read_dir(&segments).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with("seg-"));
    files.sort();
    let db = files[0].join("db");
    let bytes = fs::read(&db).unwrap();
    let blocks: Vec<usize> = bytes.windows(7).enumerate().filter(|(_, w)| w == b"\xB7andonb").map(|(i, _)| i).collect();
    OpenOptions::new().write(true).open(&db).unwrap().write_all_at(&[0; 40], blocks[3] as u64 + 20).unwrap();
    let store = open(dir);
    let outbox = store.outbox("cloud").unwrap();
    until("all is read or told", || {
        let some = outbox.read(100, 1 << 20).unwrap();
        outbox.ack(&some);
        some.is_empty() && store.status().quarantined > 0
    });
    store.close().unwrap();
    let stat = &lines(&["stat", "--json"], dir)[0];
    let salvage = lines(&["export", "--damaged"], dir);
    assert_eq!(stat["damaged"], salvage.len());
    let left = lines(&["export"], dir).into_iter().filter(|e| e["type"] != "io.andon.gap.v1").count();
    println!("{before} records, {left} outside, {} got out of the damaged segment", salvage.len());
    assert!(!salvage.is_empty());
    assert!(left + salvage.len() >= before - 1, "no more is lost than was overwritten");
}

/// Where the kept store of this version of the format is.
fn kept(format: u32) -> PathBuf {
    repository(&format!("tests/data/store-format-{format}.tar.gz"))
}

/// Made once, by `cargo test --test outbox -- --ignored keep`, when the format changes.
#[test]
#[ignore = "makes the sample that the next test reads"]
fn keep_a_sample_of_the_format() {
    let place = tempfile::tempdir().unwrap();
    fill(place.path());
    let mut tar = Command::new("tar");
    tar.args(["--sparse", "-czf"]).arg(kept(1)).arg("-C").arg(place.path()).arg("queue");
    assert!(tar.status().unwrap().success());
}

#[test]
fn a_store_of_format_1_opens() {
    let place = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    assert!(tar.arg("-xzf").arg(kept(1)).arg("-C").arg(place.path()).status().unwrap().success());
    let (store, recovered) = Store::open(&small(), place.path(), &["cloud"], Shared::new()).unwrap();
    assert_eq!(recovered.checkpoint.as_ref().and_then(|c| c.whole()), Some(&b"a checkpoint"[..]));
    assert_eq!((recovered.checkpoint_ordinal, recovered.next_ordinal), (RECORDS / 2 + 1, RECORDS));
    let replay: Vec<Group> = recovered.entries.map(|e| Group::decode(&e.unwrap().data).unwrap()).collect();
    assert_eq!(replay, (RECORDS / 2 + 1..RECORDS).map(entry).collect::<Vec<_>>());
    assert!(recovered.quarantined.is_empty(), "{:?}", recovered.quarantined);
    let waiting = store.outbox("cloud").unwrap().read(1000, 1 << 20).unwrap();
    let expected: Vec<Record> = (13..RECORDS).map(record).filter(|r| r.kind == Kind::Verdict).collect();
    assert_eq!(waiting.into_iter().map(|s| s.record).collect::<Vec<_>>(), expected);
    let letters: Vec<DeadLetter> = store.dead_letters().map(|l| l.unwrap().1).collect();
    assert!(matches!(&letters[0], DeadLetter::Payload(reject) if reject.payload == b"{oops"), "{letters:?}");
    assert!(matches!(&letters[1], DeadLetter::Record { record: r, .. } if *r == record(12)), "{letters:?}");
    assert_eq!(store.requeue().unwrap(), 1, "format 1 keeps it among the payloads");
    store.close().unwrap();
    let journal = Offline::look(place.path()).unwrap().journal_since(Time(i64::MIN));
    assert_eq!(journal.count() as u64, RECORDS, "and all of the journal is there to learn from");
}

#[test]
fn a_store_of_the_future_is_refused() {
    let place = tempfile::tempdir().unwrap();
    open(place.path()).close().unwrap();
    fs::write(place.path().join("queue/format"), "3\n").unwrap();
    let Err(refused) = Store::open(&small(), place.path(), &["cloud"], Shared::new()) else { panic!("it was taken") };
    assert!(matches!(refused, OpenError::NewerFormat { found: 3, known: 2 }));
    assert!(refused.to_string().contains("install the newer version again"), "{refused}");
}
