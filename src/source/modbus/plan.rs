//! Which requests fetch what is due: the fewest, without touching what the device refuses. Pure.
//! A refused block is split until the bad address stands alone, so it never hides its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

use super::registers::Table;
use crate::types::Cause;

/// A stretch of one table. `start + count` is at most 65536.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The table.
    pub table: Table,
    /// The first register or bit.
    pub start: u16,
    /// How many.
    pub count: u16,
}

impl Span {
    /// One past the last, which may be 65536.
    pub fn end(self) -> u32 {
        u32::from(self.start) + u32::from(self.count)
    }

    fn from(self) -> u32 {
        u32::from(self.start)
    }
}

/// What one request may ask for.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Registers in a request: 1..=125. Sixteen times as many bits.
    pub max_registers: u16,
    /// Registers between two wanted ones that may be read for nothing. Sixteen times as many bits.
    pub gap: u16,
}

impl Limits {
    fn of(self, table: Table) -> (u32, u32) {
        let unit = if table.is_bits() { 16 } else { 1 };
        (u32::from(self.max_registers) * unit, u32::from(self.gap) * unit)
    }
}

/// One request and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to read.
    pub span: Span,
    /// Those among the wanted that it brings, by index, sorted by place.
    pub wants: Vec<usize>,
}

/// The fewest requests that fetch the wanted spans.
///
/// Each of `due` is an index into `spans` and is brought by exactly one request. No request is
/// longer than the limit (unless a single span is), reads through a gap over the limit or one with
/// a known hole in it, or reaches across a known cut.
pub fn plan(spans: &[Span], due: &[usize], limits: Limits, memory: &Memory, now: Instant) -> Vec<Request> {
    let mut order: Vec<usize> = due.to_vec();
    order.sort_by_key(|i| (spans[*i], *i));
    let cuts = memory.cuts_outside(spans, &order, now);
    let mut requests: Vec<Request> = Vec::new();
    for i in order {
        let span = spans[i];
        match requests.last_mut().filter(|r| joins(r.span, span, limits, memory, &cuts)) {
            Some(request) => {
                request.span.count = (request.span.end().max(span.end()) - request.span.from()) as u16;
                request.wants.push(i);
            }
            None => requests.push(Request { span, wants: vec![i] }),
        }
    }
    requests
}

/// Whether `next`, which starts no earlier than `open`, can be read in the same request.
fn joins(open: Span, next: Span, limits: Limits, memory: &Memory, cuts: &BTreeSet<(Table, u16)>) -> bool {
    let (max, gap) = limits.of(open.table);
    let end = open.end().max(next.end());
    // What would be read for nothing; where they touch or overlap, nothing.
    let idle = open.end()..next.from().max(open.end());
    let in_idle = |h: &Span| h.table == open.table && h.from() < idle.end && idle.start < h.end();
    open.table == next.table
        && end - open.from() <= max
        && idle.end - idle.start <= gap
        && (idle.is_empty() || !memory.holes.keys().any(in_idle))
        && !crosses(cuts, open, end)
}

/// Whether a request from `open`'s start to `end` would reach across a cut.
fn crosses(cuts: &BTreeSet<(Table, u16)>, open: Span, end: u32) -> bool {
    let behind = (Bound::Excluded((open.table, open.start)), Bound::Unbounded);
    cuts.range(behind).next().is_some_and(|(table, at)| *table == open.table && u32::from(*at) < end)
}

/// Two requests in place of one that the device refused; `None` when all it wants is one span.
pub fn split(request: &Request, spans: &[Span]) -> Option<(Request, Request)> {
    // Those that want the very same span stay together: the device would answer them alike.
    let middle = request.wants.len() / 2;
    let other = |i: &usize| spans[request.wants[*i]] != spans[request.wants[*i - 1]];
    let near = (1..=middle).rev().find(other).or_else(|| (middle + 1..request.wants.len()).find(other))?;
    let (left, right) = request.wants.split_at(near);
    Some((covering(left, spans)?, covering(right, spans)?))
}

fn covering(wants: &[usize], spans: &[Span]) -> Option<Request> {
    let first = spans[*wants.first()?];
    let end = wants.iter().map(|i| spans[*i].end()).max()?;
    let span = Span { count: (end - first.from()) as u16, ..first };
    Some(Request { span, wants: wants.to_vec() })
}

/// What the device refused before. It holds only spans of configured signals, so it is no larger
/// than the config.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    holes: BTreeMap<Span, Hole>,
    /// Where requests are cut, and until when.
    cuts: BTreeMap<(Table, u16), Instant>,
    /// Counts what is learnt.
    lessons: u64,
}

