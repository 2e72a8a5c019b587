//! One process at a time: a lock on the data directory that says who holds it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::opening::OpenError;

/// Held while it lives; the system lets go of it when the process ends, however it ends.
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of this data directory.
    pub fn take(data_dir: &Path) -> Result<Lock, OpenError> {
        let path = data_dir.join("lock");
        let refused = |source| OpenError::NotWritable { path: path.clone(), source };
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(refused)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // A holder that has not written its pid yet is shown without one.
                let _ = (&mut file).take(32).read_to_string(&mut holder);
                return Err(OpenError::Locked { data_dir: data_dir.to_owned(), pid: holder.trim().parse().ok() });
            }
            Err(e) => return Err(refused(e.into())),
        }
        let write = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        // The pid is a courtesy; on a full disk the lock holds without it.
        let _ = write;
        Ok(Lock { _file: file })
    }
}
