//! Loss that is told: ends of lanes that are gone, dead letters that are given up, a directory that is
//! not there any more.

use std::fs;

use super::damage::{gap_of, segments};
use super::*;
use crate::metrics::Health;

/// 40 records of each lane, none delivered; the snapshot knows all of them, so no replay makes them again.
fn filled(dir: &Path, with_snapshot: bool) {
    let (store, _) = open(&small(), dir);
    for n in 0..80 {
        commit_one(&store, if n % 2 == 0 { Kind::Alarm } else { Kind::Verdict }, n);
    }
    if with_snapshot {
        commit(&store, Commit { checkpoint: whole(*b"state"), first_ordinal: 80, ..Commit::default() });
    }
    store.close().unwrap();
}

/// Sends what the engine's replay makes, then a fresh entry. Gives the records that are left, without the
/// fresh one, and the gaps as (lane, records).
fn survivors(dir: &Path) -> (usize, Vec<(String, u64)>) {
    let (store, recovered) = open(&small(), dir);
    for entry in recovered.entries.map(Result::unwrap) {
        let n = entry.first_ordinal;
        let kind = if n % 2 == 0 { Kind::Alarm } else { Kind::Verdict };
        commit(&store, Commit { records: vec![record(kind, n)], first_ordinal: n, ..Commit::default() });
    }
    commit_one(&store, Kind::Verdict, recovered.next_ordinal.max(80));
    commit_one(&store, Kind::Verdict, recovered.next_ordinal.max(80) + 1);
    let (mut records, mut gaps) = (Vec::new(), Vec::new());
    for stored in drain(&store.outbox("cloud").unwrap(), 9) {
        match stored.record.kind {
            Kind::Gap => gaps.push(gap_of(&stored.record)),
            _ => records.push(stored.record.at.0),
        }
    }
    assert!(gaps.iter().all(|g| g.0 == "damaged"));
    store.close().unwrap();
    // It is told once.
    let (store, recovered) = open(&small(), dir);
    drop(recovered);
    commit_one(&store, Kind::Verdict, 90);
    let again = drain(&store.outbox("cloud").unwrap(), 9);
    assert!(again.iter().all(|s| s.record.kind != Kind::Gap), "{again:?}");
    store.close().unwrap();
    let mut once = records.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), records.len(), "delivered twice");
    (records.len() - 2, gaps.into_iter().map(|(_, lane, records)| (lane, records)).collect())
}

fn cut_active(dir: &Path, lane: &str) {
    let active = segments(dir, lane).pop().unwrap();
    fs::OpenOptions::new().write(true).open(slots::data_file(&active)).unwrap().set_len(0).unwrap();
}

#[test]
fn an_active_segment_cut_to_zero_is_told_to_the_record() {
    for lane in ["routine", "priority"] {
        let dir = fast_dir();
        filled(dir.path(), true);
        cut_active(dir.path(), lane);
        let (left, gaps) = survivors(dir.path());
        assert_eq!(gaps.len(), 1, "{gaps:?}");
        let lost = gaps[0].1;
        assert!(gaps[0].0 == lane && lost > 0);
        assert_eq!(left as u64 + lost, 80);
    }
}

#[test]
fn what_the_replay_makes_again_is_no_loss() {
    let dir = fast_dir();
    filled(dir.path(), false);
    cut_active(dir.path(), "routine");
    assert_eq!(survivors(dir.path()), (80, vec![]));
}

#[test]
fn a_lane_that_is_gone_is_told() {
    for (lane, lost) in [("routine", 40), ("priority", 40)] {
        let dir = fast_dir();
        filled(dir.path(), true);
        fs::remove_dir_all(dir.path().join("queue").join(lane)).unwrap();
        assert_eq!(survivors(dir.path()), (40, vec![(lane.to_owned(), lost)]));
    }
    let dir = fast_dir();
    filled(dir.path(), true);
    fs::remove_dir_all(dir.path().join("queue/journal")).unwrap();
    let (left, gaps) = survivors(dir.path());
    // 80 entries, and the three items of the snapshot.
    assert_eq!((left, gaps), (80, vec![("journal".to_owned(), 83)]));
}

