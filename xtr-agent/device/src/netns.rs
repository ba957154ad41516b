//! Another network namespace: interfaces, addresses and routes are made there, sockets of the
//! underlay stay here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use tokio::runtime::Handle;

use crate::error::DeviceError;

/// A network namespace that exists for as long as this is kept.
#[derive(Clone, Debug)]
pub struct NetNs {
    name: String,
    file: Arc<File>,
}

impl NetNs {
    /// Opens the namespace that `ip netns` knows by this name.
    ///
    /// # Errors
    /// There is none.
    pub fn open(name: &str) -> Result<Self, DeviceError> {
        let path: PathBuf = Path::new(NETNS_DIRECTORY).join(name);
        match File::open(&path) {
            Ok(file) => Ok(Self {
                name: name.to_owned(),
                file: Arc::new(file),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = name.to_owned();
                Err(DeviceError::NoNamespace { name })
            }
            Err(error) => Err(DeviceError::system(OPENING, name, error)),
        }
    }

    /// Returns the name `ip netns` knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure in the namespace, on a thread of its own, and waits for it. Sockets that it
    /// opens stay in the namespace and may be returned.
    ///
    /// # Errors
    /// CAP_SYS_ADMIN is missing.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> Result<T, DeviceError> {
        let runtime = Handle::try_current().ok();
        let outcome = thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let _runtime = runtime.as_ref().map(Handle::enter);
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map(|()| body())
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        });
        outcome.map_err(|errno| DeviceError::system(ENTERING, &self.name, errno.into()))
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Runs a closure in `netns`, or right here when there is none.
///
/// # Errors
/// The namespace cannot be entered, or what the closure returns.
pub(crate) fn inside<T: Send>(
    netns: Option<&NetNs>,
    body: impl FnOnce() -> Result<T, DeviceError> + Send,
) -> Result<T, DeviceError> {
    match netns {
        Some(netns) => netns.run(body)?,
        None => body(),
    }
}

/// Where `ip netns add` puts its namespaces.
const NETNS_DIRECTORY: &str = "/run/netns";

const OPENING: &str = "opening network namespace";
const ENTERING: &str = "entering network namespace";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_there_is_an_error_with_a_remedy() {
        let error = NetNs::open("lispwire-no-such-namespace").unwrap_err();
        assert!(error.to_string().contains("ip netns add"), "{error}");
    }
}
