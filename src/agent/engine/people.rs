//! The engine's dealings with people: what they do to alarms, how alarms are announced to them, why an
//! alarm was raised, and the audit log of it all.

use super::*;
use crate::source::modbus::light::Wrote;
use crate::types::{Action, CRITICAL_SEVERITY, Ranked, Target};

/// Channels that an explanation names.
const MAX_RANKED: usize = 6;
/// Channels whose advice is given, loudest first.
const MAX_ADVISED: usize = 2;

impl Engine {
    /// Whether this can be done now: `Err(None)` when there is no such alarm or machine, else why not.
    pub fn may_act(&self, target: &Target, act: &Act) -> Result<(), Option<String>> {
        let places = self.targets(target);
        if places.is_empty() {
            return Err(None);
        }
        let tries = places.into_iter().map(|(i, condition)| {
            let mut tracker = self.units[i].tracker(condition).clone();
            tracker.act(&self.rule(i, condition), act).map(|_| ())
        });
        tries.reduce(|a, b| if a.is_ok() { a } else { b }).unwrap_or(Ok(())).map_err(Some)
    }

    /// Whether something that was put aside comes back by now, or a flood of alarms ends.
    pub fn wants_clock(&self, now: Time) -> bool {
        let due = |u: &Unit| CONDITIONS.iter().any(|c| u.tracker(*c).shelved_until().is_some_and(|t| t <= now));
        self.flood.ends().is_some_and(|t| t <= now) || self.units.iter().any(due)
    }

    /// Whether it is news that this runs.
    pub fn is_news(&self, running: &Running) -> bool {
        let old = &self.running;
        (&old.version, &old.config, &old.models) != (&running.version, &running.config, &running.models)
    }

    /// The newest entries of the audit log, oldest first: those that may not have reached its file.
    pub fn audit_tail(&self) -> Vec<String> {
        self.ledger.tail()
    }

    /// Alarms that are shelved, suppressed or out of service.
    pub fn put_aside(&self) -> usize {
        let alarms = self.units.iter().flat_map(|u| CONDITIONS.map(|c| u.tracker(c).alarm()));
        alarms.flatten().filter(|a| a.care.is_quiet()).count()
    }

    /// Other blocks from now on. Machines go on as after a restart with the new config.
    pub fn reconfigure(&mut self, blocks: Vec<Block>) -> Result<(), String> {
        let kept = self.snapshot();
        let old = std::mem::replace(&mut self.blocks, blocks);
        let done = self.restore(&kept);
        if done.is_err() {
            self.blocks = old;
        }
        done
    }

    fn targets(&self, target: &Target) -> Vec<(usize, Condition)> {
        match target {
            Target::Machine(name) => {
                self.places.get(name).map(|i| CONDITIONS.map(|c| (*i, c)).into()).unwrap_or_default()
            }
            Target::Alarm(id) => {
                let all = (0..self.units.len()).flat_map(|i| CONDITIONS.map(|c| (i, c)));
                let is = |(i, c): &(usize, Condition)| self.units[*i].tracker(*c).alarm().is_some_and(|a| a.id == *id);
                all.filter(is).collect()
            }
        }
    }

    pub(super) fn act(&mut self, target: &Target, act: &Act, out: &mut Outcome) {
        for (i, condition) in self.targets(target) {
            let rule = self.rule(i, condition);
            let Ok(alarm) = self.units[i].tracker_mut(condition).act(&rule, act) else { continue };
            let mut detail = format!("{} {}", alarm.condition.as_str(), alarm.id);
            if let Action::Shelve(seconds) = act.action {
                detail.push_str(&format!(" for {seconds} s"));
            }
            detail.extend(act.comment.iter().map(|c| format!(": {c}")));
            let machine = alarm.machine.clone();
            self.announce(i, alarm, out);
            self.note_audit(act.at, &act.who, act.action.as_str(), &machine, &detail, out);
            self.refresh_light(i, act.at, out);
        }
    }

    pub(super) fn clock(&mut self, now: Time, out: &mut Outcome) {
        self.hear_clock(now);
        for i in 0..self.units.len() {
            for condition in CONDITIONS {
                let Some(alarm) = self.units[i].tracker_mut(condition).expire(now) else { continue };
                let at = alarm.at;
                self.announce(i, alarm, out);
                self.refresh_light(i, at, out);
            }
        }
        if self.flood.clock(now) {
            out.live.push(Live::Flood(None));
        }
    }

    /// Something is news of what runs: the audit log says what.
    pub(super) fn runs(&mut self, new: &Running, out: &mut Outcome) {
        let old = std::mem::replace(&mut self.running, new.clone());
        let mut note = |action: &str, subject: &str, from: &str, to: &str| {
            if from != to {
                let or = |t: &str| if t.is_empty() { "none".to_owned() } else { t.to_owned() };
                let detail = format!("{} to {}", or(from), or(to));
                self.note_audit(new.at, &new.who, action, &subject.into(), &detail, out);
            }
        };
        note("version", "andon", &old.version, &new.version);
        note("config", "config", &old.config, &new.config);
        let names: std::collections::BTreeSet<&String> = old.models.keys().chain(new.models.keys()).collect();
        for name in names {
            let of = |r: &Running| r.models.get(name).cloned().unwrap_or_default();
            note("model", name, &of(&old), &of(new));
        }
    }

