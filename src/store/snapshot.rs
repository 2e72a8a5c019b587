//! Engine snapshots. A snapshot has named parts and may be of any size. It is written to the journal
//! in pieces of one block, a bounded number in each group, so that commits go on between them. The
//! last item of a snapshot is its root; a snapshot without its root does not exist for recovery.
//!
//! A part that the engine calls unchanged stays where an earlier snapshot put it. When it lies so far
//! back that it holds old journal segments on disk, it is copied forward.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::types::{Name, Time};

use super::pack::PART;
use super::record::{JournalItem, journal_len};
use super::view::LaneView;

mod pieces;

use pieces::PieceReader;
pub(super) use pieces::{StoredPart, first_piece, load};

/// Bytes of one piece; it fills a block.
const PIECE_BYTES: usize = PART - journal_len(0);

/// The engine's state after a commit and all before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// In the engine's order, which recovery keeps. Keys are unique.
    pub parts: Vec<SnapshotPart>,
}

/// A part of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPart {
    /// Its name, for example that of a machine.
    pub key: Name,
    /// What it holds.
    pub content: PartContent,
}

/// What a part of a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartContent {
    /// These bytes, in the engine's own encoding.
    Bytes(Vec<u8>),
    /// What the part of this key held in the snapshot that was sent last, or, before any was sent, in
    /// the one that recovery gave. Not allowed while [`super::Sender::wants_all_parts`].
    Unchanged,
}

impl Snapshot {
    /// The key of the only part of an undivided snapshot. Stores of format 1 give their one blob
    /// under it.
    pub const WHOLE: &str = "";

    /// Of one part.
    pub fn whole(bytes: Vec<u8>) -> Snapshot {
        Snapshot { parts: vec![SnapshotPart { key: Snapshot::WHOLE.into(), content: PartContent::Bytes(bytes) }] }
    }

    /// Bytes it holds, those of unchanged parts left out.
    pub fn size(&self) -> usize {
        self.parts.iter().map(|p| p.size()).sum()
    }

    fn unchanged(&self) -> impl Iterator<Item = &SnapshotPart> {
        self.parts.iter().filter(|p| p.content == PartContent::Unchanged)
    }
}

impl SnapshotPart {
    fn size(&self) -> usize {
        match &self.content {
            PartContent::Bytes(bytes) => bytes.len(),
            PartContent::Unchanged => 0,
        }
    }
}

/// A snapshot as recovery reads it: key and bytes of each part, in the engine's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredSnapshot {
    /// Every part, the unchanged ones included.
    pub parts: Vec<(Name, Vec<u8>)>,
}

impl RecoveredSnapshot {
    /// The bytes of an undivided snapshot; `None` for one of several parts.
    pub fn whole(&self) -> Option<&[u8]> {
        match &self.parts[..] {
            [(key, bytes)] if &**key == Snapshot::WHOLE => Some(bytes),
            _ => None,
        }
    }
}

/// What the engine may ask of snapshots; shared with every [`super::Sender`].
#[derive(Default)]
pub(super) struct Progress {
    /// Enough has gone into the journal since the last snapshot.
    pub wanted: AtomicBool,
    /// The next snapshot has to hold the bytes of all its parts.
    pub all_parts: AtomicBool,
    /// Snapshots that were sent and are neither durable nor given up.
    pub under_way: AtomicU32,
}

impl Progress {
    fn done(&self, snapshots: u32) {
        self.under_way.fetch_sub(snapshots, Ordering::AcqRel);
    }
}

/// A snapshot that is durable: what of the journal it makes history of.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Durable {
    /// The last entry it knows of.
    pub after: u64,
    /// Recovery reads nothing below this sequence.
    pub from: u64,
    /// How many sent snapshots it stands for.
    sent: u32,
}

struct Taken {
    at: Time,
    ordinal: u64,
    after: u64,
    snapshot: Snapshot,
    /// This one and those it replaced before they were written.
    sent: u32,
}

/// Writes one snapshot at a time.
#[derive(Default)]
pub(super) struct SnapshotWriter {
    pub progress: Arc<Progress>,
    /// The parts of the snapshot that was written last.
    stored: BTreeMap<Name, StoredPart>,
    /// Not begun: it must not reach the journal before the records it knows of are durable.
    waiting: Option<Taken>,
    writing: Option<Writing>,
    /// Bytes of pieces that one group carries: a commit behind them waits for no more than this.
    step_bytes: usize,
}

