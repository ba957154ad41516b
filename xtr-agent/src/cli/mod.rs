//! The commands that talk to a running agent.
//!
//! | question | file |
//! |---|---|
//! | How is a running agent asked? | `mod.rs` |
//! | What does `status` print? | `status.rs` |
//! | What does `trace` print? | `trace.rs` |
//! | What does `stop` do? | `stop.rs` |
//! | How are tables and spans of time written? | `table.rs` |

pub(crate) mod status;
pub(crate) mod stop;
mod table;
pub(crate) mod trace;

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
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

/// What became of an attempt to reach an agent.
pub(crate) enum Reached {
    /// Its answer.
    Answer(Value),
    /// No agent listens at the socket.
    Nobody,
}

/// Asks the agent at `socket` and waits for its answer.
///
/// # Errors
/// The socket may not be opened, the agent does not answer, or it refuses.
pub(crate) fn ask(socket: &Path, request: &Request, wait: Duration) -> Result<Reached> {
    let at = || format!("agent at {}", socket.display());
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(error) if is_one_of(&error, &[ErrorKind::NotFound, ErrorKind::ConnectionRefused]) => {
            return Ok(Reached::Nobody);
        }
        Err(error) if is_one_of(&error, &[ErrorKind::PermissionDenied]) => {
            return Err(anyhow!("not permitted; run as root")).with_context(at);
        }
        Err(error) => return Err(error).with_context(at),
    };
    stream.set_read_timeout(Some(wait))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).with_context(at)?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("{}: no answer; see its log", at()))?;
    let answer: Value = serde_json::from_slice(&answer)
        .with_context(|| format!("{}: its answer was cut off; see its log", at()))?;
    if let Some(error) = answer.get("error") {
        bail!("{}: {}", at(), error.as_str().unwrap_or("refused"));
    }
    Ok(Reached::Answer(answer))
}

fn is_one_of(error: &io::Error, kinds: &[ErrorKind]) -> bool {
    kinds.contains(&error.kind())
}

/// The same, where it is an error that there is none.
///
/// # Errors
/// As [`ask`], or no agent runs.
pub(crate) fn ask_running(target: &Target, request: &Request) -> Result<Value> {
    let socket = target.socket()?;
    match ask(&socket, request, ANSWER_WAIT)? {
        Reached::Answer(answer) => Ok(answer),
        Reached::Nobody => bail!(
            "no agent runs: nobody answers at {}; start it with `xtr-agent run`",
            socket.display()
        ),
    }
}

/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
