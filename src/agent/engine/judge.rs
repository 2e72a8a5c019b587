//! Windows through models: in batches, through the incumbent and, while there is one, its candidate.
//! Each window has exactly one published verdict, whatever is under way.

use super::*;
use crate::alarm::LimitConfig;
use crate::model::rollout::Seen;

impl Engine {
    pub(super) fn judge(&mut self, due: Vec<(usize, Window)>, out: &mut Outcome) {
        let mut blocks: Vec<usize> = due.iter().map(|(i, _)| self.units[*i].block).collect();
        blocks.sort_unstable();
        blocks.dedup();
        // Blocks with the same model could share batches; machines of one block nearly always do.
        for block in blocks {
            let Some(name) = self.blocks[block].model.as_ref().map(|m| m.name().clone()) else { continue };
            let Some(line) = self.lines.get(&name) else { continue };
            let (incumbent, candidate) = (line.incumbent.clone(), line.candidate.clone());
            let mine: Vec<&(usize, Window)> = due.iter().filter(|(i, _)| self.units[*i].block == block).collect();
            for batch in mine.chunks(incumbent.batch()) {
                let first = self.run(&incumbent, batch, false, out);
                let second = candidate.as_ref().map(|c| self.run(c, batch, true, out));
                let mut second = second.into_iter().flatten();
                for ((i, window), opinion) in batch.iter().zip(first) {
                    let rival = candidate.as_ref().map(|c| (&**c, second.next().flatten()));
                    self.settle(*i, window, (&incumbent, opinion), rival, out);
                }
            }
        }
    }

    /// Runs a batch; `None` for all of it when that fails.
    fn run(
        &mut self,
        model: &Arc<Model>,
        batch: &[&(usize, Window)],
        candidate: bool,
        out: &mut Outcome,
    ) -> Vec<Option<Opinion>> {
        let windows: Vec<&Window> = batch.iter().map(|(_, w)| w).collect();
        let memory = |i: &usize| if candidate { &self.units[*i].state.rival } else { &self.units[*i].state.memory };
        let states: Vec<&[f32]> = batch.iter().map(|(i, _)| &*memory(i).values).collect();
        let (started, computed) = (Instant::now(), thread_time());
        let judged = model.judge(&windows, &states);
        if candidate {
            // A busy box is not the candidate's fault.
            out.tally.trial_runs.push((model.name().clone(), thread_time().saturating_sub(computed)));
        } else {
            out.tally.runs.push((model.name().clone(), started.elapsed()));
        }
        judged.unwrap_or_else(|e: ModelError| {
            let trial = self.lines.get_mut(model.name()).and_then(|l| l.state.trial.as_mut());
            match trial.filter(|_| candidate) {
                // It has stood in for nobody yet: what it says of itself goes with its trial.
                Some(trial) => trial.failed(&e.to_string()),
                None => out.tally.errors.push((model.name().clone(), e.to_string())),
            }
            vec![None; batch.len()]
        })
    }

    /// One window, judged by one or two models: compares, publishes one verdict, and lets both go on.
    fn settle(
        &mut self,
        i: usize,
        window: &Window,
        (incumbent, mut opinion): (&Model, Option<Opinion>),
        rival: Option<(&Model, Option<Opinion>)>,
        out: &mut Outcome,
    ) {
        let limit = self.blocks[self.units[i].block].limit;
        let seen = |o: &Opinion| Seen { p_value: o.p_value, anomaly: limit.strength(o.score, o.p_value) >= 1.0 };
        let own = opinion.as_ref().map(seen);
        let next = opinion.as_mut().map(|o| std::mem::take(&mut o.next));
        let Some((candidate, mut other)) = rival else {
            self.verdict(i, window, opinion, incumbent, out);
            self.watch_service(i, window, own);
            return self.go_on(i, incumbent, next, own, false);
        };
        let others = other.as_ref().map(seen);
        let other_next = other.as_mut().map(|o| std::mem::take(&mut o.next));
        let allowed = if let Limit::PValue(p) = limit { p } else { 0.0 };
        let machine = window.machine.clone();
        let trial = self.line_mut(i).and_then(|l| l.state.trial.as_mut());
        // Where only the incumbent has an opinion, that is published: nothing goes unjudged.
        let publishes = trial.is_some_and(|trial| {
            let publishes = trial.publishes(&machine) && (others.is_some() || own.is_none());
            trial.compare(others, own, allowed, publishes);
            publishes
        });
        if publishes {
            self.verdict(i, window, other, candidate, out);
        } else {
            self.verdict(i, window, opinion, incumbent, out);
        }
        self.watch_service(i, window, own);
        self.go_on(i, incumbent, next, own, false);
        self.go_on(i, candidate, other_next, others, true);
    }

