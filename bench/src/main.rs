//! `bench`: measurements against a limit or a peer in the same run.

mod establish;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use command_line::{arguments, ended};

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
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let outcome = match arguments.command {
        Command::Establish(args) => establish::run(&args),
        Command::Bare(args) => establish::bare::run(args),
        Command::Vm(args) => testbed::vm::cli::run(args),
    };
    ended("bench", outcome)
}
