//! An engine that hangs: a machine that was green is shown as green nowhere any more.

use crate::everywhere::{Seen, copy_models, hear};
use crate::plant::{Device, Plant, channels, now_ms};
use crate::rig::lights;
use crate::support::daemon::{Daemon, repository, until};
use crate::support::mosquitto::Mosquitto;
use crate::support::publisher::publish;

/// What makes the model `hanging` take minutes.
const HEAVY: f64 = 1e6;

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
topic = "f/{machine}"
[[machine]]
match = "well"
model = "one-step"
[machine.alarm]
threshold = 5
[[machine]]
match = "heavy"
model = "hanging"
[machine.alarm]
threshold = 5
[publish]
source = "shop"
[web]
listen = "@WEB@"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn while_the_engine_hangs_nothing_is_green_anywhere() {
    let shop = Mosquitto::start();
    let mut daemon = Daemon::new(&CONFIG.replace("@SHOP@", &shop.url()));
    copy_models(&daemon);
    let hanging = daemon.dir().join("models/hanging");
    std::fs::create_dir_all(&hanging).unwrap();
    for file in std::fs::read_dir(repository("tests/data/hanging")).unwrap().flatten() {
        std::fs::copy(file.path(), hanging.join(file.file_name())).unwrap();
    }
    daemon.start_ready();
    let mqtt = Seen::default();
    tokio::spawn(hear(shop.url(), mqtt.clone()));
    let mut well = Device::new("f/well", &channels("tests/data/one-step"));
    well.timed = false;
    let _plant = Plant::start(&[shop.url()], [("well".to_owned(), well)]);
    let metric = |state: &str| daemon.metric("andon_machine_state", &format!("machine=\"well\",state=\"{state}\""));
    until("it is green", || mqtt.last("well") == "green" && metric("green") == 1.0);
    publish(&shop.url(), [("f/heavy".to_owned(), format!("{{\"count\": {HEAVY}}}"))]).await;
    let api = || lights(&daemon).and_then(|l| l.get("well").cloned()).unwrap_or_default();
    until("the API says so", || api() == "amber");
    let told = now_ms();
    until("all say so", || mqtt.last("well") == "amber" && metric("amber") == 1.0 && metric("green") == 0.0);
    assert!(now_ms() - told < 2_000, "{} ms later", now_ms() - told);
}
