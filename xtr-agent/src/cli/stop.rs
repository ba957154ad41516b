//! `xtr-agent stop`: ends a running agent; with `--purge`, everything it made goes as well.

use std::time::Duration;

use anyhow::{Result, bail};
use command_line::say;
use xtr_agent::config::Config;
use xtr_agent::shell::{Request, remove_leftovers};

use super::{Target, ask};

/// Withdrawing takes up to a second, closing the interfaces up to two, in a busy moment longer.
const STOP_WAIT: Duration = Duration::from_secs(20);

/// Runs the command.
///
/// # Errors
/// No agent runs (without `--purge`), it does not end, or what is left cannot be removed.
pub(crate) fn run(target: &Target, purge: bool) -> Result<()> {
    let socket = target.socket()?;
    if ask(&socket, &Request::Stop { purge }, STOP_WAIT)?.is_some() {
        let done = if purge {
            "stopped; its interfaces and routes are gone, its registrations withdrawn"
        } else {
            "stopped"
        };
        say(done);
        return Ok(());
    }
    if !purge {
        bail!(
            "no agent runs: nobody answers at {}; `stop --purge` removes what a dead one left",
            socket.display()
        );
    }
    if !target.has_config() {
        bail!("no agent runs; to remove what it left, name its configuration with --config");
    }
    let removed = remove_leftovers(&Config::load(&target.config)?)?;
    if removed.is_empty() {
        say("no agent runs, and nothing is left of one");
    } else {
        say(&format!("no agent runs; removed {}", removed.join(", ")));
    }
    Ok(())
}
