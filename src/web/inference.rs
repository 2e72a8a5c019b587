//! The loaded models over the Open Inference Protocol (v2, REST), for clients such as Triton's: health,
//! metadata, inference in JSON and binary tensors, and the repository index. An admin may load and unload
//! models for guests: only from signed bundles on disk, and nothing of them can be overridden.
//!
//! Source: kserve/open-inference-protocol `inference_rest.md`; Triton's extensions `binary_tensor_data`
//! and `model_repository`.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::App;
use super::guard::{Problem, problem};

mod wire;

pub use wire::Tensor;
use wire::{LENGTH_HEADER, Request};

/// Request bodies larger than this are refused: some thousand windows.
pub const MAX_BODY_BYTES: usize = 16 << 20;
/// Windows in one request.
pub const MAX_WINDOWS: usize = 1024;
/// The nice value of a guest's thread: the engine and its sources go before guests.
const GUEST_NICE: i32 = 15;
/// Requests computed at a time: the engine's own inference goes before guests'.
pub const MAX_RUNNING: usize = 1;

/// The models as guests see them; given by whoever has them.
#[derive(Clone)]
pub struct Models {
    /// Metadata of each, in the protocol's own form, with `name`, `versions`, `inputs`, `outputs`.
    pub list: Arc<dyn Fn() -> Vec<Value> + Send + Sync>,
    /// Runs the model of this name on windows, flat and row-major: every output, or why not. Blocks.
    pub run: RunFn,
    /// Makes a model available to guests (`true`), or no longer; or says why not. Blocks.
    pub load: LoadFn,
    running: Arc<Semaphore>,
}

/// See [`Models::load`].
pub type LoadFn = Arc<dyn Fn(&str, bool) -> Result<(), String> + Send + Sync>;

/// See [`Models::run`].
pub type RunFn = Arc<dyn Fn(&str, Tensor) -> Result<Vec<Tensor>, String> + Send + Sync>;

impl Default for Models {
    /// None at all.
    fn default() -> Models {
        Models::new(Arc::new(Vec::new), Arc::new(|name, _| Err(format!("there is no model {name:?}"))))
    }
}

impl Models {
    /// From the two of them.
    pub fn new(list: Arc<dyn Fn() -> Vec<Value> + Send + Sync>, run: RunFn) -> Models {
        let load: LoadFn = Arc::new(|_, _| Err("models cannot be loaded here".into()));
        Models { list, run, load, running: Arc::new(Semaphore::new(MAX_RUNNING)) }
    }

    /// With a way to load more.
    pub fn with_load(self, load: LoadFn) -> Models {
        Models { load, ..self }
    }

    /// Runs `work` on a thread of its own with a low priority, one at a time. Blocking work that outlives its
    /// request keeps its turn until it ends.
    async fn alone<T: Send + 'static>(self, work: impl FnOnce(&Models) -> T + Send + 'static) -> Answer<T> {
        let Ok(turn) = self.running.clone().acquire_owned().await else {
            return problem(StatusCode::SERVICE_UNAVAILABLE, "the agent is ending");
        };
        let (tell, told) = oneshot::channel();
        let thread = std::thread::Builder::new().name("guest".into()).spawn(move || {
            // On Linux this is the thread's own priority. Refused, the work is done all the same.
            let _ = rustix::process::setpriority_process(None, GUEST_NICE);
            let done = work(&self);
            drop(turn);
            let _ = tell.send(done);
        });
        if let Err(e) = thread {
            return problem(StatusCode::SERVICE_UNAVAILABLE, format!("no thread can be started: {e}"));
        }
        let gone = |_| Problem(StatusCode::INTERNAL_SERVER_ERROR, "the model could not be run".into());
        told.await.map_err(gone)
    }

    /// The metadata of one; with a version, only of that version.
    fn find(&self, name: &str, version: Option<&str>) -> Result<Value, Problem> {
        let all = (self.list)();
        let Some(found) = all.into_iter().find(|m| m["name"] == name) else {
            return problem(StatusCode::NOT_FOUND, format!("there is no model {name:?}"));
        };
        let versions = found["versions"].as_array();
        if version.is_some_and(|v| !versions.is_some_and(|all| all.iter().any(|known| known == v))) {
            return problem(
                StatusCode::NOT_FOUND,
                format!("there is no version {:?} of {name:?}", version.unwrap_or("")),
            );
        }
        Ok(found)
    }
}

type Answer<T = Json<Value>> = Result<T, Problem>;
type Shared = State<Arc<App>>;
/// A model's name and, in the longer paths, its version.
type Place = Path<Vec<(String, String)>>;

/// The routes below `/v2`.
pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(|| async { Json(json!({"live": true})) }))
        .route("/v2/health/ready", get(super::api::ready))
        .route("/v2/models/{model}", get(metadata))
        .route("/v2/models/{model}/ready", get(ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(metadata))
        .route("/v2/models/{model}/versions/{version}/ready", get(ready))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
}

async fn server() -> Json<Value> {
    let extensions = ["binary_tensor_data", "model_repository"];
    Json(json!({"name": "andon", "version": env!("CARGO_PKG_VERSION"), "extensions": extensions}))
}

fn named<'p>(place: &'p [(String, String)], what: &str) -> Option<&'p str> {
    place.iter().find(|(key, _)| key == what).map(|(_, value)| value.as_str())
}

fn found(app: &App, place: &[(String, String)]) -> Answer<Value> {
    app.state.inference.find(named(place, "model").unwrap_or_default(), named(place, "version"))
}

