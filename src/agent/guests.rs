//! Models that an admin loads for guests of the Open Inference Protocol: signed bundles of `models_dir`
//! that no machine uses. They are judged before they are loaded, and keep nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::config::Config;
use crate::metrics::lock;
use crate::model::contents::Contents;
use crate::model::library::plain;
use crate::model::trust::Trust;
use crate::model::{Model, SelfTest, judge, signature};

/// Models beside those in use: each takes memory for as long as it is loaded.
const MAX_LOADED: usize = 8;
/// A request has 10 s for its answer. The service's unit leaves the whole agent 1 GiB.
const LIMITS: judge::Limits = judge::Limits { memory: 512 << 20, time: Duration::from_secs(8) };

/// See the module.
pub struct Guests {
    models_dir: PathBuf,
    trust: Trust,
    loaded: Mutex<BTreeMap<String, Arc<Model>>>,
}

impl Guests {
    /// None is loaded.
    pub fn new(config: &Config) -> Guests {
        Guests { models_dir: config.agent.models_dir.clone(), trust: config.trust.clone(), loaded: Mutex::default() }
    }

    /// Those that are loaded.
    pub fn all(&self) -> Vec<Arc<Model>> {
        lock(&self.loaded).values().cloned().collect()
    }

    /// Loads one. One that machines use is there already. Blocks.
    ///
    /// # Errors
    /// Why it cannot be loaded.
    pub fn load(&self, name: &str, in_use: bool) -> Result<(), String> {
        if in_use {
            return Ok(());
        }
        let dir = self.models_dir.join(name);
        if !plain(name) || !dir.is_dir() {
            return Err(format!("there is no bundle {name:?} in models_dir"));
        }
        let failed = |e: &dyn std::fmt::Display| e.to_string();
        let contents = Contents::read_all(&dir).map_err(|e| failed(&e))?;
        signature::verify_contents(&contents, &self.trust.keys).map_err(|e| failed(&e))?;
        if !lock(&self.loaded).contains_key(name) && lock(&self.loaded).len() >= MAX_LOADED {
            return Err(format!("{MAX_LOADED} models are loaded already; unload one"));
        }
        judge::apart(judge::own_program(), &dir, &LIMITS, &|| false).map_err(|e| failed(&e))?;
        let model = Model::from_contents(contents, SelfTest::Done).map_err(|e| failed(&e))?;
        if &**model.name() != name {
            return Err(format!("the bundle {name:?} says that its name is {:?}", model.name()));
        }
        lock(&self.loaded).insert(name.to_owned(), model);
        Ok(())
    }

    /// Unloads one.
    ///
    /// # Errors
    /// When it is not loaded, or machines use it.
    pub fn unload(&self, name: &str, in_use: bool) -> Result<(), String> {
        if in_use {
            return Err(format!("{name:?} is used by machines; the config says which"));
        }
        lock(&self.loaded).remove(name).map(|_| ()).ok_or_else(|| format!("{name:?} is not loaded"))
    }
}
