//! A shift leader's morning, with everything real: broker, agent, model and browser. The light turns
//! red, they open the machine, read why, acknowledge, shelve, and see the alarm come back. Then the
//! same over HTTP with the plug pulled after each step. Screenshots go to `target/tmp/screenshots/`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use andon::types::Time;
use serde_json::{Value, json};
use support::chromium::Chromium;
use support::daemon::{Daemon, andon, binary, until};
use support::mosquitto::Mosquitto;
use support::publisher::publish;
use tokio::task::JoinHandle;

mod support;

const CONFIG: &str = r#"
[agent]
site = "lyon/line3"
id = "gw-07"
data_dir = "@DIR@/data"
models_dir = "@MODELS@"

[[source.mqtt]]
name = "shop"
url = "@BROKER@"
[[source.mqtt.subscribe]]
topic = "plant/{machine}"
time = "/ts"
time_format = "unix_ms"

[[machine]]
match = "*"
model = "pump-anomaly"
[machine.alarm]
severity = 700

[web]
listen = "@WEB@"
"#;

/// Two pumps at ten readings a second, the second of which can be told to go wrong.
struct Pumps {
    trouble: Arc<AtomicBool>,
    running: JoinHandle<()>,
}

impl Pumps {
    fn start(url: &str) -> Pumps {
        let manifest: Value = serde_json::from_slice(
            &std::fs::read(support::daemon::repository("models/pump-anomaly/model.json")).unwrap(),
        )
        .unwrap();
        let channels: Vec<(String, f64, f64)> = manifest["channels"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| (c["name"].as_str().unwrap().into(), c["mean"].as_f64().unwrap(), c["std"].as_f64().unwrap()))
            .collect();
        let (trouble, url) = (Arc::new(AtomicBool::new(false)), url.to_owned());
        let wrong = trouble.clone();
        let running = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(500));
            let mut step = (Time::now().0 - 10_000_000_000) / 100_000_000;
            loop {
                tick.tick().await;
                let now = Time::now().0 / 100_000_000;
                let mut messages = Vec::new();
                for step in step..now {
                    for pump in ["pump-1", "pump-2"] {
                        let bad = pump == "pump-2" && wrong.load(Ordering::Relaxed);
                        let mut payload = json!({"ts": step * 100});
                        for (i, (name, mean, std)) in channels.iter().enumerate() {
                            let wobble = ((step * 7 + i as i64) % 13) as f64 / 13.0 - 0.5;
                            let fault = if bad && name == "suction_pressure" { -6.0 } else { 0.0 };
                            payload[name] = json!(mean + std * (0.05 * wobble + fault));
                        }
                        messages.push((format!("plant/{pump}"), payload.to_string()));
                    }
                }
                step = now;
                publish(&url, messages).await;
            }
        });
        Pumps { trouble, running }
    }

    fn fail(&self, bad: bool) {
        self.trouble.store(bad, Ordering::Relaxed);
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// The one alarm that stands, or null.
fn alarm(daemon: &Daemon) -> Value {
    let Ok((200, body)) = daemon.get("/api/v1/alarms") else { return Value::Null };
    let listed: Value = serde_json::from_str(&body).expect("JSON");
    listed["alarms"].as_array().and_then(|a| a.iter().find(|a| a["machine"] == "pump-2").cloned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shift_leader_sees_understands_and_acts() {
    let broker = Mosquitto::start();
    let mut daemon = Daemon::new(&CONFIG.replace("@BROKER@", &broker.url())).ready();
    let pumps = Pumps::start(&broker.url());
    let browser = Chromium::start(false).await;
    browser.resize(1280, 900, false).await;
    browser.open(&format!("http://127.0.0.1:{}/", daemon.web_port())).await;
    let card = "document.querySelector('.card[data-machine=\"pump-2\"]')";
    browser.until(&format!("{card} && {card}.dataset.light === 'green'")).await;

    // The light turns red and the alarm is read aloud.
    pumps.fail(true);
    browser.until(&format!("{card}.dataset.light === 'red'")).await;
    browser.until("document.querySelector('#said')?.textContent.includes('pump-2')").await;
    browser.until("document.querySelector('#alarms > li[data-active=true] .state')?.textContent === 'Active'").await;

    // They open the machine and read why, and what to check first.
    browser.click(".card[data-machine='pump-2']").await;
    browser.until("document.querySelector('#detail-alarm .ranked li')?.dataset.channel === 'suction_pressure'").await;
    browser.until("document.querySelector('#detail-alarm .advice')?.innerText.includes('suction valve')").await;
    browser.until("document.querySelector('#detail-alarm .figures .not-good')?.innerText.includes('bar')").await;
    browser.until("document.querySelector('#plot-signals')?.naturalWidth > 0").await;
    browser.screenshot("shift-detail.png").await;
    browser.press("\u{e00c}").await;
    browser.until("!document.querySelector('#detail').open").await;

    // The same in Chinese.
    let speak = |l: &str| {
        format!("const s = document.querySelector('#language'); s.value = '{l}'; s.dispatchEvent(new Event('change'));")
    };
    browser.run(&speak("zh")).await;
    browser.until("document.querySelector('#alarms .ack')?.textContent === '确认'").await;
    browser.until("document.querySelector('#alarms .message')?.textContent.startsWith('行为异常')").await;
    browser.run("document.querySelector('#alarms .why-so').open = true;").await;
    browser.until("document.querySelector('#alarms .advice')?.innerText.includes('吸入阀')").await;
    browser.screenshot("shift-zh.png").await;
    browser.run(&speak("en")).await;
    browser.until("document.querySelector('#alarms .ack')?.textContent === 'Acknowledge'").await;

    browser.until("document.querySelector('#alarms .message')?.textContent.startsWith('unusual')").await;

    // Acknowledged by a click; shelved by keyboard for a few seconds, and it comes back by itself.
    browser.click("#alarms .ack").await;
    until("the click has reached the agent", || alarm(&daemon)["state"] == "acknowledged");
    browser.until("document.querySelector('#alarms .state')?.textContent === 'Active, acknowledged'").await;
    browser.run("document.querySelector('#alarms .shelve').focus();").await;
    browser.press("\u{e007}").await;
    browser.until("document.querySelector('#shelf')?.open").await;
    browser.run("document.querySelector('#shelf-minutes').value = 0.1; document.querySelector('#shelf-name').value = 'Ana'; document.querySelector('#shelf-comment').value = 'bearing is on order';").await;
    browser.screenshot("shift-shelve.png").await;
    browser.click("#shelf-do").await;
    browser
        .until("document.querySelector('#aside .aside-until')?.innerText.includes('Ana (127.0.0.1): bearing')")
        .await;
    browser.until(&format!("{card}.dataset.light === 'amber'")).await;
    browser.screenshot("shift-shelved.png").await;
    browser.until("document.querySelector('#aside-part')?.hidden").await;
    browser.until("document.querySelector('#alarms > li[data-active=true] .state')?.textContent === 'Active'").await;
    browser.until(&format!("{card}.dataset.light === 'red'")).await;

    // The pages beside it.
    browser.run("location.hash = '#path';").await;
    browser.until("document.querySelector('#path-sources td')?.innerText === 'shop'").await;
    browser.until("document.querySelector('#path-sources')?.innerText.includes('just now')").await;
    browser.screenshot("shift-path.png").await;
    browser.run("location.hash = '#models';").await;
    browser.until("document.querySelector('#models-list')?.innerText.includes('suction_pressure')").await;
    browser.screenshot("shift-models.png").await;
    browser.resize(390, 844, true).await;
    browser.run("location.hash = '';").await;
    browser.until("innerWidth === 390").await;
    let overflow = "return document.documentElement.scrollWidth > innerWidth;";
    assert_eq!(browser.run(overflow).await, json!(false), "nothing sticks out sideways");
    browser.screenshot("shift-phone.png").await;
    assert_eq!(browser.console().await, [""; 0]);

    // Who did what can be proven afterwards.
    assert!(daemon.terminate().success());
    let config = daemon.config();
    let verified = andon(["audit".as_ref(), "verify".as_ref(), "-c".as_ref(), config.as_os_str()]);
    let told = String::from_utf8_lossy(&verified.stdout).into_owned();
    assert!(verified.status.success() && told.contains("the chain is whole"), "{told}");
    let log = daemon.dir().join("data/audit.jsonl");
    let text = std::fs::read_to_string(&log).unwrap();
    for part in ["\"action\":\"ack\"", "\"action\":\"shelve\"", "Ana (127.0.0.1)", "bearing is on order"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    std::fs::write(&log, text.replace("Ana", "Bob")).unwrap();
    let verified = Command::new(binary()).args(["audit", "verify"]).arg(&log).output().unwrap();
    assert_eq!(verified.status.code(), Some(1));
    let told = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(told.contains("changed after it was written"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_did_survives_the_plug() {
    let broker = Mosquitto::start();
    let mut daemon = Daemon::new(&CONFIG.replace("@BROKER@", &broker.url())).ready();
    let pumps = Pumps::start(&broker.url());
    until("the pump is heard", || daemon.get("/api/v1/machines/pump-2").is_ok_and(|(code, _)| code == 200));
    pumps.fail(true);
    until("the alarm is raised", || alarm(&daemon)["state"] == "unacknowledged");
    let id = alarm(&daemon)["id"].as_str().unwrap().to_owned();
    let steps = [
        ("ack", json!({"by": "Ana"}), "acknowledged", "acknowledged"),
        ("shelve", json!({"by": "Ana", "seconds": 3600}), "acknowledged", "shelved"),
        ("out_of_service", json!({"by": "Ben"}), "acknowledged", "out_of_service"),
        ("in_service", json!({"by": "Ben"}), "acknowledged", "shelved"),
        ("unshelve", json!({}), "unacknowledged", "unacknowledged"),
        ("shelve", json!({"seconds": 1}), "unacknowledged", "shelved"),
    ];
    for (action, body, state, shown) in steps {
        let (code, answer) = daemon.post(&format!("/api/v1/alarms/{id}/{action}"), &body.to_string());
        assert_eq!(code, 200, "{action}: {answer}");
        // The very moment it is said to be done.
        daemon.kill9();
        daemon.start_ready();
        until("it is back", || alarm(&daemon)["state"] == state);
        let back = alarm(&daemon);
        assert_eq!(back["id"], id.as_str(), "the same alarm");
        if action != "shelve" || body["seconds"] != 1 {
            assert_eq!(back["shown_state"], shown, "{action}: {back}");
        }
    }
    until("it comes back from the shelf", || alarm(&daemon)["shown_state"] == "unacknowledged");
    daemon.kill9();
    let log = std::fs::read_to_string(daemon.dir().join("data/audit.jsonl")).unwrap();
    let lines: Vec<String> = log.lines().map(str::to_owned).collect();
    let whole = andon::agent::audit::verify(lines.clone()).expect("the chain is whole through every kill");
    assert!(lines.iter().filter(|l| l.contains("\"subject\":\"pump-2\"")).count() == 6, "{log}");
    assert_eq!(whole.entries, lines.len() as u64);
}