    /// Something was written to a device.
    pub(super) fn wrote(&mut self, w: &Wrote, out: &mut Outcome) {
        let end = w.failure.as_ref().map_or_else(|| "verified".to_owned(), |why| format!("failed: {why}"));
        let detail = format!("{} {} {}; {end}", w.address, w.value, w.reason);
        self.note_audit(w.at, "alarms", "write", &w.device, &detail, out);
    }

    pub(super) fn note_audit(
        &mut self,
        at: Time,
        who: &str,
        action: &str,
        subject: &Name,
        detail: &str,
        out: &mut Outcome,
    ) {
        let entry = Entry { at, who, action, subject, detail };
        let (number, data) = self.ledger.write(&entry);
        out.records.push(self.recorder.audit(subject, at, number, data));
    }

    /// Counts an alarm that calls for somebody among those of the last minutes, and tells of it.
    pub(super) fn announce(&mut self, i: usize, mut alarm: Alarm, out: &mut Outcome) {
        if self.flood.clock(self.now) {
            out.live.push(Live::Flood(None));
        }
        let calls =
            matches!(alarm.care.change, Change::Raised | Change::Repeated | Change::Returned) && !alarm.care.is_quiet();
        if calls {
            let (grouped, begins) = self.flood.raised(&alarm, self.now);
            let grouped = grouped || (alarm.care.chattering && alarm.severity < CRITICAL_SEVERITY);
            alarm.care.grouped = grouped;
            self.units[i].tracker_mut(alarm.condition).annotate(|care| care.grouped = grouped);
            if begins || self.flood.flood().is_some() {
                out.live.push(Live::Flood(self.flood.flood().cloned()));
            }
        }
        self.emit_alarm(alarm, out);
    }

    /// Whether no other alarm of the machine's group stands.
    pub(super) fn is_first_out(&self, i: usize, condition: Condition) -> bool {
        let group = self.blocks[self.units[i].block].alarm.group.as_deref();
        let same =
            |j: usize| j == i || (group.is_some() && self.blocks[self.units[j].block].alarm.group.as_deref() == group);
        let mut others = (0..self.units.len()).filter(|j| same(*j)).flat_map(|j| CONDITIONS.map(|c| (j, c)));
        !others.any(|(j, c)| (j, c) != (i, condition) && self.units[j].tracker(c).is_active())
    }

    /// The config's own reasons to suppress alarms: a condition on signals, and the time after the start.
    pub(super) fn watch_rule(&mut self, i: usize, step: &Step, out: &mut Outcome) {
        let unit = &self.units[i];
        let block = &self.blocks[unit.block];
        let start_up = block.alarm.start_up;
        if block.suppress.is_none() && start_up.is_zero() {
            return;
        }
        let value = |signal: &str| {
            let of = step.values.iter().find(|(name, ..)| &**name == signal);
            of.and_then(|(_, value, quality, _)| value.filter(|_| *quality < Quality::Stale))
        };
        let ruled = block.suppress.as_ref().is_some_and(|c| c.holds(&value) == Some(true));
        let on = ruled || unit.state.on_since.is_some_and(|t| step.at.since(t) < start_up);
        for condition in CONDITIONS {
            let rule = self.rule(i, condition);
            if let Some(alarm) = self.units[i].tracker_mut(condition).suppress(&rule, on, step.at) {
                self.announce(i, alarm, out);
            }
        }
    }
}

/// How an alarm that stands but does not call is kept from it.
pub(super) fn put_aside(alarm: &Alarm) -> String {
    match (&alarm.care.out_of_service, &alarm.care.shelf) {
        (Some(who), _) => format!("out of service ({who})"),
        (None, Some(shelf)) => format!("shelved until {} ({})", shelf.until, shelf.by),
        (None, None) => "suppressed".into(),
    }
}

/// Why an alarm was raised: the loudest channels with their course beside what is normal, and what
/// the bundle advises to check.
pub(super) fn explain(verdict: &Verdict, window: &Window, model: &Model, signals: &[Name]) -> Explanation {
    let manifest = model.manifest();
    let n = manifest.channels.len().max(1);
    let ranked = |name: &Name, share: f64, place: usize| {
        let channel = &manifest.channels[place];
        let course: Vec<f32> = window.data.iter().skip(place).step_by(n).copied().collect();
        let every = course.len().div_ceil(Ranked::TRACE).max(1);
        // From the end, so that the last value is always among them.
        let mut trace: Vec<f32> = course.iter().rev().step_by(every).copied().collect();
        trace.reverse();
        Ranked {
            name: name.clone(),
            share,
            unit: channel.unit.clone(),
            value: course.last().map(|v| f64::from(*v)).filter(|v| v.is_finite()),
            normal: channel.normal(),
            trace,
        }
    };
    let place = |name: &Name| signals.iter().position(|s| s == name).filter(|p| *p < manifest.channels.len());
    let loudest = verdict.contributions.iter().filter_map(|c| Some((c, place(&c.name)?)));
    let channels: Vec<Ranked> = loudest.clone().take(MAX_RANKED).map(|(c, p)| ranked(&c.name, c.value, p)).collect();
    let spoken = loudest.take(MAX_ADVISED).map(|(_, p)| manifest.channels[p].name.as_str());
    let topics: Vec<&str> = verdict.class.as_deref().into_iter().chain(spoken).collect();
    Explanation {
        model: model.name().to_string(),
        version: manifest.version.clone(),
        score: verdict.score,
        p_value: verdict.p_value,
        channels,
        advice: manifest.advice_for(&topics),
    }
}
