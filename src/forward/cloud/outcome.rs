//! What the cloud sink does about each outcome of a request.

use tracing::{info, warn};

use super::client::Failure;
use super::{Landed, Packed, Sink, Step};
use crate::forward::Outbox;
use crate::forward::cloud::Compress;
use crate::forward::plan::{Key, Plan};
use crate::forward::reply::{self, Answer, Fate, Reply};
use crate::metrics::Health;
use crate::types::{Stored, Time};

/// After this many records in a row were refused and none was taken, the other side rather than the
/// records is at fault: from there on each refusal is followed by a growing pause.
const REFUSALS_BEFORE_PAUSE: u32 = 32;

/// The part of the longest wait that is waited once the quota is spent.
const OVERSPENT: u32 = 10;

impl<O: Outbox> Sink<O> {
    /// Writes into the plan what came of a request.
    pub fn attempted(&mut self, plan: &mut Plan, landed: &Landed, records: &[Stored]) -> Step {
        let outcome = match &landed.answer {
            Ok(answer) => answer.status.to_string(),
            Err(failure) => failure.as_str().to_owned(),
        };
        self.report.request(&outcome, landed.packed.parcel.bytes());
        let step = match &landed.answer {
            Ok(answer) => self.answered(plan, landed, records, answer),
            Err(failure) => {
                plan.later(landed.key);
                self.concurrency.held_back();
                let step = self.failed(failure);
                self.rarely(step, matches!(failure, Failure::Timeout))
            }
        };
        self.report.concurrency(self.concurrency.now());
        step
    }

    /// Tries become rare once more of them have failed than the quota allows.
    fn rarely(&mut self, step: Step, unanswered: bool) -> Step {
        let affordable = self.quota.spend(unanswered);
        match step {
            Step::Wait { wait, asked } if !affordable => {
                Step::Wait { wait: wait.max(self.config.tempo.retry_cap / OVERSPENT), asked }
            }
            step => step,
        }
    }

    fn answered(&mut self, plan: &mut Plan, landed: &Landed, records: &[Stored], answer: &Answer) -> Step {
        let (key, packed) = (landed.key, &*landed.packed);
        match reply::classify(answer, &packed.ids, Time::now()) {
            Reply::Accepted => {
                plan.accepted(key);
                self.concurrency.answered(landed.after, landed.under_way);
                self.quota.earn();
                self.report.well(self.pace.failures());
                self.taken(packed.piece.iter().map(|&i| &records[i]));
                Step::Done
            }
            Reply::Each(fates) => self.each(plan, key, packed, records, fates),
            Reply::Later(after) => {
                plan.later(key);
                self.concurrency.held_back();
                self.report.trouble(Health::Degraded, &format!("{}: the cloud is busy", answer.status));
                let wait = self.wait(after);
                self.rarely(Step::Wait { wait, asked: after.is_some() }, false)
            }
            Reply::TooLarge => {
                if packed.piece.len() > 1 {
                    self.limit.refused(plan.bytes(&packed.piece));
                    info!(bytes = self.limit.bytes(), "the cloud takes no more than this at a time");
                }
                plan.too_large(key, self.limit.bytes(), "413: too large on its own");
                self.refused(u32::from(packed.piece.len() == 1))
            }
            Reply::Refused(reason) => {
                plan.refused(key, &reason);
                self.refused(u32::from(packed.piece.len() == 1))
            }
            Reply::Gone => {
                plan.later(key);
                self.report.human(&format!("410: {} is retired; nothing is sent until a restart", self.report.place));
                Step::Gone
            }
            Reply::Unauthorized => {
                plan.later(key);
                self.unauthorized(answer.status)
            }
            Reply::Unsupported | Reply::Misdirected => {
                plan.later(key);
                // Another one of those under way may have been first to find out.
                let outdated = answer.status == 415 && packed.compress != self.compress;
                if outdated || (answer.status == 415 && self.simpler_coding()) {
                    return Step::Done;
                }
                self.misdirected(answer.status)
            }
        }
    }

    fn misdirected(&mut self, status: u16) -> Step {
        let what =
            if (300..400).contains(&status) { "points elsewhere and is not followed" } else { "takes no events" };
        self.report.human(&format!("{status}: the address {what}; check `url` in [cloud]"));
        self.last_or_wait()
    }

    /// Some records were taken, some not.
    fn each(&mut self, plan: &mut Plan, key: Key, packed: &Packed, records: &[Stored], fates: Vec<Fate>) -> Step {
        let with =
            |fate: fn(&Fate) -> bool| packed.piece.iter().zip(&fates).filter(move |(_, f)| fate(f)).map(|(i, _)| i);
        let taken: Vec<&Stored> = with(|f| *f == Fate::Accepted).map(|&i| &records[i]).collect();
        let refused = with(|f| matches!(f, Fate::Refused(_))).count();
        let later = with(|f| *f == Fate::Later).count();
        let failures = self.pace.failures();
        if !taken.is_empty() {
            self.taken(taken.into_iter());
        }
        plan.each(key, fates);
        let step = self.refused(u32::try_from(refused).unwrap_or(u32::MAX));
        if later > 0 {
            self.report.trouble(Health::Degraded, "the cloud puts off some of the records");
            return self.own_wait();
        }
        if matches!(step, Step::Done) {
            self.report.well(failures);
        }
        step
    }

    fn taken<'r>(&mut self, records: impl Iterator<Item = &'r Stored>) {
        self.report.taken(records);
        self.pace.reset();
        self.limit.taken();
        self.refusals = 0;
    }

    /// So many records were just found to be refused for good.
    fn refused(&mut self, records: u32) -> Step {
        self.refusals = self.refusals.saturating_add(records);
        if records == 0 || self.refusals < REFUSALS_BEFORE_PAUSE {
            return Step::Done;
        }
        self.report.human("the cloud refuses one record after the other and takes none; see the dead letters");
        self.own_wait()
    }

    fn unauthorized(&mut self, status: u16) -> Step {
        if self.credentials.refused() {
            info!(status, "the cloud refused the credentials; there are new ones to try");
            return Step::Done;
        }
        self.renew_certificates();
        self.credentials.forget();
        self.report.human(&format!("{status}: the cloud refuses us; check the token or the client certificate"));
        self.last_or_wait()
    }

    pub fn failed(&mut self, failure: &Failure) -> Step {
        self.renew_certificates();
        self.report.trouble(Health::Down, failure.detail());
        self.last_or_wait()
    }

    /// Has the certificates read again before the next request: they may have been renewed.
    fn renew_certificates(&mut self) {
        if self.config.url.0.scheme() == "https" {
            self.client = None;
        }
    }

    /// While the agent stops there is no use in waiting for something to be mended.
    pub fn last_or_wait(&mut self) -> Step {
        if self.ending.deadline().is_some() { Step::GiveUp } else { self.own_wait() }
    }

    /// The other side cannot read the coding: use one that is older. `false` when there is none.
    fn simpler_coding(&mut self) -> bool {
        let simpler = match self.compress {
            Compress::Zstd => Compress::Gzip,
            Compress::Gzip => Compress::None,
            Compress::None => return false,
        };
        warn!(from = ?self.compress, to = ?simpler, "the cloud cannot read the content coding");
        self.compress = simpler;
        true
    }
}
