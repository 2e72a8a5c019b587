//! Where logs go: stderr, one line an event. Under systemd each line carries its priority for the
//! journal, which stamps the time itself. Whatever an event holds becomes one printable line, and lines come no
//! faster than [`limit`] allows.

use std::fmt;
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use anyhow::{Context, Result};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::metrics::{LOG_LINES_LEFT_OUT, lock, printable};
use crate::settings::Section;
use crate::types::Time;

pub mod limit;

use limit::{Limit, Line};

/// The longest line, in bytes. The rest of a longer one is left out.
pub const MAX_LINE_BYTES: usize = 4096;

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
        .event_format(Lines::new(journal))
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
    limit: Mutex<Limit<Identifier>>,
}

impl Lines {
    fn new(journal: bool) -> Lines {
        Lines { journal, limit: Mutex::new(Limit::new(Instant::now())) }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        // Who asks for DEBUG wants all of it.
        let line = match level {
            Level::DEBUG | Level::TRACE => Line::Written { left_out: 0 },
            _ => lock(&self.limit).line(event.metadata().callsite(), Instant::now()),
        };
        let Line::Written { left_out } = line else {
            LOG_LINES_LEFT_OUT.inc();
            return Ok(());
        };
        let mut text = String::new();
        ctx.format_fields(Writer::new(&mut text), event)?;
        if self.journal {
            write!(out, "<{}>", priority(level))?;
        } else {
            write!(out, "{} {level:5} ", Time(Time::now().0 / 1_000_000 * 1_000_000))?;
        }
        out.write_str(&printable(&text, MAX_LINE_BYTES))?;
        if left_out > 0 {
            write!(out, " (left out before: {left_out} lines of this kind)")?;
        }
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            lock(&self.0).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(write: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .event_format(Lines::new(true))
            .finish();
        tracing::subscriber::with_default(subscriber, write);
        let bytes = lock(&kept.0).clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn whatever_is_logged_is_one_printable_line() {
        let name = "x\n<3>andon ERROR the store is lost\u{1b}[2J\u{202e}";
        let text = logged(|| {
            tracing::info!(name, shown = %name, "a name {name}");
            tracing::info!(long = %"y".repeat(10_000), "long");
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with("<6>a name x\\n<3>andon"), "{text}");
        assert!(!text.contains(['\u{1b}', '\u{202e}']));
        assert!(lines[1].len() < MAX_LINE_BYTES + 100);
    }

    #[test]
    fn a_place_that_storms_is_cut_short() {
        let before = LOG_LINES_LEFT_OUT.get();
        let text = logged(|| (0..10_000).for_each(|n| tracing::info!(n, "storm")));
        assert!(text.lines().count() <= limit::PLACE_BURST as usize + 5, "{}", text.lines().count());
        assert!(LOG_LINES_LEFT_OUT.get() - before >= 9_000);
    }
}
