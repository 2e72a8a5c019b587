//! A segment as the rest of the store sees it: a run of blocks that readers may look into while it
//! is written (through sled) and after it is sealed (straight from its file, read-only).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use serde::{Deserialize, Serialize};

use crate::metrics::lock;
use crate::types::Time;

use super::block::{self, Found, Head};
use super::fault::Fault;
use super::pack;
use super::place::{Cursor, Span};
use super::slots::{self, Slots};

/// What is known of a segment without looking into it; the manifest keeps this of sealed ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Summary {
    /// The sequence the segment is named after; no item in it has a lower one.
    pub name: u64,
    /// Sequence of the last item; `name - 1` when there is none.
    pub last: u64,
    /// Items the lane ever held before this segment.
    pub position: u64,
    /// Items in it, lost ones included.
    pub records: u64,
    /// Slots used.
    pub blocks: u32,
    /// Bytes of the blocks.
    pub bytes: u64,
    /// Bytes it takes on disk.
    pub disk: u64,
    /// The engine's ordinal after it.
    pub engine_upto: u64,
    /// Slot of the last checkpoint in it.
    pub checkpoint: Option<u32>,
    /// When its first block was written.
    pub opened: Time,
    /// When its last block was written.
    pub written: Time,
    /// The earliest time among its items.
    pub from: Time,
    /// The latest time among its items.
    pub to: Time,
}

impl Summary {
    /// Of a segment without blocks.
    pub fn empty(name: u64, position: u64, engine_upto: u64) -> Summary {
        Summary { name, last: name.saturating_sub(1), position, engine_upto, ..Summary::default() }
    }

    /// Counts a block in.
    pub fn add(&mut self, head: &Head, len: usize) {
        if self.blocks == 0 {
            (self.opened, self.from, self.to) = (head.written, head.from, head.to);
            self.position = head.position;
        }
        self.blocks = head.slot + 1;
        self.records = head.position + u64::from(head.count) - self.position;
        self.last = self.last.max(head.last);
        self.bytes += len as u64;
        self.engine_upto = self.engine_upto.max(head.engine_upto);
        self.written = head.written;
        self.from = self.from.min(head.from);
        self.to = self.to.max(head.to);
        if head.checkpoint {
            self.checkpoint = Some(head.slot);
        }
    }

    /// Items the lane ever held up to its end.
    pub fn end(&self) -> u64 {
        self.position + self.records
    }

    /// The part of the lane that it is.
    pub fn extent(&self) -> Span {
        let from = Cursor { sequence: self.name, position: self.position };
        Span { from, to: Cursor { sequence: self.last.saturating_add(1), position: self.end() } }
    }
}

/// Items that should be there and are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    /// The lane's number.
    pub lane: u8,
    /// The segment's name.
    pub segment: u64,
    /// Sequence of the first one missing, or lower.
    pub first: u64,
    /// Sequence of the last one missing, or higher.
    pub last: u64,
    /// How many.
    pub records: u64,
    /// Not earlier than this.
    pub from: Time,
    /// Not later than this.
    pub to: Time,
}

/// How many unreadable items are told of one by one.
const TOLD: usize = 4096;

/// Losses that readers found and the writer has not told of yet. Bounded by the number of blocks:
/// each block and each hole is reported once.
#[derive(Default)]
pub(super) struct Losses {
    found: Mutex<Vec<Loss>>,
    told: Mutex<BTreeSet<(u8, u64)>>,
}

impl Losses {
    pub fn report(&self, losses: impl IntoIterator<Item = Loss>) {
        lock(&self.found).extend(losses);
    }

    /// For what is found again each time it is read.
    pub fn report_once(&self, loss: Loss) {
        let mut told = lock(&self.told);
        if told.len() < TOLD && told.insert((loss.lane, loss.first)) {
            lock(&self.found).push(loss);
        }
    }

    pub fn take(&self) -> Vec<Loss> {
        std::mem::take(&mut lock(&self.found))
    }
}

/// A run of blocks on disk.
pub(super) struct Segment {
    lane: u8,
    losses: Arc<Losses>,
    inner: Mutex<Inner>,
}

struct Inner {
    dir: PathBuf,
    summary: Summary,
    /// While it is written: sled, and the heads of what is durable.
    live: Option<(Slots, Vec<Head>)>,
    /// Once it is sealed: shared by those who read it now.
    file: Weak<Sealed>,
    checked: bool,
    lost: BTreeSet<u32>,
}

/// A sealed segment's file and where the blocks are in it.
pub(super) struct Sealed {
    file: File,
    found: Vec<Found>,
}

