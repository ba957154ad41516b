//! `bench`: measurements against a limit or a peer in the same run.

mod establish;
mod stats;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXIT_FAILURE: u8 = 1;
const EXIT_USAGE: u8 = 64;

/// Measures Lispwire against what the path, or WireGuard by itself, allows.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Establish(establish::Args),
    /// One end of a tunnel configured by hand
    #[command(hide = true)]
    Bare(establish::bare::Args),
    /// The first process of a guest
    #[command(hide = true)]
    Vm(testbed::vm::cli::Args),
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
    let outcome = match arguments.command {
        Command::Establish(args) => establish::run(&args),
        Command::Bare(args) => establish::bare::run(args),
        Command::Vm(args) => testbed::vm::cli::run(args),
    };
    outcome.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::from(EXIT_FAILURE)
    })
}

#[expect(clippy::print_stderr, reason = "the command's complaint")]
fn complain(text: &str) {
    eprintln!("bench: {text}");
}
