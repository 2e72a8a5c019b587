//! From verdicts, alarms and gaps to records: deterministic ids, and `data` as the contract has it.

use std::sync::Arc;

use serde::Serialize;

use crate::model::drift::{self, Outcomes, Report};
use crate::pipeline::{ClockChange, Gap, clock};
use crate::types::{
    Alarm, Answer, Ask, Change, Contribution, Kind, ModelStep, Name, Quality, Ranked, Reason, Record, RecordId,
    SecondOpinion, Time, Verdict, priority,
};

/// A record's data is seldom longer.
const USUAL_BYTES: usize = 768;

/// Makes records in the name of one agent.
#[derive(Clone, Debug)]
pub struct Recorder {
    agent: Arc<str>,
}

#[derive(Serialize)]
struct VerdictData<'a> {
    timestamp: String,
    machine: &'a str,
    model: &'a str,
    model_version: &'a str,
    prediction: u8,
    prediction_reason: &'a str,
    anomaly_score: Option<f64>,
    p_value: Option<f64>,
    threshold: f64,
    health: Option<f64>,
    rul: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rul_low: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rul_high: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<&'a str>,
    quality: &'a str,
    top_channel: Option<&'a str>,
    diagnostics: Vec<Contribution>,
}

#[derive(Serialize)]
struct AlarmData<'a> {
    timestamp: String,
    machine: &'a str,
    alarm: String,
    condition: &'a str,
    state: &'a str,
    active: bool,
    acknowledged: bool,
    severity: u16,
    since: String,
    message: &'a str,
    top_channel: Option<&'a str>,
    acknowledged_by: Option<&'a str>,
    transition: &'a str,
    priority: &'a str,
    /// The state an operator's list shows, where it is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    shown_state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shelved_until: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shelved_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_service_by: Option<&'a str>,
    suppressed: bool,
    first_out: bool,
    chattering: bool,
    repeats: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<ExplanationData<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    second_opinion: Option<AlarmOpinion<'a>>,
    /// The record that brought the transition about, where it was a second opinion.
    #[serde(skip_serializing_if = "Option::is_none")]
    causationid: Option<String>,
}

/// What a larger model said of an alarm.
#[derive(Serialize)]
struct AlarmOpinion<'a> {
    model: &'a str,
    anomaly: bool,
    score: f64,
    threshold: f64,
}

/// A larger model's verdict: the members of every verdict, and whose it is.
#[derive(Serialize)]
struct OpinionData<'a> {
    timestamp: String,
    machine: &'a str,
    model: &'a str,
    model_version: &'a str,
    prediction: u8,
    prediction_reason: &'a str,
    anomaly_score: f64,
    p_value: Option<f64>,
    threshold: f64,
    health: Option<f64>,
    rul: Option<f64>,
    quality: &'a str,
    top_channel: Option<&'a str>,
    diagnostics: [Contribution; 0],
    verdict_source: &'a str,
    asked_because: &'a str,
    agrees: bool,
    causationid: String,
}

#[derive(Serialize)]
struct UsageData<'a> {
    timestamp: String,
    machine: &'a str,
    model: &'a str,
    reason: &'a str,
    outcome: &'a str,
    calls: u32,
    elements: usize,
    bytes_out: u64,
    cost_units: f64,
    latency_ms: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    detail: &'a str,
    causationid: String,
}

/// With the transition that raises an alarm: why, as it was then.
#[derive(Serialize)]
struct ExplanationData<'a> {
    model: &'a str,
    model_version: &'a str,
    anomaly_score: Option<f64>,
    p_value: Option<f64>,
    channels: Vec<ChannelData<'a>>,
    advice: &'a std::collections::BTreeMap<String, Vec<String>>,
}

#[derive(Serialize)]
struct ChannelData<'a> {
    name: &'a str,
    share: f64,
    unit: &'a str,
    value: Option<f64>,
    normal: Option<[f64; 2]>,
}

fn channel(r: &Ranked) -> ChannelData<'_> {
    let share = (r.share * 1e9).round() / 1e9;
    let normal = r.normal.map(|band| band.map(tidy));
    ChannelData { name: &r.name, share, unit: &r.unit, value: r.value.map(tidy), normal }
}

#[derive(Serialize)]
struct GapData<'a> {
    timestamp: String,
    machine: &'a str,
    reason: &'a str,
    from: String,
    to: String,
    readings: u64,
}

#[derive(Serialize)]
struct ClockData<'a> {
    timestamp: String,
    machine: &'a str,
    reason: &'a str,
    from: String,
    to: String,
    readings: u64,
    signal: &'a str,
    stands_still: bool,
    /// Device time minus the gateway's; below zero the device is behind.
    offset_seconds: Option<f64>,
}

