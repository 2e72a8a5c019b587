//! How long from starting the process to its answer that it is ready, with and without models.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::agent::Agent;
use crate::mosquitto::{Mosquitto, free_port};

const CONFIG: &str = r#"
[agent]
site = "bench/load"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@MODELS@"

[[source.mqtt]]
name = "shop"
url = "mqtt://127.0.0.1:@BROKER@"

[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
value = "/value"

@MACHINES@
[[machine]]
match = "*"

[web]
listen = "127.0.0.1:@WEB@"

[log]
level = "warn"
"#;

/// Three that the project ships, of three families.
const MODELS: [&str; 3] = ["pump-anomaly", "press-anomaly", "motor-health"];

/// Milliseconds of one start with the first `n_models` of them: on an empty directory, and again after
/// kill -9.
pub fn measure(binary: &Path, n_models: usize) -> Result<[f64; 2]> {
    let (dir, broker, web) = (tempfile::tempdir()?, Mosquitto::start(), free_port());
    let machine = |name: &str| format!("[[machine]]\nmatch = \"{name}-*\"\nmodel = \"{name}\"\n");
    let machines: String = MODELS[..n_models].iter().map(|m| machine(m)).collect();
    let config = CONFIG
        .replace("@DIR@", &dir.path().display().to_string())
        .replace("@MODELS@", concat!(env!("CARGO_MANIFEST_DIR"), "/models"))
        .replace("@BROKER@", &broker.port().to_string())
        .replace("@MACHINES@", &machines)
        .replace("@WEB@", &web.to_string());
    let path = dir.path().join("andon.toml");
    std::fs::write(&path, config)?;
    let mut took = [0.0; 2];
    for ms in &mut took {
        let start = Instant::now();
        let agent = Agent::start(binary, &path, web)?;
        *ms = start.elapsed().as_secs_f64() * 1e3;
        // kill -9.
        drop(agent);
    }
    Ok(took)
}
