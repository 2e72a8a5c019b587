//! Files that are torn, overwritten, cut off or gone: the store starts, gives what is left, and
//! says what is not.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::*;
use crate::metrics::Health;

/// 40 routine records in several segments; nothing delivered.
fn filled(dir: &Path) {
    let (store, _) = open(&small(), dir);
    for n in 0..40 {
        commit_one(&store, Kind::Verdict, n);
    }
    store.close().unwrap();
}

pub(super) fn segments(dir: &Path, lane: &str) -> Vec<PathBuf> {
    view::list(&dir.join("queue").join(lane)).unwrap().into_iter().map(|(_, path)| path).collect()
}

/// Opens, drains, and returns the verdicts' numbers and the gaps, as (reason, lane, records).
fn survivors(dir: &Path) -> (Vec<u64>, Vec<(String, String, u64)>) {
    let shared = Shared::new();
    let (store, recovered) = Store::open(&small(), dir, &["cloud"], shared.clone()).unwrap();
    assert_eq!(recovered.entries.map(Result::unwrap).count(), 40);
    let outbox = store.outbox("cloud").unwrap();
    let (mut verdicts, mut gaps) = (Vec::new(), Vec::new());
    wait_for("all is delivered or told", || {
        for stored in drain(&outbox, 7) {
            match stored.record.kind {
                Kind::Gap => gaps.push(gap_of(&stored.record)),
                _ => verdicts.push(stored.record.at.0 as u64),
            }
        }
        let lost: u64 = gaps.iter().filter(|g| g.1 == "routine").map(|g| g.2).sum();
        verdicts.len() as u64 + lost >= 40
    });
    let health = if gaps.is_empty() { Health::Up } else { Health::Degraded };
    if !recovered.quarantined.iter().any(|q| q.contains("manifest")) {
        let is_told = || shared.board.components().get("store").is_some_and(|c| c.health == health);
        wait_for("the board tells how it is", is_told);
    }
    // It goes on working, with sequences that were never used.
    commit_one(&store, Kind::Alarm, 40);
    assert_eq!(numbers(&drain(&outbox, 7)), [40]);
    store.close().unwrap();
    let (store, _) = open(&small(), dir);
    assert!(drain(&store.outbox("cloud").unwrap(), 7).iter().all(|s| s.record.kind == Kind::Gap));
    store.close().unwrap();
    (verdicts, gaps)
}

pub(super) fn gap_of(record: &Record) -> (String, String, u64) {
    let data: serde_json::Value = serde_json::from_str(&record.data).unwrap();
    let text = |key: &str| data[key].as_str().unwrap().to_owned();
    (text("reason"), text("lane"), data["records"].as_u64().unwrap())
}

/// Overwrites the block in this slot with zeroes, from its payload on.
fn wipe_block(segment: &Path, slot: usize, with: u8) {
    let path = slots::data_file(segment);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let found = block::carve(&file, LaneId::Routine as u8).unwrap();
    file.write_all_at(&vec![with; found[slot].len - 20], found[slot].offset + 20).unwrap();
}

#[test]
fn a_hole_in_a_sealed_segment_is_told_exactly() {
    let dir = fast_dir();
    filled(dir.path());
    let segment = &segments(dir.path(), "routine")[1];
    wipe_block(segment, 3, 0xFF);
    let (verdicts, gaps) = survivors(dir.path());
    assert_eq!(verdicts, (0..40).filter(|n| *n != 11).collect::<Vec<u64>>());
    assert_eq!(gaps, [("damaged".to_owned(), "routine".to_owned(), 1)]);
    assert!(dir.path().join("queue/quarantine").read_dir().unwrap().count() == 1);
}

#[test]
fn a_hole_in_the_segment_being_written_is_told_and_mended() {
    let dir = fast_dir();
    filled(dir.path());
    let active = segments(dir.path(), "routine").pop().unwrap();
    wipe_block(&active, 2, 0);
    let (verdicts, gaps) = survivors(dir.path());
    assert_eq!(verdicts, (0..40).filter(|n| *n != 34).collect::<Vec<u64>>());
    assert_eq!(gaps, [("damaged".to_owned(), "routine".to_owned(), 1)]);
}