#[derive(Serialize)]
struct ModelData<'a> {
    timestamp: String,
    model: &'a str,
    model_version: &'a str,
    model_digest: &'a str,
    sequence: u64,
    event: &'a str,
    stage: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    figures: std::collections::BTreeMap<&'a str, f64>,
}

#[derive(Serialize)]
struct DriftData<'a> {
    timestamp: String,
    model: &'a str,
    model_version: &'a str,
    event: &'a str,
    from: String,
    to: String,
    rows: u64,
    warning: Option<String>,
    channels: Vec<DriftChannel>,
    p_value_ks: Option<f64>,
    p_value_low_excess: Option<f64>,
    windows: Outcomes,
    bad_ratio: f64,
    false_alarms_promised_per_machine_day: Option<f64>,
    alarms_per_machine_day: Option<f64>,
    machine_days: Option<f64>,
}

#[derive(Serialize)]
struct DriftChannel {
    name: Name,
    psi: Option<f64>,
    ks: Option<f64>,
    windows_blocked: u64,
}

impl Recorder {
    /// For the agent of that site and id.
    pub fn new(site: &str, id: &str) -> Recorder {
        Recorder { agent: format!("{site}/{id}").into() }
    }

    /// A verdict's record: its id depends on agent, machine, model digest and window end alone.
    pub fn verdict(&self, v: &Verdict) -> Record {
        let data = VerdictData {
            timestamp: v.at.to_string(),
            machine: &v.machine,
            model: &v.model,
            model_version: &v.model_version,
            prediction: u8::from(v.reason == Reason::AnomalyDetected),
            prediction_reason: v.reason.as_str(),
            anomaly_score: v.score.map(tidy),
            p_value: v.p_value.map(tidy),
            threshold: tidy(v.threshold),
            health: v.health.map(tidy),
            rul: v.rul.map(|r| tidy(r.median)),
            rul_low: v.rul.map(|r| tidy(r.low)),
            rul_high: v.rul.map(|r| tidy(r.high)),
            class: v.class.as_deref(),
            quality: v.quality.as_str(),
            top_channel: v.contributions.first().map(|c| &*c.name),
            diagnostics: v.contributions.iter().map(share).collect(),
        };
        self.record(Kind::Verdict, &v.machine, v.at, v.model_digest.as_bytes(), &data)
    }

    /// The record of an alarm's transition.
    pub fn alarm(&self, a: &Alarm) -> Record {
        let by_opinion = a.care.change.is_of_opinion() || a.care.change == Change::Raised;
        let cause = a.care.opinion.as_ref().filter(|_| by_opinion);
        let data = AlarmData {
            timestamp: a.at.to_string(),
            machine: &a.machine,
            alarm: a.id.to_string(),
            condition: a.condition.as_str(),
            state: a.state.as_str(),
            active: a.state.is_active(),
            acknowledged: a.acknowledged_by.is_some(),
            severity: a.severity,
            since: a.since.to_string(),
            message: &a.message,
            top_channel: a.top_channel.as_deref(),
            acknowledged_by: a.acknowledged_by.as_deref(),
            transition: a.care.change.as_str(),
            priority: priority(a.severity),
            shown_state: Some(a.shown_state()).filter(|s| *s != a.state.as_str()),
            by: a.care.by.as_deref(),
            comment: a.care.comment.as_deref(),
            shelved_until: a.care.shelf.as_ref().map(|s| s.until.to_string()),
            shelved_by: a.care.shelf.as_ref().map(|s| s.by.as_str()),
            out_of_service_by: a.care.out_of_service.as_deref(),
            suppressed: a.care.suppressed,
            first_out: a.care.first_out,
            chattering: a.care.chattering,
            repeats: a.care.repeats,
            explanation: a.care.explanation.as_deref().filter(|_| a.care.change == Change::Raised).map(|e| {
                ExplanationData {
                    model: &e.model,
                    model_version: &e.version,
                    anomaly_score: e.score.map(tidy),
                    p_value: e.p_value.map(tidy),
                    channels: e.channels.iter().map(channel).collect(),
                    advice: &e.advice,
                }
            }),
            second_opinion: a.care.opinion.as_ref().map(|o| AlarmOpinion {
                model: &o.model,
                anomaly: o.anomaly,
                score: tidy(o.score),
                threshold: tidy(o.threshold),
            }),
            causationid: cause.map(|o| o.record.to_string()),
        };
        let what = [&a.id.0[..], a.care.change.as_str().as_bytes(), &a.care.changes.to_le_bytes()].concat();
        self.record(Kind::Alarm, &a.machine, a.at, &what, &data)
    }

    /// The record of missing data.
    pub fn gap(&self, machine: &Name, gap: &Gap) -> Record {
        let data = GapData {
            timestamp: gap.to.to_string(),
            machine,
            reason: gap.reason.as_str(),
            from: gap.from.to_string(),
            to: gap.to.to_string(),
            readings: gap.readings,
        };
        self.record(Kind::Gap, machine, gap.to, gap.reason.as_str().as_bytes(), &data)
    }

