//! The store: what the agent must not lose, on disk. sled is private to this module.
//!
//! # What it promises
//!
//! The engine is deterministic: its state is a function of the journal entries in order. For each
//! entry it sends a [`Commit`]: the entry, the records the entry caused, and the receipts of the
//! batches it came from. A receipt is completed once the entry *and* its records are on the medium
//! (`fdatasync`), and only then can sinks read the records.
//!
//! * Nothing acknowledged is lost by a crash, a kill or a power cut.
//! * Nothing is stored twice: the engine numbers its records (the *ordinal*), each lane knows the
//!   ordinal it holds everything below of, and what a replay brings again below it is skipped.
//! * Records have a *sequence*, unique and rising over both outgoing lanes, which never goes back,
//!   whatever was deleted or damaged.
//! * What is given up or found damaged becomes a gap record: reason, lane, range, count.
//! * Nothing is refused for its size. The only error of [`Sender`] is that the store has ended.
//!
//! # Lanes
//!
//! | lane | holds | read by |
//! |---|---|---|
//! | `journal` | entries and engine checkpoints | recovery, `learn` |
//! | `priority` | alarm, gap, model, usage and audit records | sinks, first |
//! | `routine` | verdict records | sinks |
//! | `dead` | payloads that could not be read | people |
//! | `refused` | records that a sink refused | people, `requeue` |
//!
//! # On disk
//!
//! ```text
//! DATA_DIR/lock                      flock; holds the pid
//! DATA_DIR/queue/format              the version of all below
//! DATA_DIR/queue/cursors             two pages, written in turn: how far each sink has come, what it has
//!                                    done beyond that because live records went before a backlog, and
//!                                    how far each lane has come
//! DATA_DIR/queue/LANE/manifest       what is known of the sealed segments; JSON and its CRC
//! DATA_DIR/queue/LANE/seg-FIRST/     a sled Db; FIRST is the sequence of its first item
//! DATA_DIR/queue/LANE/spare/         the next segment, being made or ready
//! DATA_DIR/queue/LANE/del-…/         being deleted
//! DATA_DIR/queue/LANE/rescue/        a segment being rebuilt
//! DATA_DIR/queue/quarantine/         damaged segments, kept for a look (8 at most)
//! ```
//!
//! A segment is one sled 0.34.7 Db. Its keys are slot numbers (u32, big-endian), all inserted empty
//! when it is made: filling a slot then costs one delta, and no page is ever split or rewritten. A
//! value is one *block* of at most 128 KiB, far below the quarter of sled's segment beyond which
//! values go to files that sled never syncs. Slots are filled in order, once. A segment is sealed
//! when its slots are used or it holds enough bytes; the next one lies ready, with its room on disk
//! reserved, so a roll is a rename, and a full disk shows up there.
//!
//! All of this leans on how 0.34.7 lays out pages, so the version is pinned and a test holds the
//! bytes written against the bytes given.
//!
//! A block (little-endian, 92 bytes of header):
//!
//! | at | size | |
//! |---|---|---|
//! | 0 | 8 | magic `B7 "andonb" 01`; the last byte is the version |
//! | 8 | 4 | lane, codec (0 plain, 1 zstd), flags (1: holds the root of a snapshot, 2: follows a sync), 0 |
//! | 12 | 4 | slot |
//! | 16 | 4 | items that are complete with this block |
//! | 20 | 2+2 | part, parts: an item larger than a block is split |
//! | 24 | 4+4 | payload length, unpacked length |
//! | 32 | 8+8 | sequence of the first and the last item |
//! | 48 | 8 | position: items the lane ever held before this block |
//! | 56 | 8 | the engine's ordinal after the last engine record in the lane |
//! | 64 | 8+8+8 | time written, earliest and latest time of the items; ns since 1970 |
//! | 88 | 4 | CRC-32 of header and payload |
//!
//! The payload is items, each preceded by its sequence (8) and length (4), or one part of a split
//! item. Positions count every item, so the number of records in a hole is known exactly.
//!
//! # Order of durability
//!
//! Commits are gathered into groups. A group's journal blocks are synced first, then the priority,
//! routine and dead lanes, then receipts are completed and readers see the records. A crash in
//! between leaves entries without records: the replay makes them again. A snapshot therefore goes
//! into the journal only after the group it came with: it must never be there before the records it
//! knows of. It says which entry it was taken after, so its place among the entries does not matter.
//!
//! # Snapshots
//!
//! A snapshot has named parts. Each part is cut into pieces of one block; a group carries pieces of
//! 1 MiB at most, and the entries of commits between them. The last pieces are the index, which lists
//! key, length, checksum and pieces of each part; then comes the root, one item, flagged in its block.
//! Only a snapshot with its root counts. A part that the engine calls unchanged is listed where it
//! lies; it is copied forward once half of the journal's share lies behind it. What lies below the
//! first piece and the last known entry of the newest durable snapshot is history, which the limits
//! may take. An older format has the whole snapshot in one item, which is read as one part.
//!
//! # Recovery
//!
//! * Of a segment that was being written, the file is first searched for blocks (magic and CRC),
//!   then sled opens it, on a thread that may panic or hang. Where sled and file agree, it is
//!   written on. Otherwise it is rebuilt from the blocks found, and the original goes to the
//!   quarantine.
//! * After a power cut the blocks of the last group may be there in part, in any order. What comes
//!   after a hole behind the last block that follows a sync was never acknowledged and is dropped:
//!   it comes again, in order. A hole before that is damage.
//! * What a killed process left is synced before anything is built on it.
//! * A sealed segment is never opened by sled again: opening writes, needs free space, and has been
//!   seen to panic, to hang and to drop blocks silently. Readers search its file for blocks and hold
//!   what they find against the manifest. A segment with a hole goes to the quarantine, is read
//!   from there, and the hole becomes a gap record.
//! * A split item without its last part was never acknowledged and is passed over. A snapshot
//!   without its root, or with a damaged piece, is passed over for the one before.
//! * The cursors file says how far each lane had come. Where less is found, the rest is lost, but for
//!   what the replay makes again; that is known, and told, with the first new entry.
//! * Ages are counted on from the last run. A clock that is more than an hour ahead of that counts
//!   only once it is confirmed.
//! * The directory and the files in use are held against what was opened before each group is
//!   acknowledged.
//! * After damage, sequences leap ahead, so that none is used twice.
//! * A segment that is gone is a loss unless all saved cursors are past it, or all it held was
//!   delivered ahead of them; cursors are synced before a segment is deleted.
//! * A write error ends the segment it hit. The group waits, receipts wait, the channel fills, and
//!   a fresh segment is tried, with pauses, until it works.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::metrics::{Shared, lock};
use crate::settings::Section;
use crate::types::{Receipt, Record, Reject, Time};

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod any_bytes;
mod block;
mod cursors;
mod fault;
mod group;
mod hand;
mod house;
mod items;
mod journal;
mod lane;
mod limits;
mod lock;
mod manifest;
mod offline;
mod opening;
mod outbox;
mod pack;
mod place;
mod record;
mod rescue;
mod segment;
mod slots;
mod snapshot;
mod tail;
mod view;
mod writer;

