//! The Open Inference Protocol from both sides: the loaded models asked by Triton's own Python client,
//! unmodified, and a larger model asked for second opinions.

#![allow(missing_docs, clippy::unwrap_used)]

use std::process::Command;

use serde_json::Value;

#[path = "support/mod.rs"]
mod support;

#[path = "inference/second.rs"]
mod second;

use support::daemon::{Daemon, repository};

const CONFIG: &str = r#"
[agent]
data_dir = "@DIR@/data"
models_dir = "@MODELS@"

[[source.mqtt]]
name = "shop"
url = "mqtt://127.0.0.1:1"

[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
payload = "number"

[[machine]]
match = "pump-*"
model = "pump-anomaly"
[[machine]]
match = "motor-*"
model = "motor-health"

[web]
listen = "@WEB@"
"#;

fn python() -> String {
    let usual = repository("target/venv/bin/python").display().to_string();
    std::env::var("ANDON_TEST_PYTHON").unwrap_or(usual)
}

#[test]
fn tritons_client_lists_describes_and_infers() {
    let daemon = Daemon::new(&CONFIG.replace("@MODELS@", repository("models").to_str().unwrap())).ready();
    for model in ["pump-anomaly", "motor-health"] {
        let mut client = Command::new(python());
        client.arg(repository("tests/support/triton_client.py"));
        client.arg(format!("127.0.0.1:{}", daemon.port())).arg(repository("models").join(model));
        let out = client.output().expect("python; tests/run installs what it needs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let said: Value = serde_json::from_slice(&out.stdout).unwrap();
        println!("{model}: within {} of the golden case", said["worst"]);
        assert_eq!((&said["live"], &said["ready"], &said["model_ready"]), (&true.into(), &true.into(), &true.into()));
        assert_eq!(said["server"], "andon");
        assert_eq!(said["metadata"]["platform"], "onnx_onnxv1");
        assert_eq!(said["metadata"]["inputs"][0]["name"], "window");
        let listed: Vec<&str> = said["index"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
        assert_eq!(listed, ["motor-health", "pump-anomaly"]);
        assert!(said["worst"].as_f64().unwrap() < 1e-3, "{said}");
        assert!(said["refused"].as_str().unwrap().contains("only an admin loads and unloads models"), "{said}");
    }
    let (status, body) = daemon.get("/v2/models/none").unwrap();
    assert_eq!((status, body.as_str()), (404, r#"{"error":"there is no model \"none\""}"#));
}
