//! The versions of each model: which is in use, which is on its way, and what is done about it. Steps
//! that bundles take become records here.

use super::*;
use crate::model::drift::{Monitor, Report};
use crate::model::rollout::{Limits, Trial};
use crate::types::{Measured, ModelNews, ModelStep, Refusal, Release, Rollout, Stage};

/// Delivered versions of each model that are kept in memory: in use, before that, on its way, and one that
/// is about to be.
const MOST_SHELVED: usize = 4;

/// A model that machines use, with its versions.
pub(super) struct Line {
    pub(super) state: LineState,
    /// As the config names it.
    base: Arc<Model>,
    /// In use, but for machines that have the candidate already.
    pub(super) incumbent: Arc<Model>,
    /// On its way; its trial is in the state.
    pub(super) candidate: Option<Arc<Model>>,
}

/// What of a line has to survive.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct LineState {
    /// Digest of the configured bundle: when somebody puts another there, that is what counts.
    base: Name,
    /// The delivered bundle in use; `None`: the configured one.
    active: Option<Release>,
    /// The delivered bundle that was in use before.
    previous: Option<Release>,
    /// The candidate's course.
    pub(super) trial: Option<Trial>,
    /// The last step that any bundle of this model took here.
    last: Option<ModelStep>,
    /// Since when the version in use is.
    since: Time,
    /// How it is doing.
    pub(super) monitor: Monitor,
}

/// How a model stands, for those outside.
#[derive(Clone, Debug)]
pub struct Versions {
    /// Its name.
    pub name: Name,
    /// What is in use.
    pub model: Arc<Model>,
    /// The delivered bundle in use; `None`: the configured one.
    pub active: Option<Release>,
    /// Since when; zero: since the beginning.
    pub since: Time,
    /// The candidate's course.
    pub trial: Option<Trial>,
    /// The last step that any bundle of this model took.
    pub last: Option<ModelStep>,
    /// The last report on how it does.
    pub report: Option<Report>,
}

/// A report on a model in service.
#[derive(Clone, Debug)]
pub struct Drift {
    /// The model.
    pub model: Name,
    /// The version in use.
    pub version: String,
    /// What was found.
    pub report: Report,
}

impl Line {
    fn new(base: Arc<Model>) -> Line {
        let state = LineState { base: base.digest().clone(), ..LineState::default() };
        Line { state, incumbent: base.clone(), base, candidate: None }
    }

    /// Whose verdicts a machine gets.
    pub(super) fn heard(&self, machine: &str) -> &Arc<Model> {
        let candidate = self.candidate.as_ref().zip(self.state.trial.as_ref());
        candidate.filter(|(_, trial)| trial.publishes(machine)).map_or(&self.incumbent, |(model, _)| model)
    }
}

impl Engine {
    /// Has these delivered models at hand; to be told before anything is restored or replayed that
    /// they had a part in.
    pub fn stock(&mut self, models: impl IntoIterator<Item = Arc<Model>>) {
        self.shelf.extend(models.into_iter().map(|m| (release_of(&m), m)));
    }

    /// Reports on models in service are made this often.
    pub fn report_every(&mut self, interval: Duration) {
        self.report_every = interval;
    }

    /// How the models stand.
    pub fn versions(&self) -> Vec<Versions> {
        let of = |(name, line): (&Name, &Line)| Versions {
            name: name.clone(),
            model: line.incumbent.clone(),
            active: line.state.active.clone(),
            since: line.state.since,
            trial: line.state.trial.clone(),
            last: line.state.last.clone(),
            report: line.state.monitor.last().cloned(),
        };
        self.lines.iter().map(of).collect()
    }

    /// Delivered bundles that are to be used but are not at hand.
    pub fn missing(&self) -> Vec<Release> {
        let of = |l: &Line| [l.state.active.clone(), l.state.trial.as_ref().map(|t| t.release.clone())];
        self.lines.values().flat_map(of).flatten().filter(|r| !self.shelf.contains_key(r)).collect()
    }

