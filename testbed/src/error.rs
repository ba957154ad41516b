//! What can go wrong while a network is built or run.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why a testbed could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestbedError {
    /// The process may not create network namespaces.
    #[error(
        "network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN): run this as root, for instance with sudo"
    )]
    NotPermitted,
    /// A system call failed.
    #[error("cannot {action} {subject}: {source}")]
    System {
        /// What was tried, as a verb.
        action: &'static str,
        /// What it was tried on.
        subject: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A netlink request failed.
    #[error("cannot {action} {subject}: {source}")]
    Netlink {
        /// What was tried, as a verb.
        action: &'static str,
        /// What it was tried on.
        subject: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The interface does not exist in the namespace.
    #[error("no interface {interface} in namespace {namespace}")]
    NoSuchInterface {
        /// Name of the interface.
        interface: String,
        /// Name of the namespace.
        namespace: String,
    },
    /// A link that was created without impairments cannot get any on this kernel.
    #[error(
        "this kernel has no netem: create the link with LinkParams::adjustable to change it later"
    )]
    NotAdjustable,
    /// A program of this project is not there.
    #[error("{program} is missing: build it with `{command}`")]
    NoBinary {
        /// Name of the program.
        program: &'static str,
        /// The command that builds it.
        command: String,
    },
    /// `cargo build` of the daemons failed.
    #[error("`{command}` failed:\n{output}")]
    Build {
        /// The command.
        command: String,
        /// Its last lines.
        output: String,
    },
    /// A program ended although it should have run on, or with a failure.
    #[error("{name} ended with {status}; its last lines:\n{tail}")]
    Ended {
        /// Name of the daemon or program.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines it wrote to stderr.
        tail: String,
    },
    /// Something expected did not come.
    #[error("{name}: no {expected} within {waited:?}; last lines:\n{tail}")]
    Timeout {
        /// Who was expected to say it.
        name: String,
        /// What was expected.
        expected: String,
        /// How long it was waited for.
        waited: Duration,
        /// The last lines written to stderr.
        tail: String,
    },
    /// The network is not as it should be.
    #[error("{0}")]
    Unexpected(&'static str),
    /// A program printed something other than it should.
    #[error("{program} printed {output:?}, not {expected}")]
    Output {
        /// The program.
        program: PathBuf,
        /// What it printed.
        output: String,
        /// What was expected.
        expected: &'static str,
    },
}

/// Says what was being done when an error came.
pub(crate) trait Doing<T> {
    /// Wraps the error with what was tried (a verb) and on what.
    fn doing(self, action: &'static str, subject: impl Display) -> Result<T, TestbedError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, action: &'static str, subject: impl Display) -> Result<T, TestbedError> {
        self.map_err(|source| TestbedError::System {
            action,
            subject: subject.to_string(),
            source,
        })
    }
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, action: &'static str, subject: impl Display) -> Result<T, TestbedError> {
        self.map_err(io::Error::from).doing(action, subject)
    }
}

impl<T> Doing<T> for Result<T, rtnetlink::Error> {
    fn doing(self, action: &'static str, subject: impl Display) -> Result<T, TestbedError> {
        self.map_err(|source| TestbedError::Netlink {
            action,
            subject: subject.to_string(),
            source,
        })
    }
}

/// Accepts either outcome: for what may fail without harm, or has nobody to tell.
pub(crate) fn best_effort<T, E>(_outcome: Result<T, E>) {}
