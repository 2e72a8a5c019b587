//! Turning commits into items: sequences, lanes, and what is already there.

use std::collections::BTreeMap;

use crate::types::{Kind, Record, RecordId, Time};

use super::Commit;
use super::lane::Lane;
use super::outbox::{Aside, AsideWhat};
use super::pack::Item;
use super::record::{self, DeadLetter, JournalItem};
use super::segment::Loss;
use super::snapshot::{self, SnapshotWriter};
use super::tail::LostTail;
use super::view::{LANES, LaneId, LaneView};

/// Data that is missing, and why; becomes a gap record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub lane: LaneId,
    pub reason: &'static str,
    pub loss: Loss,
}

/// Items on their way into the lanes, and the numbers they get.
pub(super) struct Group {
    items: [Vec<Item>; LANES],
    /// The next sequence of the journal, of the records and of the dead letters.
    next: Next,
    /// The ordinal after the last engine record of each lane, handed over or not.
    upto: [u64; LANES],
    /// Snapshots go into the journal in pieces, between the items of other groups.
    snapshots: SnapshotWriter,
    /// The snapshot whose root was handed over last.
    root_handed: Option<snapshot::Durable>,
    /// Unchanged parts of snapshots may hold so much of the journal on disk.
    snapshot_span: u64,
    asides: Vec<Aside>,
    /// Until the replay is over, what was lost at the ends of the outgoing lanes.
    tails: Vec<LostTail>,
    counts: BTreeMap<Kind, u64>,
    zstd: zstd::bulk::Compressor<'static>,
}

/// The next numbers.
#[derive(Copy, Clone, Debug)]
pub(super) struct Next {
    pub journal: u64,
    pub record: u64,
    pub dead: u64,
    pub refused: u64,
}

impl Group {
    /// Goes on from these numbers and lanes.
    pub fn new(
        next: Next,
        lanes: &[Lane; LANES],
        snapshots: SnapshotWriter,
        snapshot_span: u64,
        tails: Vec<LostTail>,
    ) -> std::io::Result<Group> {
        Ok(Group {
            items: Default::default(),
            next,
            upto: lanes.each_ref().map(|l| l.counters.engine_upto),
            snapshots,
            root_handed: None,
            snapshot_span,
            asides: Vec::new(),
            tails,
            counts: BTreeMap::new(),
            zstd: zstd::bulk::Compressor::new(1)?,
        })
    }

    /// Whether there is nothing to write, no rest of a snapshot either.
    pub fn is_empty(&self) -> bool {
        self.items.iter().all(Vec::is_empty) && self.snapshots.is_idle()
    }

    /// Whether a snapshot is not written yet.
    pub fn has_snapshot(&self) -> bool {
        !self.snapshots.is_idle()
    }

    /// The next sequence a record will get.
    pub fn next_record(&self) -> u64 {
        self.next.record
    }

    fn push(&mut self, lane: LaneId, bytes: Vec<u8>, at: Time, upto: Option<u64>, checkpoint: bool) -> u64 {
        let next = match lane {
            LaneId::Journal => &mut self.next.journal,
            LaneId::Priority | LaneId::Routine => &mut self.next.record,
            LaneId::Dead => &mut self.next.dead,
            LaneId::Refused => &mut self.next.refused,
        };
        let seq = *next;
        *next += 1;
        let upto_now = &mut self.upto[lane as usize];
        *upto_now = (*upto_now).max(upto.unwrap_or(0));
        self.items[lane as usize].push(Item { seq, bytes, at, engine_upto: *upto_now, checkpoint });
        seq
    }

    /// The replay is over: what of the lanes' ends it has not made again.
    pub fn take_tails(&mut self) -> Vec<LostTail> {
        std::mem::take(&mut self.tails)
    }

    /// Takes a commit apart.
    pub fn add_commit(&mut self, commit: Commit, now: Time) {
        let replayed = commit.entry.is_none();
        let upto = commit.first_ordinal + commit.records.len() as u64;
        if let Some(data) = commit.entry {
            let entry = JournalItem::Entry { at: now, first_ordinal: commit.first_ordinal, data };
            self.push(LaneId::Journal, entry.encode(), now, Some(upto), false);
        }
        for (i, record) in commit.records.iter().enumerate() {
            let ordinal = commit.first_ordinal + i as u64;
            self.add_record(record, ordinal, replayed);
        }
        for reject in commit.rejects {
            let letter = DeadLetter::Payload(reject);
            self.push(LaneId::Dead, record::encode(&letter), letter.at(), None, false);
        }
        if let Some(snapshot) = commit.checkpoint {
            self.snapshots.take(snapshot, now, upto, self.next.journal - 1);
        }
    }

