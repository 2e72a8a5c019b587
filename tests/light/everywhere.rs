//! Each row of the truth table with real peers: a machine is brought into each situation, and wherever its state is
//! shown it is the one of the table. At no time do two places disagree for longer than two seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use andon::mqtt::Address;
use serde_json::{Value, json};

use crate::modbus::Pymodbus;
use crate::plant::{Clock, Device, Plant, channels, now_ms};
use crate::rig::{nine_registers, set_register, stands};
use crate::support::chromium::Chromium;
use crate::support::daemon::{Daemon, until};
use crate::support::mosquitto::Mosquitto;
use crate::support::peer::Peer;

/// So soon after the API every other place shows the same.
const WITHIN: i64 = 2_000;
const TABLE: &str = include_str!("../../docs/machine-state.md");

/// What a machine is brought into, and how that is told.
struct Situation {
    machine: &'static str,
    /// Alarm, running, inputs, judgement: words of the table.
    evidence: [&'static str; 4],
    /// How the reason begins.
    why: &'static str,
}

const SITUATIONS: [Situation; 18] = [
    Situation { machine: "normal", evidence: ["none", "on", "good", "normal"], why: "normal" },
    Situation { machine: "active", evidence: ["active", "on", "good", "unusual"], why: "" },
    Situation { machine: "active-silent", evidence: ["active", "on", "silent", "not in time"], why: "" },
    Situation { machine: "aside", evidence: ["put aside", "on", "good", "unusual"], why: "shelved" },
    Situation { machine: "returned", evidence: ["returned", "on", "good", "normal"], why: "over, not acknowledged" },
    Situation { machine: "off", evidence: ["none", "off", "good", "warming up"], why: "off" },
    Situation {
        machine: "unknown",
        evidence: ["none", "unknown", "silent", "normal"],
        why: "not known whether it runs: no value of speed",
    },
    Situation { machine: "bad", evidence: ["none", "on", "bad", "input bad"], why: "count is bad (" },
    Situation { machine: "silent", evidence: ["none", "on", "silent", "not in time"], why: "no value of count" },
    Situation {
        machine: "refused",
        evidence: ["none", "on", "refused", "not in time"],
        why: "readings of count cannot",
    },
    Situation {
        machine: "down",
        evidence: ["none", "on", "source down", "not in time"],
        why: "source old is down since",
    },
    Situation { machine: "overdue", evidence: ["none", "on", "good", "overdue"], why: "warming up since" },
    Situation { machine: "late", evidence: ["none", "on", "good", "not in time"], why: "nothing judged since" },
    Situation { machine: "unusual", evidence: ["none", "on", "good", "unusual"], why: "unusual, not an alarm yet" },
    Situation {
        machine: "was-bad",
        evidence: ["none", "on", "good", "input bad"],
        why: "a signal was not usable within the window",
    },
    Situation {
        machine: "unavailable",
        evidence: ["none", "on", "good", "model unavailable"],
        why: "the model cannot be run",
    },
    Situation { machine: "watched", evidence: ["none", "on", "good", "no model"], why: "watched, no model is bound" },
    Situation { machine: "warming", evidence: ["none", "on", "good", "warming up"], why: "warming up" },
];

/// The lamp's register of each situation; the lamps' device has holes at 3010 and 3020.
fn register(i: usize) -> u16 {
    3000 + i as u16 + u16::from(i >= 9) * 2
}

const HEAD: &str = r#"
[agent]
site = "test"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DIR@/models"
[[source.mqtt]]
name = "shop"
url = "@SHOP@"
[[source.mqtt.subscribe]]
topic = "follow/{machine}"
time = "/ts"
time_format = "unix_us"
[[source.mqtt.subscribe]]
topic = "device/{machine}"
time = "/ts"
time_format = "unix_us"
clock = "device"
[[source.mqtt]]
name = "old"
url = "@OLD@"
[[source.mqtt.subscribe]]
topic = "follow/{machine}"
time = "/ts"
time_format = "unix_us"
[[source.modbus]]
name = "plc"
url = "tcp://@PLC@"
poll = "100ms"
timeout = "500ms"
machine = "bad"
[[source.modbus.signal]]
name = "count"
at = "holding:3000"
type = "u16"
[[source.modbus]]
name = "lamps"
url = "tcp://@LAMPS@"
timeout = "10s"
machine = "lamps"
[[source.modbus.signal]]
name = "any"
at = "holding:3029"
type = "u16"
[publish]
source = "shop"
home_assistant = true
[web]
listen = "@WEB@"
"#;

/// What a machine's block says where it is not as the others'.
fn block(machine: &str) -> String {
    let one = "model = \"one-step\"\n";
    let alarm = "[machine.alarm]\nthreshold = 5\non_delay = \"0s\"\noff_delay = \"0s\"\n";
    let long =
        |more: &str| format!("model = \"pump-anomaly\"\nrate = \"1s\"\n{more}[machine.alarm]\ninput_severity = 0\n");
    let keys = match machine {
        "off" | "unknown" => format!("{one}running = \"speed > 10\"\n{alarm}"),
        "unusual" => format!("{one}{}", alarm.replace("on_delay = \"0s\"", "on_delay = \"1h\"")),
        "watched" => String::new(),
        "warming" => long(""),
        "was-bad" => long("[machine.range]\nspeed = [0, 10000]\n"),
        "overdue" => "model = \"pump-anomaly\"\n".to_owned(),
        _ => format!("{one}{alarm}"),
    };
    format!("[[machine]]\nmatch = \"{machine}\"\n{keys}")
}

fn config(shop: &Mosquitto, old: &Mosquitto, plc: SocketAddr, lamps: SocketAddr) -> String {
    let mut text = HEAD
        .replace("@SHOP@", &shop.url())
        .replace("@OLD@", &old.url())
        .replace("@PLC@", &plc.to_string())
        .replace("@LAMPS@", &lamps.to_string());
    for (i, situation) in SITUATIONS.iter().enumerate() {
        let machine = situation.machine;
        text += &block(machine);
        text += &format!(
            "[[write]]\ndevice = \"lamps\"\nwho = \"alarms\"\nmachines = \"{machine}\"\nregister = \"holding:{}\"\n\
             values = {{ off = 10, green = 11, white = 12, amber = 13, red = 14 }}\n",
            register(i)
        );
    }
    text + "[[machine]]\nmatch = \"lamps\"\n"
}

/// The devices, each as it is when all is well.
fn devices() -> Vec<(String, Device)> {
    let (one, pump) = (channels("tests/data/one-step"), channels("models/pump-anomaly"));
    let mut all = Vec::new();
    for machine in SITUATIONS.map(|s| s.machine).into_iter().filter(|m| *m != "bad") {
        let follows = !matches!(machine, "refused" | "late" | "overdue");
        let channels = if matches!(machine, "warming" | "was-bad" | "overdue") { &pump } else { &one };
        let topic = format!("{}/{machine}", if follows { "follow" } else { "device" });
        let mut device = Device::new(&topic, channels);
        device.followed = follows;
        device.broker = usize::from(machine == "down");
        if matches!(machine, "off" | "unknown") {
            device.fixed.insert("speed".into(), 50.0);
        }
        // These begin as they are to stay.
        match machine {
            "overdue" => device.set_clock(Clock::Slow(0.001, now_ms())),
            "was-bad" => _ = device.fixed.insert("speed".into(), 1e6),
            _ => {}
        }
        all.push((machine.to_owned(), device));
    }
    all
}

/// Brings each machine into its situation, from a plant in which all is well.
fn bring_about(plant: &Plant, old: &mut Mosquitto, plc: &Pymodbus) {
    for machine in ["active", "active-silent", "aside", "returned", "unusual"] {
        plant.change(machine, |d| d.anomalous = true);
    }
    plant.change("off", |d| _ = d.fixed.insert("speed".into(), 0.0));
    plant.change("unknown", |d| _ = d.fixed.remove("speed"));
    plant.change("silent", |d| d.speaks = false);
    plant.change("refused", |d| d.set_clock(Clock::Off(-3_600_000)));
    plant.change("late", |d| d.set_clock(Clock::Slow(0.001, now_ms())));
    plant.change("unavailable", |d| _ = d.fixed.insert("count".into(), 1e39));
    plant.change("was-bad", |d| _ = d.fixed.remove("speed"));
    old.kill();
    plc.freeze();
}

/// What a place has shown: (machine, when in Unix ms, state), in the order of time.
#[derive(Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<(String, i64, String)>>>);

impl Seen {
    pub fn note(&self, machine: &str, at: i64, state: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.iter().rev().find(|(m, ..)| m == machine).is_none_or(|(.., s)| s != state) {
            all.push((machine.to_owned(), at, state.to_owned()));
        }
    }

