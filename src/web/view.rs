//! The picture behind its lock, the task that feeds it, and the frames that browsers are sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;

use super::json as render;
use super::picture::{Picture, Point, ScorePoint};
use crate::metrics::lock;
use crate::types::{Alarm, Live, Name, Time};

pub use super::picture::Held;

/// Frames held for browsers that read slowly; one that falls further behind is cut off and comes back.
pub const EVENTS_QUEUED: usize = 4_096;
/// Steps and verdicts are sent at most this often for one machine; alarms and lights always, at once.
const FLUSH_EVERY: Duration = Duration::from_millis(250);
/// Machines whose news is sent at each flush; the others' turn comes with the next.
const MACHINES_PER_FLUSH: usize = 200;
/// Events taken under one lock.
const BATCH: usize = 1_024;

/// An in-memory picture of all machines and alarms for the dashboard. Cheap to share.
pub struct View {
    picture: Mutex<Picture>,
    frames: broadcast::Sender<Bytes>,
}

/// What the plots of one machine are drawn from.
pub(super) struct Trends {
    /// By signal, each oldest first.
    pub signals: Vec<(Name, Vec<Point>)>,
    /// Oldest first.
    pub scores: Vec<ScorePoint>,
    /// What the threshold is held against.
    pub held: Held,
}

impl View {
    /// Knows nothing yet.
    pub fn new() -> Arc<View> {
        Arc::new(View { picture: Mutex::default(), frames: broadcast::channel(EVENTS_QUEUED).0 })
    }

    /// Feeds the picture until the sender has gone or `stop` is cancelled. Falling behind loses
    /// events of this picture only; how many is counted and shown.
    pub async fn follow(self: Arc<View>, mut events: broadcast::Receiver<Live>, stop: CancellationToken) {
        let mut flush = tokio::time::interval(FLUSH_EVERY);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                _ = flush.tick() => {
                    self.flush(Time::now());
                    continue;
                }
                event = events.recv() => event,
            };
            match event {
                Ok(event) => self.take(event, &mut events, Time::now()),
                Err(RecvError::Lagged(n)) => lock(&self.picture).lagged += n,
                Err(RecvError::Closed) => {
                    self.flush(Time::now());
                    return;
                }
            }
        }
    }

    /// Takes in `first` and what else has come, up to [`BATCH`].
    fn take(&self, first: Live, events: &mut broadcast::Receiver<Live>, now: Time) {
        let mut picture = lock(&self.picture);
        let mut next = Some(first);
        for _ in 0..BATCH {
            let Some(event) = next else { break };
            picture.apply(&event, now);
            self.announce(&picture, &event);
            next = match events.try_recv() {
                Ok(event) => Some(event),
                Err(TryRecvError::Lagged(n)) => {
                    picture.lagged += n;
                    events.try_recv().ok()
                }
                Err(_) => None,
            };
        }
        if let Some(event) = next {
            picture.apply(&event, now);
            self.announce(&picture, &event);
        }
    }

    /// Sends what must not wait for the next flush.
    fn announce(&self, picture: &Picture, event: &Live) {
        if self.frames.receiver_count() == 0 {
            return;
        }
        match event {
            Live::Alarm(alarm, _) => self.send("alarm", &render::alarm(alarm)),
            Live::State { machine, .. } => {
                if let Some(m) = picture.machines().get(machine) {
                    self.send("state", &render::state(machine, m));
                }
            }
            Live::Opinion(machine, opinion, _) => {
                self.send("opinion", &json!({"machine": machine, "second_opinion": render::opinion(opinion)}));
                let about = |a: &&Arc<Alarm>| a.care.opinion.as_ref() == Some(&**opinion);
                if let Some(alarm) = picture.alarms().iter().find(about) {
                    self.send("alarm", &render::alarm(alarm));
                }
            }
            Live::Flood(flood) => self.send("flood", &render::flood(flood.as_ref())),
            Live::Step { .. } | Live::Verdict(..) => {}
        }
    }

    /// Sends the newest step and verdict of machines that have news.
    fn flush(&self, now: Time) {
        let mut picture = lock(&self.picture);
        let heard = self.frames.receiver_count() > 0;
        let turn = if heard { MACHINES_PER_FLUSH } else { usize::MAX };
        for _ in 0..turn {
            let Some((name, step, verdict)) = picture.take_fresh() else { break };
            let Some(m) = picture.machines().get(&name).filter(|_| heard) else { continue };
            if step {
                self.send("step", &render::step(&name, m, now));
            }
            if verdict {
                self.send("verdict", &render::verdict_event(&name, m));
            }
        }
    }

    /// Sends one event to all browsers; without any it costs nothing.
    pub(super) fn send(&self, kind: &str, data: &Value) {
        // An error says that nobody listens.
        let _ = self.frames.send(Bytes::from(format!("event: {kind}\ndata: {data}\n\n")));
    }

    /// Browsers listening now.
    pub fn listeners(&self) -> usize {
        self.frames.receiver_count()
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Bytes> {
        self.frames.subscribe()
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
        let mut out = render::machine(name, m, now);
        let mine: Vec<Value> =
            render::newest_first(picture.alarms()).filter(|a| a.machine == *name).map(|a| render::alarm(a)).collect();
        out["alarms"] = json!(mine);
        out["plots"] = json!(m.scores.is_some());
        out["data"] = render::raw(m.data.as_deref());
        Some(out)
    }

    /// What the plots of a machine are drawn from. Marks it as looked at.
    pub(super) fn trends(&self, id: &str) -> Option<Trends> {
        let mut picture = lock(&self.picture);
        picture.look_at(id);
        let m = picture.machines().get(id)?;
        let points = |s: &super::picture::Signal| s.points.as_ref().map(|r| r.to_vec()).unwrap_or_default();
        Some(Trends {
            signals: m.signals.iter().map(|(n, s)| (n.clone(), points(s))).collect(),
            scores: m.scores.as_ref().map(|r| r.to_vec()).unwrap_or_default(),
            held: m.held,
        })
    }
}

#[cfg(test)]
mod tests;
