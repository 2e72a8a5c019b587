//! Second opinions: which windows are put before a larger model, what that costs, and what its answers do.
//! What was asked and not answered is part of the engine's state: after a crash it is asked again under the
//! same id and is charged once.

use super::*;
use crate::alarm::second::Word;
use crate::forward::budget::{Charge, Ledger as Purse, MICRO, Standing};
use crate::forward::inference::Policy;
use crate::types::{Answer, Ask, Asking, RecordId, SecondOpinion};

/// Questions without an answer, of which half may be about anything but alarms. The larger model is given
/// seconds for each: more would only wait.
pub const MAX_PENDING: usize = 64;
/// Their windows together, and half of it likewise; they are kept in each snapshot.
const MAX_PENDING_BYTES: usize = 4 << 20;

/// What was asked and what that came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Desk {
    /// The larger model; with another one everything begins anew.
    model: String,
    purse: Purse,
    pending: Vec<Pending>,
    answered: u64,
    agreed: u64,
}

/// A question without an answer, and what was known of its window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    ask: Ask,
    charge: Charge,
    /// What the gateway's own model said.
    anomaly: bool,
    strength: f64,
    p_value: Option<f64>,
    quality: Quality,
    top_channel: Option<Name>,
}

/// How asking stands, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// The larger model.
    pub model: Name,
    /// The part of the budget that is left, 0..1.
    pub remaining: f64,
    /// How it stands.
    pub standing: Standing,
    /// The whole budget, in units.
    pub limit: f64,
    /// What it is for.
    pub period: Duration,
    /// Questions without an answer.
    pub pending: usize,
    /// How often the two models agree, 0..1; `None` before the first answer.
    pub agreement: Option<f64>,
}

/// What came of putting a window before a larger model, or of wanting to: why it was asked, and how it ended.
pub type Escalation = (Asking, &'static str);

/// A verdict as far as it decides whether somebody is asked.
pub(super) struct Judged<'a> {
    pub window: &'a Window,
    pub verdict: &'a Verdict,
    pub id: RecordId,
    pub strength: f64,
    /// It raised an alarm that calls.
    pub raised: bool,
}

impl Engine {
    /// With a larger model to ask.
    pub fn with_second_opinions(mut self, policy: Option<Policy>) -> Engine {
        self.desk = Desk::of(policy.as_ref());
        self.policy = policy;
        self
    }

    /// What was asked and not answered: to be asked again after a start.
    pub fn unanswered(&self) -> Vec<Ask> {
        self.desk.pending.iter().map(|p| p.ask.clone()).collect()
    }

    /// How asking stands at this time.
    pub fn budget(&self, now: Time) -> Option<Budget> {
        let (policy, desk) = (self.policy.as_ref()?, &self.desk);
        let least = policy.prices.cost(0).max(1);
        Some(Budget {
            model: policy.model.clone(),
            remaining: desk.purse.remaining(&policy.budget, now),
            standing: desk.purse.standing(&policy.budget, now, least),
            limit: policy.budget.limit as f64 / MICRO,
            period: policy.budget.period,
            pending: desk.pending.len(),
            agreement: (desk.answered > 0).then(|| desk.agreed as f64 / desk.answered as f64),
        })
    }

    /// Whether a p-value asks for a second opinion.
    pub(super) fn is_uncertain(&self, p_value: Option<f64>) -> bool {
        let band = self.policy.as_ref().map(|p| p.escalate);
        band.zip(p_value).is_some_and(|([low, high], p)| low <= p && p <= high)
    }

    /// Puts a window before the larger model if it is to be. The local alarm has been raised by now.
    pub(super) fn escalate(&mut self, judged: &Judged<'_>, out: &mut Outcome) {
        let Some(policy) = &self.policy else { return };
        let (window, verdict) = (judged.window, judged.verdict);
        if verdict.score.is_none() {
            return;
        }
        let reason = if judged.raised {
            Asking::Alarm
        } else if self.is_uncertain(verdict.p_value) {
            Asking::Uncertain
        } else if is_drawn(judged.id, policy.audit_fraction) {
            Asking::Audit
        } else {
            return;
        };
        let cost = policy.prices.cost(window.data.len());
        let charged = self.desk.room(judged.id, reason, &window.data).and_then(|()| {
            let charged = self.desk.purse.charge(&policy.budget, self.wall, reason, cost);
            charged.map_err(|denied| denied.as_str())
        });
        let charge = match charged {
            Ok(charge) => charge,
            Err(why) => return out.tally.escalations.push((reason, why)),
        };
        let channels = window.quality.len().max(1);
        let ask = Ask {
            id: judged.id,
            machine: window.machine.clone(),
            at: window.end,
            reason,
            steps: window.data.len() / channels,
            channels,
            window: window.data.as_slice().into(),
        };
        out.asks.push(ask.clone());
        self.desk.pending.push(Pending {
            ask,
            charge,
            anomaly: verdict.reason == Reason::AnomalyDetected,
            strength: judged.strength,
            p_value: verdict.p_value,
            quality: verdict.quality,
            top_channel: verdict.contributions.first().map(|c| c.name.clone()),
        });
    }