/// Of the group that is under way when the power goes, any blocks may be there: none of it was
/// acknowledged, the engine makes all of it again, and what comes after the hole must not count.
#[test]
fn a_hole_in_the_last_group_is_a_power_cut_and_no_loss() {
    let large = Config { segment_bytes: 4 << 20, segment_slots: 64, ..small() };
    let mut noise = fastrand::Rng::with_seed(1);
    let group: Vec<Record> = (3..8)
        .map(|n| {
            let text: String = std::iter::repeat_with(|| noise.alphanumeric()).take(120_000).collect();
            Record { data: format!("\"{text}\""), ..record(Kind::Verdict, n) }
        })
        .collect();
    let again = || Commit { records: group.clone(), first_ordinal: 3, ..Commit::default() };
    for wiped in 3..8 {
        let dir = fast_dir();
        let (store, _) = open(&large, dir.path());
        (0..3).for_each(|n| commit_one(&store, Kind::Verdict, n));
        commit(&store, Commit { entry: Some(vec![3; 10]), ..again() });
        drop(store);
        let active = segments(dir.path(), "routine").pop().unwrap();
        wipe_block(&active, wiped, 0);
        let (store, recovered) = open(&large, dir.path());
        assert_eq!(recovered.quarantined, Vec::<String>::new());
        let outbox = store.outbox("cloud").unwrap();
        assert_eq!(numbers(&outbox.read(100, usize::MAX).unwrap()), (0..wiped as u64).collect::<Vec<u64>>());
        commit(&store, again());
        let all = drain(&outbox, 3);
        assert_eq!(numbers(&all), (0..8).collect::<Vec<u64>>(), "block {wiped} wiped");
        assert!(all[3..].iter().map(|s| &s.record).eq(&group));
        store.close().unwrap();
    }
}

#[test]
fn a_missing_segment_is_a_gap() {
    let dir = fast_dir();
    filled(dir.path());
    fs::remove_dir_all(&segments(dir.path(), "routine")[2]).unwrap();
    let (verdicts, gaps) = survivors(dir.path());
    assert_eq!(verdicts, (0..16).chain(24..40).collect::<Vec<u64>>());
    assert_eq!(gaps, [("damaged".to_owned(), "routine".to_owned(), 8)]);
}

#[test]
fn a_damaged_manifest_costs_nothing() {
    for damage in [&b""[..], b"{}\n00000000\n", b"\xFF\xFE"] {
        let dir = fast_dir();
        filled(dir.path());
        for lane in ["journal", "routine"] {
            fs::write(dir.path().join("queue").join(lane).join("manifest"), damage).unwrap();
        }
        let (verdicts, gaps) = survivors(dir.path());
        assert_eq!(verdicts, (0..40).collect::<Vec<u64>>());
        assert_eq!(gaps, []);
    }
}

#[test]
fn what_interrupted_work_left_behind_is_swept() {
    let dir = fast_dir();
    filled(dir.path());
    let routine = dir.path().join("queue/routine");
    for name in ["spare", "del-seg-1-abc", "rescue"] {
        fs::create_dir_all(routine.join(name)).unwrap();
        fs::write(routine.join(name).join("db"), b"half").unwrap();
    }
    let active = segments(dir.path(), "routine").pop().unwrap();
    fs::write(active.join("snap.0000000000000000.generating"), b"half").unwrap();
    let (verdicts, _) = survivors(dir.path());
    assert_eq!(verdicts, (0..40).collect::<Vec<u64>>());
    assert!(!routine.join("rescue").exists() && !routine.join("del-seg-1-abc").exists());
}

/// Zeroes, noise, other sled segments' headers, or the end cut off, anywhere in any segment.
#[test]
fn random_damage_never_stops_the_start_nor_hides_a_loss() {
    for seed in 0..30 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let dir = fast_dir();
        filled(dir.path());
        let all = segments(dir.path(), "routine");
        let segment = &all[rng.usize(..all.len())];
        let sealed = segment != all.last().unwrap();
        let path = slots::data_file(segment);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        let at = rng.u64(..len);
        match rng.u8(..3) {
            0 => file.write_all_at(&vec![0; rng.usize(1..70_000)], at).unwrap(),
            1 => {
                let mut noise = vec![0; rng.usize(1..70_000)];
                rng.fill(&mut noise);
                file.write_all_at(&noise, at).unwrap();
            }
            _ => file.set_len(at).unwrap(),
        }
        drop(file);
        let (store, recovered) = open(&small(), dir.path());
        assert_eq!(recovered.entries.map(Result::unwrap).count(), 40);
        let outbox = store.outbox("cloud").unwrap();
        // The engine's replay: what the end of the lane lost comes again.
        let first_ordinal = 0;
        let records = (0..40).map(|n| record(Kind::Verdict, n)).collect();
        commit(&store, Commit { records, first_ordinal, ..Commit::default() });
        let (mut verdicts, mut lost) = (Vec::new(), 0);
        wait_for("all is delivered or told", || {
            for stored in drain(&outbox, 7) {
                match stored.record.kind {
                    Kind::Gap => lost += gap_of(&stored.record).2,
                    _ => verdicts.push(stored.record.at.0 as u64),
                }
            }
            verdicts.len() as u64 + lost >= 40
        });
        let mut once = verdicts.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), verdicts.len(), "seed {seed}: delivered twice: {verdicts:?}");
        assert_eq!(verdicts.len() as u64 + lost, 40, "seed {seed} sealed {sealed}: {verdicts:?} and {lost} lost");
        store.close().unwrap();
    }
}

