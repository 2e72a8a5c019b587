//! Who we are to the cloud: a bearer token, an API key, a name and password, or tokens that a server gives
//! out for a secret (OAuth 2.0 client credentials, RFC 6749 §4.4). Secrets in files are read again.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use serde::Deserialize;
use tokio::time::Instant;

use super::client::{Client, Failure};
use super::config::Address;
use crate::metrics::printable;
use crate::settings::{Secret, Section};

/// The header of an API key unless the config says otherwise.
const API_KEY_HEADER: &str = "x-api-key";
/// A token is renewed when so much of its life is left, or a fifth of it where that is less: a request
/// that is under way must not outlive it.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// The longest that a token is used, whatever its server says.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A refused token is not renewed more often than this: the refusal may have another reason.
const RENEW_AT_MOST: Duration = Duration::from_secs(10);
/// Longer texts of a token server are not shown.
const SHOWN: usize = 200;

/// A secret and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// As it was when the config was read.
    pub secret: Secret,
    /// Read again when it is no longer good.
    pub file: Option<PathBuf>,
}

impl Kept {
    /// `key` or `key_file`.
    fn read(s: &Section<'_>, key: &str, secret: Option<Secret>) -> Option<Kept> {
        Some(Kept { secret: secret?, file: s.path_of(key) })
    }

    /// Reads the file again; `true` when it holds another secret than before.
    fn reread(&mut self) -> bool {
        let Some(path) = &self.file else { return false };
        let Ok(text) = std::fs::read_to_string(path) else { return false };
        let text = text.trim_end_matches(['\r', '\n']);
        // Empty files are half written.
        if text.is_empty() || text == self.secret.reveal() {
            return false;
        }
        self.secret = Secret::new(text.to_owned());
        true
    }
}

/// How we show who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all, or by a client certificate alone.
    #[default]
    None,
    /// `Authorization: Bearer …`.
    Bearer(Kept),
    /// A header of the cloud's own.
    ApiKey(HeaderName, Kept),
    /// `Authorization: Basic …`.
    Basic(String, Kept),
    /// A bearer token that another server gives out.
    OAuth2(OAuth2),
}

/// `[cloud.oauth2]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OAuth2 {
    /// Where tokens are given out.
    pub token_url: Address,
    /// Who asks.
    pub client_id: String,
    /// With what.
    pub secret: Kept,
    /// What for, as that server wants it.
    pub scope: Option<String>,
    /// The same, for those servers that want it so.
    pub audience: Option<String>,
}

impl Auth {
    /// Reads token, api_key, api_key_header, username, password and the table oauth2. `address` reads an
    /// address by its key.
    pub fn read(s: &Section<'_>, address: impl Fn(&Section<'_>, &str) -> Address) -> Auth {
        let token = Kept::read(s, "token_file", s.secret("token"));
        let api_key = Kept::read(s, "api_key_file", s.secret("api_key"));
        let password = Kept::read(s, "password_file", s.secret("password"));
        let (header, username) = (s.string("api_key_header"), s.string("username"));
        let oauth2 = s.section("oauth2").and_then(|o| OAuth2::read(&o, address));
        let all = [("token", &token), ("api_key", &api_key), ("password", &password)];
        for (key, kept) in all {
            let plain =
                |k: &Kept| k.secret.reveal().bytes().all(|b| b.is_ascii_graphic()) && !k.secret.reveal().is_empty();
            if key != "password" && kept.as_ref().is_some_and(|k| !plain(k)) {
                let key = if s.has(key) { key.to_owned() } else { format!("{key}_file") };
                s.problem(&key, "is not a token: one line of printable characters without spaces is");
            }
        }
        let n = all.iter().filter(|(_, kept)| kept.is_some()).count() + usize::from(s.has("oauth2"));
        if n > 1 {
            s.problem("url", "more than one way to log in: give token, api_key, username with password, or oauth2");
        }
        if username.is_some() != password.is_some() {
            s.problem("username", "goes with a `password` or `password_file`, and the other way round");
        }
        if header.is_some() && api_key.is_none() {
            s.problem("api_key_header", "needs an `api_key` or `api_key_file`");
        }
        let header = header.unwrap_or_else(|| API_KEY_HEADER.to_owned());
        let header = HeaderName::from_bytes(header.as_bytes()).unwrap_or_else(|_| {
            s.problem("api_key_header", "is not the name of an HTTP header");
            HeaderName::from_static(API_KEY_HEADER)
        });
        match (token, api_key, username.zip(password), oauth2) {
            (Some(token), ..) => Auth::Bearer(token),
            (_, Some(key), ..) => Auth::ApiKey(header, key),
            (_, _, Some((name, password)), _) => Auth::Basic(name, password),
            (_, _, _, Some(oauth2)) => Auth::OAuth2(oauth2),
            _ => Auth::None,
        }
    }

    /// The bearer token, where that is how, as it was when the config was read.
    pub fn token(&self) -> Option<&Secret> {
        if let Auth::Bearer(kept) = self { Some(&kept.secret) } else { None }
    }

    fn kept(&mut self) -> Option<&mut Kept> {
        match self {
            Auth::None => None,
            Auth::Bearer(kept) | Auth::ApiKey(_, kept) | Auth::Basic(_, kept) => Some(kept),
            Auth::OAuth2(oauth2) => Some(&mut oauth2.secret),
        }
    }
}

