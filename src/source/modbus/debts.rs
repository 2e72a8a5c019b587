//! What a unit on a serial line still owes: answers that did not come in time and may come yet.
//! RTU answers do not say what they answer, so while one is owed, an answer of the same shape could
//! be the old one. Pure.

use std::time::Duration;

use tokio::time::Instant;

use super::frame::{REFUSED, answer_bytes, function};
use super::plan::Span;
use super::registers::Table;

/// The most answers a unit may owe. Beyond that it is not asked until the oldest are given up, which
/// at the pace of the backoff is never reached.
const MOST: usize = 16;

/// The answers that one unit owes.
#[derive(Clone, Debug, Default)]
pub struct Debts {
    owed: Vec<Debt>,
}

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
struct Debt {
    function: u8,
    bytes: usize,
    until: Instant,
}

/// What an answer is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// That to the request just made, and to no other.
    Fresh,
    /// Maybe that to an earlier one.
    Old,
}

impl Debts {
    /// An answer that comes later than this is not expected any more.
    pub const HOLDS: Duration = Duration::from_secs(30);

    /// A request is made. It is owed until [`Debts::settled`].
    pub fn asked(&mut self, span: Span, now: Instant) {
        let debt = Debt { function: function(span.table), bytes: answer_bytes(span), until: now + Self::HOLDS };
        self.owed.push(debt);
    }

    /// The last request has been answered. A unit answers in the order in which it is asked, so what
    /// it has not answered by now it never will.
    pub fn settled(&mut self) {
        self.owed.clear();
    }

    /// Gives up what is too old to be expected.
    pub fn expire(&mut self, now: Instant) {
        self.owed.retain(|d| d.until > now);
    }

    /// Whether no more may be asked for now.
    pub fn full(&self) -> bool {
        self.owed.len() >= MOST
    }

    /// What to ask before `span`, so that its answer can be told from those owed: something whose
    /// own answer can be told from them. `None` when that is `span` itself.
    pub fn ask_first(&self, span: Span) -> Option<Span> {
        if self.owed.iter().all(|d| d.function != function(span.table)) {
            return None;
        }
        let one = |table| Span { table, count: 1, ..span };
        let tables = match span.table {
            Table::Coil => [Table::Discrete, Table::Holding, Table::Input],
            Table::Discrete => [Table::Coil, Table::Input, Table::Holding],
            Table::Input => [Table::Holding, Table::Discrete, Table::Coil],
            Table::Holding => [Table::Input, Table::Coil, Table::Discrete],
        };
        let free = |table: &Table| self.owed.iter().all(|d| d.function != function(*table));
        if let Some(table) = tables.into_iter().find(free) {
            return Some(one(table));
        }
        // Every function is owed: an answer of another length will do.
        let longest = (65536 - u32::from(span.start)).min(MOST as u32 + 1) as u16;
        let table = if span.table.is_bits() { Table::Holding } else { span.table };
        let other = |count: &u16| !self.owes(function(table), usize::from(*count) * 2);
        Some(Span { table, count: (1..=longest).find(other).unwrap_or(1), ..span })
    }

    /// What an answer is, given that `span` was asked last and is not counted as owed. `function` is
    /// as it came, `bytes` is how many bytes of values it has.
    pub fn judge(&self, span: Span, came: u8, bytes: usize) -> Verdict {
        let asked = function(span.table);
        let owed = |d: &Debt| d.function == asked && (came != asked || d.bytes == bytes);
        if came & !REFUSED != asked || self.owed.iter().any(owed) { Verdict::Old } else { Verdict::Fresh }
    }

