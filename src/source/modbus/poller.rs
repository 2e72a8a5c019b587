//! One device: the connection to it, what is known of its quirks, and the rounds of reading it.
//! Trouble with one address costs that address; only a silent or absent device costs all.

use std::collections::{BTreeMap, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::config::Config;
use super::connection::{Connection, Failure, ILLEGAL_ADDRESS};
use super::learnt::Learnt;
use super::line::Lines;
use super::plan::{Advice, Memory, Request, Span, plan, split};
use super::report::Report;
use crate::backoff::Backoff;
use crate::metrics::Shared;
use crate::types::{Cause, Clock, Origin, Reading, Time};

/// The first and the longest wait before dialing again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));
/// Refused addresses that are tried again in one round, so that many of them do not delay the rest.
const RETRIES_PER_ROUND: usize = 4;
/// Splits of refused blocks in one round, for the same reason; the next round goes on where this
/// one stopped. Enough to find several bad addresses among the 125 of a full request.
const SPLITS_PER_ROUND: u32 = 64;
/// Connections made within a round without an answer between them. Beyond that, the backoff governs.
const RECONNECTS_IN_A_ROW: u32 = 2;
/// The rest between two writings of what was learnt, so that a device that changes its mind all the
/// time does not wear the disk.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// An attempt to connect. It is a task, not a future kept here: on a shared line it waits for its
/// turn, and a turn that comes while nobody polls the future would be held by it, so that whoever
/// holds up this poller (a full channel) would hold up the whole line.
type Dialing = AbortOnDropHandle<Result<Connection, Failure>>;

enum Link {
    Up {
        connection: Connection,
        /// It has brought an answer.
        proven: bool,
    },
    Dialing(Dialing),
    Waiting(Instant),
}

/// See the top of this file.
pub struct Poller {
    config: Arc<Config>,
    lines: Lines,
    report: Report,
    spans: Vec<Span>,
    memory: Memory,
    learnt: Option<Learnt>,
    /// The lessons that are on disk, and when they were written.
    kept: (u64, Option<Instant>),
    link: Link,
    backoff: Backoff,
    /// Signals whose last request got no answer. They are read last, so that the next silence
    /// costs no others.
    troubled: Vec<bool>,
    /// The last thing that was known of each signal.
    causes: Vec<Cause>,
    /// Attempts in a row that got no answer at all.
    silences: usize,
}

/// One request in a round.
struct Job {
    request: Request,
    /// The split it came from; when both halves are answered, their border is a cut.
    half_of: Option<usize>,
}

/// What a round has come to so far.
#[derive(Default)]
struct Round {
    jobs: VecDeque<Job>,
    /// By signal.
    results: Vec<Option<(Time, Result<f64, Cause>)>>,
    /// For each split: where the second half starts, and how many halves were answered.
    splits: Vec<(Span, u8)>,
    /// Connections made since the last answer.
    reconnects: u32,
    asked: bool,
    answered: bool,
}

impl Poller {
    /// Knows of the device what an earlier run has learnt, if anything.
    pub fn new(config: Arc<Config>, lines: Lines, shared: Shared) -> Poller {
        let count = config.signals.len();
        let spans: Vec<Span> = config.signals.iter().map(|s| s.span).collect();
        let learnt = config.learnt.as_ref().map(|dir| Learnt::new(dir, &config.name, &config.url, config.unit));
        let mut memory = Memory::default();
        if let Some(Err(e)) = learnt.as_ref().map(|l| l.recall(&mut memory, &spans, Time::now())) {
            warn!(source = %config.name, "what was learnt of the device is forgotten: {e}");
        }
        Poller {
            report: Report::new(&config, shared),
            spans,
            memory,
            learnt,
            kept: (0, None),
            link: Link::Waiting(Instant::now()),
            backoff: Backoff::new(BACKOFF.0, BACKOFF.1),
            troubled: vec![false; count],
            causes: vec![Cause::None; count],
            silences: 0,
            lines,
            config,
        }
    }

    /// Dials once, so that the first round finds a connection if there is one to be had.
    pub async fn first_dial(&mut self) {
        self.reconnect().await;
    }

    /// While there is no connection: waits until it is time, and dials. Ends after each attempt,
    /// never while connected. It can be dropped and called again without losing the attempt.
    pub async fn redial(&mut self) {
        loop {
            match &mut self.link {
                Link::Up { .. } => pending().await,
                Link::Waiting(until) => {
                    sleep_until(*until).await;
                    self.link = Link::Dialing(self.dial());
                }
                Link::Dialing(attempt) => {
                    let outcome = attempt.await;
                    self.dialed(outcome.unwrap_or_else(|e| Err(Failure::Broken(e.to_string()))));
                    return;
                }
            }
        }
    }

    /// Reads what is due: one reading for each, in that order.
    pub async fn round(&mut self, due: &[usize]) -> Vec<Reading> {
        let mut round = Round { results: vec![None; self.spans.len()], ..Round::default() };
        if matches!(self.link, Link::Up { .. }) {
            self.prepare(due, &mut round);
        }
        while let Some(job) = round.jobs.pop_front() {
            if round.asked && !self.config.pause.is_zero() {
                sleep(self.config.pause).await;
            }
            round.asked = true;
            match self.ask(job.request.span).await {
                Ok(values) => self.take(&job, &values, &mut round),
                Err(failure) if failure.spares_connection() => self.refused(job, &failure, &mut round),
                Err(failure) => self.lost(job, &failure, &mut round).await,
            }
            if !matches!(self.link, Link::Up { .. }) {
                break;
            }
        }
        if self.kept.1.is_none_or(|at| at.elapsed() >= KEEP_EVERY) {
            self.keep();
        }
        self.finish(due, round)
    }

    /// Writes down what was learnt since it was last written, if anything. A few hundred bytes, and
    /// seldom: not worth a thread.
    pub fn keep(&mut self) {
        let Some(learnt) = self.learnt.as_ref().filter(|_| self.kept.0 != self.memory.lessons()) else { return };
        self.kept.1 = Some(Instant::now());
        match learnt.keep(&self.memory, Time::now()) {
            Ok(()) => self.kept.0 = self.memory.lessons(),
            Err(e) => debug!(source = %self.config.name, "what was learnt of the device is not kept: {e}"),
        }
    }

    fn dial(&self) -> Dialing {
        let (config, lines) = (self.config.clone(), self.lines.clone());
        let attempt = async move { Connection::dial(&lines, &config.url, config.unit, config.timeout).await };
        AbortOnDropHandle::new(tokio::spawn(attempt))
    }

    async fn reconnect(&mut self) {
        // The old connection goes first: some devices have room for one only.
        self.link = Link::Waiting(Instant::now());
        self.report.disconnected();
        let outcome = Connection::dial(&self.lines, &self.config.url, self.config.unit, self.config.timeout).await;
        self.dialed(outcome);
    }

    fn dialed(&mut self, outcome: Result<Connection, Failure>) {
        match outcome {
            Ok(connection) => {
                self.report.connected();
                self.link = Link::Up { connection, proven: false };
            }
            Err(failure) => {
                self.report.unreachable(&failure);
                self.hang_up();
            }
        }
    }

    /// Drops the connection and waits before the next.
    fn hang_up(&mut self) {
        self.report.disconnected();
        self.link = Link::Waiting(Instant::now() + self.backoff.after_failure(fastrand::f64()));
    }

    /// Lays out the round: what is read together, what is tried again alone, what is left.
    fn prepare(&mut self, due: &[usize], round: &mut Round) {
        let now = Instant::now();
        let mut reads = Vec::new();
        let mut retries: BTreeMap<Span, Vec<usize>> = BTreeMap::new();
        for &i in due {
            match self.memory.advice(self.spans[i], now) {
                Advice::Read => reads.push(i),
                Advice::Retry if retries.len() < RETRIES_PER_ROUND || retries.contains_key(&self.spans[i]) => {
                    retries.entry(self.spans[i]).or_default().push(i);
                }
                Advice::Retry | Advice::Leave => {
                    round.results[i] = Some((Time::now(), Err(self.memory.cause(self.spans[i]))));
                }
            }
        }
        let probe = self.probe(&mut reads);
        let mut blocks = plan(&self.spans, &reads, self.config.limits, &self.memory, now);
        blocks.sort_by_key(|r| r.wants.iter().any(|i| self.troubled[*i]));
        let alone = retries.into_iter().map(|(span, wants)| Request { span, wants });
        let all = probe.into_iter().chain(blocks).chain(alone);
        round.jobs = all.map(|request| Job { request, half_of: None }).collect();
    }

    /// After a silence, one signal alone goes first, another each time: some devices do not answer
    /// at all for an address they do not have, and one such address would hide the rest for ever.
    fn probe(&self, reads: &mut Vec<usize>) -> Option<Request> {
        let pick = self.silences.checked_sub(1)?;
        let span = self.spans[*reads.get(pick % reads.len().max(1))?];
        let (wants, rest) = reads.iter().partition(|i| self.spans[**i] == span);
        *reads = rest;
        Some(Request { span, wants })
    }

    async fn ask(&mut self, span: Span) -> Result<Vec<u16>, Failure> {
        let Link::Up { connection, proven } = &mut self.link else {
            return Err(Failure::Broken("there is no connection".into()));
        };
        let started = Instant::now();
        let result = connection.read(span).await;
        if result.as_ref().map_or_else(Failure::spares_connection, |_| true) {
            *proven = true;
            self.backoff.reset();
            self.silences = 0;
        }
        self.report.request(started.elapsed(), &result);
        result
    }

    fn take(&mut self, job: &Job, values: &[u16], round: &mut Round) {
        (round.answered, round.reconnects) = (true, 0);
        let (at, now) = (Time::now(), Instant::now());
        for &i in &job.request.wants {
            let span = self.spans[i];
            self.memory.answered(span, now);
            self.troubled[i] = false;
            let first = usize::from(span.start - job.request.span.start);
            let own = values.get(first..first + usize::from(span.count)).unwrap_or_default();
            let value = self.config.signals[i].decoder.decode(own);
            round.results[i] = Some((at, value.ok_or(Cause::NotFinite)));
        }
        if let Some((second, answered)) = job.half_of.and_then(|n| round.splits.get_mut(n)) {
            *answered += 1;
            if *answered == 2 {
                self.memory.cut(second.table, second.start, Instant::now());
            }
        }
    }

    /// The device answered, but not with values.
    fn refused(&mut self, job: Job, failure: &Failure, round: &mut Round) {
        (round.answered, round.reconnects) = (true, 0);
        debug!(source = %self.config.name, span = ?job.request.span, "refused: {failure}");
        // Some devices cut short what is too long for them.
        if matches!(failure, Failure::Exception(ILLEGAL_ADDRESS, _) | Failure::Length { .. }) {
            match split(&job.request, &self.spans) {
                Some(halves) if (round.splits.len() as u32) < SPLITS_PER_ROUND => return round.halve(halves),
                Some(_) => {}
                None => self.memory.refused(job.request.span, Cause::Exception, Instant::now()),
            }
        }
        let at = Time::now();
        for &i in &job.request.wants {
            self.troubled[i] = false;
            round.results[i] = Some((at, Err(Cause::Exception)));
        }
    }

    /// The connection is of no more use.
    async fn lost(&mut self, job: Job, failure: &Failure, round: &mut Round) {
        let proven = matches!(self.link, Link::Up { proven: true, .. });
        self.report.lost(failure);
        let timed_out = matches!(failure, Failure::Timeout(_));
        let may_reconnect = round.reconnects < RECONNECTS_IN_A_ROW;
        round.reconnects += 1;
        // A device may close a connection that has been idle, or after each answer: no harm done.
        if proven && !timed_out && may_reconnect {
            self.reconnect().await;
            return round.jobs.push_front(job);
        }
        let cause = if timed_out { Cause::Timeout } else { Cause::Disconnected };
        let at = Time::now();
        job.request.wants.iter().for_each(|i| round.results[*i] = Some((at, Err(cause))));
        if round.answered {
            // The device is alive, so it is this request that it does not answer.
            self.blame(&job.request, cause);
        }
        if round.answered && may_reconnect {
            self.reconnect().await;
        } else {
            self.silences += usize::from(!round.answered);
            self.hang_up();
        }
    }

    /// Notes a request that got no answer although others did. When it happens twice in a row, the
    /// request is split from then on, or the one address left alone for a while.
    fn blame(&mut self, request: &Request, cause: Cause) {
        let again = request.wants.iter().all(|i| self.troubled[*i]);
        request.wants.iter().for_each(|i| self.troubled[*i] = true);
        match split(request, &self.spans) {
            _ if !again => {}
            Some((_, second)) => self.memory.cut(second.span.table, second.span.start, Instant::now()),
            None => self.memory.refused(request.span, cause, Instant::now()),
        }
    }

    fn finish(&mut self, due: &[usize], mut round: Round) -> Vec<Reading> {
        let now = Time::now();
        let mut readings = Vec::with_capacity(due.len());
        let origin = Origin::new(&self.config.name, "");
        for &i in due {
            let (at, result) = round.results[i].take().unwrap_or((now, Err(Cause::Disconnected)));
            let signal = &self.config.signals[i];
            let (machine, name) = (signal.machine.clone(), signal.name.clone());
            self.causes[i] = result.err().unwrap_or_default();
            let reading = match result {
                Ok(value) => Reading::good(machine, name, at, value),
                Err(cause) => Reading::bad(machine, name, at, cause),
            };
            readings.push(reading.of(origin, Clock::Arrival));
        }
        let up = matches!(self.link, Link::Up { .. }) && (round.answered || !round.asked);
        self.report.round(up, &self.config, &self.causes, &readings);
        readings
    }
}

impl Round {
    fn halve(&mut self, (left, right): (Request, Request)) {
        let half_of = Some(self.splits.len());
        self.splits.push((right.span, 0));
        self.jobs.push_front(Job { request: right, half_of });
        self.jobs.push_front(Job { request: left, half_of });
    }
}
