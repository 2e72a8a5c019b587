//! The engine's dealings with models that are shipped to it: what happened to a bundle becomes a record.

use super::*;
use crate::types::{ModelNews, ModelStep};

impl Engine {
    /// Something happened to a bundle, or is to happen.
    pub(super) fn news(&mut self, news: &ModelNews, out: &mut Outcome) {
        match news {
            ModelNews::Step(step) => self.note_step(step, out),
            ModelNews::Candidate { .. } => {}
        }
    }

    fn note_step(&mut self, step: &ModelStep, out: &mut Outcome) {
        out.records.push(self.recorder.model(step));
    }
}
