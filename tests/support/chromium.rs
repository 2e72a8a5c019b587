//! A real browser, driven over the WebDriver protocol: Debian's `chromium` and `chromium-driver`.
//! It talks to loopback only and forgets everything when it is dropped.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;

const START_TIME: Duration = Duration::from_secs(60);
const WAIT_TIME: Duration = Duration::from_secs(20);

/// One browser window with a profile of its own.
pub struct Chromium {
    driver: Child,
    http: Client,
    session: String,
    _profile: TempDir,
}

fn program(name: &str, at: &[&str]) -> PathBuf {
    let found = at.iter().map(Path::new).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: tests/run sets up what the tests need")).to_owned()
}

impl Chromium {
    /// Starts one. `dark` is what the page is told of the person's taste.
    pub async fn start(dark: bool) -> Chromium {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let browser = program("chromium", &["/usr/bin/chromium", "/usr/lib/chromium/chromium"]);
        let driver = program("chromedriver", &["/usr/bin/chromedriver", "/usr/lib/chromium/chromedriver"]);
        let mut driver =
            Command::new(driver).arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let output = driver.stdout.take().unwrap();
        let port = tokio::task::spawn_blocking(move || {
            let mut lines = BufReader::new(output).lines().map_while(Result::ok);
            let port = lines.find_map(|l| l.rsplit_once("successfully on port ")?.1.trim_end_matches('.').parse().ok());
            // Reading on keeps the driver from stalling on a full pipe.
            std::thread::spawn(move || lines.for_each(drop));
            port
        });
        let port: Option<u16> = tokio::time::timeout(START_TIME, port).await.expect("chromedriver starts").unwrap();
        let port = port.expect("chromedriver says its port");
        let profile = tempfile::tempdir().unwrap();
        let http = Client::builder().timeout(START_TIME).no_proxy().build().unwrap();
        let root = format!("http://127.0.0.1:{port}");
        let wanted = capabilities(&browser, profile.path(), dark);
        let mut chromium = Chromium { driver, http, session: format!("{root}/session"), _profile: profile };
        let made = chromium.post("", wanted).await;
        let id = made["sessionId"].as_str().unwrap_or_else(|| panic!("chromium did not start: {made}"));
        chromium.session = format!("{root}/session/{id}");
        chromium
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let sent = self.http.post(format!("{}{path}", self.session)).json(&body).send().await;
        let reply: Value = sent.unwrap().json().await.unwrap();
        assert!(reply["value"]["error"].is_null(), "{path} {body}: {reply}");
        reply["value"].clone()
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
    }

    /// Runs a function body in the page and gives what it returns.
    pub async fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []})).await
    }

    /// Waits until an expression in the page is true, and fails with the page's text if it never is.
    pub async fn until(&self, expression: &str) {
        let started = Instant::now();
        while self.run(&format!("return Boolean({expression});")).await != json!(true) {
            if started.elapsed() > WAIT_TIME {
                let page = self.run("return document.body.innerText;").await;
                panic!("never came true: {expression}\n{}\n{:?}", page.as_str().unwrap_or(""), self.console().await);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Clicks as a person would; the element has to be in sight.
    pub async fn click(&self, css: &str) {
        let found = self.post("/element", json!({"using": "css selector", "value": css})).await;
        let id = found.as_object().and_then(|o| o.values().next()).and_then(Value::as_str).unwrap().to_owned();
        self.post(&format!("/element/{id}/click"), json!({})).await;
    }

    /// Sends keys to what has the focus.
    pub async fn press(&self, key: &str) {
        let keys = json!([{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]);
        self.post("/actions", json!({"actions": [{"type": "key", "id": "keys", "actions": keys}]})).await;
    }

    /// Sets the size of the page's area, not of the window: phones are narrower than any window.
    pub async fn resize(&self, width: u32, height: u32, phone: bool) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone});
        self.cdp("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    /// Sends a command of the browser's own debugging protocol.
    pub async fn cdp(&self, command: &str, params: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": params})).await
    }

    /// A figure of the browser's own about the page: `Nodes`, `JSHeapUsedSize`, `JSEventListeners` and so on.
    pub async fn figure(&self, name: &str) -> f64 {
        self.cdp("HeapProfiler.collectGarbage", json!({})).await;
        self.cdp("Performance.enable", json!({})).await;
        let all = self.cdp("Performance.getMetrics", json!({})).await;
        let metric = all["metrics"].as_array().and_then(|m| m.iter().find(|m| m["name"] == name));
        metric.and_then(|m| m["value"].as_f64()).unwrap_or_else(|| panic!("no figure {name} in {all}"))
    }

    /// Saves what is seen under `target/`, for people to look at.
    pub async fn screenshot(&self, name: &str) {
        let shot = self.http.get(format!("{}/screenshot", self.session)).send().await.unwrap();
        let shot: Value = shot.json().await.unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), base64(shot["value"].as_str().unwrap())).unwrap();
    }

    /// What the page wrote to its console since the last call: errors, refused requests, policy violations.
    pub async fn console(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({"type": "browser"})).await;
        let lines = log.as_array().cloned().unwrap_or_default();
        lines.iter().map(|l| format!("{} {}", l["level"], l["message"])).collect()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // The driver ends its browser when it is told to go; killing it would leave the browser behind.
        let (session, quit) =
            (self.session.clone(), self.session.rsplitn(3, '/').last().map(|r| format!("{r}/shutdown")));
        let asked = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let http = Client::builder().timeout(Duration::from_secs(10)).no_proxy().build().unwrap();
                let _ = http.delete(&session).send().await;
                if let Some(quit) = quit {
                    let _ = http.get(quit).send().await;
                }
            });
        });
        let _ = asked.join();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn capabilities(browser: &Path, profile: &Path, dark: bool) -> Value {
    let mut flags: Vec<String> = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--window-size=1280,800",
    ]
    .map(String::from)
    .into();
    flags.push(format!("--user-data-dir={}", profile.display()));
    if dark {
        flags.push("--force-dark-mode".into());
    }
    json!({"capabilities": {"alwaysMatch": {
        "browserName": "chrome",
        "goog:chromeOptions": {"binary": browser, "args": flags},
        "goog:loggingPrefs": {"browser": "ALL"},
    }}})
}

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut out, mut bits, mut held) = (Vec::new(), 0u32, 0);
    for value in text.bytes().filter_map(|b| DIGITS.iter().position(|d| *d == b)) {
        bits = (bits << 6) | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    out
}
