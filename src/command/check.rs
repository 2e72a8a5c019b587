//! `andon check`: every mistake of a config at once, models loaded and bound, and with `--connect`
//! a knock at every door: logging in to brokers and the cloud, reaching devices.

use std::net::ToSocketAddrs;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;

use super::ConfigFile;
use crate::agent::blocks;
use crate::agent::engine::Block;
use crate::config::{Config, Invalid, Needs};
use crate::forward;
use crate::forward::budget::MICRO;
use crate::mqtt::{self, Filter};
use crate::source::modbus::budget;
use crate::source::mqtt::Subscription;

mod pending;

use pending::Pending;

/// How long a broker, device or cloud has to answer the knock.
const KNOCK: Duration = Duration::from_secs(5);

/// See `andon check --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Also dial brokers, devices and the cloud
    #[arg(long)]
    connect: bool,
}

/// Prints every problem, or what the config amounts to.
pub fn run(options: &Options) -> Result<()> {
    let config = options.file.load(Needs { source: true })?;
    let path = options.file.config.clone();
    let (built, models) = blocks::build(&config).map_err(|problems| Invalid { path: path.clone(), problems })?;
    refuse_pending(&config, &built)?;
    println!("{}: ok", path.display());
    println!("  site {}, agent {}, data in {}", config.agent.site, config.agent.id, config.agent.data_dir.display());
    for (block, machine) in built.iter().zip(&config.machines) {
        let model = machine.model.as_deref().unwrap_or("none");
        let layout = &block.layout;
        let window = Duration::from_nanos(layout.rate as u64) * layout.steps as u32;
        println!(
            "  machines {:?}: model {model}, {} channels, window {window:?}",
            machine.matcher,
            layout.channels.len()
        );
        warn_of_tail(block.model.as_deref(), block.limit.threshold(), machine);
        let pending = Pending::of(machine, layout, config.agent.max_machines);
        if let Some(warning) = pending.warning() {
            println!("    warning: {warning}");
        }
    }
    for model in models.values() {
        let m = model.manifest();
        println!("  model {} version {}: self-test passed, sha256 {}", m.name, m.version, model.digest());
    }
    show_lines(&config);
    for light in &config.source.lights {
        println!("  writes: {}", light.summary());
    }
    show_second_opinions(&config, &built);
    if options.connect { connect(&config, &built) } else { Ok(()) }
}

/// One machine alone must not need more room for late readings than there is for all.
fn refuse_pending(config: &Config, built: &[Block]) -> Result<(), Invalid> {
    let pending = |(block, machine): (&Block, _)| {
        Pending::of(machine, &block.layout, config.agent.max_machines).refusal(machine, &block.layout)
    };
    let problems: Vec<_> = built.iter().zip(&config.machines).filter_map(pending).collect();
    if problems.is_empty() { Ok(()) } else { Err(Invalid { path: config.path.clone(), problems }) }
}

/// How often a larger model will be asked while all is well: by what p-values mean, that can be told.
fn show_second_opinions(config: &Config, blocks: &[Block]) {
    let Some(inference) = config.cloud.as_ref().and_then(|c| c.inference.as_ref()) else { return };
    let (policy, url) = (&inference.policy, &inference.url);
    let [low, high] = policy.escalate;
    println!("  second opinions: of {:?} at {url:?}, for p from {low} to {high}", &*policy.model);
    for (block, machine) in blocks.iter().zip(&config.machines) {
        let Some(model) = &block.model else { continue };
        if model.calibration().is_empty() {
            println!("    warning: model {} has no reference scores: nothing of it is ever uncertain", model.name());
            continue;
        }
        let windows = 86_400e9 / (block.layout.rate as f64 * block.layout.stride as f64);
        let cost = policy.prices.cost(block.layout.steps * block.layout.channels.len()) as f64 / MICRO;
        let a_day = windows * (high - low + policy.audit_fraction) * cost;
        let budget = policy.budget.limit as f64 / MICRO * 86_400.0 / policy.budget.period.as_secs_f64();
        println!(
            "    each healthy machine of {:?}: {:.0} windows a day, {a_day:.0} units of {budget:.0}",
            machine.matcher, windows
        );
    }
}

/// How busy serial lines will be. Too busy is a warning: it works, with polls left out.
fn show_lines(config: &Config) {
    for load in budget::loads(&config.source.modbus) {
        let (path, part, assumed) = (&load.path, load.part() * 100.0, budget::TURN_ROUND);
        println!("  line {path}: {part:.0} % of its time, if devices answer within {assumed:?}");
        for problem in load.problems() {
            println!("    warning: {problem}");
        }
    }
}

fn warn_of_tail(model: Option<&crate::model::Model>, p: f64, machine: &crate::config::Machine) {
    let budget = matches!(machine.alarm.limit, crate::alarm::LimitConfig::Budget { .. });
    if let Some(m) = model.filter(|m| budget && m.calibration().extrapolates(p)) {
        let n = m.calibration().len();
        println!("    its budget means p <= {p:.1e}; with {n} reference scores that rests on a fitted tail");
    }
}