    /// The record of a device's clock that has stepped, or stands still.
    pub fn clock_change(&self, machine: &Name, change: &ClockChange) -> Record {
        let gap = &change.gap;
        let data = ClockData {
            timestamp: gap.to.to_string(),
            machine,
            reason: gap.reason.as_str(),
            from: gap.from.to_string(),
            to: gap.to.to_string(),
            readings: gap.readings,
            signal: &change.signal,
            stands_still: change.step == clock::Step::StandsStill,
            offset_seconds: match change.step {
                clock::Step::Offset(by) => Some(tidy(by as f64 / 1e9)),
                clock::Step::StandsStill => None,
            },
        };
        self.record(Kind::Gap, machine, gap.to, gap.reason.as_str().as_bytes(), &data)
    }

    /// The record of a larger model's verdict on a window; `opinion.record` is not looked at.
    pub fn opinion(&self, ask: &Ask, opinion: &SecondOpinion, quality: Quality, agrees: bool) -> Record {
        let reason = if opinion.anomaly { Reason::AnomalyDetected } else { Reason::NoAnomalyDetected };
        let data = OpinionData {
            timestamp: ask.at.to_string(),
            machine: &ask.machine,
            model: &opinion.model,
            model_version: opinion.version.as_deref().unwrap_or(""),
            prediction: u8::from(opinion.anomaly),
            prediction_reason: reason.as_str(),
            anomaly_score: tidy(opinion.score),
            p_value: None,
            threshold: tidy(opinion.threshold),
            health: None,
            rul: None,
            quality: quality.as_str(),
            top_channel: None,
            diagnostics: [],
            verdict_source: "second_opinion",
            asked_because: ask.reason.as_str(),
            agrees,
            causationid: ask.id.to_string(),
        };
        self.record(Kind::Opinion, &ask.machine, ask.at, &ask.id.0, &data)
    }

    /// The record of what a question to a larger model came to. One for each question, whenever it ended.
    pub fn usage(&self, model: &Name, ask: &Ask, answer: &Answer, cost_units: f64) -> Record {
        let data = UsageData {
            timestamp: answer.at.to_string(),
            machine: &ask.machine,
            model,
            reason: ask.reason.as_str(),
            outcome: answer.outcome.as_str(),
            calls: answer.calls,
            elements: ask.window.len(),
            bytes_out: answer.bytes_out,
            cost_units,
            latency_ms: answer.took_ms,
            detail: &answer.detail,
            causationid: ask.id.to_string(),
        };
        let id = RecordId::of(&[self.agent.as_bytes(), Kind::Usage.as_str().as_bytes(), &ask.id.0]);
        // Our own structs of strings and finite numbers always serialise.
        let data = serde_json::to_string(&data).unwrap_or_else(|_| "{}".into());
        Record { id, kind: Kind::Usage, subject: model.clone(), at: answer.at, data }
    }

    /// The record of a step that a bundle has taken.
    pub fn model(&self, step: &ModelStep) -> Record {
        let (release, stage) = (&step.release, step.stage.as_str());
        let data = ModelData {
            timestamp: step.at.to_string(),
            model: &release.model,
            model_version: &release.version,
            model_digest: &release.digest,
            sequence: release.sequence,
            event: "rollout",
            stage,
            reason: &step.reason,
            figures: step.figures.iter().map(|(k, v)| (k.as_str(), tidy(*v))).collect(),
        };
        let what = [stage.as_bytes(), &release.sequence.to_le_bytes(), release.digest.as_bytes()].concat();
        self.record(Kind::Model, &release.model, step.at, &what, &data)
    }

    /// The record of a report on a model in service.
    pub fn drift(&self, model: &Name, version: &str, report: &Report) -> Record {
        let channel = |c: &drift::Channel| DriftChannel {
            name: c.name.clone(),
            psi: c.psi.map(tidy),
            ks: c.ks.map(tidy),
            windows_blocked: c.blamed,
        };
        let data = DriftData {
            timestamp: report.to.to_string(),
            model,
            model_version: version,
            event: "drift",
            from: report.from.to_string(),
            to: report.to.to_string(),
            rows: report.rows,
            warning: report.warning(),
            channels: report.channels.iter().map(channel).collect(),
            p_value_ks: report.p_ks.map(tidy),
            p_value_low_excess: report.p_low_excess.map(tidy),
            windows: report.outcomes,
            bad_ratio: tidy(report.outcomes.bad_ratio()),
            false_alarms_promised_per_machine_day: report.alarms.map(|(promised, ..)| tidy(promised)),
            alarms_per_machine_day: report.alarms.map(|(_, measured, _)| tidy(measured)),
            machine_days: report.alarms.map(|(.., days)| tidy(days)),
        };
        self.record(Kind::Model, model, report.to, b"drift", &data)
    }

