//! `testbed`: networks in namespaces, for looking at and for tests.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use command_line::{arguments, ended};
use testbed::{demo, hosts, sim, vm};

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
    let arguments: Arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let outcome = match arguments.command {
        Command::Demo(args) => demo::run(&args),
        Command::Hosts(args) => hosts::run(&args),
        Command::Clean(args) => demo::clean(&args),
        Command::Vm(args) => vm::cli::run(args),
        Command::Sim(args) => sim::cli::run(&args),
    };
    ended("testbed", outcome)
}