enum Access {
    Live(Slots, Vec<Head>),
    Sealed(Arc<Sealed>, Vec<Found>),
}

/// Items that were written together.
pub(super) struct Chunk {
    /// Position of the first.
    pub position: u64,
    /// Sequence of the last.
    pub last: u64,
    /// Sequence and encoding of each.
    pub items: Vec<(u64, Vec<u8>)>,
    /// While this lives, the next chunk need not look for the segment's blocks again.
    pub hold: Option<Arc<Sealed>>,
}

impl Segment {
    /// A segment that is being written and holds these durable blocks.
    pub fn live(
        lane: u8,
        dir: &Path,
        summary: Summary,
        slots: Slots,
        heads: Vec<Head>,
        losses: Arc<Losses>,
    ) -> Segment {
        Segment::new(lane, dir, summary, Some((slots, heads)), losses)
    }

    /// A sealed segment, not looked into yet.
    pub fn sealed(lane: u8, dir: &Path, summary: Summary, losses: Arc<Losses>) -> Segment {
        Segment::new(lane, dir, summary, None, losses)
    }

    fn new(lane: u8, dir: &Path, summary: Summary, live: Option<(Slots, Vec<Head>)>, losses: Arc<Losses>) -> Segment {
        let inner =
            Inner { dir: dir.to_owned(), summary, live, file: Weak::new(), checked: false, lost: BTreeSet::new() };
        Segment { lane, losses, inner: Mutex::new(inner) }
    }

    pub fn summary(&self) -> Summary {
        lock(&self.inner).summary.clone()
    }

    /// What it is named after.
    pub fn name(&self) -> u64 {
        lock(&self.inner).summary.name
    }

    /// Sequence of the last item, cheaply.
    pub fn last(&self) -> u64 {
        lock(&self.inner).summary.last
    }

    pub fn dir(&self) -> PathBuf {
        lock(&self.inner).dir.clone()
    }

    /// It was renamed.
    pub fn moved(&self, dir: &Path) {
        lock(&self.inner).dir = dir.to_owned();
    }

    /// These blocks are durable now.
    pub fn publish(&self, blocks: &[(Head, usize)]) {
        let mut inner = lock(&self.inner);
        for (head, len) in blocks {
            inner.summary.add(head, *len);
            if let Some((_, heads)) = &mut inner.live {
                heads.push(*head);
            }
        }
    }

    /// What it takes on disk.
    pub fn set_disk(&self, bytes: u64) {
        lock(&self.inner).summary.disk = bytes;
    }

    /// No more is written; readers no longer go through sled.
    pub fn seal(&self) {
        lock(&self.inner).live = None;
    }

    /// The first chunk with an item of this sequence or a later one. Blocks that are damaged are
    /// reported and passed over.
    pub fn chunk_from(&self, sequence: u64) -> Result<Option<Chunk>, Fault> {
        let mut sequence = sequence;
        while let Some(access) = self.access(sequence)? {
            let (heads, last) = match &access {
                Access::Live(_, heads) => (heads.clone(), heads[0].last),
                Access::Sealed(_, found) => (found.iter().map(|f| f.head).collect(), found[0].head.last),
            };
            if whole(&heads) {
                match self.read(&access, &heads)? {
                    Some(chunk) => return Ok(Some(chunk)),
                    None => self.lose(&heads),
                }
            }
            sequence = last + 1;
        }
        Ok(None)
    }

    /// The blocks of the first unit that ends at this sequence or later, and the way to them.
    fn access(&self, sequence: u64) -> Result<Option<Access>, Fault> {
        if let Some((slots, heads)) = &lock(&self.inner).live {
            let start = heads.partition_point(|h| h.last < sequence);
            let unit = unit_from(heads[start..].iter().copied(), |h| *h);
            return Ok((!unit.is_empty()).then(|| Access::Live(slots.clone(), unit)));
        }
        let sealed = self.sealed_file()?;
        let start = sealed.found.partition_point(|f| f.head.last < sequence);
        let unit = unit_from(sealed.found[start..].iter().copied(), |f| f.head);
        Ok((!unit.is_empty()).then(|| Access::Sealed(sealed, unit)))
    }

