//! A changed config file taken over while the agent runs: machines, their models and alarms, the
//! dashboard's token and names, and the log's level. Sources, store and sinks hold connections and
//! data; what changes there is named and waits for a restart. Nothing is touched until all is valid.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};

use super::bands::Bands;
use super::blocks::{self, Models};
use super::engine::Versions;
use super::feed::Order;
use super::guests::Guests;
use super::input::Running;
use super::rollout;
use crate::config::{Config, Invalid, Needs};
use crate::metrics::lock;
use crate::model::Model;
use crate::model::bundle::Tensor;
use crate::types::{Name, Time};
use crate::{logging, web};

/// What is taken over at once: these tables and keys, and all below them.
const LIVE: &[&str] = &["machine", "log", "web.token", "web.token_file", "web.hosts"];

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Keys that have changed and are in force.
    pub applied: Vec<String>,
    /// Keys that have changed since the start and need a restart.
    pub waiting: Vec<String>,
}

impl fmt::Display for Reloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.applied.as_slice() {
            [] => f.write_str("models and token read again, no other change")?,
            keys => write!(f, "in force: {}", keys.join(", "))?,
        }
        match self.waiting.as_slice() {
            [] => Ok(()),
            keys => write!(f, "; needs a restart: {}", keys.join(", ")),
        }
    }
}

/// Keeps what is in force.
pub struct Reloader {
    path: PathBuf,
    /// The file as it was at the start: what needs a restart is held against it.
    started: Keys,
    /// The file as it was last taken over.
    applied: Keys,
    models: Arc<Mutex<Models>>,
    bands: Arc<Mutex<Bands>>,
    /// Loaded for guests only.
    guests: Arc<Guests>,
    digest: String,
    web: watch::Sender<web::Config>,
    orders: mpsc::Sender<Order>,
    /// As the engine has them.
    versions: watch::Receiver<Vec<Versions>>,
}

impl Reloader {
    /// For what runs with this config and these models.
    pub fn new(
        config: &Config,
        models: Models,
        bands: Bands,
        versions: watch::Receiver<Vec<Versions>>,
        orders: mpsc::Sender<Order>,
    ) -> Reloader {
        let keys = keys(&config.text);
        Reloader {
            path: config.path.clone(),
            started: keys.clone(),
            applied: keys,
            models: Arc::new(Mutex::new(models)),
            bands: Arc::new(Mutex::new(bands)),
            guests: Arc::new(Guests::new(config)),
            digest: digest(config),
            web: watch::channel(config.web.clone()).0,
            orders,
            versions,
        }
    }

    /// Models loaded.
    pub fn n_models(&self) -> usize {
        lock(&self.models).len()
    }

    /// Tells of the models in force.
    pub fn describe_models(&self) -> web::StatusFn {
        let (models, versions) = (self.models.clone(), self.versions.clone());
        Arc::new(move || {
            let versions = versions.borrow();
            let of = |m: &Arc<Model>| match versions.iter().find(|v| v.name == *m.name()) {
                Some(v) => describe(&v.model, rollout::describe(v)),
                None => describe(m, json!({ "stage": "active" })),
            };
            lock(&models).values().map(of).collect()
        })
    }

    /// The models in use: delivered ones go before those that the config names.
    fn in_use(&self) -> impl Fn() -> Vec<Arc<Model>> + Clone + use<> {
        let (models, versions) = (self.models.clone(), self.versions.clone());
        move || {
            let versions = versions.borrow();
            let of = |m: &Arc<Model>| versions.iter().find(|v| v.name == *m.name()).map_or(m, |v| &v.model).clone();
            lock(&models).values().map(of).collect()
        }
    }

    /// Where signals are while their machine is healthy, by the models in force.
    pub fn bands(&self) -> web::BandsFn {
        let bands = self.bands.clone();
        Arc::new(move |machine| lock(&bands).get(machine))
    }

