//! How does a log become short again?
//!
//! A snapshot is written beside the log, by whoever has the time, and takes its place when it is
//! complete.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::iter::once;
use std::path::PathBuf;
use std::time::Duration;

use super::line::Entry;
use super::{StoreError, owned_file};
use crate::store_event::StoreEvent;

/// A snapshot that is still to be written.
#[derive(Debug)]
pub(in crate::shell) struct Draft<E> {
    pub(super) path: PathBuf,
    pub(super) since_1970: Duration,
    pub(super) events: E,
}

/// A snapshot on the disk, under a name of its own.
#[derive(Debug)]
pub(in crate::shell) struct Snapshot {
    pub(super) file: File,
    /// In bytes.
    pub(super) len: u64,
}

impl<E: IntoIterator<Item = StoreEvent>> Draft<E> {
    /// Writes the snapshot and waits for the disk.
    ///
    /// # Errors
    /// The system refuses to write.
    pub(in crate::shell) fn write(self) -> Result<Snapshot, StoreError> {
        let path = self.path.clone();
        self.try_write()
            .map_err(|source| StoreError::Io { path, source })
    }

    fn try_write(self) -> io::Result<Snapshot> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = owned_file(&self.path, OpenOptions::new().append(true))?;
        let mut writer = io::BufWriter::new(&file);
        let mut line = Vec::new();
        let mut len = 0;
        // The last line is one that all versions read: behind those that only later ones read it keeps earlier ones
        // from taking them for the end that a crash has left.
        let (first, last) = (once(None), once(None));
        for event in first.chain(self.events.into_iter().map(Some)).chain(last) {
            line.clear();
            Entry::new(self.since_1970, event).write(&mut line)?;
            writer.write_all(&line)?;
            len += line.len() as u64;
        }
        writer.flush()?;
        drop(writer);
        file.sync_all()?;
        Ok(Snapshot { file, len })
    }
}
