//! The cloud sink: takes what waits in an outbox, sends it over HTTP, and advances past what was
//! taken or set aside. Trouble never ends it: it waits and tries again, and keeps everything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use self::auth::Credentials;
use self::client::{Client, Failure, Parcel};
use super::Outbox;
use super::cloud_events::{BATCH, Encoded, Encoder, SINGLE};
use super::ending::Ending;
use super::plan::{Key, Plan, Settled};
use super::reply::Answer;
use super::report::Report;
use super::retry::{Concurrency, Pace, Quota, SizeLimit, http_date};
use crate::metrics::{Health, Shared};
use crate::types::{RecordId, Stored};

pub(super) mod auth;
pub(super) mod client;
pub(super) mod config;
mod outcome;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) use auth::any_bytes;
pub use auth::{Auth, Kept, OAuth2};
pub use client::probe;
pub use config::{Address, Compress, Config, Tempo};

/// What is taken from the outbox at a time, in bytes of data, however large requests may be.
const MAX_GATHERED_BYTES: usize = 8 << 20;
/// The sink's name in metrics, on the board and in the store.
pub const NAME: &str = "cloud";

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
    let report = Report::new(&shared, NAME, NAME, format!("{:?}", config.url));
    let pace = Pace::new(config.tempo.retry_first, config.tempo.retry_cap);
    let limit = SizeLimit::new(config.max_batch_bytes);
    let compress = config.compress;
    let (credentials, concurrency) = (Credentials::new(&config.auth), Concurrency::new(config.max_requests));
    let mut sink = Sink {
        config: Arc::new(config),
        credentials,
        concurrency,
        quota: Quota::new(),
        encoder,
        outbox,
        report,
        client: None,
        compress,
        pace,
        limit,
        refusals: 0,
        failed: false,
        last_sent: None,
        ending: Ending::new(shared.stop, grace),
    };
    sink.run().await;
}