    /// Lets guests use the models in force, and those that an admin loads for them.
    pub fn serve_models(&self) -> web::inference::Models {
        let guests = self.guests.clone();
        let all = {
            let (in_use, guests) = (self.in_use(), guests.clone());
            move || -> Vec<Arc<Model>> { in_use().into_iter().chain(guests.all()).collect() }
        };
        let (list, run, used) = (all.clone(), all, self.models.clone());
        let list = move || list().iter().map(|m| metadata(m)).collect();
        let load = move |name: &str, load: bool| {
            let in_use = lock(&used).values().any(|m| &**m.name() == name);
            if load { guests.load(name, in_use) } else { guests.unload(name, in_use) }
        };
        let run = move |name: &str, window: web::inference::Tensor| {
            let model = run().into_iter().find(|m| &**m.name() == name);
            let model = model.ok_or_else(|| format!("the model {name:?} is gone"))?;
            let outputs = model.infer(&window.data).map_err(|e| e.to_string())?;
            Ok(outputs.into_iter().map(|(name, len, data)| tensor(&model, name, len, data)).collect())
        };
        web::inference::Models::new(Arc::new(list), Arc::new(run)).with_load(Arc::new(load))
    }

    /// The dashboard's settings in force.
    pub fn web_settings(&self) -> watch::Receiver<web::Config> {
        self.web.subscribe()
    }

    /// Tells the engine what runs, for the audit log.
    pub async fn tell_what_runs(&self, who: &str) {
        let running = self.running(who, &self.digest, &lock(&self.models));
        // It fails only when the engine has ended, which says so itself.
        let _ = self.orders.send(Order::Running(running)).await;
    }

    fn running(&self, who: &str, digest: &str, models: &Models) -> Running {
        let what = |m: &Arc<Model>| format!("version {} {:.16}", m.manifest().version, &**m.digest());
        Running {
            at: Time::now(),
            who: who.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: digest.to_owned(),
            models: models.iter().map(|(name, m)| (name.clone(), what(m))).collect(),
        }
    }

    /// Reads and checks the file and loads its models, then puts in force what needs no restart.
    pub async fn reload(&mut self, who: &str) -> Result<Reloaded> {
        let path = self.path.clone();
        let (config, blocks, models) = tokio::task::spawn_blocking(move || read(&path)).await??;
        let keys = keys(&config.text);
        let reloaded = Reloaded {
            applied: changed(&self.applied, &keys).into_iter().filter(|k| is_live(k)).collect(),
            waiting: changed(&self.started, &keys).into_iter().filter(|k| !is_live(k)).collect(),
        };
        let digest = digest(&config);
        let running = self.running(who, &digest, &models);
        let bands = Bands::of(&blocks);
        let (done_tx, done) = oneshot::channel();
        let gone = || anyhow!("the engine has ended");
        self.orders.send(Order::Reconfigure(blocks, running, done_tx)).await.map_err(|_| gone())?;
        done.await.map_err(|_| gone())?.map_err(|why| anyhow!("machines cannot go on with it: {why}"))?;
        logging::set(&config.log);
        self.web.send_replace(config.web.clone());
        *lock(&self.models) = models;
        *lock(&self.bands) = bands;
        (self.applied, self.digest) = (keys, digest);
        Ok(reloaded)
    }
}

fn read(path: &Path) -> Result<(Config, Vec<super::engine::Block>, Models)> {
    let config = Config::load(path, Needs { source: true })?;
    let (blocks, models) = blocks::build(&config).map_err(|problems| Invalid { path: path.into(), problems })?;
    Ok((config, blocks, models))
}

/// Tells one configuration from another. Secrets show as such, so nothing can be learnt from it.
fn digest(c: &Config) -> String {
    let text = format!(
        "{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}{:?}",
        c.agent,
        c.source,
        c.trust,
        c.delivery,
        c.report_every,
        c.machines,
        c.store,
        c.cloud,
        c.sinks,
        c.publish,
        c.web,
        c.log
    );
    crate::model::bundle::sha256(text.as_bytes())[..16].to_owned()
}

/// The settings of a file: dotted keys, without the values of tables.
type Keys = BTreeMap<String, toml::Value>;

