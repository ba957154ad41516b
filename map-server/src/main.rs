//! `map-server`: the key directory of a Lispwire network.

mod cli;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use command_line::{LogFormat, arguments, configured, say, start_log};
use map_server::shell::{self, Request, Settings};
use wg_device::PrivateKey;

use cli::{Target, finished};

const SERVER: &str = "map-server";
/// What is logged unless `RUST_LOG` says otherwise.
const LOGGED: &str = "warn,map_server=info,wg_device=info,gotatun=off";

/// Hands out WireGuard keys and endpoints, speaking LISP (RFC 9301).
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the map server in the foreground until SIGTERM or SIGINT.
    Run {
        /// Configuration file.
        #[arg(long, short, default_value = "/etc/lispwire/map-server.toml")]
        config: PathBuf,
        /// How log lines on standard error look.
        #[arg(long, value_enum, default_value = "text")]
        log_format: LogFormat,
    },
    /// Moves clients from one xTR to another that shares prefixes with it, without losing a packet.
    ///
    /// Ends with 0 if all have moved, 1 if somebody has not, and 2 if no server was reached.
    Migrate {
        /// The xTR that they use now.
        #[arg(long)]
        from: String,
        /// The xTR that they shall use.
        #[arg(long)]
        to: String,
        /// Their names, with commas between them; all clients without this.
        #[arg(long, value_delimiter = ',', value_name = "NAMES")]
        clients: Vec<String>,
        /// All clients, which is also what happens without --clients.
        #[arg(long, conflicts_with = "clients")]
        all: bool,
        /// Says who would move and who could not, and changes nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Moves all clients of an xTR to those that share its prefixes, and gives it no new ones.
    ///
    /// Ends with 0 if all have moved, 1 if somebody has not, and 2 if no server was reached.
    Drain {
        /// The xTR.
        xtr: String,
        /// Lets it have clients again instead.
        #[arg(long)]
        undo: bool,
        /// Says who would move and who could not, and changes nothing.
        #[arg(long, conflicts_with = "undo")]
        dry_run: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Lists the migrations since the server started, and who is drained.
    Migrations {
        #[command(flatten)]
        output: Output,
    },
    /// Prints the public key of the control tunnel, making the key if there is none.
    Pubkey {
        /// Configuration file.
        #[arg(long, short, default_value = "/etc/lispwire/map-server.toml")]
        config: PathBuf,
    },
    /// Looks at configuration files.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// Which server is asked, and how its answer looks.
#[derive(clap::Args)]
struct Output {
    #[command(flatten)]
    target: Target,
    /// Prints everything as one line of JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Says whether a configuration file can be run, or what is wrong with it.
    Check {
        /// The file.
        #[arg(default_value = "/etc/lispwire/map-server.toml")]
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match arguments.command {
        Command::Run { config, log_format } => with_settings(&config, |settings| {
            start_log(log_format, LOGGED);
            let mut runtime = match settings.has_tunnel() {
                // WireGuard may run beside the state machine.
                true => tokio::runtime::Builder::new_multi_thread(),
                // One thread wakes up faster than two that wake each other.
                false => tokio::runtime::Builder::new_current_thread(),
            };
            let runtime = runtime.enable_all().build()?;
            runtime.block_on(shell::run(settings))
        }),
        Command::Migrate {
            from,
            to,
            clients,
            all: _,
            dry_run,
            output,
        } => {
            let request = Request::Migrate {
                from,
                to,
                clients: (!clients.is_empty()).then(|| clients.into_iter().collect()),
                dry_run,
            };
            migrate(&output, &request)
        }
        Command::Drain {
            xtr: from,
            undo,
            dry_run,
            output,
        } => match undo {
            true => migrate(&output, &Request::Undrain { from }),
            false => migrate(&output, &Request::Drain { from, dry_run }),
        },
        Command::Migrations { output } => {
            let listed = cli::migrate::list(&output.target, output.json);
            finished(SERVER, listed)
        }
        Command::Pubkey { config } => with_settings(&config, |settings| {
            let key = PrivateKey::load_or_create(&settings.control_key_file())?;
            say(&key.public().to_string());
            Ok(())
        }),
        Command::Config {
            command: ConfigCommand::Check { file },
        } => with_settings(&file, |_| {
            say(&format!("{}: good", file.display()));
            Ok(())
        }),
    }
}

fn migrate(output: &Output, request: &Request) -> ExitCode {
    let moved = cli::migrate::run(&output.target, request, output.json);
    finished(SERVER, moved)
}

fn with_settings(path: &Path, run: impl FnOnce(Settings) -> Result<()>) -> ExitCode {
    configured(SERVER, Settings::load(path), run)
}
