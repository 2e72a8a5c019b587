//! One HTTP client for the cloud: bodies, headers, and answers read within bounds.

use std::error::Error;
use std::io::Write;
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, DATE, HeaderName, HeaderValue, RETRY_AFTER,
};
use reqwest::{Certificate, Identity, Method, Request, Response, Url, redirect};

use super::auth::{Credentials, Trouble};
use super::config::{Compress, Config};
use crate::forward::reply::Answer;
use crate::tls::Tls;

/// Answers are read up to here; a longer one counts as an answer without a body.
const MAX_ANSWER: usize = 1 << 20;

/// How long setting up a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections idle for longer are not used again: most servers close theirs after a minute.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Level 1 is where telemetry compresses at line speed; more costs much and gains little.
const ZSTD_LEVEL: i32 = 1;

/// What is needed to send the same request again, byte for byte.
pub struct Parcel {
    body: Vec<u8>,
    coding: Option<&'static str>,
    content_type: &'static str,
    /// The same for the same content, and only for that.
    idempotency_key: String,
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Failure {
    /// Not within the time allowed.
    Timeout,
    /// No connection could be made.
    Connect(String),
    /// The connection broke.
    Io(String),
}

impl Failure {
    /// The word used in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::Connect(_) => "connect",
            Failure::Io(_) => "io",
        }
    }

    /// For a person.
    pub fn detail(&self) -> &str {
        match self {
            Failure::Timeout => "no answer in time",
            Failure::Connect(why) | Failure::Io(why) => why,
        }
    }
}

impl Parcel {
    /// Packs a body.
    ///
    /// # Errors
    /// When the compressor fails, which it does only for want of memory.
    pub fn new(body: Vec<u8>, content_type: &'static str, compress: Compress) -> Result<Parcel> {
        let idempotency_key = key(&body);
        let (body, coding) = match compress {
            Compress::None => (body, None),
            Compress::Gzip => {
                let mut gzip = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
                gzip.write_all(&body).context("compressing")?;
                (gzip.finish().context("compressing")?, Some("gzip"))
            }
            Compress::Zstd => (zstd::bulk::compress(&body, ZSTD_LEVEL).context("compressing")?, Some("zstd")),
        };
        Ok(Parcel { body, coding, content_type, idempotency_key })
    }

    /// Bytes on the wire, headers aside.
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

/// A structured-field string over the uncompressed content. Events carry their ids, so a resend has
/// the same key and half a batch has another; and should the settings change what an event holds,
/// the key changes with it, as the other side expects.
fn key(body: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, body);
    let hex: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("\"{hex}\"")
}

/// Speaks to one address.
pub struct Client {
    http: reqwest::Client,
}

impl Client {
    /// Reads certificates as they are now.
    ///
    /// # Errors
    /// When a certificate or key file cannot be used.
    pub fn new(config: &Config) -> Result<Client> {
        Ok(Client { http: http(&config.url.0, &config.tls, config.timeout)? })
    }

    /// Over connections that are there already.
    pub(in crate::forward) fn over(http: reqwest::Client) -> Client {
        Client { http }
    }

    /// Posts a form in the name of `who`, an Authorization header.
    pub async fn form(&self, url: &Url, who: &str, body: String) -> Result<Answer, Failure> {
        let mut request = Request::new(Method::POST, url.clone());
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Ok(mut who) = HeaderValue::from_str(who) {
            who.set_sensitive(true);
            headers.insert(AUTHORIZATION, who);
        }
        *request.body_mut() = Some(body.into());
        read(self.http.execute(request).await.map_err(failure)?).await
    }

    /// Sends and reads the answer. Dropping the future closes the connection.
    pub async fn send(
        &self,
        config: &Config,
        credentials: Option<(HeaderName, HeaderValue)>,
        parcel: &Parcel,
    ) -> Result<Answer, Failure> {
        let mut request = Request::new(Method::POST, config.url.0.clone());
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(parcel.content_type));
        if let Some(coding) = parcel.coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
        if let Ok(key) = HeaderValue::from_str(&parcel.idempotency_key) {
            headers.insert("idempotency-key", key);
        }
        if let Some((name, value)) = credentials {
            headers.insert(name, value);
        }
        *request.body_mut() = Some(parcel.body.clone().into());
        read(self.http.execute(request).await.map_err(failure)?).await
    }
}

