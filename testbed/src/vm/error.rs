//! Why a command could not be run in a guest.

use std::time::Duration;

use crate::error::TestbedError;

/// Why a command could not be run in a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// Something that the guest is made of cannot be had on this machine.
    #[error("{what} cannot be had: {reason}\n{remedy}")]
    Unavailable {
        /// What is missing.
        what: &'static str,
        /// Why it could not be fetched or installed.
        reason: String,
        /// What somebody can do about it.
        remedy: &'static str,
    },
    /// A file or process of this machine failed.
    #[error(transparent)]
    Host(#[from] TestbedError),
    /// A kernel module that the guest needs is not in the package.
    #[error("{package} has no module {module}")]
    NoModule {
        /// The kernel's package.
        package: String,
        /// The module.
        module: String,
    },
    /// The guest ended before its command did.
    #[error("the guest ended before its command did; its console said:\n{console}")]
    Died {
        /// The last lines of the console.
        console: String,
    },
    /// The command took too long, or the guest hung.
    #[error("stopped after {after:?}; the guest's console said:\n{console}")]
    TimedOut {
        /// How long it was let run.
        after: Duration,
        /// The last lines of the console.
        console: String,
    },
}

impl VmError {
    /// Whether the fault is this machine's, not the command's: a test skips then.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
