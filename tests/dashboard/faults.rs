//! The page with a bad connection: frames are dropped, delayed, doubled and reordered, answers come late, the
//! browser is slow, the agent restarts, the engine falls silent. Once that ends, the page agrees with the API.
//! `ANDON_PAGE_SEED` chooses the first seed, `ANDON_PAGE_ROUNDS` how many follow.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use serde_json::Value;

use super::*;

/// So soon after the faults end, the page agrees with the API.
const AGREES_WITHIN: Duration = Duration::from_secs(2);
const MACHINES: u32 = 40;

/// Put into the page before its own scripts. Faults are decided by the seed in the page's address. With every
/// third seed the frames come as they should, and only answers are late: there are no gaps that make the page
/// fetch anew, so an answer that is older than what it overwrites would stay.
const FAULTS: &str = r##"
let seed = Number(new URLSearchParams(location.search).get("seed")) >>> 0;
const random = () => { seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; return seed / 4294967296; };
const only_answers = seed % 3 === 0;
const faults = globalThis.faults = { on: seed > 0, dropped: 0, delayed: 0, doubled: 0, late: 0 };
globalThis.EventSource = class extends EventSource {
  addEventListener(kind, then) {
    super.addEventListener(kind, e => {
      const frame = { data: e.data, lastEventId: e.lastEventId }, r = faults.on && !only_answers ? random() : 1;
      const later = () => setTimeout(() => then(frame), random() * 400);
      if (r < 0.2) faults.dropped++;
      else if (r < 0.45) { faults.delayed++; later(); }
      else if (r < 0.6) { faults.doubled++; then(frame); later(); }
      else then(frame);
    });
  }
};
const plain = globalThis.fetch;
globalThis.fetch = async (...request) => {
  const reply = await plain(...request);
  if (!faults.on || random() < 0.4) return reply;
  faults.late++;
  const text = await reply.text();
  await new Promise(done => setTimeout(done, random() * 600));
  return new Response(text, { status: reply.status });
};
"##;

/// Makes the page blind to versions, or to gaps in the stream's numbers, to see that the test notices.
const BLIND: &str = r##"
const blind = new URLSearchParams(location.search).get("blind");
addEventListener("DOMContentLoaded", () => {
  if (!blind) return;
  const real = { takeState, takeAlarm, takeStatus, receive };
  takeStatus = handlers.status = (s, n) => real.takeStatus({ ...s, state_version: -1 }, n);
  if (blind === "versions") {
    const forget = known => { if (known) known.version = -1; };
    takeState = (id, s) => { forget(lights.get(id)); return real.takeState(id, s); };
    takeAlarm = a => { forget(alarms.get(a.id)); return real.takeAlarm(a); };
  } else {
    receive = (kind, e) => { [, streamName, frameNumber] = e.lastEventId.split("-"); real.receive(kind, e); };
  }
});
"##;

/// What a person sees: cards with state, reason and the value where it is in sight; counts; alarms in order.
const SEEN: &str = r##"
const text = (e, css) => { const found = e.querySelector(css); return found && !found.hidden ? found.textContent : ""; };
const sight = e => e.getBoundingClientRect().top < innerHeight && e.getBoundingClientRect().bottom > 0;
return {
  cards: Object.fromEntries([...document.querySelectorAll(".card")].map(c =>
    [c.dataset.machine, [c.dataset.light, text(c, ".pill"), text(c, ".why"), sight(c) ? text(c, ".value") : null]])),
  counts: Object.fromEntries([...document.querySelectorAll("#counts .pill")].map(c => [c.dataset.light, parseInt(c.textContent)])),
  alarms: [...document.querySelectorAll("#alarms > li")].map(r => [r.dataset.alarm, r.dataset.state, r.dataset.active === "true"]),
  overall: document.querySelector("#overall").dataset.light,
  live: document.body.dataset.live,
};
"##;

