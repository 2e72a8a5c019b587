//! The engine's thread: takes batches in, steps the engine, hands the store what has to last and
//! the dashboards what is live.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::engine::{Block, Engine, MAX_PENDING_READINGS, Outcome};
use super::input::{Group, Input, Running};
use super::rollout::Rollouts;
use super::scribe::{self, Note, Reply};
use crate::alarm::Act;
use crate::forward::budget;
use crate::forward::inference::Asked;
use crate::metrics::{Board, Health, Pulse, Shared};
use crate::model::Model;
use crate::source::modbus::light::{Standing, Wrote};
use crate::store::{self, Commit, Snapshot};
use crate::types::{
    Answer, Batch, Change, Condition, ENGINE_SILENT_AFTER, Flood, Kind, Live, ModelNews, Receipt, Reject, Time,
};
use crate::web;

/// Batches taken in at a time; with at most 4,096 readings each this bounds a group.
const GROUP_BATCHES: usize = 16;
/// A snapshot is kept after so many readings at most, so that a restart replays little ...
const CHECKPOINT_READINGS: usize = 200_000;
/// ... or after this many for each signal, which keeps its cost small beside theirs, but not after fewer
/// than some half a second's work ...
const CHECKPOINT_PER_SIGNAL: usize = 20;
const CHECKPOINT_LEAST: usize = 40_000;
/// ... and at least so often while anything comes in.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);
/// The least time from one to the next, short of the first number of readings. The store goes on asking for
/// one until it has it, which takes long when it cannot write.
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

/// What the agent asks of its engine besides taking readings in.
pub enum Order {
    /// This runs from now on.
    Running(Running),
    /// These blocks are in force from now on, with what then runs; answered when that is so.
    Reconfigure(Vec<Block>, Running, oneshot::Sender<Result<(), String>>),
    /// Something happened to a bundle; with a candidate comes the model itself, loaded.
    News(ModelNews, Option<Arc<Model>>),
}

mod checkpoints;
mod clocks;
mod escalation;
mod links;
mod refusals;
mod scores;
mod states;

use checkpoints::Checkpoints;
use clocks::{Clocks, GatewayClock};
use refusals::SourceRefusals;
use scores::Scores;
use states::States;

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
    checkpoints: Checkpoints,
    notes: mpsc::Sender<Note>,
    scribe: JoinHandle<()>,
    lights: Option<Lights>,
    opinions: Option<Opinions>,
    /// The name of the model that is asked.
    larger_model: Option<String>,
    /// How the budget stood when it was last told.
    standing: Option<budget::Standing>,
    rollouts: Rollouts,
    model_commands: Option<mpsc::Receiver<web::ModelCommand>>,
    scores: Scores,
    states: States,
    /// When the last heartbeat was sent.
    beat: Option<Instant>,
    clocks: Clocks,
    gateway_clock: GatewayClock,
    refusals: SourceRefusals,
}

/// The two ends that stack lights have in the engine: how the machines stand, told twice a second even
/// where nothing has changed, and what was written, which is to be recorded.
pub struct Lights {
    /// What the lights are to show.
    pub standing: watch::Sender<Standing>,
    /// What they wrote.
    pub wrote: mpsc::Receiver<Wrote>,
}

/// The two ends that the client of a larger model has in the engine.
pub struct Opinions {
    /// Room for [`MAX_PENDING`](super::engine::second::MAX_PENDING).
    pub asks: mpsc::Sender<Asked>,
    /// How asking ended.
    pub answers: mpsc::Receiver<Answer>,
}

