//! What people do to alarms over HTTP: who asks, what for, and the answer once it is on disk.

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
use super::{Action, App, Command, Refusal};
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

fn read_action(name: &str, body: &Body) -> Answer<Action> {
    Ok(match name {
        "ack" => Action::Acknowledge,
        "reset" => Action::Reset,
        "unshelve" => Action::Unshelve,
        "out_of_service" => Action::OutOfService,
        "in_service" => Action::InService,
        "shelve" => match body.seconds {
            Some(seconds) => Action::Shelve(seconds),
            None => return problem(StatusCode::BAD_REQUEST, "say for how long: {\"seconds\": 3600}"),
        },
        _ => {
            let all = "ack, reset, shelve, unshelve, out_of_service or in_service";
            return problem(StatusCode::NOT_FOUND, format!("what can be done to an alarm is {all}"));
        }
    })
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
    let name = tidy(&body.by, MAX_WHO_CHARS);
    let who = if name.is_empty() { peer.ip().to_string() } else { format!("{name} ({})", peer.ip()) };
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
