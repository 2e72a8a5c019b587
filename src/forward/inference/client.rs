//! One inference server and one model of it: metadata, requests with a bound on tries, time and the size
//! of answers, and what each way of failing means.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Request, Response, Url};
use tokio::time::{Instant, sleep};

use super::wire::{self, Found, LENGTH_HEADER, Metadata, Wrong};
use super::{Config, Tempo};
use crate::forward::cloud::auth::{self, Credentials};
use crate::forward::cloud::client::{self as cloud, Failure, failure, http};
use crate::forward::retry::{Pace, http_date, retry_after};
use crate::metrics::lock;
use crate::types::{Answer, Ask, Outcome, Time};

/// Requests for one question, those for metadata not counted.
const MAX_TRIES: u32 = 3;
/// Answers are read up to here: one number needs some hundred bytes.
const MAX_ANSWER: usize = 1 << 20;
/// How much of a refusal's text is read for a person.
const MAX_REASON: usize = 4096;

/// See the module.
pub struct Client {
    config: Config,
    tempo: Tempo,
    /// `None` until it could be built, and when certificates are to be read again.
    http: Mutex<Option<reqwest::Client>>,
    /// Waits for a token server where one gives them out: all questions wait for the same.
    credentials: tokio::sync::Mutex<Credentials>,
    /// What was learnt of the model; asked anew after anything went wrong.
    metadata: Mutex<Option<Arc<Metadata>>>,
    /// The server does not want to be asked before this.
    not_before: Mutex<Option<Instant>>,
}

/// Why a try came to nothing.
struct Trouble {
    outcome: Outcome,
    detail: String,
    /// Whether it may pass, and the wait that was asked for.
    again: Option<Option<Duration>>,
    /// Whether a question may have reached the server.
    reached: bool,
}

impl From<Wrong> for Trouble {
    fn from((outcome, detail): Wrong) -> Trouble {
        Trouble { outcome, detail, again: None, reached: true }
    }
}

/// What was sent so far for one question.
#[derive(Default)]
struct Tally {
    calls: u32,
    bytes: u64,
}

/// An answer as it came over the wire.
struct Got {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    cut: bool,
}

impl Client {
    /// Nothing is dialled yet.
    pub fn new(config: Config, tempo: Tempo) -> Client {
        let credentials = tokio::sync::Mutex::new(Credentials::new(&config.auth));
        let (http, metadata, not_before) = Default::default();
        Client { config, tempo, http, credentials, metadata, not_before }
    }

