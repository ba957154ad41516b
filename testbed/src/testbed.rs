//! One network under test: its namespaces, its links, its files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::runtime::{Builder, Runtime};

use crate::cleanup::{self, DIRECTORY_PREFIX, NAMESPACE_PREFIX};
use crate::error::{Doing, TestbedError, best_effort};
use crate::link::relay::Relay;
use crate::namespace::Namespace;
use crate::netlink::Mac;

/// One network under test. Clones are the same testbed.
///
/// Everything made from it is gone when the last of it is dropped, and also after a panic or
/// a signal. Any number of testbeds may exist at once, in one process or several.
#[derive(Clone)]
pub struct Testbed(Arc<Inner>);

struct Inner {
    number: u32,
    seed: u64,
    runtime: Arc<Runtime>,
    relay: OnceLock<Arc<Relay>>,
    interfaces: AtomicU32,
    directory: Directory,
}

/// A directory that is removed on drop.
struct Directory(PathBuf);

impl Testbed {
    /// Starts a testbed whose links take their random decisions from `seed`, and sweeps what
    /// dead testbeds left.
    ///
    /// # Errors
    ///
    /// When not root, or when the system is out of something.
    pub fn new(seed: u64) -> Result<Self, TestbedError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        require_root()?;
        cleanup::watch_signals().doing("catch", "signals")?;
        cleanup::sweep();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_io()
            .build()
            .doing("start", "a tokio runtime")?;
        Ok(Self(Arc::new(Inner {
            number,
            seed,
            runtime: Arc::new(runtime),
            relay: OnceLock::new(),
            interfaces: AtomicU32::new(0),
            directory: Directory::create(number)?,
        })))
    }

    /// Makes a namespace; `role` is the end of its name.
    ///
    /// # Errors
    ///
    /// When the role is taken or namespaces are not permitted.
    pub fn namespace(&self, role: &str) -> Result<Namespace, TestbedError> {
        let pid = std::process::id();
        let name = format!("{NAMESPACE_PREFIX}{pid}-{}-{role}", self.0.number);
        Namespace::create(name, &self.0.runtime)
    }

    /// A directory for configuration, state and logs; removed with the testbed.
    pub fn directory(&self) -> &Path {
        &self.0.directory.0
    }

    /// What the links' random decisions start from.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// The thread that carries frames between TAPs, started when first needed.
    pub(crate) fn relay(&self) -> Result<&Arc<Relay>, TestbedError> {
        if let Some(relay) = self.0.relay.get() {
            return Ok(relay);
        }
        let relay = Arc::new(Relay::start()?);
        Ok(self.0.relay.get_or_init(|| relay))
    }

    /// A hardware address that no other interface of this testbed has.
    pub(crate) fn next_mac(&self) -> Mac {
        let number = self.0.interfaces.fetch_add(1, Ordering::Relaxed);
        let [_, high, middle, low] = number.to_be_bytes();
        // 02: locally administered, unicast.
        [0x02, b'L', b'W', high, middle, low]
    }
}

/// Says early and clearly what would fail later.
pub(crate) fn require_root() -> Result<(), TestbedError> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(TestbedError::NotPermitted)
    }
}

impl Directory {
    fn create(number: u32) -> Result<Self, TestbedError> {
        let name = format!("{DIRECTORY_PREFIX}{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        cleanup::registry().directories.insert(path.clone());
        let directory = Self(path);
        fs::create_dir(&directory.0).doing("create", directory.0.display())?;
        Ok(directory)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let mut registry = cleanup::registry();
        best_effort(fs::remove_dir_all(&self.0));
        registry.directories.remove(&self.0);
    }
}
