//! What was seen in the field, each with its real peer: a second broker that is away, a Modbus device that was never
//! there, two devices or two topics that feed one signal.

use std::time::{Duration, Instant};

use crate::modbus::Pymodbus;
use crate::plant::{Device, Plant, channels};
use crate::rig::{dropped, machine, set_register, stands};
use crate::support::daemon::{Daemon, andon, until};
use crate::support::mosquitto::{Mosquitto, free_port};

const HEAD: &str = r#"
[agent]
site = "test"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"
[web]
listen = "@WEB@"
"#;

const SHOP: &str = r#"
[[source.mqtt]]
name = "shop"
url = "@SHOP@"
[[source.mqtt.subscribe]]
topic = "f/{machine}/d"
"#;

const JUDGED: &str = "[[machine]]\nmatch = \"*\"\nmodel = \"one-step\"\n[machine.alarm]\nthreshold = 5\n";

fn modbus(name: &str, address: &str, machine: &str) -> String {
    format!(
        "[[source.modbus]]\nname = \"{name}\"\nurl = \"tcp://{address}\"\nmachine = \"{machine}\"\npoll = \"200ms\"\n\
         timeout = \"500ms\"\n[[source.modbus.signal]]\nname = \"t\"\nat = \"holding:3000\"\ntype = \"u16\"\n"
    )
}

/// Another broker is off and a Modbus device is off: a machine of the broker that is up falls silent.
#[tokio::test(flavor = "multi_thread")]
async fn another_source_that_is_away_hides_no_silence() {
    let shop = Mosquitto::start();
    let old = format!(
        "[[source.mqtt]]\nname = \"old\"\nurl = \"mqtt://127.0.0.1:{}\"\n[[source.mqtt.subscribe]]\n\
         topic = \"g/{{machine}}/d\"\n",
        free_port()
    );
    let off = modbus("plc", &format!("127.0.0.1:{}", free_port()), "press");
    let text = HEAD.to_owned() + &SHOP.replace("@SHOP@", &shop.url()) + &old + &off + JUDGED;
    let daemon = Daemon::new(&text).ready();
    let mut device = Device::new("f/pump/d", &channels("tests/data/one-step"));
    device.timed = false;
    let plant = Plant::start(&[shop.url()], [("pump".to_owned(), device)]);
    until("it is judged", || stands(&daemon, "pump").0 == "green");
    plant.change("pump", |d| d.speaks = false);
    let silent = Instant::now();
    until("silence is told", || {
        let (light, why) = stands(&daemon, "pump");
        light == "amber" && why.starts_with("no value of count")
    });
    assert!(silent.elapsed() < Duration::from_secs(6), "{:?}", silent.elapsed());
}

/// A machine without a model whose PLC cannot be reached.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_away_from_the_start_is_never_well() {
    let off = modbus("plc", &format!("127.0.0.1:{}", free_port()), "press");
    let daemon = Daemon::new(&(HEAD.to_owned() + &off + "[[machine]]\nmatch = \"*\"\n")).ready();
    until("it is told", || {
        let (light, why) = stands(&daemon, "press");
        assert!(light.is_empty() || light == "amber", "{light} {why}");
        why.starts_with("t is bad (")
    });
    let (health, detail) = daemon.component("source/plc");
    assert_eq!(health, "down", "{detail}");
}

/// Two `[[source.modbus]]` with one machine and signal: refused, with both named.
#[test]
fn two_devices_of_one_signal_are_refused() {
    let two = modbus("one", "127.0.0.1:502", "m") + &modbus("two", "127.0.0.2:502", "m");
    let daemon = Daemon::new(&(HEAD.to_owned() + &two + "[[machine]]\nmatch = \"*\"\n"));
    let checked = andon(["check".as_ref(), "-c".as_ref(), daemon.config().as_os_str()]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert_eq!(checked.status.code(), Some(78), "{told}");
    assert!(told.contains("\"one\"") || told.contains("one"), "{told}");
}

/// A topic pattern with a level that is not used makes one machine of two: the values of one are shown, and the
/// other's are counted and told.
#[tokio::test(flavor = "multi_thread")]
async fn two_topics_of_one_signal_are_told_and_never_mixed() {
    let shop = Mosquitto::start();
    let text = HEAD.to_owned()
        + &SHOP.replace("@SHOP@", &shop.url()).replace("f/{machine}/d", "factory/{line}/{machine}")
        + "[[machine]]\nmatch = \"*\"\n";
    let daemon = Daemon::new(&text).ready();
    let device = |line: &str, value: f64| {
        let mut device = Device::new(&format!("factory/{line}/press"), &[("temp".to_owned(), value, 0.0)]);
        device.timed = false;
        (line.to_owned(), device)
    };
    let _plant = Plant::start(&[shop.url()], [device("line1", 20.0), device("line2", 90.0)]);
    until("the second origin is counted", || dropped(&daemon, "other_origin") >= 20.0);
    let value = machine(&daemon, "press")["signals"][0]["value"].as_f64().expect("a value");
    assert!(value == 20.0 || value == 90.0, "{value} is neither's");
    let log = daemon.log();
    assert!(log.contains("another topic or device feeds this signal"), "{log}");
}

/// A Modbus device and a topic feed one signal: known only at run time.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_and_a_topic_of_one_signal_are_never_mixed() {
    let (shop, plc) = (Mosquitto::start(), Pymodbus::start());
    set_register(plc.address, 3000, 9000);
    let text = HEAD.to_owned()
        + &SHOP.replace("@SHOP@", &shop.url())
        + &modbus("plc", &plc.address.to_string(), "press")
        + "[[machine]]\nmatch = \"*\"\n";
    let daemon = Daemon::new(&text).ready();
    let mut device = Device::new("f/press/d", &[("t".to_owned(), 10.0, 0.0)]);
    device.timed = false;
    let _plant = Plant::start(&[shop.url()], [("press".to_owned(), device)]);
    until("the second origin is counted", || dropped(&daemon, "other_origin") >= 10.0);
    let value = machine(&daemon, "press")["signals"][0]["value"].as_f64().expect("a value");
    assert!(value == 10.0 || value == 9000.0, "{value} is neither's");
}
