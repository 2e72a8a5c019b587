//! Over HTTP: the desired state with its ETag, and archives into a file, resumed where a try before
//! ended.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderValue, IF_NONE_MATCH, RANGE};
use reqwest::{Method, Request, Response, StatusCode, Url};
use ring::digest;
use tokio::time::timeout;

use super::addresses::{self, OthersOnly};
use super::desired::MAX_BODY;
use super::{Config, Wanted};
use crate::forward::cloud::client::{bearer, builder, failure, http};

/// A download may take this long in all, for one try: 256 MiB over a slow line.
pub const WHOLE: Duration = Duration::from_secs(4 * 3600);
/// No byte for this long, and the connection is given up.
pub const STALL: Duration = Duration::from_secs(30);

/// A download that brings less than this ...
pub const LEAST_PROGRESS: u64 = 30 << 10;
/// ... within this time is given up, and resumed later.
pub const PROGRESS_TIME: Duration = Duration::from_secs(30);

/// Why something was not fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It may work later.
    Passing(String),
    /// It will not, as long as the same is asked for.
    Final(String),
}

use Trouble::{Final, Passing};

/// Speaks to the cloud about models.
pub struct Courier {
    config: Config,
    http: Option<reqwest::Client>,
    etag: Option<HeaderValue>,
}

impl Courier {
    /// Has not asked yet.
    pub fn new(config: Config) -> Courier {
        Courier { config, http: None, etag: None }
    }

    /// The desired state's text, if it has changed since it was last given out.
    ///
    /// # Errors
    /// Always passing: the cloud is asked again.
    pub async fn desired(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Some(url) = self.config.desired.as_ref().map(|a| a.0.clone()) else { return Ok(None) };
        let mut request = request(&self.config, url);
        if let Some(etag) = &self.etag {
            request.headers_mut().insert(IF_NONE_MATCH, etag.clone());
        }
        let mut response = match self.ask(request).await {
            Ok(response) => response,
            Err(Passing(why) | Final(why)) => return Err(why),
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED => return Ok(None),
            status => return Err(format!("it answers {status}")),
        }
        let mut body = Vec::new();
        while let Some(chunk) = chunk(&mut response).await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > MAX_BODY {
                return Err(format!("it is longer than {MAX_BODY} bytes"));
            }
        }
        self.etag = response.headers().get(ETAG).cloned();
        Ok(Some(body))
    }

    /// The last desired state was of no use: it is to be given out again.
    pub fn forget(&mut self) {
        self.etag = None;
    }

    async fn ask(&mut self, request: Request) -> Result<Response, Trouble> {
        let client = match &self.http {
            Some(client) => client,
            None => {
                let built = http(request.url(), &self.config.tls, WHOLE).map_err(|e| Passing(format!("{e:#}")))?;
                self.http.insert(built)
            }
        };
        let answer = ask(client, request).await;
        if answer.is_err() {
            // Certificates may have been renewed: they are read again.
            self.http = None;
        }
        answer
    }
}

async fn ask(client: &reqwest::Client, request: Request) -> Result<Response, Trouble> {
    match timeout(STALL, client.execute(request)).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(e)) => Err(Passing(failure(e).detail().to_owned())),
        Err(_) => Err(Passing(format!("no answer within {STALL:?}"))),
    }
}

/// A request that shows the token to nobody but the cloud itself.
fn request(config: &Config, url: Url) -> Request {
    let own = is_own(config, &url);
    let mut request = Request::new(Method::GET, url);
    if let Some(token) = config.token.as_ref().filter(|_| own).and_then(|t| bearer(t.reveal())) {
        request.headers_mut().insert(AUTHORIZATION, token);
    }
    request
}

fn is_own(config: &Config, url: &Url) -> bool {
    config.desired.as_ref().is_some_and(|d| d.0.origin() == url.origin())
}

/// A client for archives; it connects to this host and its link only where that is allowed.
fn client_for(config: &Config, url: &Url) -> Result<reqwest::Client, Trouble> {
    let builder = builder(url, &config.tls, WHOLE).map_err(|e| Passing(format!("{e:#}")))?;
    let free = config.local_addresses || is_own(config, url);
    if !free {
        addresses::check(url).map_err(Final)?;
    }
    let builder = if free { builder } else { builder.dns_resolver(Arc::new(OthersOnly)) };
    builder.build().map_err(|e| Passing(e.to_string()))
}

