//! `/api/v1/events`: server-sent events of types `step`, `verdict`, `opinion`, `alarm`, `flood`,
//! `state` and `status`.
//! A reader that falls behind is cut off; browsers come back by themselves and fetch the whole again.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio_util::sync::CancellationToken;

use super::guard::{Problem, problem};
use super::{App, api};

/// A comment is sent when nothing else was, so that both sides notice a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

struct Stream {
    first: Option<Bytes>,
    frames: Receiver<Bytes>,
    stop: CancellationToken,
    _slot: OwnedSemaphorePermit,
}

/// Opens a stream; the first event is `status`. Too many streams are refused with 503.
pub async fn open(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let slot = match app.streams.clone().try_acquire_owned() {
        Ok(slot) => slot,
        Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "too many event streams are open");
        }
    };
    let frames = app.state.view.subscribe();
    let first = format!("retry: 1000\nevent: status\ndata: {}\n\n", api::status_of(&app));
    let stop = app.shared.stop.clone();
    let stream = Stream { first: Some(first.into()), frames, stop, _slot: slot };
    let body = Body::from_stream(stream::unfold(stream, next));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

async fn next(mut s: Stream) -> Option<(Result<Bytes, std::convert::Infallible>, Stream)> {
    if let Some(first) = s.first.take() {
        return Some((Ok(first), s));
    }
    let frame = tokio::select! {
        () = s.stop.cancelled() => return None,
        frame = tokio::time::timeout(KEEP_ALIVE, s.frames.recv()) => frame,
    };
    match frame {
        Ok(Ok(frame)) => Some((Ok(frame), s)),
        Ok(Err(RecvError::Lagged(_) | RecvError::Closed)) => None,
        Err(_) => Some((Ok(Bytes::from_static(b": still here\n\n")), s)),
    }
}
