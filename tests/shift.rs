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
    assert_eq!(alarm(&daemon)["explained"], json!(true));
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

/// A machine whose one value is its score, beside a switch that suppresses its alarms; several times a second.
struct Bench {
    count: Arc<AtomicBool>,
    service: Arc<AtomicBool>,
    running: JoinHandle<()>,
}

impl Bench {
    fn start(url: &str) -> Bench {
        let (count, service, url) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default(), url.to_owned());
        let (high, quiet) = (count.clone(), service.clone());
        let running = tokio::spawn(async move {
            let mut tick = tokio::time::interval(Duration::from_millis(300));
            loop {
                tick.tick().await;
                let number = |on: &AtomicBool| u8::from(on.load(Ordering::Relaxed));
                let payload = json!({"count": number(&high), "service": number(&quiet)}).to_string();
                publish(&url, [("plant/pump-2".to_owned(), payload)]).await;
            }
        });
        Bench { count, service, running }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.running.abort();
    }
}

/// How the alarm stands for people; all that is normal is alike.
fn standing(daemon: &Daemon) -> Value {
    let a = alarm(daemon);
    if a.is_null() || (a["state"] == "normal" && a["shown_state"] == "normal") {
        return json!("normal");
    }
    json!([a["id"], a["state"], a["shown_state"], a["acknowledged_by"], a["severity"], a["since"], a["repeats"]])
}

