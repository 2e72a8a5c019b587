//! Stages that panic or end before they are asked to are named on the board. Whoever runs the agent waits
//! for that ([`Board::failed`]) and ends the process: a gateway of which a part has died is not repaired by
//! going on without it.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Board, Shared};

/// How long aborted tasks may take to end.
const ABORT_GRACE: Duration = Duration::from_secs(1);
/// Why a stage counts as failed that returned before the agent was asked to stop.
const EARLY: &str = "ended before it was asked to";

/// Tasks by the names that people are told when one does not end. Each is a stage: it fails when it panics,
/// and when it ends before the agent is asked to stop.
pub struct Tasks {
    set: JoinSet<()>,
    names: HashMap<tokio::task::Id, String>,
    board: Arc<Board>,
    stop: CancellationToken,
}

impl Tasks {
    /// None yet. They may end once `shared.stop` is cancelled.
    pub fn new(shared: &Shared) -> Tasks {
        let (board, stop) = (shared.board.clone(), shared.stop.clone());
        Tasks { set: JoinSet::new(), names: HashMap::new(), board, stop }
    }

    /// A task without a pulse; `part` is what the board calls it if it fails.
    pub fn spawn(&mut self, name: impl Into<String>, part: &str, task: impl Future<Output = ()> + Send + 'static) {
        let (board, stop, part) = (self.board.clone(), self.stop.clone(), part.to_owned());
        let id = self.set.spawn(async move { supervise(&part, &board, &stop, task).await }).id();
        self.names.insert(id, name.into());
    }

    /// A task with a pulse of its own under `part`: the watchdog waits for its beat until it has ended. It
    /// beats whenever it can be polled; one that blocks its thread goes silent. What it waits for has time
    /// limits of its own.
    pub fn spawn_stage<T: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: impl Into<String>,
        part: &str,
        shared: &Shared,
        task: impl FnOnce(Shared) -> T,
    ) {
        let shared = shared.for_stage(part);
        let (pulse, task) = (shared.pulse.clone(), task(shared));
        self.spawn(name, part, async move { pulse.during(task).await });
    }

    /// Waits for all of them; names those that had to be left.
    pub async fn join(&mut self, limit: Duration) -> Vec<String> {
        let (set, names) = (&mut self.set, &mut self.names);
        let all = async {
            while let Some(ended) = set.join_next_with_id().await {
                let id = match &ended {
                    Ok((id, ())) => *id,
                    Err(error) => error.id(),
                };
                let name = names.remove(&id).unwrap_or_default();
                if let Err(error) = ended {
                    // Its own panics are caught: it was aborted.
                    tracing::error!(%error, name, "a stage was aborted");
                }
            }
        };
        let timely = tokio::time::timeout(limit, all).await.is_ok();
        if !timely {
            self.set.abort_all();
            // One that blocks its thread cannot be aborted.
            let aborted = async { while self.set.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(ABORT_GRACE, aborted).await;
        }
        let mut late: Vec<String> = self.names.drain().map(|(_, name)| name).collect();
        late.sort();
        late
    }
}

/// Runs a stage that is a task to its end. Once `stop` is cancelled it may end; before that, or with a panic,
/// it has failed.
async fn supervise(part: &str, board: &Board, stop: &CancellationToken, task: impl Future<Output = ()>) {
    let ended = AssertUnwindSafe(task).catch_unwind().await;
    match ended {
        Ok(()) if stop.is_cancelled() => {}
        Ok(()) => board.fail(part, EARLY),
        Err(panic) => board.panicked(part, &*panic),
    }
    board.ended(part);
}

/// The same for a stage that has a thread of its own; `Err` is a failure too.
pub fn supervise_thread(part: &str, board: &Board, stop: &CancellationToken, work: impl FnOnce() -> Result<()>) {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(())) if stop.is_cancelled() => {}
        Ok(Ok(())) => board.fail(part, EARLY),
        Ok(Err(error)) => board.fail(part, &format!("{error:#}")),
        Err(panic) => board.panicked(part, &*panic),
    }
    board.ended(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Health;

    #[tokio::test]
    async fn a_task_that_panics_or_ends_early_has_failed() {
        let (board, stop) = (Board::new(), CancellationToken::new());
        let _pulse = board.pulse("cloud");
        supervise("cloud", &board, &stop, async { panic!("no such {}", "thing") }).await;
        supervise("source/shop", &board, &stop, async {}).await;
        board.failed().await;
        assert_eq!(board.failures(), ["cloud: panicked: no such thing", "source/shop: ended before it was asked to"]);
        assert_eq!(board.components()["cloud"].health, Health::Down);
        assert!(board.stages().is_empty());
    }

    #[tokio::test]
    async fn what_ends_when_asked_has_not_failed() {
        let (board, stop) = (Board::new(), CancellationToken::new());
        stop.cancel();
        supervise("cloud", &board, &stop, async {}).await;
        supervise_thread("engine", &board, &stop, || Ok(()));
        assert!(board.failures().is_empty());
        supervise("cloud", &board, &stop, async { panic!("in the drain") }).await;
        assert_eq!(board.failures().len(), 1, "a panic is a failure at any time");
    }

    #[test]
    fn a_thread_that_panics_fails_or_ends_early_is_named() {
        let (board, stop) = (Board::new(), CancellationToken::new());
        supervise_thread("engine", &board, &stop, || panic!("a bad entry"));
        supervise_thread("store", &board, &stop, || Ok(()));
        supervise_thread("third", &board, &stop, || Err(anyhow::anyhow!("inner").context("outer")));
        let failures = board.failures();
        assert_eq!(
            failures,
            ["engine: panicked: a bad entry", "store: ended before it was asked to", "third: outer: inner"]
        );
    }

    #[tokio::test]
    async fn what_does_not_end_is_named() {
        let mut tasks = Tasks::new(&Shared::new());
        tasks.spawn("the source shop", "source/shop", std::future::pending());
        tasks.spawn("the dashboard", "dashboard", async {});
        tasks.spawn("the cloud sink", "cloud", async { panic!("for the test") });
        assert_eq!(tasks.join(Duration::from_millis(200)).await, ["the source shop"]);
        assert!(tasks.join(Duration::from_secs(1)).await.is_empty(), "all have gone");
    }

    #[tokio::test]
    async fn a_stage_that_ends_is_waited_for_no_more() {
        let shared = Shared::new();
        let mut tasks = Tasks::new(&shared);
        shared.stop.cancel();
        tasks.spawn_stage("the dashboard", "dashboard", &shared, |_| async {});
        tasks.spawn_stage("the cloud sink", "cloud", &shared, |_| async { panic!("for the test") });
        assert!(tasks.join(Duration::from_secs(5)).await.is_empty());
        assert!(shared.board.stages().is_empty());
        assert_eq!(shared.board.failures(), ["cloud: panicked: for the test"]);
    }
}
