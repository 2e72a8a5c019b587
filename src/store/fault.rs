//! What can go wrong below the store, and keeping sled's panics from spreading.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A failed operation on a segment or a file beside it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// A call to the system failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// A verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// sled refused.
    #[error("sled cannot {doing}: {source}")]
    Sled {
        /// A verb.
        doing: &'static str,
        /// Why.
        source: sled::Error,
    },
    /// sled panicked.
    #[error("sled panicked while asked to {doing}: {message}")]
    Panic {
        /// A verb.
        doing: &'static str,
        /// The panic's message.
        message: String,
    },
    /// A file or directory in use was deleted, or another one stands in its place.
    #[error("{} was deleted or replaced while the store uses it", path.display())]
    Replaced {
        /// Which.
        path: PathBuf,
    },
    /// sled did not come back.
    #[error("sled did not {doing} within {seconds} s")]
    Timeout {
        /// A verb.
        doing: &'static str,
        /// How long it was given.
        seconds: u64,
    },
}

impl Fault {
    /// For `map_err` on calls to the system.
    pub fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Fault + 'a {
        move |source| Fault::Io { doing, path: path.to_owned(), source }
    }

    fn error_kind(&self) -> Option<io::ErrorKind> {
        match self {
            Fault::Io { source, .. } | Fault::Sled { source: sled::Error::Io(source), .. } => Some(source.kind()),
            _ => None,
        }
    }

    /// The medium cannot take more at present; what is on it is none the worse.
    pub fn no_room(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        self.error_kind()
            .is_some_and(|k| matches!(k, StorageFull | QuotaExceeded | ReadOnlyFilesystem | PermissionDenied))
    }

    /// What was to be read is not there any more.
    pub fn is_gone(&self) -> bool {
        self.error_kind() == Some(io::ErrorKind::NotFound)
    }

    /// The medium is full.
    pub fn is_full(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        self.error_kind().is_some_and(|k| matches!(k, StorageFull | QuotaExceeded))
    }

    /// Another holder has not let go of the segment yet.
    pub fn is_locked(&self) -> bool {
        matches!(self, Fault::Sled { source: sled::Error::Io(e), .. } if e.to_string().contains("acquire lock"))
    }
}

/// Runs a call into sled; its panics become faults.
pub(super) fn guarded<T>(doing: &'static str, call: impl FnOnce() -> sled::Result<T>) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(Fault::Sled { doing, source }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let message = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Fault::Panic { doing, message: message.to_owned() })
        }
    }
}
