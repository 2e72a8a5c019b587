//! The dashboard in a real browser: values that move, alarms that appear, plots, hostile names.
//! Screenshots are left in `target/tmp/screenshots/`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use andon::metrics::{Health, Shared};
use andon::settings::Secret;
use andon::types::{
    Action, Alarm, AlarmState, Cause, Condition, Contribution, Live, MachineState, Quality, Reason, RecordId, Rul,
    Target, Time, Verdict,
};
use andon::web::{self, About, Band, Command, Config, State, View};
use serde_json::json;
use support::chromium::Chromium;
use support::daemon::{Daemon, until};
use support::mosquitto::Mosquitto;
use support::publisher::publish;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;

#[path = "dashboard/faults.rs"]
mod faults;
mod support;

const HOSTILE: &str = "<img src=x onerror=alert(1)>";
const ESCAPE: &str = "\u{e00c}";
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

struct Plant {
    address: SocketAddr,
    shared: Shared,
    live: broadcast::Sender<Live>,
    commands: mpsc::Receiver<Command>,
    /// Whether the engine's heartbeats are sent.
    beating: Arc<AtomicBool>,
    serving: JoinHandle<()>,
}

impl Plant {
    async fn start(token: Option<&str>) -> Plant {
        Plant::start_at("127.0.0.1:0".parse().unwrap(), token).await
    }

    async fn start_at(listen: SocketAddr, token: Option<&str>) -> Plant {
        let token = token.map(|t| Secret::new(t.into()));
        let config = Config { listen: Some(listen), token, ..Config::default() };
        let (listener, address) = web::bind(&config).await.unwrap();
        let (shared, view) = (Shared::new(), View::new());
        let (live, events) = broadcast::channel(8_192);
        tokio::spawn(view.clone().follow(events, shared.clone()));
        let beating = Arc::new(AtomicBool::new(true));
        tokio::spawn(beat(live.clone(), beating.clone(), shared.clone()));
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
        board.set("cloud", Health::Down, "connection refused; next try in 8 s");
        board.set("publish/shop", Health::Up, "");
        drop(board.pulse("engine"));
        let (tx, commands) = mpsc::channel(4);
        let state = State {
            view,
            about,
            store_status: Arc::new(|| json!({"disk_bytes": 73_400_320, "dropped_records": 0})),
            models: Arc::new(|| json!([])),
            bands: Arc::new(|_| {
                let band = |unit: &str, low, high| Band { unit: unit.into(), normal: Some([low, high]) };
                [("vib_x".into(), band("mm/s", 1.2, 3.4)), ("temp".into(), band("degC", 40.0, 75.0))].into()
            }),
            inference: web::inference::Models::default(),
            commands: Some(tx),
            model_commands: None,
            settings: None,
        };
        let serving = tokio::spawn(web::run(listener, config, state, shared.clone()));
        Plant { address, shared, live, commands, beating, serving }
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

    fn light(&self, machine: &str, light: MachineState, why: &str) {
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
            rul: (p_value < 0.01).then(|| {
                let median = -40.0 / p_value.log10() * 12.0;
                Rul { low: median * 0.7, median, high: median * 1.5 }
            }),
            class: None,
            quality: Quality::Good,
            contributions: shares.map(|(n, value)| Contribution { name: n.into(), value }).into(),
        };
        self.send(Live::Verdict(Arc::new(verdict), "{}".into()));
    }

    fn alarm(&self, machine: &str, state: AlarmState, message: &str, by: Option<&str>) -> RecordId {
        let alarm = self.alarm_of(machine, state, message, by);
        let id = alarm.id;
        self.send(Live::Alarm(Arc::new(alarm), "{}".into()));
        id
    }

    fn alarm_of(&self, machine: &str, state: AlarmState, message: &str, by: Option<&str>) -> Alarm {
        Alarm {
            id: RecordId::of(&[machine.as_bytes()]),
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
        }
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
        self.light("press-04", MachineState::Red, "anomaly: vib_x is unusual");
        self.light("pump-1", MachineState::Green, "no anomaly");
        self.light("mixer-2", MachineState::Amber, "torque has not been heard");
        self.light("oven-1", MachineState::Off, "machine off");
        self.light(HOSTILE, MachineState::Green, "no <b>anomaly</b>");
        self.alarm("pump-1", AlarmState::ReturnedUnacknowledged, "pressure was unusual for 40 s", None);
        self.alarm("press-04", AlarmState::Unacknowledged, "Unusual vibration: mostly vib_x (62 %)", None);
    }