    /// Whether a model's candidate can be given its next step, or the version before be taken back, now.
    pub fn may_change(&self, model: &str, promote: bool) -> Result<(), Refusal> {
        let line = self.lines.iter().find(|(name, _)| ***name == *model).map(|(_, line)| line);
        let line = line.ok_or(Refusal::NoSuchAlarm)?;
        match (line.candidate.is_some(), promote, line.state.active.is_some()) {
            (true, ..) | (false, false, true) => Ok(()),
            (false, true, _) => Err(Refusal::NotNow("it has no new version on its way".into())),
            (false, false, false) => Err(Refusal::NotNow("the version that the config names is in use".into())),
        }
    }

    /// Whether any machine may have a model of this name.
    pub fn has_model(&self, name: &str) -> bool {
        self.lines.keys().any(|n| **n == *name)
    }

    /// Candidates on their way.
    pub fn trials(&self) -> impl Iterator<Item = &Trial> {
        self.lines.values().filter_map(|l| l.state.trial.as_ref())
    }

    /// One line for each model that a block names, as `saved` has it.
    pub(super) fn line_up(&mut self, saved: BTreeMap<Name, LineState>) {
        self.lines.clear();
        for model in self.blocks.iter().filter_map(|b| b.model.as_ref()) {
            self.lines.entry(model.name().clone()).or_insert_with(|| Line::new(model.clone()));
        }
        for (name, state) in saved {
            let Some(line) = self.lines.get_mut(&name).filter(|l| l.state.base == state.base) else { continue };
            let find = |release: &Release| self.shelf.get(release).cloned();
            line.incumbent = state.active.as_ref().and_then(find).unwrap_or_else(|| line.base.clone());
            line.candidate = state.trial.as_ref().and_then(|t| find(&t.release));
            line.state = state;
        }
    }

    pub(super) fn line_states(&self) -> BTreeMap<Name, LineState> {
        self.lines.iter().map(|(name, line)| (name.clone(), line.state.clone())).collect()
    }

    /// The versions of the model that a unit has.
    pub(super) fn line(&self, i: usize) -> Option<&Line> {
        self.lines.get(self.blocks[self.units[i].block].model.as_ref()?.name())
    }

    /// The same, to be changed.
    pub(super) fn line_mut(&mut self, i: usize) -> Option<&mut Line> {
        self.lines.get_mut(self.blocks[self.units[i].block].model.as_ref()?.name())
    }

    /// Something happened to a bundle, or is to happen.
    pub(super) fn news(&mut self, news: &ModelNews, out: &mut Outcome) {
        match news {
            ModelNews::Step(step) => self.note_step(step.clone(), out),
            ModelNews::Candidate { at, release, rollout } => self.begin(*at, release, rollout, out),
            ModelNews::Measured { at, release, measured } => self.measure(*at, release, *measured),
            ModelNews::Withdraw { at, model, digest, reason } => self.withdraw(*at, model, digest, reason, out),
            ModelNews::Unusable { at, release, stage, reason } => {
                let trial = self.lines.get_mut(&release.model).and_then(|l| l.state.trial.as_mut());
                let heard = matches!(stage, Stage::Canary | Stage::Baking | Stage::Active);
                if let Some(trial) = trial.filter(|t| heard && t.release == *release) {
                    trial.stage = *stage;
                }
                self.withdraw(*at, &release.model, &release.digest, reason, out);
            }
            ModelNews::Promote { at, model, who } => {
                self.hear_clock(*at);
                self.advance_trial(&model.clone(), &format!("{who} wants it"), out);
            }
        }
    }

    fn note_step(&mut self, step: ModelStep, out: &mut Outcome) {
        self.hear_clock(step.at);
        out.records.push(self.recorder.model(&step));
        out.steps.push(step);
    }

    /// Records a step that the engine itself decided on.
    fn step_taken(
        &mut self,
        release: &Release,
        stage: Stage,
        reason: String,
        trial: Option<&Trial>,
        out: &mut Outcome,
    ) {
        let figures = trial.map(figures).unwrap_or_default();
        let step = ModelStep { at: self.now, release: release.clone(), stage, reason, figures };
        if let Some(line) = self.lines.get_mut(&release.model) {
            line.state.last = Some(step.clone());
        }
        out.records.push(self.recorder.model(&step));
        out.steps.push(step);
    }

