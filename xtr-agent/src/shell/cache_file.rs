//! The map-cache on disk: what a restarted agent knows before any map server answers.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::Instant;
use tracing::warn;

use crate::agent::Snapshot;

/// First word of the file; a later version of it gets another number.
const MAGIC: &str = "lispwire-map-cache-1";
/// Shortest time between two writes while the agent runs.
const PAUSE: Duration = Duration::from_secs(5);
/// Larger files were not written by this.
const MOST_BYTES: u64 = 64 << 20;
/// Mappings that are written, of all instances together: they fit that size, however long they are.
const MOST_MAPPINGS: usize = 180_000;

/// What the file holds.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    /// Microseconds since 1970.
    written: u64,
    /// One for each instance.
    snapshots: Vec<Snapshot>,
}

/// What was read at the start.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// One for each instance that there was.
    pub(super) snapshots: Vec<Snapshot>,
    /// Time since they were written; none when the clock went back.
    pub(super) age: Duration,
}

/// The file `map-cache` of the state directory.
#[derive(Debug)]
pub(super) struct CacheFile {
    path: PathBuf,
    /// When the next write is due; none while nothing has changed.
    due: Option<Instant>,
    /// When another write may begin.
    rested: Instant,
    writing: Option<JoinHandle<()>>,
}

impl CacheFile {
    /// Reads the file at `unix_micros`. One that is damaged is reported and ignored.
    pub(super) fn open(dir: &Path, now: Instant, unix_micros: u64) -> (Self, Known) {
        let path = dir.join("map-cache");
        let known = match read(&path) {
            Ok(Some(content)) => Known {
                snapshots: content.snapshots,
                age: Duration::from_micros(unix_micros.saturating_sub(content.written)),
            },
            Ok(None) => Known::default(),
            Err(error) => {
                warn!(
                    path = %path.display(), error = format!("{error:#}"),
                    "the map-cache is not used: its mappings are asked for again when needed"
                );
                Known::default()
            }
        };
        let file = Self {
            path,
            due: None,
            rested: now,
            writing: None,
        };
        (file, known)
    }

    /// Notes that something has changed.
    pub(super) fn touch(&mut self) {
        self.due = self.due.or(Some(self.rested));
    }

    /// When [`Self::write`] is to be called next.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether the last write has not ended yet; if so, the next one is put off.
    pub(super) fn is_busy(&mut self, now: Instant) -> bool {
        let writing = self.writing.as_ref();
        let is_busy = writing.is_some_and(|writing| !writing.is_finished());
        if is_busy {
            self.due = Some(now + PAUSE);
        }
        is_busy
    }

    /// Writes, beside the loop. A write that has not ended is waited for first.
    pub(super) async fn write(
        &mut self,
        now: Instant,
        unix_micros: u64,
        mut snapshots: Vec<Snapshot>,
    ) {
        self.settle().await;
        self.due = None;
        self.rested = now + PAUSE;
        let left_out = bound(&mut snapshots);
        if left_out > 0 {
            warn!(
                left_out,
                "more mappings than the map-cache file has room for"
            );
        }
        let content = Content {
            written: unix_micros,
            snapshots,
        };
        let path = self.path.clone();
        self.writing = Some(spawn_blocking(move || {
            if let Err(error) = write(&path, &content) {
                warn!(path = %path.display(), %error, "map-cache not written");
            }
        }));
    }

    /// Waits until the last write has ended.
    pub(super) async fn settle(&mut self) {
        if let Some(writing) = self.writing.take()
            && let Err(error) = writing.await
        {
            warn!(%error, "map-cache not written");
        }
    }

    /// Removes the file: what it says is not so any more.
    pub(super) async fn remove(mut self) {
        self.settle().await;
        if let Err(error) = remove(&self.path) {
            warn!(path = %self.path.display(), %error, "map-cache not removed");
        }
    }
}

/// Leaves out what there is no room for, of the instances that have most; says how much.
fn bound(snapshots: &mut [Snapshot]) -> usize {
    let count = |snapshots: &[Snapshot]| -> usize {
        let each = snapshots.iter().map(|snapshot| snapshot.mappings.len());
        each.sum()
    };
    let before = count(snapshots);
    if before > MOST_MAPPINGS {
        let share = MOST_MAPPINGS / snapshots.len().max(1);
        for snapshot in snapshots.iter_mut() {
            snapshot.mappings.truncate(share);
        }
    }
    before - count(snapshots)
}

