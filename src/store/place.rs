//! Where a sink is in a lane: a cursor below which all is done, and the stretches ahead of it that are
//! done as well, because what came live went before a backlog. Pure.

use serde::{Deserialize, Serialize};

/// Stretches that a sink may have done ahead of its cursor: so many backlogs may wait at once, each
/// of an outage that came before the last one was made up for. They are written each time a cursor
/// is. With more, live records wait their turn until a backlog is done.
pub(super) const MAX_AHEAD: usize = 8;
/// At least one record in so many is of the backlog, however fast live ones come.
pub(super) const BACKLOG_SHARE: u64 = 4;
/// Live records counted in the backlog's favour, at most: what a few batches can hold.
const MAX_CREDIT: u64 = 1 << 16;

/// A point in a lane.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cursor {
    /// Everything meant is below this, or from this on.
    pub sequence: u64,
    /// The lane's position that belongs to it.
    pub position: u64,
}

impl Cursor {
    fn max(self, other: Cursor) -> Cursor {
        Cursor { sequence: self.sequence.max(other.sequence), position: self.position.max(other.position) }
    }

    fn min(self, other: Cursor) -> Cursor {
        Cursor { sequence: self.sequence.min(other.sequence), position: self.position.min(other.position) }
    }
}

/// A part of a lane: from one point up to, and without, another.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    pub from: Cursor,
    pub to: Cursor,
}

impl Span {
    /// How many items there are, or were.
    pub fn records(&self) -> u64 {
        self.to.position.saturating_sub(self.from.position)
    }

    fn and(&self, other: &Span) -> Option<Span> {
        let both = Span { from: self.from.max(other.from), to: self.to.min(other.to) };
        (both.from.sequence < both.to.sequence && both.records() > 0).then_some(both)
    }
}

/// How many items some spans hold, and all they reach over; `None` where that is nothing. What stands
/// in several counts once.
pub(super) fn union(mut spans: Vec<Span>) -> Option<(Span, u64)> {
    spans.sort_by_key(|s| s.from.position);
    let mut whole = *spans.first()?;
    let mut records = whole.records();
    for span in spans.into_iter().skip(1) {
        records += span.to.position.saturating_sub(span.from.position.max(whole.to.position));
        whole.to = whole.to.max(span.to);
    }
    Some((whole, records))
}

/// See the top of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    cursor: Cursor,
    /// In order, none touching another or the cursor, so that between them there is a backlog. The last
    /// may be empty: live records are to be read from there.
    ahead: Vec<Span>,
}

impl Place {
    /// With the stretches that a file gave. What makes no sense of those does not count: it comes
    /// again.
    pub fn new(cursor: Cursor, ahead: &[Span]) -> Place {
        let mut place = Place { cursor, ahead: Vec::new() };
        for span in ahead.iter().take(MAX_AHEAD) {
            let end = place.live();
            let later = span.from.sequence > end.sequence && span.from.position >= end.position;
            if !later || span.to.sequence < span.from.sequence || span.to.position < span.from.position {
                break;
            }
            place.ahead.push(*span);
        }
        place
    }

    /// Everything below this is done.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// What is done ahead of it.
    pub fn ahead(&self) -> &[Span] {
        &self.ahead
    }

    /// From here on nothing is done.
    pub fn live(&self) -> Cursor {
        self.ahead.last().map_or(self.cursor, |s| s.to)
    }

    /// Where the backlog that begins at the cursor ends; `None` when there is none.
    pub fn backlog_end(&self) -> Option<Cursor> {
        self.ahead.first().map(|s| s.from)
    }

    /// What is not done: backlogs, oldest first, and what is live, without end.
    pub fn open(&self) -> impl Iterator<Item = Span> {
        const END: Cursor = Cursor { sequence: u64::MAX, position: u64::MAX };
        let begins = std::iter::once(self.cursor).chain(self.ahead.iter().map(|s| s.to));
        let ends = self.ahead.iter().map(|s| s.from).chain([END]);
        begins.zip(ends).map(|(from, to)| Span { from, to })
    }

    /// What of this is not done.
    pub fn open_in(&self, part: Span) -> impl Iterator<Item = Span> {
        self.open().filter_map(move |span| span.and(&part))
    }

    /// Whether any of these sequences, the last included, is not done.
    pub fn wants(&self, first: u64, last: u64) -> bool {
        self.open().any(|s| s.from.sequence <= last && first < s.to.sequence)
    }

    /// All below this is done; never goes back. `true` when that was news.
    pub fn advance(&mut self, to: Cursor) -> bool {
        if to.sequence <= self.cursor.sequence {
            return false;
        }
        self.cursor = to;
        let reached = self.ahead.iter().take_while(|s| s.from.sequence <= to.sequence).count();
        for span in self.ahead.drain(..reached) {
            if span.to.sequence > self.cursor.sequence {
                self.cursor = span.to;
            }
        }
        true
    }

    /// What is live is done up to here.
    pub fn advance_live(&mut self, to: Cursor) -> bool {
        match self.ahead.last_mut() {
            Some(last) if to.sequence > last.to.sequence => {
                last.to = to;
                true
            }
            Some(_) => false,
            None => self.advance(to),
        }
    }

    /// Where more than `behind` records wait before the end of the lane, they become a backlog, and
    /// what is live begins at that end. `true` when it was so.
    pub fn jump(&mut self, end: Cursor, behind: u64) -> bool {
        let live = self.live();
        if end.sequence <= live.sequence || end.position.saturating_sub(live.position) <= behind {
            return false;
        }
        let full = self.ahead.len() >= MAX_AHEAD;
        match self.ahead.last_mut() {
            // Nothing went ahead of the last one: that one is longer now.
            Some(last) if last.from == last.to => *last = Span { from: end, to: end },
            _ if full => return false,
            _ => self.ahead.push(Span { from: end, to: end }),
        }
        true
    }
}

