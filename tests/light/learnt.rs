//! The README's path from a machine that nobody trained for to one that is judged: watched without a model, learnt
//! from the journal, the model set, SIGHUP, kill -9, start. Green after each step, never late, never at full load.

use std::time::{Duration, Instant};

use crate::plant::{Device, Plant, channels, now_ms};
use crate::rig::{dropped, processor_seconds, stands};
use crate::setting;
use crate::support::daemon::{Daemon, andon, until};
use crate::support::mosquitto::Mosquitto;
use crate::support::publisher::publish;

/// The load is measured over so long.
const MEASURED: Duration = Duration::from_secs(2);
/// Minutes that are published at once, at the pace of one reading a second, before the device goes on.
const HISTORY: i64 = 15;

const CONFIG: &str = r#"
[agent]
site = "test"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DIR@/models"
[[source.mqtt]]
name = "shop"
url = "@SHOP@"
[[source.mqtt.subscribe]]
topic = "f/{machine}/d"
time = "/ts"
time_format = "unix_us"
[[machine]]
match = "pump"
[web]
listen = "@WEB@"
"#;

/// The share of one processor that the agent takes, over a while.
fn load(daemon: &Daemon) -> f64 {
    let begun = (Instant::now(), processor_seconds(daemon.pid()));
    std::thread::sleep(MEASURED);
    (processor_seconds(daemon.pid()) - begun.1) / begun.0.elapsed().as_secs_f64()
}

/// Green, by the model, with little load and nothing late.
fn is_well(daemon: &Daemon, after: &str) {
    until(&format!("green after {after}"), || stands(daemon, "pump") == ("green".into(), "normal".into()));
    let load = load(daemon);
    assert!(load < 0.7, "{:.0} % load after {after}", load * 100.0);
    assert_eq!(dropped(daemon, "late"), 0.0, "after {after}");
    assert_eq!(stands(daemon, "pump").0, "green", "still, after {after}");
    println!("after {after}: green, {:.0} % of a processor, nothing late", load * 100.0);
}

async fn learn_and_use(pace: Duration) {
    let shop = Mosquitto::start();
    let text = CONFIG.replace("@SHOP@", &shop.url());
    let mut daemon = Daemon::new(&text).ready();
    let mut device = Device::new("f/pump/d", &channels("models/pump-anomaly"));
    device.pace = pace;
    let step = pace.as_millis() as i64;
    let now = now_ms();
    let history = (now - HISTORY * 600 * step..now).step_by(step as usize);
    let message = |at: i64| ("f/pump/d".to_owned(), device.payload(at));
    publish(&shop.url(), history.map(message)).await;
    let _plant = Plant::start(&[shop.url()], [("pump".to_owned(), device.clone())]);
    until("it is watched", || stands(&daemon, "pump").0 == "white");
    let learn = |daemon: &Daemon| {
        let out = daemon.dir().join("models/mine");
        let arguments =
            ["learn", "--from-journal", "8h", "--machine", "pump", "--force", "-c"].map(std::ffi::OsStr::new);
        let paths = [daemon.config(), "--out".into(), out];
        let learnt = andon(arguments.into_iter().chain(paths.iter().map(|p| p.as_os_str())));
        let told = String::from_utf8_lossy(&learnt.stdout).into_owned() + &String::from_utf8_lossy(&learnt.stderr);
        assert!(learnt.status.success(), "{told}");
        let manifest = std::fs::read_to_string(daemon.dir().join("models/mine/model.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        manifest["window"]["rate_ms"].clone()
    };
    let first = learn(&daemon);
    daemon.configure(&text.replace("match = \"pump\"\n", "match = \"pump\"\nmodel = \"mine\"\n"));
    daemon.hang_up();
    is_well(&daemon, "SIGHUP");
    daemon.kill9();
    daemon.start_ready();
    is_well(&daemon, "kill -9 and start");
    assert_eq!(learn(&daemon), first, "learnt twice, the rate is the same");
    daemon.hang_up();
    is_well(&daemon, "learning again and SIGHUP");
    daemon.kill9();
    daemon.start_ready();
    is_well(&daemon, "another kill -9 and start");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_learnt_from_the_journal_is_used_at_once_and_after_a_crash() {
    learn_and_use(Duration::from_millis(setting("ANDON_LIGHT_PACE_MS", 200))).await;
}
