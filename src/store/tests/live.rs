//! Live records before a backlog, and the backlog all the same.

use std::collections::BTreeSet;

use super::*;

const AFTER: u64 = 10;

fn config() -> Config {
    Config { backlog_after: AFTER, ..small() }
}

fn verdicts(store: &Store, numbers: std::ops::Range<u64>) {
    let waiters: Vec<_> = numbers
        .map(|n| {
            let entry = Some(n.to_le_bytes().to_vec());
            let commit =
                Commit { entry, records: vec![record(Kind::Verdict, n)], first_ordinal: n, ..Commit::default() };
            send(store, commit)
        })
        .collect();
    waiters.into_iter().for_each(|w| w.blocking_recv().unwrap());
}

/// Reads, and acknowledges so many of it.
fn take(outbox: &Outbox, max: usize, acked: usize) -> Vec<u64> {
    let read = outbox.read(max, usize::MAX).unwrap();
    outbox.ack(&read[..acked.min(read.len())]);
    numbers(&read)
}

#[test]
fn what_comes_live_goes_before_a_backlog_and_alarms_before_both() {
    let dir = fast_dir();
    let (store, _) = open(&config(), dir.path());
    let outbox = store.outbox("cloud").unwrap().live_first();
    verdicts(&store, 0..100);
    assert_eq!(take(&outbox, 8, 0), (0..8).collect::<Vec<_>>(), "nothing has come since");
    verdicts(&store, 100..103);
    assert_eq!(take(&outbox, 8, 4), [100, 101, 102, 0, 1, 2, 3, 4]);
    assert_eq!(outbox.depth().0, 99);
    verdicts(&store, 103..107);
    commit_one(&store, Kind::Alarm, 107);
    assert_eq!(take(&outbox, 8, 8), [107]);
    assert_eq!(take(&outbox, 4, 4), [103, 104, 105, 1], "a quarter at least is the backlog's");
    assert_eq!(take(&outbox, 4, 4), [106, 2, 3, 4]);
    // By count also where only one is asked for.
    verdicts(&store, 108..116);
    let one_by_one: Vec<u64> = (0..8).flat_map(|_| take(&outbox, 1, 1)).collect();
    assert_eq!(one_by_one.iter().filter(|n| **n < 100).count(), 2, "{one_by_one:?}");
    let rest = numbers(&drain(&outbox, 7));
    assert_eq!(rest.len(), 116 - 4 - 1 - 4 - 4 - 8, "{rest:?}");
    assert_eq!(outbox.depth().0, 0);
    verdicts(&store, 116..120);
    assert_eq!(take(&outbox, 9, 9), [116, 117, 118, 119], "and then it is as before");
    store.close().unwrap();
}

#[test]
fn backlogs_of_several_outages_wait_side_by_side_and_are_bounded() {
    let dir = fast_dir();
    let (mut store, _) = open(&config(), dir.path());
    let (mut next, mut seen) = (0, BTreeSet::new());
    for outage in 0..place::MAX_AHEAD as u64 + 3 {
        verdicts(&store, next..next + AFTER + 5);
        next += AFTER + 5;
        // The next outage comes before the backlog of this one is made up for.
        let outbox = store.outbox("cloud").unwrap().live_first();
        take(&outbox, 1, 0);
        verdicts(&store, next..next + 2);
        next += 2;
        let read = take(&outbox, 3, 3);
        let live = outage < place::MAX_AHEAD as u64;
        assert_eq!(read[..2] == [next - 2, next - 1], live, "{outage}: {read:?}");
        assert!(read.iter().all(|n| seen.insert(*n)), "{outage}: {read:?}");
        if outage % 3 == 1 {
            store.close().unwrap();
            store = open(&config(), dir.path()).0;
        }
    }
    // Whoever wants them in their order gets the rest of them so.
    let rest = drain(&store.outbox("cloud").unwrap(), 9);
    assert!(rest.is_sorted_by_key(|s| s.sequence));
    assert!(numbers(&rest).into_iter().all(|n| seen.insert(n)));
    assert_eq!(seen.len() as u64, next);
    store.close().unwrap();
}

#[test]
fn what_went_before_a_backlog_takes_no_room_and_is_not_missed_after_a_kill() {
    let dir = fast_dir();
    let (store, _) = open(&config(), dir.path());
    let outbox = store.outbox("cloud").unwrap().live_first();
    verdicts(&store, 0..200);
    take(&outbox, 1, 0);
    for first in (200..500).step_by(3) {
        verdicts(&store, first..first + 3);
        // With the one that the backlog is owed.
        assert_eq!(take(&outbox, 4, 4)[..3], [first, first + 1, first + 2]);
    }
    let waiting = outbox.depth().0;
    assert_eq!(waiting, 100);
    // Of what came later only the segment that is written is there, and perhaps one that was just sealed.
    let later =
        || view::list(&dir.path().join("queue/routine")).unwrap().iter().filter(|(name, _)| *name > 201).count();
    wait_for("what is delivered goes", || later() <= 2);
    assert_eq!((outbox.depth().0, store.status().lanes["routine"].dropped), (waiting, 0));
    wait_for("it is saved", || Offline::look(dir.path()).unwrap().waiting("cloud") == Some([0, waiting]));
    drop(store);
    let (store, _) = open(&config(), dir.path());
    let outbox = store.outbox("cloud").unwrap();
    let rest = drain(&outbox, 9);
    assert!(rest.iter().all(|s| s.record.kind == Kind::Verdict), "a gap is told where nothing is missing");
    assert_eq!(rest.len() as u64, waiting);
    store.close().unwrap();
}

#[test]
fn of_a_backlog_that_is_given_up_each_record_is_told_once() {
    let dir = fast_dir();
    let config = Config { max_bytes: 800 << 10, ..config() };
    let (store, _) = open(&config, dir.path());
    let outbox = store.outbox("cloud").unwrap().live_first();
    let (mut seen, mut lost, total) = (BTreeSet::new(), 0, 900);
    let mut hear = |read: Vec<Stored>| {
        for stored in read {
            if stored.record.kind == Kind::Gap {
                let (reason, lane, records) = damage::gap_of(&stored.record);
                assert_eq!((reason.as_str(), lane.as_str()), ("max_bytes", "routine"));
                lost += records;
            } else {
                assert!(seen.insert(stored.record.at.0 as u64), "twice");
            }
        }
        lost + seen.len() as u64
    };
    for n in 0..total {
        let checkpoint = (n % 10 == 0).then(|| Snapshot::whole(b"state".to_vec()));
        let (entry, records) = (Some(vec![0; 10]), vec![record(Kind::Verdict, n)]);
        commit(&store, Commit { entry, checkpoint, records, first_ordinal: n, ..Commit::default() });
        // Now and then the sink is away for some time.
        if n % 300 >= 150 && n % 6 == 0 {
            let read = outbox.read(8, usize::MAX).unwrap();
            let acked = read[..read.len() - usize::from(n % 5 == 0 && read.len() > 1)].to_vec();
            outbox.ack(&acked);
            hear(acked);
        }
    }
    let mut all = 0;
    wait_for("all is delivered or told", || {
        all = hear(drain(&outbox, 5));
        all >= total
    });
    assert_eq!(all, total);
    assert!(lost > 0);
    assert_eq!(store.status().lanes["routine"].dropped, lost);
    store.close().unwrap();
}