pub use items::{DeadLetters, Records};
pub use journal::{Entries, Entry};
pub use offline::Offline;
pub use opening::OpenError;
pub use outbox::{Outbox, ReadError};
pub use record::DeadLetter;
pub use snapshot::{PartContent, RecoveredSnapshot, Snapshot, SnapshotPart};

use house::Figures;
use outbox::{Aside, AsideWhat, Shelf};
use snapshot::Progress;
use view::{LANES, LaneId, LaneView};
use writer::Order;

/// Commits on their way to the writer. Each holds a few batches of readings at most; with more,
/// a slow disk would only be noticed later.
const COMMITS: usize = 64;
/// The most bytes of data a record is made with: what makes records bounds its texts so that none is
/// larger. The store itself takes any size.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Settings of `[store]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What all lanes together may take on disk, in bytes.
    pub max_bytes: u64,
    /// Older data is given up.
    pub max_age: Duration,
    /// Under load there is one group, and one sync of each lane, in each of these.
    pub commit_interval: Duration,
    /// What to do at the limits.
    pub when_full: WhenFull,
    /// What payloads that could not be read may take on disk, in bytes; beyond it the oldest go.
    pub dead_letter_max_bytes: u64,
    /// What records that a sink has refused may take on disk, in bytes; beyond it the oldest go.
    pub refused_max_bytes: u64,
    /// Size of a segment of the journal and the routine lane; less when `max_bytes` is small.
    /// Not a setting: tests choose small ones.
    pub segment_bytes: u64,
    /// Slots of a segment. Not a setting either.
    pub segment_slots: u32,
    /// With more routine records than this to deliver, a sink with [`Outbox::live_first`] has a backlog. Not
    /// a setting: two of the cloud's full requests, so that what is soon made up for keeps its order.
    pub backlog_after: u64,
    /// Bytes of a snapshot that are written with one group of commits. Not a setting either: what one
    /// sync may take longer for it.
    pub snapshot_step: usize,
}

