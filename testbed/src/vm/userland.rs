//! Programs of this machine in the guest: at the same paths, with their shared libraries.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cpio;
use super::packages::find_program;

/// What the guest gets where this machine has it; the rest is busybox.
const TOOLS: [&str; 15] = [
    "bash",
    "sh",
    "ip",
    "tc",
    "ss",
    "bridge",
    "wg",
    "wg-quick",
    "nft",
    "ping",
    "tcpdump",
    "conntrack",
    "ethtool",
    "iperf3",
    "sysctl",
];

/// The dynamic loader: it can list what a program would load.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

/// The tools that this machine has, by name.
pub(super) fn tools() -> Vec<(&'static str, PathBuf)> {
    let found = TOOLS.into_iter().map(|name| (name, find_program(name)));
    found
        .filter_map(|(name, path)| Some((name, in_real_directory(&path?))))
        .collect()
}

/// Adds programs, other files, and the libraries that they need, each at its own path.
pub(super) struct Installer<'a, W> {
    archive: &'a mut cpio::Writer<W>,
    added: BTreeSet<PathBuf>,
}

impl<'a, W: Write> Installer<'a, W> {
    /// Starts with nothing added.
    pub(super) fn new(archive: &'a mut cpio::Writer<W>) -> Self {
        Self {
            archive,
            added: BTreeSet::new(),
        }
    }

    /// Adds the file `host` as `guest`, and its libraries.
    pub(super) fn add(&mut self, host: &Path, guest: &Path) -> io::Result<()> {
        if !self.added.insert(guest.to_owned()) {
            return Ok(());
        }
        let mode = fs::metadata(host)?.permissions().mode() & 0o7777;
        let contents = fs::read(host)?;
        let is_program = contents.starts_with(b"\x7fELF");
        self.archive.file(guest, mode, &contents)?;
        if is_program {
            for library in libraries(host)? {
                let library = in_real_directory(&library);
                if self.added.insert(library.clone()) {
                    self.archive.file(&library, 0o755, &fs::read(&library)?)?;
                }
            }
        }
        Ok(())
    }
}

/// The shared libraries of a program, and the loader; none when it is static.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let listing = Command::new(LOADER).arg("--list").arg(program).output()?;
    Ok(parse_listing(&String::from_utf8_lossy(&listing.stdout)))
}

/// Reads lines such as `libc.so.6 => /lib/libc.so.6 (0x7f...)` and `/lib64/ld.so (0x7f...)`.
fn parse_listing(listing: &str) -> Vec<PathBuf> {
    let paths = listing.lines().filter_map(|line| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        path.starts_with('/')
            .then(|| path.split(" (").next().unwrap_or(path))
    });
    paths.map(PathBuf::from).collect()
}

/// The path with symbolic links resolved in all but its last part: the directory is real, but
/// the file keeps the name that it is looked up by.
pub(super) fn in_real_directory(path: &Path) -> PathBuf {
    let resolved = path
        .parent()
        .zip(path.file_name())
        .and_then(|(directory, name)| Some(fs::canonicalize(directory).ok()?.join(name)));
    resolved.unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_listing_is_understood() {
        let listing = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibz.so => not found\n";
        let expected = ["/lib/x/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_listing(listing), expected.map(PathBuf::from));
    }

    #[test]
    fn this_program_needs_the_c_library() {
        let own = std::env::current_exe().unwrap();
        let libraries = libraries(&own).unwrap();
        assert!(
            libraries.iter().any(|path| path.ends_with("libc.so.6")),
            "{libraries:?}"
        );
    }
}
