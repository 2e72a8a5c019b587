//! The cloud sink: takes what waits in an outbox, sends it over HTTP, and advances past what was
//! taken or set aside. Trouble never ends it: it waits and tries again, and keeps everything.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

use self::client::{Client, Failure, Parcel};
use self::report::Report;
use super::Outbox;
use super::cloud_events::{BATCH, Encoded, Encoder, SINGLE};
use super::plan::{Plan, Settled};
use super::reply::{self, Answer, Fate, Reply};
use super::retry::{Pace, SizeLimit};
use crate::metrics::{Health, Shared};
use crate::types::{RecordId, Stored, Time};

mod client;
mod config;
mod report;

pub use config::{Address, Compress, Config, Inference, Tempo};

/// Once the agent stops, an outbox that stays empty for this long is taken to be at its end.
const STOP_IDLE: Duration = Duration::from_secs(1);

/// After this many records in a row were refused and none was taken, the other side rather than the
/// records is at fault: from there on each refusal is followed by a growing pause.
const REFUSALS_BEFORE_PAUSE: u32 = 32;

/// Sends what waits in `outbox` until the agent stops and then, for at most `grace` after the
/// request in flight has ended, what is left. Returns early only when the outbox is closed and
/// empty.
pub async fn run<O: Outbox>(
    config: Config,
    site: String,
    agent_id: String,
    outbox: O,
    grace: Duration,
    shared: Shared,
) {
    let encoder = Encoder::new(&site, &agent_id, config.privacy.clone());
    let report = Report::new(&shared, format!("{:?}", config.url));
    let pace = Pace::new(config.tempo.retry_first, config.tempo.retry_cap);
    let limit = SizeLimit::new(config.max_batch_bytes);
    let compress = config.compress;
    let mut sink = Sink {
        config,
        encoder,
        outbox,
        grace,
        shared,
        report,
        client: None,
        compress,
        pace,
        limit,
        refusals: 0,
        last_sent: None,
        deadline: None,
    };
    sink.run().await;
}

struct Sink<O> {
    config: Config,
    encoder: Encoder,
    outbox: O,
    grace: Duration,
    shared: Shared,
    report: Report,
    /// `None` until it could be built, and when its certificates are to be read again.
    client: Option<Client>,
    /// As configured, or less where the other side cannot read that.
    compress: Compress,
    pace: Pace,
    limit: SizeLimit,
    /// Records refused since one was last taken.
    refusals: u32,
    last_sent: Option<Instant>,
    /// Set once the agent stops: no request starts after this.
    deadline: Option<Instant>,
}

/// How a step ended.
enum Step {
    /// Go on.
    Done,
    /// Go on after this time, which the other side asked for or which is our own.
    Wait { wait: Duration, asked: bool },
    /// Nothing more can be sent before the agent has stopped.
    GiveUp,
    /// The address is retired.
    Gone,
}

/// A piece of a batch, ready to be sent: again and again, byte for byte the same.
struct Packed {
    piece: Vec<usize>,
    ids: Vec<RecordId>,
    compress: Compress,
    parcel: Parcel,
}

impl<O: Outbox> Sink<O> {
    async fn run(&mut self) {
        while self.something_waits().await {
            let step = match self.batch().await {
                Ok(step) => step,
                Err(e) => {
                    self.report.trouble(Health::Degraded, &format!("the outbox: {e:#}"));
                    self.own_wait()
                }
            };
            match step {
                Step::Done => {}
                Step::Wait { wait, asked } => {
                    if !self.pause(wait, asked).await {
                        return;
                    }
                }
                Step::GiveUp => return,
                Step::Gone => return self.shared.stop.cancelled().await,
            }
        }
    }

    /// Waits for records; `false` when there will be none, or no time for them.
    async fn something_waits(&mut self) -> bool {
        if self.deadline.is_none() {
            tokio::select! {
                ready = self.outbox.ready() => return ready,
                () = self.shared.stop.cancelled() => {}
            }
            self.stopping();
        }
        let idle = Instant::now() + STOP_IDLE;
        let until = self.deadline.map_or(idle, |d| d.min(idle));
        timeout_at(until, self.outbox.ready()).await.unwrap_or(false)
    }

    /// The agent stops: from now on there is only so much time.
    fn stopping(&mut self) {
        self.deadline.get_or_insert(Instant::now() + self.grace);
    }

