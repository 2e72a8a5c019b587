//! The store, killed and cut off from power again and again: a child process commits numbered records
//! and delivers them; whatever it had acknowledged has to be there in the next life, once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use andon::metrics::Shared;
use andon::store::{Commit, Config, Outbox, PartContent, Recovered, RecoveredSnapshot, Snapshot, SnapshotPart, Store};
use andon::types::{Kind, Receipt, Record, RecordId, Time};

use super::lives::{Life, say};
use super::powercut::{Disk, Knob, Taste};
use super::setting;

const DIR: &str = "ANDON_TEST_STORE_DIR";
const LARGE: &str = "ANDON_TEST_STORE_LARGE";
/// How long one life may last, in milliseconds from its very start.
const LIFE: std::ops::Range<u64> = 5..400;

/// Small segments, so that they are rolled often, and backlogs of a few records; with `LARGE` in the environment larger ones, so that
/// more time goes into filling them.
fn config() -> Config {
    let large = std::env::var_os(LARGE).is_some_and(|v| v != "0");
    let (segment_bytes, segment_slots) = if large { (4 << 20, 200) } else { (128 << 10, 24) };
    let snapshot_step = 150_000;
    let commit_interval = Duration::from_millis(4);
    Config { segment_bytes, segment_slots, commit_interval, backlog_after: 20, snapshot_step, ..Config::default() }
}

/// The engine: its whole state is how many entries it has seen and how many records they caused.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
struct Engine {
    entries: u64,
    ordinal: u64,
}

impl Engine {
    fn read(bytes: &[u8]) -> Engine {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Engine { entries: number(0), ordinal: number(8) }
    }

    fn bytes(self, padding: usize) -> Vec<u8> {
        let mut bytes = [self.entries.to_le_bytes(), self.ordinal.to_le_bytes()].concat();
        // Nothing that could be packed: a block shall be many sectors.
        let mut noise = fastrand::Rng::with_seed(self.entries);
        bytes.extend(std::iter::repeat_with(|| noise.u8(..)).take(padding));
        bytes
    }

    /// A small part with the state, one that changes each time, and one that changes every third time.
    /// `taken` counts the snapshots of this life: the first has all parts.
    fn snapshot(self, padding: usize, taken: &mut u64) -> Snapshot {
        let part = |key: &str, content| SnapshotPart { key: key.into(), content };
        let seldom =
            if (*taken).is_multiple_of(3) { PartContent::Bytes(self.bytes(300_000)) } else { PartContent::Unchanged };
        *taken += 1;
        let (state, often) = (PartContent::Bytes(self.bytes(0)), PartContent::Bytes(self.bytes(padding)));
        Snapshot { parts: vec![part("state", state), part("often", often), part("seldom", seldom)] }
    }

    fn restore(snapshot: &RecoveredSnapshot) -> Engine {
        let [state, often, seldom] = [0, 1, 2].map(|i| &snapshot.parts[i].1);
        let engine = Engine::read(state);
        assert_eq!(Engine::read(often), engine);
        assert_eq!(often, &engine.bytes(often.len() - 16));
        let older = Engine::read(seldom);
        assert!(older.entries <= engine.entries && *seldom == older.bytes(300_000));
        engine
    }

    /// What the next entry causes.
    fn step(&mut self) -> Vec<Record> {
        let records: Vec<Record> = (self.ordinal..self.ordinal + self.entries % 4).map(record).collect();
        self.entries += 1;
        self.ordinal += records.len() as u64;
        records
    }
}

fn record(ordinal: u64) -> Record {
    let kind = if ordinal.is_multiple_of(7) { Kind::Alarm } else { Kind::Verdict };
    let data = format!("{{\"n\":{ordinal},\"text\":\"{}\"}}", "x".repeat((ordinal * 37 % 900) as usize));
    Record {
        id: RecordId::of(&[&ordinal.to_le_bytes()]),
        kind,
        subject: "press".into(),
        at: Time(ordinal as i64),
        data,
    }
}

