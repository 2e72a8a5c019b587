//! What the agent tells of itself, read by those who read it in earnest: promtool, a real Prometheus,
//! and somebody who looks for secrets in everything it says.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::process::{Child, Command, Stdio};

use andon::simulator::cloud::{Cloud, Options};
use serde_json::Value;
use support::daemon::{Daemon, andon, repository, until};
use support::mosquitto::{Mosquitto, free_port};
use support::publisher::publish;

mod support;

/// 2025-01-01T00:00:00Z.
const EPOCH_MS: i64 = 1_735_689_600_000;

const CONFIG: &str = r#"
[agent]
site = "test/observe"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"

[[source.mqtt]]
name = "shop"
url = "@BROKER@"
@SOURCE@
[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
value = "/value"
time = "/ts"
time_format = "unix_ms"

[[machine]]
match = "*"
model = "one-step"
[machine.alarm]
threshold = 20

[publish]
source = "shop"

[web]
listen = "@WEB@"
@TOKEN@

[log]
level = "@LEVEL@"
"#;

fn config(broker: &str, source: &str, token: &str, level: &str) -> String {
    let text = CONFIG.replace("@BROKER@", broker).replace("@SOURCE@", source);
    text.replace("@TOKEN@", token).replace("@LEVEL@", level)
}

fn message(n: i64) -> (String, String) {
    ("plant/m1/count".to_owned(), format!("{{\"value\":{n},\"ts\":{}}}", EPOCH_MS + n * 100))
}

fn installed(program: &str) -> Command {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(found.is_ok_and(|s| s.success()), "{program} is not installed: tests/run sets up all that the tests need");
    Command::new(program)
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_and_prometheus_read_the_metrics() {
    let broker = Mosquitto::start();
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), Options::default()).await.expect("a port");
    let text = config(&broker.url(), "", "", "info") + &format!("[cloud]\nurl = \"{}\"\n", cloud.url());
    let daemon = Daemon::new(&text).ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let mut messages: Vec<(String, String)> = (0..40).map(message).collect();
    messages.push(("plant/m1/count".into(), "{".into()));
    publish(&broker.url(), messages).await;
    until("all is judged and sent", || {
        daemon.metric("andon_readings_total", "shop") == 40.0 && daemon.metric("andon_forward_records_total", "") > 30.0
    });

    // Every metric family that moves is there; promtool has nothing to say.
    let (status, scraped) = daemon.get("/metrics").expect("an answer");
    assert_eq!(status, 200);
    let mut promtool = installed("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("promtool starts");
    child.stdin.take().expect("a pipe").write_all(scraped.as_bytes()).expect("written");
    let said = child.wait_with_output().expect("promtool ends");
    let told = [said.stdout, said.stderr].concat();
    assert!(said.status.success() && told.is_empty(), "{}\n{scraped}", String::from_utf8_lossy(&told));

    // A real Prometheus scrapes it, by its own choice of format, and counts the same.
    let dir = tempfile::tempdir().expect("a directory");
    let (port, target) = (free_port(), format!("127.0.0.1:{}", daemon.web_port()));
    let rules = repository("config/prometheus-alerts.yml");
    let scrape = format!(
        "global: {{scrape_interval: 200ms}}\nrule_files: [{rules:?}]\nscrape_configs:\n- job_name: andon\n  static_configs: [{{targets: ['{target}']}}]\n"
    );
    let file = dir.path().join("prometheus.yml");
    fs::write(&file, scrape).expect("written");
    let checked = installed("promtool").args(["check", "config"]).arg(&file).output().expect("promtool ends");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let mut prometheus = installed("prometheus");
    prometheus.arg(format!("--config.file={}", file.display()));
    prometheus.arg(format!("--storage.tsdb.path={}", dir.path().join("tsdb").display()));
    prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let _running = Running(prometheus.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prometheus starts"));
    let http = reqwest::Client::builder().no_proxy().build().expect("a client");
    let wanted = [
        ("sum(andon_readings_total)", "40"),
        ("andon_rejected_payloads_total", "1"),
        ("andon_alarms_active{condition=\"anomaly\"}", "1"),
        ("up{job=\"andon\"}", "1"),
    ];
    for (query, value) in wanted {
        let deadline = tokio::time::Instant::now() + support::daemon::PATIENCE;
        loop {
            let url = format!("http://127.0.0.1:{port}/api/v1/query");
            let url = reqwest::Url::parse_with_params(&url, [("query", query)]).expect("a url");
            let answer = http.get(url).send().await;
            let found: Value = match answer {
                Ok(answer) => answer.json().await.unwrap_or_default(),
                Err(_) => Value::Null,
            };
            if found["data"]["result"][0]["value"][1] == value {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{query} is not {value}: {found}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

#[test]
fn the_grafana_dashboard_asks_only_for_what_there_is() {
    let text = fs::read_to_string(repository("config/grafana-dashboard.json")).expect("the dashboard");
    let board: Value = serde_json::from_str(&text).expect("JSON");
    let readme = fs::read_to_string(repository("README.md")).expect("the README");
    let rules = fs::read_to_string(repository("config/prometheus-alerts.yml")).expect("the rules");
    let panels = board["panels"].as_array().expect("panels").iter();
    let queries = panels.flat_map(|p| p["targets"].as_array().cloned().unwrap_or_default());
    let queries: Vec<String> = queries.map(|t| t["expr"].as_str().expect("a query").to_owned()).collect();
    let mut named = 0;
    for text in queries.iter().chain([&rules]) {
        for (at, _) in text.match_indices("andon_") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(&name);
            assert!(readme.contains(&format!("| `{base}` |")), "{name} is no metric");
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_ever_told() {
    let broker = Mosquitto::start();
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), Options::default()).await.expect("a port");
    let canary = |what: &str| format!("canary-{what}-7f3a9c51e2");
    let (password, cloud_token, key, web) = (canary("mqtt"), canary("cloud"), canary("pseudonym"), canary("web"));
    let source = format!("username = \"gw\"\npassword = \"{password}\"");
    // In place, as an environment variable and as files: all ways in.
    let text = config(&broker.url(), &source, "token = \"${ANDON_CANARY}\"", "trace")
        + &format!(
            "[cloud]\nurl = \"{}\"\ntoken_file = \"@DIR@/cloud-token\"\npseudonymise = true\npseudonym_key = \"{key}\"\n",
            cloud.url()
        );
    let mut daemon = Daemon::new(&text);
    fs::write(daemon.dir().join("cloud-token"), &cloud_token).expect("written");
    daemon.environment([("ANDON_CANARY", web.as_str())]);
    daemon.start_ready();
    publish(&broker.url(), (0..40).map(message)).await;
    until("the cloud has some", || cloud.stats().distinct > 10);

    // Wrong and right tokens, an action, a reload, and one that is refused.
    let asked = |path: &str, token: &str| {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let request = client.get(format!("http://127.0.0.1:{}{path}", daemon.web_port())).bearer_auth(token);
        async move { request.send().await.expect("an answer").text().await.expect("text") }
    };
    let mut said = String::new();
    for path in ["/api/v1/status", "/api/v1/alarms", "/api/v1/machines", "/metrics", "/health/ready", "/nowhere"] {
        said.push_str(&asked(path, &web).await);
        said.push_str(&asked(path, "not the token at all").await);
    }
    assert!(said.contains("andon_readings_total{") && said.contains("\"machine\":\"m1\""), "it was let in");
    daemon.hang_up();
    until("it has read its config again", || daemon.times_told("READY=1") == 2);
    daemon.configure(&text.replace("threshold = 20", "threshold = \"twenty\""));
    daemon.hang_up();
    until("it has refused a config", || daemon.times_told("READY=1") == 3);
    said.push_str(&daemon.heard().join("\n"));
    // The same mistakes as the command line tells them.
    let config = daemon.config();
    for command in ["check", "status"] {
        let output = andon([command.as_ref(), "-c".as_ref(), config.as_os_str()]);
        said.push_str(&String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
    assert!(daemon.terminate().success());
    said.push_str(&daemon.log());
    said.push_str(&fs::read_to_string(daemon.dir().join("data/audit.jsonl")).expect("the audit log"));
    assert!(said.contains("threshold") && said.contains("SIGHUP") && said.len() > 5_000, "something was said at all");
    for secret in [password, cloud_token, key, web] {
        if let Some(at) = said.find(&secret) {
            panic!("a secret was told: {}", &said[at.saturating_sub(300)..at + secret.len()]);
        }
    }
}
