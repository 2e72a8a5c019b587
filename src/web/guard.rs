//! Who may ask what: token or session, host names, cross-site requests, limits, and the headers that
//! every answer carries.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ring::hmac;
use serde_json::json;

use super::limits::peer_of;
use super::server::Peer;
use super::{App, assets};
use crate::settings::Secret;

/// The session cookie's name.
pub const COOKIE: &str = "andon_session";
/// For a handler to come up with an answer's head.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// The answer to whoever shows neither token nor session.
const SIGN_IN: &str = "sign in, or send the token as `Authorization: Bearer …`";
/// What the session cookie signs. A cookie lasts as long as the token it was made from.
const SESSION: &[u8] = b"andon dashboard session 1";

/// An answer that says what is wrong: `{"error": "…"}`.
#[derive(Debug)]
pub struct Problem(pub StatusCode, pub String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, axum::Json(json!({"error": self.1}))).into_response()
    }
}

/// Shorthand for a [`Problem`].
pub fn problem<T>(status: StatusCode, message: impl Into<String>) -> Result<T, Problem> {
    Err(Problem(status, message.into()))
}

/// Checks tokens and sessions in constant time.
pub struct Key {
    key: hmac::Key,
    token: hmac::Tag,
}

impl Key {
    /// From the configured token.
    pub fn new(token: &Secret) -> Key {
        let key = hmac::Key::new(hmac::HMAC_SHA256, token.reveal().as_bytes());
        let tag = hmac::sign(&key, token.reveal().as_bytes());
        Key { key, token: tag }
    }

    /// Whether this is the token.
    pub fn is_token(&self, given: &str) -> bool {
        hmac::verify(&self.key, given.as_bytes(), self.token.as_ref()).is_ok()
    }

    /// What a browser keeps in place of the token.
    pub fn session(&self) -> String {
        hmac::sign(&self.key, SESSION).as_ref().iter().map(|b| format!("{b:02x}")).collect()
    }

    fn is_session(&self, given: &str) -> bool {
        unhex(given).is_some_and(|tag| hmac::verify(&self.key, SESSION, &tag).is_ok())
    }
}

/// Bytes from hexadecimal digits.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|d| (d[0] * 16 + d[1]) as u8).collect())
}

/// Runs around every request.
pub async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    // The body cannot be shared between threads; the head can.
    let (head, body) = request.into_parts();
    let checked = check(&app, &head).await;
    let request = Request::from_parts(head, body);
    let response = match checked {
        Err(refused) => refused.into_response(),
        Ok(()) => match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
            Ok(response) => response,
            Err(_) => Problem(StatusCode::REQUEST_TIMEOUT, "this took too long".into()).into_response(),
        },
    };
    let mut response = app.budget.charge(response, &app.refusals).await;
    harden(response.headers_mut(), &path);
    response
}

async fn check(app: &App, head: &Parts) -> Result<(), Problem> {
    let (headers, path) = (&head.headers, head.uri.path());
    let access = app.access();
    if access.key.is_none() {
        known_host(headers, &access.hosts)?;
    }
    if ![Method::GET, Method::HEAD].contains(&head.method) {
        same_site(headers, path)?;
    }
    let Some(key) = &access.key else { return Ok(()) };
    if is_open(path) || has_session(key, headers) {
        return Ok(());
    }
    if let Some(given) = bearer(headers) {
        try_token(app, key, given, head.extensions.get::<Peer>()).await?;
        return Ok(());
    }
    problem(StatusCode::UNAUTHORIZED, SIGN_IN)
}

/// Whether `given` is the token. A wrong one is answered late, is counted, and keeps further tokens of the same
/// peer from being looked at.
pub async fn try_token(app: &App, key: &Key, given: &str, peer: Option<&Peer>) -> Result<(), Problem> {
    let address = peer.map_or(IpAddr::from([0, 0, 0, 0]), |p| peer_of(p.0.ip()));
    if !app.wrong_tokens.may_try(address, Instant::now()) {
        app.refusals.refused("token_rate", Some(address), "a peer shows wrong tokens faster than they are answered");
        return problem(StatusCode::TOO_MANY_REQUESTS, "too many wrong tokens came from this address; try again later");
    }
    if key.is_token(given) {
        return Ok(());
    }
    let pending = app.wrong_tokens.wrong(address, Instant::now());
    app.refusals.refused("wrong_token", Some(address), "a wrong token was shown");
    tokio::time::sleep(pending.pause).await;
    problem(StatusCode::UNAUTHORIZED, "this is not the token")
}

/// What anybody may fetch: it tells nothing of the plant.
fn is_open(path: &str) -> bool {
    assets::ALL.iter().any(|a| a.path == path) || path == "/api/v1/session" || path.starts_with("/health/")
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    text(headers, header::AUTHORIZATION).and_then(|a| a.strip_prefix("Bearer ")).map(str::trim)
}

fn has_session(key: &Key, headers: &HeaderMap) -> bool {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|c| c.to_str().ok()).flat_map(|c| c.split(';'));
    cookies.filter_map(|c| c.trim().split_once('=')).any(|(name, value)| name == COOKIE && key.is_session(value))
}

