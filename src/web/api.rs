//! The routes and what they answer: JSON throughout, errors as `{"error": "…"}`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};

use super::guard::{self, COOKIE, Problem, problem};
use super::json as render;
use super::machine::Machine;
use super::picture::Picture;
use super::server::Peer;
use super::{App, actions, assets, events, inference, plot};
use crate::metrics::{Component, Health};
use crate::types::{MachineState, Time};

/// Request bodies larger than this are refused.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Machines in one answer unless asked for fewer.
const MAX_PAGE: usize = 1_000;
/// A stage that has not beaten for this long makes the agent not ready.
const SILENT_LIMIT: Duration = Duration::from_secs(10);
/// An engine that has not beaten for this long counts as dead.
const DEAD_LIMIT: Duration = Duration::from_secs(20);

/// What a handler gives.
pub type Answer<T = Json<Value>> = Result<T, Problem>;
/// What a handler is handed.
pub type Shared = State<Arc<App>>;

/// All routes, guarded.
pub fn router(app: Arc<App>) -> Router {
    let page = assets::ALL.iter().fold(Router::new(), |router, asset| router.route(asset.path, asset.route()));
    page.route("/api/v1/session", post(sign_in))
        .route("/api/v1/status", get(status))
        .route("/api/v1/machines", get(machines))
        .route("/api/v1/machines/{id}", get(machine))
        .route("/api/v1/lights", get(lights))
        .route("/api/v1/models", get(models))
        .route("/api/v1/models/{name}/{action}", post(actions::model))
        .route("/api/v1/alarms", get(alarms))
        .route("/api/v1/alarms/{id}", get(alarm))
        .route("/api/v1/alarms/{id}/{action}", post(actions::alarm))
        .route("/api/v1/machines/{id}/{action}", post(actions::machine))
        .route("/api/v1/events", get(events::open))
        .route("/api/v1/events/{stream}", post(events::watch))
        .route("/plot/machines/{id}/signals.svg", get(plot::signals))
        .route("/plot/machines/{id}/score.svg", get(plot::score))
        .route("/plot/machines/{id}/health.svg", get(plot::health))
        .route("/plot/buffer.svg", get(plot::buffer))
        .route("/metrics", get(metrics))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .merge(inference::routes())
        .fallback(|| async { Problem(StatusCode::NOT_FOUND, "there is nothing here".into()) })
        .method_not_allowed_fallback(|| async {
            Problem(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path".into())
        })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(app.clone(), guard::guard))
        .with_state(app)
}

async fn status(State(app): Shared) -> Json<Value> {
    Json(status_of(&app))
}

/// `/api/v1/status`, which is also the `status` event.
pub fn status_of(app: &App) -> Value {
    let (now, about, components) = (Time::now(), &app.state.about, app.shared.board.components());
    let picture = app.state.view.read(of_picture);
    let sample = app.samples.last();
    let missing = missing(app, &components);
    let mut status = json!({
        "epoch": app.state.view.epoch(), "site": about.site, "agent": about.agent, "version": about.version, "data_dir": about.data_dir,
        "now": now.to_string(), "started": about.started.to_string(),
        "uptime_seconds": now.since(about.started).as_secs(),
        "health": overall(&components, &missing), "ready": missing.is_empty(), "missing": missing,
        "components": components.iter().map(|(n, c)| (n.clone(), component(c, now))).collect::<BTreeMap<_, _>>(),
        "store": (app.state.store_status)(), "models": (app.state.models)(),
        "readings_total": sample.readings, "readings_per_second": sample.readings_rate.round(),
        "records_waiting": sample.waiting, "records_forwarded_total": sample.forwarded,
        "records_forwarded_per_second": sample.forwarded_rate.round(), "counts": app.samples.counts(),
    });
    if let (Value::Object(status), Value::Object(picture)) = (&mut status, picture) {
        status.extend(picture);
    }
    status["view"]["streams"] = json!(app.state.view.listeners());
    status
}

