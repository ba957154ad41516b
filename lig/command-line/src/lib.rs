//! What the commands of this workspace do alike: read arguments, end with a code, say, complain, log,
//! and ask a daemon over its admin socket.

pub mod admin;
mod manuals;

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use tracing_subscriber::EnvFilter;

/// Something failed at run time.
pub const EXIT_FAILURE: u8 = 1;
/// The configuration file is bad.
pub const EXIT_CONFIG: u8 = 2;
/// The arguments are wrong.
pub const EXIT_USAGE: u8 = 64;

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Reads the arguments of this process. Every command has `completions` and `man` beside its own.
///
/// # Errors
/// Help, version, completions, pages and what is wrong have been printed; the command ends with this
/// code.
pub fn arguments<A: Parser>() -> Result<A, ExitCode> {
    let mut command = manuals::extended(A::command());
    let refused = |error: clap::Error| {
        let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
        // A closed terminal is no reason for another exit code.
        drop(error.print());
        ExitCode::from(code)
    };
    let matches = command.try_get_matches_from_mut(std::env::args_os());
    let matches = matches.map_err(refused)?;
    match manuals::answer(&command, &matches) {
        Ok(None) => {
            let arguments = A::from_arg_matches(&matches);
            arguments.map_err(|error| refused(error.format(&mut command)))
        }
        Ok(Some(manuals::Answer::Print(text))) => {
            // Whoever reads it may have read enough.
            drop(std::io::stdout().write_all(&text));
            Err(ExitCode::SUCCESS)
        }
        Ok(Some(manuals::Answer::Written(directory))) => {
            say(&format!("written to {}", directory.display()));
            Err(ExitCode::SUCCESS)
        }
        Err(error) => {
            complain(command.get_name(), &format!("writing pages: {error}"));
            Err(ExitCode::from(EXIT_FAILURE))
        }
    }
}

/// Returns the code with which `program` ends; a failure is complained about.
pub fn ended(program: &str, outcome: anyhow::Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        complain(program, &format!("{error:#}"));
        ExitCode::from(EXIT_FAILURE)
    })
}

/// Runs `program` with its configuration if that could be read, and returns the code with which it
/// ends.
pub fn configured<C>(
    program: &str,
    config: Result<C, impl Display>,
    run: impl FnOnce(C) -> anyhow::Result<()>,
) -> ExitCode {
    match config {
        Ok(config) => ended(program, run(config).map(|()| ExitCode::SUCCESS)),
        Err(error) => {
            complain(program, &error.to_string());
            ExitCode::from(EXIT_CONFIG)
        }
    }
}

/// Sends log lines to standard error: those that `RUST_LOG` selects, or `selected`.
pub fn start_log(format: LogFormat, selected: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(selected));
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

/// Prints a command's answer.
#[expect(clippy::print_stdout, reason = "the command's answer")]
pub fn say(text: &str) {
    println!("{text}");
}

/// Prints a complaint of `program`, before or after logging.
#[expect(clippy::print_stderr, reason = "the command's complaint")]
pub fn complain(program: &str, text: &str) {
    eprintln!("{program}: {text}");
}