/// What to do at the limits.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Give up the oldest verdicts, then the oldest of the rest, with a gap record.
    DropOldest,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            max_bytes: 2 << 30,
            max_age: Duration::from_hours(14 * 24),
            commit_interval: Duration::from_millis(20),
            when_full: WhenFull::DropOldest,
            dead_letter_max_bytes: 16 << 20,
            refused_max_bytes: 64 << 20,
            // sled keeps about as much in memory as it has in its newest segment.
            segment_bytes: 8 << 20,
            segment_slots: 2048,
            backlog_after: 1000,
            snapshot_step: 1 << 20,
        }
    }
}

impl Config {
    /// The least that leaves room for the segments in use.
    const MAX_BYTES_MIN: u64 = 64 << 20;
    /// The least that leaves room for the segment in use of a lane of dead letters, and one before it.
    const DEAD_LETTERS_MIN: u64 = 4 << 20;

    /// Reads `[store]`.
    pub fn read(section: &Section<'_>) -> Config {
        let mut config = Config::default();
        if let Some(bytes) = section.size("max_bytes") {
            config.max_bytes = bytes.max(Config::MAX_BYTES_MIN);
            if bytes < Config::MAX_BYTES_MIN {
                section.problem("max_bytes", "is less than 64MiB, which the segments in use alone can take");
            }
        }
        if let Some(bytes) = section.size("dead_letter_max_bytes") {
            config.dead_letter_max_bytes = at_least(section, "dead_letter_max_bytes", bytes);
        }
        if let Some(bytes) = section.size("refused_max_bytes") {
            config.refused_max_bytes = at_least(section, "refused_max_bytes", bytes);
        }
        if let Some(age) = section.duration("max_age") {
            config.max_age = age.max(Duration::from_secs(60));
            if age < Duration::from_secs(60) {
                section.problem("max_age", "is less than a minute");
            }
        }
        if let Some(interval) = section.duration("commit_interval") {
            config.commit_interval = interval.min(Duration::from_secs(10));
            if interval > Duration::from_secs(10) {
                section.problem("commit_interval", "is more than 10s; brokers would wait that long for each answer");
            }
        }
        if let Some(when_full) = section.choice("when_full", &[("drop_oldest", WhenFull::DropOldest)]) {
            config.when_full = when_full;
        }
        config
    }
}

/// The limit of a lane of dead letters.
fn at_least(section: &Section<'_>, key: &str, bytes: u64) -> u64 {
    if bytes < Config::DEAD_LETTERS_MIN {
        section.problem(key, "is less than 4MiB, which the segments in use alone can take");
    }
    bytes.max(Config::DEAD_LETTERS_MIN)
}

/// One step of the engine, to be made durable as a whole.
#[derive(Debug, Default)]
pub struct Commit {
    /// The journal entry, in the engine's own encoding, of any size. `None` for what a replay makes
    /// again, whose entries are in the journal already.
    pub entry: Option<Vec<u8>>,
    /// A snapshot of the engine after this entry and all before it, of any size. Without an entry:
    /// after every entry that [`Recovered`] gave, so not before the last one was applied.
    pub checkpoint: Option<Snapshot>,
    /// What the entry caused, in the engine's order. Whoever makes records keeps each below
    /// [`MAX_RECORD_BYTES`]; a larger one is stored and read whole all the same.
    pub records: Vec<Record>,
    /// The ordinal of `records[0]`, or of the next record if there is none. Ordinals number the
    /// engine's records from 0 without holes, whatever their kind.
    pub first_ordinal: u64,
    /// Input that could not be read.
    pub rejects: Vec<Reject>,
    /// Completed when all of this is durable.
    pub receipts: Vec<Receipt>,
}

impl Commit {
    /// About how many bytes it holds.
    pub fn size(&self) -> usize {
        let records: usize = self.records.iter().map(|r| r.data.len() + 64).sum();
        let rejects: usize = self.rejects.iter().map(|r| r.payload.len() + 64).sum();
        let entry = self.entry.as_ref().map_or(0, Vec::len);
        entry + self.checkpoint.as_ref().map_or(0, Snapshot::size) + records + rejects
    }
}

