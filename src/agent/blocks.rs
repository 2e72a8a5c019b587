//! From `[[machine]]` blocks to what the engine runs: models are loaded once each and bound.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wildmatch::WildMatch;

use super::engine::Block;
use crate::alarm::LimitConfig;
use crate::config::{Config, Machine};
use crate::model::calibration::Limit;
use crate::model::trust::Trust;
use crate::model::{Model, ModelError, SelfTest};
use crate::pipeline::Layout;
use crate::settings::{Problem, hint};
use crate::types::Name;

/// The grid of machines without a model.
const PLAIN_RATE: Duration = Duration::from_secs(1);

/// Loaded models by name.
pub type Models = BTreeMap<String, Arc<Model>>;

/// Loads every model that a block names and binds it. All problems are told at once.
pub fn build(config: &Config) -> Result<(Vec<Block>, Models), Vec<Problem>> {
    let mut models = BTreeMap::new();
    let mut problems = Vec::new();
    for machine in &config.machines {
        let Some(name) = &machine.model else { continue };
        if models.contains_key(name) {
            continue;
        }
        match load(&config.agent.models_dir, name, &config.trust) {
            Ok(model) => {
                models.insert(name.clone(), model);
            }
            Err(message) => problems.push(Problem::new(machine.line, message)),
        }
    }
    let mut blocks = Vec::new();
    for machine in &config.machines {
        let model = machine.model.as_ref().and_then(|name| models.get(name)).cloned();
        match bind(machine, model) {
            Ok(block) => blocks.push(block),
            Err(message) => problems.push(Problem::new(machine.line, message)),
        }
    }
    problems.sort();
    if problems.is_empty() { Ok((blocks, models)) } else { Err(problems) }
}

fn load(dir: &Path, name: &str, trust: &Trust) -> Result<Arc<Model>, String> {
    if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
        return Err(format!("machine.model: {name:?} is not the name of a bundle"));
    }
    let path = dir.join(name);
    if !path.is_dir() {
        let there: Vec<String> = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        let near = hint(name, &there.iter().map(String::as_str).collect::<Vec<_>>());
        return Err(format!("machine.model: there is no bundle {}{near}", path.display()));
    }
    let unusable = |e: ModelError| match e {
        ModelError::Signature(why) => format!("machine.model: {why}"),
        e => format!("machine.model: {}: {e}", path.display()),
    };
    let admitted = trust.admit(&path).map_err(unusable)?;
    Model::from_contents(admitted.contents, SelfTest::Run).map_err(unusable)
}

fn bind(machine: &Machine, model: Option<Arc<Model>>) -> Result<Block, String> {
    let (channels, steps, stride, rate) = match &model {
        None => (Vec::new(), 1, 1, PLAIN_RATE),
        Some(m) => (bound_channels(machine, m)?, m.manifest().steps, m.manifest().stride, m.manifest().rate),
    };
    let layout = Layout::new(&machine.pipeline, channels, steps, stride, rate);
    let limit = limit(&machine.alarm.limit, layout.rate, steps.max(stride));
    if let (Limit::PValue(_), Some(m)) = (limit, &model)
        && m.calibration().is_empty()
    {
        return Err(format!(
            "machine.alarm: model {} has no reference scores; give a `threshold` on its score",
            m.name()
        ));
    }
    Ok(Block {
        matcher: WildMatch::new(&machine.matcher),
        model,
        layout: Arc::new(layout),
        limit,
        alarm: machine.alarm.clone(),
        suppress: machine.suppress.clone(),
    })
}

/// What verdicts are held against. Overlapping windows say much the same: a budget counts fresh
/// ones only, one every `fresh` steps of `rate` nanoseconds.
pub fn limit(config: &LimitConfig, rate: i64, fresh: usize) -> Limit {
    let fresh = Duration::from_nanos(rate as u64) * u32::try_from(fresh).unwrap_or(u32::MAX);
    match *config {
        LimitConfig::Score(s) => Limit::Score(s),
        LimitConfig::Budget { alarms, period } => Limit::from_budget(alarms, period, fresh),
    }
}

/// The signal of each channel: the channel's own name unless `[machine.channels]` says otherwise.
fn bound_channels(machine: &Machine, model: &Model) -> Result<Vec<Name>, String> {
    let known: Vec<&str> = model.channel_names().iter().map(|c| &**c).collect();
    if let Some((unknown, _)) = machine.channels.iter().find(|(c, _)| !known.contains(&c.as_str())) {
        let near = hint(unknown, &known);
        return Err(format!("machine.channels: model {} has no channel {unknown:?}{near}", model.name()));
    }
    let bound = known.iter().map(|channel| {
        let named = machine.channels.iter().find(|(c, _)| c == channel);
        Name::from(named.map_or(*channel, |(_, signal)| signal.as_str()))
    });
    Ok(bound.collect())
}
