//! Where do facts survive a crash?
//!
//! In an append-only log in the state directory, one line per fact. What is appended is handed to
//! the kernel at once and survives the end of this process; the disk follows in the background,
//! many lines at a time. Now and then the log is replaced by a snapshot, which is written in the
//! background while the log goes on. Memory is the truth for reads; this file only follows.

mod compact;
mod line;
mod snapshot;

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lisp_proto::Nonce;
use thiserror::Error;

use self::line::{Entry, Line};
use self::snapshot::Behind;
pub(super) use self::snapshot::{Draft, Snapshot};
use crate::config::XtrName;
use crate::store_event::{StoreEvent, XtrIds};

/// Name of the log in the state directory.
const LOG: &str = "registrations.log";
/// Name of a snapshot that is not complete yet.
const SNAPSHOT: &str = "registrations.new";
/// Held by the one server that uses the state directory.
const LOCK: &str = "lock";
/// The log is replaced by a snapshot when it has grown by this many bytes and doubled.
const GROWTH: u64 = 1 << 20;

/// The log of one server.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    log: File,
    /// Appended, but not handed to the kernel yet.
    buffer: Vec<u8>,
    /// The last nonces of those who have registered since, which come behind all that.
    nonces: BTreeMap<(XtrName, Option<XtrIds>, u8), Nonce>,
    /// When something was appended last, counted from 1970.
    appended_at: Duration,
    len: u64,
    len_after_snapshot: u64,
    dirty: bool,
    /// Whether the name of the log is not on the disk yet.
    renamed: bool,
    /// Whether a snapshot is being written.
    compacting: bool,
    _lock: File,
}

/// What an earlier run left behind.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// The facts, in the order in which they were kept.
    pub(super) events: Vec<StoreEvent>,
    /// Bytes of an incomplete last line that were cut off.
    pub(super) torn_bytes: u64,
}

/// What is to be brought to the disk.
#[derive(Debug)]
pub(super) struct Unsynced {
    log: File,
    directory: Option<File>,
}

impl Unsynced {
    /// Waits for the disk.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn sync(self) -> io::Result<()> {
        self.log.sync_data()?;
        self.directory
            .map_or(Ok(()), |directory| directory.sync_all())
    }
}

impl Recovered {
    /// Whether these are all facts that an earlier run had: none was cut off.
    pub(super) const fn is_complete(&self) -> bool {
        self.torn_bytes == 0
    }
}

impl Store {
    /// Opens the log in `directory`, and reads what an earlier run has left there, as old as it is by now.
    ///
    /// # Errors
    /// Another server uses the directory, the log is damaged, or the system refuses something.
    pub(super) fn open(
        directory: &Path,
        since_1970: Duration,
    ) -> Result<(Self, Recovered), StoreError> {
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(refused(directory))?;
        let lock = take_lock(&directory.join(LOCK))?;
        let path = directory.join(LOG);
        let log = owned_file(&path, OpenOptions::new().read(true).append(true))
            .map_err(refused(&path))?;
        let (mut recovered, good_len) = recover(&path, &log, since_1970)?;
        let len = log.metadata().map_err(refused(&path))?.len();
        recovered.torn_bytes = len - good_len;
        log.set_len(good_len).map_err(refused(&path))?;
        let store = Self {
            directory: directory.to_owned(),
            log,
            buffer: Vec::new(),
            nonces: BTreeMap::new(),
            appended_at: since_1970,
            len: good_len,
            len_after_snapshot: 0,
            dirty: false,
            renamed: false,
            compacting: false,
            _lock: lock,
        };
        Ok((store, recovered))
    }

    /// Takes a fact in; it is kept with the next [`Self::flush`]. `None` says that we are alive. Of the nonces of
    /// one registrant only the last is kept.
    ///
    /// # Errors
    /// The fact cannot be written as JSON.
    pub(super) fn append(
        &mut self,
        since_1970: Duration,
        event: Option<StoreEvent>,
    ) -> Result<(), StoreError> {
        self.appended_at = since_1970;
        match event {
            Some(StoreEvent::Nonce {
                xtr,
                ids,
                key_id,
                nonce,
            }) => {
                self.nonces.insert((xtr, ids, key_id), nonce);
                Ok(())
            }
            event => self.write(event),
        }
    }