fn keys(text: &str) -> Keys {
    fn walk(prefix: &str, value: &toml::Value, out: &mut Keys) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    walk(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, out);
                }
            }
            toml::Value::Array(list) if list.iter().any(toml::Value::is_table) => {
                for (i, value) in list.iter().enumerate() {
                    // Blocks are told apart as people do: by their names.
                    let named = ["name", "match", "topic"].iter().find_map(|k| value.get(k)?.as_str());
                    let name = named.map_or_else(|| (i + 1).to_string(), |n| format!("{n:?}"));
                    walk(&format!("{prefix}[{name}]"), value, out);
                }
            }
            plain => drop(out.insert(prefix.to_owned(), plain.clone())),
        }
    }
    let mut out = Keys::new();
    if let Ok(table) = text.parse::<toml::Table>() {
        walk("", &toml::Value::Table(table), &mut out);
    }
    out
}

fn changed(old: &Keys, new: &Keys) -> Vec<String> {
    let all: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    all.into_iter().filter(|k| old.get(*k) != new.get(*k)).cloned().collect()
}

fn is_live(key: &str) -> bool {
    let below = |of: &str| key.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
    LIVE.iter().any(|of| below(of))
}

/// Metadata as the Open Inference Protocol has it. What a model keeps from window to window is not
/// shown: guests' windows stand alone.
fn metadata(model: &Model) -> Value {
    let m = model.manifest();
    let tensors = |all: &[Tensor], fits: fn(&str) -> bool| -> Vec<Value> {
        let json = |t: &Tensor| json!({"name": t.name, "datatype": t.datatype, "shape": t.shape});
        all.iter().filter(|t| fits(&t.name)).map(json).collect()
    };
    json!({
        "name": m.name, "versions": [m.version], "platform": "onnx_onnxv1",
        "inputs": tensors(&m.inputs, |name| name == "window"),
        "outputs": tensors(&m.outputs, |name| !name.starts_with("state_")),
    })
}

/// An output with the shape that the manifest declares, or flat where that does not fit.
fn tensor(model: &Model, name: String, len: usize, data: Vec<f32>) -> web::inference::Tensor {
    let windows = data.len().checked_div(len).unwrap_or(0);
    let declared = model.manifest().outputs.iter().find(|t| t.name == name);
    let rest: Option<Vec<usize>> =
        declared.and_then(|t| t.shape.iter().skip(1).map(|n| usize::try_from(*n).ok()).collect());
    let rest = rest.filter(|rest| rest.iter().product::<usize>() == len).unwrap_or_else(|| vec![len]);
    web::inference::Tensor { name, shape: [vec![windows], rest].concat(), data }
}

/// A model as the dashboard shows it, with how it stands.
fn describe(model: &Model, standing: Value) -> Value {
    let m = model.manifest();
    let channels: Vec<&Name> = model.channel_names().iter().collect();
    let mut out = json!({
        "name": m.name, "version": m.version, "digest": &**model.digest(), "channels": channels,
        "steps": m.steps, "stride": m.stride, "rate_ms": m.rate.as_secs_f64() * 1e3,
        "reference_scores": model.calibration().len(),
    });
    if let (Value::Object(out), Value::Object(standing)) = (&mut out, standing) {
        out.extend(standing);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_changed_are_named_as_people_write_them() {
        let old = keys("[agent]\nsite = \"a\"\n[[machine]]\nmatch = \"pump-*\"\n[machine.alarm]\nseverity = 1\n");
        let new = keys(
            "[agent]\nsite = \"b\"\n[[machine]]\nmatch = \"pump-*\"\n[machine.alarm]\nseverity = 2\nlatch = true\n[log]\nlevel = \"warn\"\n[web]\ntoken = \"x\"\nlisten = \"off\"\n",
        );
        let all = changed(&old, &new);
        let (live, waiting): (Vec<String>, Vec<String>) = all.into_iter().partition(|k| is_live(k));
        let machine = "machine[\"pump-*\"].alarm";
        assert_eq!(
            live,
            ["log.level".into(), format!("{machine}.latch"), format!("{machine}.severity"), "web.token".into()]
        );
        assert_eq!(waiting, ["agent.site", "web.listen"]);
        assert!(!is_live("machines") && !is_live("web") && is_live("web.token_file"));
    }
}