#[derive(Copy, Clone, Debug)]
struct Hole {
    cause: Cause,
    retry_at: Instant,
    wait: Duration,
}

/// What to do with a span that is due.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Read it with the others.
    Read,
    /// It was refused a while ago: try it again, alone.
    Retry,
    /// It was refused lately: leave it.
    Leave,
}

impl Memory {
    /// The first wait before a refused address is tried again; it doubles at each refusal.
    pub const FIRST_WAIT: Duration = Duration::from_secs(5);
    /// The longest wait.
    pub const LONGEST_WAIT: Duration = Duration::from_secs(60);
    /// How long a cut holds. It costs one request more; what caused it may have passed.
    pub const CUT_HOLDS: Duration = Duration::from_secs(3600);

    /// What to do with a span.
    pub fn advice(&self, span: Span, now: Instant) -> Advice {
        match self.holes.get(&span) {
            None => Advice::Read,
            Some(hole) if hole.retry_at <= now => Advice::Retry,
            Some(_) => Advice::Leave,
        }
    }

    /// Why a span is left alone.
    pub fn cause(&self, span: Span) -> Cause {
        self.holes.get(&span).map_or(Cause::None, |hole| hole.cause)
    }

    /// The device refused this span alone.
    pub fn refused(&mut self, span: Span, cause: Cause, now: Instant) {
        let wait = self.holes.get(&span).map_or(Self::FIRST_WAIT, |h| (h.wait * 2).min(Self::LONGEST_WAIT));
        self.lessons += u64::from(self.holes.get(&span).is_none_or(|h| h.cause != cause));
        self.holes.insert(span, Hole { cause, retry_at: now + wait, wait });
    }

    /// The device answered for this span. If it had refused it, it has changed its mind, and is
    /// asked again for all else that it refused.
    pub fn answered(&mut self, span: Span, now: Instant) {
        if !self.holes.is_empty() && self.holes.remove(&span).is_some() {
            self.lessons += 1;
            for hole in self.holes.values_mut() {
                *hole = Hole { retry_at: now, wait: Self::FIRST_WAIT, ..*hole };
            }
        }
    }

    /// The device refused two neighbours together and answered each alone: what lies between them,
    /// or their border, cannot be read across. `at` is where the second starts.
    pub fn cut(&mut self, table: Table, at: u16, now: Instant) {
        self.cuts.retain(|_, until| *until > now);
        self.cuts.insert((table, at), now + Self::CUT_HOLDS);
        self.lessons += 1;
    }

    /// Rises with everything that is learnt: where it is the same, so is what is known.
    pub fn lessons(&self) -> u64 {
        self.lessons
    }

    /// What is refused now, and why.
    pub fn all_holes(&self) -> impl Iterator<Item = (Span, Cause)> {
        self.holes.iter().map(|(span, hole)| (*span, hole.cause))
    }

    /// The cuts that hold, and for how long.
    pub fn all_cuts(&self, now: Instant) -> impl Iterator<Item = (Table, u16, Duration)> {
        let left = move |until: &Instant| until.saturating_duration_since(now);
        self.cuts
            .iter()
            .map(move |((table, at), until)| (*table, *at, left(until)))
            .filter(|(.., left)| !left.is_zero())
    }

    /// This span was refused in an earlier run. It is tried again at once, alone.
    pub fn recall_hole(&mut self, span: Span, cause: Cause, now: Instant) {
        self.holes.insert(span, Hole { cause, retry_at: now, wait: Self::FIRST_WAIT });
    }

    /// A cut found in an earlier run that holds for so long yet.
    pub fn recall_cut(&mut self, table: Table, at: u16, left: Duration, now: Instant) {
        self.cuts.insert((table, at), now + left.min(Self::CUT_HOLDS));
    }

    /// How many spans are refused now.
    pub fn holes(&self) -> usize {
        self.holes.len()
    }

    /// The cuts that no wanted span itself reaches across.
    fn cuts_outside(&self, spans: &[Span], due: &[usize], now: Instant) -> BTreeSet<(Table, u16)> {
        let holding = self.cuts.iter().filter(|(_, until)| **until > now).map(|(cut, _)| cut);
        let across = |s: &Span, c: &(Table, u16)| s.table == c.0 && s.start < c.1 && u32::from(c.1) < s.end();
        holding.filter(|c| !due.iter().any(|i| across(&spans[*i], c))).copied().collect()
    }
}

#[cfg(test)]
mod tests;
