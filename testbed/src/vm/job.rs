//! What is to be run in a guest, and what came of it.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::userland::in_real_directory;

/// The project's programs; those that are beside the testbed's go into the guest.
const PROGRAMS: [&str; 3] = ["map-server", "xtr-agent", "lig"];
/// What the guest's command inherits from this process.
const INHERITED: [&str; 3] = ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR"];

/// What is to be run in a guest.
#[derive(Clone, Debug)]
pub struct Job {
    /// The testbed's own program, an absolute path: the guest's first process.
    pub testbed: PathBuf,
    /// The command. A program that is a file of this machine is taken along.
    pub command: Vec<String>,
    /// More files: where each is here, and where it is in the guest.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Environment variables of the command.
    pub environment: Vec<(String, String)>,
    /// Gets what the command leaves in `/out`.
    pub out: Option<PathBuf>,
    /// How long the guest may run, with its start.
    pub timeout: Duration,
    /// Memory of the guest, in MiB.
    pub memory_mib: u32,
    /// Processors of the guest. With more than one, emulation spends its time on the processors'
    /// waiting for each other.
    pub processors: u32,
    /// Whether QEMU may be installed when it is missing.
    pub install: bool,
    /// Whether the kernel's messages are wanted on stderr.
    pub console: bool,
    /// Whether the guest's clock counts its instructions, a thousand million to the second, in place
    /// of seconds: it then measures what a machine with such a processor would, however slow the
    /// emulation is and whatever else runs here.
    pub virtual_time: bool,
}

impl Job {
    /// Runs `command` with the programs that are in the directory of `testbed`.
    pub fn new(testbed: &Path, command: Vec<String>) -> Self {
        let inherited = INHERITED.map(|name| (name.to_owned(), env::var(name).ok()));
        Self {
            testbed: in_real_directory(testbed),
            command,
            files: Vec::new(),
            environment: inherited
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
            out: None,
            timeout: Duration::from_secs(300),
            memory_mib: 1024,
            processors: 1,
            install: true,
            console: false,
            virtual_time: false,
        }
    }

    /// Takes a file of this machine along, to the same path.
    pub fn add_file(&mut self, path: &Path) {
        let path = in_real_directory(path);
        self.files.push((path.clone(), path));
    }

    /// All files that go into the guest.
    pub(super) fn placed_files(&self) -> Vec<(PathBuf, PathBuf)> {
        let beside = self.testbed.parent().into_iter();
        let programs = beside.flat_map(|directory| PROGRAMS.map(|name| directory.join(name)));
        let command = self.command.first().filter(|command| command.contains('/'));
        let command = command.map(|command| in_real_directory(Path::new(command)));
        let at_same_path = [self.testbed.clone()]
            .into_iter()
            .chain(programs)
            .chain(command);
        let at_same_path = at_same_path.filter(|path| path.is_file());
        at_same_path
            .map(|path| (path.clone(), path))
            .chain(self.files.iter().cloned())
            .collect()
    }
}

/// What the guest's first process is told; the same words as in [`Job`].
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) command: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    /// The guest ends itself after this, should nobody be left to end it.
    pub(super) timeout_s: u64,
    /// Whether `/out` is wanted.
    pub(super) archive: bool,
}

impl Order {
    pub(super) fn of(job: &Job) -> Self {
        let mut command = job.command.clone();
        if let Some(program) = command.first_mut().filter(|program| program.contains('/')) {
            let real = in_real_directory(Path::new(program));
            *program = real.to_string_lossy().into_owned();
        }
        let mut environment = vec![("PATH".to_owned(), search_path(job))];
        environment.extend(job.environment.iter().cloned());
        Self {
            command,
            environment,
            timeout_s: job.timeout.as_secs().saturating_add(GRACE_S),
            archive: job.out.is_some(),
        }
    }
}

/// How much longer than allowed the guest waits before it ends itself, in seconds.
const GRACE_S: u64 = 5;

/// The directories of the job's programs, then those of the system.
fn search_path(job: &Job) -> String {
    let mut directories: Vec<_> = Vec::new();
    for (_, guest) in job.placed_files() {
        let directory = guest
            .parent()
            .map(|path| path.to_string_lossy().into_owned());
        if let Some(directory) = directory.filter(|directory| !directories.contains(directory)) {
            directories.push(directory);
        }
    }
    directories.extend(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(str::to_owned));
    directories.join(":")
}

/// How the guest's command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The command's exit code; 128 and the signal's number when a signal ended it.
    pub code: u8,
    /// From the start of the guest's kernel to the start of the command, in milliseconds.
    pub boot_ms: u64,
    /// How long the command ran, in milliseconds of the guest.
    pub run_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_of_added_programs_are_searched_first() {
        let mut job = Job::new(Path::new("/nowhere/testbed"), vec!["demo".into()]);
        job.files.push(("/etc/hosts".into(), "/work/tool".into()));
        let path = search_path(&job);
        assert!(path.starts_with("/work:/usr/sbin:"), "{path}");
    }

    #[test]
    fn a_command_that_is_a_file_is_taken_along() {
        let own = env::current_exe().unwrap();
        let job = Job::new(&own, vec!["/bin/sh".into(), "-c".into()]);
        let shell = in_real_directory(Path::new("/bin/sh"));
        assert!(job.placed_files().contains(&(shell.clone(), shell.clone())));
        assert_eq!(Order::of(&job).command, [shell.to_str().unwrap(), "-c"]);
    }
}