impl SnapshotWriter {
    /// Goes on from the snapshot that recovery found.
    pub fn new(parts: &[StoredPart], step_bytes: usize) -> SnapshotWriter {
        let stored: BTreeMap<Name, StoredPart> = parts.iter().map(|p| (p.key.clone(), p.clone())).collect();
        let writer = SnapshotWriter { stored, step_bytes, ..SnapshotWriter::default() };
        writer.progress.all_parts.store(writer.stored.is_empty(), Ordering::Release);
        writer
    }

    /// Whether nothing is left to be written.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_none() && self.writing.is_none()
    }

    /// Takes a snapshot to be written after `after`, in place of one that has not been begun.
    pub fn take(&mut self, snapshot: Snapshot, at: Time, ordinal: u64, after: u64) {
        let mut taken = Taken { at, ordinal, after, snapshot, sent: 1 };
        let incomplete = taken.snapshot.unchanged().next().is_some();
        if incomplete && self.progress.all_parts.load(Ordering::Acquire) {
            return self.give_up(taken.sent, "it was sent before a snapshot with all parts");
        }
        if let Some(older) = self.waiting.take() {
            taken.sent += older.sent;
            if let Err(key) = inherit(&mut taken.snapshot, older.snapshot) {
                return self.give_up(taken.sent, &format!("part {key:?} has no content"));
            }
        }
        self.progress.all_parts.store(false, Ordering::Release);
        self.waiting = Some(taken);
    }

    /// What the waiting snapshot knows of is durable: it may be written. Parts below `move_before` are
    /// copied forward.
    pub fn begin(&mut self, move_before: impl FnOnce() -> u64) {
        if self.writing.is_none()
            && let Some(taken) = self.waiting.take()
        {
            self.writing = Some(Writing::new(taken, move_before()));
        }
    }

    /// Gives the next pieces, and with the last of them the root. `push` stores an item and returns its
    /// sequence; its flag marks the root.
    pub fn step(&mut self, journal: &LaneView, push: &mut dyn FnMut(JournalItem, bool) -> u64) -> Option<Durable> {
        let mut writing = self.writing.take()?;
        let mut left = self.step_bytes.max(1);
        while left > 0 {
            match writing.next_piece(&self.stored, journal) {
                Ok(Next::Piece(data)) => {
                    left = left.saturating_sub(data.len().max(1));
                    let sequence = push(JournalItem::Piece { at: writing.at, data }, false);
                    writing.written(sequence);
                }
                Ok(Next::Root(index)) => {
                    let root = push(writing.root(&index), true);
                    return Some(self.complete(writing, &index, root));
                }
                Err(why) => {
                    let sent = writing.sent + self.waiting.take().map_or(0, |w| w.sent);
                    self.give_up(sent, &why);
                    return None;
                }
            }
        }
        self.writing = Some(writing);
        None
    }

    fn complete(&mut self, writing: Writing, index: &StoredPart, root: u64) -> Durable {
        let from = first_piece(&writing.done).min(index.first()).min(writing.after + 1).min(root);
        self.stored = writing.done.into_iter().map(|p| (p.key.clone(), p)).collect();
        Durable { after: writing.after, from, sent: writing.sent }
    }

    /// The root is on the medium.
    pub fn durable(&self, durable: &Durable) {
        self.progress.done(durable.sent);
    }

    /// Nothing is lost by it: the journal keeps all entries after the last durable snapshot. Later
    /// snapshots build on this one, so the next has to be complete.
    fn give_up(&mut self, sent: u32, why: &str) {
        tracing::warn!("a snapshot is not kept, the next one is taken with all parts: {why}");
        self.progress.all_parts.store(true, Ordering::Release);
        self.progress.wanted.store(true, Ordering::Relaxed);
        self.progress.done(sent);
    }
}

/// Unchanged parts of a snapshot take the content of the older one that it replaces.
fn inherit(newer: &mut Snapshot, older: Snapshot) -> Result<(), Name> {
    let mut before: BTreeMap<Name, PartContent> = older.parts.into_iter().map(|p| (p.key, p.content)).collect();
    for part in newer.parts.iter_mut().filter(|p| p.content == PartContent::Unchanged) {
        part.content = before.remove(&part.key).ok_or_else(|| part.key.clone())?;
    }
    Ok(())
}

enum Next {
    Piece(Vec<u8>),
    Root(StoredPart),
}

/// Where the bytes of a part come from.
enum Source {
    Given { bytes: Vec<u8>, at: usize },
    Stored { pieces: VecDeque<u64> },
}