/// Removes the map-cache in the state directory `dir`, if there is one.
pub(super) fn remove_in(dir: &Path) -> io::Result<()> {
    remove(&dir.join("map-cache"))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn read(path: &Path) -> Result<Option<Content>> {
    match fs::metadata(path) {
        Ok(metadata) => ensure!(metadata.len() <= MOST_BYTES, "is too long"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let text = fs::read_to_string(path)?;
    let (head, body) = text.split_once('\n').context("has no first line")?;
    let Some((MAGIC, sum)) = head.split_once(' ') else {
        bail!("is of another version");
    };
    let sum = u32::from_str_radix(sum, 16).context("has no checksum")?;
    ensure!(crc32fast::hash(body.as_bytes()) == sum, "is damaged");
    Ok(Some(serde_json::from_str(body)?))
}

/// Replaces the file in one step. It need not outlive a crash of the system: neither do sessions.
fn write(path: &Path, content: &Content) -> io::Result<()> {
    let body = serde_json::to_string(content)?;
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary)?;
    write!(
        file,
        "{MAGIC} {:08x}\n{body}",
        crc32fast::hash(body.as_bytes())
    )?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "times are compared with each other only"
)]
mod tests {
    use lisp_proto::{InstanceId, PublicKey};

    use super::*;
    use crate::agent::{SavedLocator, SavedLocators, SavedMapping, Sighting};

    fn snapshot() -> Snapshot {
        Snapshot {
            iid: InstanceId(7),
            public_key: Some(PublicKey([1; 32])),
            mappings: vec![SavedMapping {
                prefix: "10.0.0.2/32".parse().unwrap(),
                region: "10.0.0.0/24".parse().unwrap(),
                key: PublicKey([2; 32]),
                endpoint: "192.0.2.2:51820".parse().unwrap(),
                ttl_left_s: 600,
                dozing: false,
                relayed: false,
                hidden: false,
            }],
            seen_at: Some(Sighting {
                endpoint: "192.0.2.9:1024".parse().unwrap(),
                behind: ["10.9.9.9".parse().unwrap()].into(),
            }),
            locators: vec![SavedLocators {
                key: PublicKey([2; 32]),
                usable: vec![SavedLocator {
                    endpoint: "192.0.2.2:51820".parse().unwrap(),
                    priority: 1,
                    weight: 100,
                }],
                gone: Vec::new(),
            }],
        }
    }

    const WRITTEN: u64 = 1_000_000_000;

    async fn written(dir: &Path) -> PathBuf {
        let (mut file, known) = CacheFile::open(dir, Instant::now(), 0);
        assert!(known.snapshots.is_empty());
        file.write(Instant::now(), WRITTEN, vec![snapshot()]).await;
        file.settle().await;
        dir.join("map-cache")
    }

    #[tokio::test]
    async fn what_was_written_is_read_with_its_age() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path()).await;
        let later = WRITTEN + 3_000_000;
        let (file, known) = CacheFile::open(dir.path(), Instant::now(), later);
        assert_eq!(known.snapshots, [snapshot()]);
        assert_eq!(known.age, Duration::from_secs(3));
        let (_, before) = CacheFile::open(dir.path(), Instant::now(), 5);
        assert_eq!(before.age, Duration::ZERO, "the clock went back");
        file.remove().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn damage_anywhere_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path()).await;
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            let (_, known) = CacheFile::open(dir.path(), Instant::now(), WRITTEN);
            assert!(known.snapshots.is_empty(), "byte {at}");
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            let (_, known) = CacheFile::open(dir.path(), Instant::now(), WRITTEN);
            assert!(known.snapshots.is_empty(), "{length} bytes");
        }
    }

    #[test]
    fn what_is_written_is_never_too_long_to_be_read() {
        let longest: SavedMapping = SavedMapping {
            prefix: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fff0/124"
                .parse()
                .unwrap(),
            region: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120"
                .parse()
                .unwrap(),
            key: PublicKey([255; 32]),
            endpoint: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"
                .parse()
                .unwrap(),
            ttl_left_s: u64::MAX,
            dozing: false,
            relayed: false,
            hidden: false,
        };
        let bytes = serde_json::to_string(&longest).unwrap().len() + 1;
        assert!(
            bytes * MOST_MAPPINGS < usize::try_from(MOST_BYTES).unwrap(),
            "{bytes}"
        );
        let of = |count| Snapshot {
            mappings: vec![longest; count],
            ..snapshot()
        };
        let mut many = vec![of(150_000), of(20_000), of(150_000)];
        assert_eq!(bound(&mut many), 2 * 90_000);
        assert_eq!(many[1].mappings.len(), 20_000);
        assert_eq!(bound(&mut many), 0);
    }

    #[tokio::test]
    async fn a_write_that_takes_long_puts_the_next_one_off() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let (mut file, _) = CacheFile::open(dir.path(), start, 0);
        assert!(!file.is_busy(start));
        file.writing = Some(tokio::spawn(std::future::pending()));
        assert!(file.is_busy(start));
        assert_eq!(file.due(), Some(start + PAUSE));
    }

    #[tokio::test]
    async fn changes_are_written_at_most_every_five_seconds() {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let (mut file, _) = CacheFile::open(dir.path(), start, 0);
        assert_eq!(file.due(), None);
        file.touch();
        assert_eq!(file.due(), Some(start));
        file.write(start, 0, Vec::new()).await;
        assert_eq!(file.due(), None);
        file.touch();
        file.touch();
        assert_eq!(file.due(), Some(start + PAUSE));
    }
}
