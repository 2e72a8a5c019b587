//! The engine's thread: takes batches in, steps the engine, hands the store what has to last and
//! the dashboards what is live.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use tokio::task::JoinHandle;

use super::engine::{Engine, Outcome};
use super::input::{Group, Input};
use crate::metrics::{Health, Pulse, Shared};
use crate::store::{self, Commit};
use crate::types::{Batch, Condition, Live, Receipt, Reject, Time, Verdict};
use crate::web;

/// Batches taken in at a time; with at most 4,096 readings each this bounds a group.
const GROUP_BATCHES: usize = 16;
/// A snapshot is kept after so many readings, so that a restart replays little ...
const CHECKPOINT_READINGS: usize = 200_000;
/// ... and at least so often while anything comes in.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// The store goes on asking for one until it has it, which takes long when it cannot write.
const CHECKPOINT_PAUSE: Duration = Duration::from_secs(1);
/// What the engine has made of its input and a store that cannot write has not taken yet, in KiB: so
/// far watching goes on, with live results and alarms, and nothing is acknowledged. Then input waits.
const HELD_KIB: usize = 32 << 10;
/// The same, in steps of the engine; each holds a batch of readings at least.
const N_HELD: usize = 8_192;
/// Where the board says that there are more names than room, and how often the log does.
const LIMIT: &str = "limits";
const WARN_EVERY: Duration = Duration::from_secs(60);
/// How often the engine looks at the clock when nothing comes.
const TICK: Duration = Duration::from_millis(500);

/// See the module.
pub struct Feed {
    engine: Engine,
    commits: store::Sender,
    held: mpsc::Sender<(Commit, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    carrier: JoinHandle<()>,
    live: broadcast::Sender<Live>,
    shared: Shared,
    pulse: Pulse,
    since_checkpoint: usize,
    checkpointed: Instant,
}

impl Feed {
    /// Ready to run, within a runtime.
    pub fn new(engine: Engine, commits: store::Sender, live: broadcast::Sender<Live>, shared: Shared) -> Feed {
        let pulse = shared.board.pulse("engine");
        let (held, waiting) = mpsc::channel(N_HELD);
        let carrier = tokio::spawn(carry(waiting, commits.clone()));
        let room = Arc::new(Semaphore::new(HELD_KIB));
        let (since_checkpoint, checkpointed) = (0, Instant::now());
        Feed { engine, commits, held, room, carrier, live, shared, pulse, since_checkpoint, checkpointed }
    }

    /// Runs until the sources have gone and all they sent is handed on, then keeps a last snapshot.
    pub async fn run(mut self, mut batches: mpsc::Receiver<Batch>, mut commands: mpsc::Receiver<web::Command>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::with_capacity(GROUP_BATCHES);
        loop {
            self.pulse.beat();
            tokio::select! {
                n = batches.recv_many(&mut taken, GROUP_BATCHES) => {
                    if n == 0 {
                        break;
                    }
                    self.take(&mut taken).await;
                }
                Some(command) = commands.recv() => self.obey(command).await,
                _ = ticks.tick() => self.tick().await,
            }
        }
        if self.since_checkpoint > 0 {
            let checkpoint = Some(self.engine.snapshot());
            self.send(Commit { checkpoint, first_ordinal: self.engine.ordinal(), ..Commit::default() }).await;
        }
        drop(self.held);
        let mut carrier = self.carrier;
        while tokio::time::timeout(Duration::from_secs(1), &mut carrier).await.is_err() {
            self.pulse.beat();
        }
    }

    async fn take(&mut self, taken: &mut Vec<Batch>) {
        let mut group = Group::default();
        let mut receipts = Vec::new();
        let mut rejects = Vec::new();
        for batch in taken.drain(..) {
            if !batch.readings.is_empty() {
                if batch.again {
                    group.inputs.push(Input::Again);
                }
                group.inputs.push(Input::Readings(batch.arrived, batch.readings));
            }
            rejects.extend(batch.rejects);
            receipts.extend(batch.receipt);
        }
        self.step(group, receipts, rejects).await;
    }

    async fn obey(&mut self, command: web::Command) {
        let web::Command { alarm, action: web::Action::Acknowledge, who, reply } = command;
        let answer = self.engine.may_acknowledge(alarm);
        if answer.is_ok() {
            let group = Group { inputs: vec![Input::Acknowledge { alarm, who, at: Time::now() }] };
            self.step(group, Vec::new(), Vec::new()).await;
        }
        let refusal = |e: Option<String>| e.map_or(web::Refusal::NoSuchAlarm, web::Refusal::NotNow);
        // Whoever asked may have gone.
        let _ = reply.send(answer.map_err(refusal));
    }

    /// Tells the engine the time when a machine has fallen silent, but only while every source is
    /// up: what a broken link holds back is not silence and will still come.
    async fn tick(&mut self) {
        self.gauge();
        let now = Time::now();
        let sources_up = || {
            let parts = self.shared.board.components();
            parts.iter().all(|(name, c)| !name.starts_with("source/") || c.health == Health::Up)
        };
        if self.engine.wants_tick(now) && sources_up() {
            self.step(Group { inputs: vec![Input::Tick(now)] }, Vec::new(), Vec::new()).await;
        }
    }

