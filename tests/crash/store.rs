//! kill -9 again and again: a child process commits numbered records and delivers them; whatever it
//! had acknowledged has to be there in the next life, once.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use andon::metrics::Shared;
use andon::store::{Commit, Config, Outbox, Recovered, Store};
use andon::types::{Kind, Receipt, Record, RecordId, Time};

const DIR: &str = "ANDON_TEST_STORE_DIR";
const KILLS: usize = 30;
/// Asks for another number of kills.
const KILLS_VAR: &str = "ANDON_TEST_KILLS";

fn config() -> Config {
    Config {
        segment_bytes: 128 << 10,
        segment_slots: 24,
        commit_interval: Duration::from_millis(4),
        ..Config::default()
    }
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
        bytes.extend((0..padding).map(|i| (i * 31 % 251) as u8));
        bytes
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
    assert!(recovered.quarantined.is_empty(), "{:?}", recovered.quarantined);
    let mut engine = recovered.checkpoint.map(|c| Engine::read(&c)).unwrap_or_default();
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
    let outbox = store.outbox("cloud").unwrap();
    std::thread::spawn(move || deliver(&outbox));
    let (acks, waiting) = mpsc::sync_channel(64);
    std::thread::spawn(move || {
        for (waiter, entries) in waiting {
            let waiter: andon::types::ReceiptWaiter = waiter;
            waiter.blocking_recv().unwrap();
            say(format_args!("acked {entries}"));
        }
    });
    let mut engine = replay(&store, recovered);
    loop {
        let before = engine;
        let padding = (engine.entries * 7919 % 3000) as usize * if engine.entries.is_multiple_of(101) { 90 } else { 1 };
        let records = engine.step();
        let checkpoint = engine.entries.is_multiple_of(40).then(|| engine.bytes(padding));
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

fn say(line: std::fmt::Arguments<'_>) {
    // A whole line at a time, so that a kill cuts off at most the last one.
    let line = format!("{line}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

fn spawn(dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "store::child", "--nocapture"]).env(DIR, dir);
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap()
}

/// What the outside world has seen.
#[derive(Default)]
struct World {
    acked: u64,
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

/// Reads lines until the child is dead and all it said is heard.
fn listen(stdout: ChildStdout) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout);
        let mut heard = Vec::new();
        let mut line = String::new();
        // A line without its end was cut off by the kill.
        while lines.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
            heard.push(line.trim_end().to_owned());
            line.clear();
        }
        heard
    })
}

#[test]
fn thirty_kills_lose_nothing_and_double_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::default();
    let mut rng = fastrand::Rng::with_seed(7);
    let kills = std::env::var(KILLS_VAR).ok().and_then(|k| k.parse().ok()).unwrap_or(KILLS);
    for _ in 0..kills {
        let mut child = spawn(dir.path());
        let heard = listen(child.stdout.take().unwrap());
        // Any moment will do, from within the start to well into the work.
        std::thread::sleep(Duration::from_millis(rng.u64(5..400)));
        child.kill().unwrap();
        child.wait().unwrap();
        heard.join().unwrap().iter().for_each(|line| world.hear(line));
    }
    let (store, recovered) = Store::open(&config(), dir.path(), &["cloud"], Shared::new()).unwrap();
    let engine = replay(&store, recovered);
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
    store.close().unwrap();
}

fn missing(got: &BTreeMap<u64, u64>, upto: u64) -> Vec<u64> {
    (0..upto).filter(|n| !got.contains_key(n)).take(20).collect()
}
