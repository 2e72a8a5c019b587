//! What the demo's agent is given: the shipped bundles, and a config like anybody's.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::factory::Factory;
use crate::simulator::plant::{Link, MachineKind};

macro_rules! bundle {
    ($name:literal) => {
        (
            $name,
            [
                ("model.json", include_bytes!(concat!("../../../models/", $name, "/model.json")) as &[u8]),
                ("model.onnx", include_bytes!(concat!("../../../models/", $name, "/model.onnx"))),
                ("golden.json", include_bytes!(concat!("../../../models/", $name, "/golden.json"))),
                ("reference.json", include_bytes!(concat!("../../../models/", $name, "/reference.json"))),
            ],
        )
    };
}

/// A bundle's files by name.
type Files = [(&'static str, &'static [u8]); 4];

/// The bundles of the repository, so that the binary needs nothing beside it.
const BUNDLES: [(&str, Files); 3] = [bundle!("pump-anomaly"), bundle!("motor-health"), bundle!("press-anomaly")];

/// Writes the bundles into `dir`.
pub fn unpack_models(dir: &Path) -> Result<()> {
    for (name, files) in BUNDLES {
        let bundle = dir.join(name);
        fs::create_dir_all(&bundle).with_context(|| format!("making {}", bundle.display()))?;
        for (file, bytes) in files {
            fs::write(bundle.join(file), bytes).with_context(|| format!("writing {name}/{file}"))?;
        }
    }
    Ok(())
}

/// The agent's config. `@WEB@` stands for the dashboard's address.
pub fn config(factory: &Factory, cloud: &str, speed: f64) -> String {
    let mut out = format!(
        r#"# The demo's own config: broker, devices and cloud are in the same process, the agent is the real one.
[agent]
site = "demo/hall-1"
id = "gw-demo"
data_dir = "data"
models_dir = "models"

[[source.mqtt]]
name = "shop"
url = "mqtt://{broker}"
client_id = "andon-demo"

[[source.mqtt.subscribe]]
topic = "factory/{{hall}}/{{machine}}/{{signal}}"
payload = "json"
value = "/value"
time = "/ts"
time_format = "unix_us"
"#,
        broker = factory.broker(),
    );
    modbus(&mut out, factory);
    let rate = factory.step();
    // The conditions are those under which the models were calibrated.
    for (kind, model, running) in [
        (MachineKind::Pump, "pump-anomaly", "speed > 1600"),
        (MachineKind::Motor, "motor-health", "speed > 750"),
        (MachineKind::Press, "press-anomaly", "motor_current > 12"),
    ] {
        machine(&mut out, (kind, model, running), rate.as_micros(), speed);
    }
    let _ = write!(
        out,
        r#"
[store]
max_bytes = "256MiB"

[cloud]
url = "{cloud}"

[publish]
source = "shop"
prefix = "andon"

[web]
listen = "@WEB@"
"#
    );
    out
}

fn modbus(out: &mut String, factory: &Factory) {
    let poll = factory.step().as_micros();
    for machine in factory.machines().iter().filter(|m| m.link == Link::Modbus) {
        let Some(plc) = factory.plc(&machine.name) else { continue };
        let name = &machine.name;
        let _ = write!(
            out,
            r#"
[[source.modbus]]
name = "{name}-plc"
url = "tcp://{plc}"
unit = 1
poll = "{poll}us"
timeout = "300ms"
machine = "{name}"
"#
        );
        for (i, signal) in machine.kind.signals().iter().enumerate() {
            let (signal, at) = (signal.name, 2 * i);
            let _ = write!(
                out,
                r#"
[[source.modbus.signal]]
name = "{signal}"
at = "holding:{at}"
type = "f32"
"#
            );
        }
    }
}

fn machine(out: &mut String, (kind, model, running): (MachineKind, &str, &str), rate: u128, speed: f64) {
    // Times are the plant's, told in real time.
    let real = |plant_ms: f64| (plant_ms * 1_000.0 / speed) as u64;
    let _ = write!(
        out,
        r#"
[[machine]]
match = "{kind}-*"
model = "{model}"
rate = "{rate}us"
stale_after = "{stale}us"
stuck_after = "{stuck}us"
running = "{running}"

[machine.alarm]
false_alarms = "1 per week"
severity = 700
on_delay = "{on}us"
off_delay = "{off}us"
"#,
        kind = kind.as_str(),
        stale = real(1_000.0).max(300_000),
        stuck = real(2_000.0),
        on = real(400.0),
        off = real(3_000.0),
    );
}
