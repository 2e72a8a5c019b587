//! How each machine stands: the evidence for its state, the state, and the reason in words.

use super::*;
use crate::agent::machine_state::{AlarmEvidence, InputEvidence, Judgement, RunningEvidence, machine_state};
use crate::pipeline::evidence::{InputTrouble, InputTroubleKind, Span, is_fresh};

/// Beyond what a model needs, a judgement may be so much older (ns) and still be in time.
const SLACK: i64 = 1_000_000_000;
/// Beyond twice its window, a model may warm up for so much longer (ns).
const WARM_UP_SLACK: i64 = 5_000_000_000;

impl Engine {
    /// What is known of a machine at `now`, by the gateway's clock.
    pub(super) fn evidence(&self, i: usize, now: Time) -> Evidence {
        self.evidence_with(i, now, self.input_trouble(i, now).as_ref())
    }

    fn evidence_with(&self, i: usize, now: Time, trouble: Option<&InputTrouble>) -> Evidence {
        let unit = &self.units[i];
        let running = match unit.pipe.runs(now) {
            Some(true) => RunningEvidence::On,
            Some(false) => RunningEvidence::Off,
            None => RunningEvidence::Unknown,
        };
        Evidence {
            alarm: alarm_evidence(&unit.state.anomaly),
            running,
            inputs: self.input_evidence(i, trouble),
            judgement: self.judgement(i, now),
        }
    }

    fn input_trouble(&self, i: usize, now: Time) -> Option<InputTrouble> {
        let unit = &self.units[i];
        unit.pipe.input_trouble(now, unit.state.first_heard)
    }

    fn input_evidence(&self, i: usize, trouble: Option<&InputTrouble>) -> InputEvidence {
        match trouble.map(|t| t.kind) {
            None if self.units[i].state.input.is_calling() => InputEvidence::Bad,
            None => InputEvidence::Good,
            Some(InputTroubleKind::Bad(_)) => InputEvidence::Bad,
            Some(InputTroubleKind::Refused(..)) => InputEvidence::Refused,
            Some(InputTroubleKind::Silent) if self.link_down(i).is_some() => InputEvidence::SourceDown,
            Some(InputTroubleKind::Silent) => InputEvidence::Silent,
        }
    }

    /// The first source of a machine that is not known to be up.
    fn link_down(&self, i: usize) -> Option<(&Name, Option<&Link>)> {
        let of = |source| (source, self.links.get(source));
        self.units[i].pipe.sources().map(of).find(|(_, link)| !link.is_some_and(|l| l.up))
    }

    fn judgement(&self, i: usize, now: Time) -> Judgement {
        let unit = &self.units[i];
        let in_time = is_fresh(unit.state.judged_at, now, self.judgement_limit(i));
        if self.blocks[unit.block].model.is_none() {
            return if in_time { Judgement::NoModel } else { Judgement::NotInTime };
        }
        match unit.state.reason {
            Reason::WarmingUp | Reason::MachineOff => {
                let layout = unit.pipe.layout();
                let window = (layout.steps + layout.stride) as i64 * layout.rate;
                let limit = 2 * window + layout.lateness + 2 * unit.pipe.usual_arrival() + WARM_UP_SLACK;
                let within = is_fresh(unit.state.warming_since, now, limit);
                if within { Judgement::WarmingUp } else { Judgement::Overdue }
            }
            Reason::InputBad => Judgement::InputBad,
            Reason::ModelUnavailable => Judgement::ModelUnavailable,
            _ if !in_time => Judgement::NotInTime,
            Reason::AnomalyDetected if !unit.state.anomaly.is_overruled_at(unit.state.judged) => Judgement::Unusual,
            Reason::AnomalyDetected | Reason::NoAnomalyDetected | Reason::Uncertain => Judgement::Normal,
        }
    }

    /// How old (ns) the last judgement may be: the lateness, and two strides or, where readings come in bursts,
    /// two of their usual distances.
    fn judgement_limit(&self, i: usize) -> i64 {
        let unit = &self.units[i];
        let layout = unit.pipe.layout();
        let stride = (layout.stride as i64).saturating_mul(layout.rate);
        let pace = stride.max(unit.pipe.usual_arrival());
        layout.lateness.saturating_add(pace.saturating_mul(2)).saturating_add(SLACK)
    }

    /// Notes what a verdict says of the machine, and when it began to run.
    pub(super) fn ran(&mut self, i: usize, at: Time, reason: Reason) {
        let wall = self.wall;
        let state = &mut self.units[i].state;
        match reason {
            Reason::MachineOff => state.on_since = None,
            _ if state.on_since.is_none() => state.on_since = Some(at),
            _ => {}
        }
        let begins = reason == Reason::WarmingUp && state.reason != Reason::WarmingUp;
        if begins || reason == Reason::MachineOff {
            state.warming_since = wall;
        }
        state.reason = reason;
        state.judged_now(at, wall);
    }

    /// A machine without a model has closed a step.
    pub(super) fn watched(&mut self, i: usize, at: Time, out: &mut Outcome) {
        let wall = self.wall;
        let unit = &mut self.units[i];
        unit.state.judged_now(at, wall);
        if unit.state.input.is_active() && self.input_trouble(i, wall).is_none() {
            self.watch_input(i, at, None, out);
        }
    }

