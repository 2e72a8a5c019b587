//! What the feed tells of second opinions: counters, and how the budget stands.

use std::time::Duration;

use super::Feed;
use crate::agent::engine::Tally;
use crate::agent::engine::second::Budget;
use crate::forward::budget::{MICRO, Standing};
use crate::metrics::Health;

/// The board's name for the budget.
const PART: &str = "inference/budget";

impl Feed {
    pub(super) fn count_escalations(&self, tally: &Tally) {
        let Some(model) = self.larger_model.clone() else { return };
        let m = &self.shared.metrics;
        for (reason, outcome) in &tally.escalations {
            let labels =
                [("model", model.clone()), ("reason", reason.as_str().into()), ("outcome", (*outcome).to_owned())];
            m.escalations.get_or_create(&labels).inc();
        }
        if tally.cost > 0 {
            m.cost_units.get_or_create(&[("model", model)]).inc_by(tally.cost as f64 / MICRO);
        }
    }

    pub(super) fn tell_budget(&mut self, budget: &Budget) {
        let m = &self.shared.metrics;
        let label = || [("model", budget.model.to_string())];
        m.budget_remaining_ratio.get_or_create(&label()).set(budget.remaining);
        if let Some(agreement) = budget.agreement {
            m.escalation_agreement_ratio.get_or_create(&label()).set(agreement);
        }
        let (health, what) = match budget.standing {
            Standing::Plenty => (Health::Up, ""),
            Standing::Low => (Health::Degraded, "most of it is spent: "),
            Standing::AlarmsOnly => (Health::Degraded, "only alarms are asked about: "),
            Standing::Spent => (Health::Degraded, "all of it is spent: "),
        };
        let left = (budget.remaining * budget.limit * 100.0).round() / 100.0;
        let detail =
            format!("{what}{left} of {} units left {}, {} pending", budget.limit, per(budget.period), budget.pending);
        self.shared.board.set(PART, health, detail.as_str());
        let before = self.standing.replace(budget.standing);
        if before != Some(budget.standing) && budget.standing != Standing::Plenty {
            tracing::warn!(model = &*budget.model, detail, "the budget for second opinions is running out");
        }
    }
}

fn per(period: Duration) -> String {
    match period.as_secs() {
        86_400 => "today (UTC)".into(),
        3_600 => "this hour".into(),
        s => format!("in these {s} s"),
    }
}
