//! Where sinks read: from their own place, the priority lane before the routine one; of that, where a
//! sink asks for it, what comes live before a backlog.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::metrics::lock;
use crate::types::{Name, Record, Stored, Time};

use super::hand::Hand;
use super::limits::CLOCK_TOLERANCE;
use super::place::{Cursor, Place, Span};
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
    hands: Mutex<[Hand; 2]>,
}

impl Sink {
    /// At these places.
    pub fn new(name: &str, places: [Place; 2]) -> Sink {
        Sink { name: name.into(), hands: Mutex::new(places.map(Hand::new)) }
    }

    /// Where it is.
    pub fn places(&self) -> [Place; 2] {
        lock(&self.hands).each_ref().map(|h| h.place.clone())
    }

    /// Leaves out everything before this.
    pub fn skip_to(&self, lane: usize, to: Cursor) -> bool {
        lock(&self.hands)[lane].advance(to)
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
    /// With more routine records than this to deliver, a sink that wants live ones first has a backlog.
    pub backlog_after: u64,
    /// Moves whenever more has become durable.
    pub horizon: watch::Sender<u64>,
    /// A cursor moved since they were last saved.
    pub moved: AtomicBool,
    /// Tells the writer of that.
    pub wake: Notify,
    pub aside: mpsc::Sender<Aside>,
    /// Dead letters below these have been queued again: of the payloads' lane, of the refused records'.
    pub requeued: [AtomicU64; 2],
    /// Somebody who knows the time has found the clock right since that was asked last.
    pub clock_confirmed: AtomicBool,
    pub losses: Arc<Losses>,
    pub closed: AtomicBool,
}

impl Shelf {
    /// How many records and, roughly, bytes this sink has to deliver in each lane.
    pub fn depth(&self, sink: &Sink) -> [(u64, u64); 2] {
        let places = sink.places();
        [0, 1].map(|i| {
            let lane = &self.lanes[i];
            let records = lane.waiting(&places[i]);
            let (held, bytes) = lane.held();
            let share = u128::from(bytes) * u128::from(records.min(held)) / u128::from(held.max(1));
            (records, share as u64)
        })
    }

    /// How many routine records wait before which live ones go.
    pub fn backlog(&self, sink: &Sink) -> u64 {
        let [_, place] = sink.places();
        self.lanes[1].waiting(&place).saturating_sub(self.lanes[1].waiting(&Place::new(place.live(), &[])))
    }

    /// Where all sinks are.
    pub fn places(&self) -> Vec<[Place; 2]> {
        self.sinks.values().map(|s| s.places()).collect()
    }
}

/// A sink's reader. Clones share one cursor; one task at a time should read and acknowledge.
#[derive(Clone)]
pub struct Outbox {
    sink: Arc<Sink>,
    shelf: Arc<Shelf>,
    live_first: bool,
    /// Of the priority lane, of the routine lane from the cursor on, of what is live in it.
    cache: Arc<Mutex<[Option<Decoded>; 3]>>,
}

/// A read that is under way.
struct Gathered {
    records: Vec<Stored>,
    bytes: usize,
    max_bytes: usize,
}

impl Gathered {
    /// Takes a record as long as there are fewer than this, or none.
    fn take(&mut self, stored: &Stored, max_records: usize) -> bool {
        let bytes = self.bytes + stored.record.data.len();
        let fits = self.records.is_empty() || (self.records.len() < max_records && bytes <= self.max_bytes);
        if fits {
            self.records.push(stored.clone());
            self.bytes = bytes;
        }
        fits
    }
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
        Outbox { sink, shelf, live_first: false, cache: Arc::default() }
    }

    /// The same reader, but when much waits, what comes from then on goes first, and the backlog gets the
    /// rest of each read: a quarter at least.
    pub fn live_first(self) -> Outbox {
        Outbox { live_first: true, ..self }
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
        let places = self.sink.places();
        (0..2).any(|i| {
            let waits = |at: Cursor| self.shelf.lanes[i].last() >= at.sequence.max(1) && !self.is_fenced(i, at);
            waits(places[i].cursor()) || (self.live_first && waits(places[i].live()))
        })
    }

