//! `xtr-agent`: an endpoint of a Lispwire network.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;
use xtr_agent::config::Config;
use xtr_agent::shell::{self, Keys};

const EXIT_FAILURE: u8 = 1;
const EXIT_CONFIG: u8 = 2;
const EXIT_USAGE: u8 = 64;

/// Pulls WireGuard peers on demand, from a LISP map server.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent in the foreground until SIGTERM or SIGINT.
    Run {
        /// Configuration file.
        #[arg(long, short, default_value = "/etc/lispwire/xtr-agent.toml")]
        config: PathBuf,
        /// How log lines on standard error look.
        #[arg(long, value_enum, default_value = "text")]
        log_format: LogFormat,
    },
    /// Prints the agent's public keys, making the keys if there are none.
    Pubkey {
        /// Configuration file.
        #[arg(long, short, default_value = "/etc/lispwire/xtr-agent.toml")]
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
        #[arg(default_value = "/etc/lispwire/xtr-agent.toml")]
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
        Command::Run { config, log_format } => with_config(&config, |config| {
            start_log(log_format);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            runtime.block_on(shell::run(config))
        }),
        Command::Pubkey { config } => with_config(&config, |config| {
            let keys = Keys::load_or_create(&config)?;
            say(&format!("control {}", keys.control.public()));
            let several = config.instances.len() > 1;
            for (instance, key) in config.instances.iter().zip(&keys.data) {
                let key = key.public();
                match several {
                    true => say(&format!("data [{}] {key}", instance.iid.0)),
                    false => say(&format!("data {key}")),
                }
            }
            Ok(())
        }),
        Command::Config {
            command: ConfigCommand::Check { file },
        } => with_config(&file, |_| {
            say(&format!("{}: good", file.display()));
            Ok(())
        }),
    }
}

fn with_config(path: &Path, run: impl FnOnce(Config) -> Result<()>) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(error) => {
            complain(&error.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,gotatun=off,xtr_agent=info,wg_device=info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
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
    eprintln!("xtr-agent: {text}");
}
