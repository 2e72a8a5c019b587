//! What people do to alarms over HTTP: who asks, what for, and the answer once it is on disk.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::api::{Answer, Shared, parse};
use super::guard::{self, problem};
use super::server::Peer;
use super::{Action, App, Command, ModelCommand, Refusal};
use crate::types::{RecordId, Target};

/// For the engine to answer a command.
const COMMAND_TIME: Duration = Duration::from_secs(5);
/// Callers' names for themselves are cut off here.
const MAX_WHO_CHARS: usize = 40;
/// What they say to an action is cut off here.
const MAX_COMMENT_CHARS: usize = 200;

/// The body of every action; `{}` and none will do for all but shelving.
#[derive(Default, Deserialize)]
pub struct Body {
    /// Who asks, as they call themselves; `who` is the same.
    #[serde(default, alias = "who")]
    by: String,
    #[serde(default)]
    comment: String,
    seconds: Option<u32>,
}

/// `POST /api/v1/alarms/{id}/{action}`.
pub async fn alarm(
    State(app): Shared,
    Extension(peer): Extension<Peer>,
    Path((id, action)): Path<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let body: Body = parse(body)?;
    let action = read_action(&action, &body)?;
    let target = guard::unhex(&id).and_then(|b| b.try_into().ok()).map(|id| Target::Alarm(RecordId(id)));
    let Some(target) = target else { return problem(StatusCode::BAD_REQUEST, "an alarm's id is 32 hex digits") };
    carry_out(&app, target, action, &body, peer, ("alarm", &id)).await
}

/// `POST /api/v1/machines/{id}/{action}`: to all of a machine's alarms, those that may come included.
pub async fn machine(
    State(app): Shared,
    Extension(peer): Extension<Peer>,
    Path((id, action)): Path<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let body: Body = parse(body)?;
    let action = read_action(&action, &body)?;
    carry_out(&app, Target::Machine(id.as_str().into()), action, &body, peer, ("machine", &id)).await
}

/// `POST /api/v1/models/{name}/{action}`: the candidate's next step now, or back to the version before.
pub async fn model(
    State(app): Shared,
    Extension(Peer(peer)): Extension<Peer>,
    Path((name, action)): Path<(String, String)>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let body: Body = parse(body)?;
    let promote = match action.as_str() {
        "promote" => true,
        "rollback" => false,
        _ => return problem(StatusCode::NOT_FOUND, "a model can be given promote or rollback"),
    };
    if app.access().key.is_none() {
        return problem(StatusCode::FORBIDDEN, "without a token ([web] token_file) nobody changes models over HTTP");
    }
    let Some(commands) = &app.state.model_commands else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "this agent takes no commands");
    };
    let who = name_of(&body, peer);
    let (reply, answer) = oneshot::channel();
    let command = ModelCommand { model: name.as_str().into(), promote, who: who.clone(), reply };
    if commands.try_send(command).is_err() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "the agent is too busy to take this; try again");
    }
    match tokio::time::timeout(COMMAND_TIME, answer).await {
        Ok(Ok(Ok(()))) => Ok(Json(json!({"done": true, "model": name, "action": action, "who": who}))),
        Ok(Ok(Err(Refusal::NoSuchAlarm))) => problem(StatusCode::NOT_FOUND, "no machine uses such a model"),
        Ok(Ok(Err(Refusal::NotNow(why)))) => problem(StatusCode::CONFLICT, why),
        Ok(Err(_)) | Err(_) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "the agent could not say that this is on disk; look again")
        }
    }
}

/// Who asks, as they call themselves and from where.
fn name_of(body: &Body, peer: SocketAddr) -> String {
    let name = tidy(&body.by, MAX_WHO_CHARS);
    if name.is_empty() { peer.ip().to_string() } else { format!("{name} ({})", peer.ip()) }
}

fn read_action(name: &str, body: &Body) -> Answer<Action> {
    let code = if name == "shelve" { StatusCode::BAD_REQUEST } else { StatusCode::NOT_FOUND };
    Action::named(name, body.seconds).or_else(|why| problem(code, why))
}

async fn carry_out(
    app: &App,
    target: Target,
    action: Action,
    body: &Body,
    Peer(peer): Peer,
    (kind, id): (&str, &str),
) -> Answer<Json<Value>> {
    let Some(commands) = &app.state.commands else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "this agent takes no commands");
    };
    let who = name_of(body, peer);
    let comment = Some(tidy(&body.comment, MAX_COMMENT_CHARS)).filter(|c| !c.is_empty());
    let (reply, answer) = oneshot::channel();
    if commands.try_send(Command { target, action, who: who.clone(), comment, reply }).is_err() {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "the agent is too busy to take this; try again");
    }
    match tokio::time::timeout(COMMAND_TIME, answer).await {
        Ok(Ok(Ok(()))) => Ok(Json(json!({"done": true, kind: id, "action": action.as_str(), "who": who}))),
        Ok(Ok(Err(Refusal::NoSuchAlarm))) => problem(StatusCode::NOT_FOUND, format!("no such {kind} stands")),
        Ok(Ok(Err(Refusal::NotNow(why)))) => problem(StatusCode::CONFLICT, why),
        Ok(Err(_)) | Err(_) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, "the agent could not say that this is on disk; look again")
        }
    }
}

fn tidy(text: &str, limit: usize) -> String {
    text.trim().chars().filter(|c| !c.is_control()).take(limit).collect()
}
