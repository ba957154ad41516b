//! A machine with a kernel of its own: how does a command run on *kernel* WireGuard and netem
//! where this machine's kernel has neither?
//!
//! Debian's kernel for virtual machines is started in QEMU, in software emulation, with an
//! initramfs of busybox, a few tools of this machine, the project's programs and the modules
//! they need. The command runs in it as root. What it writes comes out as it is written, the
//! files it leaves in `/out` and its exit code at the end.
//!
//! Kernel and tools are kept in `$XDG_CACHE_HOME/lispwire` (or `~/.cache/lispwire`); removing
//! that directory gets the newest kernel. Nothing but QEMU is ever installed. Any number of
//! guests may run at once.

pub mod cli;
mod cpio;
mod error;
mod guest;
mod image;
mod job;
mod machine;
mod modules;
mod packages;
mod ports;
mod userland;

use std::env;
use std::io::Write;
use std::path::PathBuf;

pub use error::VmError;
pub use job::{Job, Outcome};

use crate::error::best_effort;

/// Runs a job in a guest of its own; what its command writes goes to `stdout` and `stderr` as
/// it comes, and so does, to `stderr`, what is being installed or downloaded.
///
/// # Errors
///
/// [`VmError::Unavailable`] when this machine cannot run guests; otherwise when the guest dies
/// or takes too long. A command that fails is no error.
pub fn run(
    job: &Job,
    stdout: &mut (dyn Write + Send),
    stderr: &mut (dyn Write + Send),
) -> Result<Outcome, VmError> {
    let mut say = |what: &str| best_effort(writeln!(stderr, "testbed vm: {what}"));
    let qemu = packages::ensure_qemu(job.install, &mut say)?;
    let directory = machine::RunDirectory::create()?;
    image::write(job, &cache_directory(), &directory, &mut say)?;
    machine::run(job, &qemu, &directory, stdout, stderr)
}

fn cache_directory() -> PathBuf {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    cache.unwrap_or_else(env::temp_dir).join("lispwire")
}
