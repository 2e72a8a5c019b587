//! The dashboard in a real browser: values that move, alarms that appear, plots, hostile names.
//! Screenshots are left in `target/tmp/screenshots/`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use andon::metrics::{Health, Shared};
use andon::settings::Secret;
use andon::types::{
    Action, Alarm, AlarmState, Cause, Condition, Contribution, Light, Live, Quality, Reason, RecordId, Target, Time,
    Verdict,
};
use andon::web::{self, About, Command, Config, State, View};
use serde_json::json;
use support::chromium::Chromium;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

mod support;

const HOSTILE: &str = "<img src=x onerror=alert(1)>";
const ESCAPE: &str = "\u{e00c}";

struct Plant {
    address: SocketAddr,
    shared: Shared,
    live: broadcast::Sender<Live>,
    commands: mpsc::Receiver<Command>,
    serving: JoinHandle<()>,
}

impl Plant {
    async fn start(token: Option<&str>) -> Plant {
        let token = token.map(|t| Secret::new(t.into()));
        let config = Config { listen: Some("127.0.0.1:0".parse().unwrap()), token, ..Config::default() };
        let (listener, address) = web::bind(&config).await.unwrap();
        let (shared, view) = (Shared::new(), View::new());
        let (live, events) = broadcast::channel(8_192);
        tokio::spawn(view.clone().follow(events, shared.stop.clone()));
        let about = About {
            site: "lyon/line3".into(),
            agent: "gw-07".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: Time::now().minus(Duration::from_secs(7_500)),
            data_dir: "/var/lib/andon".into(),
        };
        let board = &shared.board;
        board.set("store", Health::Up, "");
        board.set("source/shop", Health::Up, "mqtt://127.0.0.1:1883");
        board.set("source/press-plc", Health::Degraded, "3 of 240 requests timed out");
        board.set("cloud/aiaas", Health::Down, "connection refused; next try in 8 s");
        board.set("publish/shop", Health::Up, "");
        drop(board.pulse("engine"));
        let (tx, commands) = mpsc::channel(4);
        let state = State {
            view,
            about,
            store_status: Arc::new(|| json!({"disk_bytes": 73_400_320, "dropped_records": 0})),
            models: Arc::new(|| json!([])),
            inference: web::inference::Models::default(),
            commands: Some(tx),
            model_commands: None,
            settings: None,
        };
        let serving = tokio::spawn(web::run(listener, config, state, shared.clone()));
        Plant { address, shared, live, commands, serving }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }

    fn send(&self, event: Live) {
        assert!(self.live.send(event).is_ok(), "the view listens");
    }

    fn step(&self, machine: &str, at: Time, values: &[(&str, f64)]) {
        let values = values.iter().map(|(n, v)| ((*n).into(), Some(*v), Quality::Good, Cause::None)).collect();
        self.send(Live::Step { machine: machine.into(), at, values });
    }

    fn light(&self, machine: &str, light: Light, why: &str) {
        self.send(Live::State { machine: machine.into(), at: Time::now(), light, why: why.into() });
    }

    fn verdict(&self, machine: &str, at: Time, p_value: f64) {
        let reason = if p_value <= 0.001 { Reason::AnomalyDetected } else { Reason::NoAnomalyDetected };
        let shares = [("vib_x", 0.62), ("vib_y", 0.21), ("temp", 0.12), ("current", 0.05)];
        let verdict = Verdict {
            machine: machine.into(),
            at,
            model: "bearing-ae".into(),
            model_version: "4".into(),
            model_digest: "00".into(),
            reason,
            score: Some(-p_value.log10() / 4.0),
            p_value: Some(p_value),
            threshold: 0.001,
            health: Some((1.0 + p_value.log10() / 3.0).max(0.0)),
            rul: None,
            class: None,
            quality: Quality::Good,
            contributions: shares.map(|(n, value)| Contribution { name: n.into(), value }).into(),
        };
        self.send(Live::Verdict(Arc::new(verdict), "{}".into()));
    }

    fn alarm(&self, machine: &str, state: AlarmState, message: &str, by: Option<&str>) -> RecordId {
        let id = RecordId::of(&[machine.as_bytes()]);
        let alarm = Alarm {
            id,
            machine: machine.into(),
            condition: Condition::Anomaly,
            state,
            severity: 700,
            since: Time::now(),
            at: Time::now(),
            message: message.into(),
            top_channel: Some("vib_x".into()),
            acknowledged_by: by.map(String::from),
            care: Default::default(),
        };
        self.send(Live::Alarm(Arc::new(alarm), "{}".into()));
        id
    }

