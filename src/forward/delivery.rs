//! Brings new models in: asks the cloud which there should be, or looks into a folder, and downloads
//! bundles with resume, size limit and digest. What is in them is judged by others.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::cloud::{self, Address};
use crate::settings::{Secret, Section};
use crate::tls::Tls;
use crate::types::{FailurePolicy, Rollout};

mod addresses;
mod desired;
mod fetch;
mod inbox;

pub use desired::{Desired, MAX_BODY, Wanted, Where, parse};
pub use fetch::{Courier, Trouble, download};
pub use inbox::{Inbox, sha256_of};

/// How often the cloud is asked.
const POLL: Duration = Duration::from_secs(300);
/// A bundle is some MiB; the largest networks that a gateway runs have some hundred.
const MAX_BUNDLE: u64 = 256 << 20;
/// What delivered bundles may take on disk together.
const QUOTA: u64 = 2 << 30;
/// Within what a bundle is judged: the service's unit leaves the whole agent 1 GiB, and what goes beyond that
/// would take the agent with it.
const JUDGE_MEMORY: u64 = 512 << 20;
const JUDGE_TIME: Duration = Duration::from_secs(60);
/// How long a judged bundle runs in the shadow, and how long it is watched, where nothing else is said.
const SHADOW: Duration = Duration::from_secs(3600);
const BAKE: Duration = Duration::from_secs(1800);
/// The longest stage.
const MAX_STAGE: Duration = Duration::from_secs(90 * 86_400);

/// The part of `[models]` about where new ones come from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the desired state is asked for.
    pub desired: Option<Address>,
    /// The token that goes there, and to nobody else.
    pub token: Option<Secret>,
    /// For `https`.
    pub tls: Tls,
    /// How often it is asked for.
    pub poll: Duration,
    /// A folder in which bundles or a desired state are placed.
    pub inbox: Option<PathBuf>,
    /// The largest archive, in bytes; unpacked it may be twice that.
    pub max_bundle: u64,
    /// What the library may take on disk, in bytes.
    pub quota: u64,
    /// Of the process in which a bundle is judged: address space in bytes, and time.
    pub judge: (u64, Duration),
    /// Whether bundles may come from this host and from link-local addresses. Those of the desired state's own
    /// origin always may.
    pub local_addresses: bool,
    /// How a bundle is taken into use where the desired state does not say.
    pub rollout: Rollout,
}

impl Config {
    /// Reads the section; `None` when no models are to come in. `cloud` lends its token and
    /// certificates to its own origin.
    pub fn read(s: &Section<'_>, cloud: Option<&cloud::Config>) -> Option<Config> {
        let insecure = s.boolean("insecure").unwrap_or(false);
        let desired = s.string("desired").and_then(|text| address(s, &text, insecure));
        let of_cloud = cloud.filter(|c| desired.as_ref().is_some_and(|d| d.0.origin() == c.url.0.origin()));
        let (token, tls) = (s.secret("token"), Tls::read(s));
        let token = token.or_else(|| of_cloud.and_then(|c| c.auth.token().cloned()));
        let tls = if s.has("tls") { tls } else { of_cloud.map_or(tls, |c| c.tls.clone()) };
        let inbox = s.path_of("inbox");
        let stage = |key: &str, usual| {
            let given = s.duration(key).unwrap_or(usual);
            if given > MAX_STAGE {
                s.problem(key, "is longer than 90d");
            }
            given.min(MAX_STAGE)
        };
        let policies = [("rollback", FailurePolicy::Rollback), ("report", FailurePolicy::Report)];
        let config = Config {
            token,
            tls,
            poll: s.duration("poll").unwrap_or(POLL).max(Duration::from_millis(100)),
            max_bundle: s.size("max_bundle").unwrap_or(MAX_BUNDLE),
            quota: s.size("quota").unwrap_or(QUOTA),
            judge: (s.size("judge_memory").unwrap_or(JUDGE_MEMORY), s.duration("judge_time").unwrap_or(JUDGE_TIME)),
            local_addresses: s.boolean("local_addresses").unwrap_or(false),
            rollout: Rollout {
                shadow: stage("shadow", SHADOW),
                canary: s.strings("canary").unwrap_or_default(),
                bake: stage("bake", BAKE),
                failure_policy: s.choice("failure_policy", &policies).unwrap_or_default(),
            },
            desired,
            inbox,
        };
        (config.desired.is_some() || config.inbox.is_some()).then_some(config)
    }
}

fn address(s: &Section<'_>, text: &str, insecure: bool) -> Option<Address> {
    let url = Url::parse(text).ok().filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host());
    let Some(url) = url else {
        s.problem("desired", "is not an http:// or https:// address");
        return None;
    };
    if url.scheme() == "http" && !cloud::config::is_loopback(&url) && !insecure {
        s.problem("desired", "sends the token over the network in the clear; use https://, or set `insecure = true`");
    }
    Some(Address(url))
}
