//! `[[sink.file]]`: records as lines of JSON in a file that is rotated by size, age and number. The sink
//! advances once the lines are fsynced; what a killed run had written already is not written again.

use std::path::PathBuf;
use std::time::Duration;

use super::cloud_events::Encoder;
use super::deliver::{Carried, Carrier, End, Trouble};
use crate::settings::Section;
use crate::types::Stored;

mod pen;

use pen::{Line, Pen};

/// Rotated unless the config says otherwise: a file that an editor still opens.
const MAX_BYTES: u64 = 64 << 20;
const MAX_AGE: Duration = Duration::from_hours(24);
/// Rotated files that are kept.
const MAX_FILES: i64 = 10;

/// `[[sink.file]]`, what is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that is written; rotated ones stand beside it.
    pub path: PathBuf,
    /// A file that would become larger is rotated, in bytes.
    pub max_bytes: u64,
    /// A file that is older is rotated.
    pub max_age: Duration,
    /// So many rotated files are kept, the newest.
    pub max_files: usize,
}

impl Config {
    /// Reads the section.
    pub fn read(s: &Section<'_>) -> Config {
        let path = s.required_string("path");
        let path = s.surroundings().base.join(path);
        if s.has("path") && (path.file_name().is_none() || path.is_dir()) {
            s.problem("path", "is a directory: name the file that is to be written");
        }
        let max_bytes = s.size("max_bytes").unwrap_or(MAX_BYTES);
        if max_bytes < 1 << 10 {
            s.problem("max_bytes", "is less than 1KiB");
        }
        let max_age = s.duration("max_age").unwrap_or(MAX_AGE);
        if max_age < Duration::from_secs(1) {
            s.problem("max_age", "is less than a second");
        }
        let max_files = s.integer("max_files", 1..=10_000).unwrap_or(MAX_FILES) as usize;
        Config { path, max_bytes, max_age, max_files }
    }
}

impl Config {
    /// Whether it could be written, without making it; for a person.
    pub fn probe(&self) -> Result<String, String> {
        let opened = match std::fs::File::options().append(true).open(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => self.room(),
            other => other.map(|_| ()),
        };
        let place = self.path.display();
        opened.map(|()| format!("{place} can be written")).map_err(|e| format!("{place}: {e}"))
    }

    /// Whether the directory that is there, or will be made in, takes a file.
    fn room(&self) -> std::io::Result<()> {
        let mut dir = self.path.parent().unwrap_or(&self.path);
        while let Some(above) = dir.parent().filter(|_| !dir.as_os_str().is_empty() && !dir.exists()) {
            dir = above;
        }
        let dir = if dir.as_os_str().is_empty() { std::path::Path::new(".") } else { dir };
        tempfile::tempfile_in(dir).map(|_| ())
    }
}

/// Writes to one file.
pub struct Writer {
    config: Config,
    encoder: Encoder,
    /// `None` before it is opened, and while it is at work in a thread that may block.
    pen: Option<Pen>,
}

impl Writer {
    /// Not opened yet.
    pub fn new(config: Config, encoder: Encoder) -> Writer {
        Writer { config, encoder, pen: None }
    }

    /// The file, for people.
    pub fn place(&self) -> String {
        self.config.path.display().to_string()
    }
}

impl Carrier for Writer {
    async fn open(&mut self) -> Result<(), Trouble> {
        self.pen = None;
        let config = self.config.clone();
        let opened = tokio::task::spawn_blocking(move || Pen::open(&config)).await;
        let opened = opened.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        self.pen = Some(opened.map_err(|e| Trouble::passing(format!("{}: {e}", self.place())))?);
        Ok(())
    }

    async fn lost(&mut self) -> String {
        std::future::pending().await
    }

    async fn carry(&mut self, records: &[Stored]) -> Carried {
        let mut end = End::Done;
        let mut lines = Vec::with_capacity(records.len());
        for record in records {
            match self.encoder.event(record) {
                Ok(mut text) => {
                    text.push(b'\n');
                    lines.push(Line { id: record.record.id, text });
                }
                Err(_) => {
                    end = End::Refused("its data is not a JSON object".into());
                    break;
                }
            }
        }
        let Some(mut pen) = self.pen.take() else {
            return Carried { taken: 0, bytes: 0, end: End::Trouble(Trouble::passing("not open")) };
        };
        let work = tokio::task::spawn_blocking(move || {
            let written = pen.write(lines);
            (pen, written)
        });
        match work.await {
            Ok((pen, written)) => {
                if let Some(e) = written.error {
                    end = End::Trouble(Trouble::passing(format!("{}: {e}", self.place())));
                }
                self.pen = Some(pen);
                Carried { taken: written.lines, bytes: written.bytes, end }
            }
            Err(e) => Carried { taken: 0, bytes: 0, end: End::Trouble(Trouble::passing(e.to_string())) },
        }
    }

    async fn close(&mut self) {
        self.pen = None;
    }
}