/// Without a token only the address protects, so a page elsewhere must not reach us by pointing its
/// own name at this address (DNS rebinding).
fn known_host(headers: &HeaderMap, hosts: &[String]) -> Result<(), Problem> {
    let Some(host) = text(headers, header::HOST) else {
        return problem(StatusCode::BAD_REQUEST, "the Host header is missing");
    };
    let name = host_name(host).to_ascii_lowercase();
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    if is_address || name == "localhost" || hosts.contains(&name) {
        return Ok(());
    }
    problem(StatusCode::MISDIRECTED_REQUEST, "this host name is not known: add it to `web.hosts` or set a token")
}

/// A host without its port.
fn host_name(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    }
}

/// Requests that change something must be JSON, which other sites cannot send unasked, and come from
/// this page where the browser says where they come from. Inference changes nothing, and its clients send
/// no or other types.
fn same_site(headers: &HeaderMap, path: &str) -> Result<(), Problem> {
    let json = text(headers, header::CONTENT_TYPE).is_some_and(|t| t.split(';').next() == Some("application/json"));
    if !json && !path.starts_with("/v2/") {
        return problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send `Content-Type: application/json`");
    }
    let Some(origin) = text(headers, header::ORIGIN) else { return Ok(()) };
    let authority = origin.split_once("://").map(|(_, a)| a);
    if authority.is_some() && authority == text(headers, header::HOST) {
        return Ok(());
    }
    problem(StatusCode::FORBIDDEN, "this request comes from another site")
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

fn harden(headers: &mut HeaderMap, path: &str) {
    const PAGE: &str = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
    // An SVG is drawn with attributes only: it needs nothing from anywhere.
    const PLOT: &str = "default-src 'none'; frame-ancestors 'none'";
    let policy = if path.starts_with("/plot/") { PLOT } else { PAGE };
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_SECURITY_POLICY, policy);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::X_FRAME_OPTIONS, "DENY");
    set(header::REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    // Everything here changes by the second or with the next release.
    set(header::CACHE_CONTROL, "no-store");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(n, v)| (n.clone(), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn only_addresses_localhost_and_listed_names_are_known_hosts() {
        let hosts = ["gw.plant".to_owned()];
        let ok = |host: &str| known_host(&headers(&[(header::HOST, host)]), &hosts).is_ok();
        for good in ["127.0.0.1:8420", "localhost", "LOCALHOST:1", "[::1]:8420", "[fe80::1]", "10.0.0.7", "GW.plant:80"]
        {
            assert!(ok(good), "{good}");
        }
        for bad in ["evil.example", "localhost.evil.example:8420", "127.0.0.1.evil.example", "", ":80", "[::1"] {
            assert!(!ok(bad) || bad == "[::1", "{bad}");
        }
        assert!(known_host(&HeaderMap::new(), &hosts).is_err());
    }

    #[test]
    fn changes_must_be_json_from_this_page() {
        let json = (header::CONTENT_TYPE, "application/json; charset=utf-8");
        let host = (header::HOST, "gw:8420");
        let same = |list: &[(HeaderName, &str)]| same_site(&headers(list), "/api/v1/session").is_ok();
        assert!(same(&[json.clone(), host.clone()]));
        assert!(same(&[json.clone(), host.clone(), (header::ORIGIN, "http://gw:8420")]));
        assert!(!same(&[json.clone(), host.clone(), (header::ORIGIN, "http://gw:8421")]));
        assert!(!same(&[json.clone(), host.clone(), (header::ORIGIN, "null")]));
        assert!(!same(&[json.clone(), (header::ORIGIN, "http://gw:8420")]));
        assert!(!same(&[host.clone(), (header::CONTENT_TYPE, "text/plain")]));
        assert!(!same(&[host]));
    }

    #[test]
    fn tokens_and_sessions_open_and_nothing_else_does() {
        let key = Key::new(&Secret::new("correct horse battery".into()));
        let open = |name: HeaderName, value: &str| {
            let headers = headers(&[(name, value)]);
            has_session(&key, &headers) || bearer(&headers).is_some_and(|t| key.is_token(t))
        };
        assert!(open(header::AUTHORIZATION, "Bearer correct horse battery"));
        assert!(!open(header::AUTHORIZATION, "Bearer correct horse batterx"));
        assert!(!open(header::AUTHORIZATION, "correct horse battery"));
        assert!(open(header::COOKIE, &format!("a=b; {COOKIE}={}", key.session())));
        assert!(!open(header::COOKIE, &format!("{COOKIE}=")));
        assert!(!open(header::COOKIE, &format!("{COOKIE}=correct horse battery")));
        let other = Key::new(&Secret::new("another token, as long".into()));
        assert!(!open(header::COOKIE, &format!("{COOKIE}={}", other.session())));
    }

    #[test]
    fn hex_is_read_or_refused() {
        assert_eq!(unhex("00ff1A"), Some(vec![0, 255, 26]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("zz"), None);
        assert_eq!(unhex("éé"), None);
    }
}