/// What the status says of machines and alarms, all of one version.
fn of_picture(p: &Picture) -> Value {
    let lights = p.lights();
    let active = p.alarms().iter().filter(|l| l.alarm.state.is_active()).count();
    let owed = p.alarms().iter().filter(|l| l.alarm.state.is_owed()).count();
    json!({
        "state_version": p.version(), "engine_silent_since": p.silent_since().map(|t| t.to_string()),
        "machines": {"total": p.machines().len(), "green": lights.green, "amber": lights.amber, "red": lights.red,
                     "white": lights.white, "off": lights.off},
        "alarms": {"active": active, "unacknowledged": owed, "listed": p.alarms().len()},
        "flood": render::flood(p.flood.as_ref()), "flood_version": p.flood_version(),
        "view": {"events_lagged": p.lagged, "events_not_shown": p.not_shown, "plots": p.rings()},
    })
}

fn component(c: &Component, now: Time) -> Value {
    json!({
        "health": c.health, "detail": c.detail, "since": c.since.to_string(),
        "last_good": c.last_good.map(|t| t.to_string()),
        "last_good_seconds": c.last_good.map(|t| now.since(t).as_secs()),
    })
}

fn overall(components: &BTreeMap<String, Component>, missing: &[String]) -> Health {
    let any = |h: Health| components.values().any(|c| c.health == h);
    match missing.is_empty() {
        false if any(Health::Starting) && !any(Health::Down) => Health::Starting,
        false => Health::Down,
        true if any(Health::Down) || any(Health::Degraded) => Health::Degraded,
        true => Health::Up,
    }
}

/// What keeps the agent from doing its work: the store must be up and every stage alive.
fn missing(app: &App, components: &BTreeMap<String, Component>) -> Vec<String> {
    let mut missing = Vec::new();
    match components.get("store") {
        Some(c) if matches!(c.health, Health::Up | Health::Degraded) => {}
        Some(c) => missing.push(format!("the store is not up: {}", c.detail)),
        None => missing.push("the store has not started".into()),
    }
    let engine = components.get("engine").filter(|c| c.health == Health::Starting);
    match engine {
        Some(starting) => missing.push(format!("the engine has not started: {}", starting.detail)),
        None if !app.shared.board.stages().iter().any(|s| s == "engine") => {
            missing.push("the engine has not started".into())
        }
        None => {}
    }
    missing.extend(app.shared.board.failures());
    let silent = app.shared.board.silent(SILENT_LIMIT);
    missing.extend(silent.iter().map(|s| format!("{s} makes no progress")));
    missing
}

/// Whether the process is worth keeping: 503 once a stage has failed or the engine is silent.
async fn live(State(app): Shared) -> Response {
    let mut dead = app.shared.board.failures();
    let silent = app.shared.board.silent(DEAD_LIMIT).into_iter().filter(|s| s == "engine");
    dead.extend(silent.map(|s| format!("{s} makes no progress")));
    if dead.is_empty() {
        return Json(json!({"status": "live"})).into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "failed", "error": dead.join("; ")}))).into_response()
}

pub async fn ready(State(app): Shared) -> Response {
    let missing = missing(&app, &app.shared.board.components());
    if missing.is_empty() {
        return Json(json!({"status": "ready"})).into_response();
    }
    let body = json!({"status": "not ready", "error": missing.join("; "), "missing": missing});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    offset: usize,
    limit: Option<usize>,
    light: Option<MachineState>,
    #[serde(default)]
    q: String,
}

/// Machines, those that need somebody first; `?q=` looks in names, `?light=`, `?offset=`, `?limit=`.
async fn machines(State(app): Shared, page: Result<Query<Page>, QueryRejection>) -> Answer {
    let Query(page) = page.map_err(|e| Problem(StatusCode::BAD_REQUEST, e.body_text()))?;
    let (now, wanted) = (Time::now(), page.q.to_lowercase());
    let limit = page.limit.unwrap_or(MAX_PAGE).min(MAX_PAGE);
    let answer = app.state.view.read(|picture| {
        let fits = |(name, m): &(&crate::types::Name, &Machine)| {
            page.light.is_none_or(|l| l == picture.light(m))
                && (wanted.is_empty() || name.to_lowercase().contains(&wanted))
        };
        let mut found: Vec<_> = picture.machines().iter().filter(fits).collect();
        found.sort_by_key(|(_, m)| picture.light(m));
        let shown = found.iter().skip(page.offset).take(limit);
        json!({
            "total": picture.machines().len(), "found": found.len(), "offset": page.offset, "now": now.to_string(),
            "version": picture.version(), "epoch": app.state.view.epoch(),
            "machines": shown.map(|(n, m)| render::machine(n, m, picture, now)).collect::<Vec<_>>(),
        })
    });
    Ok(Json(answer))
}

