//! Random histories against a plain model: commits of all sizes, reads, acknowledgements, dead
//! letters, clean stops and kills. Nothing acknowledged may be missing, nothing may be there twice. One
//! sink takes records in their order, the other live ones before a backlog.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// Commits of these shapes, sent together and awaited.
    Commit(Vec<Step>),
    /// The same, but nobody waits for the receipts before the kill that follows.
    CommitAndKill(Vec<Step>),
    /// Read up to so many, acknowledge this share of them.
    Deliver {
        sink: usize,
        records: usize,
        bytes: usize,
        share: f64,
    },
    /// Set the next record aside.
    DeadLetter {
        sink: usize,
    },
    Reopen,
    Kill,
}

/// What one entry holds; the model engine turns each into the same records every time.
#[derive(Clone, Debug)]
struct Step {
    kinds: Vec<u8>,
    padding: usize,
    /// Its size, and which of its parts have changed.
    checkpoint: Option<(usize, u8)>,
    reject: bool,
}

const SINKS: [&str; 2] = ["archive", "cloud"];
/// Which of them takes live records first.
const LIVE_FIRST: usize = 1;

fn config() -> Config {
    Config { backlog_after: 10, ..small() }
}

fn step() -> impl Strategy<Value = Step> {
    let padding = prop_oneof![6 => 0..300usize, 1 => 100_000..400_000usize];
    let checkpoint = prop_oneof![
        4 => Just(None),
        1 => (0..200usize, 0..8u8).prop_map(Some),
        1 => (130_000..300_000usize, 0..8u8).prop_map(Some),
    ];
    (proptest::collection::vec(0..6u8, 0..5), padding, checkpoint, proptest::bool::weighted(0.1))
        .prop_map(|(kinds, padding, checkpoint, reject)| Step { kinds, padding, checkpoint, reject })
}

fn op() -> impl Strategy<Value = Op> {
    let steps = || proptest::collection::vec(step(), 1..6);
    let deliver = (0..2usize, 1..30usize, prop_oneof![Just(usize::MAX), 20..200usize], 0.0..1.2f64);
    prop_oneof![
        6 => steps().prop_map(Op::Commit),
        1 => steps().prop_map(Op::CommitAndKill),
        6 => deliver.prop_map(|(sink, records, bytes, share)| Op::Deliver { sink, records, bytes, share }),
        1 => (0..2usize).prop_map(|sink| Op::DeadLetter { sink }),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
    ]
}

/// The engine and what it knows it has sent.
#[derive(Default)]
struct Model {
    entries: Vec<(u64, Vec<u8>)>,
    /// Record numbers (their ordinals) by lane.
    lanes: [Vec<u64>; 2],
    /// What each sink has delivered.
    delivered: [BTreeSet<u64>; 2],
    sequences: BTreeMap<u64, u64>,
    ordinal: u64,
    dead: u64,
    /// The parts of the snapshot that was sent last in this life.
    parts: Vec<Vec<u8>>,
    /// All that were sent, by the entries seen.
    snapshots: BTreeMap<u64, Vec<Vec<u8>>>,
}

fn bytes_of(seen: u64, padding: usize) -> PartContent {
    let noise = (0..padding as u64).map(|i| (i * i % 253 + seen) as u8);
    PartContent::Bytes(seen.to_le_bytes().into_iter().chain(noise).collect())
}

fn entry_of(step: &Step) -> Vec<u8> {
    let mut entry = vec![step.kinds.len() as u8];
    entry.extend(&step.kinds);
    entry.extend((0..step.padding).map(|i| (i * 31 % 251) as u8));
    entry
}

fn records_of(entry: &[u8], ordinal: u64) -> Vec<Record> {
    let kinds = &entry[1..=usize::from(entry[0])];
    // Half of all are verdicts.
    let kind = |k: u8| if k.is_multiple_of(2) { Kind::Verdict } else { Kind::ALL[usize::from(k)] };
    kinds.iter().zip(ordinal..).map(|(k, n)| record(kind(*k), n)).collect()
}

fn lane_of(record: &Record) -> usize {
    usize::from(record.kind == Kind::Verdict)
}

impl Model {
    fn apply(&mut self, entry: Vec<u8>) -> Vec<Record> {
        let records = records_of(&entry, self.ordinal);
        self.entries.push((self.ordinal, entry));
        for r in &records {
            self.lanes[lane_of(r)].push(r.at.0 as u64);
        }
        self.ordinal += records.len() as u64;
        records
    }

    fn commit(&mut self, step: &Step) -> Commit {
        let first_ordinal = self.ordinal;
        let entry = entry_of(step);
        let records = self.apply(entry.clone());
        let checkpoint = step.checkpoint.map(|(padding, changed)| self.checkpoint(padding, changed));
        let reject = Reject {
            at: Time(1),
            source: "shop".into(),
            origin: "t".into(),
            reason: "no".into(),
            payload: vec![1, 2, 3],
        };
        self.dead += u64::from(step.reject);
        let rejects = if step.reject { vec![reject] } else { Vec::new() };
        Commit { entry: Some(entry), checkpoint, records, first_ordinal, rejects, receipts: Vec::new() }
    }

