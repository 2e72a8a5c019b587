//! `andon status`: asks the running daemon over its own HTTP.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use super::{ConfigFile, runtime};
use crate::config::Needs;
use crate::metrics::printable;

/// How long the daemon has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// See `andon status --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Ask this address instead of the one in the config
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Print the whole answer as JSON
    #[arg(long)]
    json: bool,
}

/// Prints how the daemon is; fails when it cannot be reached.
pub fn run(options: &Options) -> Result<()> {
    let (base, token) = match &options.url {
        Some(url) => (url.trim_end_matches('/').to_owned(), None),
        None => {
            let web = options.file.load(Needs::default())?.web;
            let Some(listen) = web.listen else { bail!("the dashboard is off in the config; there is nobody to ask") };
            (format!("http://{listen}"), web.token)
        }
    };
    let status: Value = runtime()?.block_on(async {
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        let mut request = client.get(format!("{base}/api/v1/status"));
        if let Some(token) = token {
            request = request.bearer_auth(token.reveal());
        }
        let answer = request.send().await.with_context(|| format!("no andon answers at {base}; is it running?"))?;
        let answer = answer.error_for_status().context("andon refused to tell its status")?;
        answer.json().await.context("the answer is not JSON")
    })?;
    if options.json {
        println!("{status}")
    } else {
        print(&status)
    }
    Ok(())
}

/// Bytes of a text that are shown.
const MAX_SHOWN_BYTES: usize = 2000;

/// The text of a value as a terminal may show it.
fn shown(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).map_or_else(|| "?".into(), |text| printable(text, MAX_SHOWN_BYTES))
}

fn print(status: &Value) {
    let text = |path: &str| match status.pointer(path) {
        Some(text @ Value::String(_)) => shown(Some(text)),
        Some(v) => v.to_string(),
        None => "?".into(),
    };
    println!("andon {} on {} ({}): {}", text("/version"), text("/agent"), text("/site"), text("/health"));
    for missing in status.get("missing").and_then(Value::as_array).into_iter().flatten() {
        println!("  not ready: {}", shown(Some(missing)));
    }
    let Some(Value::Object(parts)) = status.get("components") else { return };
    for (name, part) in parts {
        let word = |key: &str| shown(part.get(key));
        let name = printable(name, MAX_SHOWN_BYTES);
        println!("  {name:24} {:10} {}", word("health"), word("detail"));
    }
    for model in status.get("models").and_then(Value::as_array).into_iter().flatten() {
        let word = |path: &str| shown(model.pointer(path));
        let coming = match model.get("candidate") {
            Some(c) if c.is_object() => {
                format!(
                    "; version {} in {} since {}",
                    word("/candidate/version"),
                    word("/candidate/stage"),
                    word("/candidate/since")
                )
            }
            _ => String::new(),
        };
        println!("model {} version {}{coming}", word("/name"), word("/version"));
    }
}
