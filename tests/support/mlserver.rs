//! A real MLServer on ports of its own, serving bundles through onnxruntime; gone when the test is over.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::daemon::repository;
use super::mosquitto::free_port;

/// It takes some seconds to start, and longer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct MlServer {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl MlServer {
    /// Serves these bundles, each under its directory's name, as version 7.
    pub async fn start(bundles: &[&Path]) -> MlServer {
        let dir = tempfile::tempdir().expect("a directory");
        let [port, grpc, metrics] = [(); 3].map(|()| free_port());
        let settings = json!({"host": "127.0.0.1", "http_port": port, "grpc_port": grpc, "metrics_port": metrics,
            "parallel_workers": 0, "debug": false});
        std::fs::write(dir.path().join("settings.json"), settings.to_string()).expect("written");
        for bundle in bundles {
            let name = bundle.file_name().expect("a name").to_str().expect("a plain name");
            let manifest: Value =
                serde_json::from_slice(&std::fs::read(bundle.join("model.json")).expect("a bundle")).expect("JSON");
            let model = json!({"name": name, "implementation": "mlserver_runtime.Bundle",
                "parameters": {"uri": bundle, "version": "7"}, "inputs": manifest["inputs"],
                "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1]}]});
            let place = dir.path().join(name);
            std::fs::create_dir(&place).expect("a directory");
            std::fs::write(place.join("model-settings.json"), model.to_string()).expect("written");
        }
        let log = File::create(dir.path().join("log")).expect("a log");
        let program = std::env::var_os("ANDON_TEST_MLSERVER")
            .map_or_else(|| repository("target/venv-mlserver/bin/mlserver"), Into::into);
        let child = Command::new(&program)
            .arg("start")
            .arg(dir.path())
            .current_dir(dir.path())
            .env("PYTHONPATH", repository("tests/support"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}: tests/run sets up all that the tests need", program.display()));
        let mut server = MlServer { child, dir, port };
        server.until_ready().await;
        server
    }

    async fn until_ready(&mut self) {
        // Fails only when another part of the test was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ready = client.get(format!("{}/v2/health/ready", self.url())).send().await;
            if ready.is_ok_and(|r| r.status() == 200) {
                return;
            }
            let ended = self.child.try_wait().expect("waiting");
            assert!(ended.is_none() && Instant::now() < deadline, "MLServer: {ended:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for MlServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- MLServer's log ---\n{}", self.log());
        }
    }
}