#[test]
fn what_was_delivered_is_not_missed() {
    let dir = fast_dir();
    filled(dir.path(), true);
    let (store, _) = open(&small(), dir.path());
    assert_eq!(drain(&store.outbox("cloud").unwrap(), 9).len(), 80);
    store.close().unwrap();
    for lane in ["routine", "priority"] {
        fs::remove_dir_all(dir.path().join("queue").join(lane)).unwrap();
    }
    assert_eq!(survivors(dir.path()), (0, vec![]));
}

/// How far the lanes have come is saved while nothing is delivered, and without a clean end.
#[test]
fn a_kill_does_not_hide_what_is_cut_afterwards() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    (0..40).for_each(|n| commit_one(&store, Kind::Verdict, n));
    commit(&store, Commit { checkpoint: whole(*b"state"), first_ordinal: 40, ..Commit::default() });
    wait_for("the end of the lane is saved", || {
        let saved = cursors::CursorFile::look(&dir.path().join("queue/cursors")).unwrap().unwrap_or_default();
        saved.tips.get("routine").is_some_and(|t| t.position == 40) && !store.sender().is_writing_checkpoint()
    });
    drop(store);
    cut_active(dir.path(), "routine");
    let (store, _) = open(&small(), dir.path());
    commit_one(&store, Kind::Verdict, 40);
    let read = drain(&store.outbox("cloud").unwrap(), 9);
    let lost: u64 = read.iter().filter(|s| s.record.kind == Kind::Gap).map(|s| gap_of(&s.record).2).sum();
    assert!(lost > 0);
    assert_eq!(read.iter().filter(|s| s.record.kind == Kind::Verdict).count() as u64 + lost, 41);
    store.close().unwrap();
}

fn reject(n: i64) -> Reject {
    let payload = (0..4096).map(|_| fastrand::u8(..)).collect();
    Reject { at: Time(n), source: "shop".into(), origin: "factory/x".into(), reason: "not JSON".into(), payload }
}

#[test]
fn garbage_does_not_push_out_refused_records_and_what_goes_is_told() {
    let dir = fast_dir();
    let config = Config { dead_letter_max_bytes: 512 << 10, ..small() };
    let (store, _) = open(&config, dir.path());
    let outbox = store.outbox("cloud").unwrap();
    for n in 0..20 {
        commit_one(&store, Kind::Verdict, n);
        let refused = outbox.read(1, 0).unwrap().remove(0);
        block_on(outbox.dead_letter(refused, "422")).unwrap();
    }
    for n in 0..40 {
        let rejects = (0..25).map(|i| reject(n * 25 + i)).collect();
        commit(&store, Commit { rejects, ..Commit::default() });
    }
    let looks = crate::metrics::lock(&store.figures).looks;
    wait_for("the limit holds", || {
        let figures = crate::metrics::lock(&store.figures).clone();
        figures.looks > looks + 1 && figures.disk[LaneId::Dead as usize] <= config.dead_letter_max_bytes
    });
    let mut told = 0;
    wait_for("the garbage is within its limit, and what went is told", || {
        for stored in drain(&outbox, 9) {
            let (reason, lane, letters) = gap_of(&stored.record);
            assert_eq!((reason.as_str(), lane.as_str()), ("max_bytes", "dead"));
            told += letters;
        }
        let dead = &store.status().lanes["dead"];
        dead.disk_bytes <= config.dead_letter_max_bytes && dead.records + told == 1000
    });
    assert!(told > 0);
    assert_eq!(store.status().lanes["dead"].dropped, told);
    assert_eq!(store.status().lanes["refused"].records, 20, "none of these is touched");
    let refused = store.dead_letters().filter(|l| matches!(l, Ok((_, DeadLetter::Record { .. })))).count();
    assert_eq!(refused, 20);
    assert_eq!(store.requeue().unwrap(), 20);
    assert_eq!(drain(&outbox, 9).len(), 20);
    store.close().unwrap();
}

