//! Reading the journal back: for recovery, and for learning from what was recorded.

use std::sync::Arc;

use crate::types::Time;

use super::fault::Fault;
use super::items::Items;
use super::outbox::ReadError;
use super::record::JournalItem;
use super::segment::Segment;
use super::snapshot::{self, RecoveredSnapshot, Snapshot, StoredPart};
use super::view::LaneView;

/// An entry as it was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the journal; rising, with holes where checkpoints lie or something was lost.
    pub index: u64,
    /// When it was committed.
    pub at: Time,
    /// Ordinal of the first record it caused; set the engine to this before applying the entry.
    pub first_ordinal: u64,
    /// What the engine gave.
    pub data: Vec<u8>,
}

/// Entries in order, read from disk as they are asked for.
pub struct Entries {
    items: Items,
    since: Time,
}

impl Entries {
    /// From this index on, those committed at `since` or later, up to what is there now.
    pub(super) fn new(lane: Arc<LaneView>, from: u64, since: Time) -> Entries {
        let recent = |s: &Arc<Segment>| s.summary().written >= since;
        let first = lane.segments().iter().find(|s| recent(s)).map_or(0, |s| s.summary().name);
        Entries { items: Items::new(lane, from.max(first)), since }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, ReadError>;

    fn next(&mut self) -> Option<Result<Entry, ReadError>> {
        loop {
            let (index, bytes) = match self.items.next()? {
                Ok(item) => item,
                Err(e) => return Some(Err(e)),
            };
            match JournalItem::decode(&bytes) {
                Some(JournalItem::Entry { at, first_ordinal, data }) if at >= self.since => {
                    return Some(Ok(Entry { index, at, first_ordinal, data }));
                }
                _ => {}
            }
        }
    }
}

/// The newest snapshot that can be read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FoundSnapshot {
    pub ordinal: u64,
    /// The last entry it knows of.
    pub after: u64,
    /// Recovery reads nothing below this sequence.
    pub from: u64,
    /// Where its parts lie; empty for one of format 1, which has no parts.
    pub parts: Vec<StoredPart>,
    pub snapshot: RecoveredSnapshot,
}

/// Goes back from the end of the journal to the first snapshot that is intact.
pub(super) fn last_snapshot(lane: &LaneView) -> Result<Option<FoundSnapshot>, Fault> {
    for segment in lane.segments().into_iter().rev() {
        if segment.summary().checkpoint.is_none() {
            continue;
        }
        for head in segment.heads()?.into_iter().rev().filter(|h| h.checkpoint) {
            let Some(chunk) = segment.chunk_from(head.first)?.filter(|c| c.position == head.position) else { continue };
            for (sequence, bytes) in chunk.items.iter().rev() {
                if let Some(found) = as_snapshot(lane, *sequence, bytes)? {
                    return Ok(Some(found));
                }
            }
        }
    }
    Ok(None)
}

fn as_snapshot(lane: &LaneView, sequence: u64, bytes: &[u8]) -> Result<Option<FoundSnapshot>, Fault> {
    Ok(match JournalItem::decode(bytes) {
        Some(JournalItem::Checkpoint { ordinal, after, data, .. }) => {
            let snapshot = RecoveredSnapshot { parts: vec![(Snapshot::WHOLE.into(), data)] };
            Some(FoundSnapshot { ordinal, after, from: sequence.min(after + 1), parts: Vec::new(), snapshot })
        }
        Some(JournalItem::Root { ordinal, after, data, .. }) => {
            snapshot::load(lane, &data)?.map(|(parts, snapshot)| FoundSnapshot {
                ordinal,
                after,
                from: snapshot::first_piece(&parts).min(sequence).min(after + 1),
                parts,
                snapshot,
            })
        }
        _ => None,
    })
}
