//! A bundle whose reading ended the agent is not read again at the next start: a mark stands on disk while one
//! is read, and is removed however that ends, but for a crash.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::*;
use crate::metrics::printable;

/// Crashes while a bundle from the cloud is read, after which it is refused. One may have been a power cut, and
/// nobody is there to bring the bundle again.
pub const MAX_CRASHES: u32 = 2;
/// Bytes of a name in the log.
const MAX_SHOWN: usize = 80;

/// What is being read.
#[derive(Debug, Serialize, Deserialize)]
struct MarkedBundle {
    key: String,
    model: String,
    version: String,
    /// In the inbox.
    file: Option<String>,
    /// How often the agent has ended badly meanwhile.
    crashes: u32,
}

/// Stands as long as a bundle is read.
pub(super) struct Mark(PathBuf);

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Delivery {
    /// Says on disk that a bundle is being read. Without it, a crash would only repeat.
    pub(super) fn mark(&self, wanted: &Wanted, key: &str) -> Option<Mark> {
        let file = match &wanted.at {
            Where::File(name) => Some(name.clone()),
            Where::Url(_) => None,
        };
        let crashes = self.crashed.as_ref().filter(|(crashed, _)| crashed == key).map_or(0, |(_, n)| *n);
        let (model, version) = (wanted.model.clone(), wanted.version.clone());
        let reading = MarkedBundle { key: key.to_owned(), model, version, file, crashes };
        let path = self.library.reading();
        let text = serde_json::to_vec(&reading).ok()?;
        match std::fs::write(&path, text) {
            Ok(()) => Some(Mark(path)),
            Err(e) => {
                warn!("a bundle is read without a mark on disk: {e}");
                None
            }
        }
    }

    /// Puts aside what was being read when the agent last ended badly.
    pub(super) async fn after_crash(&mut self) {
        let path = self.library.reading();
        let Ok(text) = std::fs::read(&path) else { return };
        let _ = std::fs::remove_file(&path);
        let Ok(reading) = serde_json::from_slice::<MarkedBundle>(&text) else { return };
        let crashes = reading.crashes.saturating_add(1);
        if reading.file.is_none() && crashes < MAX_CRASHES {
            self.crashed = Some((reading.key, crashes));
            return;
        }
        let name = reading.file.as_deref().map(|f| f.trim_end_matches(".tar")).unwrap_or(&reading.model);
        let shown = printable(name, MAX_SHOWN);
        warn!(bundle = shown, "the agent ended badly while it read this bundle, which is put aside");
        let why = "the agent ended badly while it read this bundle; bring it again to have it tried again";
        self.refuse(bare(name, &reading.version), why.to_owned()).await;
        if let (Some(file), Some(inbox)) = (&reading.file, &self.inbox)
            && let Err(e) = inbox.done(file, false)
        {
            info!(bundle = shown, "the archive stays in the inbox and is not read: {e}");
        }
        self.settle(reading.key).await;
    }
}
