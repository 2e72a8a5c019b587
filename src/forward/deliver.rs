//! The loop of every sink that takes records one by one: a broker, a stream, a file. It dials, sends what
//! waits, advances past what was taken or set aside, and after trouble begins anew; trouble never ends it.

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout_at;

use super::Outbox;
use super::ending::Ending;
use super::report::Report;
use super::retry::Pace;
use crate::metrics::{Health, Shared};
use crate::types::Stored;

/// Records taken from the outbox at a time.
const BATCH_RECORDS: usize = 256;
/// About how many bytes of data that may be.
const BATCH_BYTES: usize = 1 << 20;
/// First and longest wait after trouble.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The wait when what was ready is gone: an outbox that keeps saying so must not make us spin.
const EVICTED_WAIT: Duration = Duration::from_millis(50);

/// What takes records across.
pub trait Carrier: Send {
    /// Dials, or opens the file. Called at the start and after every trouble.
    fn open(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Resolves when what was opened is lost while nothing is sent, and says why. Dropping the future
    /// loses nothing.
    fn lost(&mut self) -> impl Future<Output = String> + Send;

    /// Takes records across, in order. Whatever is not said to be taken comes again.
    fn carry(&mut self, records: &[Stored]) -> impl Future<Output = Carried> + Send;

    /// Says goodbye.
    fn close(&mut self) -> impl Future<Output = ()> + Send;
}

/// How far a batch came.
#[derive(Debug)]
pub struct Carried {
    /// So many records from the front are safe on the other side.
    pub taken: usize,
    /// Bytes that were sent.
    pub bytes: usize,
    /// What stopped it there.
    pub end: End,
}

/// What stopped a batch.
#[derive(Debug)]
pub enum End {
    /// Nothing.
    Done,
    /// The next record will never be taken, for this reason.
    Refused(String),
    /// What was opened has to be opened anew.
    Trouble(Trouble),
}

/// Why nothing can be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What a person is told.
    pub detail: String,
    /// Whether a person has to mend it: it will not pass by itself.
    pub human: bool,
}

impl Trouble {
    /// Something that passes.
    pub fn passing(detail: impl Into<String>) -> Trouble {
        Trouble { detail: detail.into(), human: false }
    }

    /// Something that a person has to mend.
    pub fn lasting(detail: impl Into<String>) -> Trouble {
        Trouble { detail: detail.into(), human: true }
    }
}

/// Sends what waits in `outbox` until the agent stops and then, for at most `grace`, what is left.
pub async fn run<C: Carrier, O: Outbox>(carrier: C, outbox: O, report: Report, grace: Duration, shared: Shared) {
    let ending = Ending::new(shared.stop, grace);
    let pace = Pace::new(FIRST_WAIT, LONGEST_WAIT);
    Loop { carrier, outbox, report, ending, pace }.run().await;
}

struct Loop<C, O> {
    carrier: C,
    outbox: O,
    report: Report,
    ending: Ending,
    pace: Pace,
}

/// What comes first.
enum Next {
    Records(bool),
    Lost(String),
}

impl<C: Carrier, O: Outbox> Loop<C, O> {
    async fn run(&mut self) {
        loop {
            let trouble = match self.carrier.open().await {
                Ok(()) => self.send().await,
                Err(trouble) => Some(trouble),
            };
            let Some(trouble) = trouble else { break };
            if trouble.human {
                self.report.human(&trouble.detail);
            } else {
                self.report.trouble(Health::Down, &trouble.detail);
            }
            // While the agent stops there is no use in waiting for something to be mended.
            let wait = self.pace.after_failure(None, fastrand::f64());
            if self.ending.deadline().is_some() || !self.ending.pause(wait, false).await {
                break;
            }
        }
        self.carrier.close().await;
    }

    /// Sends over what was opened: until there is trouble, or (`None`) until the end.
    async fn send(&mut self) -> Option<Trouble> {
        self.report.well(self.pace.failures());
        loop {
            let next = tokio::select! {
                waits = self.ending.waits(&self.outbox) => Next::Records(waits),
                why = self.carrier.lost() => Next::Lost(why),
            };
            match next {
                Next::Records(false) => return None,
                Next::Lost(why) => return Some(Trouble::passing(why)),
                Next::Records(true) => {}
            }
            let records = match self.outbox.next(BATCH_RECORDS, BATCH_BYTES).await {
                Ok(records) => records,
                Err(e) => return Some(Trouble::passing(format!("the outbox: {e:#}"))),
            };
            if records.is_empty() {
                if !self.ending.pause(EVICTED_WAIT, false).await {
                    return None;
                }
                continue;
            }
            let carried = self.carry(&records).await?;
            if let Err(trouble) = self.settle(&records, carried).await {
                return Some(trouble);
            }
        }
    }

    /// `None` when the time to stop has come first.
    async fn carry(&mut self, records: &[Stored]) -> Option<Carried> {
        let carrying = self.carrier.carry(records);
        tokio::pin!(carrying);
        if self.ending.deadline().is_none() {
            tokio::select! {
                carried = &mut carrying => return Some(carried),
                () = self.ending.stopped() => {}
            }
            self.ending.begin();
        }
        match self.ending.deadline() {
            Some(deadline) => timeout_at(deadline, carrying).await.ok(),
            None => Some(carrying.await),
        }
    }

    async fn settle(&mut self, records: &[Stored], carried: Carried) -> Result<(), Trouble> {
        let outbox = |e: anyhow::Error| Trouble::passing(format!("the outbox: {e:#}"));
        let (taken, rest) = records.split_at(carried.taken.min(records.len()));
        let outcome = if matches!(carried.end, End::Trouble(_)) { "io" } else { "ok" };
        self.report.request(outcome, carried.bytes);
        if !taken.is_empty() {
            self.outbox.ack(taken).await.map_err(outbox)?;
            self.report.taken(taken.iter());
            self.pace.reset();
            self.report.well(0);
        }
        match (carried.end, rest.first()) {
            (End::Trouble(trouble), _) => Err(trouble),
            (End::Refused(reason), Some(record)) => {
                self.outbox.dead_letter(record, &reason).await.map_err(outbox)?;
                self.report.dead_letter(record, &reason);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
