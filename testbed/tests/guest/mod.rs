//! Tests that need WireGuard or netem in the kernel, where this machine's has none.
//!
//! Whatever calls this has `kernel_wireguard` in its name: `.ci/test` lets them run beside all others, because
//! a guest takes one processor for minutes, while the others mostly wait for something.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    dead_code,
    reason = "a test fails by panicking, and needs one of the two"
)]

use std::env;
use std::io::{Write, stderr, stdout};
use std::path::Path;
use std::time::Duration;

use testbed::vm;

/// With this in the environment, a guest that cannot be run is a failure.
const NEEDED: &str = "LISPWIRE_NEED_GUEST";

/// Longest time of a guest whose idle time passes at once.
const VIRTUAL_TIME: Duration = Duration::from_secs(1_200);

/// Runs the ignored test `name` of this program in a guest, and says so where no guest can be run.
pub(crate) fn passes(name: &str) {
    run(&["--ignored", "--exact", name, "--nocapture"], false);
}

/// Runs all tests of this program in a guest, the ignored ones as well, but the test `name`, which
/// calls this. The guest's clock counts instructions: times are those of a machine of its own.
pub(crate) fn passes_all_but(name: &str) {
    let one_by_one = ["--test-threads=1", "--nocapture"];
    run(
        &[&["--include-ignored", "--skip", name], &one_by_one[..]].concat(),
        true,
    );
}

fn run(arguments: &[&str], virtual_time: bool) {
    let own_program = env::current_exe().unwrap();
    let mut command = vec![own_program.to_str().unwrap().to_owned()];
    command.extend(arguments.iter().copied().map(str::to_owned));
    let mut job = vm::Job::new(Path::new(env!("CARGO_BIN_EXE_testbed")), command);
    if virtual_time {
        job.virtual_time = true;
        job.timeout = VIRTUAL_TIME;
    }
    match vm::run(&job, &mut stdout(), &mut stderr()) {
        Ok(outcome) => assert_eq!(outcome.code, 0),
        Err(error) if error.is_unavailable() && env::var_os(NEEDED).is_none() => {
            // What `println!` says is kept from the reader when a test passes.
            let own_name = own_program.file_name().unwrap_or_default().display();
            let line = format!("{own_name} skips {arguments:?}: {error}\n");
            stderr().write_all(line.as_bytes()).unwrap();
        }
        Err(error) => panic!("{error}"),
    }
}
