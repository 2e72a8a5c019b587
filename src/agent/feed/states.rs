//! The metric of each machine's state.

use std::collections::HashMap;
use std::sync::Arc;

use crate::metrics::{Labels, Metrics};
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

    /// Takes in how everything stands; machines that are not in it are gone.
    pub fn restart(&mut self, all: &[Live]) {
        // All of a machine's, since it is shown as amber while the engine is silent.
        for (machine, _) in self.shown.drain() {
            for state in MachineState::ALL {
                self.metrics.machine_state.remove(&labels(&machine, state));
            }
        }
        all.iter().for_each(|event| self.note(event));
    }

    /// Takes in a change of a machine's state; other events are passed over.
    pub fn note(&mut self, event: &Live) {
        let Live::State { machine, light, .. } = event else { return };
        let before = self.shown.insert(machine.clone(), *light);
        if before == Some(*light) {
            return;
        }
        if let Some(before) = before {
            self.metrics.machine_state.remove(&labels(machine, before));
        }
        self.metrics.machine_state.get_or_create(&labels(machine, *light)).set(1);
    }
}

fn labels(machine: &Name, state: MachineState) -> Labels<2> {
    [("machine", machine.to_string()), ("state", state.as_str().into())]
}