fn connect(config: &Config, blocks: &[Block]) -> Result<()> {
    let mut shut = log_in(config)? + ask_larger_model(config, blocks)?;
    let mut doors: Vec<(String, String)> = Vec::new();
    for s in &config.source.modbus {
        doors.push((format!("source {}", s.name), s.url.to_string()));
    }
    for (who, url) in doors {
        match knock(&url) {
            Ok(()) => println!("  {who}: {url} answers"),
            Err(e) => {
                shut += 1;
                println!("  {who}: {url} cannot be reached: {e}");
            }
        }
    }
    ensure!(shut == 0, "{shut} of the addresses above cannot be used");
    Ok(())
}

/// Brokers and the cloud, as the daemon would: with TLS, password and token. How many did not let us in.
fn log_in(config: &Config) -> Result<usize> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut shut = 0;
    for source in &config.source.mqtt {
        let filters: Vec<Filter> = source.subscriptions.iter().map(Subscription::filter).collect();
        for address in &source.connection.urls {
            let who = format!("source {}: {address}", source.name);
            let answer = runtime.block_on(mqtt::probe(&source.connection, address, &filters));
            match answer {
                Ok(refused) if refused.is_empty() => println!("  {who} answers and lets us in"),
                Ok(refused) => {
                    shut += 1;
                    println!("  {who} lets us in, but refuses to subscribe {}", refused.join(", "));
                }
                Err(e) => {
                    shut += 1;
                    println!("  {who} cannot be used: {e:#}{}", advice(&format!("{e:#}"), address));
                }
            }
        }
    }
    for sink in &config.sinks {
        match runtime.block_on(forward::sinks::probe(sink, &config.agent.id)) {
            Ok(said) => println!("  sink {}: {said}", sink.name),
            Err(e) => {
                shut += 1;
                println!("  sink {}: cannot be used: {e}", sink.name);
            }
        }
    }
    if let Some(cloud) = &config.cloud {
        let url = format!("{:?}", cloud.url);
        match runtime.block_on(forward::cloud::probe(cloud)) {
            Ok(401 | 403) => {
                shut += 1;
                println!("  cloud: {url} answers, and refuses what we log in with: see `[cloud]`");
            }
            Ok(_) => println!("  cloud: {url} answers"),
            Err(e) => {
                shut += 1;
                println!("  cloud: cannot be used: {e:#}");
            }
        }
    }
    Ok(shut)
}

/// Whether the larger model is there and takes the windows of our machines. How many do not let us in.
fn ask_larger_model(config: &Config, blocks: &[Block]) -> Result<usize> {
    let Some(inference) = config.cloud.as_ref().and_then(|c| c.inference.as_ref()) else { return Ok(0) };
    let bound = blocks.iter().zip(&config.machines).filter(|(b, _)| b.model.is_some());
    let windows: Vec<(String, usize, usize)> =
        bound.map(|(b, m)| (format!("{:?}", m.matcher), b.layout.steps, b.layout.channels.len())).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (shut, said) = match runtime.block_on(forward::inference::probe(inference, &windows)) {
        Ok(said) => (0, said),
        Err(e) => (1, format!("cannot be used: {e:#}")),
    };
    println!("  second opinions: {said}");
    Ok(shut)
}

/// What to look at, where the reason alone does not say it.
fn advice(reason: &str, address: &mqtt::Address) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|w| reason.contains(w));
    if has(&["BadUserNamePassword", "BadUsernamePassword", "NotAuthorized"]) {
        ": see `username` and `password_file`, and what the broker lets this client id do"
    } else if has(&["UnknownIssuer"]) {
        ": the broker's certificate is not signed by what `tls.ca` names"
    } else if has(&["NotValidForName"]) {
        ": the broker's certificate is for another name than the url's"
    } else if has(&["Expired"]) {
        ": a certificate has expired, or this gateway's clock is wrong"
    } else if has(&["CertificateRequired", "HandshakeFailure", "BadCertificate", "UnknownCA", "CertificateUnknown"]) {
        ": the broker does not take our certificate: see `tls.cert` and `tls.key`"
    } else if address.tls && has(&["InvalidContentType", "corrupt message", "TLS: I/O"]) {
        ": if that port does not speak TLS, use mqtt://"
    } else if !address.tls
        && has(&["Connection closed by peer", "connection closed", "Connection reset", "ConnectionAborted"])
    {
        ": if that port speaks TLS, use mqtts://"
    } else {
        ""
    }
}

/// Opens and closes a TCP connection to where the URL points; of a serial device, looks whether it
/// is there and ours to use.
fn knock(url: &str) -> std::io::Result<()> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme == "rtu" {
        // Not opened: that alone moves the control lines of some adapters.
        let path = rest.split('?').next().unwrap_or(rest);
        return Ok(rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK)?);
    }
    let host = rest.split(['/', '?']).next().unwrap_or(rest);
    let port = if scheme == "https" { 443 } else { 80 };
    let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
    let authority = if has_port { host.to_owned() } else { format!("{host}:{port}") };
    let mut last = std::io::Error::other("the name has no address");
    for address in authority.to_socket_addrs()? {
        match std::net::TcpStream::connect_timeout(&address, KNOCK) {
            Ok(_) => return Ok(()),
            Err(e) => last = e,
        }
    }
    Err(last)
}
