//! A disk that does not take anything for a while, a directory in use, and the like.

use super::*;
use crate::metrics::Health;

#[test]
fn a_full_disk_holds_receipts_back_and_nothing_is_lost_or_doubled() {
    let dir = fast_dir();
    let shared = Shared::new();
    let (store, _) = Store::open(&small(), dir.path(), &["cloud"], shared.clone()).unwrap();
    let outbox = store.outbox("cloud").unwrap();
    for n in 0..5 {
        commit_one(&store, Kind::Verdict, n);
    }
    for round in 0..4 {
        let first: u64 = 5 + round * 10;
        let lane = ["journal", "routine"][round as usize % 2];
        slots::trouble::start(&dir.path().join("queue").join(lane));
        let mut waiters = Vec::new();
        for n in first..first + 10 {
            let entry = Some(n.to_le_bytes().to_vec());
            let c = Commit { entry, records: vec![record(Kind::Verdict, n)], first_ordinal: n, ..Commit::default() };
            waiters.push(send(&store, c));
        }
        wait_for("the store says so", || store.status().fault.is_some());
        assert_eq!(shared.board.components()["store"].health, Health::Down);
        assert!(waiters.iter_mut().all(|w| w.try_recv().is_err()), "nothing is acknowledged");
        assert_eq!(outbox.depth().0, first);
        slots::trouble::stop(&dir.path().join("queue").join(lane));
        waiters.into_iter().for_each(|w| w.blocking_recv().unwrap());
        assert_eq!(store.status().fault, None);
        assert_eq!(shared.board.components()["store"].health, Health::Up);
    }
    assert_eq!(numbers(&outbox.read(100, usize::MAX).unwrap()), (0..45).collect::<Vec<_>>());
    store.close().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(recovered.entries.map(|e| e.unwrap().first_ordinal).collect::<Vec<_>>(), (0..45).collect::<Vec<_>>());
    let all = drain(&store.outbox("cloud").unwrap(), 100);
    assert_eq!(numbers(&all), (0..45).collect::<Vec<_>>());
    store.close().unwrap();
}

#[test]
fn closing_while_the_disk_is_full_says_so() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    commit_one(&store, Kind::Verdict, 0);
    let queue = dir.path().join("queue/routine");
    slots::trouble::start(&queue);
    let c =
        Commit { entry: Some(vec![1]), records: vec![record(Kind::Verdict, 1)], first_ordinal: 1, ..Commit::default() };
    let waiter = send(&store, c);
    wait_for("the store says so", || store.status().fault.is_some());
    let error = store.close().unwrap_err();
    assert!(error.to_string().contains("sync"), "{error}");
    waiter.blocking_recv().unwrap_err();
    slots::trouble::stop(&queue);
    // The entry was durable, its record was not: the replay brings it.
    let (store, recovered) = open(&small(), dir.path());
    let entries: Vec<Entry> = recovered.entries.map(Result::unwrap).collect();
    assert_eq!(entries.len(), 2);
    let records = vec![record(Kind::Verdict, 0), record(Kind::Verdict, 1)];
    commit(&store, Commit { records, ..Commit::default() });
    assert_eq!(numbers(&drain(&store.outbox("cloud").unwrap(), 9)), [0, 1]);
    store.close().unwrap();
}

#[test]
fn a_second_store_is_told_who_holds_the_directory() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    let error = Store::open(&small(), dir.path(), &[], Shared::new()).err().unwrap();
    assert_eq!(error.to_string(), format!("{} is in use by process {}", dir.path().display(), std::process::id()));
    store.close().unwrap();
    open(&small(), dir.path()).0.close().unwrap();
}

#[test]
fn a_store_of_the_future_is_left_alone() {
    let dir = fast_dir();
    open(&small(), dir.path()).0.close().unwrap();
    std::fs::write(dir.path().join("queue/format"), "3\n").unwrap();
    let error = Store::open(&small(), dir.path(), &[], Shared::new()).err().unwrap();
    assert!(matches!(error, OpenError::NewerFormat { found: 3, known: 2 }), "{error}");
}

#[test]
fn a_file_in_the_way_is_named() {
    let dir = fast_dir();
    std::fs::write(dir.path().join("queue"), "").unwrap();
    let error = Store::open(&small(), dir.path(), &[], Shared::new()).err().unwrap();
    assert!(matches!(&error, OpenError::NotWritable { .. }));
    assert!(error.to_string().contains("queue"), "{error}");
}

