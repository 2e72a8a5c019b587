//! What the cloud sink tells of itself: metrics, the board, and one log line per change.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tracing::{error, info, warn};

use super::client::Failure;
use crate::forward::reply::Answer;
use crate::metrics::{Health, Shared};
use crate::types::{Stored, Time};

/// The sink's name on the board and in metrics.
const NAME: &str = "cloud";

pub struct Report {
    shared: Shared,
    /// Where to, without secrets.
    pub url: String,
    /// What was last said to be wrong; empty when nothing is.
    trouble: String,
    up: bool,
    records: Counter,
    dead_letters: Counter,
    sent: Counter,
    delay: Histogram,
}

impl Report {
    pub fn new(shared: &Shared, url: String) -> Report {
        let (m, labels) = (&shared.metrics, [("sink", NAME.to_owned())]);
        shared.board.set(NAME, Health::Starting, "nothing sent yet");
        Report {
            records: m.forward_records.get_or_create_owned(&labels),
            dead_letters: m.forward_dead_letters.get_or_create_owned(&labels),
            sent: m.forward_sent.get_or_create_owned(&labels),
            delay: m.forward_delay.get_or_create_owned(&labels),
            shared: shared.clone(),
            url,
            trouble: String::new(),
            up: false,
        }
    }

    /// A request has been made.
    pub fn request(&self, answer: &Result<Answer, Failure>, bytes: usize) {
        let outcome = match answer {
            Ok(answer) => answer.status.to_string(),
            Err(failure) => failure.as_str().to_owned(),
        };
        let labels = [("sink", NAME.to_owned()), ("outcome", outcome)];
        self.shared.metrics.forward_requests.get_or_create(&labels).inc();
        self.sent.inc_by(bytes as u64);
    }

    /// These records were taken.
    pub fn taken<'r>(&self, records: impl Iterator<Item = &'r Stored>) {
        let now = Time::now();
        for record in records {
            self.records.inc();
            self.delay.observe(now.since(record.record.at).as_secs_f64());
        }
    }

    /// All is well, after so many failures.
    pub fn well(&mut self, failures: u32) {
        if self.up {
            return self.shared.board.good(NAME);
        }
        info!(url = self.url, failures, "the cloud takes records");
        self.shared.board.set(NAME, Health::Up, "");
        self.up = true;
        self.trouble.clear();
    }

    /// Something is wrong that will pass; nothing is lost.
    pub fn trouble(&mut self, health: Health, detail: &str) {
        if self.changed(health, detail) {
            warn!(url = self.url, "cannot forward: {detail}; trying again");
        }
    }

    /// Something is wrong that a person has to mend; nothing is lost.
    pub fn human(&mut self, detail: &str) {
        if self.changed(Health::Down, detail) {
            error!(url = self.url, "cannot forward: {detail}");
        }
    }

    /// A record was set aside.
    pub fn dead_letter(&self, record: &Stored, reason: &str) {
        self.dead_letters.inc();
        let (id, subject) = (&record.record.id, &record.record.subject);
        warn!(%id, %subject, sequence = record.sequence, reason, "set a record aside as a dead letter");
    }

    fn changed(&mut self, health: Health, detail: &str) -> bool {
        self.shared.board.set(NAME, health, detail);
        self.up = false;
        let changed = self.trouble != detail;
        if changed {
            detail.clone_into(&mut self.trouble);
        }
        changed
    }
}