/// Every transition of ISA-18.2 that this agent has, each with the plug pulled after it.
#[tokio::test(flavor = "multi_thread")]
async fn every_transition_survives_the_plug() {
    let broker = Mosquitto::start();
    let config = CONFIG
        .replace("@BROKER@", &broker.url())
        .replace("@MODELS@", "@DATA@")
        .replace("time = \"/ts\"\ntime_format = \"unix_ms\"\n", "")
        .replace("model = \"pump-anomaly\"\n", "model = \"one-step\"\nsuppress_alarms = \"service > 0.5\"\n")
        .replace(
            "severity = 700\n",
            "severity = 700\ninput_severity = 0\nthreshold = 0.5\noff_delay = \"0s\"\nlatch = true\n",
        );
    let mut daemon = Daemon::new(&config).ready();
    let bench = Bench::start(&broker.url());
    until("the machine is heard", || daemon.get("/api/v1/machines/pump-2").is_ok_and(|(code, _)| code == 200));
    let act = |daemon: &Daemon, action: &str, body: Value| {
        let id = alarm(daemon)["id"].as_str().unwrap().to_owned();
        let (code, answer) = daemon.post(&format!("/api/v1/alarms/{id}/{action}"), &body.to_string());
        assert_eq!(code, 200, "{action}: {answer}");
    };
    type Deed<'a> = Box<dyn Fn(&Daemon) + 'a>;
    let (counted, serviced) = (&bench.count, &bench.service);
    let count = |on: bool| -> Deed<'_> { Box::new(move |_| counted.store(on, Ordering::Relaxed)) };
    let service = |on: bool| -> Deed<'_> { Box::new(move |_| serviced.store(on, Ordering::Relaxed)) };
    let deed = |action: &'static str, body: Value| -> Deed<'_> { Box::new(move |d| act(d, action, body.clone())) };
    let ana = json!({"by": "Ana"});
    let transitions: Vec<(&str, Deed<'_>, &str, &str)> = vec![
        ("A to B: raised", count(true), "unacknowledged", "unacknowledged"),
        ("B to C: acknowledged", deed("ack", ana.clone()), "acknowledged", "acknowledged"),
        ("C to F: its condition goes", count(false), "latched_acknowledged", "latched_acknowledged"),
        ("F to B: it returns", count(true), "unacknowledged", "unacknowledged"),
        ("B to E: its condition goes", count(false), "latched_unacknowledged", "latched_unacknowledged"),
        ("E to F: acknowledged", deed("ack", ana.clone()), "latched_acknowledged", "latched_acknowledged"),
        ("F to A: reset", deed("reset", ana.clone()), "normal", "normal"),
        ("suppressed by design", service(true), "normal", "normal"),
        ("A to B: raised, and not announced", count(true), "unacknowledged", "suppressed"),
        ("unsuppressed", service(false), "unacknowledged", "unacknowledged"),
        ("shelved", deed("shelve", json!({"by": "Ana", "seconds": 3600})), "unacknowledged", "shelved"),
        ("out of service", deed("out_of_service", ana.clone()), "unacknowledged", "out_of_service"),
        ("in service", deed("in_service", ana.clone()), "unacknowledged", "shelved"),
        ("unshelved", deed("unshelve", ana.clone()), "unacknowledged", "unacknowledged"),
        ("shelved and back by itself", deed("shelve", json!({"seconds": 1})), "unacknowledged", "unacknowledged"),
    ];
    for (what, deed, state, shown) in transitions {
        deed(&daemon);
        survives(&mut daemon, what, state, shown);
    }

    // Without a latch: over and not seen, then normal.
    daemon.configure(&config.replace("latch = true", "latch = false"));
    daemon.kill9();
    daemon.start_ready();
    count(false)(&daemon);
    survives(&mut daemon, "B to D: over, not acknowledged", "returned_unacknowledged", "returned_unacknowledged");
    act(&daemon, "ack", ana.clone());
    survives(&mut daemon, "D to A: acknowledged", "normal", "normal");
    count(true)(&daemon);
    survives(&mut daemon, "A to B: raised", "unacknowledged", "unacknowledged");
    act(&daemon, "ack", ana);
    count(false)(&daemon);
    survives(&mut daemon, "C to A: over", "normal", "normal");
    let told = andon(["audit".as_ref(), "verify".as_ref(), daemon.dir().join("data").as_os_str()]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
}

/// Waits until the alarm stands so, pulls the plug, and finds it as it was.
fn survives(daemon: &mut Daemon, what: &str, state: &str, shown: &str) {
    let wanted = |d: &Daemon| {
        let a = alarm(d);
        (state == "normal" && standing(d) == "normal") || (a["state"] == state && a["shown_state"] == shown)
    };
    until(&format!("{what}: {state}"), || wanted(daemon));
    let before = standing(daemon);
    daemon.kill9();
    daemon.start_ready();
    until(&format!("{what} survives"), || standing(daemon) == before);
}

#[tokio::test(flavor = "multi_thread")]
async fn alarms_are_acted_on_over_mqtt_by_who_has_the_token() {
    let broker = Mosquitto::start();
    let publishing = "[publish]\nsource = \"shop\"\ncommand_token = \"only for this test\"\n";
    let mut daemon = Daemon::new(&(CONFIG.replace("@BROKER@", &broker.url()) + publishing)).ready();
    let pumps = Pumps::start(&broker.url());
    until("the pump is heard", || daemon.get("/api/v1/machines/pump-2").is_ok_and(|(code, _)| code == 200));
    pumps.fail(true);
    until("the alarm is raised", || alarm(&daemon)["state"] == "unacknowledged");
    let id = alarm(&daemon)["id"].as_str().unwrap().to_owned();
    let command = |token: &str, by: &str| {
        let payload = json!({"token": token, "alarm": id, "action": "ack", "by": by}).to_string();
        ("andon/lyon/line3/gw-07/command".to_owned(), payload)
    };
    // In order: had the first been obeyed, the second would have come too late.
    publish(&broker.url(), [command("not the token", "Eve"), command("only for this test", "Ana")]).await;
    until("it is acknowledged", || alarm(&daemon)["state"] == "acknowledged");
    assert_eq!(alarm(&daemon)["acknowledged_by"], "Ana (MQTT)");
    assert!(daemon.terminate().success());
    let log = std::fs::read_to_string(daemon.dir().join("data/audit.jsonl")).unwrap();
    assert!(log.contains("Ana (MQTT)") && !log.contains("Eve"), "{log}");
}
