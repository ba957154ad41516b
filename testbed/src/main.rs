//! `testbed`: networks in namespaces, for looking at and for tests.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::{demo, hosts, sim, vm};

const EXIT_FAILURE: u8 = 1;
const EXIT_USAGE: u8 = 64;

/// Whole networks in namespaces, with real daemons in them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Hosts(hosts::Args),
    Clean(demo::CleanArgs),
    Vm(vm::cli::Args),
    Sim(sim::cli::Args),
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
        Command::Demo(args) => demo::run(&args),
        Command::Hosts(args) => hosts::run(&args),
        Command::Clean(args) => demo::clean(&args),
        Command::Vm(args) => vm::cli::run(args),
        Command::Sim(args) => sim::cli::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::from(EXIT_FAILURE)
    })
}

#[expect(clippy::print_stderr, reason = "the command's complaint")]
fn complain(text: &str) {
    eprintln!("testbed: {text}");
}
