//! A sink's place in a lane with what was handed out there, so that what is acknowledged has a position.

use super::place::{Cursor, Place, Share};

/// Sequence and position of what was handed out from one point on, without holes.
pub(super) type Handed = Vec<(u64, u64)>;

/// A place, and what was handed out there.
#[derive(Default)]
pub(super) struct Hand {
    pub place: Place,
    /// From the cursor on.
    oldest: Handed,
    /// From where live records begin, while there is a backlog before them.
    live: Handed,
    pub share: Share,
}

impl Hand {
    /// With nothing handed out yet.
    pub fn new(place: Place) -> Hand {
        Hand { place, ..Hand::default() }
    }

    /// Moves forward, never back.
    pub fn advance(&mut self, to: Cursor) -> bool {
        let moved = self.place.advance(to);
        self.tidy();
        moved
    }

    pub fn advance_live(&mut self, to: Cursor) -> bool {
        let moved = self.place.advance_live(to);
        self.tidy();
        moved
    }

    /// Forgets what was handed out and is done.
    fn tidy(&mut self) {
        if self.place.backlog_end().is_none() && !self.live.is_empty() {
            self.oldest = std::mem::take(&mut self.live);
        }
        for (handed, from) in [(&mut self.oldest, self.place.cursor()), (&mut self.live, self.place.live())] {
            let done = handed.partition_point(|(sequence, _)| *sequence < from.sequence);
            handed.drain(..done);
        }
    }

    /// Keeps what was handed out from this point on, unless the place is another by now.
    pub fn keep(&mut self, from: Cursor, handed: Handed) {
        let kept = if from == self.place.cursor() { &mut self.oldest } else { &mut self.live };
        if (from == self.place.cursor() || from == self.place.live()) && handed.len() > kept.len() {
            *kept = handed;
        }
    }

    /// What waits becomes a backlog when there is too much of it.
    pub fn jump(&mut self, end: Cursor, behind: u64) -> bool {
        let moved = self.place.jump(end, behind);
        if moved {
            self.live.clear();
        }
        moved
    }

    /// These are delivered. What was never handed out, or was given up meanwhile, moves nothing.
    pub fn ack(&mut self, sequences: impl Iterator<Item = u64>) -> bool {
        let live_from = self.place.backlog_end().map_or(u64::MAX, |_| self.place.live().sequence);
        let oldest_upto = self.place.backlog_end().map_or(u64::MAX, |end| end.sequence);
        let (mut live, mut oldest) = ((0, None), (0, None));
        for sequence in sequences {
            let of = if sequence >= live_from { &mut live } else { &mut oldest };
            if sequence >= live_from || sequence < oldest_upto {
                *of = (of.0 + 1, of.1.max(Some(sequence)));
            }
        }
        if self.place.backlog_end().is_some() {
            self.share.count(live.0, oldest.0);
        } else {
            self.share = Share::default();
        }
        let live = live.1.and_then(|last| reached(&self.live, last));
        let oldest = oldest.1.and_then(|last| reached(&self.oldest, last));
        let moved = live.is_some_and(|to| self.advance_live(to));
        oldest.is_some_and(|to| self.advance(to)) || moved
    }
}

/// Where a sink is that has all it was handed up to this sequence.
fn reached(handed: &Handed, last: u64) -> Option<Cursor> {
    let done = handed.partition_point(|(sequence, _)| *sequence <= last);
    let position = handed[..done].last().map(|(_, position)| position + 1)?;
    Some(Cursor { sequence: last + 1, position })
}
