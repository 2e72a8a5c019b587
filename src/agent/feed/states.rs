//! The metric of each machine's state.

use std::collections::HashMap;
use std::sync::Arc;

use crate::metrics::Metrics;
use crate::types::{Live, MachineState, Name};

/// The states that the metric shows: one for each machine that the engine follows.
pub struct States {
    metrics: Arc<Metrics>,
    shown: HashMap<Name, MachineState>,
}

impl States {
    pub fn new(metrics: Arc<Metrics>) -> States {
        States { metrics, shown: HashMap::new() }
    }

    /// Takes in a change of a machine's state; other events are passed over.
    pub fn note(&mut self, event: &Live) {
        let Live::State { machine, light, .. } = event else { return };
        let before = self.shown.insert(machine.clone(), *light);
        if before == Some(*light) {
            return;
        }
        let labels = |state: MachineState| [("machine", machine.to_string()), ("state", state.as_str().into())];
        if let Some(before) = before {
            self.metrics.machine_state.remove(&labels(before));
        }
        self.metrics.machine_state.get_or_create(&labels(*light)).set(1);
    }
}
