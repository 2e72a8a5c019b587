//! The cloud sink: takes what waits in an outbox, sends it over HTTP, and advances past what was
//! taken or set aside. Trouble never ends it: it waits and tries again, and keeps everything.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use self::client::{Client, Failure, Parcel};
use self::report::Report;
use super::Outbox;
use super::cloud_events::{BATCH, Encoded, Encoder, SINGLE};
use super::plan::{Plan, Settled};
use super::reply::Answer;
use super::retry::{Pace, SizeLimit};
use crate::metrics::{Health, Shared};
use crate::types::{RecordId, Stored};

pub(super) mod client;
pub(super) mod config;
mod outcome;
mod report;

pub use client::probe;
pub use config::{Address, Compress, Config, Tempo};

/// Once the agent stops, an outbox that stays empty for this long is taken to be at its end.
const STOP_IDLE: Duration = Duration::from_secs(1);

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
            // What was ready has been evicted since. An outbox that keeps saying so must not make us spin.
            return Ok(Step::Wait { wait: self.config.tempo.quiet, asked: false });
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
}