/// Ends the faults, and from then on notes when what is seen changed last.
fn quiet() -> String {
    format!(
        r##"faults.on = false;
        faults.quiet = performance.now();
        faults.changed = 0;
        const seen = () => JSON.stringify((() => {{ {SEEN} }})());
        let last = seen();
        setInterval(() => {{
          if (seen() === last) return;
          last = seen();
          faults.changed = performance.now() - faults.quiet;
        }}, 50);
        return faults;"##
    )
}

fn word(light: &str) -> &'static str {
    match light {
        "red" => "alarm",
        "amber" => "attention",
        "white" => "not judged",
        "green" => "normal",
        _ => "off",
    }
}

async fn get(address: SocketAddr, path: &str) -> Value {
    reqwest::get(format!("http://{address}{path}")).await.unwrap().json().await.unwrap()
}

/// How what is seen differs from the API; nothing where it agrees.
async fn differences(seen: &Value, address: SocketAddr) -> Vec<String> {
    let (machines, alarms) = (get(address, "/api/v1/machines").await, get(address, "/api/v1/alarms").await);
    let mut wrong = Vec::new();
    let mut counts = BTreeMap::<&str, u64>::new();
    for m in machines["machines"].as_array().unwrap() {
        let (id, light) = (m["id"].as_str().unwrap(), m["light"].as_str().unwrap());
        *counts.entry(light).or_default() += 1;
        let card = &seen["cards"][id];
        let value = m["signals"][0]["value"].as_f64().map_or("–".to_owned(), |v| v.to_string());
        if card[0] != light || card[1] != word(light) || card[2] != m["why"] {
            wrong.push(format!("{id}: {card}, and the API says {light} {}", m["why"]));
        } else if card[3].as_str().is_some_and(|shown| shown != value && !shown.is_empty()) {
            wrong.push(format!("{id}: {card}, and the API says {value}"));
        }
    }
    if seen["cards"].as_object().map(|c| c.len() as u64) != machines["found"].as_u64() {
        wrong.push(format!("not {} cards", machines["found"]));
    }
    for light in ["red", "amber", "white", "green", "off"] {
        let expected = counts.get(light).copied().unwrap_or(0);
        if seen["counts"][light].as_u64().unwrap_or(0) != expected {
            wrong.push(format!("{} {light}, and the API says {expected}", seen["counts"][light]));
        }
    }
    let listed: Vec<Value> =
        alarms["alarms"].as_array().unwrap().iter().map(|a| json!([a["id"], a["state"], a["active"]])).collect();
    if seen["alarms"] != json!(listed) {
        wrong.push(format!("alarms {}, and the API says {}", seen["alarms"], json!(listed)));
    }
    if seen["overall"] == "green" && counts.contains_key("red")
        || counts.contains_key("red") != (seen["overall"] == "red")
    {
        wrong.push(format!("the header is {}", seen["overall"]));
    }
    if seen["live"] != "true" {
        wrong.push("it says that it is not live".into());
    }
    wrong
}

