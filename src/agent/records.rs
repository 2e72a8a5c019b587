//! From verdicts, alarms and gaps to records: deterministic ids, and `data` as the contract has it.

use std::sync::Arc;

use serde::Serialize;

use crate::model::drift::{self, Outcomes, Report};
use crate::pipeline::Gap;
use crate::types::{
    Alarm, Change, Contribution, Kind, ModelStep, Name, Ranked, Reason, Record, RecordId, Time, Verdict, priority,
};

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
        // Our own structs of strings and finite numbers always serialise.
        let data = serde_json::to_string(data).unwrap_or_else(|_| "{}".into());
        Record { id: RecordId::of(&parts), kind, subject: subject.clone(), at, data }
    }
}

fn share(c: &Contribution) -> Contribution {
    Contribution { name: c.name.clone(), value: (c.value * 1e9).round() / 1e9 }
}

/// Seven significant digits: what a single-precision model has to say. Always finite.
fn tidy(x: f64) -> f64 {
    let finite = if x.is_nan() { 0.0 } else { x.clamp(f64::MIN, f64::MAX) };
    format!("{finite:.6e}").parse().ok().filter(|t: &f64| t.is_finite()).unwrap_or(finite)
}

#[cfg(test)]
mod tests {
    use super::*;

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
