//! The picture behind its lock, the task that feeds it, and the frames that browsers are sent.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

use super::course::{Course, Stretch};
use super::json as render;
use super::machine::{Machine, Signal};
use super::picture::Picture;
use super::ring::{Point, ScorePoint};
use crate::metrics::{Metrics, Resync, Shared, lock};
use crate::types::{Live, MachineState, Name, Time};

pub use super::machine::Held;

/// Frames held for browsers that read slowly; one that falls further behind is cut off and comes back.
pub const EVENTS_QUEUED: usize = 4_096;
/// Steps and verdicts are sent at most this often for one machine; alarms and lights always, at once.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// Machines whose news is sent at each flush; the others' turn comes with the next.
const MACHINES_PER_FLUSH: usize = 200;
/// Machines that one browser may watch: more than fit on any screen.
pub(super) const MAX_WATCHED: usize = 200;
/// Changed states that are sent one by one. Where more change at once, browsers are told to fetch all.
const MAX_STATE_FRAMES: usize = 500;
/// Events taken under one lock.
const BATCH: usize = 1_024;
/// Once all is taken in, so long nothing is looked at: too short for people, long enough that the engine
/// need not wake us for each message. Much less than what fills the queue of events.
const REST: Duration = Duration::from_millis(20);

/// An in-memory picture of all machines and alarms for the dashboard. Cheap to share.
pub struct View {
    picture: Mutex<Picture>,
    frames: broadcast::Sender<Frame>,
    watches: Mutex<Vec<Weak<Watch>>>,
    /// Unique to this process: versions of another epoch cannot be compared with its own.
    epoch: String,
}

/// One event, as browsers are sent it.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// Only for those who watch this machine.
    machine: Option<Name>,
    /// In full.
    pub text: Bytes,
    /// For those who fetch the rest when they want it.
    brief: Option<Bytes>,
}

impl Frame {
    fn new(kind: &str, data: &Value) -> Frame {
        Frame { machine: None, text: Bytes::from(format!("event: {kind}\ndata: {data}\n\n")), brief: None }
    }

    /// What a stream with this watch is sent of it; without one, everything in full.
    pub fn text_for(self, watch: Option<&Watch>) -> Option<Bytes> {
        let Some(watch) = watch else { return Some(self.text) };
        match &self.machine {
            Some(machine) if !lock(&watch.machines).contains(machine) => None,
            _ => Some(self.brief.unwrap_or(self.text)),
        }
    }
}

/// The machines that one browser shows: it is sent no steps and verdicts of others.
#[derive(Debug)]
pub(super) struct Watch {
    /// By which it is told apart from others.
    pub id: u64,
    machines: Mutex<HashSet<Name>>,
}

/// Which machines anybody wants to hear of.
enum Wanted {
    All,
    These(HashSet<Name>),
}

impl Wanted {
    fn holds(&self, machine: &Name) -> bool {
        match self {
            Wanted::All => true,
            Wanted::These(names) => names.contains(machine),
        }
    }
}

/// What the plots of one machine are drawn from.
pub(super) struct Trends {
    /// By signal, each oldest first.
    pub signals: Vec<(Name, Vec<Point>)>,
    /// Oldest first.
    pub scores: Vec<ScorePoint>,
    /// What the threshold is held against.
    pub held: Held,
    /// Health and useful life, oldest first.
    pub course: Vec<Stretch>,
}

impl View {
    /// Knows nothing yet.
    pub fn new() -> Arc<View> {
        Arc::new(View {
            picture: Mutex::default(),
            frames: broadcast::channel(EVENTS_QUEUED).0,
            watches: Mutex::default(),
            epoch: format!("{:016x}", fastrand::u64(..)),
        })
    }

    /// Identifies the process that the versions belong to.
    pub(super) fn epoch(&self) -> &str {
        &self.epoch
    }