    /// Waits before going on; `false` when the agent stops and there is no time to.
    async fn pause(&mut self, wait: Duration, asked: bool) -> bool {
        let until = Instant::now() + wait;
        if self.deadline.is_none() {
            tokio::select! {
                () = sleep_until(until) => return true,
                () = self.shared.stop.cancelled() => {}
            }
            self.stopping();
            if !asked {
                // Our own patience is cut short: one last try before the end.
                return true;
            }
        }
        let in_time = self.deadline.is_none_or(|deadline| until <= deadline);
        if in_time {
            sleep_until(until).await;
        }
        in_time
    }

    fn own_wait(&mut self) -> Step {
        Step::Wait { wait: self.pace.after_failure(None, fastrand::f64()), asked: false }
    }

    /// Takes one batch across, piece by piece.
    async fn batch(&mut self) -> Result<Step> {
        let records = self.gather().await?;
        if records.is_empty() {
            // An outbox that says it is ready and has nothing must not make us spin.
            return Ok(self.own_wait());
        }
        let mut encoded = Encoded::default();
        let broken: Vec<usize> =
            (0..records.len()).filter(|&i| self.encoder.add(&records[i], &mut encoded).is_err()).collect();
        let mut plan = Plan::new(encoded.sizes(), self.config.batch_events, self.limit.bytes());
        broken.into_iter().for_each(|i| plan.unsendable(i, "its data is not a JSON object"));
        self.settle(&mut plan, &records).await?;
        let mut packed: Option<Packed> = None;
        while let Some(piece) = plan.piece() {
            let same = packed.take().filter(|p| p.piece == piece && p.compress == self.compress);
            let parcel = match same {
                Some(same) => same,
                None => self.pack(piece, &records, &encoded)?,
            };
            let step = self.attempt(&mut plan, &parcel, &records).await;
            packed = Some(parcel);
            self.settle(&mut plan, &records).await?;
            match step {
                Step::Done => {}
                Step::Wait { wait, asked } => {
                    if !self.pause(wait, asked).await {
                        return Ok(Step::GiveUp);
                    }
                }
                step => return Ok(step),
            }
        }
        Ok(Step::Done)
    }

    /// What to send: at once after a quiet time, else after a moment in which more may come.
    async fn gather(&mut self) -> Result<Vec<Stored>> {
        let (count, bytes) = (self.config.batch_events, self.limit.bytes());
        let records = self.outbox.next(count, bytes).await?;
        let last = self.last_sent.filter(|last| last.elapsed() < self.config.tempo.quiet);
        let Some(last) = last.filter(|_| self.deadline.is_none()) else { return Ok(records) };
        // Events are about twice as long as their data.
        let full = records.len() >= count || records.iter().map(|r| r.record.data.len()).sum::<usize>() >= bytes / 2;
        if full {
            return Ok(records);
        }
        tokio::select! {
            () = sleep_until(last + self.config.tempo.gather) => {}
            () = self.shared.stop.cancelled() => {}
        }
        self.outbox.next(count, bytes).await
    }

    /// Tells the outbox what has come to its end.
    async fn settle(&mut self, plan: &mut Plan, records: &[Stored]) -> Result<()> {
        while let Some(settled) = plan.settle() {
            match settled {
                Settled::Delivered(range) => self.outbox.ack(&records[range]).await.context("advancing")?,
                Settled::Dead(i, reason) => {
                    self.outbox.dead_letter(&records[i], &reason).await.context("setting a record aside")?;
                    self.report.dead_letter(&records[i], &reason);
                }
            }
        }
        Ok(())
    }

    fn pack(&self, piece: &[usize], records: &[Stored], encoded: &Encoded) -> Result<Packed> {
        let (body, content_type) = match (self.config.batch_events, piece) {
            (1, &[only]) => (encoded.event(only).to_vec(), SINGLE),
            _ => (encoded.batch(piece), BATCH),
        };
        let ids = piece.iter().map(|&i| records[i].record.id).collect();
        let parcel = Parcel::new(body, content_type, self.compress)?;
        Ok(Packed { piece: piece.to_vec(), ids, compress: self.compress, parcel })
    }