    fn write(&mut self, event: Option<StoreEvent>) -> Result<(), StoreError> {
        let written = Entry::new(self.appended_at, event).write(&mut self.buffer);
        written.map_err(|error| self.failed(error))
    }

    fn write_nonces(&mut self) -> Result<(), StoreError> {
        while let Some(((xtr, ids, key_id), nonce)) = self.nonces.pop_first() {
            let last = StoreEvent::Nonce {
                xtr,
                ids,
                key_id,
                nonce,
            };
            self.write(Some(last))?;
        }
        Ok(())
    }

    /// Hands everything to the kernel: it survives the end of this process from now on.
    ///
    /// # Errors
    /// The system refuses to write, for instance because the disk is full.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        self.write_nonces()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.log
            .write_all(&self.buffer)
            .map_err(|source| self.failed(source))?;
        self.len += self.buffer.len() as u64;
        self.buffer.clear();
        self.dirty = true;
        Ok(())
    }

    /// Returns what is to be brought to the disk: the log, and the directory after a change of name.
    ///
    /// # Errors
    /// The system refuses another handle.
    pub(super) fn unsynced(&mut self) -> Result<Option<Unsynced>, StoreError> {
        if !std::mem::take(&mut self.dirty) {
            return Ok(None);
        }
        let renamed = std::mem::take(&mut self.renamed);
        let handles = || {
            let directory = renamed.then(|| File::open(&self.directory));
            Ok(Unsynced {
                log: self.log.try_clone()?,
                directory: directory.transpose()?,
            })
        };
        handles().map(Some).map_err(|source| self.failed(source))
    }

    /// Whether the log has grown so much that a snapshot would be shorter.
    pub(super) const fn wants_snapshot(&self) -> bool {
        !self.compacting && self.len > 2 * self.len_after_snapshot + GROWTH
    }

    /// Puts a log in place that holds nothing but `events`. A crash on the way leaves the old one.
    ///
    /// # Errors
    /// The system refuses to write; the old log is still in use then.
    pub(super) fn replace(
        &mut self,
        since_1970: Duration,
        events: impl Iterator<Item = StoreEvent>,
    ) -> Result<(), StoreError> {
        let snapshot = self.draft(since_1970, events)?.write()?;
        drop(self.install(snapshot)?);
        match self.unsynced()? {
            Some(unsynced) => unsynced.sync().map_err(|source| self.failed(source)),
            None => Ok(()),
        }
    }

    /// Begins a snapshot of `events`, to be written while the log goes on, and then to be given to
    /// [`Self::install`]. Only one is under way at a time.
    ///
    /// # Errors
    /// The system refuses to write to the log.
    pub(super) fn draft<E: IntoIterator<Item = StoreEvent>>(
        &mut self,
        since_1970: Duration,
        events: E,
    ) -> Result<Draft<E>, StoreError> {
        // What was appended so far is part of the events, and must not follow them.
        self.flush()?;
        let log = self.directory.join(LOG);
        let behind = Behind::of(&log, self.len).map_err(|source| self.failed(source))?;
        self.compacting = true;
        Ok(Draft {
            path: self.directory.join(SNAPSHOT),
            since_1970,
            events,
            behind,
        })
    }

    /// Gives a snapshot up that was begun and cannot be written now; the next one is wanted when the log has grown as
    /// if this one were in place.
    pub(super) fn give_up(&mut self) {
        self.compacting = false;
        self.len_after_snapshot = self.len;
    }

    /// Puts a snapshot in the place of the log, together with what was appended in the meantime. Returns the log
    /// that was, which takes the system long to close when it is large.
    ///
    /// # Errors
    /// The system refuses to write; the old log is still in use then.
    pub(super) fn install(&mut self, snapshot: Snapshot) -> Result<File, StoreError> {
        self.flush()?;
        self.compacting = false;
        let path = self.directory.join(SNAPSHOT);
        let Snapshot {
            mut file,
            len,
            mut behind,
        } = snapshot;
        let installed = behind
            .copy_to(&mut file)
            .and_then(|_| fs::rename(&path, self.directory.join(LOG)));
        installed.map_err(|source| StoreError::Io { path, source })?;
        let old = std::mem::replace(&mut self.log, file);
        self.len = len + behind.copied();
        self.len_after_snapshot = len;
        (self.dirty, self.renamed) = (true, true);
        Ok(old)
    }

    fn failed(&self, source: io::Error) -> StoreError {
        StoreError::Io {
            path: self.directory.join(LOG),
            source,
        }
    }
}