    fn of(&self, machine: &str) -> Vec<(i64, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|(m, ..)| m == machine).map(|(_, at, s)| (*at, s.clone())).collect()
    }

    pub fn last(&self, machine: &str) -> String {
        self.of(machine).pop().map(|(_, s)| s).unwrap_or_default()
    }
}

/// The places other than the API.
#[derive(Clone, Default)]
struct Places {
    api: Seen,
    metric: Seen,
    lamp: Seen,
    mqtt: Seen,
    home: Seen,
    card: Seen,
}

impl Places {
    fn others(&self) -> [(&'static str, &Seen); 5] {
        let Places { metric, lamp, mqtt, home, card, .. } = self;
        [("metric", metric), ("lamp", lamp), ("mqtt", mqtt), ("Home Assistant", home), ("card", card)]
    }

    /// One look at all that has to be asked. What was asked for is noted with the time at which it was asked for
    /// where that makes it later than it was, never earlier.
    fn look(&self, daemon: &Daemon, lamps: SocketAddr) {
        for (machine, light) in crate::rig::lights(daemon).unwrap_or_default() {
            self.api.note(&machine, now_ms(), &light);
        }
        let text = daemon.get("/metrics").map(|(_, text)| text).unwrap_or_default();
        for line in text.lines().filter(|l| l.starts_with("andon_machine_state{") && l.ends_with(" 1")) {
            let label = |key: &str| line.split_once(&format!("{key}=\"")).and_then(|(_, l)| l.split('"').next());
            if let (Some(machine), Some(state)) = (label("machine"), label("state")) {
                self.metric.note(machine, now_ms(), state);
            }
        }
        let values: Vec<u16> = [3000, 3011].iter().flat_map(|at| nine_registers(lamps, *at)).collect();
        for (situation, value) in SITUATIONS.iter().zip(values) {
            let states = ["off", "green", "white", "amber", "red"];
            if let Some(state) = states.get(usize::from(value.wrapping_sub(10))) {
                self.lamp.note(situation.machine, now_ms(), state);
            }
        }
    }
}

/// Hears `{machine}/state` of the agent.
pub async fn hear(url: String, seen: Seen) {
    let address = Address::parse(&url).unwrap();
    let options = rumqttc::MqttOptions::new("ear", rumqttc::Broker::tcp(address.host, address.port));
    let (client, mut eventloop) = rumqttc::AsyncClient::builder(options).capacity(10).build();
    client.subscribe("andon/test/gw/+/state", rumqttc::mqttbytes::QoS::AtLeastOnce).await.unwrap();
    loop {
        // It ends with the broker.
        let Ok(event) = eventloop.poll().await else { return };
        let rumqttc::Event::Incoming(rumqttc::mqttbytes::v5::Packet::Publish(p)) = event else { continue };
        let topic = String::from_utf8_lossy(&p.topic).into_owned();
        let state: Value = serde_json::from_slice(&p.payload).unwrap();
        seen.note(topic.split('/').nth(3).unwrap(), now_ms(), state["state"].as_str().unwrap());
    }
}

/// Hears what Home Assistant would show.
async fn hear_home(mut home: Peer, seen: Seen) {
    loop {
        let line = home.next().await;
        assert!(line.get("problem").is_none(), "{line}");
        let entity = line["entity"].as_str().and_then(|e| e.strip_prefix("sensor.")?.strip_suffix(" State"));
        if let (Some(machine), Some(state)) = (entity, line["state"].as_str()) {
            seen.note(machine, now_ms(), state);
        }
    }
}

/// Notes each change of a card by the page's own clock: the driver takes long to read a slow page.
const NOTE_CARDS: &str = r##"
const seen = globalThis.cardsSeen = [], last = {};
const look = () => document.querySelectorAll(".card").forEach(c => {
  const state = c.dataset.light;
  if (last[c.dataset.machine] === state) return;
  last[c.dataset.machine] = state;
  seen.push([c.dataset.machine, Date.now(), state]);
});
look();
new MutationObserver(look).observe(document.body, { subtree: true, childList: true, attributes: true });
"##;

async fn read_cards(browser: &Chromium, seen: &Seen) {
    let all = browser.run("return globalThis.cardsSeen.splice(0);").await;
    for entry in all.as_array().unwrap() {
        seen.note(entry[0].as_str().unwrap(), entry[1].as_i64().unwrap(), entry[2].as_str().unwrap());
    }
}

/// Where a place showed something else than the API for longer than two seconds.
fn disagreements(api: &[(i64, String)], place: &[(i64, String)], end: i64) -> Vec<String> {
    let mut out = Vec::new();
    let until = |all: &[(i64, String)], i: usize| all.get(i + 1).map_or(end, |(at, _)| *at);
    for (i, (from, light)) in api.iter().enumerate() {
        let (from, to) = (from + WITHIN, until(api, i) - 500);
        let shown: Vec<_> = (0..place.len())
            .filter(|j| place[*j].0 < to && until(place, *j) > from && place[*j].1 != *light)
            .map(|j| format!("{} at {} ms", place[j].1, place[j].0 - from + WITHIN))
            .collect();
        if from < to && (!shown.is_empty() || place.is_empty() || place[0].0 > to) {
            out.push(format!("{light} for {} ms: {shown:?}", to - from + WITHIN));
        }
    }
    out
}

/// The lines of the truth table; the document's other tables have fewer columns.
fn rows() -> impl Iterator<Item = &'static str> {
    let has_five = |l: &&str| l.starts_with("| ") && l.matches('|').count() == 6;
    TABLE.lines().filter(has_five).filter(|l| !l.starts_with("| alarm"))
}

