//! Connections: bounded in number, in the time they may take and in how long a write may stall.
//! axum's own `serve` sets no such limits, so hyper is driven here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connections::{Busy, Connections, Place};
use super::guard::Problem;
use super::limits::RefusalLog;

/// For a request's head to arrive, and between requests.
const HEAD_TIME: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 15 });
/// A reader that takes less than [`LEAST_TAKEN_BYTES`] in this time is cut off.
const STALL_TIME: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });
/// See [`STALL_TIME`].
const LEAST_TAKEN_BYTES: usize = 4 << 10;
/// Request heads larger than this are refused.
const HEAD_BYTES: usize = 16 * 1024;
/// Headers in a request.
const MAX_HEADERS: usize = 64;
/// For open requests to finish once the agent stops.
const GRACE: Duration = Duration::from_secs(3);
/// When the process has no file descriptors left, trying again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where a request came from.
#[derive(Copy, Clone, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves until `stop`, then waits at most [`GRACE`] for what is open.
pub async fn serve(listener: TcpListener, router: Router, refusals: &RefusalLog, stop: CancellationToken) {
    let (tracker, cut) = (TaskTracker::new(), CancellationToken::new());
    let connections = Arc::new(Connections::default());
    let accepting = async {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    refusals.refused("accept", None, &format!("a connection cannot be accepted: {e}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = connections.admit(peer.ip()) else {
                refusals.refused("connections", Some(peer.ip()), "too many connections; the newest are closed");
                continue;
            };
            let serving = connection(stream, peer, Arc::new(place), router.clone(), stop.clone());
            let cut = cut.clone();
            tracker.spawn(async move {
                cut.run_until_cancelled(serving).await;
            });
        }
    };
    stop.run_until_cancelled(accepting).await;
    tracker.close();
    if tokio::time::timeout(GRACE, tracker.wait()).await.is_err() {
        tracing::warn!(open = tracker.len(), "dashboard connections were cut off at the end");
        cut.cancel();
        tracker.wait().await;
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, place: Arc<Place>, router: Router, stop: CancellationToken) {
    // Events are small and should arrive now; without this they wait for each other.
    let _ = stream.set_nodelay(true);
    let router = TowerToHyperService::new(router);
    let close = place.close.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let busy = place.busy();
        let allowed = !place.probe || is_probe(request.uri().path());
        let answering = allowed.then(|| router.call(request));
        async move {
            let response = match answering {
                Some(answering) => answering.await?,
                None => {
                    let why = "too many connections: only /health/… and /metrics are answered now".into();
                    Problem(StatusCode::SERVICE_UNAVAILABLE, why).into_response()
                }
            };
            Ok::<_, Infallible>(response.map(|body| Body::new(Answering { body, _busy: busy })))
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Stall::new(stream)), service);
    let mut serving = pin!(serving);
    let done = tokio::select! {
        done = serving.as_mut() => done,
        () = close.cancelled() => return,
        () = stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(e) = done {
        tracing::debug!(%peer, error = %e, "a dashboard connection ended early");
    }
}

/// What is answered however many connections there are.
fn is_probe(path: &str) -> bool {
    path == "/metrics" || path.starts_with("/health/")
}

/// An answer's body; the connection is busy until it is written.
struct Answering {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream whose writes fail once the other side has taken too little for [`STALL_TIME`].
struct Stall {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    waiting: bool,
    /// Bytes since the wait began.
    taken: usize,
}

impl Stall {
    fn new(stream: TcpStream) -> Stall {
        Stall { stream, deadline: Box::pin(tokio::time::sleep(STALL_TIME)), waiting: false, taken: 0 }
    }

    /// A write of `wanted` bytes was tried; `taken` says how many a success took.
    fn check<T>(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<T>>,
        wanted: usize,
        taken: impl Fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &done {
            Poll::Ready(Ok(value)) => {
                self.taken += taken(value);
                // All of it, or enough: the reader keeps up.
                if taken(value) >= wanted || self.taken >= LEAST_TAKEN_BYTES {
                    (self.waiting, self.taken) = (false, 0);
                }
                return done;
            }
            Poll::Ready(Err(_)) => return done,
            Poll::Pending => {}
        }
        if !self.waiting {
            (self.waiting, self.taken) = (true, 0);
            self.deadline.as_mut().reset(Instant::now() + STALL_TIME);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the reader takes too little")))
    }
}

impl AsyncRead for Stall {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stall {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.check(cx, done, buf.len(), |n| *n)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.check(cx, done, bufs.iter().map(|b| b.len()).sum(), |n| *n)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(cx);
        self.check(cx, done, 0, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.check(cx, done, 0, |()| 0)
    }
}