    /// An entry of the audit log, whose `data` is made already; `number` is its place in the chain.
    pub fn audit(&self, subject: &Name, at: Time, number: u64, data: String) -> Record {
        let parts: [&[u8]; 3] = [self.agent.as_bytes(), Kind::Audit.as_str().as_bytes(), &number.to_le_bytes()];
        Record { id: RecordId::of(&parts), kind: Kind::Audit, subject: subject.clone(), at, data }
    }

    fn record(&self, kind: Kind, subject: &Name, at: Time, what: &[u8], data: &impl Serialize) -> Record {
        let parts = [self.agent.as_bytes(), subject.as_bytes(), what, kind.as_str().as_bytes(), &at.0.to_le_bytes()];
        // One piece of memory that fits most, rather than one that doubles a few times.
        let mut json = Vec::with_capacity(USUAL_BYTES);
        // Our own structs of strings and finite numbers always serialise, and to UTF-8.
        let written = serde_json::to_writer(&mut json, data).is_ok();
        let mut data = String::from_utf8(json).ok().filter(|_| written).unwrap_or_else(|| "{}".into());
        data.shrink_to_fit();
        Record { id: RecordId::of(&parts), kind, subject: subject.clone(), at, data }
    }
}

fn share(c: &Contribution) -> Contribution {
    Contribution { name: c.name.clone(), value: (c.value * 1e9).round() / 1e9 }
}

/// Seven significant digits: what a single-precision model has to say. Always finite.
fn tidy(x: f64) -> f64 {
    let finite = if x.is_nan() { 0.0 } else { x.clamp(f64::MIN, f64::MAX) };
    if let Some(near) = rounded(finite) {
        return near;
    }
    format!("{finite:.6e}").parse().ok().filter(|t: &f64| t.is_finite()).unwrap_or(finite)
}

/// The same without a text in between, for numbers of usual size. The powers of ten are exact, so the one
/// division gives the float nearest to the seven digits.
fn rounded(x: f64) -> Option<f64> {
    if x == 0.0 {
        return Some(0.0);
    }
    let mut scale = 1.0;
    // At most 22 times: beyond, powers of ten are no longer exact.
    while x.abs() * scale < 1e6 && scale < 1e22 {
        scale *= 10.0;
    }
    let digits = (x * scale).round();
    (1e6..1e7).contains(&digits.abs()).then(|| digits / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whichever way it is done, seven digits are kept and shown.
        #[test]
        fn tidy_numbers_have_seven_digits(digits in -9_999_999i64..=9_999_999, power in -20i32..10, more in -0.49..0.49) {
            let x = (digits as f64 + more) * 10f64.powi(power);
            let shown = format!("{:e}", tidy(x));
            let mantissa = shown.split('e').next().unwrap_or_default().trim_start_matches('-');
            prop_assert!(mantissa.len() <= 8, "{x} is {shown}");
            prop_assert!((tidy(x) - x).abs() <= x.abs() * 0.5000001e-6, "{x} is {shown}");
        }
    }

    /// The limits on names and channels keep the largest verdict below what records may hold.
    #[test]
    fn the_largest_verdict_is_within_the_limit() {
        use crate::model::manifest_limits::{MAX_CHANNELS, MAX_NAME_BYTES};
        let name = || Name::from("\"".repeat(MAX_NAME_BYTES));
        let contribution = |_| Contribution { name: name(), value: -0.123_456_789 };
        let verdict = Verdict {
            machine: name(),
            at: Time(i64::MAX),
            model: name(),
            model_version: name(),
            model_digest: "0".repeat(64).into(),
            reason: Reason::NoAnomalyDetected,
            score: Some(-1.234_567e-100),
            p_value: Some(1.234_567e-100),
            threshold: 1.234_567e-100,
            health: Some(1.234_567e-100),
            rul: None,
            class: Some(name()),
            quality: Quality::Uncertain,
            contributions: (0..MAX_CHANNELS).map(contribution).collect(),
        };
        let record = Recorder::new("site", "agent").verdict(&verdict);
        assert!(record.data.len() < crate::store::MAX_RECORD_BYTES, "{}", record.data.len());
    }

    #[test]
    fn numbers_are_tidy_and_finite() {
        assert_eq!(tidy(0.723_850_011_825_561_5), 0.72385);
        assert_eq!(tidy(1e-300), 1e-300);
        assert_eq!(tidy(123_456_789.0), 123_456_800.0);
        assert_eq!(tidy(-0.001_234_567_89), -0.001_234_568);
        assert!(tidy(f64::NAN).is_finite() && tidy(f64::INFINITY).is_finite());
        assert_eq!(tidy(1e-320), 1e-320);
    }
}
