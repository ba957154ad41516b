//! `testbed vm`: its arguments.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::{Job, guest, run as run_job};
use crate::vm::userland::in_real_directory;

/// Runs a command as root on a kernel that has WireGuard and netem.
///
/// Debian's kernel is started in QEMU (emulated; a few seconds) with the project's programs and
/// ip, wg, tc, nft, ping and others where this machine has them. The exit code is the command's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Takes a file along, to the same path in the guest or to another; may be repeated
    #[arg(long = "add", value_name = "FILE[:GUESTPATH]", value_parser = parse_file)]
    files: Vec<(PathBuf, PathBuf)>,
    /// Gets the files that the command leaves in /out
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Sets an environment variable of the command; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = parse_variable)]
    environment: Vec<(String, String)>,
    /// Ends the guest after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout_s: u64,
    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: u32,
    /// Processors of the guest
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    processors: u32,
    /// Does not install QEMU when it is missing
    #[arg(long)]
    no_install: bool,
    /// Shows the kernel's messages on stderr
    #[arg(long)]
    console: bool,
    /// Lets the guest's clock count instructions (10^9 to the second), so that measured times are
    /// those of a machine with such a processor
    #[arg(long)]
    virtual_time: bool,
    /// Is the first process of a guest
    #[arg(long, hide = true)]
    guest: bool,
    /// The command and its arguments
    #[arg(last = true, required_unless_present = "guest", value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs `testbed vm`.
///
/// # Errors
///
/// When the guest could not run the command to its end.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.guest {
        guest::main()?;
        return Ok(ExitCode::SUCCESS);
    }
    let testbed = std::env::current_exe().context("cannot find the testbed's own program")?;
    let mut job = Job::new(&testbed, args.command);
    job.files = args.files;
    job.environment.extend(args.environment);
    job.out = args.out;
    job.timeout = Duration::from_secs(args.timeout_s);
    job.memory_mib = args.memory_mib;
    job.processors = args.processors;
    job.install = !args.no_install;
    job.console = args.console;
    job.virtual_time = args.virtual_time;
    let outcome = run_job(&job, &mut io::stdout(), &mut io::stderr())?;
    Ok(ExitCode::from(outcome.code))
}

fn parse_file(value: &str) -> Result<(PathBuf, PathBuf), String> {
    let (host, guest) = match value.split_once(':') {
        Some((host, guest)) => (PathBuf::from(host), PathBuf::from(guest)),
        None => (
            PathBuf::from(value),
            in_real_directory(&std::path::absolute(value).map_err(|e| e.to_string())?),
        ),
    };
    if !host.is_file() {
        return Err(format!("{} is not a file", host.display()));
    }
    if !guest.is_absolute() {
        return Err(format!("{} does not start with a slash", guest.display()));
    }
    Ok((host, guest))
}

fn parse_variable(value: &str) -> Result<(String, String), &'static str> {
    let (name, value) = value.split_once('=').ok_or("no '='")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_their_path_unless_another_is_named() {
        let (host, guest) = parse_file("/etc/passwd").unwrap();
        assert_eq!(
            (host.to_str(), guest.to_str()),
            (Some("/etc/passwd"), Some("/etc/passwd"))
        );
        let (_, guest) = parse_file("/etc/passwd:/srv/users").unwrap();
        assert_eq!(guest.to_str(), Some("/srv/users"));
        assert!(parse_file("/no/such/file").is_err());
        assert!(parse_file("/etc/passwd:users").is_err());
    }

    #[test]
    fn variables_need_a_value() {
        let expected = ("A".to_owned(), "b=c".to_owned());
        assert_eq!(parse_variable("A=b=c"), Ok(expected));
        assert!(parse_variable("A").is_err());
    }
}
