//! Limits on the whole store: what is given up is told, to the record.

use super::*;

/// Segments of a few blocks and room for a few segments.
fn tight() -> Config {
    Config { max_bytes: 800 << 10, ..small() }
}

#[test]
fn what_is_given_up_for_room_is_told_to_the_record() {
    let dir = fast_dir();
    let (store, _) = open(&tight(), dir.path());
    let outbox = store.outbox("cloud").unwrap();
    let total = 400;
    for n in 0..total {
        let kind = if n % 20 == 0 { Kind::Alarm } else { Kind::Verdict };
        let checkpoint = (n % 10 == 0).then(|| Snapshot::whole(b"state".to_vec()));
        let entry = Some(vec![0; 10]);
        commit(
            &store,
            Commit { entry, checkpoint, records: vec![record(kind, n)], first_ordinal: n, ..Commit::default() },
        );
    }
    // Told first, given up next; then nothing changes any more.
    let looks = crate::metrics::lock(&store.figures).looks;
    wait_for("the disk is within the limit", || {
        let figures = crate::metrics::lock(&store.figures).clone();
        figures.looks > looks + 1 && figures.disk.iter().sum::<u64>() <= tight().max_bytes
    });
    let (mut alarms, mut verdicts, mut lost) = (0, Vec::new(), 0);
    wait_for("all is delivered or told", || {
        for stored in drain(&outbox, 50) {
            match stored.record.kind {
                Kind::Gap => {
                    let (reason, lane, records) = damage::gap_of(&stored.record);
                    assert_eq!((reason.as_str(), lane.as_str()), ("max_bytes", "routine"));
                    lost += records;
                }
                Kind::Alarm => alarms += 1,
                _ => verdicts.push(stored.record.at.0 as u64),
            }
        }
        alarms + verdicts.len() as u64 + lost >= total
    });
    assert_eq!(alarms, 20, "verdicts go before alarms");
    assert!(lost > 0);
    assert_eq!(alarms + verdicts.len() as u64 + lost, total);
    assert!(verdicts.is_sorted());
    assert_eq!(store.status().lanes["routine"].dropped, lost);
    store.close().unwrap();
}

#[test]
fn what_is_too_old_is_given_up_and_told() {
    let dir = fast_dir();
    let config = Config { max_age: Duration::from_millis(1500), ..small() };
    let (store, _) = open(&config, dir.path());
    for n in 0..20 {
        commit_one(&store, Kind::Verdict, n);
    }
    let outbox = store.outbox("cloud").unwrap();
    let mut lost = 0;
    wait_for("all is given up", || {
        for stored in outbox.read(50, usize::MAX).unwrap().iter().filter(|s| s.record.kind == Kind::Gap) {
            lost += damage::gap_of(&stored.record).2;
            outbox.ack(std::slice::from_ref(stored));
        }
        lost >= 20
    });
    assert_eq!(lost, 20);
    assert_eq!(outbox.depths()[1].0, 0);
    let before = store.status();
    assert_eq!(before.lanes["journal"].records, 20, "there is no checkpoint: the journal keeps all");
    store.close().unwrap();
    // Sequences go on although the lane is empty.
    let (store, recovered) = open(&config, dir.path());
    assert_eq!(recovered.entries.count(), 20);
    commit_one(&store, Kind::Alarm, 20);
    let next = drain(&store.outbox("cloud").unwrap(), 10);
    assert!(next.iter().all(|s| s.sequence > 20), "{next:?}");
    store.close().unwrap();
}

#[test]
fn the_journal_forgets_only_what_a_checkpoint_knows() {
    let dir = fast_dir();
    let config = Config { max_bytes: 2 << 20, ..small() };
    let (store, _) = open(&config, dir.path());
    let sender = store.sender();
    let entry = |n: u64| Some(format!("{n} {}", noise(20_000)).into_bytes());
    for n in 0..100 {
        commit(&store, Commit { entry: entry(n), ..Commit::default() });
    }
    assert_eq!(store.status().lanes["journal"].records, 100);
    assert!(sender.wants_checkpoint());
    commit(&store, Commit { entry: entry(100), checkpoint: whole(*b"state"), ..Commit::default() });
    commit(&store, Commit { entry: entry(101), ..Commit::default() });
    assert!(!sender.wants_checkpoint());
    wait_for("the journal shrinks", || store.status().lanes["journal"].disk_bytes <= 512 << 10);
    store.close().unwrap();
    let (store, recovered) = open(&config, dir.path());
    assert_eq!(whole_of(&recovered), Some(&b"state"[..]));
    let entries: Vec<Vec<u8>> = recovered.entries.map(|e| e.unwrap().data).collect();
    assert!(entries.len() == 1 && entries[0].starts_with(b"101 "));
    store.close().unwrap();
}

/// Text that does not compress well.
fn noise(len: usize) -> String {
    (0..len).map(|_| fastrand::alphanumeric()).collect()
}

#[test]
fn dead_letters_are_capped() {
    let dir = fast_dir();
    let (store, _) = open(&Config { segment_bytes: 2 << 20, ..small() }, dir.path());
    let reject = |n: i64| Reject {
        at: Time(n),
        source: "shop".into(),
        origin: "factory/x".into(),
        reason: "not JSON".into(),
        payload: noise(4096).into_bytes(),
    };
    for n in 0..60 {
        let rejects = (0..100).map(|i| reject(n * 100 + i)).collect();
        commit(&store, Commit { rejects, ..Commit::default() });
    }
    wait_for("old dead letters go, and newer ones stay", || {
        let dead = &store.status().lanes["dead"];
        (1..=16 << 20).contains(&dead.disk_bytes) && (2000..6000).contains(&dead.records)
    });
    store.close().unwrap();
}

#[test]
fn without_sinks_records_are_history_until_the_limits_come() {
    let dir = fast_dir();
    let config = Config { max_age: Duration::from_secs(1), ..small() };
    let (store, _) = Store::open(&config, dir.path(), &[], Shared::new()).unwrap();
    for n in 0..30 {
        commit_one(&store, Kind::Verdict, n);
    }
    assert_eq!(store.status().lanes["routine"].records, 30);
    wait_for("they are too old", || store.status().lanes["routine"].records == 0);
    assert_eq!(store.status().lanes["routine"].dropped, 0, "nobody missed them");
    assert_eq!(store.status().lanes["priority"].records, 0, "so there is no gap");
    store.close().unwrap();
}

#[test]
fn a_removed_sink_is_forgotten_and_a_new_one_begins_with_the_oldest_still_there() {
    let dir = fast_dir();
    let open = |sinks: &[&str]| Store::open(&small(), dir.path(), sinks, Shared::new()).unwrap().0;
    let store = open(&["cloud", "archive"]);
    for n in 0..200 {
        commit_one(&store, Kind::Verdict, n);
    }
    assert_eq!(drain(&store.outbox("cloud").unwrap(), 50).len(), 200);
    assert_eq!(store.status().lanes["routine"].records, 200, "kept for the other one");
    let oldest = |store: &Store| store.status().lanes["routine"].oldest;
    let before = oldest(&store);
    store.close().unwrap();
    let store = open(&["cloud"]);
    wait_for("what waited for it alone goes", || oldest(&store) != before);
    assert_eq!(store.status().lanes["routine"].dropped, 0, "nobody misses it");
    store.close().unwrap();
    let store = open(&["cloud", "archive"]);
    let again = numbers(&drain(&store.outbox("archive").unwrap(), 50));
    assert!(again.len() < 200 && again.last() == Some(&199), "{again:?}");
    store.close().unwrap();
}