#[test]
fn ready_wakes_on_commit_and_ends_with_the_store() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    let outbox = store.outbox("cloud").unwrap();
    let waiting = outbox.clone();
    let reader = std::thread::spawn(move || {
        block_on(async {
            waiting.ready().await.unwrap();
            let read = waiting.next(10, 1 << 20).await.unwrap();
            waiting.ack(&read);
            (read.len(), waiting.ready().await.is_err())
        })
    });
    commit_one(&store, Kind::Audit, 0);
    wait_for("it is delivered", || outbox.depth().0 == 0);
    store.close().unwrap();
    assert_eq!(reader.join().unwrap(), (1, true));
}

/// sled writes a slot once and nothing else: if a change to it, or to how it is used, makes it
/// rewrite pages, this notices.
#[test]
fn bytes_written_stay_near_bytes_given() {
    let dir = fast_dir();
    let segment = dir.path().join("seg");
    let writer = slots::create(&segment, 512, 0).unwrap();
    let before = written(&segment);
    let value = vec![7; 64 << 10];
    for slot in 0..512 {
        writer.put(slot, value.clone()).unwrap();
        writer.sync().unwrap();
    }
    let given = 512 * value.len() as u64;
    let amplification = (written(&segment) - before) as f64 / given as f64;
    assert!(amplification <= 1.3, "{amplification:.2} bytes written for each byte given");
    assert!(before < 1 << 20, "an empty segment takes {before} bytes");
}

fn written(segment: &Path) -> u64 {
    slots::on_disk(&std::fs::metadata(slots::data_file(segment)).unwrap())
}

/// On a filesystem of a few dozen megabytes that is nobody else's, e.g. a tmpfs:
/// `ANDON_TEST_SMALL_DISK=/mnt/small cargo test --lib really_full -- --ignored`
#[test]
#[ignore = "needs a small filesystem"]
fn a_really_full_disk_is_survived() {
    let Some(disk) = std::env::var_os("ANDON_TEST_SMALL_DISK") else { return };
    let dir = tempfile::tempdir_in(&disk).unwrap();
    let ballast = dir.path().join("ballast");
    let fill = || {
        let mut file = std::fs::File::create(&ballast).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    };
    let (mut ordinal, mut delivered) = (0, Vec::new());
    for round in 0..6 {
        let (store, recovered) = open(&small(), dir.path());
        assert_eq!(recovered.entries.map(Result::unwrap).count() as u64, ordinal);
        let outbox = store.outbox("cloud").unwrap();
        let mut waiters = Vec::new();
        for n in ordinal..ordinal + 40 {
            if n == ordinal + 13 {
                fill();
            }
            let entry = Some((0..3000).map(|_| fastrand::u8(..)).collect());
            let c = Commit { entry, records: vec![record(Kind::Verdict, n)], first_ordinal: n, ..Commit::default() };
            waiters.push(send(&store, c));
        }
        wait_for("the store says so", || store.status().fault.is_some());
        // What is stored can be delivered although nothing can be written.
        delivered.extend(numbers(&drain(&outbox, 7)));
        if round % 2 == 0 {
            // A start on the full disk, after a crash: what was acknowledged is there.
            let acknowledged = waiters.iter_mut().map_while(|w| w.try_recv().ok()).count() as u64;
            drop(store);
            let (store, recovered) = open(&small(), dir.path());
            let entries: Vec<Entry> = recovered.entries.map(Result::unwrap).collect();
            assert!(entries.len() as u64 >= ordinal + acknowledged);
            std::fs::remove_file(&ballast).unwrap();
            ordinal = entries.len() as u64;
            let records = (0..ordinal).map(|n| record(Kind::Verdict, n)).collect();
            commit(&store, Commit { records, ..Commit::default() });
            delivered.extend(numbers(&drain(&store.outbox("cloud").unwrap(), 7)));
            store.close().unwrap();
        } else {
            std::fs::remove_file(&ballast).unwrap();
            waiters.into_iter().for_each(|w| w.blocking_recv().unwrap());
            ordinal += 40;
            delivered.extend(numbers(&drain(&outbox, 7)));
            store.close().unwrap();
        }
        delivered.sort_unstable();
        delivered.dedup();
        assert_eq!(delivered, (0..ordinal).collect::<Vec<_>>());
    }
}
