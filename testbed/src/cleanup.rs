//! Nothing stays behind: not after a panic, a signal, or the death of the process.
//!
//! Normal ends and panics run the destructors. SIGINT, SIGTERM and SIGHUP are caught by a
//! thread that clears what is registered here and then lets the signal do its work. After
//! SIGKILL the kernel kills the children (`PR_SET_PDEATHSIG`) and drops the TAPs, and the next
//! testbed sweeps the names that are left.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::error::best_effort;

/// Where `ip netns` looks for named namespaces.
pub(crate) const NETNS_DIRECTORY: &str = "/run/netns";
/// Every namespace of a testbed is named `lw-<pid>-<testbed>-<role>`.
pub(crate) const NAMESPACE_PREFIX: &str = "lw-";
/// Every directory of a testbed is named `lispwire-testbed-<pid>-<testbed>`.
pub(crate) const DIRECTORY_PREFIX: &str = "lispwire-testbed-";

static LEFT_TO_CLEAR: Mutex<Registry> = Mutex::new(Registry {
    children: BTreeSet::new(),
    namespaces: BTreeSet::new(),
    directories: BTreeSet::new(),
});

/// What must be cleared when the process ends by a signal.
pub(crate) struct Registry {
    /// Processes to kill.
    pub(crate) children: BTreeSet<i32>,
    /// Names of namespaces to remove.
    pub(crate) namespaces: BTreeSet<String>,
    /// Directories to remove.
    pub(crate) directories: BTreeSet<PathBuf>,
}

/// The registry of this process.
pub(crate) fn registry() -> MutexGuard<'static, Registry> {
    LEFT_TO_CLEAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that clears up on SIGINT, SIGTERM and SIGHUP, once per process.
pub(crate) fn watch_signals() -> io::Result<()> {
    static STARTED: Once = Once::new();
    let mut outcome = Ok(());
    STARTED.call_once(|| {
        outcome = Signals::new([SIGINT, SIGTERM, SIGHUP]).and_then(|mut signals| {
            thread::Builder::new()
                .name("testbed-signals".into())
                .spawn(move || signals.forever().for_each(clear_and_end))
                .map(drop)
        });
    });
    outcome
}

fn clear_and_end(signal: i32) {
    // The lock is kept to the end: nothing new is created meanwhile.
    let registry = registry();
    for child in &registry.children {
        best_effort(kill(Pid::from_raw(*child), Signal::SIGKILL));
    }
    for name in &registry.namespaces {
        best_effort(remove_namespace(name));
    }
    for directory in &registry.directories {
        best_effort(fs::remove_dir_all(directory));
    }
    best_effort(emulate_default_handler(signal));
}

/// Removes the name of a namespace; the kernel frees it when its last process is gone.
pub(crate) fn remove_namespace(name: &str) -> io::Result<()> {
    let path = Path::new(NETNS_DIRECTORY).join(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there but nothing was mounted on it.
        Ok(()) | Err(nix::errno::Errno::EINVAL) => fs::remove_file(&path),
        Err(error) => Err(error.into()),
    }
}

/// Removes what testbeds left behind whose process is dead; returns how many things that were.
pub fn sweep() -> usize {
    let mut removed = 0;
    for (name, _) in owned(Path::new(NETNS_DIRECTORY), NAMESPACE_PREFIX, |pid| {
        !alive(pid)
    }) {
        removed += usize::from(
            name.to_str()
                .is_some_and(|name| remove_namespace(name).is_ok()),
        );
    }
    let directory = std::env::temp_dir();
    for (name, _) in owned(&directory, DIRECTORY_PREFIX, |pid| !alive(pid)) {
        removed += usize::from(fs::remove_dir_all(directory.join(name)).is_ok());
    }
    removed
}

/// The entries of `directory` named `<prefix><pid>-...` whose pid `wanted` accepts.
pub(crate) fn owned(
    directory: &Path,
    prefix: &str,
    wanted: impl Fn(i32) -> bool,
) -> Vec<(std::ffi::OsString, i32)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let pid = creator(&name, prefix)?;
            wanted(pid).then_some((name, pid))
        })
        .collect()
}

fn creator(name: &OsStr, prefix: &str) -> Option<i32> {
    let (pid, _) = name.to_str()?.strip_prefix(prefix)?.split_once('-')?;
    pid.parse().ok().filter(|pid| *pid > 0)
}

fn alive(pid: i32) -> bool {
    kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_with_a_pid_belong_to_a_testbed() {
        let creator = |name: &str| creator(OsStr::new(name), NAMESPACE_PREFIX);
        assert_eq!(creator("lw-123-0-switch"), Some(123));
        assert_eq!(creator("lw-router"), None);
        assert_eq!(creator("lw--1-0"), None);
        assert_eq!(creator("vpn"), None);
    }

    #[test]
    fn what_a_living_process_owns_is_not_swept() {
        let own =
            std::env::temp_dir().join(format!("{DIRECTORY_PREFIX}{}-sweep", std::process::id()));
        // Above the largest pid that Linux gives out.
        let dead = std::env::temp_dir().join(format!("{DIRECTORY_PREFIX}4194305-sweep"));
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(&dead).unwrap();
        sweep();
        assert!(own.exists());
        assert!(!dead.exists());
        fs::remove_dir(&own).unwrap();
    }
}