/// A snapshot that is being written.
struct Writing {
    at: Time,
    ordinal: u64,
    after: u64,
    sent: u32,
    move_before: u64,
    parts: VecDeque<SnapshotPart>,
    open: Option<(StoredPart, Source)>,
    done: Vec<StoredPart>,
    /// The part being written is the list of all others.
    in_index: bool,
    pieces: PieceReader,
}

impl Writing {
    fn new(taken: Taken, move_before: u64) -> Writing {
        let Taken { at, ordinal, after, snapshot, sent } = taken;
        Writing {
            at,
            ordinal,
            after,
            sent,
            move_before,
            parts: snapshot.parts.into(),
            open: None,
            done: Vec::new(),
            in_index: false,
            pieces: PieceReader::default(),
        }
    }

    fn next_piece(&mut self, stored: &BTreeMap<Name, StoredPart>, journal: &LaneView) -> Result<Next, String> {
        loop {
            if self.open.is_none() {
                self.open = Some(self.next_part(stored)?);
            }
            let Some((part, source)) = &mut self.open else { continue };
            let piece = match source {
                Source::Given { bytes, at } => {
                    let end = (*at + PIECE_BYTES).min(bytes.len());
                    let piece = (*at < end).then(|| bytes[*at..end].to_vec());
                    *at = end;
                    piece
                }
                Source::Stored { pieces } => match pieces.pop_front() {
                    None => None,
                    Some(sequence) => {
                        let read = self.pieces.read(journal, sequence).map_err(|e| e.to_string())?;
                        Some(read.ok_or_else(|| format!("part {:?} is damaged on disk", part.key))?)
                    }
                },
            };
            if let Some(piece) = piece {
                return Ok(Next::Piece(piece));
            }
            let Some((part, _)) = self.open.take() else { continue };
            if self.in_index {
                return Ok(Next::Root(part));
            }
            self.done.push(part);
        }
    }

    /// The next part that has to be written; the index after the last one.
    fn next_part(&mut self, stored: &BTreeMap<Name, StoredPart>) -> Result<(StoredPart, Source), String> {
        while let Some(SnapshotPart { key, content }) = self.parts.pop_front() {
            match content {
                PartContent::Bytes(bytes) => return Ok(given(key, bytes)),
                PartContent::Unchanged => {
                    let part = stored.get(&key).ok_or_else(|| format!("part {key:?} has no content"))?;
                    if part.first() < self.move_before {
                        let source = Source::Stored { pieces: part.pieces.clone().into() };
                        return Ok((StoredPart { pieces: Vec::new(), ..part.clone() }, source));
                    }
                    self.done.push(part.clone());
                }
            }
        }
        self.in_index = true;
        let index = postcard::to_stdvec(&self.done).map_err(|e| e.to_string())?;
        Ok(given(Snapshot::WHOLE.into(), index))
    }

    /// The piece given last has this sequence.
    fn written(&mut self, sequence: u64) {
        if let Some((part, _)) = &mut self.open {
            part.pieces.push(sequence);
        }
    }

    fn root(&self, index: &StoredPart) -> JournalItem {
        // Numbers and a short name: this cannot fail, and an empty root is no root.
        let data = postcard::to_stdvec(index).unwrap_or_default();
        JournalItem::Root { at: self.at, ordinal: self.ordinal, after: self.after, data }
    }
}

fn given(key: Name, bytes: Vec<u8>) -> (StoredPart, Source) {
    let part = StoredPart { key, bytes: bytes.len() as u64, crc: crc32fast::hash(&bytes), pieces: Vec::new() };
    (part, Source::Given { bytes, at: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(key: &str, content: PartContent) -> SnapshotPart {
        SnapshotPart { key: key.into(), content }
    }

    #[test]
    fn a_snapshot_inherits_from_the_one_it_replaces() {
        let bytes = |b: u8| PartContent::Bytes(vec![b]);
        let older = Snapshot { parts: vec![part("a", bytes(1)), part("b", PartContent::Unchanged)] };
        let mut newer = Snapshot {
            parts: vec![part("b", PartContent::Unchanged), part("a", PartContent::Unchanged), part("c", bytes(3))],
        };
        inherit(&mut newer, older.clone()).unwrap();
        assert_eq!(newer.parts, [part("b", PartContent::Unchanged), part("a", bytes(1)), part("c", bytes(3))]);
        let mut wrong = Snapshot { parts: vec![part("x", PartContent::Unchanged)] };
        assert_eq!(&*inherit(&mut wrong, older).unwrap_err(), "x");
    }
}
