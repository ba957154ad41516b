//! A network that stays up after the demo, and its removal.
//!
//! A process has to stay: it carries the frames of links without netem and is the parent of the
//! daemons. `demo --keep` starts it, shows what it says, and leaves it behind.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout, setsid};

use crate::cleanup::{self, DIRECTORY_PREFIX};
use crate::clock::{monotonic_ns, nanos, sleep};
use crate::error::best_effort;
use crate::network::Network;
use crate::testbed::require_root;

/// File in a testbed's directory that says that its network was kept on purpose.
const MARK: &str = "kept";
/// How long a holder may take to fail after it has said its last word, or to end when told to.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Runs the demo in a process that stays, and shows what that says.
pub(super) fn run_holder() -> Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find the testbed's own program")?;
    let mut holder = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg("--holder")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the process that keeps the network")?;
    if let Some(mut output) = holder.stdout.take() {
        io::copy(&mut output, &mut io::stdout())?;
    }
    // Its output has ended: either it holds the network now, or it is about to end.
    let end = monotonic_ns().saturating_add(nanos(PATIENCE));
    while monotonic_ns() < end {
        if let Some(status) = holder.try_wait()? {
            let code = status.code().and_then(|code| u8::try_from(code).ok());
            return Ok(ExitCode::from(code.unwrap_or(1)));
        }
        if is_kept(holder.id().cast_signed()) {
            break;
        }
        sleep(POLL);
    }
    Ok(ExitCode::SUCCESS)
}

/// Says how to look around, lets go of the terminal, and holds the network until a signal.
pub(super) fn hold(network: &Network, out: &mut impl Write) -> Result<()> {
    explain(network, out)?;
    out.flush()?;
    setsid().context("cannot leave the terminal")?;
    fs::write(network.testbed().directory().join(MARK), "")?;
    let nowhere = fs::File::options().write(true).open("/dev/null")?;
    dup2_stdout(&nowhere)?;
    dup2_stderr(&nowhere)?;
    // The thread that watches signals clears everything up and ends the process.
    loop {
        sleep(PATIENCE);
    }
}

fn explain(network: &Network, out: &mut impl Write) -> Result<()> {
    let [alpha, beta, ..] = network.endpoints.as_slice() else {
        anyhow::bail!("a pair needs two endpoints");
    };
    let alpha_space = alpha.namespace().name();
    let server_space = network.server.host.namespace.name();
    let agent = alpha
        .node
        .daemon()?
        .pid()
        .context("alpha's agent is not running")?;
    let log = alpha.node.directory().join("alpha.log");
    let lig = network.binaries().lig.display();
    let program = std::env::current_exe()?;
    writeln!(out, "The network stays up. Look around:")?;
    writeln!(out, "  ip netns exec {alpha_space} ping {}", beta.eids[0])?;
    writeln!(out, "  ip netns exec {alpha_space} ip route")?;
    writeln!(
        out,
        "  ip netns exec {alpha_space} {lig} {} --server fd4c:1::1",
        beta.eids[1]
    )?;
    writeln!(out, "  ip netns exec {server_space} ip address")?;
    writeln!(out, "  kill -USR1 {agent}; tail -n 1 {}", log.display())?;
    writeln!(out, "Remove it:")?;
    writeln!(out, "  {} clean {}", program.display(), std::process::id())?;
    Ok(())
}

/// Removes networks that `demo --keep` left up, and what killed testbeds left behind.
#[derive(Clone, Debug, clap::Args)]
pub struct CleanArgs {
    /// Only the networks of these processes
    #[arg(value_name = "PID")]
    holders: Vec<i32>,
}

/// Runs `testbed clean`.
///
/// # Errors
///
/// When not root, or when a process that holds a network cannot be ended.
pub fn clean(args: &CleanArgs) -> Result<ExitCode> {
    require_root()?;
    let mut removed = 0;
    let wanted = |pid| (args.holders.is_empty() || args.holders.contains(&pid)) && is_kept(pid);
    for (_, pid) in cleanup::owned(&std::env::temp_dir(), DIRECTORY_PREFIX, wanted) {
        end(Pid::from_raw(pid))?;
        removed += 1;
    }
    let swept = cleanup::sweep();
    let mut out = io::stdout();
    best_effort(writeln!(
        out,
        "Removed {removed} kept networks, and {swept} things of dead testbeds."
    ));
    Ok(ExitCode::SUCCESS)
}

/// Whether this process holds a network that was kept on purpose.
fn is_kept(pid: i32) -> bool {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
    comm.is_ok_and(|name| name.trim() == "testbed") && marks(pid).any(|mark| mark.exists())
}

fn marks(pid: i32) -> impl Iterator<Item = PathBuf> {
    let parent = std::env::temp_dir();
    let own = cleanup::owned(&parent, DIRECTORY_PREFIX, move |other| other == pid);
    own.into_iter()
        .map(move |(name, _)| parent.join(Path::new(&name)).join(MARK))
}

fn end(holder: Pid) -> Result<()> {
    kill(holder, Signal::SIGTERM).context("cannot end the process that holds the network")?;
    let end = monotonic_ns().saturating_add(nanos(PATIENCE));
    while kill(holder, None) != Err(Errno::ESRCH) {
        if monotonic_ns() > end {
            kill(holder, Signal::SIGKILL)?;
            break;
        }
        sleep(POLL);
    }
    Ok(())
}