/// Makes sure that nobody else uses the state directory, for as long as the file is open.
fn take_lock(path: &Path) -> Result<File, StoreError> {
    let path = path.to_owned();
    let file = match owned_file(&path, OpenOptions::new().append(true)) {
        Ok(file) => file,
        Err(source) => return Err(StoreError::Io { path, source }),
    };
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path }),
        Err(TryLockError::Error(source)) => Err(StoreError::Io { path, source }),
    }
}

/// Opens a file that only its owner may read, making it if it is missing.
fn owned_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.create(true).mode(0o600).open(path)
}

/// Reads the log up to its end, or up to an incomplete last line; returns where that begins.
fn recover(path: &Path, log: &File, since_1970: Duration) -> Result<(Recovered, u64), StoreError> {
    let refused = |source| StoreError::Io {
        path: path.to_owned(),
        source,
    };
    let mut reader = BufReader::new(log);
    let mut events = Vec::new();
    let mut last_ms = 0;
    let (mut damaged, mut foreign) = (None, None);
    let (mut line, mut offset) = (Vec::new(), 0);
    loop {
        line.clear();
        let len = reader.read_until(b'\n', &mut line).map_err(refused)?;
        if len == 0 {
            break;
        }
        match (Entry::read(&line), damaged) {
            (Line::Entry(entry), None) => {
                last_ms = entry.at_ms;
                events.extend(entry.event.map(|event| (entry.at_ms, event)));
            }
            (Line::Foreign, None) => foreign = foreign.or(Some(offset)),
            (Line::Entry(_) | Line::Foreign, Some(offset)) => {
                let path = path.to_owned();
                return Err(StoreError::Damaged { path, offset });
            }
            (Line::Damaged, _) => damaged = damaged.or(Some(offset)),
        }
        offset += len as u64;
    }
    // Never cut off: what it says is not known, but that it was said.
    if let Some(offset) = foreign {
        let path = path.to_owned();
        return Err(StoreError::Foreign { path, offset });
    }
    let now_ms = Entry::new(since_1970, None).at_ms;
    let since = |then_ms| Duration::from_millis(now_ms.saturating_sub(then_ms));
    let aged = events.into_iter().map(|(at_ms, mut event)| {
        event.age(since(at_ms), since(last_ms));
        event
    });
    let recovered = Recovered {
        events: aged.collect(),
        torn_bytes: 0,
    };
    Ok((recovered, damaged.unwrap_or(offset)))
}

/// The stored registrations cannot be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Another process holds the state directory.
    #[error("{}: another map server uses this state directory; stop it, or set another state_dir", path.display())]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// Good lines follow a damaged one: no crash leaves that behind.
    #[error(
        "{}: damaged at byte {offset}; restore the file, or move it away: xTRs register again within a minute, \
         and Map-Registers recorded earlier could be replayed until then", path.display()
    )]
    Damaged {
        /// The log.
        path: PathBuf,
        /// Where the damaged line begins.
        offset: u64,
    },
    /// A line is as it was written, but says nothing that this version knows.
    #[error(
        "{}: written by a newer version, as the line at byte {offset} shows; run that one, or move the file away: xTRs \
         register again within a minute, and Map-Registers recorded earlier could be replayed until then", path.display()
    )]
    Foreign {
        /// The log.
        path: PathBuf,
        /// Where the first such line begins.
        offset: u64,
    },
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The reason the system gives.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