/// The state that the documented table gives for the words.
fn by_the_table(evidence: &[&str; 4]) -> String {
    let fits = |cell: &str, word: &str| cell.trim() == "any" || cell.split(',').any(|w| w.trim() == word);
    for line in rows() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        if evidence.iter().zip(&cells).all(|(word, cell)| fits(cell, word)) {
            return cells[4].trim().to_owned();
        }
    }
    panic!("{evidence:?} is not in the table");
}

#[test]
fn each_row_and_each_word_of_the_table_has_a_situation() {
    let used: BTreeSet<(usize, &str)> = SITUATIONS.iter().flat_map(|s| s.evidence.into_iter().enumerate()).collect();
    for line in rows() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        for (i, cell) in cells[..4].iter().enumerate().filter(|(_, c)| **c != "any") {
            cell.split(',').for_each(|word| assert!(used.contains(&(i, word.trim())), "{word} of {line}"));
        }
    }
}

async fn settled(daemon: &Daemon, places: &Places, lamps: SocketAddr, browser: &Chromium, begun: Instant) {
    let mut waiting: Vec<&Situation> = SITUATIONS.iter().collect();
    while !waiting.is_empty() {
        places.look(daemon, lamps);
        read_cards(browser, &places.card).await;
        waiting.retain(|s| {
            let (light, why) = stands(daemon, s.machine);
            !(light == by_the_table(&s.evidence) && why.starts_with(s.why))
        });
        let told = |s: &&Situation| format!("{} {:?}", s.machine, stands(daemon, s.machine));
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "in vain: {:#?}",
            waiting.iter().map(told).collect::<Vec<_>>()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wherever_a_state_is_shown_it_is_the_one_of_the_table() {
    let (shop, mut old) = (Mosquitto::start(), Mosquitto::start());
    let (plc, lamps) = (Pymodbus::start(), Pymodbus::start());
    set_register(plc.address, 3000, 0);
    let mut daemon = Daemon::new(&config(&shop, &old, plc.address, lamps.address));
    copy_models(&daemon);
    daemon.start_ready();
    let places = Places::default();
    tokio::spawn(hear(shop.url(), places.mqtt.clone()));
    let home = Peer::start("home_assistant.py", &[&shop.port().to_string()]);
    tokio::spawn(hear_home(home, places.home.clone()));
    let browser = Chromium::start(false).await;
    browser.open(&format!("http://127.0.0.1:{}/", daemon.web_port())).await;
    browser.run(NOTE_CARDS).await;

    let plant = Plant::start(&[shop.url(), old.url()], devices());
    let greens = SITUATIONS.iter().map(|s| s.machine);
    let greens = greens.filter(|m| !matches!(*m, "watched" | "warming" | "was-bad" | "overdue"));
    until("what can be green is", || {
        places.look(&daemon, lamps.address);
        let was_bad = crate::rig::machine(&daemon, "was-bad")["data"]["prediction_reason"] == "INPUT_BAD";
        was_bad && greens.clone().all(|m| places.api.last(m) == "green")
    });
    bring_about(&plant, &mut old, &plc);
    let red = |m: &str| crate::rig::machine(&daemon, m)["alarms"][0]["id"].as_str().map(str::to_owned);
    until("alarms are raised", || {
        places.look(&daemon, lamps.address);
        ["aside", "returned", "active-silent"].iter().all(|m| red(m).is_some())
    });
    let shelve = format!("/api/v1/alarms/{}/shelve", red("aside").unwrap());
    assert_eq!(daemon.post(&shelve, &json!({"by": "Ana", "seconds": 3600}).to_string()).0, 200);
    plant.change("returned", |d| d.anomalous = false);
    plant.change("active-silent", |d| d.speaks = false);
    settled(&daemon, &places, lamps.address, &browser, Instant::now()).await;

    // What stands now is shown everywhere within the time.
    let stands_at = now_ms();
    until("all has been looked at for two seconds more", || {
        places.look(&daemon, lamps.address);
        now_ms() > stands_at + WITHIN + 500
    });
    read_cards(&browser, &places.card).await;
    browser.screenshot("light-everywhere.png").await;
    report(&places, now_ms());
    drop(plc);
}

/// Holds all places against the API, and prints how long each took at most.
fn report(places: &Places, end: i64) {
    let mut wrong = BTreeMap::new();
    for situation in &SITUATIONS {
        let api = places.api.of(situation.machine);
        let expected = by_the_table(&situation.evidence);
        assert_eq!(api.last().map(|(_, s)| s.as_str()), Some(&*expected), "{}", situation.machine);
        for (name, place) in places.others() {
            let seen = place.of(situation.machine);
            let told = disagreements(&api, &seen, end);
            if !told.is_empty() || place.last(situation.machine) != expected {
                wrong.insert((situation.machine, name), (told, seen));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for (name, place) in places.others() {
        let lags = SITUATIONS.iter().filter_map(|s| {
            let (api, seen) = (places.api.of(s.machine), place.of(s.machine));
            Some(seen.last()?.0 - api.last()?.0)
        });
        println!("{name}: at most {} ms after the API", lags.max().unwrap_or(0));
    }
}

pub fn copy_models(daemon: &Daemon) {
    for (from, name) in [("models/pump-anomaly", "pump-anomaly"), ("tests/data/one-step", "one-step")] {
        let to = daemon.dir().join("models").join(name);
        std::fs::create_dir_all(&to).unwrap();
        for file in std::fs::read_dir(crate::support::daemon::repository(from)).unwrap().flatten() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}
