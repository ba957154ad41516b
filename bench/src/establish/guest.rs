//! The kernel's data plane, where this machine's kernel has none.

use std::fs;
use std::io::{stderr, stdout};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use testbed::vm;

use super::report::{FILE, Plane};
use super::{Args, own_program, read_report, say};

/// A guest is given so long, plus so long per cold start.
const PATIENCE: Duration = Duration::from_secs(300);
const PATIENCE_EACH: Duration = Duration::from_secs(6);

/// Whether this kernel has WireGuard, as a module or built in.
pub(super) fn has_kernel_wireguard() -> bool {
    Path::new("/sys/module/wireguard").exists()
}

/// Measures the kernel's data plane in an emulated guest with Debian's kernel; `None`, with a
/// word why, where no guest can be run.
pub(super) fn measure(args: &Args) -> Result<Option<Plane>> {
    let effort = args.effort();
    let out = args.out.join("guest");
    fs::create_dir_all(&out)?;
    let runs = effort.cold_starts.to_string();
    let program = own_program()?;
    let mut command: Vec<String> = [
        &*program.to_string_lossy(),
        "establish",
        "--in-guest",
        "--data-plane",
        "kernel",
        "--runs",
        &runs,
        "--out",
        "/out",
    ]
    .map(str::to_owned)
    .into();
    if args.quick {
        command.push("--quick".into());
    }
    let mut job = vm::Job::new(&program, command);
    job.out = Some(out.clone());
    job.timeout = PATIENCE + PATIENCE_EACH * effort.cold_starts;
    let outcome = match vm::run(&job, &mut stdout(), &mut stderr()) {
        Err(error) if error.is_unavailable() => {
            say(&format!("kernel data plane not measured: {error}"));
            return Ok(None);
        }
        outcome => outcome?,
    };
    ensure!(
        outcome.code == 0,
        "the guest's benchmark ended with exit code {}",
        outcome.code
    );
    let mut report = read_report(&out.join(FILE))?;
    Ok(report.planes.pop())
}
