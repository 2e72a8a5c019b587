//! The `[cloud.inference]` section: where the larger model is, when it is asked, what that may cost,
//! and what its answers may do.

use std::time::Duration;

use crate::forward::budget::{MICRO, Prices, Rules};
use crate::forward::cloud::{Address, Auth, config as cloud};
use crate::settings::{Section, parse_rate};
use crate::tls::Tls;
use crate::types::{May, Name};

/// Asked this often unless the config says otherwise.
const USUAL_BUDGET: (f64, Duration) = (2000.0, Duration::from_secs(86_400));
/// Larger budgets and prices are a slip of the pen, and would not fit what they are counted in.
const MAX_UNITS: f64 = 1e9;

/// Where the larger model is, and when it is asked.
#[derive(Clone, Debug)]
pub struct Config {
    /// An Open Inference Protocol server; `/v2/…` is added.
    pub url: Address,
    /// A version of the model; `None`: the server's choice.
    pub version: Option<String>,
    /// The output to read; `None`: `score`, or the only one.
    pub output: Option<String>,
    /// Who we say we are.
    pub auth: Auth,
    /// For `https`.
    pub tls: Tls,
    /// For each request, the answer included.
    pub timeout: Duration,
    /// What the engine goes by.
    pub policy: Policy,
}

/// When a larger model is asked and what its answers mean: the part that is decided without asking anybody.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Its name.
    pub model: Name,
    /// p-values between these are uncertain.
    pub escalate: [f64; 2],
    /// The share of all other windows that is asked about, 0..1.
    pub audit_fraction: f64,
    /// The larger model's score from which on it is an anomaly.
    pub threshold: f64,
    /// The budget.
    pub budget: Rules,
    /// What a question costs.
    pub prices: Prices,
    /// What an answer may do to alarms.
    pub may: May,
}

impl Config {
    /// Reads the section; what is wrong is reported there and replaced by its default.
    pub fn read(s: &Section<'_>) -> Config {
        let escalate = s.floats("escalate").unwrap_or([0.001, 0.05]);
        if !(0.0 <= escalate[0] && escalate[0] < escalate[1] && escalate[1] <= 1.0) {
            s.problem("escalate", "is not two p-values in rising order, such as [0.001, 0.05]");
        }
        let insecure = s.boolean("insecure").unwrap_or(false);
        let address = |s: &Section<'_>, key: &str| Address(cloud::url_at(s, key, insecure));
        let policy = Policy {
            model: s.required_string("model").into(),
            escalate,
            audit_fraction: fraction(s, "audit_fraction").unwrap_or(0.0),
            threshold: s.float("threshold").unwrap_or(0.5),
            budget: budget(s),
            prices: prices(s),
            may: may(s),
        };
        Config {
            url: address(s, "url"),
            version: s.string("version"),
            output: s.string("output"),
            auth: Auth::read(s, address),
            tls: Tls::read(s),
            timeout: cloud::timeout(s).unwrap_or(Duration::from_secs(10)),
            policy,
        }
    }
}

fn fraction(s: &Section<'_>, key: &str) -> Option<f64> {
    let share = s.float(key)?;
    if !(0.0..=1.0).contains(&share) {
        s.problem(key, "is not between 0 and 1");
        return None;
    }
    Some(share)
}

fn units(s: &Section<'_>, key: &str) -> Option<f64> {
    let units = s.float(key)?;
    if !(0.0..=MAX_UNITS).contains(&units) {
        s.problem(key, format_args!("is not between 0 and {MAX_UNITS:.0}"));
        return None;
    }
    Some(units)
}

fn prices(s: &Section<'_>) -> Prices {
    let usual = Prices::default();
    let Some(s) = s.section("prices") else { return usual };
    Prices {
        per_call: units(&s, "per_call").unwrap_or(usual.per_call),
        per_1k_elements: units(&s, "per_1k_elements").unwrap_or(usual.per_1k_elements),
        per_mb: units(&s, "per_mb").unwrap_or(usual.per_mb),
    }
}

fn budget(s: &Section<'_>) -> Rules {
    let text = s.string("budget");
    let given = text.as_deref().map(|t| (t, parse_rate(t).filter(|(n, d)| *n <= MAX_UNITS && d.as_secs() >= 1)));
    if let Some((text, None)) = given {
        s.problem("budget", format_args!("{text:?} is not a budget such as \"2000 per day\" or \"50 per hour\""));
    }
    let (limit, period) = given.and_then(|(_, budget)| budget).unwrap_or(USUAL_BUDGET);
    let reserve = fraction(s, "reserve").unwrap_or(0.1);
    let burst = units(s, "burst").unwrap_or(limit / 10.0).max(1.0);
    let micro = |units: f64| (units * MICRO).round() as u64;
    Rules { limit: micro(limit), period, reserve: micro(limit * reserve), burst: micro(burst) }
}

fn may(s: &Section<'_>) -> May {
    let Some(words) = s.strings("may") else { return May { confirm: true, ..May::default() } };
    let mut may = May::default();
    for word in words {
        match word.as_str() {
            "confirm" => may.confirm = true,
            "raise" => may.raise = true,
            "clear" => may.clear = true,
            _ => s.problem("may", format_args!("{word:?} is not one of confirm, raise, clear")),
        }
    }
    may
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Document, Surroundings};

    fn read(text: &str) -> (Config, Vec<String>) {
        let document = Document::parse(text, Surroundings::default());
        let config = Config::read(&document.root());
        (config, document.into_problems().into_iter().map(|p| format!("{}: {}", p.line, p.message)).collect())
    }

    #[test]
    fn the_contract_is_read() {
        let (config, problems) = read(
            "url = \"https://aiaas.example.com\"\nmodel = \"bearing-large\"\nescalate = [0.001, 0.05]\n\
             budget = \"2000 per day\"\nreserve = 0.25\naudit_fraction = 0.01\nmay = [\"confirm\", \"raise\"]\n\
             prices = { per_call = 2, per_mb = 0.5 }\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        let p = config.policy;
        assert_eq!((&*p.model, p.escalate, p.audit_fraction), ("bearing-large", [0.001, 0.05], 0.01));
        let rules = Rules {
            limit: 2_000_000_000,
            period: Duration::from_secs(86_400),
            reserve: 500_000_000,
            burst: 200_000_000,
        };
        assert_eq!(p.budget, rules);
        assert_eq!(p.may, May { confirm: true, raise: true, clear: false });
        assert_eq!(p.prices, Prices { per_call: 2.0, per_1k_elements: 0.0, per_mb: 0.5 });
        assert_eq!(config.timeout, Duration::from_secs(10));
    }

    #[test]
    fn every_mistake_is_told() {
        let (_, problems) = read(
            "url = \"http://cloud.example.com\"\nescalate = [0.05, 0.001]\nbudget = \"lots\"\nreserve = 2\n\
             audit_fraction = -1\nburst = -1\nmay = [\"shout\"]\nprices = { per_cal = 1 }\ntimeout = \"1ms\"\n",
        );
        insta::assert_snapshot!(problems.join("\n"));
    }
}
