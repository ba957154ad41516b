//! Tests that need WireGuard in the kernel, where this machine's has none.

#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says what it skips"
)]

use std::env;
use std::io::{stderr, stdout};
use std::path::Path;

use testbed::vm;

/// Runs the ignored test `name` of this program in a guest, and says so where no guest can be run.
pub(crate) fn passes(name: &str) {
    let own_program = env::current_exe().unwrap();
    let command = [
        own_program.to_str().unwrap(),
        "--ignored",
        "--exact",
        name,
        "--nocapture",
    ];
    let job = vm::Job::new(
        Path::new(env!("CARGO_BIN_EXE_testbed")),
        command.map(str::to_owned).to_vec(),
    );
    match vm::run(&job, &mut stdout(), &mut stderr()) {
        Ok(outcome) => assert_eq!(outcome.code, 0),
        Err(error) if error.is_unavailable() => println!("skipped: {error}"),
        Err(error) => panic!("{error}"),
    }
}