    /// Feeds the picture until the sender has gone or `shared.stop` is cancelled. Events that are missed are
    /// counted and shown, and the present state of everything is asked for.
    pub async fn follow(self: Arc<View>, mut events: broadcast::Receiver<Live>, shared: Shared) {
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                () = shared.stop.cancelled() => return,
                _ = flush.tick() => {
                    if self.watch_engine(Instant::now()) {
                        self.mark_metric(&shared.metrics);
                    }
                    self.flush(Time::now());
                    continue;
                }
                event = events.recv() => event,
            };
            match event {
                Ok(event) => {
                    if !self.take(event, &mut events, &shared.resync, Time::now()) {
                        // Being stopped is seen at the next turn.
                        let _ = tokio::time::timeout(REST, shared.stop.cancelled()).await;
                    }
                }
                Err(RecvError::Lagged(n)) => missed(&mut lock(&self.picture), n, &shared.resync),
                Err(RecvError::Closed) => {
                    self.flush(Time::now());
                    return;
                }
            }
        }
    }

    /// Takes in `first` and what else has come, up to [`BATCH`]; whether there may be more.
    fn take(&self, first: Live, events: &mut broadcast::Receiver<Live>, resync: &Resync, now: Time) -> bool {
        let mut picture = lock(&self.picture);
        if picture.hear_engine(now, Instant::now()) {
            self.announce_changes(&picture);
        }
        let mut next = Some(first);
        for _ in 0..BATCH {
            let Some(event) = next else { return false };
            picture.apply(&event, now);
            self.announce(&picture, &event);
            next = match events.try_recv() {
                Ok(event) => Some(event),
                Err(TryRecvError::Lagged(n)) => {
                    missed(&mut picture, n, resync);
                    events.try_recv().ok()
                }
                Err(_) => None,
            };
        }
        if let Some(event) = next {
            picture.apply(&event, now);
            self.announce(&picture, &event);
        }
        true
    }

    /// Marks all machines when the engine has become silent; whether it has just now.
    fn watch_engine(&self, now: Instant) -> bool {
        let mut picture = lock(&self.picture);
        let silent = picture.watch_engine(now);
        if silent {
            tracing::error!("the engine is silent: no machine is shown as green until it is heard again");
            self.announce_changes(&picture);
        }
        silent
    }

    /// Shows in the metric what is shown while the engine is silent. It puts that right itself once it goes on.
    fn mark_metric(&self, metrics: &Metrics) {
        let picture = lock(&self.picture);
        for (name, m) in picture.machines().iter().filter(|(_, m)| m.light != picture.light(m)) {
            let labels = |state: MachineState| [("machine", name.to_string()), ("state", state.as_str().to_owned())];
            metrics.machine_state.remove(&labels(m.light));
            metrics.machine_state.get_or_create(&labels(picture.light(m))).set(1);
        }
    }

    /// Sends what must not wait for the next flush.
    fn announce(&self, picture: &Picture, event: &Live) {
        if self.frames.receiver_count() == 0 {
            return;
        }
        match event {
            Live::Step { .. } | Live::Verdict(..) | Live::Heartbeat(_) => {}
            Live::State { machine, .. } => {
                let changed = |m: &&Machine| m.versions.state == picture.version();
                if let Some(m) = picture.machines().get(machine).filter(changed) {
                    self.send("state", &render::state(machine, m, picture));
                }
            }
            Live::Opinion(machine, opinion, _) => {
                let told = json!({"machine": machine, "second_opinion": render::opinion(opinion), "version": picture.version()});
                self.send("opinion", &told);
                self.announce_alarms(picture);
            }
            Live::Alarm(..) => self.announce_alarms(picture),
            Live::Flood(_) => self.send("flood", &render::flood_event(picture)),
            Live::Snapshot(_) => self.announce_changes(picture),
        }
    }

    /// Sends all states and alarms of the present version.
    fn announce_changes(&self, picture: &Picture) {
        if self.frames.receiver_count() == 0 {
            return;
        }
        let changed = || picture.machines().iter().filter(|(_, m)| m.versions.state == picture.version());
        if picture.version_of_removal() == picture.version() || changed().nth(MAX_STATE_FRAMES).is_some() {
            self.send("reset", &json!({"version": picture.version()}));
            return;
        }
        changed().for_each(|(name, m)| self.send("state", &render::state(name, m, picture)));
        self.announce_alarms(picture);
        if picture.flood_version() == picture.version() {
            self.send("flood", &render::flood_event(picture));
        }
    }

    /// Sends all alarms of the present version: one event may end an earlier alarm too.
    fn announce_alarms(&self, picture: &Picture) {
        for listed in picture.alarms().iter().filter(|l| l.version == picture.version()) {
            let brief = Frame::new("alarm", &render::alarm_in_brief(listed)).text;
            self.put(Frame { brief: Some(brief), ..Frame::new("alarm", &render::alarm(listed)) });
        }
    }

    /// Sends the newest step and verdict of machines that have news and that somebody watches.
    fn flush(&self, now: Time) {
        let wanted = self.wanted();
        let mut picture = lock(&self.picture);
        let mut sent = 0;
        while sent < MACHINES_PER_FLUSH {
            let Some((name, step, verdict)) = picture.take_fresh() else { break };
            if !wanted.holds(&name) {
                continue;
            }
            let Some(m) = picture.machines().get(&name) else { continue };
            sent += 1;
            let machine = Some(name.clone());
            if step {
                self.put(Frame { machine: machine.clone(), ..Frame::new("step", &render::step(&name, m, now)) });
            }
            if verdict {
                let brief = Some(Frame::new("verdict", &render::verdict_in_brief(&name, m)).text);
                self.put(Frame { machine, brief, ..Frame::new("verdict", &render::verdict_event(&name, m)) });
            }
        }
    }

    fn wanted(&self) -> Wanted {
        let mut watches = lock(&self.watches);
        watches.retain(|w| w.strong_count() > 0);
        if self.frames.receiver_count() > watches.len() {
            return Wanted::All;
        }
        let mut names = HashSet::new();
        for watch in watches.iter().filter_map(Weak::upgrade) {
            names.extend(lock(&watch.machines).iter().cloned());
        }
        Wanted::These(names)
    }

    /// Sends one event to all browsers; without any it costs nothing.
    pub(super) fn send(&self, kind: &str, data: &Value) {
        self.put(Frame::new(kind, data));
    }

    fn put(&self, frame: Frame) {
        // An error says that nobody listens.
        let _ = self.frames.send(frame);
    }

    /// Browsers listening now.
    pub fn listeners(&self) -> usize {
        self.frames.receiver_count()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Frame> {
        self.frames.subscribe()
    }

    /// A stream that says which machines it wants to hear of: none yet.
    pub(super) fn subscribe_watching(&self) -> (broadcast::Receiver<Frame>, Arc<Watch>) {
        let mut watches = lock(&self.watches);
        let watch = Arc::new(Watch { id: fastrand::u64(..), machines: Mutex::default() });
        watches.push(Arc::downgrade(&watch));
        (self.frames.subscribe(), watch)
    }

    /// The stream of that id watches these machines from now on; `false` when there is none. It is sent how
    /// those stand that it did not watch before: what came just before that was not for it.
    pub(super) fn watch(&self, id: u64, machines: HashSet<Name>) -> bool {
        let found = lock(&self.watches).iter().filter_map(Weak::upgrade).find(|w| w.id == id);
        let Some(watch) = found else { return false };
        let before = std::mem::replace(&mut *lock(&watch.machines), machines.clone());
        let mut picture = lock(&self.picture);
        machines.difference(&before).for_each(|name| picture.tell_again(name));
        true
    }

    /// Reads the picture; keep it short, the feed waits.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Picture) -> T) -> T {
        read(&lock(&self.picture))
    }

    /// One machine in full, as JSON; `None` where it is not known. Marks it as looked at.
    pub(super) fn machine(&self, id: &str, now: Time) -> Option<Value> {
        let mut picture = lock(&self.picture);
        picture.look_at(id);
        let (name, m) = picture.machines().get_key_value(id)?;
        let mut out = render::machine(name, m, &picture, now);
        out["version"] = json!(picture.version());
        out["epoch"] = json!(self.epoch);
        let mine: Vec<Value> = render::most_urgent_first(picture.alarms())
            .filter(|l| l.alarm.machine == *name)
            .map(render::alarm)
            .collect();
        out["alarms"] = json!(mine);
        out["plots"] = json!(m.scores.is_some());
        out["course"] = json!(m.course.is_some());
        out["data"] = render::raw(m.data.as_deref());
        Some(out)
    }

    /// What the plots of a machine are drawn from. Marks it as looked at.
    pub(super) fn trends(&self, id: &str) -> Option<Trends> {
        let mut picture = lock(&self.picture);
        picture.look_at(id);
        let m = picture.machines().get(id)?;
        let points = |s: &Signal| s.points.as_ref().map(|r| r.to_vec()).unwrap_or_default();
        Some(Trends {
            signals: m.signals.iter().map(|(n, s)| (n.clone(), points(s))).collect(),
            scores: m.scores.as_ref().map(|r| r.to_vec()).unwrap_or_default(),
            held: m.held,
            course: m.course.as_ref().map(Course::to_vec).unwrap_or_default(),
        })
    }
}

fn missed(picture: &mut Picture, n: u64, resync: &Resync) {
    picture.lagged += n;
    resync.ask();
}

#[cfg(test)]
mod tests;
