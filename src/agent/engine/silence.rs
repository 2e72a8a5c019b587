//! What changes though nothing comes: machines fall silent, judgements age, sources go down, the gateway's clock
//! is set. The engine is told the time only when that changes something.

use super::*;
use crate::agent::machine_state::InputEvidence;
use crate::pipeline::evidence::is_fresh;
use crate::types::Cause;

impl Engine {
    /// Whether being told this time changes anything: a machine's evidence, a pending step, an alarm.
    pub fn wants_tick(&self, now: Time) -> bool {
        (0..self.units.len()).any(|i| {
            self.evidence(i, now) != self.units[i].state.evidence
                || self.wants_flush(i, now)
                || self.wants_input_alarm(i, now)
        })
    }

    /// The state of a source's connection, as it was last told.
    pub fn link(&mut self, link: &Link, out: &mut Outcome) {
        self.hear_clock(link.at);
        self.links.insert(link.source.clone(), link.clone());
        for i in 0..self.units.len() {
            if self.units[i].pipe.sources().any(|s| *s == link.source) {
                self.refresh_light(i, link.at, out);
            }
        }
    }

    /// The sources of which anything was told.
    pub fn links(&self) -> &BTreeMap<Name, Link> {
        &self.links
    }

    /// The gateway's clock was set: what happened before is moved along, so that ages stay what they are, and
    /// silence calls somebody only when it is counted anew.
    pub(super) fn gateway_clock(&mut self, now: Time, by: i64, out: &mut Outcome) {
        (self.now, self.wall, self.clock_set) = (now, now, now);
        let seconds = by as f64 / 1e9;
        let detail = format!("the gateway's clock was set by {seconds:.1} s");
        self.note_audit(now, "gateway", "clock", &"andon".into(), &detail, out);
        for i in 0..self.units.len() {
            let unit = &mut self.units[i];
            unit.pipe.shift_arrivals(by);
            unit.state.shift(by);
            self.refresh_light(i, now, out);
        }
    }

    /// Machines that have fallen silent: what is pending is judged, and what they show follows.
    pub(super) fn tick(&mut self, now: Time, out: &mut Outcome) {
        for i in 0..self.units.len() {
            if self.wants_flush(i, now) {
                while let Some(step) = self.idle_step(i) {
                    if let Some(window) = self.closed(i, step, out) {
                        self.judge(vec![(i, window)], out);
                    }
                }
            }
            if self.wants_input_alarm(i, now) {
                self.raise_input_alarm(i, now, out);
            }
            let before = self.units[i].state.evidence;
            self.refresh_light(i, now, out);
            if self.units[i].state.evidence.inputs != before.inputs {
                self.show_silence(i, now, out);
            }
        }
    }

    /// The moment from which silence of a machine's inputs can be held against it; `None` while a source that
    /// feeds it is down: what a broken link holds back will still come.
    fn listens_since(&self, i: usize) -> Option<Time> {
        let mut since = self.clock_set.max(self.units[i].state.first_heard);
        for source in self.units[i].pipe.sources() {
            let link = self.links.get(source).filter(|l| l.up)?;
            since = since.max(link.at);
        }
        Some(since)
    }

    fn wants_flush(&self, i: usize, now: Time) -> bool {
        let unit = &self.units[i];
        if !unit.pipe.is_pending() {
            return false;
        }
        let Some(since) = self.listens_since(i) else { return false };
        !is_fresh(unit.state.heard.max(since), now, unit.pipe.shortest_silence())
    }

    /// Whether an input has had trouble for long enough to call somebody, and nobody is called yet.
    fn wants_input_alarm(&self, i: usize, now: Time) -> bool {
        let unit = &self.units[i];
        let severity = self.blocks[unit.block].alarm.input_severity;
        if severity == 0 || unit.state.input.is_active() || unit.pipe.runs(now) == Some(false) {
            return false;
        }
        self.listens_since(i).is_some_and(|since| unit.pipe.input_trouble(now, since).is_some())
    }

    fn idle_step(&mut self, i: usize) -> Option<Step> {
        let before = self.units[i].pipe.pending();
        let step = self.units[i].pipe.pop_idle();
        self.pending -= before - self.units[i].pipe.pending();
        step
    }

    fn raise_input_alarm(&mut self, i: usize, now: Time, out: &mut Outcome) {
        let Some(since) = self.listens_since(i) else { return };
        let unit = &self.units[i];
        let Some(trouble) = unit.pipe.input_trouble(now, since) else { return };
        // By the machine's own time, as its other alarms.
        let at = match unit.state.judged {
            Time(0) => now,
            judged => judged.plus(now.since(unit.state.judged_at)),
        };
        let message = trouble.to_string();
        let look = Observation { at, strength: Some(2.0), top_channel: Some(trouble.signal), message };
        self.observe(i, Condition::Input, &look, None, out);
    }

    /// Dashboards are told which values are no longer fresh.
    fn show_silence(&self, i: usize, now: Time, out: &mut Outcome) {
        let unit = &self.units[i];
        if unit.state.evidence.inputs == InputEvidence::Good {
            return;
        }
        let stale: Vec<_> = (unit.pipe.values(now))
            .filter(|(_, _, fresh)| !fresh)
            .map(|(signal, ..)| (signal.clone(), None, Quality::Stale, Cause::Held))
            .collect();
        if !stale.is_empty() {
            out.live.push(Live::Step { machine: unit.pipe.name().clone(), at: unit.state.judged, values: stale });
        }
    }
}
