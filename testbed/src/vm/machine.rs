//! The emulated machine.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;

use tempfile::TempDir;

use super::cpio;
use super::error::VmError;
use super::job::{Job, Outcome};
use super::ports::{Port, copy};
use crate::cleanup::{self, DIRECTORY_PREFIX};
use crate::error::{Doing, best_effort};
use crate::sys;

/// What the kernel is told; what follows `--` are arguments of its first program.
///
/// Without `no_timer_check` the kernel panics when the host is too busy to deliver its ticks.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 panic=-1 mitigations=off no_timer_check tsc=reliable";
const FIRST_PROGRAM: &str = "rdinit=/init -- vm --guest";
/// Lines of the console that errors show.
const CONSOLE_LINES: usize = 25;

/// Files of one run, removed with it, also when a signal ends this process.
pub(super) struct RunDirectory(TempDir);

impl RunDirectory {
    /// Makes it, and sweeps what dead processes left.
    pub(super) fn create() -> Result<Self, VmError> {
        cleanup::watch_signals().doing("catch", "signals")?;
        cleanup::sweep();
        let prefix = format!("{DIRECTORY_PREFIX}{}-vm", std::process::id());
        // Under the lock, so that a signal finds it registered.
        let mut registry = cleanup::registry();
        let directory = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir()
            .doing("create", "a directory")?;
        registry.directories.insert(directory.path().to_owned());
        Ok(Self(directory))
    }

    /// A copy of the kernel.
    pub(super) fn kernel(&self) -> PathBuf {
        self.0.path().join("kernel")
    }

    /// The first file system.
    pub(super) fn initramfs(&self) -> PathBuf {
        self.0.path().join("initramfs")
    }

    fn console(&self) -> PathBuf {
        self.0.path().join("console")
    }

    /// Where QEMU puts what comes out of a port: `/dev/fd` are its own stdout and stderr.
    fn port(&self, port: Port) -> PathBuf {
        match port {
            Port::Stdout => PathBuf::from("/dev/fd/1"),
            Port::Stderr => PathBuf::from("/dev/fd/2"),
            Port::Files => self.0.path().join("files"),
            Port::Outcome => self.0.path().join("outcome"),
        }
    }

    /// The last lines that the kernel wrote.
    fn console_tail(&self) -> String {
        let console = fs::read(self.console()).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<_> = console.lines().collect();
        lines
            .get(lines.len().saturating_sub(CONSOLE_LINES)..)
            .unwrap_or_default()
            .join("\n")
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let mut registry = cleanup::registry();
        best_effort(fs::remove_dir_all(self.0.path()));
        registry.directories.remove(self.0.path());
    }
}

/// Runs the guest to its end; copies what its command writes to `stdout` and `stderr`.
pub(super) fn run(
    job: &Job,
    qemu: &Path,
    directory: &RunDirectory,
    stdout: &mut (dyn Write + Send),
    stderr: &mut (dyn Write + Send),
) -> Result<Outcome, VmError> {
    let mut machine = Machine::start(job, qemu, directory)?;
    let (out, err) = (machine.0.stdout.take(), machine.0.stderr.take());
    let in_time = thread::scope(|scope| {
        let (ended, all_ended) = mpsc::channel::<Infallible>();
        let out_ended = ended.clone();
        // Both come to their ends, and the senders are dropped, when QEMU ends.
        scope.spawn(move || {
            out.into_iter().for_each(|out| copy(out, stdout));
            drop(out_ended);
        });
        scope.spawn(move || {
            err.into_iter().for_each(|err| copy(err, stderr));
            drop(ended);
        });
        let in_time = all_ended.recv_timeout(job.timeout) != Err(RecvTimeoutError::Timeout);
        machine.kill();
        in_time
    });
    let outcome = fs::read(directory.port(Port::Outcome)).unwrap_or_default();
    if let Ok(outcome) = serde_json::from_slice(&outcome) {
        if let Some(out) = &job.out {
            let files = directory.port(Port::Files);
            let unpacked = fs::create_dir_all(out)
                .and_then(|()| cpio::unpack(io::BufReader::new(File::open(&files)?), out));
            unpacked.doing("unpack the guest's files into", out.display())?;
        }
        return Ok(outcome);
    }
    let console = directory.console_tail();
    Err(if in_time {
        VmError::Died { console }
    } else {
        VmError::TimedOut {
            after: job.timeout,
            console,
        }
    })
}

/// A running QEMU; killed on drop.
struct Machine(Child);

impl Machine {
    fn start(job: &Job, qemu: &Path, directory: &RunDirectory) -> Result<Self, VmError> {
        let mut command = Command::new(qemu);
        command
            .args(arguments(job, directory))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = sys::spawn(&mut command, None).doing("start", qemu.display())?;
        if let Ok(pid) = i32::try_from(child.id()) {
            cleanup::registry().children.insert(pid);
        }
        Ok(Self(child))
    }

    fn kill(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            cleanup::registry().children.remove(&pid);
        }
        best_effort(self.0.kill());
        best_effort(self.0.wait());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

fn arguments(job: &Job, directory: &RunDirectory) -> Vec<OsString> {
    let (console, verbosity) = if job.console {
        (PathBuf::from("/dev/fd/2"), "loglevel=7")
    } else {
        (directory.console(), "quiet loglevel=4")
    };
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    // Emulation only: it works everywhere, also where the host is itself a guest.
    let accelerator = if job.virtual_time {
        "tcg,thread=single"
    } else {
        "tcg,thread=multi"
    };
    add(&["-accel", accelerator, "-cpu", "max", "-machine", "q35"]);
    if job.virtual_time {
        // One nanosecond per instruction; idle time passes at once.
        add(&["-icount", "shift=0,sleep=off"]);
    }
    add(&[
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-monitor",
        "none",
    ]);
    add(&[
        "-smp",
        &job.processors.to_string(),
        "-m",
        &job.memory_mib.to_string(),
    ]);
    add(&["-kernel", &directory.kernel().to_string_lossy()]);
    add(&["-initrd", &directory.initramfs().to_string_lossy()]);
    add(&[
        "-append",
        &format!("{KERNEL_ARGUMENTS} {verbosity} {FIRST_PROGRAM}"),
    ]);
    add(&[
        "-chardev",
        &format!("file,id=console,path={}", console.display()),
    ]);
    add(&["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    for port in Port::ALL {
        let number = port.number();
        let path = directory.port(port);
        add(&[
            "-chardev",
            &format!("file,id=port{number},path={}", path.display()),
        ]);
        add(&[
            "-device",
            &format!("virtserialport,chardev=port{number},nr={number}"),
        ]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_run_goes_with_it() {
        let directory = RunDirectory::create().unwrap();
        let path = directory.0.path().to_owned();
        fs::write(directory.console(), "one\ntwo\n").unwrap();
        assert_eq!(directory.console_tail(), "one\ntwo");
        assert!(cleanup::registry().directories.contains(&path));
        drop(directory);
        assert!(!path.exists());
        assert!(!cleanup::registry().directories.contains(&path));
    }
}
