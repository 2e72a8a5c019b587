//! The API over real HTTP, fed with made-up events.

use std::time::Duration;

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::*;
use crate::metrics::Health;
use crate::settings::{Document, Surroundings};
use crate::types::{
    Alarm, AlarmState, Cause, Condition, Live, MachineState, Quality, Reason, RecordId, Target, Verdict,
};

const TOKEN: &str = "a long enough token";

struct Server {
    address: SocketAddr,
    shared: Shared,
    live: broadcast::Sender<Live>,
    commands: mpsc::Receiver<Command>,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start(token: Option<&str>) -> Server {
        Server::start_with(token, None).await
    }

    async fn start_with(token: Option<&str>, settings: Option<watch::Receiver<Config>>) -> Server {
        // A second test may have installed it already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = Config {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            token: token.map(|t| Secret::new(t.into())),
            hosts: Vec::new(),
        };
        let (listener, address) = bind(&config).await.unwrap();
        let (shared, view) = (Shared::new(), View::new());
        let (live, events) = broadcast::channel(1_024);
        tokio::spawn(view.clone().follow(events, shared.clone()));
        let (tx, commands) = mpsc::channel(4);
        let about = About {
            site: "lyon/line3".into(),
            agent: "gw-07".into(),
            version: "0.1.0".into(),
            started: Time::now(),
            data_dir: "/var/lib/andon".into(),
        };
        let state = State {
            view,
            about,
            store_status: Arc::new(|| json!({"records": 7})),
            models: Arc::new(|| json!([{"name": "ae"}])),
            bands: Arc::new(|_| [("temp".into(), Band { unit: "degC".into(), normal: Some([20.0, 60.0]) })].into()),
            inference: inference::Models::new(
                Arc::new(|| {
                    vec![
                        json!({"name": "ae", "versions": ["1"], "inputs": [{"shape": [-1, 2, 1]}], "outputs": [{"name": "score"}]}),
                    ]
                }),
                Arc::new(|_, window| Ok(vec![inference::Tensor { name: "score".into(), ..window }])),
            ),
            commands: Some(tx),
            model_commands: None,
            settings,
        };
        let serving = tokio::spawn(run(listener, config, state, shared.clone()));
        Server { address, shared, live, commands, serving }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> (StatusCode, Value) {
        let reply = client().get(self.url(path)).send().await.unwrap();
        (reply.status(), reply.json().await.unwrap_or(Value::Null))
    }

    async fn post(&self, path: &str, body: &str) -> (StatusCode, Value) {
        let request = client().post(self.url(path)).header("content-type", "application/json");
        let reply = request.body(body.to_owned()).send().await.unwrap();
        (reply.status(), reply.json().await.unwrap_or(Value::Null))
    }

