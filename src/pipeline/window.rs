//! The last rows of a machine's channels, from which windows are cut.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::align::Row;
use crate::types::Quality;

/// Rows of channel values, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rows {
    channels: usize,
    values: VecDeque<f32>,
    quality: VecDeque<Quality>,
}

impl Rows {
    /// Appends a row and forgets those beyond `keep`.
    pub fn push(&mut self, row: &[Row], keep: usize) {
        self.channels = row.len();
        for r in row {
            // A channel never heard has no value; its quality keeps the window from being scored.
            self.values.push_back(r.value.unwrap_or(0.0) as f32);
            self.quality.push_back(r.quality);
        }
        let excess = self.values.len().saturating_sub(keep * self.channels);
        self.values.drain(..excess);
        self.quality.drain(..excess);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.values.clear();
        self.quality.clear();
    }

    /// The whole window, row-major, once `steps` rows are there.
    pub fn full(&self, steps: usize) -> Option<Vec<f32>> {
        (self.channels > 0 && self.values.len() >= steps * self.channels).then(|| self.values.iter().copied().collect())
    }

    /// The worst quality of each channel.
    pub fn quality(&self) -> Vec<Quality> {
        let mut worst = vec![Quality::Good; self.channels];
        for (i, q) in self.quality.iter().enumerate() {
            let w = &mut worst[i % self.channels];
            *w = (*w).max(*q);
        }
        worst
    }

    /// Whether rows kept earlier can be gone on with.
    pub fn fits(&self, steps: usize, channels: usize) -> bool {
        let whole = self.values.len() == self.quality.len() && self.values.len() <= steps * channels;
        self.values.is_empty() && self.quality.is_empty()
            || self.channels == channels && whole && self.values.len().is_multiple_of(channels.max(1))
    }
}
