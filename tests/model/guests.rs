//! Loading and unloading models for guests of the Open Inference Protocol: for admins, from signed
//! bundles, as they were signed.

use std::process::Command;

use super::bundles::{Keys, copy_dir, edit, sign};
use crate::support::daemon::{Daemon, repository};

const TOKEN: &str = "an-admin-token-0123456789";
const CONFIG: &str = r#"
[agent]
data_dir = "@DIR@/data"
models_dir = "@DIR@/models"
[[source.mqtt]]
name = "shop"
url = "mqtt://127.0.0.1:1"
[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
payload = "number"
[[machine]]
match = "pump-*"
model = "pump-anomaly"
[models]
trusted_keys = ["@DIR@/maker.pem"]
[web]
listen = "@WEB@"
"#;

/// Status and body of a POST, with a token or without.
fn post(daemon: &Daemon, token: Option<&str>, path: &str, body: &str) -> (String, String) {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--noproxy", "*", "-X", "POST", "-w", "\n%{http_code}", "-d", body]);
    curl.args(["-H", "Content-Type: application/json"]);
    if let Some(token) = token {
        curl.args(["-H", &format!("Authorization: Bearer {token}")]);
    }
    let out = curl.arg(format!("http://127.0.0.1:{}{path}", daemon.port())).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

#[test]
fn only_admins_load_and_only_what_is_signed() {
    let mut daemon = Daemon::new("");
    let maker = Keys::make(daemon.dir(), "maker", "P-256");
    let models = daemon.dir().join("models");
    for (from, to) in [("pump-anomaly", "pump-anomaly"), ("press-anomaly", "signed"), ("press-anomaly", "unsigned")] {
        copy_dir(&repository("models").join(from), &models.join(to));
        edit(&models.join(to), |m| m["name"] = to.into());
    }
    sign(&models.join("pump-anomaly"), &maker);
    sign(&models.join("signed"), &maker);
    daemon.configure(CONFIG);
    daemon.start_ready();
    let (status, body) = post(&daemon, None, "/v2/repository/models/signed/load", "{}");
    assert_eq!((status.as_str(), body.contains("only an admin")), ("403", true), "{body}");
    daemon.terminate();
    daemon.configure(&format!("{CONFIG}token = \"{TOKEN}\"\n"));
    daemon.start_ready();
    assert_eq!(post(&daemon, None, "/v2/repository/models/signed/load", "{}").0, "401");
    let admin = |path: &str, body: &str| post(&daemon, Some(TOKEN), &format!("/v2/repository/{path}"), body);
    let refused = |path: &str, body: &str, why: &str| {
        let (status, said) = admin(path, body);
        assert_eq!(status, "400", "{path} {body}: {said}");
        assert!(said.contains(why), "{path} {body}: {said}");
    };
    refused("models/unsigned/load", "{}", "it is not signed");
    refused("models/..%2Fmodels%2Fsigned/load", "{}", "there is no bundle");
    refused("models/nothing/load", "{}", "there is no bundle");
    refused("models/signed/load", r#"{"parameters": {"config": "{}"}}"#, "\\\"config\\\" is refused");
    refused("models/signed/load", r#"{"parameters": {"file:1/model.onnx": "AAAA"}}"#, "is refused");
    refused("models/signed/load", "[", "no JSON");
    refused("models/signed/unload", "", "is not loaded");
    refused("models/pump-anomaly/unload", "{}", "is used by machines");
    assert_eq!(admin("models/pump-anomaly/load", ""), ("200".into(), "{}".into()));
    let (status, said) = admin("models/signed/load", "");
    assert_eq!(status, "200", "{said}");
    let index = admin("index", "").1;
    assert!(index.contains("\"signed\"") && index.contains("\"pump-anomaly\""), "{index}");
    let unload = admin("models/signed/unload", r#"{"parameters": {"unload_dependents": false}}"#);
    assert_eq!(unload, ("200".into(), "{}".into()));
    assert!(!admin("index", "").1.contains("\"signed\""));
}