    /// Asks until the answer fits.
    async fn until(&self, path: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..500 {
            last = self.get(path).await.1;
            if fits(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path} never came to it: {last}");
    }

    fn feed(&self) -> RecordId {
        let machine = Name::from("press-04");
        let at: Time = "2026-11-22T10:15:30.250Z".parse().unwrap();
        let values = vec![
            ("temp".into(), Some(21.5), Quality::Good, Cause::None),
            ("vib_x".into(), None, Quality::Bad, Cause::Timeout),
        ];
        let verdict = Verdict {
            machine: machine.clone(),
            at,
            model: "bearing-ae".into(),
            model_version: "4".into(),
            model_digest: "00".into(),
            reason: Reason::AnomalyDetected,
            score: Some(0.72),
            p_value: Some(0.0007),
            threshold: 0.001,
            health: Some(0.0),
            rul: None,
            class: None,
            quality: Quality::Good,
            contributions: vec![crate::types::Contribution { name: "vib_x".into(), value: 1.0 }],
        };
        let alarm = Alarm {
            id: RecordId::of(&[b"one"]),
            machine: machine.clone(),
            condition: Condition::Anomaly,
            state: AlarmState::Unacknowledged,
            severity: 700,
            since: at,
            at,
            message: "vib_x is unusual".into(),
            top_channel: Some("vib_x".into()),
            acknowledged_by: None,
            care: Default::default(),
        };
        let id = alarm.id;
        let events = [
            Live::Step { machine: machine.clone(), at, values },
            Live::Verdict(Arc::new(verdict), r#"{"anomaly_score":0.72}"#.into()),
            Live::State { machine, at, light: MachineState::Red, why: "anomaly".into() },
            Live::Alarm(Arc::new(alarm), "{}".into()),
        ];
        events.into_iter().for_each(|e| assert!(self.live.send(e).is_ok()));
        id
    }
}

fn client() -> Client {
    Client::builder().timeout(Duration::from_secs(20)).build().unwrap()
}

#[tokio::test]
async fn machines_and_alarms_are_told_as_they_are() {
    let server = Server::start(None).await;
    let id = server.feed();
    server.until("/api/v1/alarms", |a| a["alarms"][0]["id"] == id.to_string()).await;
    let list = server.get("/api/v1/machines").await.1;
    assert_eq!((&list["total"], &list["machines"][0]["id"]), (&json!(1), &json!("press-04")));
    let m = server.get("/api/v1/machines/press%2D04").await.1;
    assert_eq!(m["light"], "red");
    assert_eq!(m["data"]["anomaly_score"], 0.72);
    assert_eq!(m["verdict"]["held_against"], "p_value");
    assert_eq!(m["verdict"]["level"], 1.0);
    assert_eq!(m["signals"][0]["value"], 21.5);
    assert_eq!(m["signals"][1]["heard_seconds"], Value::Null);
    assert_eq!(m["at"], "2026-11-22T10:15:30.250Z");
    assert_eq!(m["alarms"][0]["message"], "vib_x is unusual");
    assert_eq!(m["bands"], json!({"temp": {"unit": "degC", "normal": [20.0, 60.0]}}));
    let none = server.get("/api/v1/machines?light=green").await.1;
    assert_eq!((&none["found"], &none["total"]), (&json!(0), &json!(1)));
    assert_eq!(server.get("/api/v1/machines/nobody").await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.get("/api/v1/machines?light=purple").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn status_and_readiness_follow_the_board() {
    let server = Server::start(None).await;
    let (code, body) = server.get("/health/ready").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["missing"], json!(["the store has not started", "the engine has not started"]));
    assert_eq!(server.get("/health/live").await.0, StatusCode::OK);
    server.shared.board.set("store", Health::Up, "");
    server.shared.board.set("source/shop", Health::Down, "connection refused");
    let _pulse = server.shared.board.pulse("engine");
    assert_eq!(server.get("/health/ready").await.0, StatusCode::OK);
    let s = server.get("/api/v1/status").await.1;
    assert_eq!((&s["site"], &s["agent"], &s["health"]), (&json!("lyon/line3"), &json!("gw-07"), &json!("degraded")));
    assert_eq!(s["components"]["source/shop"]["detail"], "connection refused");
    assert_eq!(s["store"]["records"], 7);
    server.shared.board.set("store", Health::Down, "disk full");
    let (_, body) = server.get("/health/ready").await;
    assert_eq!(body["missing"], json!(["the store is not up: disk full"]));
}

#[tokio::test]
async fn a_process_is_not_ready_while_it_replays_and_not_live_once_a_stage_has_failed() {
    let server = Server::start(None).await;
    let board = &server.shared.board;
    board.set("store", Health::Up, "");
    board.set("engine", Health::Starting, "replaying the journal");
    let pulse = board.pulse("engine");
    let (code, body) = server.get("/health/ready").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body["missing"], json!(["the engine has not started: replaying the journal"]));
    assert_eq!(server.get("/health/live").await, (StatusCode::OK, json!({"status": "live"})));
    board.set("engine", Health::Up, "");
    assert_eq!(server.get("/health/ready").await.0, StatusCode::OK);
    pulse.beaten_before(std::time::Duration::from_secs(21));
    let (code, body) = server.get("/health/live").await;
    assert_eq!((code, &body["error"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("engine makes no progress")));
    pulse.beat();
    assert_eq!(server.get("/health/live").await.0, StatusCode::OK);
    board.fail("sink/site", "panicked: for the test");
    let (code, body) = server.get("/health/live").await;
    assert_eq!(code, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(body, json!({"status": "failed", "error": "sink/site: panicked: for the test"}));
    assert_eq!(server.get("/health/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    let s = server.get("/api/v1/status").await.1;
    assert_eq!((&s["health"], &s["components"]["sink/site"]["health"]), (&json!("down"), &json!("down")));
}

#[tokio::test]
async fn metrics_are_served_as_openmetrics_and_counted_in_status() {
    let server = Server::start(None).await;
    server.shared.metrics.readings.get_or_create(&[("source", "shop".into()), ("quality", "good".into())]).inc_by(5);
    let plain = client().get(server.url("/metrics")).send().await.unwrap();
    assert!(plain.headers()["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    let reply = client().get(server.url("/metrics")).header("accept", accept).send().await.unwrap();
    assert!(reply.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(reply.text().await.unwrap().ends_with("# EOF\n"));
    server.until("/api/v1/status", |s| s["readings_total"] == 5.0).await;
}

#[tokio::test]
async fn errors_are_json_and_every_answer_is_hardened() {
    let server = Server::start(None).await;
    let (code, body) = server.get("/nowhere").await;
    assert_eq!((code, body), (StatusCode::NOT_FOUND, json!({"error": "there is nothing here"})));
    let (code, body) = server.post("/api/v1/status", "{}").await;
    assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED);
    assert!(body["error"].is_string());
    for path in ["/", "/nowhere", "/api/v1/status", "/plot/buffer.svg"] {
        let reply = client().get(server.url(path)).send().await.unwrap();
        let header = |name: &str| reply.headers()[name].to_str().unwrap().to_owned();
        assert!(header("content-security-policy").starts_with("default-src"), "{path}");
        assert_eq!((header("x-content-type-options"), header("x-frame-options")), ("nosniff".into(), "DENY".into()));
        assert_eq!(header("cache-control"), "no-store");
    }
    let other = client().get(server.url("/api/v1/status")).header("host", "evil.example").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::MISDIRECTED_REQUEST);
}

#[tokio::test]
async fn an_alarm_is_acknowledged_through_the_engine() {
    let mut server = Server::start(None).await;
    let id = RecordId::of(&[b"one"]);
    let path = format!("/api/v1/alarms/{id}/ack");
    let engine = async {
        for answer in [Ok(()), Err(Refusal::NoSuchAlarm), Err(Refusal::NotNow("it is over".into()))] {
            let command = server.commands.recv().await.unwrap();
            assert_eq!((command.target, command.action), (Target::Alarm(id), Action::Acknowledge));
            assert!(command.who.ends_with("(127.0.0.1)") && !command.who.contains('\n'), "{}", command.who);
            command.reply.send(answer).unwrap();
        }
        drop(server.commands.recv().await.unwrap().reply);
    };
    let address = server.address;
    let post = |body: &'static str| {
        let request = client().post(format!("http://{address}{path}")).header("content-type", "application/json");
        async move {
            let reply = request.body(body).send().await.unwrap();
            (reply.status(), reply.json::<Value>().await.unwrap())
        }
    };
    let caller = async {
        let (code, body) = post(r#"{"who":"Ann\n"}"#).await;
        assert_eq!((code, &body["who"]), (StatusCode::OK, &json!("Ann (127.0.0.1)")));
        assert_eq!(post(r#"{"who":"Ann"}"#).await.0, StatusCode::NOT_FOUND);
        let (code, body) = post(r#"{"who":"Ann"}"#).await;
        assert_eq!((code, body), (StatusCode::CONFLICT, json!({"error": "it is over"})));
        assert_eq!(post(r#"{"who":"Ann"}"#).await.0, StatusCode::SERVICE_UNAVAILABLE);
    };
    tokio::join!(engine, caller);
}

#[tokio::test]
async fn every_action_says_what_to_do_to_what() {
    let mut server = Server::start(None).await;
    let id = RecordId::of(&[b"one"]);
    let alarm = |action: &str| format!("/api/v1/alarms/{id}/{action}");
    let cases = [
        (alarm("shelve"), Target::Alarm(id), Action::Shelve(1800)),
        (alarm("unshelve"), Target::Alarm(id), Action::Unshelve),
        (alarm("reset"), Target::Alarm(id), Action::Reset),
        ("/api/v1/machines/pump%201/out_of_service".into(), Target::Machine("pump 1".into()), Action::OutOfService),
        ("/api/v1/machines/pump%201/in_service".into(), Target::Machine("pump 1".into()), Action::InService),
    ];
    let address = server.address;
    for (path, target, action) in cases {
        let engine = async {
            let command = server.commands.recv().await.unwrap();
            assert_eq!((&command.target, command.action), (&target, action));
            assert_eq!((&*command.who, command.comment.as_deref()), ("Ann (127.0.0.1)", Some("bearing is on order")));
            command.reply.send(Ok(())).unwrap();
        };
        let request = client().post(format!("http://{address}{path}")).header("content-type", "application/json");
        let body = r#"{"by":"Ann","comment":" bearing is\u0000 on order","seconds":1800}"#;
        let (reply, ()) = tokio::join!(request.body(body).send(), engine);
        let reply = reply.unwrap();
        assert_eq!(reply.status(), StatusCode::OK);
        assert_eq!(reply.json::<Value>().await.unwrap()["action"], json!(action.as_str()));
    }
}

#[tokio::test]
async fn another_token_is_taken_over_while_it_runs() {
    let first = Config { token: Some(Secret::new(TOKEN.into())), ..Config::default() };
    let (settings_tx, settings) = watch::channel(first);
    let server = Server::start_with(Some(TOKEN), Some(settings)).await;
    let with = |token: &'static str| {
        let request = client().get(server.url("/api/v1/status")).bearer_auth(token);
        async move { request.send().await.unwrap().status() }
    };
    assert_eq!(with(TOKEN).await, StatusCode::OK);
    let second = "another token, as long";
    settings_tx.send_replace(Config { token: Some(Secret::new(second.into())), ..Config::default() });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while with(second).await != StatusCode::OK {
        assert!(tokio::time::Instant::now() < deadline, "the new token is not taken");
    }
    assert_eq!(with(TOKEN).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_plainly() {
    let server = Server::start(None).await;
    let id = RecordId::of(&[b"one"]);
    let ack = format!("/api/v1/alarms/{id}/ack");
    assert_eq!(server.post(&format!("/api/v1/alarms/{id}/shelve"), "{}").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(
        server.post(&format!("/api/v1/alarms/{id}/shelve"), r#"{"seconds":-1}"#).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(server.post("/api/v1/machines/m/eat", "{}").await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.post(&format!("/api/v1/alarms/{id}/eat"), "{}").await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.post("/api/v1/alarms/xyz/ack", "{}").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(server.post(&ack, "{").await.0, StatusCode::BAD_REQUEST);
    let large = format!("{{\"who\":\"{}\"}}", "x".repeat(70_000));
    assert_eq!(server.post(&ack, &large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let plain = client().post(server.url(&ack)).body("{}").send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let request = client().post(server.url(&ack)).header("content-type", "application/json");
    let foreign = request.header("origin", "http://evil.example").body("{}").send().await.unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_token_guards_all_that_tells_of_the_plant() {
    let server = Server::start(Some(TOKEN)).await;
    for path in ["/api/v1/status", "/api/v1/events", "/metrics", "/plot/buffer.svg", "/nowhere"] {
        assert_eq!(server.get(path).await.0, StatusCode::UNAUTHORIZED, "{path}");
    }
    for path in ["/", "/app.js", "/health/live"] {
        assert_eq!(server.get(path).await.0, StatusCode::OK, "{path}");
    }
    let bearer = client().get(server.url("/api/v1/status")).bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(bearer.status(), StatusCode::OK);
    assert_eq!(server.post("/api/v1/session", r#"{"token":"a wrong token here"}"#).await.0, StatusCode::UNAUTHORIZED);
    let body = json!({"token": TOKEN}).to_string();
    let request = client().post(server.url("/api/v1/session")).header("content-type", "application/json");
    let signed_in = request.body(body).send().await.unwrap();
    let cookie = signed_in.headers()["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("HttpOnly; SameSite=Strict") && !cookie.contains(TOKEN), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let again = client().get(server.url("/api/v1/status")).header("cookie", pair).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
}

#[tokio::test]
async fn events_stream_and_end_when_the_agent_stops() {
    let server = Server::start(None).await;
    let mut stream = client().get(server.url("/api/v1/events")).send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    server.feed();
    let wanted = ["event: status", "event: step", "event: verdict", "event: alarm", "event: state"];
    while !wanted.iter().all(|w| text.contains(w)) {
        let chunk = tokio::time::timeout(Duration::from_secs(10), stream.chunk()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("not all events came: {text}"));
        text.push_str(&String::from_utf8_lossy(&chunk.unwrap().unwrap()));
    }
    server.shared.stop.cancel();
    while stream.chunk().await.unwrap().is_some() {}
    tokio::time::timeout(Duration::from_secs(10), server.serving).await.unwrap().unwrap();
}

/// Frames of a stream: id, type and data.
async fn frames_until(stream: &mut reqwest::Response, last: &str) -> Vec<[String; 3]> {
    let mut text = String::new();
    while !text.contains(&format!("event: {last}\n")) {
        text.push_str(&String::from_utf8_lossy(&stream.chunk().await.unwrap().unwrap()));
    }
    let frames = text.split("\n\n").filter(|f| f.contains("event: "));
    let field = |f: &str, name: &str| {
        let line = f.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned));
        line.unwrap_or_else(|| panic!("no {name} in {f}"))
    };
    frames.map(|f| ["id", "event", "data"].map(|name| field(f, name))).collect()
}

#[tokio::test]
async fn streams_number_their_frames_and_everything_carries_a_version() {
    let server = Server::start(None).await;
    let mut stream = client().get(server.url("/api/v1/events?watch=true")).send().await.unwrap();
    let id = server.feed();
    let frames = frames_until(&mut stream, "alarm").await;
    let ids: Vec<Vec<&str>> = frames.iter().map(|f| f[0].split('-').collect()).collect();
    let status = server.get("/api/v1/status").await.1;
    let epoch = status["epoch"].as_str().unwrap();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!((id[0], id[1], id[2]), (epoch, ids[0][1], n.to_string().as_str()), "{frames:?}");
    }
    // The status comes again each second.
    let news: Vec<&[String; 3]> = frames.iter().filter(|f| f[1] != "status").collect();
    let kinds: Vec<&str> = news.iter().map(|f| f[1].as_str()).collect();
    assert_eq!((kinds.as_slice(), frames[1][1].as_str()), (&["stream", "state", "alarm"][..], "status"));
    let data = |n: usize| serde_json::from_str::<Value>(&news[n][2]).unwrap();
    assert_eq!((data(1)["version"].as_u64(), data(2)["version"].as_u64()), (Some(3), Some(4)));

    assert_eq!((&status["state_version"], &status["version"]), (&json!(4), &json!("0.1.0")));
    for path in ["/api/v1/machines", "/api/v1/machines/press-04", "/api/v1/lights", "/api/v1/alarms"] {
        let answer = server.get(path).await.1;
        assert_eq!((&answer["version"], answer["epoch"].as_str()), (&json!(4), Some(epoch)), "{path}");
    }
    let versions = json!({"state": 3, "step": 1, "verdict": 2, "opinion": 0});
    assert_eq!(server.get("/api/v1/machines").await.1["machines"][0]["versions"], versions);
    assert_eq!(server.get("/api/v1/lights").await.1["lights"], json!([["press-04", "red", 3]]));
    assert_eq!(server.get(&format!("/api/v1/alarms/{id}")).await.1["version"], 4);

    // A second stream has numbers of its own.
    let mut second = client().get(server.url("/api/v1/events")).send().await.unwrap();
    let first = frames_until(&mut second, "status").await.remove(0);
    assert!(first[0].starts_with(epoch) && first[0].ends_with("-0") && !first[0].contains(ids[0][1]), "{first:?}");
    let other = Server::start(None).await;
    assert_ne!(other.get("/api/v1/status").await.1["epoch"], epoch);
}

#[tokio::test]
async fn event_streams_are_bounded_and_come_free_again() {
    let server = Server::start(None).await;
    let mut open = Vec::new();
    for _ in 0..MAX_STREAMS {
        let stream = client().get(server.url("/api/v1/events")).send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::OK);
        open.push(stream);
    }
    assert_eq!(server.get("/api/v1/events").await.0, StatusCode::SERVICE_UNAVAILABLE);
    drop(open);
    server.until("/api/v1/status", |s| s["view"]["streams"] == 0).await;
    assert_eq!(client().get(server.url("/api/v1/events")).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let server = Server::start(None).await;
    let mut lazy = TcpStream::connect(server.address).await.unwrap();
    lazy.write_all(b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.unwrap();
    server.until("/api/v1/status", |s| s["view"]["streams"] == 1).await;
    // Pushed until the kernel's buffers are full and the write stalls.
    let long = "x".repeat(200);
    let mut rounds = 0;
    while server.get("/api/v1/status").await.1["view"]["streams"] == 1 {
        for n in 0..200 {
            let light = if n % 2 == 0 { MachineState::Red } else { MachineState::Green };
            let state = Live::State { machine: "m".into(), at: Time::now(), light, why: long.clone() };
            server.live.send(state).unwrap();
        }
        rounds += 1;
        assert!(rounds < 20_000, "the stream is still open");
    }
}

#[tokio::test]
async fn idle_and_half_said_connections_are_closed() {
    let server = Server::start(None).await;
    let half = b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ";
    let whole = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";
    for said in [&b""[..], half, whole] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut heard = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut heard)).await;
        assert!(closed.is_ok(), "still open after {:?}", String::from_utf8_lossy(said));
    }
}

#[tokio::test]
async fn requests_that_never_end_do_not_hold_up_the_stop() {
    let server = Server::start(None).await;
    let mut halting = TcpStream::connect(server.address).await.unwrap();
    halting.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ").await.unwrap();
    let mut body = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /api/v1/session HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{";
    body.write_all(head.as_bytes()).await.unwrap();
    server.until("/health/live", |l| l["status"] == "live").await;
    server.shared.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.serving).await.unwrap().unwrap();
    let mut rest = Vec::new();
    // Closed either way: the end of the stream or a reset.
    let _ = tokio::time::timeout(Duration::from_secs(5), body.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn a_browser_says_which_machines_it_shows() {
    let server = Server::start(None).await;
    let mut events = client().get(server.url("/api/v1/events?watch=true")).send().await.unwrap();
    let mut heard = String::new();
    let stream = loop {
        heard.push_str(&String::from_utf8_lossy(&events.chunk().await.unwrap().unwrap()));
        if let Some((_, rest)) = heard.split_once("\"id\":\"") {
            break rest[..16].to_owned();
        }
    };
    let path = format!("/api/v1/events/{stream}");
    assert_eq!(server.post(&path, r#"{"machines":["press-04"]}"#).await, (StatusCode::OK, json!({"watched": 1})));
    let many: Vec<String> = (0..=view::MAX_WATCHED).map(|n| format!("m{n}")).collect();
    assert_eq!(server.post(&path, &json!({"machines": many}).to_string()).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(server.post("/api/v1/events/0", r#"{"machines":[]}"#).await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.post("/api/v1/events/zz", r#"{"machines":[]}"#).await.0, StatusCode::NOT_FOUND);
    let id = server.feed();
    while !heard.contains("event: verdict") {
        heard.push_str(&String::from_utf8_lossy(&events.chunk().await.unwrap().unwrap()));
    }
    assert!(heard.contains("event: step\ndata: {\"machine\":\"press-04\"") || heard.contains("event: step"), "{heard}");
    let lights = server.get("/api/v1/lights").await.1;
    assert_eq!(
        (&lights["total"], &lights["lights"][0][0], &lights["lights"][0][1]),
        (&json!(1), &json!("press-04"), &json!("red"))
    );
    let brief = server.get("/api/v1/alarms?brief=true").await.1;
    assert_eq!((&brief["alarms"][0]["explained"], &brief["alarms"][0]["explanation"]), (&json!(false), &Value::Null));
    assert_eq!(server.get(&format!("/api/v1/alarms/{id}")).await.1["message"], "vib_x is unusual");
    assert_eq!(server.get("/api/v1/alarms/00").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_page_is_packed_for_those_who_can_unpack() {
    let server = Server::start(None).await;
    let page = client().get(server.url("/app.js")).header("accept-encoding", "br, gzip").send().await.unwrap();
    assert_eq!(page.headers()["content-encoding"], "gzip");
    let mut text = String::new();
    let packed = page.bytes().await.unwrap();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&packed[..]), &mut text).unwrap();
    let plain = client().get(server.url("/app.js")).send().await.unwrap();
    assert!(plain.headers().get("content-encoding").is_none());
    assert_eq!(plain.text().await.unwrap(), text);
}

#[tokio::test]
async fn plots_are_svg() {
    let server = Server::start(None).await;
    server.feed();
    server.until("/api/v1/machines", |m| m["total"] == 1).await;
    for path in [
        "/plot/machines/press-04/signals.svg?w=300&theme=dark",
        "/plot/machines/press-04/score.svg",
        "/plot/machines/press-04/health.svg?lang=zh",
        "/plot/buffer.svg",
    ] {
        let reply = client().get(server.url(path)).send().await.unwrap();
        assert_eq!(reply.headers()["content-type"], "image/svg+xml", "{path}");
        assert!(reply.text().await.unwrap().starts_with("<svg"), "{path}");
    }
    assert_eq!(server.get("/plot/machines/nobody/score.svg").await.0, StatusCode::NOT_FOUND);
    assert_eq!(server.get("/plot/buffer.svg?theme=pink").await.0, StatusCode::BAD_REQUEST);
}

#[test]
fn the_page_is_small_and_asks_nobody_else() {
    // The icon names SVG's namespace, which nobody fetches.
    let parts = super::assets::ALL.iter().filter(|a| a.path != "/icon.svg").map(|a| a.text);
    // README says so: over a slow line too it is there at once.
    let packed: usize = super::assets::ALL.iter().map(|a| a.packed().unwrap().len()).sum();
    let plain: usize = parts.clone().map(str::len).sum();
    assert!(packed < 32 * 1024 && plain < 90 * 1024, "{packed} and {plain} bytes");
    println!("the page: {packed} bytes compressed, {plain} as it is");
    for part in parts {
        for word in ["http:", "https:", "//cdn", "@import", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval("] {
            assert!(!part.contains(word), "{word}");
        }
    }
}

#[test]
fn config_is_read_and_open_doors_are_told() {
    let read = |text: &str| {
        let document = Document::parse(text, Surroundings::default());
        let config = Config::read(&document.root());
        (config, document.into_problems())
    };
    assert_eq!(read(""), (Config::default(), vec![]));
    assert_eq!(read("listen = \"off\"").0.listen, None);
    assert_eq!(read("listen = \"localhost:0\"").0.listen.unwrap().to_string(), "127.0.0.1:0");
    let told = |text: &str| read(text).1.into_iter().map(|p| p.message).collect::<Vec<_>>();
    assert_eq!(told("listen = \"0.0.0.0:80\""), ["listen: listening beyond this host needs a `token_file`"]);
    assert_eq!(told("listen = \"0.0.0.0:80\"\ntoken = \"0123456789abcdef\""), [""; 0]);
    assert_eq!(told("token = \"short\""), ["token: the token is shorter than 16 characters"]);
    assert_eq!(told("listen = \"8420\"").len(), 1);
    assert!(!format!("{:?}", read("token = \"0123456789abcdef\"").0).contains("0123"));
}

#[tokio::test]
async fn idle_connections_of_one_host_do_not_close_the_page() {
    let server = Server::start(None).await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert_eq!(server.get("/health/live").await.0, StatusCode::OK);
    assert_eq!(server.get("/api/v1/status").await.0, StatusCode::OK);
}

#[tokio::test]
async fn unfinished_bodies_are_refused_before_they_are_read() {
    let server = Server::start(None).await;
    let head = "POST /v2/models/ae/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
                Content-Length: 15000000\r\n\r\n{";
    let mut answers = Vec::new();
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        open.push(stream);
    }
    for stream in &mut open {
        let mut answer = [0; 12];
        // Those that have a share wait for the rest of their body.
        let came = tokio::time::timeout(Duration::from_millis(500), stream.read_exact(&mut answer)).await;
        if came.is_ok() {
            answers.push(String::from_utf8_lossy(&answer).into_owned());
        }
    }
    assert_eq!(answers, ["HTTP/1.1 503"; 3]);
    assert_eq!(server.shared.metrics.total("andon_web_refused_total", "body_bytes"), 3);
    let small = r#"{"inputs":[{"name":"window","shape":[1,2,1],"datatype":"FP32","data":[1,2]}]}"#;
    assert_eq!(server.post("/v2/models/ae/infer", small).await.0, StatusCode::OK);
}

#[tokio::test]
async fn an_output_is_asked_for_once() {
    let server = Server::start(None).await;
    let input = r#"{"name":"window","shape":[1,2,1],"datatype":"FP32","data":[1,2]}"#;
    let ask = |outputs: &str| format!(r#"{{"inputs":[{input}],"outputs":[{outputs}]}}"#);
    let (code, answer) = server.post("/v2/models/ae/infer", &ask(r#"{"name":"score"}"#)).await;
    assert_eq!((code, &answer["outputs"][0]["data"]), (StatusCode::OK, &json!([1.0, 2.0])));
    let (code, answer) = server.post("/v2/models/ae/infer", &ask(r#"{"name":"score"},{"name":"score"}"#)).await;
    assert_eq!((code, &answer["error"]), (StatusCode::BAD_REQUEST, &json!("output \"score\" is asked for twice")));
    let (code, _) = server.post("/v2/models/ae/infer", &ask(r#"{"name":"other"}"#)).await;
    assert_eq!(code, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn guesses_of_the_token_are_slow_and_counted_and_sessions_go_on() {
    let server = Server::start(Some(TOKEN)).await;
    let session = client().post(server.url("/api/v1/session")).header("content-type", "application/json");
    let session = session.body(json!({"token": TOKEN}).to_string()).send().await.unwrap();
    let cookie = session.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
    let begin = std::time::Instant::now();
    let guesses = (0..20).map(|n| {
        let request = client().get(server.url("/api/v1/status")).bearer_auth(format!("guess {n}"));
        tokio::spawn(async move { request.send().await.unwrap().status() })
    });
    let guesses: Vec<_> = guesses.collect();
    let mut codes = Vec::new();
    let mut looked_at = 0;
    for guess in guesses {
        let code = guess.await.unwrap();
        looked_at += usize::from(code == StatusCode::UNAUTHORIZED);
        codes.push(code);
    }
    assert!((1..=12).contains(&looked_at), "{codes:?}");
    assert!(begin.elapsed() >= Duration::from_millis(500));
    let page = client().get(server.url("/api/v1/status")).header("cookie", cookie).send().await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let counted = server.shared.metrics.total("andon_web_refused_total", "token");
    assert_eq!(counted, 20);
}