    /// Asks, a few times if need be. Never fails: how it ended is in the answer.
    pub async fn ask(&self, ask: &Ask) -> Answer {
        let (began, mut tally) = (Instant::now(), Tally::default());
        let end = self.tries(ask, &mut tally).await;
        let (outcome, detail, found) = match end {
            Ok(found) => (Outcome::Answered, String::new(), Some(found)),
            Err(trouble) => (trouble.outcome, short(&trouble.detail), None),
        };
        let (score, version) = found.map_or((None, None), |f| (Some(f.score), f.version));
        Answer {
            id: ask.id,
            at: Time::now(),
            outcome,
            score,
            version,
            detail,
            calls: tally.calls,
            bytes_out: tally.bytes,
            took_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    async fn tries(&self, ask: &Ask, tally: &mut Tally) -> Result<Found, Trouble> {
        let mut pace = Pace::new(self.tempo.retry_first, self.tempo.retry_cap);
        let mut tries = 0;
        loop {
            self.wait_as_asked().await?;
            let trouble = match self.once(ask, tally).await {
                Ok(found) => return Ok(found),
                Err(trouble) => trouble,
            };
            tries += 1;
            // Whatever it was, the model may have become another.
            *lock(&self.metadata) = None;
            let Some(asked) = trouble.again.filter(|_| tries < MAX_TRIES) else { return Err(trouble) };
            let wait = pace.after_failure(asked, fastrand::f64());
            if wait > self.tempo.retry_cap {
                return Err(trouble);
            }
            sleep(wait).await;
        }
    }

    /// Waits until the server wants to be asked again, or says that this is too long.
    async fn wait_as_asked(&self) -> Result<(), Trouble> {
        let wait = lock(&self.not_before).map_or(Duration::ZERO, |t| t.saturating_duration_since(Instant::now()));
        if wait > self.tempo.retry_cap {
            let detail = format!("the server does not want to be asked for another {} s", wait.as_secs());
            return Err(Trouble { outcome: Outcome::Busy, detail, again: None, reached: false });
        }
        sleep(wait).await;
        Ok(())
    }

    async fn once(&self, ask: &Ask, tally: &mut Tally) -> Result<Found, Trouble> {
        let meta = self.metadata().await.map_err(|t| Trouble { reached: false, ..t })?;
        let output = self.config.output.as_deref();
        let (body, head) = wire::request(ask, &meta, output).map_err(|w| Trouble { reached: false, ..w.into() })?;
        let mut request = self.request(Method::POST, &["infer"]);
        let kind = if head.is_some() { "application/octet-stream" } else { "application/json" };
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        if let Some(head) = head {
            request.headers_mut().insert(LENGTH_HEADER, HeaderValue::from(head));
        }
        if let Ok(key) = HeaderValue::from_str(&format!("\"{}\"", ask.id)) {
            request.headers_mut().insert("idempotency-key", key);
        }
        let bytes = body.len() as u64;
        *request.body_mut() = Some(body.into());
        let got = self.send(request).await;
        if got.as_ref().map_or_else(|t| t.reached, |_| true) {
            tally.calls += 1;
            tally.bytes += bytes;
        }
        let got = got?;
        let head = got.headers.get(LENGTH_HEADER).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
        Ok(wire::reply(&got.body, head, ask, output)?)
    }

    /// What the model takes, as the server says, asked once and kept while all goes well.
    async fn metadata(&self) -> Result<Arc<Metadata>, Trouble> {
        if let Some(known) = lock(&self.metadata).clone() {
            return Ok(known);
        }
        let server = self.send(Request::new(Method::GET, self.path(&["v2"]))).await;
        // One that says nothing of itself is spoken to in JSON.
        let binary = match server {
            Ok(got) => wire::speaks_binary(&got.body),
            Err(t) if matches!(t.outcome, Outcome::Refused | Outcome::Failed) => false,
            Err(t) => return Err(t),
        };
        let model = self.send(self.request(Method::GET, &[])).await?;
        let meta = Arc::new(wire::metadata(binary, &model.body)?);
        *lock(&self.metadata) = Some(meta.clone());
        Ok(meta)
    }

    /// To a path below the model's.
    fn request(&self, method: Method, more: &[&str]) -> Request {
        let version = self.config.version.as_deref();
        let model = ["v2", "models", &*self.config.policy.model];
        let path: Vec<&str> =
            model.into_iter().chain(version.iter().flat_map(|v| ["versions", v])).chain(more.iter().copied()).collect();
        Request::new(method, self.path(&path))
    }

    fn path(&self, parts: &[&str]) -> Url {
        let mut url = self.config.url.0.clone();
        // Only addresses without a path of their own refuse, and those are not read from a config.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(parts);
        }
        url
    }

    /// Sends, and reads the answer within bounds; one that is not 200 is a trouble.
    async fn send(&self, request: Request) -> Result<Got, Trouble> {
        let spare = request.try_clone();
        let first = self.exchange(request).await;
        let Some(again) = spare.filter(|_| first.as_ref().is_err_and(is_forbidden)) else { return first };
        if self.credentials.lock().await.refused() { self.exchange(again).await } else { first }
    }

    async fn exchange(&self, mut request: Request) -> Result<Got, Trouble> {
        let http = self.http()?;
        if let Some((name, value)) = self.log_in(&http).await? {
            request.headers_mut().insert(name, value);
        }
        let got = match http.execute(request).await {
            Ok(response) => read(response).await,
            Err(e) => Err(failure(e)),
        };
        let got = got.map_err(|f| self.failed(f))?;
        match got.status {
            200..=299 if got.cut => {
                let detail = format!("the answer is longer than {MAX_ANSWER} bytes");
                Err((Outcome::TooLarge, detail).into())
            }
            200..=299 => Ok(got),
            status => Err(self.refused(status, &got)),
        }
    }

    /// The header that says who we are, with a token that is still good.
    async fn log_in(&self, http: &reqwest::Client) -> Result<Option<(HeaderName, HeaderValue)>, Trouble> {
        let mut credentials = self.credentials.lock().await;
        let done = credentials.prepare(&cloud::Client::over(http.clone())).await;
        done.map_err(|e| match e {
            auth::Trouble::Passing(detail) => {
                Trouble { outcome: Outcome::Unreachable, detail, again: Some(None), reached: false }
            }
            auth::Trouble::Refused(detail) => {
                Trouble { outcome: Outcome::Refused, detail, again: None, reached: false }
            }
        })?;
        Ok(credentials.header())
    }

    fn http(&self) -> Result<reqwest::Client, Trouble> {
        let mut slot = lock(&self.http);
        if let Some(http) = &*slot {
            return Ok(http.clone());
        }
        let made = http(&self.config.url.0, &self.config.tls, self.config.timeout);
        let made = made.map_err(|e| Trouble {
            outcome: Outcome::Unreachable,
            detail: format!("{e:#}"),
            again: Some(None),
            reached: false,
        })?;
        Ok(slot.insert(made).clone())
    }

    fn failed(&self, failure: Failure) -> Trouble {
        if self.config.url.0.scheme() == "https" {
            // Certificates may have been renewed.
            *lock(&self.http) = None;
        }
        let detail = failure.detail().to_owned();
        match failure {
            Failure::Timeout => Trouble { outcome: Outcome::Timeout, detail, again: None, reached: true },
            Failure::Connect(_) => Trouble { outcome: Outcome::Unreachable, detail, again: Some(None), reached: false },
            Failure::Io(_) => Trouble { outcome: Outcome::Unreachable, detail, again: Some(None), reached: true },
        }
    }

    fn refused(&self, status: u16, got: &Got) -> Trouble {
        let text = String::from_utf8_lossy(&got.body[..got.body.len().min(MAX_REASON)]);
        let said: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let said = said.as_ref().and_then(|v| v["error"].as_str()).unwrap_or_else(|| text.trim());
        let detail = if said.is_empty() { status.to_string() } else { format!("{status}: {said}") };
        match status {
            // 409: the same question, asked before a restart, is still being answered.
            408 | 409 | 425 | 429 | 502 | 503 | 504 => {
                let text = |name| got.headers.get(name).and_then(|v| v.to_str().ok());
                let theirs = text(DATE).and_then(http_date).unwrap_or_else(Time::now);
                let wait = text(RETRY_AFTER).and_then(|v| retry_after(v, theirs));
                if let Some(wait) = wait {
                    *lock(&self.not_before) = Some(Instant::now() + wait);
                }
                Trouble { outcome: Outcome::Busy, detail, again: Some(wait), reached: true }
            }
            500..=599 => Trouble { outcome: Outcome::Failed, detail, again: None, reached: true },
            _ => Trouble { outcome: Outcome::Refused, detail, again: None, reached: true },
        }
    }
}

fn is_forbidden(trouble: &Trouble) -> bool {
    trouble.outcome == Outcome::Refused && ["401", "403"].iter().any(|s| trouble.detail.starts_with(s))
}

async fn read(mut response: Response) -> Result<Got, Failure> {
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let (mut body, mut cut) = (Vec::new(), false);
    while let Some(chunk) = response.chunk().await.map_err(failure)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            cut = true;
            break;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Got { status, headers, body, cut })
}

