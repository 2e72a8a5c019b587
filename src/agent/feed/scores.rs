//! Counts verdicts and shows the last score of each machine, without looking the metric up each time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::Metrics;
use crate::types::{Name, Reason, Verdict};

type Shown = Gauge<f64, AtomicU64>;

/// The metrics in use; as many as there are models times reasons, and machines that the engine follows.
pub struct Scores {
    metrics: Arc<Metrics>,
    windows: HashMap<(Name, Reason), Counter>,
    machines: HashMap<Name, [Shown; 2]>,
}

impl Scores {
    pub fn new(metrics: Arc<Metrics>) -> Scores {
        Scores { metrics, windows: HashMap::new(), machines: HashMap::new() }
    }

    pub fn count(&mut self, v: &Verdict) {
        let windows = self.windows.entry((v.model.clone(), v.reason)).or_insert_with(|| {
            let labels = [("model", v.model.to_string()), ("reason", v.reason.as_str().into())];
            self.metrics.windows.get_or_create_owned(&labels)
        });
        windows.inc();
        let (Some(score), Some(p)) = (v.score, v.p_value) else { return };
        if let Some([shown, shown_p]) = self.machines.get(&v.machine) {
            shown.set(score);
            shown_p.set(p);
            return;
        }
        let label = [("machine", v.machine.to_string())];
        let shown = [&self.metrics.anomaly_score, &self.metrics.anomaly_p_value].map(|m| m.get_or_create_owned(&label));
        shown[0].set(score);
        shown[1].set(p);
        self.machines.insert(v.machine.clone(), shown);
    }
}
