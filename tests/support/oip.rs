//! A stand-in for an inference server: counts what it is asked by Idempotency-Key, and fails as scripted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// How one request for an answer ends.
#[derive(Clone, Debug)]
pub enum Reply {
    /// With this score.
    Score(f64),
    /// With this status, headers and body.
    Raw(u16, Vec<(&'static str, &'static str)>, Vec<u8>),
    /// Later than anybody waits.
    Never,
}

impl Reply {
    pub fn status(status: u16, body: &str) -> Reply {
        Reply::Raw(status, Vec::new(), body.as_bytes().to_vec())
    }

    /// 200 with a body.
    pub fn body(body: impl Into<Vec<u8>>) -> Reply {
        Reply::Raw(200, Vec::new(), body.into())
    }
}

#[derive(Default)]
struct Told {
    script: VecDeque<Reply>,
    always: Option<Reply>,
    /// How often each key came.
    keys: BTreeMap<String, u32>,
    pause: Duration,
    input: Value,
    /// A header that everybody has to show.
    wants: Option<(&'static str, &'static str)>,
}

/// Serves one model, `large`, that takes windows of [-1, 1, 1]. Gone when dropped.
pub struct Server {
    told: Arc<Mutex<Told>>,
    url: String,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start() -> Server {
        let told = Arc::new(Mutex::new(Told { input: json!([-1, 1, 1]), ..Told::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(answer).with_state(told.clone());
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Server { told, url, task }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next requests end like this, in order.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.told.lock().expect("whole").script.extend(replies);
    }

    /// All requests that are not scripted end like this, after this time.
    pub fn always(&self, reply: Reply, pause: Duration) {
        let mut told = self.told.lock().expect("whole");
        (told.always, told.pause) = (Some(reply), pause);
    }

    /// What the metadata says that the model takes.
    pub fn takes(&self, shape: Value) {
        self.told.lock().expect("whole").input = shape;
    }

    /// Who comes without this header is refused with 401.
    pub fn wants(&self, name: &'static str, value: &'static str) {
        self.told.lock().expect("whole").wants = Some((name, value));
    }

    /// Keys of the requests for answers, and how often each came.
    pub fn keys(&self) -> BTreeMap<String, u32> {
        self.told.lock().expect("whole").keys.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    State(told): State<Arc<Mutex<Told>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let wants = told.lock().expect("whole").wants;
    if wants.is_some_and(|(name, value)| headers.get(name).is_none_or(|v| v != value)) {
        return Response::builder().status(401).body(Body::empty()).expect("a response");
    }
    let plain = |value: Value| Response::new(Body::from(value.to_string()));
    if method == Method::GET {
        let input = told.lock().expect("whole").input.clone();
        return plain(match uri.path() {
            "/v2" => json!({"name": "stand-in", "version": "1", "extensions": []}),
            "/v2/models/large" => json!({"name": "large", "platform": "none",
                "inputs": [{"name": "window", "datatype": "FP32", "shape": input}], "outputs": []}),
            _ => json!({"ready": true}),
        });
    }
    let key = headers.get("idempotency-key").and_then(|k| k.to_str().ok()).unwrap_or("none").trim_matches('"');
    let asked: Value = serde_json::from_slice(&body).expect("JSON without NaN");
    assert_eq!(asked["id"], key, "the key is the question's id");
    let (reply, pause) = {
        let mut told = told.lock().expect("whole");
        *told.keys.entry(key.to_owned()).or_default() += 1;
        let scripted = told.script.pop_front();
        (scripted.or_else(|| told.always.clone()).unwrap_or(Reply::Score(0.0)), told.pause)
    };
    tokio::time::sleep(pause).await;
    match reply {
        Reply::Score(score) => plain(json!({"model_name": "large", "model_version": "3", "id": asked["id"],
            "outputs": [{"name": "score", "datatype": "FP64", "shape": [1], "data": [score]}]})),
        Reply::Raw(status, headers, body) => {
            let head = headers.into_iter().fold(Response::builder().status(status), |r, (k, v)| r.header(k, v));
            head.body(Body::from(body)).expect("a response")
        }
        Reply::Never => std::future::pending().await,
    }
}
