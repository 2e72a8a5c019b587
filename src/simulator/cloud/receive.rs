//! The stand-in cloud's handlers: they read strictly what the contract says.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, State as Shared};
use axum::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use super::faults::{Fault, Rules};
use super::wire::Cut;
use super::{Seen, State, Stats};
use crate::metrics::lock;
use crate::types::Time;

/// The most that is read, on the wire and decoded.
const MAX_BODY: usize = 64 << 20;

/// Where 3xx answers point.
pub const ELSEWHERE: &str = "/elsewhere";

/// The attributes the contract demands.
#[derive(Deserialize)]
struct Event {
    specversion: String,
    id: String,
    source: String,
    r#type: String,
    time: String,
    sequence: String,
    data: serde_json::Map<String, serde_json::Value>,
}

struct Taken<'a> {
    event: Event,
    raw: &'a RawValue,
}

/// What to say, before it is said.
struct Verdict {
    status: u16,
    body: Vec<u8>,
    ids: Vec<String>,
}

impl Verdict {
    fn of(status: u16, text: impl Into<String>) -> Verdict {
        Verdict { status, body: text.into().into_bytes(), ids: Vec::new() }
    }
}

pub async fn stats(Shared(state): Shared<Arc<State>>) -> Json<Stats> {
    Json(lock(&state.kept).stats())
}

pub async fn faults(Shared(state): Shared<Arc<State>>, Json(faults): Json<Vec<Fault>>) {
    lock(&state.script).extend(faults);
}

pub async fn stray(Shared(state): Shared<Arc<State>>) -> StatusCode {
    lock(&state.kept).stray();
    StatusCode::NO_CONTENT
}

pub async fn events(
    Shared(state): Shared<Arc<State>>,
    ConnectInfo(wire): ConnectInfo<Cut>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Ok(body) = to_bytes(body, MAX_BODY).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let (fault, rules) = {
        let mut script = lock(&state.script);
        (script.draw(), script.rules.clone())
    };
    if let Fault::Delay { ms } = fault {
        sleep(Duration::from_millis(ms)).await;
    }
    let mut verdict = judge(&state, &headers, &body, &fault, &rules);
    if matches!(fault, Fault::CutBefore | Fault::CutAfter) {
        wire.cut();
        verdict.status = 0;
    }
    let seen = Seen {
        at: Instant::now(),
        status: verdict.status,
        key: text(&headers, "idempotency-key").to_owned(),
        content_type: text(&headers, CONTENT_TYPE.as_str()).to_owned(),
        ids: std::mem::take(&mut verdict.ids),
        wire_bytes: body.len(),
    };
    lock(&state.kept).saw(seen);
    respond(verdict, &fault)
}

fn respond(verdict: Verdict, fault: &Fault) -> Response {
    let status = StatusCode::from_u16(verdict.status).unwrap_or(StatusCode::OK);
    let mut response = (status, verdict.body).into_response();
    if status.is_redirection() {
        response.headers_mut().insert(LOCATION, HeaderValue::from_static(ELSEWHERE));
    }
    if let Fault::Status { retry_after: Some(after), .. } = fault
        && let Ok(value) = HeaderValue::from_str(after)
    {
        response.headers_mut().insert(RETRY_AFTER, value);
    }
    response
}

/// Decides, and takes what is to be taken.
fn judge(state: &State, headers: &HeaderMap, body: &[u8], fault: &Fault, rules: &Rules) -> Verdict {
    if let Some(token) = &rules.token
        && text(headers, AUTHORIZATION.as_str()) != format!("Bearer {}", token.reveal())
    {
        return Verdict::of(401, "who are you?");
    }
    match fault {
        Fault::Status { status, .. } => return Verdict::of(*status, ""),
        Fault::CutBefore => return Verdict::of(503, ""),
        _ => {}
    }
    let key = text(headers, "idempotency-key");
    if let Some((status, body)) = lock(&state.kept).answer(key) {
        return Verdict { status, body, ids: Vec::new() };
    }
    let decoded = match decode(headers, body, rules) {
        Ok(decoded) => decoded,
        Err(verdict) => return verdict,
    };
    match parse(headers, &decoded) {
        Ok(events) => take(state, key, &events, fault, rules),
        Err(why) => Verdict::of(400, why),
    }
}