    /// Whether anything waits in the priority lane.
    pub fn urgent_waits(&self) -> bool {
        let at = lock(&self.sink.hands)[0].place.cursor();
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

    /// The next records, without advancing: those of the priority lane while there are any, else those of
    /// the routine lane, from the cursor on; with [`Outbox::live_first`] live ones and then some of the
    /// backlog. At least one if there is one, at most `max_records`, and about `max_bytes` of data. Empty
    /// when there is nothing to deliver.
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
        let (last, position) = self.shelf.lanes[lane].tip();
        let end = Cursor { sequence: last.saturating_add(1), position };
        let (place, share) = self.look(lane, end, max_records);
        let mut gathered = Gathered { records: Vec::new(), bytes: 0, max_bytes };
        let Some(upto) = place.backlog_end() else {
            self.read_span(lane, lane, Span { from: place.cursor(), to: end }, max_records, &mut gathered)?;
            return Ok(gathered.records);
        };
        let backlog = Span { from: place.cursor(), to: upto };
        if self.live_first {
            let share = if self.is_fenced(lane, backlog.from) { 0 } else { share };
            let live = Span { from: place.live(), to: end };
            self.read_span(lane, lane + 1, live, max_records - share, &mut gathered)?;
        }
        self.read_span(lane, lane, backlog, max_records, &mut gathered)?;
        Ok(gathered.records)
    }

    /// The place, and how many of so many records are the backlog's.
    fn look(&self, lane: usize, end: Cursor, max_records: usize) -> (Place, usize) {
        let mut hands = lock(&self.sink.hands);
        let hand = &mut hands[lane];
        if self.live_first && LaneId::OUT[lane] == LaneId::Routine && hand.jump(end, self.shelf.backlog_after) {
            self.say_moved();
        }
        (hand.place.clone(), hand.share.of(max_records))
    }

    /// Reads from one point until there are `max_records` in all, or up to another point. Of the last
    /// span of a lane it may be further: more can have come.
    fn read_span(
        &self,
        lane: usize,
        cached: usize,
        span: Span,
        max_records: usize,
        gathered: &mut Gathered,
    ) -> Result<(), ReadError> {
        let view = &self.shelf.lanes[lane];
        if max_records <= gathered.records.len()
            || span.from.sequence >= span.to.sequence
            || self.is_fenced(lane, span.from)
        {
            return Ok(());
        }
        let (mut handed, mut sequence, mut full) = (Vec::new(), span.from.sequence, false);
        let mut cache = lock(&self.cache);
        while sequence < span.to.sequence && !full {
            let cache = &mut cache[cached];
            if !cache.as_ref().is_some_and(|d| (d.first..=d.last).contains(&sequence)) {
                let chunk = view.chunk_from(sequence).map_err(|e| ReadError::Disk(e.to_string()))?;
                *cache = chunk.map(|c| self.decode(LaneId::OUT[lane], c));
            }
            let Some(decoded) = cache else { break };
            let wanted = sequence..span.to.sequence;
            for (position, stored) in decoded.records.iter().filter(|(_, s)| wanted.contains(&s.sequence)) {
                if !gathered.take(stored, max_records) {
                    full = true;
                    break;
                }
                handed.push((stored.sequence, *position));
            }
            sequence = decoded.last + 1;
        }
        let mut hands = lock(&self.sink.hands);
        let hand = &mut hands[lane];
        if !handed.is_empty() {
            hand.keep(span.from, handed);
        } else if !full {
            // What should be here is lost, which the writer tells; there is nothing to wait for.
            let (live, oldest) = (span.from == hand.place.live(), span.from == hand.place.cursor());
            if (live && hand.advance_live(span.to)) || (oldest && hand.advance(span.to)) {
                self.say_moved();
            }
        }
        Ok(())
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

    fn say_moved(&self) {
        self.shelf.moved.store(true, Ordering::Release);
        self.shelf.wake.notify_one();
    }

    /// These, and everything that was handed out before them, are delivered. The place moves at once
    /// and is saved soon after; after a crash some may come again.
    pub fn ack(&self, delivered: &[Stored]) {
        let mut hands = lock(&self.sink.hands);
        for (hand, id) in hands.iter_mut().zip(LaneId::OUT) {
            let in_lane = delivered.iter().filter(|s| LaneId::of(s.record.kind) == id);
            if hand.ack(in_lane.map(|s| s.sequence)) {
                self.say_moved();
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

    /// The other side says that it is this time. A clock of ours that agrees is confirmed: ages are
    /// counted by it although it is far ahead of the last run.
    pub fn confirm_clock(&self, heard: Time) {
        let now = Time::now();
        if now.since(heard).max(heard.since(now)) < CLOCK_TOLERANCE {
            self.shelf.clock_confirmed.store(true, Ordering::Release);
        }
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