    /// Sends once; `None` when the time to stop has come first.
    async fn send(&mut self, parcel: &Parcel) -> Option<Result<Answer, Failure>> {
        self.last_sent = Some(Instant::now());
        let client = match &self.client {
            Some(client) => client,
            None => match Client::new(&self.config) {
                Ok(client) => self.client.insert(client),
                Err(e) => return Some(Err(Failure::Connect(format!("{e:#}")))),
            },
        };
        let request = client.send(&self.config, parcel);
        if let Some(deadline) = self.deadline {
            return timeout_at(deadline, request).await.ok();
        }
        let answer = {
            tokio::pin!(request);
            tokio::select! {
                answer = &mut request => return Some(answer),
                () = self.shared.stop.cancelled() => timeout(self.config.tempo.finish, request).await.ok(),
            }
        };
        self.stopping();
        answer
    }

    /// Sends a piece once and writes into the plan what came of it.
    async fn attempt(&mut self, plan: &mut Plan, packed: &Packed, records: &[Stored]) -> Step {
        let Some(answer) = self.send(&packed.parcel).await else { return Step::GiveUp };
        self.report.request(&answer, packed.parcel.bytes());
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.failed(&failure),
        };
        let taken = |i: &usize| &records[*i];
        match reply::classify(&answer, &packed.ids, Time::now()) {
            Reply::Accepted => {
                plan.accepted();
                self.report.well(self.pace.failures());
                self.taken(packed.piece.iter().map(taken));
                Step::Done
            }
            Reply::Each(fates) => self.each(plan, packed, records, fates),
            Reply::Later(after) => {
                self.report.trouble(Health::Degraded, &format!("{}: the cloud is busy", answer.status));
                Step::Wait { wait: self.pace.after_failure(after, fastrand::f64()), asked: after.is_some() }
            }
            Reply::TooLarge => {
                if packed.piece.len() > 1 {
                    self.limit.refused(plan.bytes(&packed.piece));
                    info!(bytes = self.limit.bytes(), "the cloud takes no more than this at a time");
                }
                plan.too_large(self.limit.bytes(), "413: too large on its own");
                self.refused(u32::from(packed.piece.len() == 1))
            }
            Reply::Refused(reason) => {
                plan.refused(&reason);
                self.refused(u32::from(packed.piece.len() == 1))
            }
            Reply::Gone => {
                self.report.human(&format!("410: {} is retired; nothing is sent until a restart", self.report.url));
                Step::Gone
            }
            Reply::Unauthorized => self.unauthorized(answer.status),
            Reply::Unsupported if self.simpler_coding() => Step::Done,
            Reply::Unsupported | Reply::Misdirected => {
                let hint = if (300..400).contains(&answer.status) {
                    "it points elsewhere and is not followed"
                } else {
                    "it takes no events"
                };
                self.report.human(&format!("{}: {hint}; check `url` in [cloud]", answer.status));
                self.last_or_wait()
            }
        }
    }

    /// Some records were taken, some not.
    fn each(&mut self, plan: &mut Plan, packed: &Packed, records: &[Stored], fates: Vec<Fate>) -> Step {
        let with =
            |fate: fn(&Fate) -> bool| packed.piece.iter().zip(&fates).filter(move |(_, f)| fate(f)).map(|(i, _)| i);
        let taken: Vec<&Stored> = with(|f| *f == Fate::Accepted).map(|&i| &records[i]).collect();
        let refused = with(|f| matches!(f, Fate::Refused(_))).count();
        let later = with(|f| *f == Fate::Later).count();
        let failures = self.pace.failures();
        if !taken.is_empty() {
            self.taken(taken.into_iter());
        }
        plan.each(fates);
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
        self.report.human(&format!("the cloud refused the last {} records and took none", self.refusals));
        self.own_wait()
    }

    fn unauthorized(&mut self, status: u16) -> Step {
        if self.client.as_mut().is_some_and(|c| c.reread_token(&self.config)) {
            info!(status, "the cloud refused the token; its file holds a new one");
            return Step::Done;
        }
        self.report.human(&format!("{status}: the cloud refuses the token; everything is kept"));
        self.last_or_wait()
    }

    fn failed(&mut self, failure: &Failure) -> Step {
        if matches!(failure, Failure::Connect(_)) && self.config.url.0.scheme() == "https" {
            // Certificates may have been renewed: they are read again with the next client.
            self.client = None;
        }
        self.report.trouble(Health::Down, failure.detail());
        self.last_or_wait()
    }

    /// While the agent stops there is no use in waiting for something to be mended.
    fn last_or_wait(&mut self) -> Step {
        if self.deadline.is_some() { Step::GiveUp } else { self.own_wait() }
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
