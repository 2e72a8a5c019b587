//! Writes the audit log's file and answers those who acted, in order, each once what they did is on
//! disk: who is told that an alarm is acknowledged will find it so after a power cut.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::audit::file::Keeper;
use crate::metrics::{Board, Health};
use crate::types::ReceiptWaiter;
use crate::web;

/// Actions on their way to disk; people click slower than this fills.
pub const N_QUEUED: usize = 64;
/// The board's name for it.
const PART: &str = "audit";

/// Where the answer goes.
pub type Reply = oneshot::Sender<Result<(), web::Refusal>>;

/// Something that was done.
pub struct Note {
    /// What the audit log says of it.
    pub lines: Vec<String>,
    /// Resolves when it is durable.
    pub durable: ReceiptWaiter,
    /// Who waits for that.
    pub reply: Option<Reply>,
}

/// Runs until nothing more comes. `tail` may not have reached the file before the last end.
pub async fn run(dir: PathBuf, tail: Vec<String>, mut notes: mpsc::Receiver<Note>, board: Arc<Board>) {
    let mut waiting = tail;
    let mut keeper = None;
    (keeper, waiting) = write(keeper, waiting, &dir, &board).await;
    while let Some(Note { lines, durable, reply }) = notes.recv().await {
        if durable.await.is_err() {
            // Dropping the reply says that nothing can be said of it.
            continue;
        }
        waiting.extend(lines);
        (keeper, waiting) = write(keeper, waiting, &dir, &board).await;
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(()));
        }
    }
}

/// Adds the lines to the file; gives back what could not be written. The engine's own chain has it all.
async fn write(
    keeper: Option<Keeper>,
    lines: Vec<String>,
    dir: &std::path::Path,
    board: &Board,
) -> (Option<Keeper>, Vec<String>) {
    let dir = dir.to_path_buf();
    let writing = tokio::task::spawn_blocking(move || {
        let mut keeper = match keeper.map_or_else(|| Keeper::open(&dir), Ok) {
            Ok(keeper) => keeper,
            Err(e) => return (None, lines, Some(e)),
        };
        match keeper.add(&lines) {
            Ok(()) => (Some(keeper), Vec::new(), None),
            Err(e) => (None, lines, Some(e)),
        }
    });
    match writing.await {
        Ok((keeper, lines, None)) => {
            board.set(PART, Health::Up, "");
            (keeper, lines)
        }
        Ok((keeper, lines, Some(error))) => {
            tracing::warn!(%error, "the audit log's file cannot be written; its entries are kept in the store");
            board.set(PART, Health::Degraded, format!("its file cannot be written: {error}"));
            (keeper, lines)
        }
        Err(_) => (None, Vec::new()),
    }
}
