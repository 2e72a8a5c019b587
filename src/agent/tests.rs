//! A whole agent of which a stage fails.

use super::*;
use crate::config::Needs;
use crate::metrics::Board;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// The part that tells [`provoke`] what to do.
const PROVOCATION: &str = "test/replay";

/// What a test wants to happen while the journal is replayed.
pub fn provoke(board: &Board) {
    if let Some(wanted) = board.own().get(PROVOCATION) {
        panic!("{}", wanted.detail);
    }
}

/// An agent with one broker that is not there.
async fn start(dir: &Path, shared: &Shared) -> Agent {
    let text = format!(
        "[agent]\nsite = \"test\"\nid = \"gw\"\ndata_dir = {dir:?}\n[[source.mqtt]]\nname = \"shop\"\n\
         url = \"mqtt://127.0.0.1:1\"\n[[source.mqtt.subscribe]]\ntopic = \"plant/{{machine}}/{{signal}}\"\n\
         payload = \"number\"\n[[machine]]\nmatch = \"*\"\n[web]\nlisten = \"off\"\n",
    );
    let path = dir.join("andon.toml");
    std::fs::write(&path, text).expect("written");
    let config = Config::load(&path, Needs { source: true }).expect("a config");
    Agent::start(config, shared.clone()).await.expect("started")
}

async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_well_is_restored_and_ends_well() {
    let (dir, shared) = (tempfile::tempdir().expect("a directory"), Shared::new());
    let mut agent = start(dir.path(), &shared).await;
    assert!(within(agent.restored()).await);
    assert_eq!(shared.board.components()[ENGINE].health, Health::Up);
    assert!(shared.board.stages().iter().any(|s| s == ENGINE));
    within(agent.finish()).await.expect("ended well");
    assert!(shared.board.failures().is_empty());
    assert!(shared.board.stages().is_empty(), "{:?}", shared.board.stages());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_panics_is_named_and_the_agent_drains() {
    let (dir, shared) = (tempfile::tempdir().expect("a directory"), Shared::new());
    let mut agent = start(dir.path(), &shared).await;
    assert!(within(agent.restored()).await);
    agent.outlets.spawn_stage("a sink", "sink/site", &shared, |_| async { panic!("for the test") });
    within(agent.failed()).await;
    let shown = shared.board.components().remove("sink/site").expect("on the board");
    assert_eq!((shown.health, shown.detail.as_str()), (Health::Down, "panicked: for the test"));
    let error = within(agent.finish()).await.expect_err("not well");
    assert_eq!(error.to_string(), "stages have failed: sink/site: panicked: for the test");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_panics_in_its_replay_is_never_restored() {
    let (dir, shared) = (tempfile::tempdir().expect("a directory"), Shared::new());
    shared.board.set(PROVOCATION, Health::Up, "a bad entry");
    let mut agent = start(dir.path(), &shared).await;
    assert!(!within(agent.restored()).await);
    within(agent.failed()).await;
    let error = within(agent.finish()).await.expect_err("not well");
    assert!(error.to_string().contains("engine: panicked: a bad entry"), "{error}");
    assert!(shared.board.failures().iter().any(|f| f == "engine: panicked: a bad entry"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_ends_early_is_named() {
    let (dir, shared) = (tempfile::tempdir().expect("a directory"), Shared::new());
    let mut agent = start(dir.path(), &shared).await;
    agent.sources.spawn_stage("a source", "source/plc", &shared, |_| async {});
    within(agent.failed()).await;
    let error = within(agent.finish()).await.expect_err("not well");
    assert_eq!(error.to_string(), "stages have failed: source/plc: ended before it was asked to");
}
