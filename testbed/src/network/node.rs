//! A host with a daemon on it: its files, its start and its end.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::daemon::{Daemon, DaemonSpec, EventLog};
use crate::error::{Doing, TestbedError};
use crate::snapshot::Snapshot;
use crate::topology::Host;

/// Time that a daemon may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A host with a daemon on it.
pub struct Node {
    /// Where it runs.
    pub host: Host,
    /// Its configuration file.
    pub config: PathBuf,
    /// Its keys and stored state.
    pub state_dir: PathBuf,
    /// The daemon, once started.
    daemon: Option<Daemon>,
    spec: DaemonSpec,
    /// The namespace before any daemon ran in it.
    untouched: Snapshot,
}

impl Node {
    pub(super) fn new(host: Host, program: &Path, directory: &Path) -> Result<Self, TestbedError> {
        let directory = directory.join(&host.role);
        fs::create_dir(&directory).doing("create", directory.display())?;
        let config = directory.join("config.toml");
        let arguments = ["run", "--log-format", "json", "--config"].map(String::from);
        let spec = DaemonSpec {
            name: host.role.clone(),
            program: program.into(),
            arguments: arguments
                .into_iter()
                .chain([config.display().to_string()])
                .collect(),
            namespace: host.namespace.clone(),
            directory: directory.clone(),
        };
        Ok(Self {
            untouched: host.namespace.snapshot()?,
            host,
            config,
            state_dir: directory.join("state"),
            daemon: None,
            spec,
        })
    }

    /// The daemon's name in the log.
    pub fn name(&self) -> &str {
        &self.host.role
    }

    /// Directory of the configuration, the state and the log copy.
    pub fn directory(&self) -> &Path {
        &self.spec.directory
    }

    /// The daemon.
    ///
    /// # Errors
    ///
    /// When it was never started.
    pub fn daemon(&self) -> Result<&Daemon, TestbedError> {
        let missing = || nix::errno::Errno::ESRCH;
        self.daemon
            .as_ref()
            .ok_or_else(missing)
            .doing("find", format_args!("daemon {}", self.name()))
    }

    /// Has another instance of the daemon's program ask the running one, with the same configuration.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output, TestbedError> {
        let program = &self.spec.program;
        let mut command = Command::new(program);
        command.args(arguments).arg("--config").arg(&self.config);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = self.host.namespace.spawn(command)?;
        child.wait_with_output().doing("run", program.display())
    }

    /// Starts the daemon, or starts it again.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn start(&mut self, log: &EventLog) -> Result<(), TestbedError> {
        match &mut self.daemon {
            Some(daemon) => daemon.start_again(),
            None => {
                self.daemon = Some(Daemon::start(self.spec.clone(), log)?);
                Ok(())
            }
        }
    }

    /// Stops the daemon if it runs; it leaves nothing behind.
    ///
    /// # Errors
    ///
    /// When it does not end in time or ends with a failure.
    pub fn stop(&mut self) -> Result<(), TestbedError> {
        match &mut self.daemon {
            Some(daemon) if daemon.pid().is_some() => daemon.stop(STOP_TIMEOUT),
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the daemon by SIGTERM, as `systemctl restart` would.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop).
    pub fn leave(&mut self) -> Result<(), TestbedError> {
        match &mut self.daemon {
            Some(daemon) if daemon.pid().is_some() => {
                daemon.end_by(nix::sys::signal::Signal::SIGTERM, STOP_TIMEOUT)
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Kills the daemon if it runs, as a crash would.
    pub fn kill(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.kill();
        }
    }

    /// All files below the node's directory.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        list_files(self.directory(), &mut found);
        found
    }

    /// What differs in the namespace from before any daemon ran in it: interfaces, addresses,
    /// routes and rules that came (`+`) or went (`-`).
    ///
    /// # Errors
    ///
    /// When the kernel does not answer.
    pub fn leftovers(&self) -> Result<Vec<String>, TestbedError> {
        Ok(self
            .host
            .namespace
            .snapshot()?
            .changes_since(&self.untouched))
    }

    pub(super) fn underlay_address(&self) -> Result<IpAddr, TestbedError> {
        let first = self.host.addresses().first().copied();
        first
            .ok_or(nix::errno::Errno::EADDRNOTAVAIL)
            .doing("find the address of", self.name())
    }

    pub(super) fn write_config(&mut self, text: &str) -> Result<(), TestbedError> {
        fs::write(&self.config, text).doing("write", self.config.display())
    }
}

/// Runs `<program> pubkey`, which makes the keys, and returns the last word of each line: the first
/// key and all others, of which there must be `others`.
pub(super) fn public_keys(
    program: &Path,
    config: &Path,
    others: usize,
) -> Result<(String, Vec<String>), TestbedError> {
    let output = Command::new(program)
        .args(["pubkey", "--config"])
        .arg(config)
        .output()
        .doing("run", program.display())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut keys = text
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .map(String::from);
    let (first, rest) = (keys.next(), keys.collect::<Vec<_>>());
    match first.filter(|_| rest.len() == others) {
        Some(first) => Ok((first, rest)),
        None => Err(TestbedError::Output {
            program: program.into(),
            output: text + &String::from_utf8_lossy(&output.stderr),
            expected: "public keys",
        }),
    }
}

fn list_files(directory: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            list_files(&path, found);
        }
        found.insert(path);
    }
}
