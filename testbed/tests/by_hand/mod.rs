//! What tests do by hand: to configuration files, and with `ip`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;

use testbed::Namespace;

/// Changes a file.
pub(crate) fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(path).unwrap();
    fs::write(path, change(text)).unwrap();
}

/// Runs `ip` in a namespace.
pub(crate) fn ip(namespace: &Namespace, arguments: &[&str]) {
    let mut command = Command::new("ip");
    command.args(arguments);
    let status = namespace.spawn(command).unwrap().wait().unwrap();
    assert!(status.success(), "ip {}", arguments.join(" "));
}