async fn metadata(State(app): Shared, Path(place): Place) -> Answer {
    found(&app, &place).map(Json)
}

async fn ready(State(app): Shared, Path(place): Place) -> Answer {
    let model = found(&app, &place)?;
    // What is loaded has passed its self-test.
    Ok(Json(json!({"name": model["name"], "ready": true})))
}

async fn index(State(app): Shared) -> Json<Value> {
    let entry = |m: &Value| json!({"name": m["name"], "version": m["versions"][0], "state": "READY", "reason": ""});
    Json((app.state.inference.list)().iter().map(entry).collect())
}

async fn load(app: Shared, place: Place, body: Result<Bytes, BytesRejection>) -> Answer {
    change(app, place, body, true).await
}

async fn unload(app: Shared, place: Place, body: Result<Bytes, BytesRejection>) -> Answer {
    change(app, place, body, false).await
}

/// Whoever sees the dashboard is no admin as long as no token is set.
async fn change(State(app): Shared, Path(place): Place, body: Result<Bytes, BytesRejection>, load: bool) -> Answer {
    if app.access().key.is_none() {
        return problem(StatusCode::FORBIDDEN, "only an admin loads and unloads models: set `[web] token_file`");
    }
    let body = body.map_err(|e| Problem(e.status(), e.body_text()))?;
    refuse_overrides(&body).map_err(|e| Problem(StatusCode::BAD_REQUEST, e))?;
    let name = named(&place, "model").unwrap_or_default().to_owned();
    let models = app.state.inference.clone();
    match models.alone(move |models| (models.load)(&name, load)).await? {
        Ok(()) => Ok(Json(json!({}))),
        Err(why) => problem(StatusCode::BAD_REQUEST, why),
    }
}

/// What a client may put in place of a bundle's own files would be signed by nobody.
fn refuse_overrides(body: &[u8]) -> Result<(), String> {
    if body.trim_ascii().is_empty() {
        return Ok(());
    }
    let body: Value = serde_json::from_slice(body).map_err(|e| format!("the body is no JSON: {e}"))?;
    let parameters = body.get("parameters").and_then(Value::as_object);
    match parameters.into_iter().flatten().find(|(key, _)| *key != "unload_dependents") {
        Some((key, _)) => Err(format!("the parameter {key:?} is refused: models are used as they were signed")),
        None => Ok(()),
    }
}

async fn infer(State(app): Shared, Path(place): Place, headers: HeaderMap, body: Body) -> Answer<Response> {
    let model = found(&app, &place)?;
    let bad = |e: String| Problem(StatusCode::BAD_REQUEST, e);
    let head = headers.get(LENGTH_HEADER).map(|v| v.to_str().ok().and_then(|v| v.parse::<usize>().ok()));
    let head = head.map(|n| n.ok_or_else(|| bad(format!("{LENGTH_HEADER} is not a number")))).transpose()?;
    let body = app.budget.read(&headers, body, MAX_BODY_BYTES).await.inspect_err(|refused| {
        if refused.0 == StatusCode::SERVICE_UNAVAILABLE {
            app.refusals.refused("body_bytes", None, &refused.1);
        }
    })?;
    let models = app.state.inference.clone();
    let answer = models.alone(move |models| compute(models, &model, &body, head)).await??;
    let Some(head) = answer.head_bytes else {
        return Ok(([(header::CONTENT_TYPE, "application/json")], answer.body).into_response());
    };
    let kinds =
        [(header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()), (LENGTH_HEADER, head.to_string())];
    Ok((kinds, answer.body).into_response())
}

/// The answer to a request.
struct Computed {
    /// How long the JSON is where tensors follow it.
    head_bytes: Option<usize>,
    body: Vec<u8>,
}

/// Everything that costs: parsing, inference, writing.
fn compute(models: &Models, model: &Value, body: &[u8], head: Option<usize>) -> Answer<Computed> {
    let bad = |e: String| Problem(StatusCode::BAD_REQUEST, e);
    let request = Request::read(body, head).map_err(bad)?;
    request.check_outputs(model).map_err(bad)?;
    let window = request.window(model, MAX_WINDOWS).map_err(bad)?;
    let outputs = (models.run)(model["name"].as_str().unwrap_or_default(), window);
    let outputs = outputs.map_err(|e| Problem(StatusCode::INTERNAL_SERVER_ERROR, e))?;
    let (head_bytes, body) = request.answer(model, outputs).map_err(bad)?;
    Ok(Computed { head_bytes, body })
}

#[cfg(any(test, feature = "fuzz"))]
/// A request as a function of bytes, for `crate::fuzz`: two for the length of its JSON, then the body.
pub(crate) fn any_bytes(bytes: &[u8]) {
    let Some(([high, low], body)) = bytes.split_first_chunk::<2>() else { return };
    let head = Some(usize::from(u16::from_be_bytes([*high, *low]))).filter(|n| *n > 0);
    let model = json!({"inputs": [{"name": "window", "datatype": "FP32", "shape": [-1, 2, 1]}]});
    let Ok(request) = Request::read(body, head) else { return };
    let _ = request.check_outputs(&model);
    if let Ok(window) = request.window(&model, 8) {
        assert!(
            window.data.iter().all(|v| v.is_finite()) && window.data.len() == window.shape.iter().product::<usize>()
        );
        let _ = request.answer(&model, vec![Tensor { name: "score".into(), shape: vec![1], data: vec![0.5] }]);
    }
}