impl OAuth2 {
    fn read(s: &Section<'_>, address: impl Fn(&Section<'_>, &str) -> Address) -> Option<OAuth2> {
        let token_url = address(s, "token_url");
        let client_id = s.required_string("client_id");
        let secret = Kept::read(s, "client_secret_file", s.secret("client_secret"));
        if secret.is_none() && !s.has("client_secret_file") {
            s.problem("client_secret", "is missing: name the file as `client_secret_file`");
        }
        let (scope, audience) = (s.string("scope"), s.string("audience"));
        Some(OAuth2 { token_url, client_id, secret: secret?, scope, audience })
    }
}

/// Why there are no credentials.
#[derive(Debug)]
pub enum Trouble {
    /// The token server does not answer, or is busy.
    Passing(String),
    /// It refuses us.
    Refused(String),
}

/// What is shown at present.
pub struct Credentials {
    auth: Auth,
    /// What an OAuth 2.0 server gave last.
    token: Option<Token>,
}

struct Token {
    value: HeaderValue,
    got: Instant,
    renew: Instant,
}

impl Credentials {
    /// As the config has them.
    pub fn new(auth: &Auth) -> Credentials {
        Credentials { auth: auth.clone(), token: None }
    }

    /// The header to send, if any.
    pub fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        let sensitive = |text: String| {
            let mut value = HeaderValue::from_str(&text).ok()?;
            value.set_sensitive(true);
            Some(value)
        };
        match &self.auth {
            Auth::None => None,
            Auth::Bearer(kept) => Some((AUTHORIZATION, sensitive(format!("Bearer {}", kept.secret.reveal()))?)),
            Auth::ApiKey(name, kept) => Some((name.clone(), sensitive(kept.secret.reveal().to_owned())?)),
            Auth::Basic(name, kept) => Some((AUTHORIZATION, sensitive(basic(name, kept.secret.reveal()))?)),
            Auth::OAuth2(_) => self.token.as_ref().map(|t| (AUTHORIZATION, t.value.clone())),
        }
    }

    /// Gets a token where one is needed and there is none, or it is about to expire.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn prepare(&mut self, client: &Client) -> Result<(), Trouble> {
        let Auth::OAuth2(oauth2) = &mut self.auth else { return Ok(()) };
        if self.token.as_ref().is_some_and(|t| Instant::now() < t.renew) {
            return Ok(());
        }
        oauth2.secret.reread();
        self.token = Some(fetch(oauth2, client).await?);
        Ok(())
    }

    /// The other side refuses what was shown; `true` when there is something else to show.
    pub fn refused(&mut self) -> bool {
        let reread = self.auth.kept().is_some_and(Kept::reread);
        let Some(token) = &self.token else { return reread };
        // One that is brand-new is not made good by another.
        let renew = reread || token.got.elapsed() > RENEW_AT_MOST;
        if renew {
            self.token = None;
        }
        renew
    }

    /// The last resort after a refusal, for the time after a pause.
    pub fn forget(&mut self) {
        self.token = None;
    }
}

fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{name}:{password}").as_bytes()))
}

async fn fetch(oauth2: &OAuth2, client: &Client) -> Result<Token, Trouble> {
    let mut form = vec![("grant_type", "client_credentials")];
    form.extend(oauth2.scope.as_deref().map(|s| ("scope", s)));
    form.extend(oauth2.audience.as_deref().map(|a| ("audience", a)));
    let body = form.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect::<Vec<_>>().join("&");
    let who = basic(&escaped(&oauth2.client_id), &escaped(oauth2.secret.secret.reveal()));
    let place = &oauth2.token_url;
    let answer = client.form(&place.0, &who, body).await;
    let answer =
        answer.map_err(|e: Failure| Trouble::Passing(format!("the token server {place:?}: {}", e.detail())))?;
    let status = answer.status;
    if !(200..300).contains(&status) {
        let text = harmless(&answer.body, &[oauth2.secret.secret.reveal(), &who]);
        let why = format!("{status}: the token server {place:?} gives no token: {text}");
        let passing = status >= 500 || matches!(status, 408 | 425 | 429);
        return Err(if passing { Trouble::Passing(why) } else { Trouble::Refused(why) });
    }
    granted(&answer.body, Instant::now())
        .map_err(|why| Trouble::Refused(format!("the token server {place:?} gives no usable token: {why}")))
}