    /// A candidate goes into the shadow, unless it cannot stand in for the incumbent.
    fn begin(&mut self, at: Time, release: &Release, rollout: &Rollout, out: &mut Outcome) {
        self.hear_clock(at);
        let Some(line) = self.lines.get(&release.model) else {
            let why = format!("no [[machine]] has a model of the name {}", release.model);
            return self.step_taken(release, Stage::Refused, why, None, out);
        };
        let known = line.state.trial.as_ref().map(|t| &t.release);
        if known == Some(release) || line.state.active.as_ref() == Some(release) {
            return;
        }
        let model = self.shelf.get(release).cloned();
        let unfit = match &model {
            None => Some("its bundle is no longer there".to_owned()),
            Some(m) => line.incumbent.can_be_followed_by(m).err(),
        };
        let (Some(model), None) = (model, &unfit) else {
            let why = unfit.unwrap_or_default();
            return self.step_taken(release, Stage::Refused, format!("it cannot take over: {why}"), None, out);
        };
        if known.is_some() {
            self.dismiss(&release.model, format!("version {} takes its place", release.version), out);
        }
        let compat = &model.manifest().compat;
        let limits = Limits { p99_ms: compat.p99_ms, max_ram_mb: compat.max_ram_mb };
        let trial = Trial::new(release.clone(), rollout.clone(), limits, self.now);
        self.each_unit(&release.model, |unit| unit.state.rival = Memory::of(Some(&model)));
        let lasts = format!(
            "it is compared with version {} for {:?}",
            self.lines[&release.model].incumbent.manifest().version,
            rollout.shadow
        );
        if let Some(line) = self.lines.get_mut(&release.model) {
            (line.candidate, line.state.trial) = (Some(model), Some(trial));
        }
        self.step_taken(release, Stage::Shadow, lasts, None, out);
    }

    fn measure(&mut self, at: Time, release: &Release, measured: Measured) {
        self.hear_clock(at);
        let trial = self.lines.get_mut(&release.model).and_then(|l| l.state.trial.as_mut());
        if let Some(trial) = trial.filter(|t| t.release == *release) {
            trial.measure(measured);
        }
    }

    fn withdraw(&mut self, at: Time, model: &Name, digest: &Name, reason: &str, out: &mut Outcome) {
        self.hear_clock(at);
        let Some(line) = self.lines.get(model) else { return };
        let is = |release: &Release| digest.is_empty() || release.digest == *digest;
        if line.state.trial.as_ref().is_some_and(|t| is(&t.release)) {
            return self.dismiss(model, reason.to_owned(), out);
        }
        let Some(active) = line.state.active.clone().filter(is) else { return };
        let now = self.now;
        let Some(line) = self.lines.get_mut(model) else { return };
        let back = line.state.previous.take().filter(|r| self.shelf.contains_key(r));
        line.incumbent = back.as_ref().and_then(|r| self.shelf.get(r)).cloned().unwrap_or_else(|| line.base.clone());
        (line.state.active, line.state.since) = (back, now);
        line.state.monitor.restart();
        let incumbent = line.incumbent.clone();
        self.each_unit(model, |unit| unit.state.memory = Memory::of(Some(&incumbent)));
        self.step_taken(&active, Stage::RolledBack, reason.to_owned(), None, out);
    }

    /// The candidate goes; the incumbent, which was run beside it all the time, goes on.
    fn dismiss(&mut self, model: &Name, reason: String, out: &mut Outcome) {
        let Some(line) = self.lines.get_mut(model) else { return };
        line.candidate = None;
        let Some(trial) = line.state.trial.take() else { return };
        self.each_unit(model, |unit| unit.state.rival = Memory::default());
        let stage = if trial.stage == Stage::Shadow { Stage::Refused } else { Stage::RolledBack };
        self.step_taken(&trial.release, stage, reason, Some(&trial), out);
    }