    /// The engine's state is how many entries it has seen. Beside it there are parts that change now and
    /// then; the first snapshot of a life has all of them.
    fn checkpoint(&mut self, padding: usize, changed: u8) -> Snapshot {
        let seen = self.entries.len() as u64;
        let mut parts = vec![SnapshotPart { key: "seen".into(), content: bytes_of(seen, 0) }];
        for i in 0..3 {
            let new = changed & (1 << i) != 0 || self.parts.len() < 3;
            let content = if new { bytes_of(seen, padding) } else { PartContent::Unchanged };
            parts.push(SnapshotPart { key: format!("part {i}").into(), content });
        }
        let before = std::mem::take(&mut self.parts);
        for (i, part) in parts[1..].iter().enumerate() {
            self.parts.push(match &part.content {
                PartContent::Bytes(bytes) => bytes.clone(),
                PartContent::Unchanged => before[i].clone(),
            });
        }
        self.snapshots.insert(seen, self.parts.clone());
        Snapshot { parts }
    }

    /// Forgets the entries that were never acknowledged and are not there.
    fn truncate(&mut self, entries: usize) {
        let keep = std::mem::take(&mut self.entries);
        let (sequences, dead) = (std::mem::take(&mut self.sequences), self.dead);
        let delivered = std::mem::take(&mut self.delivered);
        let snapshots = std::mem::take(&mut self.snapshots);
        *self = Model { delivered, sequences, dead, snapshots, ..Model::default() };
        for (_, entry) in keep.into_iter().take(entries) {
            self.apply(entry);
        }
    }

    /// Holds what is recovered against what was sent, and sends its records again.
    fn replay(&mut self, store: &Store, recovered: Recovered, acknowledged: usize) {
        let seen = recovered.checkpoint.as_ref().map_or(0, |snapshot| {
            let seen = u64::from_le_bytes(snapshot.parts[0].1[..8].try_into().unwrap());
            let parts: Vec<_> = snapshot.parts[1..].iter().map(|(_, bytes)| bytes.clone()).collect();
            assert_eq!(self.snapshots.get(&seen), Some(&parts));
            seen as usize
        });
        let entries: Vec<Entry> = recovered.entries.map(Result::unwrap).collect();
        let total = seen + entries.len();
        assert!(total >= acknowledged, "{acknowledged} entries were acknowledged, {total} are there");
        assert!(total <= self.entries.len());
        self.truncate(total);
        assert!(recovered.next_ordinal <= self.ordinal);
        let ordinal_at = self.entries.get(seen).map_or(self.ordinal, |(o, _)| *o);
        if seen > 0 {
            assert_eq!(recovered.checkpoint_ordinal, ordinal_at);
        }
        for (entry, (ordinal, data)) in entries.iter().zip(&self.entries[seen..]) {
            assert_eq!((entry.first_ordinal, &entry.data), (*ordinal, data));
            let records = records_of(data, *ordinal);
            commit(store, Commit { records, first_ordinal: *ordinal, ..Commit::default() });
        }
    }

    /// What a sink has not delivered of a lane, in order.
    fn waiting(&self, sink: usize, lane: usize) -> Vec<u64> {
        self.lanes[lane].iter().copied().filter(|n| !self.delivered[sink].contains(n)).collect()
    }

    /// After a kill cursors may be older than they were, never newer.
    fn compare_cursors(&mut self, dir: &Path, outboxes: &[Outbox; 2], exact: bool) {
        let offline = Offline::look(dir).unwrap();
        for (sink, outbox) in outboxes.iter().enumerate() {
            let there: Vec<Stored> = offline.records(Some(SINKS[sink])).map(Result::unwrap).collect();
            let there: BTreeSet<u64> = numbers(&there).into_iter().collect();
            for (lane, (depth, _)) in outbox.depths().into_iter().enumerate() {
                let (mut open, was) = (self.lanes[lane].clone(), self.waiting(sink, lane));
                open.retain(|n| there.contains(n));
                assert_eq!(depth as usize, open.len(), "sink {sink} lane {lane}");
                assert!(
                    open == was || (!exact && was.iter().all(|n| there.contains(n))),
                    "{was:?} waited, now {open:?}"
                );
            }
            self.delivered[sink] = self.lanes.iter().flatten().copied().filter(|n| !there.contains(n)).collect();
        }
    }

