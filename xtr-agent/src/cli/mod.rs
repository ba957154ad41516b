//! The commands that talk to a running agent.
//!
//! | question | file |
//! |---|---|
//! | How is a running agent asked? | `mod.rs` |
//! | What does `status` print? | `status.rs`, `connections.rs` |
//! | What does `trace` print? | `trace.rs` |
//! | What does `drain` do? | `drain.rs` |
//! | What does `stop` do? | `stop.rs` |
//! | How are tables and spans of time written? | `table.rs` |

mod connections;
pub(crate) mod drain;
pub(crate) mod status;
pub(crate) mod stop;
mod table;
pub(crate) mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use command_line::admin;
use serde_json::Value;
use xtr_agent::config::Config;
use xtr_agent::shell::Request;

/// Where the agent is, as every command that asks it takes it.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Configuration file of the agent; says where its admin socket is.
    #[arg(long, short, default_value = "/etc/lispwire/xtr-agent.toml")]
    pub(crate) config: PathBuf,
    /// Admin socket of the agent; no configuration file is read then.
    #[arg(long)]
    socket: Option<PathBuf>,
}

impl Target {
    /// The path of the socket.
    ///
    /// # Errors
    /// There is no usable configuration.
    pub(crate) fn socket(&self) -> Result<PathBuf> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => Ok(Config::load(&self.config)?.admin_socket),
        }
    }

    /// Whether a configuration says what belongs to the agent.
    pub(crate) const fn has_config(&self) -> bool {
        self.socket.is_none()
    }
}

/// Asks the agent at `socket` and waits for its answer; `None` if no agent listens there.
///
/// # Errors
/// The socket may not be opened, the agent does not answer, or it refuses.
pub(crate) fn ask(socket: &Path, request: &Request, wait: Duration) -> Result<Option<Value>> {
    admin::ask(socket, "agent", request, wait)
}

/// The same, where it is an error that there is none.
///
/// # Errors
/// As [`ask`], or no agent runs.
pub(crate) fn ask_running(target: &Target, request: &Request) -> Result<Value> {
    let socket = target.socket()?;
    ask(&socket, request, ANSWER_WAIT)?.with_context(|| {
        format!(
            "no agent runs: nobody answers at {}; start it with `xtr-agent run`",
            socket.display()
        )
    })
}

/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
