//! The store as a whole, against files of all kinds and a plain model.

use super::*;
use crate::types::{Kind, ReceiptWaiter, RecordId, Stored};

mod damage;
mod faults;
mod limits;
mod live;
mod loss;
mod model;
mod offline;
mod sizes;

/// Small segments, so that everything happens often.
pub(super) fn small() -> Config {
    Config {
        commit_interval: Duration::from_millis(1),
        segment_bytes: 64 << 10,
        segment_slots: 8,
        snapshot_step: 100 << 10,
        ..Config::default()
    }
}

pub(super) fn record(kind: Kind, n: u64) -> Record {
    Record {
        id: RecordId::of(&[&n.to_le_bytes()]),
        kind,
        subject: "press-04".into(),
        at: Time(n as i64),
        data: format!("{{\"n\":{n}}}"),
    }
}

fn open(config: &Config, dir: &Path) -> (Store, Recovered) {
    Store::open(config, dir, &["cloud"], Shared::new()).unwrap()
}

/// In memory where there is room for it: syncs cost nothing there, and these tests do not cut the
/// power.
fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Sends a commit and waits until it is durable.
fn commit(store: &Store, commit: Commit) {
    send(store, commit).blocking_recv().unwrap();
}

fn send(store: &Store, mut commit: Commit) -> ReceiptWaiter {
    let (receipt, waiter) = Receipt::new();
    commit.receipts.push(receipt);
    store.sender().blocking_send(commit).unwrap();
    waiter
}

/// A snapshot of one part.
fn whole(bytes: impl Into<Vec<u8>>) -> Option<Snapshot> {
    Some(Snapshot::whole(bytes.into()))
}

/// The bytes of a snapshot of one part.
fn whole_of(recovered: &Recovered) -> Option<&[u8]> {
    recovered.checkpoint.as_ref().and_then(RecoveredSnapshot::whole)
}

/// Commits one record with its entry.
fn commit_one(store: &Store, kind: Kind, n: u64) {
    let entry = Some(n.to_le_bytes().to_vec());
    commit(store, Commit { entry, records: vec![record(kind, n)], first_ordinal: n, ..Commit::default() });
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Polls until it holds; fails after a while.
fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn numbers(records: &[Stored]) -> Vec<u64> {
    records.iter().map(|s| s.record.at.0 as u64).collect()
}

fn drain(outbox: &Outbox, step: usize) -> Vec<Stored> {
    let mut all = Vec::new();
    loop {
        let some = outbox.read(step, usize::MAX).unwrap();
        if some.is_empty() {
            return all;
        }
        outbox.ack(&some);
        all.extend(some);
    }
}

#[test]
fn what_is_committed_is_read_acknowledged_and_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(recovered.checkpoint, None);
    assert_eq!(recovered.next_ordinal, 0);
    let outbox = store.outbox("cloud").unwrap();
    for n in 0..50 {
        let kind = if n % 10 == 3 { Kind::Alarm } else { Kind::Verdict };
        let entry = Some(vec![n as u8; 100]);
        commit(&store, Commit { entry, records: vec![record(kind, n)], first_ordinal: n, ..Commit::default() });
    }
    assert_eq!(outbox.depth().0, 50);
    let first = outbox.read(3, usize::MAX).unwrap();
    assert_eq!(numbers(&first), [3, 13, 23]);
    outbox.ack(&first[..2]);
    assert_eq!(numbers(&outbox.read(10, usize::MAX).unwrap()), [23, 33, 43]);
    let rest = drain(&outbox, 7);
    assert_eq!(rest.len(), 48);
    assert_eq!(outbox.depth(), (0, 0));
    let mut sequences: Vec<u64> = first[..2].iter().chain(&rest).map(|s| s.sequence).collect();
    sequences.sort_unstable();
    assert_eq!(sequences, (1..=50).collect::<Vec<_>>());
    store.close().unwrap();
}

#[test]
fn settings_are_read_and_mistakes_told() {
    let read = |text: &str| {
        let document = crate::settings::Document::parse(text, Default::default());
        let config = Config::read(&document.root());
        (config, document.into_problems().into_iter().map(|p| p.message).collect::<Vec<_>>())
    };
    assert_eq!(read(""), (Config::default(), vec![]));
    let (config, problems) = read(
        "dead_letter_max_bytes = \"8MiB\"\nrefused_max_bytes = \"1GiB\"\nmax_bytes = \"1GiB\"\nmax_age = \"3d\"\ncommit_interval = \"50ms\"\nwhen_full = \"drop_oldest\"",
    );
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!((config.max_bytes, config.max_age), (1 << 30, Duration::from_hours(72)));
    assert_eq!((config.dead_letter_max_bytes, config.refused_max_bytes), (8 << 20, 1 << 30));
    assert_eq!(config.commit_interval, Duration::from_millis(50));
    let (_, problems) =
        read("max_bytes = \"1MiB\"\nmax_age = \"1s\"\ncommit_interval = \"1m\"\nwhen_full = \"drop_oldst\"");
    insta::assert_snapshot!(problems.join("\n"), @r#"
    max_bytes: is less than 64MiB, which the segments in use alone can take
    max_age: is less than a minute
    commit_interval: is more than 10s; brokers would wait that long for each answer
    when_full: "drop_oldst" is not one of drop_oldest; did you mean `drop_oldest`?
    "#);
}