/// Brings an archive from `url` into the file `to`, which may hold a part of it already.
///
/// # Errors
/// Whether it is worth another try, and why. What has come stays in `to`, unless it is of no use.
pub async fn download(config: &Config, url: &str, wanted: &Wanted, to: &Path) -> Result<u64, Trouble> {
    let url = Url::parse(url).map_err(|e| Final(format!("its `url` is not an address: {e}")))?;
    let disk = |e: std::io::Error| Passing(format!("it cannot be written: {e}"));
    let client = client_for(config, &url)?;
    let mut file = File::options().create(true).append(true).read(true).open(to).map_err(disk)?;
    let (mut have, mut hash) = hashed(&mut file).map_err(disk)?;
    let mut resumed = have > 0;
    let mut request = request(config, url);
    if have > 0 {
        let range = HeaderValue::from_str(&format!("bytes={have}-"));
        request.headers_mut().extend(range.ok().map(|r| (RANGE, r)));
    }
    let mut response = ask(&client, request).await?;
    match response.status() {
        StatusCode::PARTIAL_CONTENT if begins_at(&response, have) => {}
        StatusCode::OK => {
            file.set_len(0).map_err(disk)?;
            (have, hash, resumed) = (0, digest::Context::new(&digest::SHA256), false);
        }
        // All of it is here, or more than there is: the digest tells.
        StatusCode::RANGE_NOT_SATISFIABLE if have > 0 => return check(have, hash, wanted, to, true),
        status => return Err(refused(status)),
    }
    let most = config.max_bundle;
    if response.content_length().is_some_and(|n| n.saturating_add(have) > most) {
        return Err(too_large(most, to));
    }
    let mut progress = Progress { since: Instant::now(), bytes: 0 };
    while let Some(chunk) = chunk(&mut response).await.map_err(Passing)? {
        have += chunk.len() as u64;
        if have > most {
            return Err(too_large(most, to));
        }
        hash.update(&chunk);
        file.write_all(&chunk).map_err(disk)?;
        progress.came(chunk.len() as u64, Instant::now()).map_err(Passing)?;
    }
    check(have, hash, wanted, to, resumed)
}

fn too_large(most: u64, to: &Path) -> Trouble {
    let _ = std::fs::remove_file(to);
    Final(format!("it is larger than {most} bytes (`max_bundle`)"))
}

/// What came since when.
struct Progress {
    since: Instant,
    bytes: u64,
}

impl Progress {
    /// So many bytes more.
    ///
    /// # Errors
    /// When less than [`LEAST_PROGRESS`] came within [`PROGRESS_TIME`].
    fn came(&mut self, bytes: u64, now: Instant) -> Result<(), String> {
        self.bytes += bytes;
        if now.saturating_duration_since(self.since) < PROGRESS_TIME {
            return Ok(());
        }
        if self.bytes < LEAST_PROGRESS {
            return Err(format!("{} bytes came in {PROGRESS_TIME:?}; {LEAST_PROGRESS} are the least", self.bytes));
        }
        *self = Progress { since: now, bytes: 0 };
        Ok(())
    }
}

/// Whether it is what was wanted. Pieces of two archives are worth another try from the beginning.
fn check(have: u64, hash: digest::Context, wanted: &Wanted, to: &Path, resumed: bool) -> Result<u64, Trouble> {
    let found: String = hash.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
    if found == wanted.sha256 {
        return Ok(have);
    }
    let _ = std::fs::remove_file(to);
    let why = format!("its SHA-256 is {found}, and {} is wanted", wanted.sha256);
    Err(if resumed { Passing(why) } else { Final(why) })
}

async fn chunk(response: &mut Response) -> Result<Option<bytes::Bytes>, String> {
    match timeout(STALL, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(e)) => Err(format!("the connection broke: {}", failure(e).detail())),
        Err(_) => Err(format!("nothing came for {STALL:?}")),
    }
}

/// What there is of a file, hashed; the next byte goes behind it.
fn hashed(file: &mut File) -> std::io::Result<(u64, digest::Context)> {
    let (mut have, mut hash, mut buffer) = (0, digest::Context::new(&digest::SHA256), vec![0; 1 << 16]);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((have, hash));
        }
        hash.update(&buffer[..n]);
        have += n as u64;
    }
}

fn begins_at(response: &Response, have: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE).and_then(|v| v.to_str().ok());
    let start = range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse::<u64>().ok());
    start == Some(have)
}

fn refused(status: StatusCode) -> Trouble {
    let why = format!("its address answers {status}");
    let passing = status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 404 | 408 | 409 | 425 | 429);
    if passing || status.is_success() { Passing(why) } else { Final(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_that_trickles_is_given_up() {
        let begin = Instant::now();
        let mut progress = Progress { since: begin, bytes: 0 };
        let trickle = (1..=16).map(|n| progress.came(1, begin + Duration::from_secs(2 * n)));
        let given_up = trickle.filter(Result::is_err).count();
        assert_eq!(given_up, 2);
        let mut progress = Progress { since: begin, bytes: 0 };
        let flow = (1..=600).map(|n| progress.came(4 << 10, begin + Duration::from_secs(n)));
        assert!(flow.into_iter().all(|came| came.is_ok()));
    }
}