/// The store has ended: nothing more becomes durable. Gives the commit back, with its receipts neither
/// completed nor dropped. This is the only error of [`Sender`]: a commit of any size is taken.
#[derive(Debug, thiserror::Error)]
#[error("the store has ended")]
pub struct Ended(pub Box<Commit>);

/// Where commits go. Clones share one bounded channel.
#[derive(Clone)]
pub struct Sender {
    tx: mpsc::Sender<Commit>,
    progress: Arc<Progress>,
}

impl Sender {
    /// Hands a commit over, waiting while the channel is full.
    pub async fn send(&self, commit: Commit) -> Result<(), Ended> {
        self.count(&commit);
        self.tx.send(commit).await.map_err(|e| Ended(Box::new(e.0)))
    }

    /// [`Sender::send`] for threads that may block.
    pub fn blocking_send(&self, commit: Commit) -> Result<(), Ended> {
        self.count(&commit);
        self.tx.blocking_send(commit).map_err(|e| Ended(Box::new(e.0)))
    }

    fn count(&self, commit: &Commit) {
        self.progress.under_way.fetch_add(u32::from(commit.checkpoint.is_some()), Ordering::AcqRel);
    }

    /// Resolves once the store has ended.
    pub async fn ended(&self) {
        self.tx.closed().await;
    }

    /// Whether so much has gone into the journal since the last checkpoint that the next commit
    /// should bring one. The journal keeps whatever is newer than the last checkpoint, and a start
    /// replays it.
    pub fn wants_checkpoint(&self) -> bool {
        self.progress.wanted.load(Ordering::Relaxed)
    }

    /// Whether the next checkpoint has to bring the bytes of all its parts. One that calls a part
    /// unchanged is not kept then.
    pub fn wants_all_parts(&self) -> bool {
        self.progress.all_parts.load(Ordering::Acquire)
    }

    /// Whether a checkpoint that was sent is not durable yet. Another one is better left until it is.
    pub fn is_writing_checkpoint(&self) -> bool {
        self.progress.under_way.load(Ordering::Acquire) > 0
    }
}

/// What was on disk when the store was opened.
pub struct Recovered {
    /// The newest snapshot of the engine that is intact, with all its parts.
    pub checkpoint: Option<RecoveredSnapshot>,
    /// The ordinal of the first record after the checkpoint.
    pub checkpoint_ordinal: u64,
    /// The entries after the checkpoint, in order. Apply each with its `first_ordinal` and send its
    /// records again, without entry; those that are stored are skipped.
    pub entries: Entries,
    /// The first ordinal that nothing on disk has used. After the replay, go on from this or from
    /// the engine's own count, whichever is larger.
    pub next_ordinal: u64,
    /// Segments that had to be set aside, and why; for a person.
    pub quarantined: Vec<String>,
}

/// How full the store is, and how well.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct StoreStatus {
    /// By lane: `journal`, `priority`, `routine`, `dead`, `refused`.
    pub lanes: BTreeMap<&'static str, LaneStatus>,
    /// Segments set aside since the start.
    pub quarantined: u64,
    /// Why nothing can be written at present.
    pub fault: Option<String>,
}

/// One lane of [`StoreStatus`].
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneStatus {
    /// Items to be delivered by the slowest sink; for the journal and dead letters, all items.
    pub records: u64,
    /// About how many bytes those take.
    pub bytes: u64,
    /// When the oldest item still on disk was written; RFC 3339 in JSON.
    #[serde(serialize_with = "as_text")]
    pub oldest: Option<Time>,
    /// Bytes on disk, what is reserved included.
    pub disk_bytes: u64,
    /// Items given up since the start without having been delivered.
    pub dropped: u64,
}

fn as_text<S: serde::Serializer>(time: &Option<Time>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(t) => to.collect_str(t),
        None => to.serialize_none(),
    }
}

/// The open store. Dropping it without [`Store::close`] is like a crash: what is not durable yet is
/// dropped, with its receipts.
pub struct Store {
    sender: Sender,
    shelf: Arc<Shelf>,
    order: Arc<Order>,
    figures: Arc<Mutex<Figures>>,
    /// In the order of [`LaneId::ALL`].
    lanes: [Arc<LaneView>; LANES],
    thread: Option<JoinHandle<Result<(), fault::Fault>>>,
    _lock: lock::Lock,
}

