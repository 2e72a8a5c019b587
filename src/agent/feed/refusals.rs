//! What the feed tells of readings that are not used: complaints about their source on the board, and log
//! lines at a bounded rate.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Feed;
use crate::agent::refused::Refused;
use crate::metrics::{Board, LogLine, Refusal, Refusals};
use crate::types::Name;

/// How often the board hears of the share that is not used.
const REVIEW_EVERY: Duration = Duration::from_secs(1);

/// The readings of each source: how many, and how many of them are not used. As many sources as the config has.
#[derive(Default)]
pub struct SourceRefusals {
    sources: BTreeMap<Name, Refusals>,
    reviewed: Option<Instant>,
}

impl SourceRefusals {
    /// So many readings of this source have come.
    pub fn received(&mut self, source: &Name, count: usize, now: Instant) {
        self.of(source).received(count as u64, now);
    }

    /// These of them are not used. What the log is to say of it.
    pub fn refused<'r>(&mut self, refused: &'r [Refused], now: Instant) -> Vec<(&'r Refused, LogLine)> {
        let mut lines = Vec::new();
        for one in refused {
            let topic = format!("{}/{}", one.machine, one.signal);
            let refusal = Refusal {
                kind: one.kind(),
                place: &one.machine,
                topic: &topic,
                reason: one.meaning(),
                payload: one.example.as_bytes(),
                count: one.count,
            };
            lines.extend(self.of(&one.source).refuse(&refusal, now).map(|line| (one, line)));
        }
        lines
    }

    /// Tells the board which sources send too much that is not used; once a second at most.
    pub fn review(&mut self, board: &Board, now: Instant) {
        if self.reviewed.is_some_and(|at| now.saturating_duration_since(at) < REVIEW_EVERY) {
            return;
        }
        self.reviewed = Some(now);
        for (source, refusals) in self.sources.iter_mut().filter(|(_, r)| r.is_watching()) {
            for (kind, detail) in refusals.review(now) {
                board.complain(&format!("source/{source}"), kind, detail.as_deref());
            }
        }
    }

    fn of(&mut self, source: &Name) -> &mut Refusals {
        self.sources.entry(source.clone()).or_insert_with(|| Refusals::new("readings"))
    }
}

impl Feed {
    /// Counts readings that the engine did not use, and logs them where a line is due. The board hears of them
    /// with the next tick.
    pub(super) fn tell_refused(&mut self, refused: &[Refused]) {
        for (one, line) in self.refusals.refused(refused, Instant::now()) {
            tracing::warn!(
                source = %one.source, machine = line.place, signal = line.topic, reason = line.reason,
                example = line.example, count = line.count, "readings are not used: they are {}", one.kind(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Health;

    fn late(machine: &str, count: u64) -> Refused {
        Refused {
            source: "shop".into(),
            machine: machine.into(),
            signal: "speed".into(),
            reason: "late",
            count,
            example: "10:15:30, 1 h behind".into(),
        }
    }

    #[test]
    fn a_source_whose_clock_is_behind_is_degraded_and_logged_once_for_each_machine() {
        let (mut refusals, board, begin) = (SourceRefusals::default(), Board::new(), Instant::now());
        board.set("source/shop", Health::Up, "connected");
        board.set("source/line", Health::Up, "connected");
        let mut lines = 0;
        for second in 0..30 {
            let now = begin + Duration::from_secs(second);
            refusals.received(&"shop".into(), 20, now);
            refusals.received(&"line".into(), 1000, now);
            let all = [late("press-1", 8), late("press-2", 1), Refused { source: "line".into(), ..late("pump", 1) }];
            lines += refusals.refused(&all, now).len();
            refusals.review(&board, now);
        }
        assert_eq!(lines, 3);
        let shown = board.components();
        assert_eq!((shown["source/shop"].health, shown["source/line"].health), (Health::Degraded, Health::Up));
        let detail = &shown["source/shop"].detail;
        assert!(detail.starts_with("270 of 600 readings in the last minute are late; newest: press-"), "{detail}");
        assert!(detail.contains("/speed: older than `lateness` allows"), "{detail}");
        assert!(detail.contains("for example 10:15:30, 1 h behind; connected"), "{detail}");
        // The clock is right again.
        for second in 30..95 {
            let now = begin + Duration::from_secs(second);
            refusals.received(&"shop".into(), 20, now);
            refusals.review(&board, now);
        }
        assert_eq!(board.components()["source/shop"].health, Health::Up);
    }

    #[test]
    fn every_reason_has_words() {
        for reason in ["duplicate", "late", "future", "no_machine", "limit"] {
            let refused = Refused { reason, ..late("press", 1) };
            assert!(refused.meaning() != reason && (reason == "late" || refused.kind() != reason), "{reason}");
        }
    }
}