    fn add_record(&mut self, record: &Record, ordinal: u64, replayed: bool) {
        let lane = LaneId::of(record.kind);
        if ordinal < self.upto[lane as usize] {
            if replayed {
                return;
            }
            // Better twice than lost: a fresh entry's records cannot be here yet.
            tracing::error!("the engine's ordinal {ordinal} has been used before in the {} lane", lane.name());
        }
        if replayed {
            self.tails.iter_mut().for_each(|t| t.count(lane, ordinal));
        }
        self.push(lane, record::encode(record), record.at, Some(ordinal + 1), false);
        *self.counts.entry(record.kind).or_default() += 1;
    }

    /// A record that a sink refused for good, or one that is sent once more.
    pub fn add_aside(&mut self, aside: Aside) {
        match &aside.what {
            AsideWhat::Letter(letter) => {
                self.push(LaneId::Refused, record::encode(letter), letter.at(), None, false);
            }
            AsideWhat::Again(record) => {
                self.push(LaneId::of(record.kind), record::encode(record), record.at, None, false);
                *self.counts.entry(record.kind).or_default() += 1;
            }
        }
        self.asides.push(aside);
    }

    /// Records of what is missing.
    pub fn add_gaps(&mut self, gaps: Vec<Gap>) {
        for gap in gaps {
            let record = gap_record(&gap, Time::now());
            self.push(LaneId::Priority, record::encode(&record), record.at, None, false);
            *self.counts.entry(Kind::Gap).or_default() += 1;
        }
    }

    /// Gives everything to the lanes.
    pub fn hand_over(&mut self, lanes: &mut [Lane; LANES], now: Time) {
        let journal = lanes[LaneId::Journal as usize].view.clone();
        let mut snapshots = std::mem::take(&mut self.snapshots);
        let mut push = |item: JournalItem, root| self.push(LaneId::Journal, item.encode(), now, None, root);
        self.root_handed = snapshots.step(&journal, &mut push);
        self.snapshots = snapshots;
        for (items, lane) in self.items.iter_mut().zip(lanes) {
            lane.add(std::mem::take(items), now, &mut self.zstd);
        }
    }

    /// What was handed over is durable. So is, then, all that the waiting snapshot knows of, and it may
    /// go into the journal. Returns the snapshot that has become durable.
    pub fn durable(&mut self, journal: &LaneView) -> Option<snapshot::Durable> {
        for aside in self.asides.drain(..) {
            // The sink may have gone.
            let _ = aside.done.send(());
        }
        let durable = self.root_handed.take();
        durable.iter().for_each(|d| self.snapshots.durable(d));
        let span = self.snapshot_span;
        self.snapshots.begin(|| recent_from(journal, span));
        durable
    }

    /// How many records of each kind were added since the last time.
    pub fn take_counts(&mut self) -> [u64; Kind::ALL.len()] {
        let counts = std::mem::take(&mut self.counts);
        Kind::ALL.map(|k| counts.get(&k).copied().unwrap_or(0))
    }
}

/// The sequence from which on the journal holds about this many bytes.
fn recent_from(journal: &LaneView, bytes: u64) -> u64 {
    let mut held = 0;
    for summary in journal.segments().iter().rev().map(|s| s.summary()) {
        held += summary.bytes;
        if held > bytes {
            return summary.name;
        }
    }
    0
}

/// Two equal gaps are one: the id says what is missing, not when that was noticed.
fn gap_record(gap: &Gap, now: Time) -> Record {
    let loss = &gap.loss;
    let data = serde_json::json!({
        "reason": gap.reason,
        "lane": gap.lane.name(),
        "first_sequence": loss.first,
        "last_sequence": loss.last,
        "from": loss.from.to_string(),
        "to": loss.to.to_string(),
        "records": loss.records,
    });
    let numbers = [loss.first, loss.last, loss.records, loss.from.0 as u64, loss.to.0 as u64].map(u64::to_le_bytes);
    let id = RecordId::of(&[b"store gap", gap.lane.name().as_bytes(), gap.reason.as_bytes(), &numbers.concat()]);
    Record { id, kind: Kind::Gap, subject: "store".into(), at: now, data: data.to_string() }
}
