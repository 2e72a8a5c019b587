//! Nothing is refused for its size: entries, records, dead letters and snapshots far beyond a segment.

use std::fs;

use super::*;
use crate::metrics::Health;

/// Bytes that do not compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(len).collect()
}

fn text(seed: u64, len: usize) -> String {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.alphanumeric()).take(len).collect()
}

fn part(key: &str, bytes: Vec<u8>) -> SnapshotPart {
    SnapshotPart { key: key.into(), content: PartContent::Bytes(bytes) }
}

fn unchanged(key: &str) -> SnapshotPart {
    SnapshotPart { key: key.into(), content: PartContent::Unchanged }
}

fn checkpoint(store: &Store, n: u64, parts: Vec<SnapshotPart>) {
    let entry = Some(n.to_le_bytes().to_vec());
    commit(store, Commit { entry, checkpoint: Some(Snapshot { parts }), first_ordinal: n, ..Commit::default() });
}

fn is_written(store: &Store) {
    wait_for("the snapshot is durable", || !store.sender().is_writing_checkpoint());
}

fn parts_of(recovered: &Recovered) -> Vec<(String, Vec<u8>)> {
    let parts = recovered.checkpoint.as_ref().map(|c| c.parts.clone()).unwrap_or_default();
    parts.into_iter().map(|(key, bytes)| (key.to_string(), bytes)).collect()
}

#[test]
fn what_is_larger_than_a_segment_is_kept_whole() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    let large = Record { data: format!("{{\"text\":\"{}\"}}", text(1, 3 << 20)), ..record(Kind::Alarm, 0) };
    let reject = Reject {
        at: Time(1),
        source: "shop".into(),
        origin: "t".into(),
        reason: "no".into(),
        payload: noise(2, 2 << 20),
    };
    let entry = noise(3, 5 << 20);
    let state = noise(4, 6 << 20);
    commit(
        &store,
        Commit {
            entry: Some(entry.clone()),
            checkpoint: whole(state.clone()),
            records: vec![large.clone(), record(Kind::Verdict, 1)],
            rejects: vec![reject.clone()],
            ..Commit::default()
        },
    );
    commit_one(&store, Kind::Alarm, 2);
    is_written(&store);
    store.close().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(recovered.quarantined, Vec::<String>::new());
    assert_eq!(whole_of(&recovered), Some(&state[..]));
    assert_eq!((recovered.checkpoint_ordinal, recovered.entries.count()), (2, 1));
    let entries: Vec<Vec<u8>> = store.journal_since(Time(0)).map(|e| e.unwrap().data).collect();
    assert!(entries[0] == entry && entries.len() == 2);
    let all = drain(&store.outbox("cloud").unwrap(), 1);
    assert_eq!(numbers(&all), [0, 2, 1]);
    assert!(all[0].record == large);
    let letters: Vec<DeadLetter> = store.dead_letters().map(|l| l.unwrap().1).collect();
    assert!(letters == [DeadLetter::Payload(reject)]);
    store.close().unwrap();
}

/// One that is larger than the journal's share takes what it needs.
#[test]
fn a_snapshot_may_be_larger_than_all_limits() {
    let dir = fast_dir();
    let config = Config { max_bytes: 2 << 20, ..small() };
    let (store, _) = open(&config, dir.path());
    let states: Vec<Vec<u8>> = (0..3).map(|n| noise(n, 5 << 20)).collect();
    for (n, state) in (0..).zip(&states) {
        checkpoint(&store, n, vec![part("", state.clone())]);
        is_written(&store);
    }
    wait_for("older ones go", || store.status().lanes["journal"].disk_bytes < 9 << 20);
    store.close().unwrap();
    let (store, recovered) = open(&config, dir.path());
    assert_eq!(whole_of(&recovered), Some(&states[2][..]));
    store.close().unwrap();
}