    /// The larger model has answered, or asking came to nothing.
    pub(super) fn opinion(&mut self, answer: &Answer, out: &mut Outcome) {
        let Some(policy) = self.policy.clone() else { return };
        // One that is not waited for was answered before.
        let Some(place) = self.desk.pending.iter().position(|p| p.ask.id == answer.id) else { return };
        let asked = self.desk.pending.remove(place);
        let cost = if answer.calls == 0 {
            self.desk.purse.refund(&policy.budget, asked.charge);
            0
        } else {
            asked.charge.cost
        };
        out.tally.escalations.push((asked.ask.reason, answer.outcome.as_str()));
        out.tally.cost += cost;
        out.records.push(self.recorder.usage(&policy.model, &asked.ask, answer, cost as f64 / MICRO));
        let Some(score) = answer.score.filter(|s| s.is_finite()) else { return };
        let anomaly = score >= policy.threshold;
        self.desk.answered += 1;
        self.desk.agreed += u64::from(anomaly == asked.anomaly);
        let mut opinion = SecondOpinion {
            record: asked.ask.id,
            model: policy.model.clone(),
            version: answer.version.clone(),
            at: asked.ask.at,
            anomaly,
            score,
            threshold: policy.threshold,
        };
        let record = self.recorder.opinion(&asked.ask, &opinion, asked.quality, anomaly == asked.anomaly);
        opinion.record = record.id;
        let live = Arc::new(opinion.clone());
        out.live.push(Live::Opinion(asked.ask.machine.clone(), live, record.data.as_str().into()));
        out.records.push(record);
        self.weigh(&asked, &opinion, &policy, out);
    }

    /// What an opinion does to the machine's alarm.
    fn weigh(&mut self, asked: &Pending, opinion: &SecondOpinion, policy: &Policy, out: &mut Outcome) {
        let Some(&i) = self.places.get(&asked.ask.machine) else { return };
        let rule = self.rule(i, Condition::Anomaly);
        // The machine has gone on meanwhile, and alarms with it.
        let at = self.units[i].state.judged.max(asked.ask.at);
        let message =
            format!("{} finds an anomaly where it was uncertain here{}", opinion.model, rarity(asked.p_value));
        let look = Observation { at, strength: None, top_channel: asked.top_channel.clone(), message };
        let word = Word { opinion, strength: asked.strength, look };
        let Some(mut alarm) = self.units[i].state.anomaly.hear(&rule, policy.may, &word) else { return };
        if alarm.care.change == Change::Raised {
            let first = self.is_first_out(i, Condition::Anomaly);
            alarm = self.units[i].state.anomaly.annotate(|care| care.first_out = first).unwrap_or(alarm);
        }
        self.announce(i, alarm, out);
        self.refresh_light(i, at, out);
    }
}

impl Desk {
    /// A desk for this policy on which nothing lies.
    fn of(policy: Option<&Policy>) -> Desk {
        Desk { model: policy.map(|p| p.model.to_string()).unwrap_or_default(), ..Desk::default() }
    }

    /// As it was, if it is still the same model that is asked.
    pub(super) fn restored(self, policy: Option<&Policy>) -> Desk {
        let fresh = Desk::of(policy);
        if self.model == fresh.model { self } else { fresh }
    }

    /// Whether one more can be asked, and why not.
    fn room(&self, id: RecordId, reason: Asking, window: &[f32]) -> Result<(), &'static str> {
        if window.iter().any(|v| !v.is_finite()) {
            return Err("not_finite");
        }
        let size = size_of_val(window);
        if size > MAX_PENDING_BYTES / 2 {
            return Err("too_large");
        }
        let used = |all: bool| {
            let mine = self.pending.iter().filter(|p| all || p.ask.reason != Asking::Alarm);
            mine.fold((1, size), |(n, bytes), p| (n + 1, bytes + size_of_val(&*p.ask.window)))
        };
        let fits =
            |(n, bytes): (usize, usize), part: usize| n <= MAX_PENDING / part && bytes <= MAX_PENDING_BYTES / part;
        // All of it for alarms, half for the rest: alarms find room.
        let full = !fits(used(true), 1) || (reason != Asking::Alarm && !fits(used(false), 2));
        let twice = self.pending.iter().any(|p| p.ask.id == id);
        if full || twice { Err("queue") } else { Ok(()) }
    }
}

/// Draws by the record's id, so that a replay draws the same.
fn is_drawn(id: RecordId, fraction: f64) -> bool {
    let mut lot = [0; 8];
    lot.copy_from_slice(&id.0[..8]);
    // Ids are hashes: their first bits are as good as any dice.
    (u64::from_le_bytes(lot) as f64) < fraction * 2f64.powi(64)
}

fn rarity(p_value: Option<f64>) -> String {
    p_value.map_or(String::new(), |p| format!(" (p {p:.4})"))
}

#[cfg(test)]
mod tests;