#[test]
fn a_damaged_journal_still_gives_what_is_left() {
    let dir = fast_dir();
    filled(dir.path());
    let segment = &segments(dir.path(), "journal")[1];
    let path = slots::data_file(segment);
    let len = fs::metadata(&path).unwrap().len() as usize;
    fs::write(&path, vec![0; len]).unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(recovered.next_ordinal, 40);
    let entries: Vec<Entry> = recovered.entries.map(Result::unwrap).collect();
    let ordinals: Vec<u64> = entries.iter().map(|e| e.first_ordinal).collect();
    assert_eq!(ordinals, (0..8).chain(16..40).collect::<Vec<u64>>());
    let outbox = store.outbox("cloud").unwrap();
    wait_for("the gap is told", || outbox.depths()[0].0 == 1);
    let gap = gap_of(&outbox.read(1, 0).unwrap()[0].record);
    assert_eq!(gap, ("damaged".to_owned(), "journal".to_owned(), 8));
    store.close().unwrap();
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_one_before() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    for n in 0..12 {
        let checkpoint = (n % 4 == 3).then(|| Snapshot::whole(vec![n as u8; 200]));
        let entry = Some(vec![n as u8]);
        commit(&store, Commit { entry, checkpoint, first_ordinal: n, ..Commit::default() });
    }
    store.close().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(whole_of(&recovered), Some(&[11; 200][..]));
    assert_eq!(recovered.entries.count(), 0);
    store.close().unwrap();
    let active = segments(dir.path(), "journal").pop().unwrap();
    let path = slots::data_file(&active);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let found = block::carve(&file, LaneId::Journal as u8).unwrap();
    let last = found.iter().rfind(|f| f.head.checkpoint).unwrap();
    file.write_all_at(&[0; 30], last.offset + 40).unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(whole_of(&recovered), Some(&[7; 200][..]));
    let entries: Vec<Vec<u8>> = recovered.entries.map(|e| e.unwrap().data).collect();
    assert_eq!(entries, [vec![8], vec![9], vec![10], vec![11]]);
    store.close().unwrap();
}

#[test]
fn lost_cursors_only_repeat() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    for n in 0..20 {
        commit_one(&store, Kind::Verdict, n);
    }
    let first = drain(&store.outbox("cloud").unwrap(), 7);
    store.close().unwrap();
    fs::remove_file(dir.path().join("queue/cursors")).unwrap();
    let (store, _) = open(&small(), dir.path());
    let again = drain(&store.outbox("cloud").unwrap(), 7);
    assert!(!again.is_empty() && first.ends_with(&again), "{again:?}");
    commit_one(&store, Kind::Verdict, 20);
    let next = drain(&store.outbox("cloud").unwrap(), 7);
    assert_eq!(next[0].sequence, 21);
    store.close().unwrap();
}

/// A kill between the parts of a split item leaves some behind. It was never acknowledged, so it is
/// not there, and what comes later is not in its way.
#[test]
fn the_first_parts_of_a_split_entry_are_passed_over() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    commit_one(&store, Kind::Verdict, 0);
    store.close().unwrap();
    let active = segments(dir.path(), "journal").pop().unwrap();
    let item = pack::Item { seq: 2, bytes: vec![7; 300_000], at: Time(0), engine_upto: 9, checkpoint: true };
    let mut counters = pack::Counters { position: 1, engine_upto: 1 };
    let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
    let units = pack::pack(LaneId::Journal as u8, vec![item], &mut counters, Time(0), &mut zstd);
    let (writer, heads) = slots::open(&active).unwrap();
    assert_eq!((units[0].len(), heads.len()), (3, 1));
    for (slot, draft) in (1..).zip(&units[0][..2]) {
        writer.put(slot, draft.encode(slot)).unwrap();
    }
    writer.sync().unwrap();
    writer.close_untrimmed().unwrap().join().unwrap();
    for n in 1..20 {
        let (store, recovered) = open(&small(), dir.path());
        assert_eq!(recovered.checkpoint, None);
        assert_eq!(recovered.next_ordinal, n);
        let ordinals: Vec<u64> = recovered.entries.map(|e| e.unwrap().first_ordinal).collect();
        assert_eq!(ordinals, (0..n).collect::<Vec<_>>());
        commit_one(&store, Kind::Verdict, n);
        assert_eq!(store.outbox("cloud").unwrap().depths()[1].0, n + 1);
        store.close().unwrap();
    }
}