/// Dials once, without sending a record: for `andon check --connect`. Gives the HTTP status of an
/// OPTIONS request, which says only that somebody is there.
///
/// # Errors
/// When certificates cannot be used, or nobody answers in time.
pub async fn probe(config: &Config) -> Result<u16> {
    let client = Client::new(config)?;
    let mut credentials = Credentials::new(&config.auth);
    if let Err(Trouble::Passing(why) | Trouble::Refused(why)) = credentials.prepare(&client).await {
        bail!(why);
    }
    let mut request = Request::new(Method::OPTIONS, config.url.0.clone());
    if let Some((name, value)) = credentials.header() {
        request.headers_mut().insert(name, value);
    }
    match client.http.execute(request).await {
        Ok(response) => Ok(response.status().as_u16()),
        Err(e) => bail!("{:?}: {}", config.url, failure(e).detail()),
    }
}

async fn read(mut response: Response) -> Result<Answer, Failure> {
    let status = response.status().as_u16();
    let text = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (retry_after, date) = (text(RETRY_AFTER), text(DATE));
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= MAX_ANSWER => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                body = Vec::new();
                break;
            }
            Ok(None) => break,
            // What it says of single records is lost, so whether they were taken is not known.
            Err(e) if matches!(status, 200 | 207) => return Err(failure(e)),
            Err(_) => break,
        }
    }
    Ok(Answer { status, retry_after, date, body })
}

/// Why a request came to nothing, without the address.
pub(in crate::forward) fn failure(e: reqwest::Error) -> Failure {
    // The address may hold a secret in its query, so it is not shown.
    let e = e.without_url();
    if e.is_timeout() && !e.is_connect() {
        return Failure::Timeout;
    }
    // Each layer repeats that it failed; only the innermost says why.
    let mut inner: &dyn Error = &e;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if e.is_connect() { Failure::Connect(inner.to_string()) } else { Failure::Io(inner.to_string()) }
}

/// An `Authorization` header, marked as a secret.
pub(in crate::forward) fn bearer(token: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

/// An HTTP client for one address: certificates as they are on disk now, no redirects, no proxies, no
/// retries of its own.
///
/// # Errors
/// When a certificate or key file cannot be used.
pub(in crate::forward) fn http(url: &Url, tls: &Tls, timeout: Duration) -> Result<reqwest::Client> {
    builder(url, tls, timeout)?.build().context("setting up the HTTP client")
}

/// The same before it is built.
///
/// # Errors
/// As [`http`].
pub(in crate::forward) fn builder(url: &Url, tls: &Tls, timeout: Duration) -> Result<reqwest::ClientBuilder> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("andon/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        .no_proxy()
        .retry(reqwest::retry::never())
        .timeout(timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true);
    let builder = if url.scheme() == "http" || tls.ca.is_some() {
        // Ours trusts nobody but `tls.ca`, and needs no certificate store for plain HTTP.
        builder.tls_backend_preconfigured(tls.client_config()?)
    } else {
        with_system_roots(builder, tls)?
    };
    Ok(builder)
}

fn with_system_roots(builder: reqwest::ClientBuilder, tls: &Tls) -> Result<reqwest::ClientBuilder> {
    static PROVIDER: Once = Once::new();
    // Fails only when another part was first, and then there is one.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let builder = builder.tls_certs_merge(Vec::<Certificate>::new());
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let mut pem = std::fs::read(cert).with_context(|| format!("reading {}", cert.display()))?;
            pem.push(b'\n');
            pem.extend(std::fs::read(key).with_context(|| format!("reading {}", key.display()))?);
            Ok(builder.identity(Identity::from_pem(&pem).context("using the client certificate")?))
        }
        _ => Ok(builder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_the_same_for_the_same_content_only() {
        let parcel = |body: &str, compress| Parcel::new(body.into(), "x/y", compress).expect("packed").idempotency_key;
        assert_eq!(parcel("[1,2]", Compress::Zstd), parcel("[1,2]", Compress::None));
        assert_ne!(parcel("[1,2]", Compress::None), parcel("[1]", Compress::None));
        let key = parcel("[1,2]", Compress::Gzip);
        assert!(key.len() == 66 && key.starts_with('"') && key.ends_with('"'), "{key}");
    }

    #[test]
    fn https_without_a_ca_uses_the_system_roots() {
        let config = Config::to("https://127.0.0.1:9/".parse().expect("an address"));
        // Whether there are any depends on the machine; that a provider is found does not.
        if let Err(e) = Client::new(&config) {
            assert!(format!("{e:#}").to_lowercase().contains("certificate"), "{e:#}");
        }
    }
}
