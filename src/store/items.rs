//! Reading a lane from one end to the other, as it stands now.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::types::{Record, Stored};

use super::fault::Fault;
use super::outbox::ReadError;
use super::place::Span;
use super::record::{self, DeadLetter};
use super::segment::Sealed;
use super::view::LaneView;

/// Sequence and encoding of each item, in order, read from disk as they are asked for.
pub(super) struct Items {
    lane: Arc<LaneView>,
    next: u64,
    last: u64,
    ready: VecDeque<(u64, Vec<u8>)>,
    hold: Option<Arc<Sealed>>,
}

impl Items {
    /// From this sequence to the last one there is now.
    pub fn new(lane: Arc<LaneView>, from: u64) -> Items {
        let last = lane.last();
        Items { lane, next: from, last, ready: VecDeque::new(), hold: None }
    }

    fn within(lane: Arc<LaneView>, span: Span) -> Items {
        let items = Items::new(lane, span.from.sequence);
        Items { last: items.last.min(span.to.sequence.saturating_sub(1)), ..items }
    }

    fn fill(&mut self) -> Result<(), Fault> {
        while self.ready.is_empty() && self.next <= self.last {
            let Some(chunk) = self.lane.chunk_from(self.next)? else { break };
            let wanted = self.next..=self.last;
            self.ready.extend(chunk.items.into_iter().filter(|(sequence, _)| wanted.contains(sequence)));
            self.next = chunk.last + 1;
            self.hold = chunk.hold;
        }
        Ok(())
    }
}

impl Iterator for Items {
    type Item = Result<(u64, Vec<u8>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.fill() {
            Ok(()) => self.ready.pop_front().map(Ok),
            Err(fault) => {
                self.next = u64::MAX;
                Some(Err(ReadError::Disk(fault.to_string())))
            }
        }
    }
}

/// The records of a lane, delivered or not, as long as they are on disk.
pub struct Records(Items);

impl Records {
    pub(super) fn new(lane: Arc<LaneView>, span: Span) -> Records {
        Records(Items::within(lane, span))
    }
}

impl Iterator for Records {
    type Item = Result<Stored, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.next()? {
                Ok((sequence, bytes)) => {
                    if let Some(record) = record::decode::<Record>(&bytes) {
                        return Some(Ok(Stored { sequence, record }));
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// What was set aside: a number, rising, and the letter.
pub struct DeadLetters(Items);

impl DeadLetters {
    pub(super) fn new(lane: Arc<LaneView>) -> DeadLetters {
        DeadLetters(Items::new(lane, 0))
    }

    /// Leaves out those before this number.
    pub fn starting_at(self, number: u64) -> DeadLetters {
        DeadLetters(Items::new(self.0.lane, number))
    }
}

impl Iterator for DeadLetters {
    type Item = Result<(u64, DeadLetter), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.next()? {
                Ok((number, bytes)) => {
                    if let Some(letter) = record::decode::<DeadLetter>(&bytes) {
                        return Some(Ok((number, letter)));
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }
}
