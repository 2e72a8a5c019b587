//! How the cloud sink shows who it is: an API key, a name and password, and tokens that a server of its own
//! gives out, which expire and are refused.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use andon::forward::memory::MemoryOutbox;
use andon::metrics::Health;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use tokio::net::TcpListener;

use crate::rig::{config, fill, start, until};

/// Takes events from those who show the right header, and gives out tokens that count up.
#[derive(Default)]
struct Gate {
    /// What has to stand in which header.
    wanted: Mutex<(&'static str, String)>,
    secret: Mutex<String>,
    /// How long tokens are said to live.
    expires_in: AtomicU64,
    given: AtomicU64,
    taken: AtomicU64,
    refused: AtomicU64,
    asked: Mutex<Vec<String>>,
}

impl Gate {
    fn want(&self, header: &'static str, value: impl Into<String>) {
        *self.wanted.lock().unwrap() = (header, value.into());
    }

    fn count(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::SeqCst)
    }
}

async fn events(State(gate): State<Arc<Gate>>, headers: HeaderMap) -> StatusCode {
    let (name, value) = gate.wanted.lock().unwrap().clone();
    if headers.get(name).and_then(|v| v.to_str().ok()) != Some(&value) {
        gate.refused.fetch_add(1, Ordering::SeqCst);
        return StatusCode::UNAUTHORIZED;
    }
    gate.taken.fetch_add(1, Ordering::SeqCst);
    StatusCode::ACCEPTED
}

async fn token(State(gate): State<Arc<Gate>>, headers: HeaderMap, body: String) -> (StatusCode, String) {
    gate.asked.lock().unwrap().push(body);
    let secret = gate.secret.lock().unwrap().clone();
    let who = headers.get("authorization").and_then(|v| v.to_str().ok()).unwrap_or_default();
    if who != secret {
        return (StatusCode::UNAUTHORIZED, r#"{"error":"invalid_client"}"#.into());
    }
    let n = gate.given.fetch_add(1, Ordering::SeqCst) + 1;
    let life = Gate::count(&gate.expires_in);
    gate.want("authorization", format!("Bearer token-{n}"));
    (StatusCode::OK, format!(r#"{{"access_token":"token-{n}","token_type":"Bearer","expires_in":{life}}}"#))
}

async fn gate() -> (Arc<Gate>, String) {
    let gate = Arc::new(Gate::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Router::new().route("/events", post(events)).route("/token", post(token)).with_state(gate.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (gate, url)
}

#[tokio::test]
async fn an_api_key_and_a_password_are_shown_as_the_cloud_wants_them() {
    let (gate, url) = gate().await;
    let ways = [
        ("x-api-key", "k-1", "api_key = \"k-1\""),
        ("ocp-apim-subscription-key", "k-2", "api_key = \"k-2\"\napi_key_header = \"Ocp-Apim-Subscription-Key\""),
        ("authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "username = \"Aladdin\"\npassword = \"open sesame\""),
    ];
    for (header, value, more) in ways {
        gate.want(header, value);
        let outbox = Arc::new(MemoryOutbox::new(10));
        fill(&outbox, 0..3);
        let (shared, sink) = start(config(&format!("{url}/events"), more), &outbox, Duration::ZERO);
        until("all is delivered", || outbox.waiting() == 0).await;
        shared.stop.cancel();
        sink.await.expect("it ends");
    }
    assert_eq!(Gate::count(&gate.refused), 0);
}

#[tokio::test]
async fn oauth2_tokens_are_fetched_renewed_before_they_expire_and_after_a_refusal() {
    let (gate, url) = gate().await;
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("secret");
    std::fs::write(&file, "wrong\n").expect("written");
    // user "gw:7" and secret "s/1", escaped as RFC 6749 has it.
    *gate.secret.lock().unwrap() = "Basic Z3clM0E3OnMlMkYx".into();
    gate.expires_in.store(2, Ordering::SeqCst);
    let more = format!(
        "[oauth2]\ntoken_url = \"{url}/token\"\nclient_id = \"gw:7\"\nclient_secret_file = {:?}\nscope = \"events write\"\n",
        file.display().to_string()
    );
    let outbox = Arc::new(MemoryOutbox::new(10_000));
    fill(&outbox, 0..3);
    let (shared, sink) = start(config(&format!("{url}/events"), &more), &outbox, Duration::ZERO);
    let board = || shared.board.components().remove("cloud");
    until("the token server refuses us", || {
        board().is_some_and(|c| c.health == Health::Down && c.detail.contains("invalid_client"))
    })
    .await;
    assert_eq!(outbox.waiting(), 3, "all is kept");
    // The right secret is put into the file: no restart is needed.
    std::fs::write(&file, "s/1\n").expect("written");
    until("all is delivered", || outbox.waiting() == 0).await;
    assert_eq!(
        gate.asked.lock().unwrap().last().map(String::as_str),
        Some("grant_type=client_credentials&scope=events%20write")
    );
    // Tokens of 2 s are renewed before they are refused.
    let mut n = 3;
    until("three tokens were given", || {
        fill(&outbox, n..n + 1);
        n += 1;
        Gate::count(&gate.given) >= 3
    })
    .await;
    until("all is delivered", || outbox.waiting() == 0).await;
    assert_eq!(Gate::count(&gate.refused), 0, "none was used beyond its life");
    // A token is taken back before its time.
    gate.expires_in.store(3_600, Ordering::SeqCst);
    let given = Gate::count(&gate.given);
    until("a token that lives long was given", || {
        fill(&outbox, n..n + 1);
        n += 1;
        Gate::count(&gate.given) > given
    })
    .await;
    until("all is delivered", || outbox.waiting() == 0).await;
    gate.want("authorization", "Bearer of nothing");
    fill(&outbox, n..n + 5);
    until("another one is fetched", || outbox.waiting() == 0).await;
    assert!(Gate::count(&gate.refused) > 0);
    assert_eq!(outbox.dead(), []);
    shared.stop.cancel();
    sink.await.expect("it ends");
}