/// Sees to it that a backlog gets its share.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Live records delivered for which the backlog has not had its part.
    credit: u64,
}

impl Share {
    /// Of so many records the least that are to be of the backlog.
    pub fn of(&self, records: usize) -> usize {
        let most = u64::try_from(records).unwrap_or(u64::MAX);
        usize::try_from((self.credit.saturating_add(most) / BACKLOG_SHARE).min(most)).unwrap_or(records)
    }

    /// So many were delivered while there was a backlog.
    pub fn count(&mut self, live: u64, backlog: u64) {
        let paid = backlog.saturating_mul(BACKLOG_SHARE - 1);
        self.credit = self.credit.saturating_add(live).saturating_sub(paid).min(MAX_CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Every third sequence is of another lane.
    fn at(position: u64) -> Cursor {
        Cursor { sequence: 1 + position + position / 2, position }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Come(u64),
        Jump(u64),
        Live(u64),
        Oldest(u64),
        GiveUp(u64),
        Reload,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (1..40u64).prop_map(Op::Come),
            3 => (0..30u64).prop_map(Op::Jump),
            4 => (1..30u64).prop_map(Op::Live),
            4 => (1..30u64).prop_map(Op::Oldest),
            1 => (1..60u64).prop_map(Op::GiveUp),
            1 => Just(Op::Reload),
        ]
    }

    /// Positions that a place says are not done, up to the end of the lane.
    fn open(place: &Place, end: u64) -> BTreeSet<u64> {
        let all = Span { from: at(0), to: at(end) };
        place.open_in(all).flat_map(|s| s.from.position..s.to.position).collect()
    }

    proptest! {
        #[test]
        fn what_is_open_is_what_nobody_has_done(ops in proptest::collection::vec(op(), 1..80)) {
            let (mut place, mut end) = (Place::new(at(0), &[]), 0);
            let mut waiting = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Come(n) => {
                        waiting.extend(end..end + n);
                        end += n;
                    }
                    Op::Jump(behind) => {
                        let lag = end - place.live().position;
                        let room = place.ahead.len() < MAX_AHEAD || place.ahead.last().is_some_and(|s| s.from == s.to);
                        prop_assert_eq!(place.jump(at(end), behind), lag > behind && room);
                    }
                    Op::Live(n) => {
                        let from = place.live().position;
                        let to = (from + n).min(end);
                        prop_assert_eq!(place.advance_live(at(to)), to > from);
                        (from..to).for_each(|p| _ = waiting.remove(&p));
                    }
                    Op::Oldest(n) => {
                        let from = place.cursor().position;
                        let to = (from + n).min(place.backlog_end().map_or(end, |c| c.position));
                        prop_assert_eq!(place.advance(at(to)), to > from);
                        (from..to).for_each(|p| _ = waiting.remove(&p));
                    }
                    Op::GiveUp(n) => {
                        let to = (place.cursor().position + n).min(end);
                        place.advance(at(to));
                        waiting.retain(|p| *p >= to);
                    }
                    Op::Reload => prop_assert_eq!(&Place::new(place.cursor, &place.ahead), &place),
                }
                prop_assert_eq!(open(&place, end), waiting.clone());
                prop_assert!(place.ahead.len() <= MAX_AHEAD);
                for p in 0..end {
                    prop_assert_eq!(place.wants(at(p).sequence, at(p).sequence), waiting.contains(&p), "{}", p);
                }
                let (_, n) = union(place.open_in(Span { from: at(0), to: at(end) }).collect()).unwrap_or_default();
                prop_assert_eq!(n, waiting.len() as u64);
            }
        }

        #[test]
        fn any_file_makes_a_place_in_order(numbers in proptest::collection::vec((0..50u64, 0..50u64), 1..20)) {
            let points: Vec<Cursor> = numbers.iter().map(|(s, p)| Cursor { sequence: *s, position: *p }).collect();
            let spans: Vec<Span> = points[1..].chunks_exact(2).map(|p| Span { from: p[0], to: p[1] }).collect();
            let place = Place::new(points[0], &spans);
            prop_assert!(place.ahead.len() <= MAX_AHEAD);
            let open: Vec<Span> = place.open().collect();
            prop_assert!(open.iter().all(|s| s.from.sequence < s.to.sequence));
            prop_assert!(open.windows(2).all(|w| w[0].to.sequence <= w[1].from.sequence));
        }

        #[test]
        fn neither_starves(batches in proptest::collection::vec(1..600usize, 1..200)) {
            let (mut share, mut live, mut backlog) = (Share::default(), 0, 0);
            for most in batches {
                let old = share.of(most);
                let new = most - old;
                share.count(new as u64, old as u64);
                (live, backlog) = (live + new, backlog + old);
                let fair = (live + backlog) as f64 / BACKLOG_SHARE as f64;
                prop_assert!((backlog as f64 - fair).abs() <= BACKLOG_SHARE as f64, "{} of {}", backlog, live + backlog);
            }
        }
    }

    #[test]
    fn what_two_sinks_lose_counts_once() {
        let span = |a, b| Span { from: at(a), to: at(b) };
        assert_eq!(union(vec![]), None);
        assert_eq!(union(vec![span(30, 40), span(0, 10), span(5, 20)]), Some((span(0, 40), 30)));
    }
}
