//! `/api/v1/events`: server-sent events of types `step`, `verdict`, `opinion`, `alarm`, `flood`, `state`,
//! `status` and `reset`.
//! Every frame has the id `EPOCH-STREAM-NUMBER`; a stream numbers its frames from 0 without gaps. Every frame's
//! data has the version of what it tells. `reset` says that too much has changed to be told one by one.
//! A reader that falls behind is cut off; browsers come back by themselves and fetch the whole again.
//! With `?watch=true` a stream says which machines it shows, and hears nothing of the steps of others.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::App;
use super::api::{self, Answer};
use super::guard::{Problem, problem};
use super::view::{Frame, MAX_WATCHED, Watch};
use crate::types::Name;

/// A comment is sent when nothing else was, so that both sides notice a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

struct Stream {
    /// What is sent before anything else.
    first: VecDeque<Bytes>,
    /// Epoch and stream, the beginning of every frame's id.
    name: String,
    /// Frames sent so far.
    sent: u64,
    frames: Receiver<Frame>,
    watch: Option<Arc<Watch>>,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

/// Opens a stream; the first event is `status`. Too many streams are refused with 503.
pub async fn open(
    State(app): State<Arc<App>>,
    options: Result<Query<Options>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(options) = options.map_err(|e| Problem(StatusCode::BAD_REQUEST, e.body_text()))?;
    let slot = match app.streams.clone().try_acquire_owned() {
        Ok(slot) => slot,
        Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "too many event streams are open");
        }
    };
    let (frames, watch) = if options.watch {
        let (frames, watch) = app.state.view.subscribe_watching();
        (frames, Some(watch))
    } else {
        (app.state.view.subscribe(), None)
    };
    let id = watch.as_ref().map_or_else(|| fastrand::u64(..), |w| w.id);
    let mut first = VecDeque::new();
    if watch.is_some() {
        first.push_back(format!("event: stream\ndata: {{\"id\":\"{id:016x}\"}}\n\n").into());
    }
    first.push_back(format!("retry: 1000\nevent: status\ndata: {}\n\n", api::status_of(&app)).into());
    let (stop, name) = (app.shared.stop.clone(), format!("{}-{id:016x}", app.state.view.epoch()));
    let stream = Stream { first, name, sent: 0, frames, watch, stop, _slot: slot };
    let body = Body::from_stream(stream::unfold(stream, next));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

impl Stream {
    /// The frame with its number.
    fn number(&mut self, frame: &[u8]) -> Bytes {
        let id = format!("id: {}-{}\n", self.name, self.sent);
        self.sent += 1;
        [id.as_bytes(), frame].concat().into()
    }
}

async fn next(mut s: Stream) -> Option<(Result<Bytes, std::convert::Infallible>, Stream)> {
    if let Some(first) = s.first.pop_front() {
        return Some((Ok(s.number(&first)), s));
    }
    let until = Instant::now() + KEEP_ALIVE;
    loop {
        let frame = tokio::select! {
            () = s.stop.cancelled() => return None,
            frame = tokio::time::timeout_at(until, s.frames.recv()) => frame,
        };
        match frame {
            Ok(Ok(frame)) => {
                if let Some(text) = frame.text_for(s.watch.as_deref()) {
                    return Some((Ok(s.number(&text)), s));
                }
            }
            Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => return None,
            Err(_) => return Some((Ok(Bytes::from_static(b": still here\n\n")), s)),
        }
    }
}

/// What a stream is asked for with.
#[derive(Deserialize)]
pub struct Options {
    #[serde(default)]
    watch: bool,
}

/// Which machines a browser shows.
#[derive(Deserialize)]
struct Shown {
    machines: HashSet<Name>,
}

/// `POST /api/v1/events/{stream}`: the stream hears of these machines from now on.
pub async fn watch(
    State(app): State<Arc<App>>,
    Path(stream): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let Shown { machines } = api::parse(body)?;
    let watched = machines.len();
    if watched > MAX_WATCHED {
        return problem(StatusCode::BAD_REQUEST, format!("a stream watches {MAX_WATCHED} machines at most"));
    }
    let known = u64::from_str_radix(&stream, 16).is_ok_and(|id| app.state.view.watch(id, machines));
    if !known {
        return problem(StatusCode::NOT_FOUND, "there is no such stream; it may have ended");
    }
    Ok(Json(json!({"watched": watched})))
}