    /// Finds the blocks of a sealed segment, and tells once which of them are missing. sled is not
    /// asked: it writes when it opens, needs room for that, and has been seen to panic, to hang
    /// and to leave blocks out without a word.
    fn sealed_file(&self) -> Result<Arc<Sealed>, Fault> {
        let (path, summary) = {
            let inner = lock(&self.inner);
            if let Some(sealed) = inner.file.upgrade() {
                return Ok(sealed);
            }
            (slots::data_file(&inner.dir), inner.summary.clone())
        };
        // Not under the lock: the writer asks for the summary, and a slow disk takes its time here.
        let file = File::open(&path).map_err(Fault::io("open", &path))?;
        let mut found = block::carve(&file, self.lane).map_err(Fault::io("read", &path))?;
        found.retain(|f| f.head.slot < summary.blocks);
        let heads: Vec<Head> = found.iter().map(|f| f.head).collect();
        let sealed = Arc::new(Sealed { file, found });
        let mut inner = lock(&self.inner);
        inner.file = Arc::downgrade(&sealed);
        if !std::mem::replace(&mut inner.checked, true) {
            self.losses.report(holes(self.lane, &summary, &heads));
        }
        Ok(sealed)
    }

    fn read(&self, access: &Access, heads: &[Head]) -> Result<Option<Chunk>, Fault> {
        let mut payloads = Vec::with_capacity(heads.len());
        for (i, head) in heads.iter().enumerate() {
            let payload = match access {
                Access::Live(slots, _) => {
                    slots.get(head.slot)?.filter(|v| block::parse(v) == Some(*head)).and_then(|v| block::payload(&v))
                }
                Access::Sealed(sealed, found) => {
                    let path = || slots::data_file(&self.dir());
                    let read = block::read_found(&sealed.file, &found[i]);
                    read.map_err(|e| Fault::io("read", &path())(e))?.and_then(|v| block::payload(&v))
                }
            };
            let Some(payload) = payload else { return Ok(None) };
            payloads.push(payload);
        }
        let head = heads[0];
        let items = if heads.len() == 1 && head.parts == 1 {
            pack::unpack(&head, &payloads[0])
        } else {
            Some(vec![(head.first, payloads.concat())])
        };
        let hold = match access {
            Access::Live(..) => None,
            Access::Sealed(sealed, _) => Some(sealed.clone()),
        };
        let (position, last) = (head.position, head.last);
        Ok(items.map(|items| Chunk { position, last, items, hold }))
    }

    /// A block that was there is not readable any more.
    fn lose(&self, heads: &[Head]) {
        let mut inner = lock(&self.inner);
        let Some(tail) = heads.last() else { return };
        if inner.lost.insert(heads[0].slot) {
            self.losses.report([Loss {
                lane: self.lane,
                segment: inner.summary.name,
                first: heads[0].first,
                last: tail.last,
                records: u64::from(tail.count),
                from: heads[0].from,
                to: tail.to,
            }]);
        }
    }

    /// The slot-ordered heads of all blocks, for recovery and the like.
    pub fn heads(&self) -> Result<Vec<Head>, Fault> {
        if let Some((_, heads)) = &lock(&self.inner).live {
            return Ok(heads.clone());
        }
        Ok(self.sealed_file()?.found.iter().map(|f| f.head).collect())
    }
}

/// The first block, and the parts that follow it when its item is split.
fn unit_from<T>(mut blocks: impl Iterator<Item = T>, head: impl Fn(&T) -> Head) -> Vec<T> {
    let Some(first) = blocks.next() else { return Vec::new() };
    let start = head(&first);
    let mut unit = vec![first];
    if start.parts > 1 && start.part == 0 {
        for block in blocks.take(usize::from(start.parts) - 1) {
            let h = head(&block);
            let at = unit.len();
            if h.first != start.first || usize::from(h.part) != at || h.slot != start.slot + at as u32 {
                break;
            }
            unit.push(block);
        }
    }
    unit
}

/// Whether a unit is complete. A crash in the middle of a split item leaves its first parts behind;
/// nobody was told that the item is stored, so it is none.
fn whole(heads: &[Head]) -> bool {
    heads.len() == usize::from(heads[0].parts.max(1))
}

/// What is missing, given the blocks that are there: positions count every item ever written.
pub(super) fn holes(lane: u8, summary: &Summary, heads: &[Head]) -> Vec<Loss> {
    let mut losses = Vec::new();
    let (mut position, mut sequence, mut from) = (summary.position, summary.name, summary.from);
    let mut hole = |position: u64, upto: u64, first: u64, last: u64, from: Time, to: Time| {
        if upto > position {
            losses.push(Loss { lane, segment: summary.name, first, last, records: upto - position, from, to });
        }
    };
    for head in heads {
        hole(position, head.position, sequence, head.first.saturating_sub(1), from, head.from);
        position = position.max(head.position + u64::from(head.count));
        (sequence, from) = (head.last + 1, head.to);
    }
    hole(position, summary.end(), sequence, summary.last, from, summary.to);
    losses
}