impl Feed {
    /// Ready to run, within a runtime. The audit log's file is kept in `data_dir`.
    pub fn new(
        engine: Engine,
        commits: store::Sender,
        live: broadcast::Sender<Live>,
        data_dir: PathBuf,
        rollouts: Rollouts,
        shared: Shared,
    ) -> Feed {
        let pulse = shared.board.pulse("engine");
        let (held, waiting) = mpsc::channel(N_HELD);
        let carrier = tokio::spawn(carry(waiting, commits.clone(), shared.board.clone()));
        let room = Arc::new(Semaphore::new(HELD_KIB));
        // What has just been replayed is kept with the first input: where a restart comes before the next
        // snapshot again and again, each replay would be longer than the one before.
        let now = Instant::now();
        let (since_checkpoint, checkpointed) = (0, now.checked_sub(CHECKPOINT_EVERY).unwrap_or(now));
        let (notes, to_write) = mpsc::channel(scribe::N_QUEUED);
        let larger_model = engine.budget(Time::default()).map(|b| b.model.to_string());
        let scribe = tokio::spawn(scribe::run(data_dir, engine.audit_tail(), to_write, shared.board.clone()));
        Feed {
            engine,
            commits,
            held,
            room,
            carrier,
            live,
            scores: Scores::new(shared.metrics.clone()),
            states: States::new(shared.metrics.clone()),
            beat: None,
            clocks: Clocks::default(),
            gateway_clock: GatewayClock::new(Time::now(), Instant::now()),
            refusals: SourceRefusals::default(),
            shared,
            pulse,
            since_checkpoint,
            checkpointed,
            checkpoints: Checkpoints::default(),
            notes,
            scribe,
            lights: None,
            opinions: None,
            larger_model,
            standing: None,
            rollouts,
            model_commands: None,
        }
    }

    /// With stack lights.
    pub fn with_lights(mut self, lights: Option<Lights>) -> Feed {
        self.lights = lights;
        self
    }

    /// With a larger model to ask.
    pub fn with_opinions(mut self, opinions: Option<Opinions>) -> Feed {
        self.opinions = opinions;
        self
    }

    /// With what people do to models.
    pub fn with_model_commands(mut self, commands: mpsc::Receiver<web::ModelCommand>) -> Feed {
        self.model_commands = Some(commands);
        self
    }

