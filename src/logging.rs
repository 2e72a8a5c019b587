//! Where logs go: stderr, one line an event. Under systemd each line carries its priority for the
//! journal, which stamps the time itself.

use std::fmt;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::settings::Section;
use crate::types::Time;

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A level, or a filter such as `info,andon::source=debug`.
    pub level: String,
}

impl Default for Config {
    fn default() -> Config {
        Config { level: "info".into() }
    }
}

impl Config {
    /// Reads `[log]`; an absent one is the default.
    pub fn read(root: &Section<'_>) -> Config {
        let Some(s) = root.section("log") else { return Config::default() };
        let level = s.string("level").unwrap_or_else(|| Config::default().level);
        if let Err(e) = filter(&level) {
            s.problem("level", format_args!("{level:?} is not error, warn, info, debug, trace or a filter: {e:#}"));
        }
        Config { level }
    }
}

/// Starts logging; `RUST_LOG` wins over the config. Sled and rumqttd speak only of trouble.
pub fn start(config: &Config) -> Result<()> {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| config.level.clone());
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter(&level)?)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .event_format(Lines { journal })
        .with_filter_reloading();
    let handle = builder.reload_handle();
    // A second start, as in tests, keeps the first.
    if tracing::subscriber::set_global_default(builder.finish()).is_ok() {
        let change = move |filter| handle.reload(filter).map_err(anyhow::Error::from);
        let _ = CHANGE.set(Box::new(change));
    }
    Ok(())
}

type Change = Box<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>;

/// Changes the filter of the one log.
static CHANGE: OnceLock<Change> = OnceLock::new();

/// Another level from now on; `RUST_LOG` goes on winning.
pub fn set(config: &Config) {
    let (Some(change), None) = (CHANGE.get(), std::env::var_os("RUST_LOG")) else { return };
    if let Err(error) = filter(&config.level).and_then(change) {
        tracing::warn!(%error, "the log's level stays as it was");
    }
}

fn filter(level: &str) -> Result<EnvFilter> {
    let quiet = "sled=warn,rumqttd=off,tract_core=warn,tract_hir=warn,tract_onnx=warn,hyper=warn,reqwest=warn";
    EnvFilter::try_new(format!("{quiet},{level}")).context("reading the log filter")
}

struct Lines {
    journal: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if self.journal {
            write!(out, "<{}>", priority(level))?;
        } else {
            write!(out, "{} {level:5} ", Time(Time::now().0 / 1_000_000 * 1_000_000))?;
        }
        ctx.format_fields(out.by_ref(), event)?;
        writeln!(out)
    }
}

/// Syslog priorities.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}