async fn machine(State(app): Shared, Path(id): Path<String>) -> Answer {
    match app.state.view.machine(&id, Time::now()) {
        Some(mut found) => {
            found["bands"] = json!((app.state.bands)(&id));
            Ok(Json(found))
        }
        None => problem(StatusCode::NOT_FOUND, "no such machine has been heard"),
    }
}

/// Every machine's state, by name, each `["pump-1", "green", version]`.
async fn lights(State(app): Shared) -> Json<Value> {
    let answer = app.state.view.read(|p| {
        let list: Vec<Value> = p.machines().iter().map(|(n, m)| json!([n, p.light(m), m.versions.state])).collect();
        json!({"total": list.len(), "version": p.version(), "epoch": app.state.view.epoch(), "lights": list})
    });
    Json(answer)
}

#[derive(Deserialize)]
struct Length {
    #[serde(default)]
    brief: bool,
}

/// All alarms; `?brief=true` leaves out why they were raised, which is most of it.
async fn alarms(State(app): Shared, length: Result<Query<Length>, QueryRejection>) -> Answer {
    let Query(length) = length.map_err(|e| Problem(StatusCode::BAD_REQUEST, e.body_text()))?;
    let render = if length.brief { render::alarm_in_brief } else { render::alarm };
    let answer = app.state.view.read(|p| {
        let list: Vec<Value> = render::most_urgent_first(p.alarms()).map(render).collect();
        json!({
            "alarms": list, "flood": render::flood(p.flood.as_ref()), "flood_version": p.flood_version(),
            "version": p.version(), "epoch": app.state.view.epoch(),
        })
    });
    Ok(Json(answer))
}

async fn alarm(State(app): Shared, Path(id): Path<String>) -> Answer {
    let found = |p: &Picture| p.alarms().iter().find(|l| l.alarm.id.to_string() == id).map(render::alarm);
    match app.state.view.read(found) {
        Some(alarm) => Ok(Json(alarm)),
        None => problem(StatusCode::NOT_FOUND, "no such alarm is listed"),
    }
}

async fn models(State(app): Shared) -> Json<Value> {
    Json(json!({"models": (app.state.models)()}))
}

/// OpenMetrics for those who ask for it, as Prometheus does; the older text format for everybody else.
async fn metrics(State(app): Shared, headers: HeaderMap) -> Response {
    const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok());
    if accepted.into_iter().any(|a| a.contains("application/openmetrics-text")) {
        return ([(header::CONTENT_TYPE, OPEN)], app.shared.metrics.render()).into_response();
    }
    ([(header::CONTENT_TYPE, PLAIN)], app.shared.metrics.render_plain()).into_response()
}

#[derive(Deserialize)]
struct SignIn {
    token: String,
}

/// Exchanges the token for a session cookie.
async fn sign_in(
    State(app): Shared,
    peer: Option<Extension<Peer>>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Response> {
    let given: SignIn = parse(body)?;
    let access = app.access();
    let Some(key) = &access.key else { return Ok(Json(json!({"done": true})).into_response()) };
    guard::try_token(&app, key, &given.token, peer.as_deref()).await?;
    let cookie = format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict; Max-Age=2592000", key.session());
    Ok(([(header::SET_COOKIE, cookie)], Json(json!({"done": true}))).into_response())
}

/// Reads a request's JSON; an empty body is `{}`.
pub fn parse<T: for<'a> Deserialize<'a>>(body: Result<Bytes, BytesRejection>) -> Answer<T> {
    let body = body.map_err(|e| Problem(e.status(), e.body_text()))?;
    let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(text).map_err(|e| Problem(StatusCode::BAD_REQUEST, format!("not the JSON expected: {e}")))
}
