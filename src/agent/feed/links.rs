//! What the engine is told of its sources: which deliver, and since when which do not.

use super::Feed;
use crate::agent::input::{Group, Input, Link};
use crate::metrics::{Component, Health};
use crate::types::Time;

/// Sources stand on the board under this.
const SOURCES: &str = "source/";

impl Feed {
    /// Whatever the last run knew, no source is up when a run begins.
    pub(super) async fn links_begin(&mut self) {
        let at = Time::now();
        let down = |source| Link { source, at, up: false, detail: "not connected since the agent started".into() };
        let known: Vec<Link> = self.engine.links().keys().cloned().map(down).collect();
        for link in known {
            self.step(Group { inputs: vec![Input::Link(link)] }, Vec::new(), Vec::new()).await;
        }
    }

    /// Tells the engine of sources that have come up or gone down since it was told last. Complaints aside: a source
    /// that sends what is not used is up all the same.
    pub(super) async fn watch_links(&mut self) {
        for (part, component) in self.shared.board.own() {
            let Some(source) = part.strip_prefix(SOURCES) else { continue };
            let link = link_of(source, &component);
            let known = self.engine.links().get(source);
            if known.is_none_or(|k| k.up != link.up) {
                self.step(Group { inputs: vec![Input::Link(link)] }, Vec::new(), Vec::new()).await;
            }
        }
    }
}

/// One that is degraded delivers, though not all of it.
fn link_of(source: &str, component: &Component) -> Link {
    let up = matches!(component.health, Health::Up | Health::Degraded);
    Link { source: source.into(), at: Time::now(), up, detail: component.detail.clone() }
}
