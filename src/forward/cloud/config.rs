//! The `[cloud]` section.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use reqwest::Url;

use super::auth::Auth;
use crate::forward::inference;
use crate::forward::order::Order;
use crate::forward::privacy::Privacy;
use crate::settings::Section;
use crate::tls::Tls;

/// Where records go and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to POST.
    pub url: Address,
    /// Who we say we are.
    pub auth: Auth,
    /// For `https`.
    pub tls: Tls,
    /// The most events in a request; 1 sends single events and not arrays.
    pub batch_events: usize,
    /// The most requests under way at once; how many there are is found out by trying.
    pub max_requests: usize,
    /// The most bytes in a request, before compression. A larger event goes alone.
    pub max_batch_bytes: usize,
    /// How bodies are compressed.
    pub compress: Compress,
    /// What may leave the plant.
    pub privacy: Privacy,
    /// What goes first after an outage.
    pub order: Order,
    /// For a whole request, the answer included.
    pub timeout: Duration,
    /// A second opinion from a larger model.
    pub inference: Option<inference::Config>,
    /// Waiting times that are not for the user to set.
    pub tempo: Tempo,
}

/// An address whose query, which may hold a signature, is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(pub Url);

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0.origin().ascii_serialization(), self.0.path())
    }
}

/// A content coding.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Compress {
    /// Bodies as they are.
    None,
    /// For receivers that know nothing newer.
    Gzip,
    /// Smaller and cheaper.
    Zstd,
}

/// How patient the sink is.
#[derive(Clone, Debug)]
pub struct Tempo {
    /// The wait after a first failure; doubles from there.
    pub retry_first: Duration,
    /// The longest wait of our own accord.
    pub retry_cap: Duration,
    /// After a pause this long a record is sent at once, alone if need be.
    pub quiet: Duration,
    /// How long after the last request a batch that is not full waits for more.
    pub gather: Duration,
    /// What a request in flight may still take once the agent stops.
    pub finish: Duration,
}

impl Default for Tempo {
    fn default() -> Tempo {
        Tempo {
            retry_first: Duration::from_millis(500),
            retry_cap: Duration::from_secs(60),
            quiet: Duration::from_millis(50),
            gather: Duration::from_millis(100),
            finish: Duration::from_secs(5),
        }
    }
}

impl Config {
    /// Sends to this address, all else as if the config did not say.
    pub fn to(url: Url) -> Config {
        Config {
            url: Address(url),
            auth: Auth::None,
            tls: Tls::default(),
            batch_events: 500,
            max_requests: 8,
            max_batch_bytes: 1 << 20,
            compress: Compress::Zstd,
            privacy: Privacy::default(),
            order: Order::LiveFirst,
            timeout: Duration::from_secs(30),
            inference: None,
            tempo: Tempo::default(),
        }
    }

    /// Reads the section; what is wrong is reported there and replaced by its default.
    pub fn read(s: &Section<'_>) -> Config {
        let insecure = s.boolean("insecure").unwrap_or(false);
        let default = Config::to(url_at(s, "url", insecure));
        let privacy = Privacy::read(s, "cloud");
        Config {
            auth: Auth::read(s, |s, key| Address(url_at(s, key, insecure))),
            tls: Tls::read(s),
            batch_events: count(s, "batch_events", 1..=10_000).unwrap_or(default.batch_events),
            max_requests: count(s, "max_requests", 1..=64).unwrap_or(default.max_requests),
            max_batch_bytes: max_batch_bytes(s).unwrap_or(default.max_batch_bytes),
            compress: s
                .choice("compress", &[("none", Compress::None), ("gzip", Compress::Gzip), ("zstd", Compress::Zstd)])
                .unwrap_or(default.compress),
            order: Order::read(s, default.order, &privacy),
            privacy,
            timeout: timeout(s).unwrap_or(default.timeout),
            inference: s.section("inference").map(|s| inference::Config::read(&s)),
            ..default
        }
    }
}

fn count(s: &Section<'_>, key: &str, bounds: std::ops::RangeInclusive<i64>) -> Option<usize> {
    s.integer(key, bounds).and_then(|n| usize::try_from(n).ok())
}