    /// Shows the state that follows from what is known now; `at` is when what changed it happened.
    pub(super) fn refresh_light(&mut self, i: usize, at: Time, out: &mut Outcome) {
        let now = self.wall;
        let trouble = self.input_trouble(i, now);
        let evidence = self.evidence_with(i, now, trouble.as_ref());
        let shown = &self.units[i].state;
        let plain = evidence.alarm == AlarmEvidence::None && evidence.inputs == InputEvidence::Good;
        if plain && evidence == shown.evidence && !shown.why.is_empty() {
            // The same evidence has the same reason, but for texts of alarms and inputs.
            return;
        }
        let light = machine_state(&evidence);
        let why = self.why(i, &evidence, trouble.as_ref());
        let unit = &mut self.units[i];
        unit.state.evidence = evidence;
        if unit.state.light != light || unit.state.why != why {
            (unit.state.light, unit.state.why) = (light, why);
            out.live.push(unit.shown(at));
        }
    }

    /// The reason of a state in words. It does not change while the evidence stays the same.
    fn why(&self, i: usize, e: &Evidence, trouble: Option<&InputTrouble>) -> String {
        let unit = &self.units[i];
        let about_alarm = unit.state.anomaly.alarm().map_or(String::new(), |a| match e.alarm {
            AlarmEvidence::PutAside => format!("{}: {}", people::put_aside(a), a.message),
            AlarmEvidence::Returned => format!("over, not acknowledged: {}", a.message),
            _ => a.message.clone(),
        });
        let about_inputs = || self.about_inputs(i, e.inputs, trouble);
        match (e.alarm, e.running) {
            (AlarmEvidence::None, RunningEvidence::Off) => "off".into(),
            (AlarmEvidence::None, RunningEvidence::Unknown) => {
                let why = if e.inputs == InputEvidence::Good { "no data".into() } else { about_inputs() };
                format!("not known whether it runs: {why}")
            }
            (AlarmEvidence::None, RunningEvidence::On) if e.inputs != InputEvidence::Good => about_inputs(),
            (AlarmEvidence::None, RunningEvidence::On) => self.about_judgement(i, e.judgement),
            (_, RunningEvidence::Off) => about_alarm,
            _ if e.inputs == InputEvidence::Good => about_alarm,
            _ => format!("{about_alarm}; {}", about_inputs()),
        }
    }

    fn about_inputs(&self, i: usize, inputs: InputEvidence, trouble: Option<&InputTrouble>) -> String {
        let Some(trouble) = trouble else {
            let alarm = self.units[i].state.input.alarm();
            return alarm.map_or_else(|| "an input has trouble".into(), |a| a.message.clone());
        };
        match (inputs, self.link_down(i)) {
            (InputEvidence::SourceDown, Some((source, Some(link)))) => {
                format!("source {source} is down since {}: {}; {trouble}", link.at, link.detail)
            }
            (InputEvidence::SourceDown, Some((source, None))) => format!("source {source} is not up yet; {trouble}"),
            _ => trouble.to_string(),
        }
    }

    fn about_judgement(&self, i: usize, judgement: Judgement) -> String {
        let unit = &self.units[i];
        let second = |at: Time| Time(at.0 - at.0.rem_euclid(1_000_000_000));
        let clock = unit.pipe.wrong_clock().map_or(String::new(), |(signal, by)| {
            let way = if by < 0 { "behind" } else { "ahead of" };
            format!("; the clock of {signal} is {} {way} the gateway's", Span(by))
        });
        match judgement {
            Judgement::NoModel => "watched, no model is bound".into(),
            Judgement::WarmingUp => "warming up".into(),
            Judgement::Overdue => format!("warming up since {}, too long{clock}", second(unit.state.warming_since)),
            Judgement::NotInTime => format!("nothing judged since {}{clock}", second(unit.state.judged_at)),
            Judgement::Normal => "normal".into(),
            Judgement::Unusual => "unusual, not an alarm yet".into(),
            Judgement::InputBad => "a signal was not usable within the window".into(),
            Judgement::ModelUnavailable => "the model cannot be run".into(),
        }
    }

    /// Machines behind whose readings a clock is steadily wrong: machine, signal, and by how much (ns, below zero is
    /// behind).
    pub fn wrong_clocks(&self) -> impl Iterator<Item = (&Name, &Name, i64)> {
        self.units.iter().filter_map(|u| u.pipe.wrong_clock().map(|(signal, by)| (u.pipe.name(), signal, by)))
    }
}

impl UnitState {
    /// Moves all moments of the gateway's clock.
    pub(super) fn shift(&mut self, by: i64) {
        for at in [&mut self.heard, &mut self.first_heard, &mut self.judged_at, &mut self.warming_since] {
            *at = at.shifted(by);
        }
    }

    fn judged_now(&mut self, at: Time, wall: Time) {
        (self.judged, self.judged_at) = (at, wall);
    }
}

fn alarm_evidence(tracker: &Tracker) -> AlarmEvidence {
    match tracker.alarm() {
        Some(_) if tracker.is_calling() => AlarmEvidence::Active,
        Some(a) if a.state.is_active() => AlarmEvidence::PutAside,
        Some(a) if a.state.is_owed() => AlarmEvidence::Returned,
        _ => AlarmEvidence::None,
    }
}

impl std::fmt::Display for ClockChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        use crate::pipeline::clock::Step;
        let n = self.gap.readings;
        match self.step {
            Step::Offset(0) => {
                write!(f, "it is right again, by {} ({n} readings refused)", self.signal)
            }
            Step::Offset(by) => {
                let way = if by < 0 { "behind" } else { "ahead" };
                let span = Span(by);
                write!(f, "it is {span} {way}, by {}, and followed ({n} readings refused)", self.signal)
            }
            Step::StandsStill => {
                write!(f, "it stands still, by {}; arrival is used ({n} readings refused)", self.signal)
            }
        }
    }
}