fn decode(headers: &HeaderMap, body: &[u8], rules: &Rules) -> Result<Vec<u8>, Verdict> {
    let coding = text(headers, CONTENT_ENCODING.as_str());
    if rules.unreadable.iter().any(|c| c == coding) {
        return Err(Verdict::of(415, format!("cannot read {coding}")));
    }
    let mut decoded = Vec::new();
    // One byte more tells a body that fits from one that does not.
    let most = MAX_BODY as u64 + 1;
    let read = match coding {
        "" | "identity" => body.take(most).read_to_end(&mut decoded),
        "gzip" => flate2::read::GzDecoder::new(body).take(most).read_to_end(&mut decoded),
        "zstd" => zstd::stream::read::Decoder::new(body).and_then(|d| d.take(most).read_to_end(&mut decoded)),
        other => return Err(Verdict::of(415, format!("cannot read {other}"))),
    };
    if let Err(e) = read {
        return Err(Verdict::of(400, format!("the body cannot be decoded: {e}")));
    }
    if decoded.len() > rules.max_bytes.unwrap_or(MAX_BODY) {
        return Err(Verdict::of(413, ""));
    }
    Ok(decoded)
}

fn parse<'a>(headers: &HeaderMap, body: &'a [u8]) -> Result<Vec<Taken<'a>>, String> {
    let raw: Vec<&RawValue> = match text(headers, CONTENT_TYPE.as_str()) {
        "application/cloudevents-batch+json" => serde_json::from_slice(body).map_err(|e| format!("no batch: {e}"))?,
        "application/cloudevents+json" => vec![serde_json::from_slice(body).map_err(|e| format!("no event: {e}"))?],
        other => return Err(format!("content type {other:?}")),
    };
    raw.into_iter()
        .map(|raw| {
            let event: Event = serde_json::from_str(raw.get()).map_err(|e| format!("no event: {e}"))?;
            check(&event)?;
            Ok(Taken { event, raw })
        })
        .collect()
}

fn check(event: &Event) -> Result<(), String> {
    let wrong = match event {
        e if e.specversion != "1.0" => "specversion",
        e if e.id.is_empty() => "id",
        e if !e.source.starts_with("/andon/") => "source",
        e if !e.r#type.starts_with("io.andon.") => "type",
        e if e.time.parse::<Time>().is_err() => "time",
        e if e.sequence.len() != 20 || e.sequence.parse::<u64>().is_err() => "sequence",
        e if e.data.values().any(|v| v.as_f64().is_some_and(|n| !n.is_finite())) => "data",
        _ => return Ok(()),
    };
    Err(format!("event {}: {wrong} is not as agreed", event.id))
}

fn take(state: &State, key: &str, events: &[Taken<'_>], fault: &Fault, rules: &Rules) -> Verdict {
    let ids: Vec<String> = events.iter().map(|t| t.event.id.clone()).collect();
    let poisoned = |id: &String| rules.poison.contains(id);
    if !rules.per_record && ids.iter().any(poisoned) {
        return Verdict { status: 422, body: b"one event is not acceptable".to_vec(), ids };
    }
    let refused = |(n, id): (usize, &String)| match fault {
        _ if poisoned(id) => Some(422),
        Fault::Partial { every, status } if (n + 1) % (*every).max(1) == 0 => Some(*status),
        _ => None,
    };
    let refusals: Vec<Option<u16>> = ids.iter().enumerate().map(refused).collect();
    let mut kept = lock(&state.kept);
    if kept.is_full() {
        return Verdict::of(507, "too many ids to keep");
    }
    for (taken, _) in events.iter().zip(&refusals).filter(|(_, refused)| refused.is_none()) {
        kept.take(&taken.event.id, &taken.event.r#type, taken.raw);
    }
    let (status, body) = if refusals.iter().any(Option::is_some) {
        let results: Vec<_> =
            ids.iter().zip(&refusals).map(|(id, r)| json!({"id": id, "status": r.unwrap_or(200)})).collect();
        (207, json!({ "results": results }).to_string().into_bytes())
    } else {
        match fault {
            Fault::Garbage => (200, b"{\"results\": [ <html>".to_vec()),
            Fault::Flood => (200, vec![b'['; 3 << 20]),
            _ => (202, Vec::new()),
        }
    };
    // Put-off events are to be taken when the same request comes again.
    if !refusals.iter().flatten().any(|status| matches!(status, 408 | 409 | 425 | 429 | 500..=599)) {
        kept.remember(key.to_owned(), (status, body.clone()));
    }
    Verdict { status, body, ids }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> &'h str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}