/// The address at `key`, to speak HTTP with: plain only to this machine, unless `insecure`.
pub(in crate::forward) fn url_at(s: &Section<'_>, key: &str, insecure: bool) -> Url {
    // Stands in only where a problem was reported; nothing listens there.
    let nowhere = || Url::parse("http://127.0.0.1:9/").unwrap_or_else(|_| unreachable!("a constant that parses"));
    let text = s.required_string(key);
    if text.is_empty() {
        return nowhere();
    }
    let url = match Url::parse(&text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
        Ok(_) => {
            s.problem(key, "is not an http:// or https:// address");
            return nowhere();
        }
        Err(e) => {
            s.problem(key, format_args!("is not an address: {e}"));
            return nowhere();
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        s.problem(key, "holds a user or password; give those by themselves");
    }
    if url.scheme() == "http" && !is_loopback(&url) && !insecure {
        s.problem(
            key,
            "sends records and token over the network in the clear; use https://, or set `insecure = true` if you must",
        );
    }
    url
}

/// Whether an address is this machine's own.
pub(in crate::forward) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    ip.map_or(host == "localhost" || host.ends_with(".localhost"), |ip| ip.is_loopback())
}

fn max_batch_bytes(s: &Section<'_>) -> Option<usize> {
    let bytes = s.size("max_batch_bytes")?;
    if !(1024..=64 << 20).contains(&bytes) {
        s.problem("max_batch_bytes", "is not between 1KiB and 64MiB");
        return None;
    }
    usize::try_from(bytes).ok()
}

/// `timeout`, within reason.
pub(in crate::forward) fn timeout(s: &Section<'_>) -> Option<Duration> {
    let timeout = s.duration("timeout")?;
    if timeout < Duration::from_millis(100) || timeout > Duration::from_secs(600) {
        s.problem("timeout", "is not between 100ms and 10min");
        return None;
    }
    Some(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Document, Surroundings};

    fn read(text: &str) -> (Config, Vec<String>) {
        let document = Document::parse(text, Surroundings::default());
        let config = Config::read(&document.root());
        let problems = document.into_problems();
        (config, problems.into_iter().map(|p| format!("{}: {}", p.line, p.message)).collect())
    }

    #[test]
    fn the_annotated_example_is_read() {
        let (config, problems) = read(
            "url = \"https://aiaas.example.com/v1/events?sig=secret\"\nbatch_events = 200\ncompress = \"gzip\"\n\
             fields = [\"anomaly_score\"]\npseudonymise = false\ntimeout = \"5s\"\nmax_batch_bytes = \"256KiB\"\n\
             [inference]\nurl = \"https://aiaas.example.com\"\nmodel = \"bearing-large\"\n\
             escalate = [0.001, 0.05]\nbudget = \"2000 per day\"\n",
        );
        assert_eq!(config.order, Order::LiveFirst);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((config.batch_events, config.compress, config.max_batch_bytes), (200, Compress::Gzip, 262_144));
        assert_eq!(config.timeout, Duration::from_secs(5));
        assert_eq!(format!("{:?}", config.url), "https://aiaas.example.com/v1/events");
        assert_eq!(config.inference.map(|i| i.policy.model).as_deref(), Some("bearing-large"));
    }

    #[test]
    fn sums_want_records_as_they_came() {
        let read = |text: &str| read(&format!("url = \"https://a\"\n{text}"));
        assert_eq!(read("order = \"oldest_first\"").0.order, Order::OldestFirst);
        let (config, problems) = read("aggregate = \"5min\"");
        assert_eq!((config.order, problems.len()), (Order::OldestFirst, 0));
        let (_, problems) = read("aggregate = \"5min\"\norder = \"live_first\"");
        assert_eq!(problems, ["3: order: is \"live_first\", but `aggregate` sums records up as they came"]);
    }

    #[test]
    fn every_mistake_is_told() {
        let (_, problems) = read(
            "url = \"http://cloud.example.com/\"\nbatch_events = 0\ncompress = \"lz4\"\npseudonymise = true\n\
             timeout = \"1h\"\nmax_batch_bytes = \"3B\"\ntoken = \"two words\"\nfeilds = []\n",
        );
        insta::assert_snapshot!(problems.join("\n"));
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for url in ["http://127.0.0.1:80/", "http://[::1]/x", "http://localhost:8080", "https://cloud.example.com"] {
            assert_eq!(read(&format!("url = {url:?}")).1, Vec::<String>::new(), "{url}");
        }
        assert_eq!(read("url = \"http://10.0.0.1/\"\ninsecure = true").1, Vec::<String>::new());
        for url in ["http://10.0.0.1/", "http://localhost.example.com/", "ftp://127.0.0.1/", "cloud", "https://u:p@h/"]
        {
            assert_eq!(read(&format!("url = {url:?}")).1.len(), 1, "{url}");
        }
        assert_eq!(read("").1, ["1: url: is missing"]);
    }
}