    fn owes(&self, function: u8, bytes: usize) -> bool {
        self.owed.iter().any(|d| d.function == function && d.bytes == bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn span(table: Table, start: u16, count: u16) -> Span {
        Span { table, start, count }
    }

    #[test]
    fn what_is_asked_first_cannot_be_taken_for_what_is_owed() {
        let now = Instant::now();
        let mut debts = Debts::default();
        let asked = span(Table::Holding, 100, 2);
        assert_eq!(debts.ask_first(asked), None);
        assert_eq!(debts.judge(asked, 3, 4), Verdict::Fresh);
        debts.asked(asked, now);
        assert_eq!(debts.ask_first(span(Table::Input, 100, 2)), None);
        assert_eq!(debts.ask_first(asked), Some(span(Table::Input, 100, 1)));
        assert_eq!((debts.judge(asked, 3, 4), debts.judge(asked, 0x83, 0)), (Verdict::Old, Verdict::Old));
        assert_eq!(debts.judge(asked, 3, 6), Verdict::Fresh);
        let first = span(Table::Input, 100, 1);
        assert_eq!((debts.judge(first, 4, 2), debts.judge(first, 0x84, 0)), (Verdict::Fresh, Verdict::Fresh));
        assert_eq!((debts.judge(first, 3, 4), debts.judge(first, 0x83, 0)), (Verdict::Old, Verdict::Old));
        debts.settled();
        assert_eq!(debts.ask_first(asked), None);
    }

    #[test]
    fn with_every_function_owed_the_length_tells() {
        let now = Instant::now();
        let mut debts = Debts::default();
        for table in [Table::Holding, Table::Input, Table::Coil, Table::Discrete] {
            debts.asked(span(table, 100, 1), now);
        }
        let asked = span(Table::Holding, 100, 1);
        let first = debts.ask_first(asked).expect("something to ask first");
        assert_eq!(first, span(Table::Holding, 100, 2));
        assert_eq!((debts.judge(first, 3, 4), debts.judge(first, 0x83, 0)), (Verdict::Fresh, Verdict::Old));
        debts.expire(now + Debts::HOLDS);
        assert_eq!(debts.ask_first(asked), None);
    }

    /// A unit that answers in order, each answer at some request after its own, and refuses some
    /// addresses; its registers hold the number of the request they were asked in.
    struct Slow {
        queue: VecDeque<(Span, usize, usize)>,
        requests: usize,
    }

    impl Slow {
        /// Makes a request; returns what arrives before the next: (function, bytes, request).
        fn request(&mut self, span: Span, lag: usize) -> Vec<(u8, usize, usize)> {
            self.requests += 1;
            self.queue.push_back((span, self.requests, self.requests + lag));
            let mut out = Vec::new();
            while let Some((span, number, _)) = self.queue.pop_front_if(|(_, _, at)| *at <= self.requests) {
                let refuses = span.start % 3 == 0;
                let function = function(span.table);
                out.push(if refuses {
                    (function | REFUSED, 0, number)
                } else {
                    (function, answer_bytes(span), number)
                });
            }
            out
        }
    }

    proptest! {
        #[test]
        fn no_late_answer_is_taken_for_a_fresh_one(
            steps in prop::collection::vec((0..4_usize, 0..6_u16, 1..4_u16, prop::sample::select(vec![0, 0, 0, 1, 2, 5])), 1..200),
        ) {
            const TABLES: [Table; 4] = [Table::Coil, Table::Discrete, Table::Input, Table::Holding];
            let now = Instant::now();
            let (mut debts, mut unit) = (Debts::default(), Slow { queue: VecDeque::new(), requests: 0 });
            // In the end it answers at once, and has to be heard.
            let steps = steps.into_iter().chain([(3, 1, 2, 0); 25]);
            let mut fresh = false;
            for (table, start, count, lag) in steps {
                let wanted = span(TABLES[table], start, count);
                fresh = false;
                // What the line does, time-outs being requests without a fresh answer.
                for asked in debts.ask_first(wanted).into_iter().chain([wanted]) {
                    if debts.full() {
                        debts = Debts::default();
                        unit.queue.clear();
                    }
                    let came = unit.request(asked, lag);
                    let number = unit.requests;
                    let taken = came.into_iter().find(|(f, bytes, _)| debts.judge(asked, *f, *bytes) == Verdict::Fresh);
                    debts.asked(asked, now);
                    let Some((_, _, of)) = taken else { break };
                    prop_assert_eq!(of, number, "an answer to another request");
                    fresh = asked == wanted;
                    debts.settled();
                }
            }
            prop_assert!(fresh, "the unit is not heard again");
        }
    }
}