#[test]
fn commits_go_on_while_a_snapshot_is_written() {
    let dir = fast_dir();
    let (store, _) = open(&Config { commit_interval: Duration::from_millis(5), ..small() }, dir.path());
    checkpoint(&store, 0, vec![part("", noise(1, 8 << 20))]);
    let mut durable = 0;
    while store.sender().is_writing_checkpoint() {
        durable += 1;
        commit_one(&store, Kind::Verdict, durable);
    }
    assert!(durable > 10, "only {durable} commits became durable meanwhile");
    // Killed, with another one half written.
    checkpoint(&store, durable + 1, vec![part("", noise(2, 8 << 20))]);
    commit_one(&store, Kind::Verdict, durable + 2);
    assert!(store.sender().is_writing_checkpoint());
    drop(store);
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(whole_of(&recovered), Some(&noise(1, 8 << 20)[..]));
    assert_eq!(recovered.checkpoint_ordinal, 0);
    let ordinals: Vec<u64> = recovered.entries.map(|e| e.unwrap().first_ordinal).collect();
    assert_eq!(ordinals, (1..=durable + 2).collect::<Vec<_>>());
    store.close().unwrap();
}

#[test]
fn unchanged_parts_are_not_written_again_and_come_back() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    assert!(store.sender().wants_all_parts());
    let idle = noise(1, 2 << 20);
    checkpoint(&store, 0, vec![part("idle", idle.clone()), part("busy", vec![0; 100]), part("empty", vec![])]);
    is_written(&store);
    assert!(!store.sender().wants_all_parts());
    let written = store.status().lanes["journal"].bytes;
    for n in 1..20 {
        checkpoint(&store, n, vec![unchanged("idle"), part("busy", vec![n as u8; 100]), unchanged("empty")]);
        is_written(&store);
    }
    assert!(store.status().lanes["journal"].bytes < written + (64 << 10));
    store.close().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    let expected = [("idle", idle.clone()), ("busy", vec![19; 100]), ("empty", vec![])];
    assert_eq!(parts_of(&recovered), expected.map(|(k, b)| (k.to_owned(), b)));
    // A later life may build on what recovery gave.
    assert!(!store.sender().wants_all_parts());
    checkpoint(&store, 20, vec![unchanged("idle"), part("new", vec![1])]);
    is_written(&store);
    store.close().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(parts_of(&recovered), [("idle".to_owned(), idle), ("new".to_owned(), vec![1])]);
    store.close().unwrap();
}

#[test]
fn an_unchanged_part_holds_no_old_segments() {
    let dir = fast_dir();
    let config = Config { max_bytes: 8 << 20, ..small() };
    let (store, _) = open(&config, dir.path());
    let idle = noise(1, 200_000);
    checkpoint(&store, 0, vec![part("idle", idle.clone()), part("busy", vec![0; 100])]);
    for n in 1..60 {
        let entry = Some(noise(n, 100_000));
        let snapshot = Snapshot { parts: vec![unchanged("idle"), part("busy", vec![n as u8; 100])] };
        commit(&store, Commit { entry, checkpoint: Some(snapshot), first_ordinal: n, ..Commit::default() });
        is_written(&store);
    }
    wait_for("the journal keeps its share", || store.status().lanes["journal"].disk_bytes <= 2 << 20);
    store.close().unwrap();
    let (store, recovered) = open(&config, dir.path());
    let expected = [("idle".to_owned(), idle), ("busy".to_owned(), vec![59; 100])];
    assert_eq!(parts_of(&recovered), expected);
    store.close().unwrap();
}

#[test]
fn a_part_without_content_costs_a_snapshot_and_nothing_else() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    checkpoint(&store, 0, vec![part("a", vec![1])]);
    is_written(&store);
    checkpoint(&store, 1, vec![part("a", vec![2]), unchanged("b")]);
    is_written(&store);
    assert!(store.sender().wants_all_parts() && store.sender().wants_checkpoint());
    // What builds on the one that was not kept is not kept either.
    checkpoint(&store, 2, vec![unchanged("a")]);
    is_written(&store);
    store.close().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(parts_of(&recovered), [("a".to_owned(), vec![1])]);
    assert_eq!(recovered.entries.count(), 2);
    store.close().unwrap();
}

#[test]
fn a_snapshot_whose_part_is_damaged_falls_back_to_the_one_before() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    for n in 0..2 {
        checkpoint(&store, n, vec![part("a", noise(n, 500_000)), part("b", vec![n as u8])]);
        is_written(&store);
    }
    store.close().unwrap();
    // The largest blocks are pieces; the last of them is the second snapshot's.
    let segments = view::list(&dir.path().join("queue/journal")).unwrap();
    let blocks = |dir: &Path| {
        let file = fs::OpenOptions::new().read(true).write(true).open(slots::data_file(dir)).unwrap();
        let found = block::carve(&file, LaneId::Journal as u8).unwrap();
        (file, found)
    };
    let with_piece = |(_, dir): &&(u64, std::path::PathBuf)| blocks(dir).1.iter().any(|f| f.len > 100_000);
    let (_, path) = segments.iter().rfind(with_piece).unwrap();
    let (file, found) = blocks(path);
    let piece = found.iter().rfind(|f| f.len > 100_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 64], piece.offset + 1000).unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(parts_of(&recovered), [("a".to_owned(), noise(0, 500_000)), ("b".to_owned(), vec![0])]);
    assert_eq!(recovered.checkpoint_ordinal, 0);
    store.close().unwrap();
}