/// The store could not save everything at the end.
#[derive(Debug, thiserror::Error)]
#[error("the store did not close cleanly: {0}")]
pub struct CloseError(String);

impl Store {
    /// Opens the store below `data_dir`, or makes it, for these sinks. Sinks that are no longer
    /// named are forgotten; a new one starts with the oldest records still held.
    pub fn open(
        config: &Config,
        data_dir: &Path,
        sinks: &[&str],
        shared: Shared,
    ) -> Result<(Store, Recovered), OpenError> {
        opening::open(config, data_dir, sinks, shared)
    }

    /// For the engine.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// For a sink named at [`Store::open`].
    pub fn outbox(&self, sink: &str) -> Option<Outbox> {
        self.shelf.sinks.get(sink).map(|s| Outbox::new(s.clone(), self.shelf.clone()))
    }

    /// Figures for status and dashboard; the sizes on disk are up to a second old.
    pub fn status(&self) -> StoreStatus {
        let figures = lock(&self.figures).clone();
        let depths: Vec<[(u64, u64); 2]> = self.shelf.sinks.values().map(|s| self.shelf.depth(s)).collect();
        let mut lanes = BTreeMap::new();
        for (i, id) in LaneId::ALL.into_iter().enumerate() {
            let out = LaneId::OUT.iter().position(|o| *o == id);
            let (records, bytes) = match out {
                Some(o) if !depths.is_empty() => depths.iter().map(|d| d[o]).max().unwrap_or_default(),
                _ => self.lanes[i].held(),
            };
            let summaries = self.lanes[i].segments().into_iter().map(|s| s.summary());
            let oldest = summaries.into_iter().find(|s| s.blocks > 0).map(|s| s.opened);
            let (disk_bytes, dropped) = (figures.disk[i], figures.dropped[i]);
            lanes.insert(id.name(), LaneStatus { records, bytes, oldest, disk_bytes, dropped });
        }
        StoreStatus { lanes, quarantined: figures.quarantined, fault: figures.fault }
    }

    /// What the journal recorded since then, for learning.
    pub fn journal_since(&self, since: Time) -> Entries {
        Entries::new(self.lanes[LaneId::Journal as usize].clone(), 1, since)
    }

    /// What was set aside, with the number of each in its lane: payloads that could not be read, then
    /// records that were refused, each oldest first.
    pub fn dead_letters(&self) -> impl Iterator<Item = <DeadLetters as Iterator>::Item> + use<> {
        let lane = |id: LaneId| DeadLetters::new(self.lanes[id as usize].clone());
        lane(LaneId::Dead).chain(lane(LaneId::Refused))
    }

    /// Sends the records among the dead letters once more, each once; how many. They get new
    /// sequences and keep their ids. Blocks.
    pub fn requeue(&self) -> Result<u64, ReadError> {
        // Format 1 kept refused records among the payloads.
        Ok(self.requeue_lane(LaneId::Dead, 0)? + self.requeue_lane(LaneId::Refused, 1)?)
    }

    fn requeue_lane(&self, id: LaneId, i: usize) -> Result<u64, ReadError> {
        let requeued = &self.shelf.requeued[i];
        let mut sent = 0;
        let letters = DeadLetters::new(self.lanes[id as usize].clone());
        for letter in letters.starting_at(requeued.load(Ordering::Acquire)) {
            let (number, letter) = letter?;
            if let DeadLetter::Record { record, .. } = letter {
                let (done, durable) = oneshot::channel();
                let what = AsideWhat::Again(record);
                self.shelf.aside.blocking_send(Aside { what, done }).map_err(|_| ReadError::Closed)?;
                durable.blocking_recv().map_err(|_| ReadError::Closed)?;
                sent += 1;
            }
            requeued.store(number + 1, Ordering::Release);
            self.shelf.moved.store(true, Ordering::Release);
        }
        self.shelf.wake.notify_one();
        Ok(sent)
    }

    /// Writes and syncs all that was sent, saves the cursors and ends the writer. Drop all
    /// [`Sender`]s before: what is sent meanwhile may be refused. Blocks.
    pub fn close(mut self) -> Result<(), CloseError> {
        self.order.close();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Err(fault))) => Err(CloseError(fault.to_string())),
            Some(Err(_)) => Err(CloseError("its writer panicked".to_owned())),
            Some(Ok(Ok(()))) | None => Ok(()),
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.order.abandon();
        if let Some(thread) = self.thread.take() {
            // Nothing can be told from here.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