/// The beginning of a token server's answer, or nothing of it where any of it repeats a secret: some echo the
/// request. `shown` is the secret and the value of `Authorization`.
fn harmless(body: &[u8], shown: &[&str]) -> String {
    let text = String::from_utf8_lossy(body);
    let basic = |s: &str| s.strip_prefix("Basic ").map(str::to_owned);
    let forms =
        shown.iter().flat_map(|s| [Some((*s).to_owned()), Some(escaped(s)), basic(s), Some(base64(s.as_bytes()))]);
    let echoes = forms.flatten().any(|form| !form.is_empty() && text.contains(form.trim_end_matches('=')));
    if echoes { "[hidden: it repeats the secret]".into() } else { printable(&text, SHOWN) }
}

/// What a token server's good answer says (RFC 6749, 5.1).
fn granted(body: &[u8], now: Instant) -> Result<Token, &'static str> {
    #[derive(Deserialize)]
    struct Granted {
        access_token: String,
        token_type: Option<String>,
        expires_in: Option<f64>,
    }
    let granted: Granted = serde_json::from_slice(body).map_err(|_| "not the JSON of RFC 6749")?;
    if granted.token_type.is_some_and(|t| !t.eq_ignore_ascii_case("bearer")) {
        return Err("not a bearer token");
    }
    let value = HeaderValue::from_str(&format!("Bearer {}", granted.access_token));
    let mut value = value.map_err(|_| "it cannot stand in a header")?;
    value.set_sensitive(true);
    let life = granted.expires_in.filter(|s| s.is_finite() && *s > 0.0).map(Duration::try_from_secs_f64);
    let life = life.and_then(Result::ok).unwrap_or(LONGEST_LIFE).min(LONGEST_LIFE);
    Ok(Token { value, got: now, renew: now + (life - RENEW_BEFORE.min(life / 5)) })
}

/// An answer as a function of bytes, for `crate::fuzz`: a token is renewed before its end, and never shown.
#[cfg(any(test, feature = "fuzz"))]
pub(crate) fn any_bytes(bytes: &[u8]) {
    let now = Instant::now();
    if let Ok(token) = granted(bytes, now) {
        assert!(token.renew >= now && token.renew <= now + LONGEST_LIFE && token.value.is_sensitive());
    }
}

/// As in a form: what is not plain becomes `%XX`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0_u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for i in 0..4 {
            let digit = DIGITS[(number >> (18 - 6 * i)) as usize & 63];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        let all = ["", "f", "fo", "foo", "foob", "fooba", "foobar"].map(|t| base64(t.as_bytes()));
        assert_eq!(all, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"]);
        assert_eq!(basic("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }

    #[test]
    fn an_answer_that_repeats_the_secret_is_not_shown() {
        let who = basic("gw", "s3cr3t+/x");
        let secrets = ["s3cr3t+/x", who.as_str()];
        let echoes = [
            format!("{{\"error\":\"invalid_client\",\"headers\":{{\"authorization\":\"{who}\"}}}}"),
            format!("{}s3cr3t+/x", " ".repeat(500)),
            "client_secret=s3cr3t%2B%2Fx".to_owned(),
            base64(b"s3cr3t+/x"),
        ];
        for echo in echoes {
            assert_eq!(harmless(echo.as_bytes(), &secrets), "[hidden: it repeats the secret]", "{echo}");
        }
        assert_eq!(harmless(b"{\"error\":\"x\"}\n\x1b[31m", &secrets), "{\"error\":\"x\"}\\n\\u{1b}[31m");
    }

    #[test]
    fn secrets_are_read_again_and_never_shown() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("token");
        let auth = Auth::Bearer(Kept { secret: Secret::new("old".into()), file: Some(file.clone()) });
        let mut credentials = Credentials::new(&auth);
        assert!(!credentials.refused(), "no file yet");
        std::fs::write(&file, "first\n").expect("written");
        assert!(credentials.refused());
        assert!(!credentials.refused());
        std::fs::write(&file, "").expect("written");
        assert!(!credentials.refused(), "half-written files are not a token");
        let (_, value) = credentials.header().expect("a header");
        assert_eq!(value.to_str().ok(), Some("Bearer first"));
        assert!(!format!("{value:?}{:?}", credentials.auth).contains("first"));
    }
}
