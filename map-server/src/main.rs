//! `map-server`: the key directory of a Lispwire network.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use map_server::shell::{self, Settings};
use tracing_subscriber::EnvFilter;
use wg_device::PrivateKey;

const EXIT_FAILURE: u8 = 1;
const EXIT_CONFIG: u8 = 2;
const EXIT_USAGE: u8 = 64;

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

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // A closed terminal is no reason for another exit code.
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match arguments.command {
        Command::Run { config, log_format } => with_settings(&config, |settings| {
            start_log(log_format);
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
    let settings = match Settings::load(path) {
        Ok(settings) => settings,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,map_server=info,wg_device=info,gotatun=off"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(
    clippy::print_stderr,
    reason = "the command's complaint, before or after logging"
)]
fn complain(text: &str) {
    eprintln!("map-server: {text}");
}
