//! What a larger model's word does to an alarm: confirm it, doubt it, end it, or raise one where the
//! gateway's own model was uncertain; as far as the config lets it. Pure, like the rest of alarms.

use std::time::Duration;

use super::{Observation, Rule, Tracker, cleared};
use crate::types::{Alarm, CRITICAL_SEVERITY, Change, May, SecondOpinion, Time};

/// For so long the gateway does not raise again what a larger model has ended. The larger model may be
/// wrong: after this the local word counts again.
const OVERRULED_FOR: Duration = Duration::from_secs(600);
/// It does so before, where the condition is stronger by this than it was when it was overruled.
const WORSE: f64 = 1.5;

/// A larger model's word, and on what.
#[derive(Clone, Debug)]
pub struct Word<'a> {
    /// What it says.
    pub opinion: &'a SecondOpinion,
    /// How near the limit the gateway's own model found the window; 1 is at the limit.
    pub strength: f64,
    /// How an alarm that is raised by it is called, when, and by which channel.
    pub look: Observation,
}

impl Tracker {
    /// Takes a word, which is kept beside the alarm that it is about; the alarm as it stands afterwards if
    /// that is a transition.
    pub fn hear(&mut self, rule: &Rule, may: May, word: &Word<'_>) -> Option<Alarm> {
        let opinion = word.opinion;
        let alarm = self.alarm.as_ref().filter(|a| a.state.is_active());
        let Some(alarm) = alarm else {
            return (opinion.anomaly && may.raise).then(|| self.raise(rule, word))?;
        };
        let last = alarm.care.opinion.as_ref();
        // Of an earlier alarm, or overtaken by a later word.
        if alarm.since > opinion.at || last.is_some_and(|o| o.at > opinion.at) {
            return None;
        }
        let news = last.is_none_or(|o| o.anomaly != opinion.anomaly);
        let state = alarm.state;
        self.annotate(|care| care.opinion = Some(opinion.clone()));
        if !opinion.anomaly && may.clear && rule.severity < CRITICAL_SEVERITY {
            return self.overrule(rule, word);
        }
        let change = if opinion.anomaly { Change::Confirmed } else { Change::Doubted };
        (news && may.confirm).then(|| self.change(state, change, word.look.at))?
    }

    fn raise(&mut self, rule: &Rule, word: &Word<'_>) -> Option<Alarm> {
        if rule.severity == 0 || self.alarm.as_ref().is_some_and(|a| a.state.is_latched()) {
            return None;
        }
        (self.pending, self.receding) = (None, None);
        self.begin(rule, &word.look);
        self.annotate(|care| care.opinion = Some(word.opinion.clone()))
    }

    fn overrule(&mut self, rule: &Rule, word: &Word<'_>) -> Option<Alarm> {
        let at: Time = word.look.at;
        self.overruled = Some((at.plus(OVERRULED_FOR), word.strength));
        self.receding = None;
        let next = cleared(self.alarm.as_ref()?.state, rule.latch);
        self.change(next, Change::Overruled, at)
    }

    /// Whether a larger model's word counts at this time rather than the local one.
    pub fn is_overruled_at(&self, at: Time) -> bool {
        self.overruled.is_some_and(|(until, _)| at < until)
    }

    /// Whether the local word does not count for now.
    pub(super) fn is_overruled(&mut self, at: Time, strength: f64) -> bool {
        let still = self.overruled.is_some_and(|(until, then)| at < until && strength < WORSE * then.max(1.0));
        if !still {
            self.overruled = None;
        }
        still
    }
}