    /// What a read must give, and what it gives.
    fn compare_read(&mut self, sink: usize, read: &[Stored], asked: usize) {
        let (urgent, routine) = (self.waiting(sink, 0), self.waiting(sink, 1));
        let expected = if urgent.is_empty() { &routine } else { &urgent };
        let got = numbers(read);
        if sink == LIVE_FIRST && urgent.is_empty() {
            // Two runs in order, of which the second begins with the oldest that waits.
            let second = got.windows(2).position(|w| w[0] > w[1]).map_or(0, |at| at + 1);
            assert!(got[..second].is_sorted() && got[second..].is_sorted(), "{got:?}");
            assert!(got.iter().all(|n| routine.binary_search(n).is_ok()), "{got:?} of {routine:?}");
            assert!(
                asked < 4 || routine.first().is_none_or(|n| got.contains(n)),
                "the backlog starves: {got:?} of {routine:?}"
            );
            assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), got.len());
        } else {
            assert_eq!(got, expected[..read.len()]);
        }
        assert_eq!(read.is_empty(), expected.is_empty());
        for stored in read {
            let number = stored.record.at.0 as u64;
            assert_eq!(*self.sequences.entry(number).or_insert(stored.sequence), stored.sequence, "record {number}");
        }
    }
}

struct Run {
    dir: tempfile::TempDir,
    model: Model,
    store: Option<(Store, [Outbox; 2])>,
}

impl Run {
    fn new() -> Run {
        let mut run = Run { dir: fast_dir(), model: Model::default(), store: None };
        run.open(0, true);
        run
    }

    fn open(&mut self, acknowledged: usize, exact: bool) {
        let (store, recovered) = Store::open(&config(), self.dir.path(), &SINKS, Shared::new()).unwrap();
        assert!(recovered.quarantined.is_empty(), "{:?}", recovered.quarantined);
        let [archive, cloud] = SINKS.map(|s| store.outbox(s).unwrap());
        let outboxes = [archive, cloud.live_first()];
        self.model.replay(&store, recovered, acknowledged);
        self.model.compare_cursors(self.dir.path(), &outboxes, exact);
        self.store = Some((store, outboxes));
    }

    fn step(&mut self, op: &Op) {
        let (store, outboxes) = self.store.as_ref().unwrap();
        match op {
            Op::Commit(steps) => {
                let waiters: Vec<_> = steps.iter().map(|s| send(store, self.model.commit(s))).collect();
                waiters.into_iter().for_each(|w| w.blocking_recv().unwrap());
            }
            Op::CommitAndKill(steps) => {
                let before = self.model.entries.len();
                let waiters: Vec<_> = steps.iter().map(|s| send(store, self.model.commit(s))).collect();
                drop(self.store.take());
                let done = waiters.into_iter().map_while(|mut w| w.try_recv().ok()).count();
                self.open(before + done, false);
            }
            Op::Deliver { sink, records, bytes, share } => {
                let read = outboxes[*sink].read(*records, *bytes).unwrap();
                self.model.compare_read(*sink, &read, if *bytes == usize::MAX { *records } else { 0 });
                let acked = &read[..((read.len() as f64 * share) as usize).min(read.len())];
                outboxes[*sink].ack(acked);
                self.model.delivered[*sink].extend(numbers(acked));
            }
            Op::DeadLetter { sink } => {
                let read = outboxes[*sink].read(1, 0).unwrap();
                if let Some(stored) = read.into_iter().next() {
                    self.model.delivered[*sink].extend(numbers(std::slice::from_ref(&stored)));
                    self.model.dead += 1;
                    block_on(outboxes[*sink].dead_letter(stored, "poison")).unwrap();
                }
            }
            Op::Reopen => {
                self.store.take().unwrap().0.close().unwrap();
                self.open(self.model.entries.len(), true);
            }
            Op::Kill => {
                drop(self.store.take());
                self.open(self.model.entries.len(), false);
            }
        }
    }

    fn finish(&mut self) {
        let (store, outboxes) = self.store.as_ref().unwrap();
        for (sink, outbox) in outboxes.iter().enumerate() {
            loop {
                let read = outbox.read(17, usize::MAX).unwrap();
                self.model.compare_read(sink, &read, 17);
                if read.is_empty() {
                    break;
                }
                self.model.delivered[sink].extend(numbers(&read));
                outbox.ack(&read);
            }
            assert_eq!(outbox.depth(), (0, 0));
        }
        let mut sequences: Vec<u64> = self.model.sequences.values().copied().collect();
        sequences.sort_unstable();
        sequences.dedup();
        assert_eq!(sequences.len(), self.model.sequences.len(), "a sequence was used twice");
        for lane in &self.model.lanes {
            let in_order = lane.iter().filter_map(|n| self.model.sequences.get(n)).is_sorted();
            assert!(in_order, "sequences fall within a lane");
        }
        assert!(store.status().lanes["dead"].records <= self.model.dead);
        // All but the segments in use is deleted.
        wait_for("delivered segments are deleted", || {
            let lanes = ["priority", "routine"].map(|l| self.dir.path().join("queue").join(l));
            lanes.iter().all(|l| view::list(l).unwrap().len() <= 2)
        });
        self.store.take().unwrap().0.close().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_the_model(ops in proptest::collection::vec(op(), 1..40)) {
        let mut run = Run::new();
        for op in &ops {
            run.step(op);
        }
        run.finish();
    }
}
