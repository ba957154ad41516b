//! Programs of other projects that the tests need.

use std::env;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// Whether `program` is there; it is installed from the Debian package `package` when it is not
/// and we are root. Says so aloud when the test must be skipped.
pub(crate) fn have(program: &str, package: &str) -> bool {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if !installed(program) && is_root() {
        install(package);
    }
    installed(program) || skip(format_args!("no {program}; apt-get install {package}"))
}

/// Whether namespaces can be made. Says so aloud when the test must be skipped.
pub(crate) fn have_root() -> bool {
    is_root() || skip("not root: no namespaces")
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut directories = env::split_paths(&path).chain(["/usr/sbin".into()]);
    directories.any(|directory| directory.join(program).is_file())
}

fn install(package: &str) {
    let script = "apt-get -qq -o DPkg::Lock::Timeout=120 update; \
        apt-get -qq -o DPkg::Lock::Timeout=120 install -y --no-install-recommends \"$1\"";
    let done = Command::new("sh")
        .args(["-c", script, "sh", package])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output();
    if let Err(error) = done {
        skip(format_args!("{package} cannot be installed: {error}"));
    }
}

#[expect(
    clippy::explicit_write,
    reason = "the test harness keeps what passing tests print, but not this"
)]
fn skip(why: impl Display) -> bool {
    writeln!(io::stderr(), "SKIPPED: {why}").unwrap();
    false
}
