//! How does a log become short again?
//!
//! A snapshot is written beside the log, by whoever has the time, and takes its place when it is
//! complete. What the log has got meanwhile is copied behind it: most of that by the same thread, and what comes
//! after that when it is put in place.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::iter::once;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::line::Entry;
use super::{StoreError, owned_file};
use crate::store_event::StoreEvent;

/// What the thread that owns the log may copy itself, in bytes: less than a millisecond's work.
const LITTLE: u64 = 1 << 20;
/// How often the rest is copied at most, where the log grows as fast as the disk writes.
const ROUNDS: u32 = 8;

/// A snapshot that is still to be written.
#[derive(Debug)]
pub(in crate::shell) struct Draft<E> {
    pub(super) path: PathBuf,
    pub(super) since_1970: Duration,
    pub(super) events: E,
    pub(super) behind: Behind,
}

/// What the log has got since a snapshot was begun.
#[derive(Debug)]
pub(in crate::shell) struct Behind {
    /// The log, read up to where it is copied.
    log: File,
    copied: u64,
}

impl Behind {
    /// What the log at `path` gets from now on, which is `start` bytes long.
    pub(super) fn of(path: &Path, start: u64) -> io::Result<Self> {
        // Its own position: a clone of the handle that appends would share that one's.
        let mut log = File::open(path)?;
        log.seek(SeekFrom::Start(start))?;
        Ok(Self { log, copied: 0 })
    }

    /// Appends what has come since the last time to `file`; returns how many bytes that were.
    pub(super) fn copy_to(&mut self, file: &mut File) -> io::Result<u64> {
        let copied = io::copy(&mut self.log, file)?;
        self.copied += copied;
        Ok(copied)
    }

    /// Returns how many bytes were copied in all.
    pub(super) const fn copied(&self) -> u64 {
        self.copied
    }
}

/// A snapshot on the disk, under a name of its own.
#[derive(Debug)]
pub(in crate::shell) struct Snapshot {
    pub(super) file: File,
    /// In bytes, without what the log has got since it was begun.
    pub(super) len: u64,
    /// What has to be copied still.
    pub(super) behind: Behind,
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

    fn try_write(mut self) -> io::Result<Snapshot> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = owned_file(&self.path, OpenOptions::new().append(true))?;
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
        // While the disk is waited for the log grows, so it is waited for once more, for less each time.
        for _ in 0..ROUNDS {
            let copied = self.behind.copy_to(&mut file)?;
            file.sync_all()?;
            if copied < LITTLE {
                break;
            }
        }
        self.behind.copy_to(&mut file)?;
        Ok(Snapshot {
            file,
            len,
            behind: self.behind,
        })
    }
}