/// Brings the engine back and sends again what it makes of the journal.
fn replay(store: &Store, recovered: Recovered) -> Engine {
    let mut engine = recovered.checkpoint.map(|c| Engine::restore(&c)).unwrap_or_default();
    assert_eq!(recovered.checkpoint_ordinal, engine.ordinal);
    for entry in recovered.entries {
        let entry = entry.unwrap();
        assert_eq!((Engine::read(&entry.data).entries, entry.first_ordinal), (engine.entries, engine.ordinal));
        let first_ordinal = engine.ordinal;
        let commit = Commit { records: engine.step(), first_ordinal, ..Commit::default() };
        store.sender().blocking_send(commit).unwrap();
    }
    assert!(recovered.next_ordinal <= engine.ordinal, "records without their entry");
    engine
}

/// The child's life. Ends by being killed.
#[test]
#[ignore = "run by the test below"]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let (store, recovered) = Store::open(&config(), &dir, &["cloud"], Shared::new()).unwrap();
    let outbox = store.outbox("cloud").unwrap().live_first();
    std::thread::spawn(move || deliver(&outbox));
    let (acks, waiting) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for (waiter, entries) in waiting {
            let waiter: andon::types::ReceiptWaiter = waiter;
            waiter.blocking_recv().unwrap();
            say(format_args!("acked {entries}"));
        }
    });
    let quarantined = recovered.quarantined.clone();
    let mut engine = replay(&store, recovered);
    let mut parts = 0;
    quarantined.iter().for_each(|q| say(format_args!("aside {q}")));
    say(format_args!("opened {}", engine.entries));
    loop {
        let before = engine;
        let padding = (engine.entries * 7919 % 6000) as usize * if engine.entries.is_multiple_of(13) { 60 } else { 1 };
        let records = engine.step();
        let checkpoint = engine.entries.is_multiple_of(40).then(|| engine.snapshot(padding, &mut parts));
        let (receipt, waiter) = Receipt::new();
        let entry = Some(before.bytes(padding));
        let receipts = vec![receipt];
        let commit =
            Commit { entry, checkpoint, records, first_ordinal: before.ordinal, receipts, ..Commit::default() };
        store.sender().blocking_send(commit).unwrap();
        acks.send((waiter, engine.entries)).unwrap();
    }
}

/// The receiver has it before it is acknowledged: at least once.
fn deliver(outbox: &Outbox) {
    loop {
        let read = outbox.read(40, 64 << 10).unwrap();
        for stored in &read {
            assert!(stored.record.kind != Kind::Gap, "nothing was lost: {}", stored.record.data);
            say(format_args!("got {} {}", stored.record.at.0, stored.sequence));
        }
        outbox.ack(&read);
        if read.is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the outside world has seen.
#[derive(Default)]
struct World {
    acked: u64,
    /// Lives that got as far as having opened the store.
    opened: usize,
    /// Segments that were set aside.
    aside: Vec<String>,
    /// Sequence by ordinal.
    got: BTreeMap<u64, u64>,
    repeats: usize,
}

impl World {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let (verb, number) = (words.next(), words.next().and_then(|n| n.parse().ok()));
        match (verb, number, words.next().and_then(|n| n.parse().ok())) {
            (Some("acked"), Some(entries), None) => self.acked = self.acked.max(entries),
            (Some("opened"), Some(entries), None) => {
                self.opened += 1;
                assert!(entries >= self.acked, "{} entries were acknowledged, {entries} are there", self.acked);
            }
            (Some("aside"), ..) => self.aside.push(line.to_owned()),
            (Some("got"), Some(ordinal), Some(sequence)) => self.get(ordinal, sequence),
            _ => {}
        }
    }

    fn get(&mut self, ordinal: u64, sequence: u64) {
        if let Some(before) = self.got.insert(ordinal, sequence) {
            assert_eq!(before, sequence, "record {ordinal} is stored twice");
            self.repeats += 1;
        }
    }
}

#[test]
fn thirty_kills_lose_nothing_and_double_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::default();
    let mut random = fastrand::Rng::with_seed(setting("ANDON_CRASH_SEED", 7));
    for _ in 0..setting("ANDON_CRASH_STORE_KILLS", 30) {
        let life = Life::start("store::child", [(DIR, dir.path())]);
        // Any moment will do, from within the start to well into the work.
        let said = life.kill_after(Duration::from_millis(random.u64(LIFE)));
        said.iter().for_each(|line| world.hear(line));
    }
    assert!(world.aside.is_empty(), "{:?}", world.aside);
    let (store, recovered) = Store::open(&config(), dir.path(), &["cloud"], Shared::new()).unwrap();
    settle(&store, recovered, &mut world);
    store.close().unwrap();
}