    /// A model takes over what its opinion left behind.
    fn go_on(&mut self, i: usize, model: &Model, next: Option<Vec<f32>>, seen: Option<Seen>, candidate: bool) {
        let Some(next) = next else { return };
        let unit = &mut self.units[i];
        let in_alarm = seen.is_some_and(|s| s.anomaly) || unit.state.anomaly.is_active();
        let memory = if candidate { &mut unit.state.rival } else { &mut unit.state.memory };
        model.follow(&mut memory.values, next, in_alarm);
    }

    fn verdict(&mut self, i: usize, window: &Window, opinion: Option<Opinion>, model: &Model, out: &mut Outcome) {
        let block = &self.blocks[self.units[i].block];
        let strength = opinion.as_ref().map(|o| block.limit.strength(o.score, o.p_value));
        let mut verdict = model.verdict(window, opinion, &block.limit, &block.layout.channels);
        if verdict.reason == Reason::NoAnomalyDetected && self.is_uncertain(verdict.p_value) {
            verdict.reason = Reason::Uncertain;
        }
        let (at, reason, layout) = (verdict.at, verdict.reason, block.layout.clone());
        let look = Observation {
            at,
            strength,
            top_channel: verdict.contributions.first().map(|c| c.name.clone()),
            message: anomaly_message(&verdict),
        };
        let (verdict, id) = self.emit_verdict(verdict, out);
        self.ran(i, at, reason);
        let why = || people::explain(&verdict, window, model, &layout.channels);
        let raised = self.observe(i, Condition::Anomaly, &look, Some(&why), out);
        self.refresh_light(i, at, out);
        let judged = Judged { window, verdict: &verdict, id, strength: strength.unwrap_or(0.0), raised };
        self.escalate(&judged, out);
    }

    /// Shows a judged window to its model's monitor: what the incumbent says of it counts.
    fn watch_service(&mut self, i: usize, window: &Window, seen: Option<Seen>) {
        let (now, block) = (self.now, &self.blocks[self.units[i].block]);
        let seconds = (block.layout.stride as i64 * block.layout.rate) as f64 / 1e9;
        let (new, promised) = (block.layout.stride.min(block.layout.steps), promised_per_day(&block.alarm.limit));
        let Some(line) = self.line_mut(i) else { return };
        let (stick, monitor) = (line.incumbent.yardstick(), &mut line.state.monitor);
        monitor.meet(&stick, now);
        let first = window.data.len().saturating_sub(new * stick.channels.len());
        monitor.rows(&stick, &window.data[first..]);
        let reason = match seen {
            None => Reason::ModelUnavailable,
            Some(s) if s.anomaly => Reason::AnomalyDetected,
            Some(_) => Reason::NoAnomalyDetected,
        };
        let p_value = seen.map(|s| s.p_value).filter(|_| !line.incumbent.calibration().is_empty());
        monitor.verdict(reason, p_value);
        if let Some(promised) = promised {
            monitor.alarms().watched(now, seconds, promised);
        }
    }

    /// The same for what could not be judged, and for which channel.
    pub(super) fn watch_unjudged(&mut self, i: usize, reason: Reason, channel: Option<&Name>) {
        let (now, block) = (self.now, &self.blocks[self.units[i].block]);
        let place = channel.and_then(|c| block.layout.channels.iter().position(|name| name == c));
        let Some(line) = self.line_mut(i) else { return };
        line.state.monitor.meet(&line.incumbent.yardstick(), now);
        line.state.monitor.verdict(reason, None);
        place.into_iter().for_each(|p| line.state.monitor.blame(p));
    }

    /// Counts an alarm of the model.
    pub(super) fn watch_alarm(&mut self, i: usize) {
        if let Some(line) = self.line_mut(i) {
            line.state.monitor.alarms().raised();
        }
    }
}

/// Processor time that this thread has used.
fn thread_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// The budget of false alarms as so many a day.
fn promised_per_day(limit: &LimitConfig) -> Option<f64> {
    match limit {
        LimitConfig::Budget { alarms, period } => Some(alarms * 86_400.0 / period.as_secs_f64().max(1e-9)),
        LimitConfig::Score(_) => None,
    }
}
