//! What a person is told of payloads that are rejected: the log, at a bounded rate, and the board.

use std::time::Duration;

use tokio::time::Instant;

use super::Subscription;
use crate::metrics::{Board, Refusal, Refusals};
use crate::types::{Batch, Name};

/// How often the board hears of the share that is rejected.
const REVIEW_EVERY: Duration = Duration::from_secs(1);

/// The payloads of one source: how many, and how many of them are rejected.
pub struct Rejects {
    source: Name,
    part: String,
    subscriptions: Vec<(Subscription, String)>,
    refusals: Refusals,
    review_at: Option<Instant>,
}

impl Rejects {
    /// `part` names the source on the board.
    pub fn new(source: Name, part: &str, subscriptions: &[Subscription]) -> Rejects {
        Rejects {
            source,
            part: part.to_owned(),
            subscriptions: subscriptions.iter().map(|s| (s.clone(), s.filter().topic)).collect(),
            refusals: Refusals::new("payloads"),
            review_at: None,
        }
    }

    /// So many messages made this batch. Logs what it rejects.
    pub fn count(&mut self, messages: u64, batch: &Batch) {
        let now = Instant::now();
        self.refusals.received(messages, now.into_std());
        for reject in &batch.rejects {
            let topic = reject.origin.as_str();
            let matching = self.subscriptions.iter().find(|(s, _)| s.pattern.matches(topic).is_some());
            let place = matching.map_or("no subscription", |(_, filter)| filter);
            let (reason, payload) = (reject.reason.as_str(), reject.payload.as_slice());
            let refusal = Refusal { kind: "rejected", place, topic, reason, payload, count: 1 };
            if let Some(line) = self.refusals.refuse(&refusal, now.into_std()) {
                tracing::warn!(
                    source = %self.source, place = line.place, topic = line.topic, reason = line.reason,
                    example = line.example, count = line.count, "payloads are rejected",
                );
            }
        }
        if self.review_at.is_none() && self.refusals.is_watching() {
            self.review_at = Some(now + REVIEW_EVERY);
        }
    }

    /// When [`Rejects::review`] wants to be called.
    pub fn review_at(&self) -> Option<Instant> {
        self.review_at
    }

    /// Tells the board whether too many payloads are rejected.
    pub fn review(&mut self, board: &Board) {
        let now = Instant::now();
        for (kind, detail) in self.refusals.review(now.into_std()) {
            board.complain(&self.part, kind, detail.as_deref());
        }
        self.review_at = self.refusals.is_watching().then(|| now + REVIEW_EVERY);
    }
}
