//! Where sinks read: from their own cursor, the priority lane before the routine one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::metrics::lock;
use crate::types::{Name, Record, Stored, Time};

use super::cursors::Cursor;
use super::record::{self, DeadLetter};
use super::segment::{Loss, Losses};
use super::view::{LaneId, LaneView};

/// Why nothing could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
    /// The disk did not give it.
    #[error("cannot read from the store: {0}")]
    Disk(String),
}

/// What comes to the writer from others than the engine.
pub(super) struct Aside {
    pub what: AsideWhat,
    /// Told when it is durable.
    pub done: oneshot::Sender<()>,
}

pub(super) enum AsideWhat {
    /// A sink sets a record aside.
    Letter(DeadLetter),
    /// A record is sent once more.
    Again(Record),
}

/// A sink's places.
pub(super) struct Sink {
    pub name: Name,
    places: Mutex<[Place; 2]>,
}

#[derive(Default)]
struct Place {
    cursor: Cursor,
    /// Sequence and position of what was handed out after the cursor.
    handed: Vec<(u64, u64)>,
}

impl Place {
    /// Moves forward, never back.
    fn advance(&mut self, to: Cursor) -> bool {
        let moved = to.sequence > self.cursor.sequence;
        if moved {
            self.cursor = to;
            let done = self.handed.partition_point(|(sequence, _)| *sequence < to.sequence);
            self.handed.drain(..done);
        }
        moved
    }
}

impl Sink {
    /// At these places.
    pub fn new(name: &str, cursors: [Cursor; 2]) -> Sink {
        Sink { name: name.into(), places: Mutex::new(cursors.map(|cursor| Place { cursor, handed: Vec::new() })) }
    }

    /// Where it is.
    pub fn cursors(&self) -> [Cursor; 2] {
        lock(&self.places).each_ref().map(|p| p.cursor)
    }

    /// Leaves out everything before this.
    pub fn skip_to(&self, lane: usize, to: Cursor) -> bool {
        lock(&self.places)[lane].advance(to)
    }
}

/// What the writer and all outboxes share.
pub(super) struct Shelf {
    /// In the order of [`LaneId::OUT`].
    pub lanes: [Arc<LaneView>; 2],
    /// Records below these are about to be given up, which is being told. Sinks before a fence
    /// wait: the count told stays true, and no cursor moves past the loss before it is told.
    pub fences: [AtomicU64; 2],
    pub sinks: BTreeMap<String, Arc<Sink>>,
    /// Moves whenever more has become durable.
    pub horizon: watch::Sender<u64>,
    /// A cursor moved since they were last saved.
    pub moved: AtomicBool,
    /// Tells the writer of that.
    pub wake: Notify,
    pub aside: mpsc::Sender<Aside>,
    /// Dead letters below this have been queued again.
    pub requeued: AtomicU64,
    pub losses: Arc<Losses>,
    pub closed: AtomicBool,
}

impl Shelf {
    /// How many records and, roughly, bytes this sink has to deliver in each lane.
    pub fn depth(&self, sink: &Sink) -> [(u64, u64); 2] {
        let cursors = sink.cursors();
        [0, 1].map(|i| {
            let lane = &self.lanes[i];
            let records = lane.end().saturating_sub(cursors[i].position.max(lane.start().0));
            let (held, bytes) = lane.held();
            let share = u128::from(bytes) * u128::from(records.min(held)) / u128::from(held.max(1));
            (records, share as u64)
        })
    }

    /// The place that no sink is before; `None` without sinks.
    pub fn slowest(&self, lane: usize) -> Option<Cursor> {
        self.sinks.values().map(|s| s.cursors()[lane]).min_by_key(|c| c.sequence)
    }
}

/// A sink's reader. Clones share one cursor; one task at a time should read and acknowledge.
#[derive(Clone)]
pub struct Outbox {
    sink: Arc<Sink>,
    shelf: Arc<Shelf>,
    cache: Arc<Mutex<[Option<Decoded>; 2]>>,
}

/// The chunk that was read last.
struct Decoded {
    first: u64,
    last: u64,
    /// With the position of each.
    records: Vec<(u64, Stored)>,
    _chunk: super::segment::Chunk,
}

impl Outbox {
    pub(super) fn new(sink: Arc<Sink>, shelf: Arc<Shelf>) -> Outbox {
        Outbox { sink, shelf, cache: Arc::default() }
    }

    /// Waits until there is something after the cursor. `Err` once the store is closed and all is
    /// delivered.
    pub async fn ready(&self) -> Result<(), ReadError> {
        let mut horizon = self.shelf.horizon.subscribe();
        loop {
            horizon.mark_unchanged();
            if self.is_waiting() {
                return Ok(());
            }
            if self.shelf.closed.load(Ordering::Acquire) || horizon.changed().await.is_err() {
                return Err(ReadError::Closed);
            }
        }
    }

    fn is_waiting(&self) -> bool {
        let cursors = self.sink.cursors();
        (0..2).any(|i| self.shelf.lanes[i].last() >= cursors[i].sequence.max(1) && !self.is_fenced(i, cursors[i]))
    }

    /// Whether anything waits in the priority lane.
    pub fn urgent_waits(&self) -> bool {
        let at = self.sink.cursors()[0];
        self.shelf.lanes[0].last() >= at.sequence.max(1) && !self.is_fenced(0, at)
    }

