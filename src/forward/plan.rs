//! How one batch from the outbox gets across: cut into pieces, halved when refused, each record
//! delivered or set aside exactly once and settled in order. Pure; a sink asks and reports.

use std::collections::VecDeque;
use std::ops::Range;

use super::reply::Fate;

/// A batch on its way. Records are known by their position in the batch.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Encoded size of each record, in bytes.
    sizes: Vec<usize>,
    fates: Vec<Option<Fate>>,
    /// What is still to be sent, in order; none is empty.
    pieces: VecDeque<Vec<usize>>,
    settled: usize,
}

/// What can be told to the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// These records are delivered.
    Delivered(Range<usize>),
    /// This record is to be set aside, for this reason.
    Dead(usize, String),
}

impl Plan {
    /// A batch whose records have these sizes once encoded, to be sent in requests of at most
    /// `max_bytes` and at most `max_records` each. A larger record goes alone.
    pub fn new(sizes: Vec<usize>, max_records: usize, max_bytes: usize) -> Plan {
        let all: Vec<usize> = (0..sizes.len()).collect();
        let mut plan = Plan { fates: vec![None; sizes.len()], pieces: VecDeque::from([all]), settled: 0, sizes };
        plan.cut(max_records, max_bytes);
        plan
    }

    /// What to send next: positions in rising order, never none; `None` when nothing is left.
    pub fn piece(&self) -> Option<&[usize]> {
        self.pieces.front().map(Vec::as_slice)
    }

    /// The size of these records as a JSON array.
    pub fn bytes(&self, piece: &[usize]) -> usize {
        1 + piece.iter().map(|&i| self.sizes[i] + 1).sum::<usize>()
    }

    /// The piece was taken.
    pub fn accepted(&mut self) {
        self.decide(|_| Fate::Accepted);
    }

    /// Each record of the piece had its own fate; those that wait are the next piece.
    pub fn each(&mut self, fates: Vec<Fate>) {
        let mut fates = fates.into_iter();
        // A reply is read for exactly these records; one that has no fate is sent again.
        self.decide(|_| fates.next().unwrap_or(Fate::Later));
    }

    /// At least one record of the piece will never be taken: look in both halves, and set a single
    /// one aside.
    pub fn refused(&mut self, reason: &str) {
        match self.pieces.front_mut() {
            Some(piece) if piece.len() > 1 => {
                let rest = piece.split_off(piece.len() / 2);
                self.pieces.insert(1, rest);
            }
            _ => self.decide(|_| Fate::Refused(reason.to_owned())),
        }
    }

    /// The piece was too large: nothing from here on is larger than `max_bytes`, which is below the
    /// size of the piece; a single record is set aside.
    pub fn too_large(&mut self, max_bytes: usize, reason: &str) {
        match self.pieces.front() {
            Some(piece) if piece.len() > 1 => {
                let max_bytes = max_bytes.min(self.bytes(piece) - 1);
                self.cut(usize::MAX, max_bytes);
            }
            _ => self.decide(|_| Fate::Refused(reason.to_owned())),
        }
    }

    /// This record cannot even be sent.
    pub fn unsendable(&mut self, position: usize, reason: &str) {
        self.fates[position] = Some(Fate::Refused(reason.to_owned()));
        self.pieces.iter_mut().for_each(|p| p.retain(|&i| i != position));
        self.pieces.retain(|p| !p.is_empty());
    }

    /// What has come to its end since the last call, in the order of the batch; `None` when the
    /// next record is still on its way.
    pub fn settle(&mut self) -> Option<Settled> {
        let start = self.settled;
        let delivered = self.fates[start..].iter().take_while(|f| **f == Some(Fate::Accepted)).count();
        if delivered > 0 {
            self.settled += delivered;
            return Some(Settled::Delivered(start..self.settled));
        }
        match self.fates.get(start) {
            Some(Some(Fate::Refused(reason))) => {
                self.settled += 1;
                Some(Settled::Dead(start, reason.clone()))
            }
            _ => None,
        }
    }

    fn decide(&mut self, mut fate: impl FnMut(usize) -> Fate) {
        let Some(mut piece) = self.pieces.pop_front() else { return };
        piece.retain(|&i| match fate(i) {
            Fate::Later => true,
            end => {
                self.fates[i] = Some(end);
                false
            }
        });
        if !piece.is_empty() {
            self.pieces.push_front(piece);
        }
    }

    fn cut(&mut self, max_records: usize, max_bytes: usize) {
        let mut cut = VecDeque::new();
        for whole in std::mem::take(&mut self.pieces) {
            let mut piece: Vec<usize> = Vec::new();
            for i in whole {
                let full = piece.len() >= max_records || self.bytes(&piece) + self.sizes[i] + 1 > max_bytes;
                if full && !piece.is_empty() {
                    cut.push_back(std::mem::take(&mut piece));
                }
                piece.push(i);
            }
            cut.extend((!piece.is_empty()).then_some(piece));
        }
        self.pieces = cut;
    }
}

#[cfg(test)]
mod tests;
