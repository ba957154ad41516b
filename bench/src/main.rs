//! `bench`: measurements against a limit or a peer in the same run.

mod by_hand;
mod establish;
mod gateway;
mod guest;
mod handover;
mod map_server;
mod migrate;
mod pairs;
mod plan;
mod slow;
mod usage;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
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
    Pairs(pairs::Args),
    Gateway(gateway::Args),
    Handover(handover::Args),
    MapServer(map_server::Args),
    /// Sends to a map server
    #[command(hide = true)]
    Load(map_server::load::Args),
    /// Answers, and does nothing else
    #[command(hide = true)]
    Echo(map_server::echo::Args),
    /// Answers lookups of keys by gRPC
    #[command(hide = true)]
    GrpcKeys(map_server::grpc::serve::Args),
    /// Looks keys up by gRPC
    #[command(hide = true)]
    GrpcCalls(map_server::grpc::calls::Args),
    /// Times the state machine of a map server
    #[command(hide = true)]
    Processing(map_server::processing::Args),
    /// Lets agents meet through a map server
    #[command(hide = true)]
    Meet(map_server::meet::Args),
    /// Times the state machine of a map server while agents meet
    #[command(hide = true)]
    MeetAlone(map_server::meet::alone::Args),
    Migrate(migrate::Args),
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
        Command::Pairs(args) => pairs::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Handover(args) => handover::run(&args),
        Command::MapServer(args) => map_server::run(&args),
        Command::Load(args) => map_server::load::run(&args),
        Command::Echo(args) => map_server::echo::run(&args),
        Command::GrpcKeys(args) => map_server::grpc::serve::run(&args),
        Command::GrpcCalls(args) => map_server::grpc::calls::run(&args),
        Command::Processing(args) => map_server::processing::run(&args),
        Command::Meet(args) => map_server::meet::run(&args),
        Command::MeetAlone(args) => map_server::meet::alone::run(&args),
        Command::Migrate(args) => migrate::run(&args),
        Command::Bare(args) => establish::bare::run(args),
        Command::Vm(args) => testbed::vm::cli::run(args),
    };
    ended("bench", outcome)
}

/// Request and push, their answers, the handshake, and the packet with its reply: each a round
/// trip of the same path.
const FLOOR_ROUND_TRIPS: f64 = 4.0;

const fn plane_name(plane: testbed::DataPlane) -> &'static str {
    match plane {
        testbed::DataPlane::Auto => "auto",
        testbed::DataPlane::Kernel => "kernel",
        testbed::DataPlane::Embedded => "embedded",
    }
}

/// The program that runs now, for its other roles.
fn own_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find this program")?;
    Ok(fs::canonicalize(&path).unwrap_or(path))
}
