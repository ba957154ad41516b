//! `xtr-agent`: an endpoint of a Lispwire network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use command_line::{LogFormat, arguments, configured, say, start_log};
use xtr_agent::config::Config;
use xtr_agent::shell::{self, Keys};

/// What is logged unless `RUST_LOG` says otherwise.
const LOGGED: &str = "warn,gotatun=off,xtr_agent=info,wg_device=info";

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

fn main() -> ExitCode {
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    match arguments.command {
        Command::Run { config, log_format } => with_config(&config, |config| {
            start_log(log_format, LOGGED);
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
    configured("xtr-agent", Config::load(path), run)
}
