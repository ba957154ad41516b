//! What the guest is made of: QEMU, and Debian's packages of the kernel and of busybox.
//!
//! QEMU is installed when that is allowed; the packages are downloaded and unpacked, never
//! installed.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::VmError;
use crate::error::Doing;

/// The emulator.
pub(super) const QEMU: &str = "qemu-system-x86_64";
/// The package that always depends on the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// How the names of the packages that hold a kernel start.
const KERNEL_PREFIX: &str = "linux-image-";
const BUSYBOX: &str = "busybox-static";
const QEMU_REMEDY: &str = "Install QEMU: apt-get install qemu-system-x86 (as root and without --no-install this is done here).";
const PACKAGES_REMEDY: &str = "This needs Debian's package archive; run apt-get update, and see that \
     `apt-get download linux-image-cloud-amd64 busybox-static` works.";

/// Finds QEMU; installs it when it is missing, `install` is set and this is root.
pub(super) fn ensure_qemu(install: bool, say: &mut dyn FnMut(&str)) -> Result<PathBuf, VmError> {
    let unavailable = |reason| VmError::Unavailable {
        what: QEMU,
        reason,
        remedy: QEMU_REMEDY,
    };
    if !cfg!(target_arch = "x86_64") {
        return Err(unavailable("the guest is for x86-64 only".into()));
    }
    if let Some(path) = find_program(QEMU) {
        return Ok(path);
    }
    if !install || !nix::unistd::geteuid().is_root() {
        return Err(unavailable("it is not installed".into()));
    }
    say("installing qemu-system-x86");
    let install = [
        "install",
        "-y",
        "--no-install-recommends",
        "qemu-system-x86",
    ];
    apt_get(&install, Path::new("/")).map_err(unavailable)?;
    find_program(QEMU).ok_or_else(|| unavailable("apt-get did not install it".into()))
}

/// A program on PATH or where the system's administration keeps its own.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut candidates = directories.map(|directory| directory.join(name));
    candidates.find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// The package files the guest is made of; their names hold their versions.
pub(super) struct Packages {
    /// The kernel and its modules.
    pub(super) kernel: PathBuf,
    /// One static program that does the work of many.
    pub(super) busybox: PathBuf,
}

impl Packages {
    /// Takes the packages from `directory`; downloads into it those that are missing.
    pub(super) fn fetch(directory: &Path, say: &mut dyn FnMut(&str)) -> Result<Self, VmError> {
        if let Some(packages) = Self::find(directory) {
            return Ok(packages);
        }
        let unavailable = |reason| VmError::Unavailable {
            what: "Debian's kernel",
            reason,
            remedy: PACKAGES_REMEDY,
        };
        say("downloading Debian's kernel and busybox (about 30 MB)");
        fs::create_dir_all(directory).doing("create", directory.display())?;
        let first = download(directory);
        if first.is_err() && nix::unistd::geteuid().is_root() {
            // The lists may be missing, or name a version that is no longer there.
            apt_get(&["update"], directory).map_err(unavailable)?;
            download(directory).map_err(unavailable)?;
        } else {
            first.map_err(unavailable)?;
        }
        Self::find(directory).ok_or_else(|| unavailable("apt-get left no package".into()))
    }

    fn find(directory: &Path) -> Option<Self> {
        let mut kernel = None;
        let mut busybox = None;
        for entry in fs::read_dir(directory).ok()?.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.ends_with(".deb")) else {
                continue;
            };
            if name.starts_with(KERNEL_PREFIX) {
                kernel = kernel.max(Some(entry.path()));
            } else if name.starts_with(BUSYBOX) {
                busybox = busybox.max(Some(entry.path()));
            }
        }
        Some(Self {
            kernel: kernel?,
            busybox: busybox?,
        })
    }
}

/// Unpacks a package below `root`.
pub(super) fn unpack(package: &Path, root: &Path) -> Result<(), VmError> {
    let mut command = Command::new("dpkg");
    command.arg("-x").arg(package).arg(root);
    finish(command)
        .map_err(io::Error::other)
        .doing("unpack", package.display())?;
    Ok(())
}

fn download(directory: &Path) -> Result<(), String> {
    let kernel = newest_kernel()?;
    // Into a directory of its own: apt-get writes under the final name from the start.
    let partial = tempfile::tempdir_in(directory).map_err(|error| error.to_string())?;
    apt_get(&["download", kernel.as_str(), BUSYBOX], partial.path())?;
    let moved = fs::read_dir(partial.path()).and_then(|mut entries| {
        entries.try_for_each(|entry| {
            let entry = entry?;
            fs::rename(entry.path(), directory.join(entry.file_name()))
        })
    });
    moved.map_err(|error| error.to_string())
}

/// The package that [`KERNEL`] depends on at present.
fn newest_kernel() -> Result<String, String> {
    let mut command = Command::new("apt-cache");
    command.args(["depends", KERNEL]);
    let said = finish(command)?;
    let depends = said
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut kernels = depends.filter(|package| package.starts_with(KERNEL_PREFIX));
    kernels
        .next()
        .map(str::to_owned)
        .ok_or_else(|| format!("no package {KERNEL} is known here"))
}

fn apt_get(arguments: &[&str], directory: &Path) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    command
        .arg("-q")
        .args(arguments)
        .current_dir(directory)
        .env("DEBIAN_FRONTEND", "noninteractive");
    finish(command).map(drop)
}

/// Runs a program to its end; what it wrote, or why it failed.
pub(super) fn finish(mut command: Command) -> Result<String, String> {
    let name = command.get_program().display().to_string();
    let output = command
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let arguments: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "`{name} {}`: {}\n{complaint}",
        arguments.join(" "),
        output.status
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_taken_from_the_cache_when_both_are_there() {
        let cache = tempfile::tempdir().unwrap();
        for name in [
            "linux-image-6.1.0-1_amd64.deb",
            "linux-image-6.1.0-2_amd64.deb",
            "lock",
        ] {
            fs::write(cache.path().join(name), "").unwrap();
        }
        assert!(Packages::find(cache.path()).is_none());
        fs::write(cache.path().join("busybox-static_1.35_amd64.deb"), "").unwrap();
        let packages = Packages::find(cache.path()).unwrap();
        assert!(packages.kernel.ends_with("linux-image-6.1.0-2_amd64.deb"));
    }

    #[test]
    fn what_a_failing_program_says_is_kept() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo no space >&2; exit 3"]);
        let reason = finish(command).unwrap_err();
        assert!(
            reason.contains("no space") && reason.contains('3'),
            "{reason}"
        );
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program").is_none());
    }
}
