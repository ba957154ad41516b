//! `xtr-agent`: an endpoint of a Lispwire network.

mod cli;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use command_line::{EXIT_FAILURE, LogFormat, arguments, configured, ended, say, start_log};
use xtr_agent::config::{Config, ConfigError};
use xtr_agent::shell::{self, Keys};

use cli::Target;

const AGENT: &str = "xtr-agent";
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
    /// Runs the agent in the foreground until SIGTERM, SIGINT or `stop`.
    Run {
        /// Configuration file.
        #[arg(long, short, default_value = "/etc/lispwire/xtr-agent.toml")]
        config: PathBuf,
        /// How log lines on standard error look.
        #[arg(long, value_enum, default_value = "text")]
        log_format: LogFormat,
    },
    /// Says where a running agent stands: registrations, peers, map-cache.
    Status {
        #[command(flatten)]
        target: Target,
        /// Prints everything as one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Says how far the first packet to a destination has come, or where it stopped.
    Trace {
        /// The destination.
        eid: IpAddr,
        #[command(flatten)]
        target: Target,
        /// Prints everything as one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lets those who share its prefixes take the clients of a running agent over, before it is
    /// stopped; or, with --undo, lets clients come again.
    Drain {
        #[command(flatten)]
        target: Target,
        /// Lets clients come again; nobody moves back by himself.
        #[arg(long)]
        undo: bool,
        /// How long to wait until all have gone, in seconds.
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        wait: u64,
        /// Prints the end as one line of JSON.
        #[arg(long)]
        json: bool,
    },
    /// Stops a running agent; on the kernel's data plane the tunnels stay, for the next start.
    Stop {
        #[command(flatten)]
        target: Target,
        /// Withdraws the registrations and removes interfaces, routes and map-cache, also those
        /// that an agent left which runs no more.
        #[arg(long)]
        purge: bool,
    },
    /// Prints the agent's two public keys, making the keys if there are none.
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
    /// Says whether a configuration file can be run, or what is wrong with it; also when others can
    /// read its secrets.
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
        Command::Run { config, log_format } => with_config(&config, |read| {
            start_log(log_format, LOGGED);
            if let Err(error) = Config::check(&config) {
                tracing::warn!(%error, "a secret is open to others");
            }
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?;
            // In a worker: it waits for packets itself, where this thread would have to be woken.
            let path = config.clone();
            let agent = async move { shell::run(read, &path).await };
            runtime.block_on(async { runtime.spawn(agent).await? })
        }),
        Command::Status { target, json } => finished(cli::status::run(&target, json)),
        Command::Trace { eid, target, json } => match cli::trace::run(&target, eid, json) {
            Ok(false) => ExitCode::from(EXIT_FAILURE),
            result => finished(result.map(drop)),
        },
        Command::Drain {
            target,
            undo,
            wait,
            json,
        } => match cli::drain::run(&target, undo, Duration::from_secs(wait), json) {
            Ok(false) => ExitCode::from(EXIT_FAILURE),
            result => finished(result.map(drop)),
        },
        Command::Stop { target, purge } => {
            start_log(LogFormat::Text, "warn");
            finished(cli::stop::run(&target, purge))
        }
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
        } => finished(Config::check(&file).map_err(Into::into).map(|_| {
            say(&format!("{}: good", file.display()));
        })),
    }
}

fn with_config(path: &Path, run: impl FnOnce(Config) -> Result<()>) -> ExitCode {
    finished(Config::load(path).map_err(Into::into).and_then(run))
}

fn finished(result: Result<()>) -> ExitCode {
    let of_config = |error: &anyhow::Error| error.downcast_ref::<ConfigError>().is_some();
    match result {
        Err(error) if of_config(&error) => configured(AGENT, Err(error), |()| Ok(())),
        result => ended(AGENT, result.map(|()| ExitCode::SUCCESS)),
    }
}
