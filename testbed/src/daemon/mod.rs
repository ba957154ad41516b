//! Real programs running in namespaces: how are they started, watched and ended?

mod event;
mod log;

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use event::ENDED;
pub use event::LogEvent;
pub use log::{EventLog, LogPosition};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cleanup;
use crate::clock::{monotonic_ns, nanos, sleep};
use crate::error::{Doing, TestbedError, best_effort};
use crate::namespace::Namespace;

/// Lines of the log that errors show.
const TAIL_LINES: usize = 20;
/// Time between looks at a child that should end.
const POLL: Duration = Duration::from_millis(2);

/// What to run, and where.
#[derive(Clone)]
pub struct DaemonSpec {
    /// Name in the log.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Where it runs.
    pub namespace: Namespace,
    /// Its working directory; `<name>.log` in it gets a copy of its stderr.
    pub directory: PathBuf,
}

/// A program that runs in a namespace and logs JSON lines to stderr. It is killed on drop.
pub struct Daemon {
    spec: DaemonSpec,
    log: EventLog,
    /// Where the log stood when the daemon was last started.
    started_at: LogPosition,
    running: Option<Running>,
}

struct Running {
    child: Child,
    reader: JoinHandle<()>,
}

impl Daemon {
    /// Starts a program; its log lines are added to `log`.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn start(spec: DaemonSpec, log: &EventLog) -> Result<Self, TestbedError> {
        let started_at = log.position();
        let mut daemon = Self {
            spec,
            log: log.clone(),
            started_at,
            running: None,
        };
        daemon.launch()?;
        Ok(daemon)
    }

    /// The daemon's name in the log.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Where the log stood when the daemon was last started.
    pub fn started_at(&self) -> LogPosition {
        self.started_at
    }

    /// The process, when it has been started and not been ended by this.
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Waits until the daemon has said `event` since it was last started.
    ///
    /// # Errors
    ///
    /// When it does not within `timeout`, or ends.
    pub fn wait_for(&self, event: &str, timeout: Duration) -> Result<LogEvent, TestbedError> {
        self.wait_since(self.started_at, event, timeout, |_| true)
    }

    /// Waits until the daemon has said an `event` after `position` that `wanted` accepts.
    ///
    /// # Errors
    ///
    /// When it does not within `timeout`, or ends.
    pub fn wait_since(
        &self,
        position: LogPosition,
        event: &str,
        timeout: Duration,
        wanted: impl Fn(&LogEvent) -> bool,
    ) -> Result<LogEvent, TestbedError> {
        let name = self.name();
        let found = self.log.wait(position, timeout, |line| {
            line.is(name, event) && wanted(line) || line.is(name, ENDED)
        });
        found
            .filter(|line| line.event == event)
            .ok_or_else(|| TestbedError::Timeout {
                name: name.into(),
                expected: event.into(),
                waited: timeout,
                tail: self.tail(),
            })
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// When the daemon is not running.
    pub fn signal(&self, signal: Signal) -> Result<(), TestbedError> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        let pid = Pid::from_raw(
            pid.ok_or(nix::errno::Errno::ESRCH)
                .doing("signal", self.name())?,
        );
        kill(pid, signal).doing("signal", self.name())
    }

    /// Stops the daemon by SIGINT, at which it leaves nothing behind, and waits for its end.
    ///
    /// # Errors
    ///
    /// When it does not end within `timeout` (it is killed then) or ends with a failure.
    pub fn stop(&mut self, timeout: Duration) -> Result<(), TestbedError> {
        self.end_by(Signal::SIGINT, timeout)
    }

    /// Stops the daemon by a signal and waits for its end.
    ///
    /// # Errors
    ///
    /// As [`stop`](Self::stop).
    pub fn end_by(&mut self, signal: Signal, timeout: Duration) -> Result<(), TestbedError> {
        self.signal(signal)?;
        let Some(status) = self.wait_for_end(timeout)? else {
            self.kill();
            return Err(TestbedError::Timeout {
                name: self.name().into(),
                expected: format!("end after {signal}"),
                waited: timeout,
                tail: self.tail(),
            });
        };
        if status.success() {
            return Ok(());
        }
        Err(TestbedError::Ended {
            name: self.name().into(),
            status,
            tail: self.tail(),
        })
    }

    /// Kills the daemon (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        if let Some(Running { mut child, reader }) = self.running.take() {
            forget(&child);
            best_effort(child.kill());
            best_effort(child.wait());
            best_effort(reader.join());
        }
    }

    /// Starts the daemon again after [`stop`](Self::stop) or [`kill`](Self::kill).
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub fn start_again(&mut self) -> Result<(), TestbedError> {
        self.kill();
        self.launch()
    }

    /// The last lines of this daemon's log.
    pub fn tail(&self) -> String {
        let events = self.log.since(LogPosition::default());
        let own = events.iter().filter(|event| event.daemon == self.name());
        let lines: Vec<_> = own.map(line_of).collect();
        lines
            .get(lines.len().saturating_sub(TAIL_LINES)..)
            .unwrap_or_default()
            .join("\n")
    }

    fn launch(&mut self) -> Result<(), TestbedError> {
        let DaemonSpec {
            name,
            program,
            arguments,
            namespace,
            directory,
        } = &self.spec;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(directory)
            // A group of its own: Ctrl-C reaches the testbed alone, which then ends its children.
            .process_group(0)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        self.started_at = self.log.position();
        let mut child = namespace.spawn(command)?;
        if let Ok(pid) = i32::try_from(child.id()) {
            cleanup::registry().children.insert(pid);
        }
        let copy = directory.join(format!("{name}.log"));
        let copy = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&copy)
            .doing("open", copy.display())?;
        let (name, log) = (name.clone(), self.log.clone());
        let stderr = child.stderr.take();
        let reader = thread::spawn(move || collect(stderr, &name, &log, copy));
        self.running = Some(Running { child, reader });
        Ok(())
    }

    /// Waits for the end of the process; `None` after `timeout`.
    fn wait_for_end(&mut self, timeout: Duration) -> Result<Option<ExitStatus>, TestbedError> {
        let end = monotonic_ns().saturating_add(nanos(timeout));
        let Some(running) = &mut self.running else {
            return Ok(None);
        };
        let status = loop {
            match running
                .child
                .try_wait()
                .doing("wait for", &self.spec.name)?
            {
                Some(status) => break status,
                None if monotonic_ns() >= end => return Ok(None),
                None => sleep(POLL),
            }
        };
        self.kill();
        Ok(Some(status))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Takes the process off the list of those to kill when this one ends by a signal: once waited
/// for, its number may be another's.
fn forget(child: &Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        cleanup::registry().children.remove(&pid);
    }
}

/// Reads a daemon's stderr to its end, into the log and a file.
fn collect(stderr: Option<ChildStderr>, name: &str, log: &EventLog, mut copy: impl Write) {
    let Some(stderr) = stderr else { return };
    // Lines that are not UTF-8 are not ours; the copy is for people only.
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        best_effort(writeln!(copy, "{line}"));
        log.push(LogEvent::read(name, &line));
    }
    log.push(LogEvent::ended(name));
}

fn line_of(event: &LogEvent) -> String {
    let fields = event
        .fields
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    format!("{} {}", event.level, fields.collect::<Vec<_>>().join(" "))
}
