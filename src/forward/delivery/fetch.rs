//! Over HTTP: the desired state with its ETag, and archives into a file, resumed where a try before
//! ended.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderValue, IF_NONE_MATCH, RANGE};
use reqwest::{Method, Request, Response, StatusCode, Url};
use ring::digest;
use tokio::time::timeout;

use super::desired::MAX_BODY;
use super::{Config, Wanted};
use crate::forward::cloud::client::{bearer, failure, http};

/// A download may take this long in all, for one try: 256 MiB over a slow line.
const WHOLE: Duration = Duration::from_secs(4 * 3600);
/// No byte for this long, and the connection is given up.
const STALL: Duration = Duration::from_secs(30);

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
        let mut request = self.request(url);
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

    /// Brings an archive from `url` into the file `to`, which may hold a part of it already.
    ///
    /// # Errors
    /// Whether it is worth another try, and why. What has come stays in `to`, unless it is of no use.
    pub async fn fetch(&mut self, url: &str, wanted: &Wanted, to: &Path) -> Result<u64, Trouble> {
        let url = Url::parse(url).map_err(|e| Final(format!("its `url` is not an address: {e}")))?;
        let disk = |e: std::io::Error| Passing(format!("it cannot be written: {e}"));
        let mut file = File::options().create(true).append(true).read(true).open(to).map_err(disk)?;
        let (mut have, mut hash) = hashed(&mut file).map_err(disk)?;
        let mut resumed = have > 0;
        let mut request = self.request(url);
        if have > 0 {
            let range = HeaderValue::from_str(&format!("bytes={have}-"));
            request.headers_mut().extend(range.ok().map(|r| (RANGE, r)));
        }
        let mut response = self.ask(request).await?;
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
        let most = self.config.max_bundle;
        if response.content_length().is_some_and(|n| n.saturating_add(have) > most) {
            return Err(self.too_large(to));
        }
        while let Some(chunk) = chunk(&mut response).await.map_err(Passing)? {
            have += chunk.len() as u64;
            if have > most {
                return Err(self.too_large(to));
            }
            hash.update(&chunk);
            file.write_all(&chunk).map_err(disk)?;
        }
        check(have, hash, wanted, to, resumed)
    }

    fn too_large(&self, to: &Path) -> Trouble {
        let _ = std::fs::remove_file(to);
        Final(format!("it is larger than {} bytes (`max_bundle`)", self.config.max_bundle))
    }

    fn request(&self, url: Url) -> Request {
        let own = self.config.desired.as_ref().is_some_and(|d| d.0.origin() == url.origin());
        let mut request = Request::new(Method::GET, url);
        // Nobody but the cloud itself is shown its token.
        if let Some(token) = self.config.token.as_ref().filter(|_| own).and_then(|t| bearer(t.reveal())) {
            request.headers_mut().insert(AUTHORIZATION, token);
        }
        request
    }

    async fn ask(&mut self, request: Request) -> Result<Response, Trouble> {
        let client = match &self.http {
            Some(client) => client,
            None => {
                let built = http(request.url(), &self.config.tls, WHOLE).map_err(|e| Passing(format!("{e:#}")))?;
                self.http.insert(built)
            }
        };
        match timeout(STALL, client.execute(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(e)) => {
                // Certificates may have been renewed: they are read again.
                self.http = None;
                Err(Passing(failure(e).detail().to_owned()))
            }
            Err(_) => Err(Passing(format!("no answer within {STALL:?}"))),
        }
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
