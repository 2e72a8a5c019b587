//! How soon the light is no longer green: for each kind of trouble the time from the last usable reading. Prints the
//! table of docs/machine-state.md; it takes some minutes, and is run with `ANDON_LIGHT_TABLE=1`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::modbus::Pymodbus;
use crate::plant::{Clock, Device, Plant, channels, now_ms};
use crate::rig::{lights, set_register};
use crate::setting;
use crate::support::daemon::{Daemon, repository, until};
use crate::support::mosquitto::Mosquitto;

/// How often each kind is tried.
const TRIES: usize = 10;
/// How often the light is looked at: the resolution of the table.
const LOOK: Duration = Duration::from_millis(20);
/// Longer than this is not waited.
const LONGEST: Duration = Duration::from_secs(30);

const CONFIG: &str = r#"
[agent]
site = "test"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@MODELS@"
[[source.mqtt]]
name = "shop"
url = "@SHOP@"
[[source.mqtt.subscribe]]
topic = "f/{machine}"
time = "/ts"
time_format = "unix_us"
[[source.mqtt]]
name = "old"
url = "@OLD@"
[[source.mqtt.subscribe]]
topic = "g/{machine}"
[[source.modbus]]
name = "plc"
url = "tcp://@PLC@"
poll = "100ms"
timeout = "500ms"
machine = "press"
[[source.modbus.signal]]
name = "count"
at = "holding:3000"
type = "u16"
[[machine]]
match = "press"
model = "one-step"
[machine.alarm]
threshold = 5
[[machine]]
match = "pump-*"
model = "pump-anomaly"
[machine.range]
flow = [0, 1000]
[web]
listen = "@WEB@"
"#;

/// A kind of trouble, as it is brought about on one of the machines of the first broker.
type Trouble = fn(&mut Device);

const KINDS: [(&str, Trouble); 6] = [
    ("silence: the publisher stops", |d| d.speaks = false),
    ("clock back by 1 h", |d| d.set_clock(Clock::Off(-3_600_000))),
    ("clock back by 50 s", |d| d.set_clock(Clock::Off(-50_000))),
    ("clock ahead by 2 min", |d| d.set_clock(Clock::Off(120_000))),
    ("clock stands still", |d| d.set_clock(Clock::Stands(now_ms()))),
    ("bad values: one channel out of range", |d| _ = d.fixed.insert("flow".into(), 1e6)),
];

/// Waits until the machine is not green; how long since `from`.
fn until_not_green(daemon: &Daemon, machine: &str, from: impl Fn() -> Instant) -> Duration {
    let begun = Instant::now();
    loop {
        let light = lights(daemon).and_then(|l| l.get(machine).cloned());
        if light.is_some_and(|l| l != "green") {
            return Instant::now().saturating_duration_since(from());
        }
        assert!(begun.elapsed() < LONGEST, "{machine} is green for {:?}", begun.elapsed());
        std::thread::sleep(LOOK);
    }
}

fn until_green(daemon: &Daemon, machine: &str) {
    until(&format!("{machine} is green"), || {
        lights(daemon).is_some_and(|l| l.get(machine).is_some_and(|s| s == "green"))
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn how_soon_it_is_no_longer_green() {
    if setting("ANDON_LIGHT_TABLE", 0) == 0 {
        return;
    }
    let quiet = "allow_anonymous true\nmax_queued_messages 0\nlog_type error\n";
    let (shop, mut old, plc) = (Mosquitto::with(quiet), Mosquitto::with(quiet), Pymodbus::start());
    set_register(plc.address, 3000, 0);
    let text = CONFIG.replace("@SHOP@", &shop.url()).replace("@OLD@", &old.url());
    let mut daemon = Daemon::new(&text.replace("@PLC@", &plc.address.to_string()));
    super::everywhere::copy_models(&daemon);
    daemon.configure(&text.replace("@PLC@", &plc.address.to_string()).replace("@MODELS@", "@DIR@/models"));
    daemon.start_ready();
    let pump = channels(repository("models/pump-anomaly").to_str().expect("a plain path"));
    let mut devices: Vec<(String, Device)> = Vec::new();
    for (kind, _) in KINDS.iter().enumerate() {
        let name = |i: usize| format!("pump-{kind}-{i}");
        devices.extend((0..TRIES).map(|i| (name(i), Device::new(&format!("f/{}", name(i)), &pump))));
    }
    let mut other = Device::new("g/pump-old", &pump);
    (other.broker, other.timed) = (1, false);
    devices.push(("pump-old".to_owned(), other));
    let plant = Plant::start(&[shop.url(), old.url()], devices);

    let mut table: BTreeMap<usize, (&str, Vec<Duration>)> = BTreeMap::new();
    for (n, (kind, trouble)) in KINDS.iter().enumerate() {
        for i in 0..TRIES {
            let machine = format!("pump-{n}-{i}");
            until_green(&daemon, &machine);
            plant.change(&machine, trouble);
            let took = until_not_green(&daemon, &machine, || plant.truth(&machine).usable.expect("a reading"));
            // Bad values are told by the reading itself: the last usable one is that before it.
            table.entry(n).or_insert((kind, Vec::new())).1.push(took);
            plant.change(&machine, |d| d.speaks = false);
        }
    }
    for _ in 0..TRIES {
        until_green(&daemon, "pump-old");
        old.kill();
        let usable = || plant.truth("pump-old").usable.expect("a reading");
        let took = until_not_green(&daemon, "pump-old", usable);
        table.entry(6).or_insert(("source down: the broker is killed", Vec::new())).1.push(took);
        old.restart();
        until_green(&daemon, "press");
        plc.freeze();
        let frozen = Instant::now();
        let took = until_not_green(&daemon, "press", || frozen);
        table.entry(7).or_insert(("PLC away: it does not answer", Vec::new())).1.push(took);
        plc.thaw();
    }
    println!("| trouble | median | longest of {TRIES} |\n|---|---|---|");
    for (kind, mut took) in table.into_values() {
        took.sort_unstable();
        println!("| {kind} | {:.1} s | {:.1} s |", took[TRIES / 2].as_secs_f64(), took[TRIES - 1].as_secs_f64());
    }
}