/// How long after the faults have ended the page agrees with the API, by the page's own clock: the driver takes
/// long to read a slow page. Or how it differs in the end.
async fn agreement(browser: &Chromium, address: SocketAddr) -> Result<Duration, String> {
    let begun = Instant::now();
    loop {
        let before = begun.elapsed();
        let wrong = differences(&browser.run(SEEN).await, address).await;
        if wrong.is_empty() {
            break;
        }
        if before > AGREES_WITHIN {
            return Err(wrong.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let changed = browser.run("return globalThis.faults ? faults.changed || 0 : 0;").await;
    Ok(Duration::from_secs_f64(changed.as_f64().unwrap() / 1e3))
}

/// One random event.
fn happen(plant: &Plant, random: &mut fastrand::Rng, n: u32) {
    let machine = format!("m{:02}", random.u32(..MACHINES));
    match random.u32(..10) {
        0..4 => {
            let light = MachineState::ALL[random.usize(..5)];
            plant.light(&machine, light, &format!("reason {n}"));
        }
        4..6 => {
            let states = [
                AlarmState::Unacknowledged,
                AlarmState::Acknowledged,
                AlarmState::ReturnedUnacknowledged,
                AlarmState::Normal,
            ];
            plant.alarm(&machine, states[random.usize(..4)], &format!("alarm {n}"), None);
        }
        _ => plant.step(&machine, Time::now(), &[("t", f64::from(n))]),
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Faults for three seconds, then how soon the page agrees.
async fn round(plant: &Plant, browser: &Chromium, seed: u64, blind: &str) -> Result<Duration, String> {
    let slow = if seed.is_multiple_of(2) { 4 } else { 1 };
    let mut random = fastrand::Rng::with_seed(seed);
    (0..MACHINES).for_each(|n| plant.light(&format!("m{n:02}"), MachineState::Green, "normal"));
    browser.open(&format!("{}?seed={seed}&blind={blind}", plant.url())).await;
    browser.cdp("Emulation.setCPUThrottlingRate", json!({"rate": slow})).await;
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for n in 0..300 {
        pace.tick().await;
        happen(plant, &mut random, n);
        // The last answers are on their way when the last events come.
        if n == 50 || n == 250 {
            browser.run("refetchAll();").await;
        }
    }
    let faults = browser.run(&quiet()).await;
    let agreed = agreement(browser, plant.address).await;
    println!("seed {seed}, browser slowed by {slow}: {agreed:?}; {faults}");
    let kinds: &[&str] = if seed.is_multiple_of(3) { &["late"] } else { &["dropped", "delayed", "doubled", "late"] };
    let enough = kinds.iter().all(|kind| faults[kind].as_u64() > Some(0));
    assert!(enough, "the test has to do something: {faults}");
    agreed
}

async fn faulty_browser() -> Chromium {
    let browser = Chromium::start(false).await;
    browser.resize(1280, 900, false).await;
    for source in [FAULTS, BLIND] {
        browser.cdp("Page.addScriptToEvaluateOnNewDocument", json!({"source": source})).await;
    }
    browser
}

fn first_seed() -> u64 {
    setting("ANDON_PAGE_SEED", u64::from(fastrand::u32(1..1_000_000)))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_on_the_way_the_page_agrees_with_the_api() {
    let (plant, browser, first) = (Plant::start(None).await, faulty_browser().await, first_seed());
    let mut longest = Duration::ZERO;
    for seed in first..first + setting("ANDON_PAGE_ROUNDS", 6) {
        let agreed = round(&plant, &browser, seed, "").await;
        let took =
            agreed.unwrap_or_else(|wrong| panic!("seed {seed}: after {AGREES_WITHIN:?} the page is wrong:\n{wrong}"));
        assert!(took <= AGREES_WITHIN, "seed {seed}: it agrees only after {took:?}");
        longest = longest.max(took);
    }
    println!("longest {longest:?}");
    plant.stop().await;
}

/// The test above notices a page that ignores versions, and one that ignores gaps.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_blind_to_versions_or_gaps_is_found_out() {
    let (plant, browser, first) = (Plant::start(None).await, faulty_browser().await, first_seed());
    for (blind, third) in [("versions", true), ("gaps", false)] {
        let mut found = false;
        for seed in (first..first + 18).filter(|seed| seed.is_multiple_of(3) == third).take(6) {
            if round(&plant, &browser, seed, blind).await.is_err() {
                found = true;
                break;
            }
        }
        assert!(found, "blind to {blind}, and the page still agrees: seeds from {first}");
    }
    plant.stop().await;
}

/// The page shows the state, its age and nothing green while it is cut off, and a restarted agent's versions
/// begin anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_cut_off_says_so_and_a_restarted_agent_is_recognised() {
    let plant = Plant::start(None).await;
    let (address, browser) = (plant.address, Chromium::start(false).await);
    for n in 0..500 {
        plant.light("m01", if n % 2 == 0 { MachineState::Green } else { MachineState::Red }, &format!("reason {n}"));
    }
    plant.light("m02", MachineState::Green, "normal");
    plant.alarm("m01", AlarmState::Unacknowledged, "unusual", None);
    browser.open(&plant.url()).await;
    browser.until("document.querySelectorAll('.card').length === 2 && document.body.dataset.live === 'true'").await;
    agreement(&browser, address).await.expect("it agrees at first");
    browser.until("/^live, last heard \\d\\d:\\d\\d:\\d\\d$/.test(document.querySelector('#heard').textContent)").await;

    plant.stop().await;
    browser.until("document.body.dataset.live === 'false' && !document.querySelector('#lost').hidden").await;
    browser
        .until("[...document.querySelectorAll('.card .as-of')].every(e => !e.hidden && /^not live, as of \\d\\d:\\d\\d:\\d\\d$/.test(e.textContent))")
        .await;
    browser.until("document.querySelector('#overall').textContent === 'not live'").await;
    browser.screenshot("not-live.png").await;

    let again = Plant::start_at(address, None).await;
    again.light("m01", MachineState::Green, "normal");
    browser.until("document.body.dataset.live === 'true'").await;
    agreement(&browser, address).await.expect("it agrees with the agent that has restarted");
    assert_eq!(
        browser.run("return document.querySelectorAll('.card').length;").await,
        json!(1),
        "m02 is not known any more"
    );

    // The engine falls silent: the agent goes on answering.
    again.beating.store(false, Ordering::Relaxed);
    browser.until("document.querySelector('.card').dataset.light === 'amber'").await;
    browser
        .until("document.querySelector('.card .why').textContent.startsWith('the engine has not been heard since')")
        .await;
    assert_eq!(get(address, "/api/v1/status").await["machines"]["amber"], 1);
    again.beating.store(true, Ordering::Relaxed);
    browser.until("document.querySelector('.card').dataset.light === 'green'").await;
    agreement(&browser, address).await.expect("it agrees once the engine is heard again");
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_active_alarm_is_on_top_in_a_flood_and_all_that_are_shown_are_acknowledged() {
    let mut plant = Plant::start(None).await;
    let browser = Chromium::start(false).await;
    browser.resize(1280, 900, false).await;
    let mut owed = HashSet::new();
    for n in 0..30 {
        owed.insert(plant.alarm(&format!("m{n:02}"), AlarmState::ReturnedUnacknowledged, "over", None));
    }
    plant.alarm("seen", AlarmState::Acknowledged, "seen already", Some("Ana"));
    let mut last = plant.alarm_of("late", AlarmState::Unacknowledged, "the one that is active", None);
    last.care.grouped = true;
    last.severity = 900;
    owed.insert(last.id);
    plant.send(Live::Alarm(Arc::new(last), "{}".into()));
    plant.send(Live::Flood(Some(andon::types::Flood { since: Time::now(), raised: 31, first: "m00".into() })));
    browser.open(&plant.url()).await;
    browser.until("document.querySelectorAll('#alarms > li').length === 32").await;
    let order = "return [...document.querySelectorAll('#alarms .machine')].slice(0, 2).map(e => e.textContent);";
    assert_eq!(browser.run(order).await, json!(["late", "seen"]), "active ones, the most severe first");
    browser.until("!document.querySelector('#flood').hidden").await;
    assert_eq!(browser.run("return document.querySelector('#alarms > li').checkVisibility();").await, json!(true));
    browser.screenshot("flood.png").await;

    browser.click("#ack-all").await;
    let mut acknowledged = HashSet::new();
    while acknowledged.len() < owed.len() {
        let command = tokio::time::timeout(Duration::from_secs(10), plant.commands.recv()).await.unwrap().unwrap();
        assert_eq!(command.action, Action::Acknowledge);
        let Target::Alarm(id) = command.target else { panic!("{:?}", command.target) };
        if acknowledged.is_empty() {
            // One that comes meanwhile has not been seen.
            plant.alarm("new", AlarmState::Unacknowledged, "new", None);
        }
        assert!(owed.contains(&id) && acknowledged.insert(id), "{id} was not shown as unacknowledged");
        command.reply.send(Ok(())).unwrap();
    }
    browser.until("!document.querySelector('#ack-all').disabled").await;
    assert!(plant.commands.try_recv().is_err(), "and no others");
    plant.stop().await;
}