#[test]
fn power_cuts_lose_nothing_and_double_nothing() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("data");
    let disk = Disk::new(&dir, &place.path().join("beside"));
    let mut world = World::default();
    let seed = setting("ANDON_CRASH_SEED", 7);
    let mut random = fastrand::Rng::with_seed(seed);
    let (cuts, mut undone, mut bites) = (setting("ANDON_CRASH_CUTS", 15), 0, 0);
    for n in 0..cuts {
        let large = if random.u8(..4) > 0 { "1" } else { "0" };
        let environment = disk.environment().into_iter().chain([(DIR, dir.clone()), (LARGE, large.into())]);
        disk.set(Knob::SyncDelayUs, 0);
        let mut life = Life::start("store::child", environment);
        if random.u8(..4) > 0 {
            life.wait_for("the store to open", |l| l.starts_with("opened"));
            // The slower a sync, the more is under way when the power goes.
            disk.set(Knob::SyncDelayUs, [0, 5_000, 30_000, 60_000][random.usize(..4)]);
        }
        let said = life.kill_after(Duration::from_millis(random.u64(LIFE)));
        said.iter().for_each(|line| world.hear(line));
        // Now and then only the process dies: the next one must not trust what was not synced.
        if random.u8(..5) == 0 {
            println!("cut {n} of seed {seed}: left out, only killed");
            keep(place.path(), n);
            continue;
        }
        let cut = disk.cut(Taste::any(&mut random));
        println!("cut {n} of seed {seed}: {} acknowledged, took back {cut}", world.acked);
        (undone, bites) = (undone + cut.sectors_undone, bites + usize::from(cut.sectors_undone > 0));
        keep(place.path(), n);
    }
    let (store, recovered) = Store::open(&config(), &dir, &["cloud"], Shared::new()).unwrap();
    settle(&store, recovered, &mut world);
    store.close().unwrap();
    let (opened, aside) = (world.opened, world.aside.len());
    println!(
        "{cuts} cuts, {bites} of them took back {undone} sectors; {opened} lives opened the store, {aside} segments were rebuilt"
    );
    assert!(bites as u64 > cuts / 5, "the cuts hit nothing");
}

/// A copy of what a cut left, for whoever looks into a failure: `ANDON_CRASH_KEEP` names a directory.
fn keep(place: &Path, n: u64) {
    if let Some(to) = std::env::var_os("ANDON_CRASH_KEEP").map(PathBuf::from) {
        std::fs::create_dir_all(&to).unwrap();
        let copy = to.join(format!("after-{n}"));
        let _ = std::fs::remove_dir_all(to.join(format!("after-{}", n.saturating_sub(3))));
        let done = std::process::Command::new("cp").arg("-a").arg(place).arg(copy).status().unwrap();
        assert!(done.success());
    }
}

/// All that was acknowledged is there, and each record once.
fn settle(store: &Store, recovered: Recovered, world: &mut World) {
    let engine = replay(store, recovered);
    assert!(world.acked > 0, "the child never got to work");
    assert!(engine.entries >= world.acked, "{} entries were acknowledged, {} are there", world.acked, engine.entries);
    let outbox = store.outbox("cloud").unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while (world.got.len() as u64) < engine.ordinal && Instant::now() < deadline {
        let read = outbox.read(100, 1 << 20).unwrap();
        for stored in &read {
            assert_eq!(stored.record, record(stored.record.at.0 as u64));
            world.get(stored.record.at.0 as u64, stored.sequence);
        }
        outbox.ack(&read);
    }
    assert!(missing(&world.got, engine.ordinal).is_empty(), "lost: {:?}", missing(&world.got, engine.ordinal));
    let beyond: Vec<_> = world.got.range(engine.ordinal..).take(20).collect();
    assert!(beyond.is_empty(), "delivered, but of no entry before ordinal {}: {beyond:?}", engine.ordinal);
    let mut sequences: Vec<u64> = world.got.values().copied().collect();
    sequences.sort_unstable();
    assert!(sequences.windows(2).all(|w| w[0] < w[1]), "a sequence was used twice");
    println!("{} entries, {} records, {} delivered again", engine.entries, engine.ordinal, world.repeats);
}

fn missing(got: &BTreeMap<u64, u64>, upto: u64) -> Vec<u64> {
    (0..upto).filter(|n| !got.contains_key(n)).take(20).collect()
}
