//! `andon check --connect` logs in for real, and says what to look at when it is not let in.
#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use support::certificates::certificates;
use support::daemon::andon;
use support::mosquitto::{Mosquitto, dynamic_security};

mod support;

/// What it prints of the broker, and whether it is content.
fn check(broker: &Mosquitto, scheme: &str, more: &str) -> (bool, String) {
    let url = format!("{scheme}://localhost:{}", broker.port());
    let config = format!(
        "[agent]\ndata_dir = \"data\"\n[[source.mqtt]]\nname = \"shop\"\nurl = \"{url}\"\n{more}\n\
         [[source.mqtt.subscribe]]\ntopic = \"plant/{{machine}}/{{signal}}\"\n\
         [[source.mqtt.subscribe]]\ntopic = \"$share/g/more/{{machine}}/{{signal}}\"\n[[machine]]\nmatch = \"*\"\n"
    );
    let path = broker.dir().join("andon.toml");
    std::fs::write(&path, config).unwrap();
    let out = andon(["check".as_ref(), "-c".as_ref(), path.as_os_str(), "--connect".as_ref()]);
    let said = String::from_utf8_lossy(&out.stdout);
    let line = said.lines().find(|l| l.contains("source shop")).unwrap_or_default().to_owned();
    let line = line.replace(&broker.port().to_string(), "PORT");
    assert_eq!(out.status.code(), Some(i32::from(!out.status.success())), "{said}");
    (out.status.success(), line)
}

#[test]
fn a_password_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let mut passwd = Command::new("mosquitto_passwd");
    passwd.args(["-b", "-c"]).arg(dir.path().join("users")).args(["ana", "right"]);
    let made = passwd.status().expect("mosquitto_passwd comes with mosquitto");
    assert!(made.success());
    let broker = Mosquitto::within(dir, "allow_anonymous false\npassword_file {dir}/users\n");
    for version in ["3.1.1", "5"] {
        let with = |password: &str| format!("version = \"{version}\"\nusername = \"ana\"\npassword = \"{password}\"");
        assert_eq!(
            check(&broker, "mqtt", &with("right")),
            (true, "  source shop: mqtt://localhost:PORT answers and lets us in".into())
        );
        let (content, line) = check(&broker, "mqtt", &with("wrong-word"));
        assert!(
            !content
                && line.ends_with("see `username` and `password_file`, and what the broker lets this client id do"),
            "{line}"
        );
        assert!(!line.contains("wrong-word"), "{line}");
    }
}

#[test]
fn certificates_are_tried() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let lines = "allow_anonymous true\ncafile {dir}/ca.pem\ncertfile {dir}/server.pem\nkeyfile {dir}/server.key\n\
                 require_certificate true\n";
    let broker = Mosquitto::within(dir, lines);
    let ours = "cert = \"client.pem\", key = \"client.key\"";
    let (content, line) = check(&broker, "mqtts", &format!("tls = {{ ca = \"ca.pem\", {ours} }}"));
    assert!(content, "{line}");
    for (scheme, tls, advice) in [
        (
            "mqtts",
            format!("tls = {{ ca = \"other.pem\", {ours} }}"),
            "the broker's certificate is not signed by what `tls.ca` names",
        ),
        (
            "mqtts",
            "tls = { ca = \"ca.pem\" }".to_owned(),
            "the broker does not take our certificate: see `tls.cert` and `tls.key`",
        ),
        ("mqtt", String::new(), "if that port speaks TLS, use mqtts://"),
    ] {
        let (content, line) = check(&broker, scheme, &tls);
        assert!(!content && line.ends_with(advice), "{scheme} {tls}: {line}");
    }
    let plain = Mosquitto::start();
    std::fs::copy(broker.dir().join("ca.pem"), plain.dir().join("ca.pem")).unwrap();
    let (content, line) = check(&plain, "mqtts", "tls = { ca = \"ca.pem\" }");
    assert!(!content && line.ends_with("if that port does not speak TLS, use mqtt://"), "{line}");
}

#[test]
fn subscriptions_are_tried() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = r#"{"defaultACLAccess":{"publishClientSend":true,"publishClientReceive":true,"subscribe":false,"unsubscribe":true}}"#;
    std::fs::write(dir.path().join("security.json"), nobody).unwrap();
    let plugin = format!("plugin {}\nplugin_opt_config_file {{dir}}/security.json\n", dynamic_security().display());
    let broker = Mosquitto::within(dir, &format!("allow_anonymous true\n{plugin}"));
    let (content, line) = check(&broker, "mqtt", "");
    assert!(!content, "{line}");
    assert!(line.contains("lets us in, but refuses to subscribe plant/+/+: ") && !line.contains("$share"), "{line}");
}

#[test]
fn a_broker_that_is_not_there_is_told() {
    let mut broker = Mosquitto::start();
    broker.kill();
    let (content, line) = check(&broker, "mqtt", "");
    assert!(!content && line.contains("cannot be used") && line.contains("refused"), "{line}");
}
