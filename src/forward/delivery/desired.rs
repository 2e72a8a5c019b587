//! The desired state: which models there should be, as the cloud or a file says it. Pure.

use std::time::Duration;

use serde::Deserialize;

use super::MAX_STAGE;
use crate::types::{FailurePolicy, Rollout};

/// The largest desired state that is read.
pub const MAX_BODY: u64 = 1 << 20;
/// Models in it.
const MAX_WANTED: usize = 64;
/// Globs of a canary, and the longest of them.
const MAX_GLOBS: usize = 64;
const MAX_TEXT: usize = 256;

/// A model that there should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The model's name; empty where only the bundle says it.
    pub model: String,
    /// Its version; empty where only the bundle says it.
    pub version: String,
    /// Where its archive is.
    pub at: Where,
    /// SHA-256 of the archive, hex.
    pub sha256: String,
    /// How it is taken into use.
    pub rollout: Rollout,
}

/// Where an archive is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// At this address.
    Url(String),
    /// In the inbox, under this name.
    File(String),
}

/// What is wanted, and entries that cannot be: the model, its version and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// In order.
    pub wanted: Vec<Wanted>,
    /// What is wrong, for people.
    pub wrong: Vec<(String, String, String)>,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    deployments: Vec<Deployment>,
}

#[derive(Deserialize)]
struct Deployment {
    #[serde(default)]
    failure_policy: Option<String>,
    #[serde(default)]
    models: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    handle: String,
    version: String,
    url: String,
    sha256: String,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    rollout: Stages,
}

#[derive(Default, Deserialize)]
struct Stages {
    shadow_s: Option<f64>,
    #[serde(default)]
    canary: Option<Vec<String>>,
    bake_s: Option<f64>,
}

/// Reads a desired state. What it does not say of a rollout is as in `usual`; keys that are not known
/// are other people's business. With `files`, an address without a scheme is a file in the inbox.
///
/// # Errors
/// When it is no desired state at all.
pub fn parse(text: &[u8], usual: &Rollout, files: bool) -> Result<Desired, String> {
    let body: Body = serde_json::from_slice(text).map_err(|e| format!("it is no desired state: {e}"))?;
    let mut out = Desired::default();
    for deployment in body.deployments {
        let policy = deployment.failure_policy;
        for entry in deployment.models {
            if out.wanted.len() + out.wrong.len() >= MAX_WANTED {
                return Err(format!("it names more than {MAX_WANTED} models"));
            }
            let short = |t: &str| t.chars().take(MAX_TEXT).collect::<String>();
            let (model, version) = (short(&entry.handle), short(&entry.version));
            match wanted(entry, policy.as_deref(), usual, files) {
                Ok(wanted) => out.wanted.push(wanted),
                Err(why) => out.wrong.push((model, version, why)),
            }
        }
    }
    Ok(out)
}

fn wanted(entry: Entry, policy: Option<&str>, usual: &Rollout, files: bool) -> Result<Wanted, String> {
    if let Some(state) = entry.state.filter(|s| s != "deploy") {
        return Err(format!("its state {state:?} is not known here; \"deploy\" is"));
    }
    let sha256 = entry.sha256.trim_start_matches("sha256:").to_ascii_lowercase();
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("its `sha256` is not 64 hexadecimal digits".into());
    }
    let failure_policy = match policy.map(str::to_ascii_lowercase).as_deref() {
        None => usual.failure_policy,
        Some("rollback") => FailurePolicy::Rollback,
        Some("report" | "do_nothing") => FailurePolicy::Report,
        Some(other) => return Err(format!("its `failure_policy` {other:?} is neither \"rollback\" nor \"report\"")),
    };
    let canary = entry.rollout.canary.unwrap_or_else(|| usual.canary.clone());
    if canary.len() > MAX_GLOBS || canary.iter().any(|g| g.is_empty() || g.len() > MAX_TEXT) {
        return Err(format!("its `canary` is not a list of at most {MAX_GLOBS} globs over machine ids"));
    }
    let at = match entry.url.split_once("://") {
        Some(("http" | "https", _)) => Where::Url(entry.url),
        None if files && !entry.url.contains(['/', '\\']) && !entry.url.starts_with('.') => Where::File(entry.url),
        _ => return Err("its `url` is not an http:// or https:// address".into()),
    };
    let shadow = stage(entry.rollout.shadow_s, usual.shadow, "shadow_s")?;
    let bake = stage(entry.rollout.bake_s, usual.bake, "bake_s")?;
    let rollout = Rollout { shadow, canary, bake, failure_policy };
    Ok(Wanted { model: entry.handle, version: entry.version, at, sha256, rollout })
}