struct Sink<O> {
    config: Arc<Config>,
    credentials: Credentials,
    encoder: Encoder,
    outbox: O,
    report: Report,
    /// `None` until it could be built, and when its certificates are to be read again.
    client: Option<Arc<Client>>,
    /// As configured, or less where the other side cannot read that.
    compress: Compress,
    pace: Pace,
    quota: Quota,
    concurrency: Concurrency,
    limit: SizeLimit,
    /// Records refused since one was last taken.
    refusals: u32,
    /// Since the last pause something has failed.
    failed: bool,
    last_sent: Option<Instant>,
    ending: Ending,
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

/// A request that has come back.
struct Landed {
    key: Key,
    packed: Arc<Packed>,
    answer: Result<Answer, Failure>,
    after: Duration,
    /// How many were under way when it was sent.
    under_way: usize,
}

/// Requests under way.
type Flights = FuturesUnordered<BoxFuture<'static, Landed>>;

impl<O: Outbox> Sink<O> {
    async fn run(&mut self) {
        while self.ending.waits(&self.outbox).await {
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
                    self.failed = false;
                    if !self.ending.pause(wait, asked).await {
                        return;
                    }
                }
                Step::GiveUp => return,
                Step::Gone => return self.ending.stopped().await,
            }
        }
    }

    fn own_wait(&mut self) -> Step {
        Step::Wait { wait: self.wait(None), asked: false }
    }

    /// How long to wait after a failure. Of several that were under way together only the first makes the
    /// pause longer.
    fn wait(&mut self, asked: Option<Duration>) -> Duration {
        if std::mem::replace(&mut self.failed, true) {
            return asked.unwrap_or_default();
        }
        self.pace.after_failure(asked, fastrand::f64())
    }

    /// Takes one batch across. What is urgent goes one request after the other, so in its order.
    async fn batch(&mut self) -> Result<Step> {
        let records = self.gather().await?;
        if records.is_empty() {
            // What was ready has been evicted since. An outbox that keeps saying so must not make us spin.
            return Ok(Step::Wait { wait: self.config.tempo.quiet, asked: false });
        }
        let urgent = records.iter().any(|r| !r.record.kind.is_routine());
        self.deliver(records, urgent).await
    }

    /// Takes these records across, piece by piece, several at a time where they are not urgent.
    async fn deliver(&mut self, records: Vec<Stored>, urgent: bool) -> Result<Step> {
        let mut encoded = Encoded::default();
        let broken: Vec<usize> =
            (0..records.len()).filter(|&i| self.encoder.add(&records[i], &mut encoded).is_err()).collect();
        let mut plan = Plan::new(encoded.sizes(), self.config.batch_events, self.limit.bytes());
        broken.into_iter().for_each(|i| plan.unsendable(i, "its data is not a JSON object"));
        self.settle(&mut plan, &records).await?;
        let (mut flights, mut parcels) = (Flights::new(), HashMap::new());
        // Nothing is sent before this long after all is back.
        let mut hold: Option<(Duration, bool)> = None;
        while !plan.is_done() {
            let alarms = !urgent && self.outbox.urgent_waits();
            if hold.is_none() && !alarms {
                let most = if urgent { 1 } else { self.concurrency.now() };
                match self.launch(&mut plan, &records, &encoded, most, &mut flights, &mut parcels).await? {
                    Step::Done => {}
                    Step::Wait { wait, asked } => hold = Some((wait, asked)),
                    step => return Ok(step),
                }
            }
            let Some(landed) = (if flights.is_empty() { None } else { self.landed(&mut flights).await }) else {
                if !flights.is_empty() {
                    return Ok(Step::GiveUp);
                }
                // All is back; only now is there time for alarms, or for waiting.
                self.failed = false;
                if let Some((wait, asked)) = hold.take() {
                    if !self.ending.pause(wait, asked).await {
                        return Ok(Step::GiveUp);
                    }
                } else if alarms {
                    match self.alarms().await? {
                        Step::Done => {}
                        step => return Ok(step),
                    }
                }
                continue;
            };
            let date = landed.answer.as_ref().ok().and_then(|a| a.date.as_deref());
            date.and_then(http_date).into_iter().for_each(|at| self.outbox.heard_time(at));
            let step = self.attempted(&mut plan, &landed, &records);
            parcels.insert(landed.key, landed.packed);
            self.settle(&mut plan, &records).await?;
            match step {
                Step::Done => {}
                Step::Wait { wait, asked } => {
                    let (before, before_asked) = hold.unwrap_or_default();
                    hold = Some((before.max(wait), before_asked || asked));
                }
                step => return Ok(step),
            }
        }
        Ok(Step::Done)
    }

    /// Alarms have come while other records are under way: they overtake those.
    async fn alarms(&mut self) -> Result<Step> {
        let records = self.outbox.urgent(self.config.batch_events, self.limit.bytes()).await?;
        if records.is_empty() {
            return Ok(Step::Done);
        }
        Box::pin(self.deliver(records, true)).await
    }

    /// Sends pieces until so many are under way; says what is to be done where nothing can be sent now.
    async fn launch(
        &mut self,
        plan: &mut Plan,
        records: &[Stored],
        encoded: &Encoded,
        most: usize,
        flights: &mut Flights,
        parcels: &mut HashMap<Key, Arc<Packed>>,
    ) -> Result<Step> {
        while flights.len() < most {
            let client = match self.ready().await {
                Ok(client) => client,
                // Whatever is under way says more of it.
                Err(_) if !flights.is_empty() => return Ok(Step::Done),
                Err(step) => return Ok(step),
            };
            let Some((key, piece)) = plan.take() else { break };
            let same = parcels.remove(&key).filter(|p| p.piece == piece && p.compress == self.compress);
            let packed = match same {
                Some(same) => same,
                None => Arc::new(self.pack(&piece, records, encoded)?),
            };
            self.last_sent = Some(Instant::now());
            let (config, header, under_way) = (self.config.clone(), self.credentials.header(), flights.len() + 1);
            flights.push(Box::pin(async move {
                let start = Instant::now();
                let answer = client.send(&config, header, &packed.parcel).await;
                Landed { key, packed, answer, after: start.elapsed(), under_way }
            }));
        }
        Ok(Step::Done)
    }

    /// A client with credentials that are good for now; else what to do about it.
    async fn ready(&mut self) -> Result<Arc<Client>, Step> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => match Client::new(&self.config) {
                Ok(client) => self.client.insert(Arc::new(client)).clone(),
                Err(e) => return Err(self.failed(&Failure::Connect(format!("{e:#}")))),
            },
        };
        match self.credentials.prepare(&client).await {
            Ok(()) => Ok(client),
            Err(auth::Trouble::Passing(why)) => {
                self.report.trouble(Health::Down, &why);
                Err(self.last_or_wait())
            }
            Err(auth::Trouble::Refused(why)) => {
                self.report.human(&why);
                Err(self.last_or_wait())
            }
        }
    }

    /// The next request that comes back; `None` when the time to stop has come first.
    async fn landed(&mut self, flights: &mut Flights) -> Option<Landed> {
        if let Some(deadline) = self.ending.deadline() {
            return timeout_at(deadline, flights.next()).await.ok().flatten();
        }
        tokio::select! {
            landed = flights.next() => return landed,
            () = self.ending.stopped() => {}
        }
        let landed = timeout(self.config.tempo.finish, flights.next()).await.ok().flatten();
        self.ending.begin();
        landed
    }

    /// What to send: at once after a quiet time, else after a moment in which more may come.
    async fn gather(&mut self) -> Result<Vec<Stored>> {
        let (count, bytes) = (self.config.batch_events, self.limit.bytes());
        // As many batches as may be under way at once.
        let most = self.concurrency.now();
        let (all, all_bytes) = (count * most, bytes.saturating_mul(most).min(MAX_GATHERED_BYTES.max(bytes)));
        let records = self.outbox.next(all, all_bytes).await?;
        let last = self.last_sent.filter(|last| last.elapsed() < self.config.tempo.quiet);
        let Some(last) = last.filter(|_| self.ending.deadline().is_none()) else { return Ok(records) };
        // Events are about twice as long as their data.
        let full = records.len() >= count || records.iter().map(|r| r.record.data.len()).sum::<usize>() >= bytes / 2;
        if full {
            return Ok(records);
        }
        tokio::select! {
            () = sleep_until(last + self.config.tempo.gather) => {}
            () = self.ending.stopped() => {}
        }
        self.outbox.next(all, all_bytes).await
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
}