    async fn stop(self) {
        self.shared.stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(10), self.serving).await;
        ended.expect("the dashboard ends though a browser is listening").unwrap();
    }
}

/// The engine's heartbeat, until the agent stops.
async fn beat(live: broadcast::Sender<Live>, beating: Arc<AtomicBool>, shared: Shared) {
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    while shared.stop.run_until_cancelled(tick.tick()).await.is_some() {
        if beating.load(Ordering::Relaxed) {
            let _ = live.send(Live::Heartbeat(Time::now()));
        }
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
    browser.until("document.querySelector('#plot-health').naturalWidth > 0").await;
    let shares = browser.run("return [...document.querySelectorAll('#contributions .share')].map(s => s.textContent);");
    assert_eq!(shares.await, json!(["62.0 %", "21.0 %", "12.0 %", "5.0 %"]));
    browser
        .until("document.querySelector('#detail-signals tr[data-signal=vib_x]').innerText.includes('1.2 … 3.4 mm/s')")
        .await;
    browser
        .until("document.querySelector('#detail-signals tr[data-signal=vib_x] .value').classList.contains('not-good')")
        .await;
    browser.screenshot("desktop-detail.png").await;
    browser.run("document.querySelector('#plot-health').scrollIntoView();").await;
    browser.until("document.querySelector('#plot-signals').naturalWidth > 0").await;
    browser.screenshot("desktop-health.png").await;
    let first = browser.run("return document.querySelector('#plot-score').src;").await;
    browser.until(&format!("document.querySelector('#plot-score').src !== {first}")).await;
    browser.press(ESCAPE).await;
    browser.until("!document.querySelector('#detail').open").await;
    browser.until("document.activeElement.dataset.machine === 'press-04'").await;

    // Taken out of service from its page.
    browser.click(".card[data-machine='press-04']").await;
    browser.click("#detail-out").await;
    let command = tokio::time::timeout(Duration::from_secs(10), plant.commands.recv()).await.unwrap().unwrap();
    assert_eq!((command.target, command.action), (Target::Machine("press-04".into()), Action::OutOfService));
    command.reply.send(Ok(())).unwrap();
    browser.press(ESCAPE).await;

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

/// A plant as large as they get, with the agent and the broker real. What it costs is printed; what has to
/// hold is that the page stays as small as if there were sixty.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_machines_stay_usable() {
    const MACHINES: usize = 1_000;
    let broker = Mosquitto::start();
    let mut daemon = Daemon::new(&LARGE.replace("@BROKER@", &broker.url())).ready();
    let wrong = Arc::new(AtomicUsize::new(usize::MAX));
    let (url, bad) = (broker.url(), wrong.clone());
    let feeding = tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(2));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let high = bad.load(Ordering::Relaxed);
            let message = |n: usize| {
                let count = if n == high { 9.0 } else { 0.25 + (n % 7) as f64 / 20.0 };
                let x = fastrand::f64();
                let values = json!({"count": count, "pressure": 6.0 + x, "flow": 400.0 + x, "temp": 60.0 + x, "current": 12.0 - x});
                (format!("plant/machine-{n:04}"), values.to_string())
            };
            publish(&url, (0..MACHINES).map(message)).await;
        }
    });
    until("all machines are heard", || daemon.status()["machines"]["total"] == MACHINES);

    let browser = Chromium::start(false).await;
    browser.resize(1280, 900, false).await;
    let begun = std::time::Instant::now();
    browser.open(&format!("http://127.0.0.1:{}/", daemon.web_port())).await;
    browser.until("document.querySelectorAll('.card').length === 60").await;
    browser.until(&format!("document.querySelectorAll('#wall a[data-light]').length === {MACHINES}")).await;
    let shown = begun.elapsed();

    // Only what is in sight is told of.
    let count = "globalThis.heardOf = new Map(); globalThis.heardBytes = 0; for (const k of ['step', 'verdict', 'status', 'state']) \
                 source.addEventListener(k, e => { heardBytes += e.data.length; const d = JSON.parse(e.data); if (k === 'step') heardOf.set(d.machine, (heardOf.get(d.machine) || 0) + 1); });";
    browser.run(count).await;
    browser.until("[...heardOf.values()].some(n => n >= 4)").await;
    let told = browser.run("return [heardOf.size, visible.size, heardBytes / Math.max(...heardOf.values())];").await;
    let [machines, visible, bytes] = [0, 1, 2].map(|i| told[i].as_f64().unwrap());
    assert!((1.0..=60.0).contains(&machines) && machines <= visible + 12.0, "{told}");
    let (nodes, heap) = (browser.figure("Nodes").await, browser.figure("JSHeapUsedSize").await);
    assert!(nodes < 15_000.0, "{nodes} nodes");
    browser.screenshot("thousand.png").await;
    println!(
        "1,000 machines: shown after {shown:?}, {nodes} nodes, {:.1} MB of heap, {:.1} KB of events a second, {} MB resident",
        heap / 1e6,
        bytes / 2e3,
        daemon.memory() >> 10
    );

    // The one that goes wrong is on none of the first pages; it comes to the top, on the wall and in the list.
    wrong.store(777, Ordering::Relaxed);
    browser.until("document.querySelector('#machines .card')?.dataset.machine === 'machine-0777'").await;
    browser.until("document.querySelector('#wall a[data-machine=machine-0777]').dataset.light === 'red'").await;
    browser
        .until("document.querySelector('#alarms li[data-active=true] .machine')?.textContent === 'machine-0777'")
        .await;

    // By its light, by its name, and by turning pages.
    browser.click("#counts .pill[data-light=red]").await;
    browser.until("document.querySelectorAll('.card').length === 1").await;
    browser.click("#counts .pill[data-light=red]").await;
    browser.until("document.querySelectorAll('.card').length === 60").await;
    browser.click("#pager-on").await;
    browser.until("document.querySelector('#pager-where').textContent === '61 – 120 / 1000'").await;
    browser
        .run("const f = document.querySelector('#filter'); f.value = 'E-0123'; f.dispatchEvent(new Event('input'));")
        .await;
    browser.until("document.querySelectorAll('.card').length === 1").await;
    browser.click(".card[data-machine=machine-0123]").await;
    browser.until("document.querySelectorAll('#detail-signals tr').length === 5").await;
    browser.until("document.querySelector('#plot-signals').naturalWidth > 0").await;
    let first =
        browser.run("return document.querySelector('#detail-signals tr[data-signal=flow] .value').textContent;").await;
    browser
        .until(&format!(
            "document.querySelector('#detail-signals tr[data-signal=flow] .value').textContent !== {first}"
        ))
        .await;
    browser.press(ESCAPE).await;
    assert_eq!(browser.console().await, [""; 0]);
    feeding.abort();
    drop(browser);
    assert!(daemon.terminate().success());
}