    fn advance_trial(&mut self, model: &Name, reason: &str, out: &mut Outcome) {
        let now = self.now;
        let Some(line) = self.lines.get_mut(model) else { return };
        let (Some(trial), Some(candidate)) = (line.state.trial.as_mut(), line.candidate.clone()) else { return };
        let (before, stage) = (trial.clone(), trial.following());
        trial.enter(stage, now);
        if stage == Stage::Active {
            line.candidate = None;
            line.state.trial = None;
            line.state.previous = line.state.active.replace(before.release.clone());
            (line.incumbent, line.state.since) = (candidate, now);
            line.state.monitor.restart();
            self.each_unit(model, |unit| unit.state.memory = std::mem::take(&mut unit.state.rival));
        }
        self.step_taken(&before.release, stage, reason.to_owned(), Some(&before), out);
        self.trim_shelf();
    }

    /// Looks at every candidate and every model in service.
    pub(super) fn review(&mut self, out: &mut Outcome) {
        let names: Vec<Name> = self.lines.keys().cloned().collect();
        for name in names {
            self.review_trial(&name, out);
            self.review_service(&name, out);
        }
    }

    fn review_trial(&mut self, name: &Name, out: &mut Outcome) {
        let now = self.now;
        let Some(line) = self.lines.get_mut(name).filter(|l| l.candidate.is_some()) else { return };
        let Some(trial) = &mut line.state.trial else { return };
        let trouble = trial.trouble();
        match trouble {
            Some((_, why)) if trial.rolls_back() => return self.dismiss(name, why, out),
            Some((cause, why)) if trial.warned != Some(cause) => {
                trial.warned = Some(cause);
                let trial = trial.clone();
                self.step_taken(&trial.release, trial.stage, format!("{why}; a person decides"), Some(&trial), out);
                return;
            }
            Some(_) => return,
            None => {}
        }
        if trial.next(now).is_some() {
            let why = format!("{} windows alike enough in {}", trial.now.windows, trial.stage.as_str());
            self.advance_trial(name, &why, out);
        }
    }

    fn review_service(&mut self, name: &Name, out: &mut Outcome) {
        let (now, every) = (self.now, self.report_every);
        let Some(line) = self.lines.get_mut(name) else { return };
        let Some(report) = line.state.monitor.report(&line.incumbent.yardstick(), every, now) else { return };
        let version = line.incumbent.manifest().version.clone();
        out.records.push(self.recorder.drift(name, &version, &report));
        out.drifts.push(Drift { model: name.clone(), version, report });
    }

    fn each_unit(&mut self, model: &Name, change: impl Fn(&mut Unit)) {
        for unit in &mut self.units {
            if self.blocks[unit.block].model.as_ref().is_some_and(|m| m.name() == model) {
                change(unit);
            }
        }
    }

    /// Models that no line can come to any more are let go, once there are many: some may just have come.
    fn trim_shelf(&mut self) {
        if self.shelf.len() <= MOST_SHELVED * self.lines.len() {
            return;
        }
        let of = |l: &Line| {
            let s = &l.state;
            [s.active.clone(), s.previous.clone(), s.trial.as_ref().map(|t| t.release.clone())]
        };
        let kept: std::collections::BTreeSet<Release> = self.lines.values().flat_map(of).flatten().collect();
        self.shelf.retain(|release, _| kept.contains(release));
    }
}

/// Which bundle a model is of.
pub fn release_of(model: &Model) -> Release {
    let m = model.manifest();
    Release {
        model: model.name().clone(),
        version: m.version.as_str().into(),
        sequence: m.sequence.unwrap_or(0),
        digest: model.digest().clone(),
    }
}

/// What a trial has come to, for its record.
pub fn figures(trial: &Trial) -> BTreeMap<String, f64> {
    let (c, m) = (&trial.now, &trial.measured);
    let mut all = vec![
        ("windows", c.windows as f64),
        ("published", c.published as f64),
        ("errors", c.errors as f64),
        ("anomalies", c.anomalies[0] as f64),
        ("incumbent_anomalies", c.anomalies[1] as f64),
        ("agreement", c.agreed as f64 / c.windows.max(1) as f64),
        ("p_value_ks", c.p_values[0].ks()),
        ("incumbent_p_value_ks", c.p_values[1].ks()),
    ];
    if m.runs > 0 {
        all.extend([("runs", m.runs as f64), ("p50_ms", m.median_ms), ("p99_ms", m.p99_ms), ("grown_mb", m.grown_mb)]);
    }
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