#[test]
fn a_directory_that_is_moved_away_stops_the_acks_until_it_is_back() {
    let place = fast_dir();
    let (dir, elsewhere) = (place.path().join("data"), place.path().join("moved"));
    fs::create_dir(&dir).unwrap();
    let shared = Shared::new();
    let (store, _) = Store::open(&small(), &dir, &["cloud"], shared.clone()).unwrap();
    commit_one(&store, Kind::Verdict, 0);
    let health = || shared.board.components()["store"].health;
    for n in 1..3u64 {
        fs::rename(&dir, &elsewhere).unwrap();
        if n == 2 {
            // Another one in its place is not the same.
            fs::create_dir_all(dir.join("queue")).unwrap();
        }
        // Without anything to write it is noticed too.
        wait_for("the board says so", || health() == Health::Down);
        assert!(store.status().fault.is_some_and(|f| f.contains("deleted or replaced")));
        let entry = Some(n.to_le_bytes().to_vec());
        let records = vec![record(Kind::Verdict, n)];
        let mut waiter = send(&store, Commit { entry, records, first_ordinal: n, ..Commit::default() });
        std::thread::sleep(Duration::from_millis(300));
        assert!(waiter.try_recv().is_err(), "nothing is acknowledged");
        let _ = fs::remove_dir_all(&dir);
        fs::rename(&elsewhere, &dir).unwrap();
        waiter.blocking_recv().unwrap();
        wait_for("it is well again", || health() == Health::Up);
    }
    assert_eq!(numbers(&drain(&store.outbox("cloud").unwrap(), 9)), [0, 1, 2]);
    store.close().unwrap();
}

#[test]
fn a_directory_that_is_deleted_acknowledges_nothing() {
    let place = fast_dir();
    let dir = place.path().join("data");
    fs::create_dir(&dir).unwrap();
    let (store, _) = open(&small(), &dir);
    commit_one(&store, Kind::Verdict, 0);
    fs::remove_dir_all(&dir).unwrap();
    let mut waiter = send(&store, Commit { entry: Some(vec![1]), first_ordinal: 1, ..Commit::default() });
    wait_for("the store says so", || store.status().fault.is_some());
    assert!(waiter.try_recv().is_err());
    assert!(store.close().is_err(), "it does not end as if all were well");
}

/// As after a start with a clock far ahead of the last run: the backlog stays until the clock is confirmed.
#[test]
fn a_clock_far_ahead_gives_nothing_up_until_it_is_confirmed() {
    if fs::exists("/run/systemd/timesync/synchronized").unwrap() {
        return; // Confirmed already.
    }
    let dir = fast_dir();
    filled(dir.path(), true);
    let (mut file, saved) = cursors::CursorFile::open(&dir.path().join("queue/cursors")).unwrap();
    let behind = Time::now().minus(Duration::from_hours(24 * 30));
    file.write(&cursors::Saved { clock: behind, ..saved.unwrap() }, true).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    // By the clock everything is too old.
    let (store, _) = open(&Config { max_age: Duration::from_millis(20), ..small() }, dir.path());
    let outbox = store.outbox("cloud").unwrap();
    let looks = || crate::metrics::lock(&store.figures).looks;
    let before = looks();
    wait_for("the limits are looked at", || looks() > before + 2);
    assert_eq!(outbox.depth().0, 80);
    outbox.confirm_clock(Time::now().plus(Duration::from_hours(24 * 30)));
    let before = looks();
    wait_for("the limits are looked at", || looks() > before + 2);
    assert_eq!(outbox.depth().0, 80, "somebody who disagrees confirms nothing");
    outbox.confirm_clock(Time::now());
    wait_for("what is too old goes, and is told", || {
        let told: u64 = outbox
            .read(500, usize::MAX)
            .unwrap()
            .iter()
            .filter(|s| s.record.kind == Kind::Gap)
            .map(|s| gap_of(&s.record).2)
            .sum();
        told > 0 && store.status().lanes["routine"].dropped > 0
    });
    store.close().unwrap();
}
