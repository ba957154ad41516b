//! `map-server`: the key directory of a Lispwire network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use command_line::{LogFormat, arguments, configured, say, start_log};
use map_server::shell::{self, Settings};
use wg_device::PrivateKey;

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
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            runtime.block_on(shell::run(settings))
        }),
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

fn with_settings(path: &Path, run: impl FnOnce(Settings) -> Result<()>) -> ExitCode {
    configured("map-server", Settings::load(path), run)
}
