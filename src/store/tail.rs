//! What the end of a lane has lost: the cursors file remembers how far each lane had come, and a start
//! that finds less tells the difference. What the engine's replay makes again is no loss.

use serde::{Deserialize, Serialize};

use crate::types::Time;

use super::lane::Lane;
use super::place::{self, Cursor, Place, Span};
use super::segment::Loss;
use super::view::{LaneId, LaneView};

/// How far a lane had come, all of it durable.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tip {
    /// Position of the oldest item held.
    pub start: u64,
    /// Sequence of the last item.
    pub sequence: u64,
    /// Items the lane ever held.
    pub position: u64,
    /// The engine's ordinal after the last engine record.
    pub engine_upto: u64,
    /// When its last block was written.
    pub written: Time,
}

impl Tip {
    /// Of a lane as it is now.
    pub fn of(lane: &LaneView) -> Tip {
        let (start, _) = lane.start();
        let (sequence, position) = lane.tip();
        let last = lane.segments().last().map(|s| s.summary()).unwrap_or_default();
        Tip { start, sequence, position, engine_upto: last.engine_upto, written: last.written }
    }
}

/// The part between the end that was found and the end that was remembered.
pub(super) struct LostTail {
    pub lane: LaneId,
    pub tip: Tip,
    span: Span,
    /// When the last item before it was written.
    since: Time,
    /// Items of it that the replay has made again. They are the last ones of it.
    returned: u64,
    /// Where the sinks were; only what they have not delivered is missed.
    places: Vec<Place>,
}

impl LostTail {
    /// `None` where the lane is as far as it was.
    pub fn find(lane: &Lane, tip: &Tip, places: Vec<Place>) -> Option<LostTail> {
        let from = Cursor { sequence: lane.view.last() + 1, position: lane.counters.position.max(tip.start) };
        let to = Cursor { sequence: tip.sequence.max(lane.view.last()) + 1, position: tip.position };
        let since = lane.view.segments().last().map(|s| s.summary().written).unwrap_or_default();
        let tail = LostTail { lane: lane.id, tip: *tip, span: Span { from, to }, since, returned: 0, places };
        (tail.span.records() > 0).then_some(tail)
    }

    /// A record of the replay that this lane does not hold.
    pub fn count(&mut self, lane: LaneId, ordinal: u64) {
        self.returned += u64::from(lane == self.lane && ordinal < self.tip.engine_upto);
    }

    /// What is lost for good, as far as it is missed.
    pub fn loss(&self) -> Option<Loss> {
        let end = self.span.to.position.saturating_sub(self.returned);
        let lost = Span { to: Cursor { position: end, ..self.span.to }, ..self.span };
        let (span, records) = match LaneId::OUT.contains(&self.lane) {
            true => place::union(self.places.iter().flat_map(|p| p.open_in(lost)).collect())?,
            false => (lost, lost.records()),
        };
        let last = span.to.sequence.saturating_sub(1);
        let (from, to) = (self.since, self.tip.written);
        let loss = Loss { lane: self.lane as u8, segment: 0, first: span.from.sequence, last, records, from, to };
        (records > 0).then_some(loss)
    }
}
