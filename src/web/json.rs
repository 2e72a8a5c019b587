//! What the API and the events say, as JSON. Times are RFC 3339 in UTC, ages are in seconds.

use std::cmp::Reverse;

use serde_json::{Value, json};

use super::alarm_list::Listed;
use super::machine::{Held, Machine, Signal};
use super::picture::Picture;
use crate::types::{Alarm, CRITICAL_SEVERITY, Care, Flood, SecondOpinion, Time, Verdict, priority};

/// Data older than this by its own time is said to be behind: it is being caught up.
const BEHIND_SECONDS: f64 = 60.0;

/// An alarm as it stands, with the version of its last change.
pub fn alarm(listed: &Listed) -> Value {
    let mut out = alarm_of(&listed.alarm);
    out["version"] = json!(listed.version);
    out
}

fn alarm_of(a: &Alarm) -> Value {
    let c = &a.care;
    let shelf = c.shelf.as_ref();
    json!({
        "id": a.id.to_string(), "machine": a.machine, "condition": a.condition, "state": a.state,
        "shown_state": a.shown_state(), "active": a.state.is_active(), "owed": a.state.is_owed(),
        "severity": a.severity, "priority": priority(a.severity), "since": a.since.to_string(),
        "at": a.at.to_string(), "message": a.message, "top_channel": a.top_channel,
        "acknowledged_by": a.acknowledged_by, "change": c.change, "by": c.by, "comment": c.comment,
        "shelved_until": shelf.map(|s| s.until.to_string()), "shelved_by": shelf.map(|s| &s.by),
        "shelved_comment": shelf.and_then(|s| s.comment.as_ref()), "can_shelve": a.severity < CRITICAL_SEVERITY,
        "suppressed": c.suppressed, "out_of_service_by": c.out_of_service, "announced": a.is_announced(),
        "first_out": c.first_out, "chattering": c.chattering, "grouped": c.grouped, "repeats": c.repeats,
        "explained": c.explanation.is_some(), "explanation": c.explanation, "second_opinion": c.opinion.as_ref().map(opinion),
    })
}

/// What a larger model said.
pub fn opinion(o: &SecondOpinion) -> Value {
    json!({
        "model": o.model, "version": o.version, "at": o.at.to_string(), "anomaly": o.anomaly, "score": o.score,
        "threshold": o.threshold, "record": o.record.to_string(),
    })
}

/// The same without its explanation, which is most of it.
pub fn alarm_in_brief(listed: &Listed) -> Value {
    let a = &*listed.alarm;
    let brief = Alarm { care: Care { explanation: None, ..a.care.clone() }, ..a.clone() };
    let mut out = alarm_of(&brief);
    out["version"] = json!(listed.version);
    out["explained"] = json!(a.care.explanation.is_some());
    out
}

/// A flood of alarms, or null.
pub fn flood(flood: Option<&Flood>) -> Value {
    flood.map_or(Value::Null, |f| json!({"since": f.since.to_string(), "raised": f.raised, "first": f.first}))
}

/// The flood with its version, as an event.
pub fn flood_event(picture: &Picture) -> Value {
    json!({"flood": flood(picture.flood.as_ref()), "version": picture.flood_version()})
}

/// Active alarms first, of these the most severe first, then the newest. Alarms that are shelved, suppressed
/// or out of service count as not active. The dashboard lists them in the same order.
pub fn most_urgent_first(alarms: &[Listed]) -> impl Iterator<Item = &Listed> {
    let mut sorted: Vec<&Listed> = alarms.iter().collect();
    sorted.sort_by_key(|l| {
        let a = &l.alarm;
        let active = a.state.is_active() && !a.care.is_quiet();
        Reverse((active, !active && a.state.is_owed(), a.severity, a.state.is_owed(), a.since, a.id))
    });
    sorted.into_iter()
}

/// A machine's state.
pub fn state(name: &str, m: &Machine, picture: &Picture) -> Value {
    json!({
        "machine": name, "light": picture.light(m), "why": picture.why(m), "since": picture.since(m).to_string(),
        "version": m.versions.state,
    })
}

/// A machine's last values.
pub fn step(name: &str, m: &Machine, now: Time) -> Value {
    json!({
        "machine": name, "at": m.at.to_string(), "behind_seconds": behind(m, now), "signals": signals(m, now),
        "version": m.versions.step,
    })
}

/// A machine's last verdict: in short, and as its record has it.
pub fn verdict_event(name: &str, m: &Machine) -> Value {
    let mut out = verdict_in_brief(name, m);
    out["data"] = raw(m.data.as_deref());
    out
}

/// In short only.
pub fn verdict_in_brief(name: &str, m: &Machine) -> Value {
    json!({"machine": name, "verdict": verdict(m), "version": m.versions.verdict})
}

/// All of a machine that its card shows.
pub fn machine(name: &str, m: &Machine, picture: &Picture, now: Time) -> Value {
    let at = (m.at != Time::default()).then(|| m.at.to_string());
    let v = &m.versions;
    json!({
        "id": name, "light": picture.light(m), "why": picture.why(m), "since": picture.since(m).to_string(), "at": at,
        "behind_seconds": behind(m, now), "signals": signals(m, now), "verdict": verdict(m),
        "second_opinion": m.opinion.as_deref().map(opinion),
        "versions": {"state": v.state, "step": v.step, "verdict": v.verdict, "opinion": v.opinion},
    })
}

/// JSON text as it is, or null.
pub fn raw(data: Option<&str>) -> Value {
    data.and_then(|d| serde_json::from_str(d).ok()).unwrap_or(Value::Null)
}

fn behind(m: &Machine, now: Time) -> Option<f64> {
    let seconds = now.since(m.at).as_secs_f64();
    (m.at != Time::default() && seconds > BEHIND_SECONDS).then_some(seconds.round())
}

fn signals(m: &Machine, now: Time) -> Vec<Value> {
    m.signals.iter().map(|(name, s)| signal(name, s, now)).collect()
}

fn signal(name: &str, s: &Signal, now: Time) -> Value {
    let age = |t: Option<Time>| t.map(|t| (now.since(t).as_secs_f64() * 10.0).round() / 10.0);
    json!({
        "name": name, "value": s.value, "quality": s.quality, "cause": s.cause,
        "heard_seconds": age(s.heard), "unchanged_seconds": age(s.changed),
    })
}

fn verdict(m: &Machine) -> Value {
    let Some(v) = &m.verdict else { return Value::Null };
    let held = match m.held {
        Held::Score => "score",
        Held::PValue => "p_value",
    };
    json!({
        "at": v.at.to_string(), "model": v.model, "reason": v.reason, "score": v.score, "p_value": v.p_value,
        "threshold": v.threshold, "held_against": held, "level": level(v, m.held), "health": v.health,
        "class": v.class, "rul": v.rul, "quality": v.quality, "contributions": v.contributions,
    })
}

/// How far the verdict is from normal, as a part of the alarm limit: 0 is normal, 1 is at the limit or beyond.
fn level(v: &Verdict, held: Held) -> Option<f64> {
    let score = v.score?;
    let level = match (held, v.p_value) {
        (Held::PValue, Some(p)) if v.threshold > 0.0 && v.threshold < 1.0 => p.max(1e-300).ln() / v.threshold.ln(),
        _ => v.health.map_or(score / v.threshold, |h| 1.0 - h),
    };
    level.is_finite().then(|| level.clamp(0.0, 1.0))
}