    async fn step(&mut self, group: Group, receipts: Vec<Receipt>, rejects: Vec<Reject>) {
        let outcome = self.engine.step(&group);
        self.count(&outcome);
        let Outcome { records, first_ordinal, live, .. } = outcome;
        for event in live {
            // Fails only when nobody listens.
            let _ = self.live.send(event);
        }
        let readings: usize =
            group.inputs.iter().map(|i| if let Input::Readings(_, r) = i { r.len() } else { 1 }).sum();
        self.since_checkpoint += readings;
        let due = self.since_checkpoint >= CHECKPOINT_READINGS
            || self.checkpointed.elapsed() >= CHECKPOINT_EVERY
            || (self.commits.wants_checkpoint() && self.checkpointed.elapsed() >= CHECKPOINT_PAUSE);
        let checkpoint = (due && readings > 0).then(|| {
            self.since_checkpoint = 0;
            self.checkpointed = Instant::now();
            self.engine.snapshot()
        });
        let entry = (!group.inputs.is_empty()).then(|| group.encode());
        self.send(Commit { entry, checkpoint, records, first_ordinal, rejects, receipts }).await;
    }

    /// Waits for room among what the store has not taken yet, without looking dead to the watchdog
    /// meanwhile: a full disk is trouble, but no hang.
    async fn send(&mut self, commit: Commit) {
        let kib = (commit.size() >> 10).clamp(1, HELD_KIB) as u32;
        let (held, room) = (self.held.clone(), self.room.clone());
        let sending = async move {
            // Neither is ever closed while this lives.
            if let Ok(permit) = room.acquire_many_owned(kib).await {
                let _ = held.send((commit, permit)).await;
            }
        };
        tokio::pin!(sending);
        while tokio::time::timeout(Duration::from_secs(1), &mut sending).await.is_err() {
            self.pulse.beat();
        }
        // The carrier shares this thread.
        tokio::task::yield_now().await;
    }

    fn count(&self, outcome: &Outcome) {
        let m = &self.shared.metrics;
        for (reason, n) in &outcome.tally.dropped {
            m.readings_dropped.get_or_create(&[("reason", (*reason).into())]).inc_by(*n);
        }
        for (model, took) in &outcome.tally.runs {
            m.inference.get_or_create(&[("model", model.to_string())]).observe(took.as_secs_f64());
        }
        for (model, error) in &outcome.tally.errors {
            m.inference_errors.get_or_create(&[("model", model.to_string())]).inc();
            self.shared.board.set(&format!("model/{model}"), Health::Degraded, error.clone());
        }
        if let Some(full) = &outcome.tally.full {
            self.warn_of_limit(full);
        }
        for event in &outcome.live {
            match event {
                Live::Verdict(v, _) => self.count_verdict(v),
                Live::Alarm(a, _) if a.at == a.since => {
                    m.alarms_raised.get_or_create(&[("condition", a.condition.as_str().into())]).inc();
                }
                _ => {}
            }
        }
    }

    /// Names for which there is no room are a topic storm or a plant larger than thought.
    fn warn_of_limit(&self, first: &str) {
        let standing =
            self.shared.board.components().get(LIMIT).is_some_and(|c| Time::now().since(c.since) < WARN_EVERY);
        if !standing {
            tracing::warn!("readings are dropped, there is no room for {first}");
            // Taken off first, so that it stands since now.
            self.shared.board.set(LIMIT, Health::Starting, "");
            self.shared.board.set(LIMIT, Health::Degraded, format!("readings are dropped: no room for {first}"));
        }
    }

    fn count_verdict(&self, v: &Verdict) {
        let m = &self.shared.metrics;
        m.windows.get_or_create(&[("model", v.model.to_string()), ("reason", v.reason.as_str().into())]).inc();
        if let (Some(score), Some(p)) = (v.score, v.p_value) {
            m.anomaly_score.get_or_create(&[("machine", v.machine.to_string())]).set(score);
            m.anomaly_p_value.get_or_create(&[("machine", v.machine.to_string())]).set(p);
        }
    }

    fn gauge(&self) {
        let m = &self.shared.metrics;
        m.machines.set(self.engine.machines() as i64);
        for condition in [Condition::Anomaly, Condition::Input] {
            let active = self.engine.active_alarms(condition) as i64;
            m.alarms_active.get_or_create(&[("condition", condition.as_str().into())]).set(active);
        }
    }
}

/// Hands commits to the store in order.
async fn carry(mut waiting: mpsc::Receiver<(Commit, OwnedSemaphorePermit)>, commits: store::Sender) {
    while let Some((commit, _room)) = waiting.recv().await {
        if commits.send(commit).await.is_err() {
            tracing::error!("the store has ended; what comes in now is not acknowledged");
        }
    }
}