/// All text that can be seen, with its contrast against what is behind it where that is too little.
const CONTRAST: &str = r#"
const parse = c => { const n = c.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
const behind = e => {
  const layers = [];
  for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  return layers.reverse().reduce((below, layer) => over(layer, below), canvas);
};
const light = c => { const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const found = [];
let looked = 0;
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const e = walk.currentNode.parentElement;
  if (!walk.currentNode.textContent.trim() || !e.checkVisibility({ visibilityProperty: true }) || e.closest(".unseen, :disabled, script, noscript, option")) continue;
  const back = behind(e), text = over(parse(getComputedStyle(e).color), back), [a, b] = [light(text), light(back)].sort((x, y) => y - x);
  looked++;
  if ((a + 0.05) / (b + 0.05) < 4.5) found.push(walk.currentNode.textContent.trim() + " " + ((a + 0.05) / (b + 0.05)).toFixed(2));
}
return [looked, found];
"#;

/// What has no name that a screen reader could say.
const NAMELESS: &str = r#"
const named = e => (e.getAttribute("aria-label") || e.alt || e.title || e.innerText || (e.labels && [...e.labels].map(l => l.innerText).join("")) || "").trim();
return [...document.querySelectorAll("button, a[href], input, select, summary, meter, progress, img, dialog, svg[role=img]")]
  .filter(e => e.checkVisibility() && !named(e) && e.getAttribute("alt") !== "" && !e.getAttribute("aria-labelledby")).map(e => e.outerHTML.slice(0, 120));
"#;

async fn legible(browser: &Chromium, what: &str) {
    let seen = browser.run(CONTRAST).await;
    assert!(seen[0].as_u64().unwrap() >= 8, "{what}: {seen}");
    assert_eq!(seen[1], json!([]), "{what}: too little contrast");
    assert_eq!(browser.run(NAMELESS).await, json!([]), "{what}: without a name");
}

/// Presses Tab until this has the focus, which has to be seen.
async fn tab_to(browser: &Chromium, css: &str) {
    for _ in 0..80 {
        browser.press(TAB).await;
        if browser.run(&format!("return document.activeElement.matches({css:?});")).await == json!(true) {
            let outline = browser.run("return getComputedStyle(document.activeElement).outlineStyle;").await;
            assert_ne!(outline, json!("none"), "{css} has the focus and does not show it");
            return;
        }
    }
    panic!("{css} is not reached by the Tab key");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_done_by_keyboard_and_can_be_read() {
    for dark in [false, true] {
        let mut plant = Plant::start(None).await;
        let browser = Chromium::start(dark).await;
        browser.resize(1280, 900, false).await;
        plant.morning();
        browser.open(&plant.url()).await;
        browser.until(&format!("{PRESS} && document.querySelector('#alarms .ack')")).await;
        legible(&browser, "the overview").await;

        // Straight to the alarms, and acknowledged.
        browser.press(TAB).await;
        browser.until("document.activeElement.id === 'skip'").await;
        browser.press(ENTER).await;
        tab_to(&browser, "#alarms .ack").await;
        browser.press(ENTER).await;
        let command = tokio::time::timeout(Duration::from_secs(10), plant.commands.recv()).await.unwrap().unwrap();
        assert_eq!(command.action, Action::Acknowledge);
        command.reply.send(Ok(())).unwrap();

        // Shelved: the dialog takes the focus and gives it back.
        tab_to(&browser, "#alarms .shelve").await;
        browser.press(ENTER).await;
        browser.until("document.querySelector('#shelf').open && document.activeElement.closest('#shelf')").await;
        legible(&browser, "shelving").await;
        tab_to(&browser, "#shelf-do").await;
        browser.press(ENTER).await;
        let command = tokio::time::timeout(Duration::from_secs(10), plant.commands.recv()).await.unwrap().unwrap();
        assert_eq!(command.action, Action::Shelve(1800));
        command.reply.send(Ok(())).unwrap();
        browser.until("!document.querySelector('#shelf').open").await;

        // A machine, its page, and back.
        tab_to(&browser, ".card[data-machine='press-04']").await;
        browser.press(ENTER).await;
        browser
            .until("document.querySelector('#detail').open && document.querySelector('#plot-health').naturalWidth > 0")
            .await;
        legible(&browser, "a machine").await;
        browser.press(ESCAPE).await;
        browser.until("document.activeElement.dataset.machine === 'press-04'").await;
        for page in ["path", "models"] {
            tab_to(&browser, &format!("nav a[data-page={page}]")).await;
            browser.press(ENTER).await;
            browser.until(&format!("!document.querySelector('#{page}-page').hidden")).await;
            legible(&browser, page).await;
            if page == "path" {
                let sinks = "document.querySelector('#path-sinks').innerText";
                browser.until(&format!("{sinks}.includes('cloud') && {sinks}.includes('publish/shop')")).await;
            }
        }
        // Nothing moves by itself.
        let moving = "return document.getAnimations().length + document.querySelectorAll('marquee, video').length;";
        assert_eq!(browser.run(moving).await, json!(0));
        assert_eq!(browser.console().await, [""; 0]);
        plant.stop().await;
    }
}

const LARGE: &str = r#"
[agent]
site = "test/large"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"

[[source.mqtt]]
name = "shop"
url = "@BROKER@"
[[source.mqtt.subscribe]]
topic = "plant/{machine}"

[[machine]]
match = "*"
model = "one-step"
rate = "2s"
stale_after = "60s"
[machine.alarm]
threshold = 1.0

[web]
listen = "@WEB@"
"#;