fn stage(seconds: Option<f64>, usual: Duration, key: &str) -> Result<Duration, String> {
    let Some(seconds) = seconds else { return Ok(usual) };
    if !(0.0..=MAX_STAGE.as_secs_f64()).contains(&seconds) {
        return Err(format!("its `rollout.{key}` is not between 0 and 90 days"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(change: &str) -> String {
        let sha = "ab".repeat(32);
        let entry = format!(
            r#"{{"handle":"bearing-ae","version":"4","url":"https://x/b.tar","sha256":"{sha}","state":"deploy"{change}}}"#
        );
        format!(r#"{{"deployments":[{{"name":"d-42","failure_policy":"rollback","models":[{entry}]}}]}}"#)
    }

    fn read(text: &str) -> Desired {
        let usual = Rollout { shadow: Duration::from_secs(7), ..Rollout::default() };
        parse(text.as_bytes(), &usual, false).expect("a desired state")
    }

    #[test]
    fn the_documented_shape_is_read() {
        let text = entry(r#","rollout":{"shadow_s":3600,"canary":["press-04"],"bake_s":1800.5},"more":1"#);
        let Desired { wanted, wrong } = read(&text);
        assert_eq!(wrong, []);
        let w = &wanted[0];
        assert_eq!((w.model.as_str(), w.version.as_str(), w.sha256.len()), ("bearing-ae", "4", 64));
        assert_eq!(w.at, Where::Url("https://x/b.tar".into()));
        assert_eq!((w.rollout.shadow.as_secs(), w.rollout.bake.as_millis()), (3600, 1_800_500));
        assert_eq!(w.rollout.canary, ["press-04"]);
        assert_eq!(read(&entry("")).wanted[0].rollout.shadow.as_secs(), 7, "as the config says");
        assert_eq!(read("{}"), Desired::default());
    }

    #[test]
    fn what_cannot_be_wanted_is_named_and_the_rest_is_read() {
        let wrong = |from: &str, to: &str| {
            let text = entry(r#","rollout":{"shadow_s":1}"#).replace(from, to);
            let Desired { wanted, wrong } = read(&text);
            assert!(wanted.is_empty(), "{text}");
            format!("{} {} {}", wrong[0].0, wrong[0].1, wrong[0].2)
        };
        assert_eq!(wrong("deploy\"", "remove\""), "bearing-ae 4 its state \"remove\" is not known here; \"deploy\" is");
        assert!(wrong("abab", "xyxy").contains("hexadecimal"));
        assert!(wrong("https:", "file:").contains("`url`"));
        assert!(wrong("https://x/b.tar", "b.tar").contains("`url`"));
        assert!(wrong("\"shadow_s\":1", "\"shadow_s\":-1").contains("90 days"));
        assert!(wrong("\"shadow_s\":1", "\"shadow_s\":1e300").contains("90 days"));
        assert!(wrong("\"rollback\"", "\"pray\"").contains("failure_policy"));
        let usual = Rollout::default();
        assert!(parse(b"7", &usual, false).is_err() && parse(b"", &usual, false).is_err());
        for name in ["../b.tar", "/b.tar", ".b.tar", "a/b.tar"] {
            let text = entry("").replace("https://x/b.tar", name);
            assert_eq!(parse(text.as_bytes(), &usual, true).expect("read").wrong.len(), 1, "{name}");
        }
        let text = entry("").replace("https://x/b.tar", "b.tar");
        assert_eq!(parse(text.as_bytes(), &usual, true).expect("read").wanted[0].at, Where::File("b.tar".into()));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, &Rollout::default(), true);
        }
    }
}