    /// Runs until the sources have gone and all they sent is handed on, then keeps a last snapshot.
    pub async fn run(
        mut self,
        mut batches: mpsc::Receiver<Batch>,
        mut commands: mpsc::Receiver<web::Command>,
        mut orders: mpsc::Receiver<Order>,
    ) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::with_capacity(GROUP_BATCHES);
        self.begin().await;
        self.rollouts.show(&self.engine);
        for news in std::mem::take(&mut self.rollouts.first) {
            self.do_and_note(Input::Rollout(news), None).await;
        }
        self.ask_again();
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
                Some(command) = asked(&mut self.model_commands) => self.obey_of_model(command).await,
                Some(wrote) = wrote(&mut self.lights) => self.record(wrote).await,
                Some(answer) = answer(&mut self.opinions) => {
                    self.step(Group { inputs: vec![Input::Opinion(answer)] }, Vec::new(), Vec::new()).await;
                }
                Some(order) = orders.recv() => self.follow(order).await,
                _ = ticks.tick() => self.tick().await,
            }
        }
        // The lights hold the channel of batches open, so all that they wrote is here by now.
        while let Some(wrote) = self.lights.as_mut().and_then(|l| l.wrote.try_recv().ok()) {
            self.record(wrote).await;
        }
        if self.since_checkpoint > 0 {
            let checkpoint = Some(self.checkpoint());
            self.send(Commit { checkpoint, first_ordinal: self.engine.ordinal(), ..Commit::default() }).await;
        }
        drop((self.held, self.notes));
        for mut last in [self.carrier, self.scribe] {
            while tokio::time::timeout(Duration::from_secs(1), &mut last).await.is_err() {
                self.pulse.beat();
            }
        }
    }

    async fn take(&mut self, taken: &mut Vec<Batch>) {
        let mut group = Group::default();
        let mut receipts = Vec::new();
        let mut rejects = Vec::new();
        self.watch_gateway_clock().await;
        let (now, wall) = (Instant::now(), Time::now());
        for batch in taken.drain(..) {
            if !batch.readings.is_empty() {
                self.refusals.received(&batch.source, batch.readings.len(), now);
                group.inputs.push(Input::From(batch.source));
                if batch.again {
                    group.inputs.push(Input::Again);
                }
                // One that waited while the clock was set back did not arrive in the future.
                group.inputs.push(Input::Readings(batch.arrived.min(wall), batch.readings));
            }
            rejects.extend(batch.rejects);
            receipts.extend(batch.receipt);
        }
        self.step(group, receipts, rejects).await;
    }

    async fn obey(&mut self, command: web::Command) {
        let web::Command { target, action, who, comment, reply } = command;
        let act = Act { action, who, comment, at: Time::now() };
        if let Err(refused) = self.engine.may_act(&target, &act) {
            let refusal = refused.map_or(web::Refusal::NoSuchAlarm, web::Refusal::NotNow);
            // Whoever asked may have gone.
            let _ = reply.send(Err(refusal));
            return;
        }
        self.do_and_note(Input::Act(target, act), Some(reply)).await;
    }

    async fn obey_of_model(&mut self, command: web::ModelCommand) {
        let web::ModelCommand { model, promote, who, reply } = command;
        if let Err(refusal) = self.engine.may_change(&model, promote) {
            // Whoever asked may have gone.
            let _ = reply.send(Err(refusal));
            return;
        }
        let at = Time::now();
        let news = if promote {
            ModelNews::Promote { at, model, who }
        } else {
            ModelNews::Withdraw { at, model, digest: "".into(), reason: format!("{who} wants the one before back") }
        };
        self.do_and_note(Input::Rollout(news), Some(reply)).await;
    }

    async fn follow(&mut self, order: Order) {
        match order {
            Order::Running(running) if self.engine.is_news(&running) => {
                self.do_and_note(Input::Running(running), None).await;
            }
            Order::Running(_) => {}
            Order::News(news, model) => {
                self.engine.stock(model);
                self.do_and_note(Input::Rollout(news), None).await;
            }
            Order::Reconfigure(blocks, running, reply) => {
                let done = self.engine.reconfigure(blocks);
                if done.is_ok() {
                    // With a snapshot, so that nothing from before is replayed under the new blocks.
                    let checkpoint = Some(self.checkpoint());
                    self.send(Commit { checkpoint, first_ordinal: self.engine.ordinal(), ..Commit::default() }).await;
                    self.do_and_note(Input::Running(running), None).await;
                    self.step(Group { inputs: vec![Input::Tick(Time::now())] }, Vec::new(), Vec::new()).await;
                    self.present();
                }
                let _ = reply.send(done);
            }
        }
    }

    /// Steps with what somebody did. They are answered, and the audit log's file is written, once it
    /// is durable.
    async fn do_and_note(&mut self, input: Input, reply: Option<Reply>) {
        let (receipt, durable) = Receipt::new();
        let lines = self.step(Group { inputs: vec![input] }, vec![receipt], Vec::new()).await;
        let mut note = Some(Note { lines, durable, reply });
        // The scribe waits for the store: while that cannot write, those who asked hear nothing.
        while let Some(waiting) = note.take() {
            match self.notes.try_send(waiting) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(back)) => {
                    self.pulse.beat();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    note = Some(back);
                }
                Err(mpsc::error::TrySendError::Closed(_)) => tracing::error!("the audit log's file is not written"),
            }
        }
    }

    async fn record(&mut self, wrote: Wrote) {
        self.do_and_note(Input::Wrote(wrote), None).await;
    }

    /// What was under way when the last run ended is asked again, under the ids it had.
    fn ask_again(&self) {
        for ask in self.engine.unanswered() {
            self.ask(Asked { ask, durable: None });
        }
    }

    /// There is room for as many as the engine lets be pending; who asks may have ended with the sources,
    /// and then it is asked after the next start.
    fn ask(&self, asked: Asked) {
        if let Some(opinions) = &self.opinions {
            let _ = opinions.asks.try_send(asked);
        }
    }

    /// Tells the engine the time where that changes something: what it knows ages, and a machine falls silent,
    /// whatever other sources do.
    async fn tick(&mut self) {
        // A panic of either is one of this thread.
        assert!(!self.carrier.is_finished(), "what hands commits to the store has ended");
        assert!(!self.scribe.is_finished(), "what writes the audit log's file has ended");
        self.watch_gateway_clock().await;
        self.watch_links().await;
        // Fails only when nobody listens.
        let _ = self.live.send(Live::Heartbeat(Time::now()));
        // Others have shown every machine as amber meanwhile.
        if self.beat.replace(Instant::now()).is_some_and(|before| before.elapsed() >= ENGINE_SILENT_AFTER) {
            self.shared.resync.ask();
        }
        if self.shared.resync.take(Instant::now()) {
            self.present();
        }
        let now = Time::now();
        for news in self.rollouts.measured(&self.engine, now) {
            self.step(Group { inputs: vec![Input::Rollout(news)] }, Vec::new(), Vec::new()).await;
        }
        // Once the agent stops nobody listens any more, and silence says nothing.
        let listens = !self.shared.stop.is_cancelled();
        if listens && self.engine.wants_tick(now) {
            self.step(Group { inputs: vec![Input::Tick(now)] }, Vec::new(), Vec::new()).await;
        }
        if self.engine.wants_clock(now) {
            self.step(Group { inputs: vec![Input::Clock(now)] }, Vec::new(), Vec::new()).await;
        }
        self.gauge();
        self.shared.admitted.update(self.engine.machines(), self.engine.lights().map(|(name, _)| name));
        self.refusals.review(&self.shared.board, Instant::now());
        if let Some(lights) = &self.lights {
            lights.standing.send_replace(self.engine.lights().collect());
        }
    }

    /// Before anything is taken in: no source is up yet, and what machines showed when the last run ended is
    /// looked at anew.
    async fn begin(&mut self) {
        self.links_begin().await;
        self.step(Group { inputs: vec![Input::Tick(Time::now())] }, Vec::new(), Vec::new()).await;
        self.present();
    }

    /// Tells dashboards how everything stands, in one message: what is not in it is over.
    fn present(&mut self) {
        let all = self.engine.present();
        self.states.restart(&all);
        // Fails only when nobody listens.
        let _ = self.live.send(Live::Snapshot(all.into()));
    }

    /// Gives what the audit log is to say of it.
    async fn step(&mut self, group: Group, mut receipts: Vec<Receipt>, rejects: Vec<Reject>) -> Vec<String> {
        let outcome = self.engine.step(&group);
        self.count(&outcome);
        receipts.extend(self.rollouts.tell(&self.engine, &outcome));
        let Outcome { records, first_ordinal, live, asks, .. } = outcome;
        for ask in asks {
            let (receipt, durable) = Receipt::new();
            receipts.push(receipt);
            self.ask(Asked { ask, durable: Some(durable) });
        }
        for event in live {
            // Fails only when nobody listens.
            let _ = self.live.send(event);
        }
        let readings: usize =
            group.inputs.iter().map(|i| if let Input::Readings(_, r) = i { r.len() } else { 1 }).sum();
        self.since_checkpoint += readings;
        let (since, elapsed) = (self.since_checkpoint, self.checkpointed.elapsed());
        let enough = (self.engine.signals() * CHECKPOINT_PER_SIGNAL).max(CHECKPOINT_LEAST);
        let wanted = since >= enough || self.commits.wants_checkpoint();
        let due =
            since >= CHECKPOINT_READINGS || elapsed >= CHECKPOINT_EVERY || (wanted && elapsed >= CHECKPOINT_PAUSE);
        // One that is still being written is better finished first.
        let checkpoint = (due && readings > 0 && !self.commits.is_writing_checkpoint()).then(|| {
            self.since_checkpoint = 0;
            self.checkpointed = Instant::now();
            self.checkpoint()
        });
        let entry = (!group.inputs.is_empty()).then(|| group.encode());
        let audited = records.iter().filter(|r| r.kind == Kind::Audit).map(|r| r.data.clone()).collect();
        self.send(Commit { entry, checkpoint, records, first_ordinal, rejects, receipts }).await;
        audited
    }

    fn checkpoint(&mut self) -> Snapshot {
        self.checkpoints.take(&self.engine, self.commits.wants_all_parts())
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

    fn count(&mut self, outcome: &Outcome) {
        self.tell_refused(&outcome.tally.refused);
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
        self.count_escalations(&outcome.tally);
        self.tell_closed_early(outcome.tally.closed_early);
        self.tell_clock_changes(&outcome.tally.clock_changes);
        if let Some(full) = &outcome.tally.full {
            self.warn_of_limit(full);
        }
        for event in &outcome.live {
            self.states.note(event);
            match event {
                Live::Verdict(v, _) => self.scores.count(v),
                Live::Flood(flood) => self.tell_flood(flood.as_ref()),
                Live::Alarm(a, _) if a.care.change == Change::Raised => {
                    m.alarms_raised.get_or_create(&[("condition", a.condition.as_str().into())]).inc();
                }
                _ => {}
            }
        }
    }

    fn tell_flood(&self, flood: Option<&Flood>) {
        let began = self.shared.metrics.alarm_flood.set(i64::from(flood.is_some())) == 0;
        match flood {
            Some(flood) if began => {
                tracing::warn!(first = %flood.first, raised = flood.raised, "a flood of alarms: they are announced together");
            }
            Some(_) => {}
            None => tracing::info!("the flood of alarms is over"),
        }
    }

    /// Steps that did not wait for late readings, since too many wait over all machines.
    fn tell_closed_early(&self, steps: u64) {
        if steps > 0 {
            self.shared.metrics.steps_closed_early.inc_by(steps);
            let bound = MAX_PENDING_READINGS;
            self.warn_of_limit(&format!("more than {bound} readings that wait for late ones; `lateness` is cut short"));
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

    fn gauge(&mut self) {
        self.rollouts.show(&self.engine);
        self.show_clocks();
        let m = &self.shared.metrics;
        m.machines.set(self.engine.machines() as i64);
        for condition in [Condition::Anomaly, Condition::Input] {
            let active = self.engine.active_alarms(condition) as i64;
            m.alarms_active.get_or_create(&[("condition", condition.as_str().into())]).set(active);
        }
        m.alarms_put_aside.set(self.engine.put_aside() as i64);
        if let Some(budget) = self.engine.budget(Time::now()) {
            self.tell_budget(&budget);
        }
    }
}

/// The next answer of a larger model; never, where none is asked.
async fn answer(opinions: &mut Option<Opinions>) -> Option<Answer> {
    match opinions {
        Some(opinions) => opinions.answers.recv().await,
        None => std::future::pending().await,
    }
}

/// The next write that is to be recorded; never, without lights.
async fn wrote(lights: &mut Option<Lights>) -> Option<Wrote> {
    match lights {
        Some(lights) => lights.wrote.recv().await,
        None => std::future::pending().await,
    }
}

/// What somebody wants of a model next; never, where nobody can.
async fn asked(commands: &mut Option<mpsc::Receiver<web::ModelCommand>>) -> Option<web::ModelCommand> {
    match commands {
        Some(commands) => commands.recv().await,
        None => std::future::pending().await,
    }
}

/// Hands commits to the store in order. Once the store has ended nothing becomes durable any more: what
/// comes then is kept with its receipts, neither completed nor dropped, until the agent ends. Room among
/// the held commits bounds it.
async fn carry(mut waiting: mpsc::Receiver<(Commit, OwnedSemaphorePermit)>, commits: store::Sender, board: Arc<Board>) {
    let mut kept = Vec::new();
    while let Some((commit, room)) = waiting.recv().await {
        let Err(store::Ended(commit)) = commits.send(commit).await else { continue };
        if kept.is_empty() {
            tracing::error!("the store has ended; what comes in now is not acknowledged");
            board.set("store", Health::Down, "ended");
        }
        kept.push((commit, room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ReceiptWaiter;

    fn commit() -> (Commit, ReceiptWaiter) {
        let (receipt, waiter) = Receipt::new();
        (Commit { receipts: vec![receipt], ..Commit::default() }, waiter)
    }

    /// Receipts of a store that has ended are neither completed nor dropped while the agent runs: a
    /// source that is told "not on disk" lets the broker repeat what the engine takes for a duplicate.
    #[tokio::test]
    async fn a_store_that_has_ended_completes_and_drops_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let shared = Shared::new();
        let (ended, _) =
            store::Store::open(&store::Config::default(), dir.path(), &[], shared.clone()).expect("a store");
        let sender = ended.sender();
        tokio::task::spawn_blocking(|| ended.close()).await.expect("joined").expect("closed");
        let (held, waiting) = mpsc::channel(4);
        let carrier = tokio::spawn(carry(waiting, sender, shared.board.clone()));
        let room = Arc::new(Semaphore::new(2));
        let mut waiters = Vec::new();
        for _ in 0..2 {
            let (commit, waiter) = commit();
            let permit = room.clone().acquire_owned().await.expect("open");
            held.send((commit, permit)).await.expect("carried");
            waiters.push(waiter);
        }
        let is_told = || shared.board.components()["store"].detail == "ended";
        while !is_told() || held.capacity() < held.max_capacity() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(shared.board.components()["store"].health, Health::Down);
        assert_eq!(room.available_permits(), 0, "what is kept takes its room, so that input waits");
        let still_open = |w: &mut ReceiptWaiter| matches!(w.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert!(waiters.iter_mut().all(still_open));
        drop(held);
        carrier.await.expect("ends with its input");
        assert!(!waiters.iter_mut().any(still_open), "the agent has ended");
    }
}
