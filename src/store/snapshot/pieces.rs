//! The pieces of a snapshot as they lie in the journal, and reading them back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::Name;

use super::RecoveredSnapshot;
use crate::store::fault::Fault;
use crate::store::record::JournalItem;
use crate::store::segment::{Chunk, Sealed};
use crate::store::view::LaneView;

/// Where a part lies in the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::store) struct StoredPart {
    pub key: Name,
    pub bytes: u64,
    pub crc: u32,
    /// Sequences of its pieces, rising.
    pub pieces: Vec<u64>,
}

impl StoredPart {
    pub fn first(&self) -> u64 {
        self.pieces.first().copied().unwrap_or(u64::MAX)
    }
}

/// The lowest sequence that any of these parts needs.
pub(in crate::store) fn first_piece(parts: &[StoredPart]) -> u64 {
    parts.iter().map(StoredPart::first).min().unwrap_or(u64::MAX)
}

/// Reads pieces by their sequence.
#[derive(Default)]
pub(super) struct PieceReader {
    chunk: Option<Chunk>,
    /// Sealed segments once looked into need not be searched again; at most those of the journal.
    holds: Vec<Arc<Sealed>>,
}

impl PieceReader {
    /// `None` when it is not there or not intact.
    pub fn read(&mut self, journal: &LaneView, sequence: u64) -> Result<Option<Vec<u8>>, Fault> {
        let has = |c: &Chunk| c.items.binary_search_by_key(&sequence, |(s, _)| *s);
        if self.chunk.as_ref().is_none_or(|c| has(c).is_err()) {
            self.chunk = journal.chunk_from(sequence)?;
            let hold = self.chunk.as_ref().and_then(|c| c.hold.clone());
            self.holds.extend(hold.filter(|h| self.holds.iter().all(|held| !Arc::ptr_eq(held, h))));
        }
        let Some(chunk) = &self.chunk else { return Ok(None) };
        let Ok(at) = has(chunk) else { return Ok(None) };
        Ok(match JournalItem::decode(&chunk.items[at].1) {
            Some(JournalItem::Piece { data, .. }) => Some(data),
            _ => None,
        })
    }
}

/// The parts of the snapshot with this root, and their bytes; `None` unless all of it is intact.
pub(in crate::store) fn load(
    journal: &LaneView,
    root: &[u8],
) -> Result<Option<(Vec<StoredPart>, RecoveredSnapshot)>, Fault> {
    let Ok(index) = postcard::from_bytes::<StoredPart>(root) else { return Ok(None) };
    let Some(index) = read_parts(journal, &[index])?.and_then(|mut parts| parts.pop()) else { return Ok(None) };
    let Ok(parts) = postcard::from_bytes::<Vec<StoredPart>>(&index) else { return Ok(None) };
    let Some(bytes) = read_parts(journal, &parts)? else { return Ok(None) };
    let keys = parts.iter().map(|p| p.key.clone());
    let snapshot = RecoveredSnapshot { parts: keys.zip(bytes).collect() };
    Ok(Some((parts, snapshot)))
}

/// Reads in the order of the disk, so that each segment is searched once.
fn read_parts(journal: &LaneView, parts: &[StoredPart]) -> Result<Option<Vec<Vec<u8>>>, Fault> {
    let numbered = parts.iter().enumerate();
    let mut order: Vec<(u64, usize)> = numbered.flat_map(|(i, p)| p.pieces.iter().map(move |s| (*s, i))).collect();
    order.sort_unstable();
    let (mut bytes, mut reader) = (vec![Vec::new(); parts.len()], PieceReader::default());
    for (sequence, part) in order {
        let Some(piece) = reader.read(journal, sequence)? else { return Ok(None) };
        bytes[part].extend_from_slice(&piece);
    }
    let intact =
        |(part, bytes): (&StoredPart, &Vec<u8>)| bytes.len() as u64 == part.bytes && crc32fast::hash(bytes) == part.crc;
    Ok(parts.iter().zip(&bytes).all(intact).then_some(bytes))
}