/// As format 1 wrote it: the snapshot is one item, in one block or split.
#[test]
fn a_store_of_format_1_is_read_and_goes_on() {
    for size in [300, 400_000] {
        let dir = fast_dir();
        let (store, _) = open(&small(), dir.path());
        (0..3).for_each(|n| commit_one(&store, Kind::Verdict, n));
        store.close().unwrap();
        let active = view::list(&dir.path().join("queue/journal")).unwrap().pop().unwrap().1;
        let old = record::JournalItem::Checkpoint { at: Time(5), ordinal: 2, after: 2, data: noise(7, size) };
        let item = pack::Item { seq: 4, bytes: old.encode(), at: Time(5), engine_upto: 3, checkpoint: true };
        let mut counters = pack::Counters { position: 3, engine_upto: 3 };
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
        let units = pack::pack(LaneId::Journal as u8, vec![item], &mut counters, Time(5), &mut zstd);
        let (writer, heads) = slots::open(&active).unwrap();
        for (slot, draft) in (heads.len() as u32..).zip(units.iter().flatten()) {
            writer.put(slot, draft.encode(slot)).unwrap();
        }
        writer.sync().unwrap();
        writer.close_untrimmed().unwrap().join().unwrap();
        fs::write(dir.path().join("queue/format"), "1\n").unwrap();

        let (store, recovered) = open(&small(), dir.path());
        assert_eq!(fs::read_to_string(dir.path().join("queue/format")).unwrap(), "2\n");
        assert_eq!(whole_of(&recovered), Some(&noise(7, size)[..]));
        assert_eq!(recovered.checkpoint_ordinal, 2);
        let ordinals: Vec<u64> = recovered.entries.map(|e| e.unwrap().first_ordinal).collect();
        assert_eq!(ordinals, [2]);
        assert!(store.sender().wants_all_parts());
        checkpoint(&store, 3, vec![part("a", vec![1]), part("b", noise(8, 300_000))]);
        is_written(&store);
        store.close().unwrap();
        let (store, recovered) = open(&small(), dir.path());
        assert_eq!(parts_of(&recovered), [("a".to_owned(), vec![1]), ("b".to_owned(), noise(8, 300_000))]);
        assert_eq!(recovered.entries.count(), 0);
        store.close().unwrap();
    }
}

#[test]
fn the_last_snapshot_is_saved_at_the_end() {
    let dir = fast_dir();
    let (store, _) = open(&small(), dir.path());
    commit_one(&store, Kind::Verdict, 0);
    store
        .sender()
        .blocking_send(Commit { checkpoint: whole(noise(1, 1 << 20)), first_ordinal: 1, ..Commit::default() })
        .unwrap();
    store.close().unwrap();
    let (store, recovered) = open(&small(), dir.path());
    assert_eq!(whole_of(&recovered), Some(&noise(1, 1 << 20)[..]));
    assert_eq!((recovered.checkpoint_ordinal, recovered.entries.count()), (1, 0));
    store.close().unwrap();
}

#[test]
fn a_store_that_has_ended_gives_the_commit_back() {
    let dir = fast_dir();
    let shared = Shared::new();
    let (store, _) = Store::open(&small(), dir.path(), &[], shared.clone()).unwrap();
    let sender = store.sender();
    store.close().unwrap();
    block_on(sender.ended());
    let (receipt, mut waiter) = Receipt::new();
    let Err(Ended(commit)) =
        sender.blocking_send(Commit { entry: Some(vec![7]), receipts: vec![receipt], ..Commit::default() })
    else {
        panic!("taken");
    };
    assert_eq!((commit.entry.as_deref(), commit.receipts.len()), (Some(&[7][..]), 1));
    assert!(matches!(waiter.try_recv(), Err(oneshot::error::TryRecvError::Empty)), "neither completed nor dropped");
    assert_eq!(shared.board.components()["store"].health, Health::Down);
}
