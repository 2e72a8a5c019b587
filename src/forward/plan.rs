//! How one batch from the outbox gets across: cut into pieces, several of which may be under way, halved
//! when refused, each record delivered or set aside exactly once and settled in order. Pure.

use std::collections::VecDeque;
use std::ops::Range;

use super::reply::Fate;

/// A batch on its way. Records are known by their position in the batch.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Encoded size of each record, in bytes.
    sizes: Vec<usize>,
    fates: Vec<Option<Fate>>,
    /// What is still to be sent or answered, in order; none is empty.
    pieces: VecDeque<Piece>,
    next_key: Key,
    max_bytes: usize,
    settled: usize,
}

/// Names a piece: the same records in the same order, and nothing else.
pub type Key = u64;

#[derive(Clone, Debug)]
struct Piece {
    key: Key,
    records: Vec<usize>,
    /// Sent, and not answered yet.
    flying: bool,
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
        let records: Vec<usize> = (0..sizes.len()).collect();
        let fates = vec![None; sizes.len()];
        let mut plan = Plan { sizes, fates, pieces: VecDeque::new(), next_key: 0, max_bytes, settled: 0 };
        let all = plan.named(records);
        plan.pieces.push_back(all);
        plan.cut(max_records);
        plan
    }

    /// What to send next, which counts as under way from now on: positions in rising order, never none.
    /// `None` when all the rest is under way already.
    pub fn take(&mut self) -> Option<(Key, Vec<usize>)> {
        let piece = self.pieces.iter_mut().find(|p| !p.flying)?;
        piece.flying = true;
        Some((piece.key, piece.records.clone()))
    }

    /// Whether every record has come to its end.
    pub fn is_done(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The size of these records as a JSON array.
    pub fn bytes(&self, piece: &[usize]) -> usize {
        1 + piece.iter().map(|&i| self.sizes[i] + 1).sum::<usize>()
    }

    /// The piece was taken.
    pub fn accepted(&mut self, key: Key) {
        self.decide(key, |_| Fate::Accepted);
    }

    /// The piece is to be sent again: as it is, unless it has turned out meanwhile that less goes at a time.
    pub fn later(&mut self, key: Key) {
        if let Some(piece) = self.pieces.iter_mut().find(|p| p.key == key) {
            piece.flying = false;
        }
        self.cut(usize::MAX);
    }

    /// Each record of the piece had its own fate; those that wait are a piece of their own.
    pub fn each(&mut self, key: Key, fates: Vec<Fate>) {
        let mut fates = fates.into_iter();
        // A reply is read for exactly these records; one that has no fate is sent again.
        self.decide(key, |_| fates.next().unwrap_or(Fate::Later));
    }

    /// At least one record of the piece will never be taken: look in both halves, and set a single
    /// one aside.
    pub fn refused(&mut self, key: Key, reason: &str) {
        let Some(at) = self.place(key) else { return };
        if self.pieces[at].records.len() == 1 {
            return self.decide(key, |_| Fate::Refused(reason.to_owned()));
        }
        let Some(mut piece) = self.pieces.remove(at) else { return };
        let rest = piece.records.split_off(piece.records.len() / 2);
        for half in [rest, piece.records] {
            let half = self.named(half);
            self.pieces.insert(at, half);
        }
        // What was under way may be larger than what has been learnt meanwhile.
        self.cut(usize::MAX);
    }

    /// The piece was too large: nothing that is sent from now on is larger than `max_bytes`, which is
    /// below the size of the piece; a single record is set aside.
    pub fn too_large(&mut self, key: Key, max_bytes: usize, reason: &str) {
        let Some(at) = self.place(key) else { return };
        if self.pieces[at].records.len() == 1 {
            return self.decide(key, |_| Fate::Refused(reason.to_owned()));
        }
        self.max_bytes = self.max_bytes.min(max_bytes).min(self.bytes(&self.pieces[at].records) - 1);
        self.later(key);
    }

    /// This record cannot even be sent. Only before anything is.
    pub fn unsendable(&mut self, position: usize, reason: &str) {
        self.fates[position] = Some(Fate::Refused(reason.to_owned()));
        self.pieces.iter_mut().for_each(|p| p.records.retain(|&i| i != position));
        self.pieces.retain(|p| !p.records.is_empty());
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

    fn place(&self, key: Key) -> Option<usize> {
        self.pieces.iter().position(|p| p.key == key)
    }

    fn named(&mut self, records: Vec<usize>) -> Piece {
        self.next_key += 1;
        Piece { key: self.next_key, records, flying: false }
    }

    fn decide(&mut self, key: Key, mut fate: impl FnMut(usize) -> Fate) {
        let Some(at) = self.place(key) else { return };
        let Some(mut piece) = self.pieces.remove(at) else { return };
        let before = piece.records.len();
        piece.records.retain(|&i| match fate(i) {
            Fate::Later => true,
            end => {
                self.fates[i] = Some(end);
                false
            }
        });
        piece.flying = false;
        if piece.records.is_empty() {
            return;
        }
        let rest = if piece.records.len() == before { piece } else { self.named(piece.records) };
        self.pieces.insert(at, rest);
        self.cut(usize::MAX);
    }

    /// Cuts what is not under way.
    fn cut(&mut self, max_records: usize) {
        let mut cut = VecDeque::new();
        for whole in std::mem::take(&mut self.pieces) {
            let fits = whole.records.len() <= max_records && self.bytes(&whole.records) <= self.max_bytes;
            if whole.flying || fits || whole.records.len() == 1 {
                cut.push_back(whole);
                continue;
            }
            let mut piece: Vec<usize> = Vec::new();
            for i in whole.records {
                let full = piece.len() >= max_records || self.bytes(&piece) + self.sizes[i] + 1 > self.max_bytes;
                if full && !piece.is_empty() {
                    cut.push_back(self.named(std::mem::take(&mut piece)));
                }
                piece.push(i);
            }
            if !piece.is_empty() {
                cut.push_back(self.named(piece));
            }
        }
        cut.retain(|p| !p.records.is_empty());
        self.pieces = cut;
    }
}

#[cfg(test)]
mod tests;