    /// A few minutes of five machines, one of them in trouble, one with a signal that fell silent.
    fn morning(&self) {
        let start = Time::now().minus(Duration::from_secs(300));
        for s in 0..300u32 {
            let (at, x) = (start.plus(Duration::from_secs(u64::from(s))), f64::from(s) / 9.0);
            let wear = f64::from(s.saturating_sub(200)) / 40.0;
            let vib = 2.1 + 0.3 * x.sin() + wear;
            let values = [("vib_x", vib), ("vib_y", 1.7 + 0.2 * x.cos()), ("temp", 61.0 + x / 8.0), ("current", 12.4)];
            self.step("press-04", at, &values);
            self.verdict("press-04", at, 10f64.powf(-0.4 - 0.3 * (x * 1.7).sin().abs() - wear * 1.6));
            self.step("pump-1", at, &[("flow", 410.0 + 3.0 * x.sin()), ("pressure", 6.2)]);
            self.verdict("pump-1", at, 0.4 + 0.3 * x.sin());
            let heard = !(120..260).contains(&s);
            let (quality, cause) = if heard { (Quality::Good, Cause::None) } else { (Quality::Stale, Cause::Timeout) };
            let torque = ("torque".into(), heard.then_some(30.0 + x.cos()), quality, cause);
            let speed = ("speed".into(), Some(1_480.0), Quality::Good, Cause::None);
            self.send(Live::Step { machine: "mixer-2".into(), at, values: vec![torque, speed] });
        }
        let silent = ("torque".into(), None, Quality::Stale, Cause::Timeout);
        self.send(Live::Step { machine: "mixer-2".into(), at: Time::now(), values: vec![silent] });
        self.light("press-04", Light::Red, "anomaly: vib_x is unusual");
        self.light("pump-1", Light::Green, "no anomaly");
        self.light("mixer-2", Light::Amber, "torque has not been heard");
        self.light("oven-1", Light::Grey, "machine off");
        self.light(HOSTILE, Light::Green, "no <b>anomaly</b>");
        self.alarm("pump-1", AlarmState::ReturnedUnacknowledged, "pressure was unusual for 40 s", None);
        self.alarm("press-04", AlarmState::Unacknowledged, "Unusual vibration: vib_x speaks loudest (62 %)", None);
    }

    async fn stop(self) {
        self.shared.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.serving).await;
        ended.expect("the dashboard ends though a browser is listening").unwrap();
    }
}

const PRESS: &str = "document.querySelector('.card[data-machine=\"press-04\"]')";