    /// [`Outbox::next`] of the priority lane alone.
    pub async fn next_urgent(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, ReadError> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || this.read_lane(0, max_records.max(1), max_bytes));
        read.await.map_err(|e| ReadError::Disk(e.to_string()))?
    }

    fn is_fenced(&self, lane: usize, at: Cursor) -> bool {
        at.sequence < self.shelf.fences[lane].load(Ordering::Acquire)
    }

    /// The next records from the cursor on, without moving it: those of the priority lane while
    /// there are any, else those of the routine lane. At least one if there is one, at most
    /// `max_records`, and about `max_bytes` of data. Empty when there is nothing to deliver.
    pub async fn next(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, ReadError> {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || this.read(max_records, max_bytes));
        read.await.map_err(|e| ReadError::Disk(e.to_string()))?
    }

    /// [`Outbox::next`] for threads that may block.
    pub fn read(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, ReadError> {
        for lane in 0..2 {
            let records = self.read_lane(lane, max_records.max(1), max_bytes)?;
            if !records.is_empty() {
                return Ok(records);
            }
        }
        Ok(Vec::new())
    }

    fn read_lane(&self, lane: usize, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>, ReadError> {
        let view = &self.shelf.lanes[lane];
        let start = self.sink.cursors()[lane];
        let (last, end) = view.tip();
        let (mut out, mut handed, mut bytes, mut sequence) = (Vec::new(), Vec::new(), 0, start.sequence);
        if self.is_fenced(lane, start) {
            return Ok(out);
        }
        let mut cache = lock(&self.cache);
        'full: loop {
            if !cache[lane].as_ref().is_some_and(|d| (d.first..=d.last).contains(&sequence)) {
                let chunk = view.chunk_from(sequence).map_err(|e| ReadError::Disk(e.to_string()))?;
                cache[lane] = chunk.map(|c| self.decode(LaneId::OUT[lane], c));
            }
            let Some(decoded) = &cache[lane] else { break };
            for (position, stored) in decoded.records.iter().filter(|(_, s)| s.sequence >= sequence) {
                bytes += stored.record.data.len();
                if !out.is_empty() && (out.len() >= max_records || bytes > max_bytes) {
                    break 'full;
                }
                out.push(stored.clone());
                handed.push((stored.sequence, *position));
            }
            sequence = decoded.last + 1;
        }
        if out.is_empty() && last >= start.sequence {
            // What should be here is lost, which the writer tells; there is nothing to wait for.
            self.advance(lane, Cursor { sequence: last + 1, position: end });
        }
        let mut places = lock(&self.sink.places);
        let place = &mut places[lane];
        if place.cursor == start && handed.len() > place.handed.len() {
            place.handed = handed;
        }
        Ok(out)
    }

    fn decode(&self, lane: LaneId, chunk: super::segment::Chunk) -> Decoded {
        let mut records = Vec::with_capacity(chunk.items.len());
        for (i, (sequence, bytes)) in chunk.items.iter().enumerate() {
            match record::decode::<Record>(bytes) {
                Some(record) => records.push((chunk.position + i as u64, Stored { sequence: *sequence, record })),
                None => self.shelf.losses.report_once(Loss {
                    lane: lane as u8,
                    segment: 0,
                    first: *sequence,
                    last: *sequence,
                    records: 1,
                    from: Time::default(),
                    to: Time::default(),
                }),
            }
        }
        let first = chunk.items.first().map_or(chunk.last, |(sequence, _)| *sequence);
        Decoded { first, last: chunk.last, records, _chunk: chunk }
    }

    fn advance(&self, lane: usize, to: Cursor) {
        if self.sink.skip_to(lane, to) {
            self.shelf.moved.store(true, Ordering::Release);
            self.shelf.wake.notify_one();
        }
    }

    /// These, and everything before them in their lanes, are delivered. The cursor moves at once
    /// and is saved soon after; after a crash some may come again.
    pub fn ack(&self, delivered: &[Stored]) {
        for (lane, id) in LaneId::OUT.into_iter().enumerate() {
            let in_lane = delivered.iter().filter(|s| LaneId::of(s.record.kind) == id);
            let Some(last) = in_lane.map(|s| s.sequence).max() else { continue };
            let position = {
                let places = lock(&self.sink.places);
                let handed = &places[lane].handed;
                let done = handed.partition_point(|(sequence, _)| *sequence <= last);
                handed[..done].last().map(|(_, position)| position + 1)
            };
            // What was never handed out, or was given up meanwhile, moves nothing.
            if let Some(position) = position {
                self.advance(lane, Cursor { sequence: last + 1, position });
            }
        }
    }

    /// Sets a record aside that can never be delivered. It, and everything before it in its lane,
    /// counts as delivered once it is safe among the dead letters.
    pub async fn dead_letter(&self, stored: Stored, reason: &str) -> Result<(), ReadError> {
        let (done, safe) = oneshot::channel();
        let letter = DeadLetter::Record {
            at: Time::now(),
            sink: self.sink.name.clone(),
            reason: reason.to_owned(),
            sequence: stored.sequence,
            record: stored.record.clone(),
        };
        let what = AsideWhat::Letter(letter);
        self.shelf.aside.send(Aside { what, done }).await.map_err(|_| ReadError::Closed)?;
        safe.await.map_err(|_| ReadError::Closed)?;
        self.ack(&[stored]);
        Ok(())
    }

    /// Records and, roughly, bytes still to deliver.
    pub fn depth(&self) -> (u64, u64) {
        let [priority, routine] = self.depths();
        (priority.0 + routine.0, priority.1 + routine.1)
    }

    /// [`Outbox::depth`] of the priority and of the routine lane.
    pub fn depths(&self) -> [(u64, u64); 2] {
        self.shelf.depth(&self.sink)
    }
}