/// The first part of a text from outside, on one line and without control characters.
fn short(text: &str) -> String {
    let mut out = String::new();
    for c in text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > Answer::MAX_DETAIL {
            break;
        }
        out.push(c);
    }
    out
}

/// Knocks for `andon check --connect`: whether the model is ready, and takes windows of these sizes
/// (name, steps, channels). Gives what to tell.
///
/// # Errors
/// The first thing that is wrong.
pub async fn probe(config: &Config, windows: &[(String, usize, usize)]) -> Result<String> {
    let client = Client::new(config.clone(), Tempo::default());
    let model = &config.policy.model;
    if let Err(t) = client.send(client.request(Method::GET, &["ready"])).await {
        bail!("{:?}: model {model:?} is not ready: {}", config.url, short(&t.detail));
    }
    let meta = client.metadata().await.map_err(|t| anyhow::anyhow!("{:?}: {}", config.url, short(&t.detail)))?;
    for (name, steps, channels) in windows {
        if let Err((_, why)) = meta.input_for(*steps, *channels) {
            bail!("{:?}: model {model:?} does not take the windows of {name}: {why}", config.url);
        }
    }
    let how = if meta.binary { "binary tensors" } else { "JSON" };
    Ok(format!("{:?}: model {model:?} is ready and takes our windows ({how})", config.url))
}
