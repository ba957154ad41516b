//! The commands that talk to a running map server.
//!
//! | question | file |
//! |---|---|
//! | How is a running server asked? | `mod.rs` |
//! | What do `migrate` and `drain` do, and print? | `migrate.rs` |
//! | What does a list of migrations look like? | `report.rs` |
//! | How are tables written? | `table.rs` |

pub(crate) mod migrate;
mod report;
mod table;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use command_line::{EXIT_CONFIG, EXIT_FAILURE, admin, complain};
use map_server::shell::{Request, Settings, SettingsError};
use serde_json::Value;

/// Where the server is, as every command that asks it takes it.
#[derive(clap::Args)]
pub(crate) struct Target {
    /// Configuration file of the server; says where its admin socket is.
    #[arg(long, short, default_value = "/etc/lispwire/map-server.toml")]
    config: PathBuf,
    /// Admin socket of the server; no configuration file is read then.
    #[arg(long)]
    socket: Option<PathBuf>,
}

impl Target {
    /// The path of the socket.
    fn socket(&self) -> Result<PathBuf, SettingsError> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => Ok(Settings::load(&self.config)?.admin_socket()),
        }
    }
}

/// No server listens at the socket.
#[derive(Debug)]
struct NoServer(PathBuf);

impl fmt::Display for NoServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = self.0.display();
        write!(
            f,
            "no server runs: nobody answers at {socket}; start it with `map-server run`"
        )
    }
}

impl std::error::Error for NoServer {}

/// Returns the code with which a command ends: 0 if all went well, 1 if something failed, 2 if no
/// server was reached or the configuration file is bad.
pub(crate) fn finished(program: &str, outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_FAILURE),
        Err(error) => {
            complain(program, &format!("{error:#}"));
            let unreached = error.downcast_ref::<NoServer>().is_some()
                || error.downcast_ref::<SettingsError>().is_some();
            ExitCode::from(if unreached { EXIT_CONFIG } else { EXIT_FAILURE })
        }
    }
}

/// Asks the server at `socket` and waits for its answer.
///
/// # Errors
/// No server runs, the socket may not be opened, the server does not answer, or it refuses.
fn ask(socket: &Path, request: &Request) -> Result<Value> {
    let answer = admin::ask(socket, "server", request, ANSWER_WAIT)?;
    answer.ok_or_else(|| NoServer(socket.to_owned()).into())
}

/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
