//! What a sink tells of itself: metrics, the board, and one log line per change.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tracing::{error, info, warn};

use crate::metrics::{Health, Shared};
use crate::types::{Stored, Time};

pub struct Report {
    shared: Shared,
    /// The sink's name in metrics.
    sink: String,
    /// The same on the board.
    part: String,
    /// Where to, without secrets.
    pub place: String,
    /// What was last said to be wrong; empty when nothing is.
    trouble: String,
    up: bool,
    records: Counter,
    dead_letters: Counter,
    sent: Counter,
    delay: Histogram,
}

impl Report {
    /// For a sink that is called `sink` in metrics and `part` on the board, and sends to `place`.
    pub fn new(shared: &Shared, sink: &str, part: &str, place: String) -> Report {
        let (m, labels) = (&shared.metrics, [("sink", sink.to_owned())]);
        shared.board.set(part, Health::Starting, "nothing sent yet");
        Report {
            records: m.forward_records.get_or_create_owned(&labels),
            dead_letters: m.forward_dead_letters.get_or_create_owned(&labels),
            sent: m.forward_sent.get_or_create_owned(&labels),
            delay: m.forward_delay.get_or_create_owned(&labels),
            shared: shared.clone(),
            sink: sink.to_owned(),
            part: part.to_owned(),
            place,
            trouble: String::new(),
            up: false,
        }
    }

    /// A request, or a batch of messages, has been sent.
    pub fn request(&self, outcome: &str, bytes: usize) {
        let labels = [("sink", self.sink.clone()), ("outcome", outcome.to_owned())];
        self.shared.metrics.forward_requests.get_or_create(&labels).inc();
        self.sent.inc_by(bytes as u64);
    }

    /// So many requests may be under way now.
    pub fn concurrency(&self, requests: usize) {
        let labels = [("sink", self.sink.clone())];
        self.shared.metrics.forward_concurrency.get_or_create(&labels).set(requests as i64);
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
            return self.shared.board.good(&self.part);
        }
        info!(to = self.place, failures, "records are taken");
        self.shared.board.set(&self.part, Health::Up, "");
        self.up = true;
        self.trouble.clear();
    }

    /// Something is wrong that will pass; nothing is lost.
    pub fn trouble(&mut self, health: Health, detail: &str) {
        if self.changed(health, detail) {
            warn!(to = self.place, "cannot forward: {detail}; trying again");
        }
    }

    /// Something is wrong that a person has to mend; nothing is lost.
    pub fn human(&mut self, detail: &str) {
        if self.changed(Health::Down, detail) {
            error!(to = self.place, "cannot forward: {detail}");
        }
    }

    /// A record was set aside.
    pub fn dead_letter(&self, record: &Stored, reason: &str) {
        self.dead_letters.inc();
        let (id, subject) = (&record.record.id, &record.record.subject);
        warn!(%id, %subject, sequence = record.sequence, reason, "set a record aside as a dead letter");
    }

    fn changed(&mut self, health: Health, detail: &str) -> bool {
        self.shared.board.set(&self.part, health, detail);
        self.up = false;
        let changed = self.trouble != detail;
        if changed {
            detail.clone_into(&mut self.trouble);
        }
        changed
    }
}
