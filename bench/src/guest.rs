//! The kernel's data plane, where this machine's kernel has none.
//!
//! The guest is emulated, so its processor is slow; but its clock counts instructions, a thousand
//! million to the second, and so it measures what a machine with such a processor would.

use std::fs;
use std::io::{stderr, stdout};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use command_line::say;
use serde::de::DeserializeOwned;
use testbed::vm;

use crate::own_program;

/// Memory of a guest for a few hosts.
const MEMORY_MIB: u32 = 1_024;

/// Whether this kernel has WireGuard, as a module or built in.
pub(crate) fn has_kernel_wireguard() -> bool {
    Path::new("/sys/module/wireguard").exists()
}

/// Runs this program with `arguments` and `--in-guest --out` in a guest with Debian's kernel, and
/// returns what it left in `file`; `None`, with a word why, where no guest can be run.
pub(crate) fn run<R: DeserializeOwned>(
    arguments: &[&str],
    out: &Path,
    file: &str,
    patience: Duration,
) -> Result<Option<R>> {
    run_with_memory(arguments, out, file, patience, MEMORY_MIB)
}

/// The same in a guest with so much memory, in MiB.
pub(crate) fn run_with_memory<R: DeserializeOwned>(
    arguments: &[&str],
    out: &Path,
    file: &str,
    patience: Duration,
    memory_mib: u32,
) -> Result<Option<R>> {
    let out = out.join("guest");
    fs::create_dir_all(&out)?;
    let program = own_program()?;
    let mut command = vec![program.to_string_lossy().into_owned()];
    command.extend(arguments.iter().copied().map(str::to_owned));
    command.extend(["--in-guest", "--out", "/out"].map(str::to_owned));
    let mut job = vm::Job::new(&program, command);
    job.out = Some(out.clone());
    job.timeout = patience;
    job.virtual_time = true;
    job.memory_mib = memory_mib;
    let outcome = match vm::run(&job, &mut stdout(), &mut stderr()) {
        Err(error) if error.is_unavailable() => {
            say(&format!("kernel data plane not measured: {error}"));
            return Ok(None);
        }
        outcome => outcome?,
    };
    let code = outcome.code;
    ensure!(
        code == 0,
        "the guest's benchmark ended with exit code {code}"
    );
    let path = out.join(file);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let report = serde_json::from_str(&text);
    Ok(Some(report.with_context(|| {
        format!("understand {}", path.display())
    })?))
}
