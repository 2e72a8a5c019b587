//! A lane as readers see it: which segments there are, and the first chunk from a sequence on.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::metrics::lock;
use crate::types::Kind;

use super::fault::Fault;
use super::manifest::Manifest;
use super::place::Place;
use super::rescue;
use super::segment::{Chunk, Segment};

/// The lanes, as blocks number them.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum LaneId {
    Journal = 0,
    Priority = 1,
    Routine = 2,
    Dead = 3,
    Refused = 4,
}

/// How many lanes there are.
pub(super) const LANES: usize = 5;

impl LaneId {
    /// In the order they become durable.
    pub const ALL: [LaneId; LANES] =
        [LaneId::Journal, LaneId::Priority, LaneId::Routine, LaneId::Dead, LaneId::Refused];
    /// Those that sinks read, in the order they read them.
    pub const OUT: [LaneId; 2] = [LaneId::Priority, LaneId::Routine];

    /// Where records of this kind go.
    pub fn of(kind: Kind) -> LaneId {
        match kind {
            Kind::Verdict | Kind::Opinion => LaneId::Routine,
            Kind::Alarm | Kind::Gap | Kind::Model | Kind::Usage | Kind::Audit | Kind::Summary => LaneId::Priority,
        }
    }

    /// The name of its directory, in metrics and in gap records.
    pub fn name(self) -> &'static str {
        match self {
            LaneId::Journal => "journal",
            LaneId::Priority => "priority",
            LaneId::Routine => "routine",
            LaneId::Dead => "dead",
            LaneId::Refused => "refused",
        }
    }
}

/// The segments of a lane, oldest first, as readers see them: durable blocks only.
pub(super) struct LaneView {
    pub(super) segments: Mutex<VecDeque<Arc<Segment>>>,
    /// Position and sequence after the segments that are gone.
    floor: Mutex<(u64, u64)>,
    /// Somebody else may delete segments meanwhile.
    shared: bool,
}

impl LaneView {
    /// Of a lane without segments.
    pub fn new() -> LaneView {
        LaneView { segments: Mutex::default(), floor: Mutex::default(), shared: false }
    }

    pub(super) fn raise_floor(&self, position: u64, next: u64) {
        let mut floor = lock(&self.floor);
        *floor = (floor.0.max(position), floor.1.max(next));
    }

    /// All segments at present.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        lock(&self.segments).iter().cloned().collect()
    }

    /// The first chunk that ends at this sequence or later.
    pub fn chunk_from(&self, sequence: u64) -> Result<Option<Chunk>, Fault> {
        let from: Vec<Arc<Segment>> = {
            let segments = lock(&self.segments);
            let start = segments.partition_point(|s| s.last() < sequence);
            segments.iter().skip(start).cloned().collect()
        };
        for segment in from {
            match segment.chunk_from(sequence) {
                Err(fault) if self.shared && fault.is_gone() => {}
                Ok(None) => {}
                other => return other,
            }
        }
        Ok(None)
    }

    /// Position and sequence that the oldest item still held has, or that the next will have.
    pub fn start(&self) -> (u64, u64) {
        let first = lock(&self.segments).front().map(|s| s.summary());
        first.map_or_else(|| *lock(&self.floor), |s| (s.position, s.name))
    }

    /// Items ever made durable in this lane.
    pub fn end(&self) -> u64 {
        self.tip().1
    }

    /// Items and bytes held.
    pub fn held(&self) -> (u64, u64) {
        let segments = lock(&self.segments);
        segments.iter().map(|s| s.summary()).fold((0, 0), |(n, b), s| (n + s.records, b + s.bytes))
    }

    /// How many of the items held are not done at this place.
    pub fn waiting(&self, place: &Place) -> u64 {
        let segments = lock(&self.segments);
        segments.iter().map(|s| s.summary().extent()).flat_map(|part| place.open_in(part)).map(|s| s.records()).sum()
    }

    /// Sequence of the last durable item, or of a later one that is gone.
    pub fn last(&self) -> u64 {
        self.tip().0
    }

    /// [`LaneView::last`] and the [`LaneView::end`] that belongs to it.
    pub fn tip(&self) -> (u64, u64) {
        let last = lock(&self.segments).back().map(|s| s.summary());
        last.map_or_else(
            || {
                let (position, next) = *lock(&self.floor);
                (next.saturating_sub(1), position)
            },
            |s| (s.last, s.end()),
        )
    }
}

/// The lane as its files show it, for looking in without a store, and beside a running one. Nothing
/// is written, moved or locked; what a running store deletes meanwhile is passed over.
pub(super) fn look(id: LaneId, queue: &Path) -> Result<LaneView, Fault> {
    let dir = queue.join(id.name());
    let view = LaneView { shared: true, ..LaneView::new() };
    if !dir.exists() {
        return Ok(view);
    }
    let manifest = Manifest::read(&dir)?.unwrap_or_default();
    view.raise_floor(manifest.position, manifest.next);
    for (name, path) in list(&dir)? {
        let known = manifest.sealed.iter().find(|s| s.name == name).cloned();
        let summary = known.map_or_else(|| rescue::survey(name, &path, id as u8, manifest.position), Ok)?;
        let segment = Segment::sealed(id as u8, &path, summary, Arc::default());
        lock(&view.segments).push_back(Arc::new(segment));
    }
    Ok(view)
}

/// The directory of a segment with this name.
pub(super) fn segment_name(name: u64) -> String {
    format!("seg-{name:020}")
}

/// The segments in a lane's directory, oldest first.
pub(super) fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, Fault> {
    list_named(dir, "")
}

/// The segments whose directories have this prefix, oldest first. What follows their number after a
/// dot does not count.
pub(super) fn list_named(dir: &Path, prefix: &str) -> Result<Vec<(u64, PathBuf)>, Fault> {
    let mut found = Vec::new();
    if !dir.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(dir).map_err(Fault::io("list", dir))?.flatten() {
        let file_name = entry.file_name();
        let name = file_name.to_string_lossy();
        let number = name.strip_prefix(prefix).and_then(|n| n.strip_prefix("seg-"));
        let number = number.map(|n| if prefix.is_empty() { n } else { n.split('.').next().unwrap_or(n) });
        if let Some(number) = number.and_then(|n| n.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}
