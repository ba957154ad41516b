//! The guest's kernel and initramfs.
//!
//! What does not change from run to run (kernel modules, busybox, tools of this machine) is
//! made once and kept in the cache, under a name that changes with what it is made of. The
//! kernel unpacks archives that follow one another, so the job's programs come after it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cpio;
use super::error::VmError;
use super::guest;
use super::job::{Job, Order};
use super::machine::RunDirectory;
use super::modules::{self, Module};
use super::packages::{self, Packages};
use super::userland::{self, Installer};
use crate::error::{Doing, best_effort};

/// Changed with every change of what [`build`] makes of the same packages and tools.
const LAYOUT: u32 = 1;
const KERNEL: &str = "vmlinuz";
const BASE: &str = "base.cpio";
const IMAGE_PREFIX: &str = "guest-";
/// Directories that are links on systems where `/usr` holds everything.
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Where things are mounted, and what programs expect to be there.
const DIRECTORIES: [&str; 9] = [
    "dev", "etc", "out", "proc", "root", "run", "sys", "tmp", "usr/bin",
];

/// Writes the kernel and the initramfs for a job into the directory of its run.
pub(super) fn write(
    job: &Job,
    cache: &Path,
    run: &RunDirectory,
    say: &mut dyn FnMut(&str),
) -> Result<(), VmError> {
    fs::create_dir_all(cache).doing("create", cache.display())?;
    let lock = cache.join("lock");
    let lock_file = File::create(&lock).doing("create", lock.display())?;
    // Until the copies are made: another process may be about to replace the image.
    lock_file.lock().doing("lock", lock.display())?;
    let image = prepare(cache, say)?;
    let (kernel, path) = (image.join(KERNEL), run.initramfs());
    fs::copy(&kernel, run.kernel()).doing("copy", kernel.display())?;
    fs::copy(image.join(BASE), &path).doing("copy", image.display())?;
    drop(lock_file);

    let file = File::options()
        .append(true)
        .open(&path)
        .doing("open", path.display())?;
    let mut archive = cpio::Writer::new(BufWriter::new(file));
    let mut installer = Installer::new(&mut archive);
    for (host, guest) in job.placed_files() {
        installer.add(&host, &guest).doing("add", host.display())?;
    }
    add_order(&mut archive, job).doing("write", path.display())?;
    archive.finish().doing("write", path.display())?;
    Ok(())
}

/// The directory of the image, which is made unless it is in the cache.
fn prepare(cache: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, VmError> {
    let packages = Packages::fetch(cache, say)?;
    let tools = userland::tools();
    let fingerprint = fingerprint(&packages, &tools).doing("look at", "the guest's tools")?;
    let image = cache.join(format!("{IMAGE_PREFIX}{fingerprint:016x}"));
    if !image.join(BASE).exists() {
        say("making the guest's image");
        remove_images(cache).doing("clear", cache.display())?;
        build(&packages, &tools, &image)?;
    }
    Ok(image)
}

fn add_order<W: Write>(archive: &mut cpio::Writer<W>, job: &Job) -> io::Result<()> {
    let order = serde_json::to_vec(&Order::of(job))?;
    archive.file(Path::new(guest::ORDER), 0o644, &order)?;
    archive.symlink(Path::new("/init"), &job.testbed)
}

/// A number that differs when the image would.
fn fingerprint(packages: &Packages, tools: &[(&str, PathBuf)]) -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    LAYOUT.hash(&mut hasher);
    modules::WANTED.hash(&mut hasher);
    packages.kernel.file_name().hash(&mut hasher);
    packages.busybox.file_name().hash(&mut hasher);
    for (name, path) in tools {
        let file = fs::metadata(path)?;
        (name, path, file.size(), file.mtime(), file.mtime_nsec()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

fn remove_images(cache: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cache)? {
        let entry = entry?;
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(IMAGE_PREFIX)
        {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Makes the image in `directory`; the base archive appears last and whole.
fn build(packages: &Packages, tools: &[(&str, PathBuf)], directory: &Path) -> Result<(), VmError> {
    let unpacked = tempfile::tempdir().doing("create", "a directory")?;
    let root = unpacked.path();
    packages::unpack(&packages.kernel, root)?;
    packages::unpack(&packages.busybox, root)?;
    let busybox = root.join("bin/busybox");
    let modules = modules::in_load_order(root, &packages.kernel.display().to_string(), &busybox)?;

    fs::create_dir_all(directory).doing("create", directory.display())?;
    let kernel = find_kernel(&root.join("boot")).doing("find", "the kernel in its package")?;
    fs::copy(&kernel, directory.join(KERNEL)).doing("copy", kernel.display())?;
    let partial = directory.join("partial");
    let written = File::create(&partial).and_then(|file| {
        let mut archive = cpio::Writer::new(BufWriter::new(file));
        add_skeleton(&mut archive)?;
        add_modules(&mut archive, &modules)?;
        add_tools(&mut archive, tools, &busybox)?;
        archive.finish().map(drop)
    });
    written.doing("write", partial.display())?;
    fs::rename(&partial, directory.join(BASE)).doing("rename", partial.display())?;
    best_effort(unpacked.close());
    Ok(())
}

fn find_kernel(boot: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(boot)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(entry.path());
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn add_skeleton<W: Write>(archive: &mut cpio::Writer<W>) -> io::Result<()> {
    for directory in DIRECTORIES {
        archive.directory(Path::new(directory))?;
    }
    for name in MERGED {
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            archive.directory(&target)?;
            archive.symlink(Path::new(name), &target)?;
        }
    }
    archive.symlink(Path::new("var/run"), Path::new("/run"))?;
    archive.file(
        Path::new("etc/passwd"),
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\n",
    )?;
    archive.file(Path::new("etc/group"), 0o644, b"root:x:0:\n")?;
    archive.file(
        Path::new("etc/hosts"),
        0o644,
        b"127.0.0.1 localhost\n::1 localhost\n",
    )?;
    // The first program wants both before it can mount anything on /dev.
    archive.device(Path::new("dev/console"), (5, 1))?;
    archive.device(Path::new("dev/null"), (1, 3))
}

fn add_modules<W: Write>(archive: &mut cpio::Writer<W>, modules: &[Module]) -> io::Result<()> {
    for (position, module) in modules.iter().enumerate() {
        // The names sort in load order.
        let name = format!("{position:03}-{}.ko", module.name);
        archive.file(&Path::new(guest::MODULES).join(name), 0o644, &module.object)?;
    }
    Ok(())
}

/// Adds the tools, and busybox under the names of all others that it knows.
fn add_tools<W: Write>(
    archive: &mut cpio::Writer<W>,
    tools: &[(&str, PathBuf)],
    busybox: &Path,
) -> io::Result<()> {
    let program = Path::new("/usr/bin/busybox");
    let mut installer = Installer::new(archive);
    for (_, path) in tools {
        installer.add(path, path)?;
    }
    installer.add(busybox, program)?;
    let mut list = Command::new(busybox);
    list.arg("--list");
    let applets = packages::finish(list).map_err(io::Error::other)?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        if !tools.iter().any(|(name, _)| *name == applet) {
            archive.symlink(&Path::new("/usr/bin").join(applet), program)?;
        }
    }
    Ok(())
}