#[tokio::test(flavor = "multi_thread")]
async fn the_page_lives() {
    let mut plant = Plant::start(None).await;
    let browser = Chromium::start(false).await;
    browser.resize(1280, 800, false).await;
    browser.open(&plant.url()).await;
    browser.until("document.querySelector('#site').textContent === 'lyon/line3'").await;

    // Machines, their lights and their values appear without a reload.
    plant.morning();
    browser.until(&format!("{PRESS} && {PRESS}.dataset.light === 'red'")).await;
    browser.until(&format!("{PRESS}.querySelector('.pill').textContent === 'alarm'")).await;
    plant.step("press-04", Time::now(), &[("vib_x", 7.25)]);
    browser.until(&format!("{PRESS}.querySelector('[data-signal=vib_x] .value').textContent === '7.25'")).await;
    plant.step("press-04", Time::now(), &[("vib_x", 8.5)]);
    browser.until(&format!("{PRESS}.querySelector('[data-signal=vib_x] .value').textContent === '8.5'")).await;
    browser
        .until(
            "document.querySelector('[data-machine=mixer-2] [data-signal=torque]').innerText.includes('not heard for')",
        )
        .await;

    // Names are text and nothing else.
    let names = browser.run("return [...document.querySelectorAll('.card .name')].map(n => n.textContent);").await;
    assert!(names.as_array().unwrap().contains(&json!(HOSTILE)), "{names}");
    let strange =
        browser.run("return document.querySelectorAll('main img:not([id]), .card img, .card b').length;").await;
    assert_eq!(strange, json!(0));

    // An alarm appears, is acknowledged by a click, and says who saw it.
    let id = RecordId::of(&[b"press-04"]);
    let row = format!("document.querySelector('#alarms li[data-alarm=\"{id}\"]')");
    browser.until(&format!("{row} && {row}.dataset.active === 'true'")).await;
    browser.until("document.querySelector('#said').textContent.includes('press-04')").await;
    browser.until("document.querySelector('#buffer').naturalWidth > 0").await;
    browser.screenshot("desktop-light.png").await;
    browser.click(&format!("#alarms li[data-alarm='{id}'] .ack")).await;
    let command = tokio::time::timeout(Duration::from_secs(10), plant.commands.recv()).await.unwrap().unwrap();
    assert_eq!((command.target, command.action), (Target::Alarm(id), Action::Acknowledge));
    command.reply.send(Ok(())).unwrap();
    plant.alarm("press-04", AlarmState::Acknowledged, "Unusual vibration", Some(&command.who));
    browser.until(&format!("{row}.dataset.state === 'acknowledged' && {row}.querySelector('.ack').hidden")).await;
    browser.until(&format!("{row}.innerText.includes('seen by dashboard')")).await;

    // A machine's page: contributions in order, plots as SVG; closed by the keyboard.
    browser.click(".card[data-machine='press-04']").await;
    browser.until("document.querySelector('#plot-signals').naturalWidth > 0").await;
    browser.until("document.querySelector('#plot-score').naturalWidth > 0").await;
    let shares = browser.run("return [...document.querySelectorAll('#contributions .share')].map(s => s.textContent);");
    assert_eq!(shares.await, json!(["62.0 %", "21.0 %", "12.0 %", "5.0 %"]));
    browser.screenshot("desktop-detail.png").await;
    let first = browser.run("return document.querySelector('#plot-score').src;").await;
    browser.until(&format!("document.querySelector('#plot-score').src !== {first}")).await;
    browser.press(ESCAPE).await;
    browser.until("!document.querySelector('#detail').open").await;
    browser.until("document.activeElement.dataset.machine === 'press-04'").await;

    // Losing the agent is said, and nothing was complained of until then.
    assert_eq!(browser.console().await, [""; 0]);
    plant.stop().await;
    browser.until("!document.querySelector('#lost').hidden").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_suits_dark_rooms_and_phones() {
    let plant = Plant::start(None).await;
    let browser = Chromium::start(true).await;
    plant.morning();
    browser.resize(1280, 1100, false).await;
    browser.open(&plant.url()).await;
    browser.until(&format!("{PRESS} && document.querySelector('#buffer').naturalWidth > 0")).await;
    assert_eq!(browser.run("return matchMedia('(prefers-color-scheme: dark)').matches;").await, json!(true));
    browser.screenshot("desktop-dark.png").await;
    browser.resize(390, 844, true).await;
    browser.until("innerWidth === 390").await;
    let overflow = "document.documentElement.scrollWidth > innerWidth";
    assert_eq!(browser.run(&format!("return {overflow};")).await, json!(false), "nothing sticks out sideways");
    browser.screenshot("phone-dark.png").await;
    browser.run(&format!("{PRESS}.click();")).await;
    browser.until("document.querySelector('#plot-signals').naturalWidth > 0").await;
    browser.screenshot("phone-dark-detail.png").await;
    assert_eq!(browser.run(&format!("return {overflow};")).await, json!(false), "nothing sticks out sideways");
    assert_eq!(browser.console().await, [""; 0]);
    plant.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_token_the_page_asks_for_it() {
    let plant = Plant::start(Some("only for this test")).await;
    let browser = Chromium::start(false).await;
    plant.morning();
    browser.open(&plant.url()).await;
    browser.until("document.querySelector('#sign-in').open").await;
    let fill = |token: &str| {
        format!(
            "document.querySelector('#token').value = '{token}'; document.querySelector('#sign-in-form button').click();"
        )
    };
    browser.run(&fill("this is not the one")).await;
    browser.until("document.querySelector('#sign-in-error').textContent === 'this is not the token'").await;
    browser.run(&fill("only for this test")).await;
    browser.until(&format!("!document.querySelector('#sign-in').open && {PRESS}")).await;
    browser.until("document.querySelector('#lost').hidden").await;
    plant.stop().await;
}
