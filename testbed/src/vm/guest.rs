//! The first process of the guest: prepares the system, runs the job, and switches off.
//!
//! Its own stdout and stderr are the kernel's console. What the command writes goes through
//! ports of their own to the host, and so do its files and how it ended.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::cpio;
use super::job::{Order, Outcome};
use super::ports::{Port, copy};
use crate::clock::{monotonic_ns, sleep};
use crate::error::{Doing, TestbedError, best_effort};

/// What the guest is to do, as JSON.
pub(super) const ORDER: &str = "/order.json";
/// Kernel modules; their names sort in load order.
pub(super) const MODULES: &str = "/modules";
/// What is left here goes back to the host.
const OUT: &str = "/out";
/// Kernel file systems: type, where, and options. Nothing on `/tmp`: the root is in memory, and
/// programs may have come from there.
const MOUNTS: [(&str, &str, &str); 7] = [
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=0666"),
    ("tmpfs", "/dev/shm", ""),
    ("tmpfs", "/run", ""),
    ("cgroup2", "/sys/fs/cgroup", ""),
];
/// What shells expect in `/dev`, which a device manager would make.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];
const RUNTIME_DIRECTORIES: [&str; 3] = ["/run/netns", "/run/wireguard", "/run/lock"];
const POLL: Duration = Duration::from_millis(2);

/// Does all that the guest is for. Does not return when this is the first process.
///
/// # Errors
///
/// When this is not the first process of a system.
pub(super) fn main() -> Result<(), TestbedError> {
    if getpid() != Pid::from_raw(1) {
        return Err(Errno::EPERM).doing("act as", "the first process of a guest");
    }
    if let Err(error) = run() {
        best_effort(writeln!(io::stderr(), "guest: {error}"));
    }
    power_off()
}

fn power_off() -> ! {
    loop {
        // Fails only without the right to do it; the host's timeout ends the guest then.
        best_effort(reboot(RebootMode::RB_POWER_OFF));
        sleep(POLL);
    }
}

fn run() -> Result<(), TestbedError> {
    let order = fs::read(ORDER).doing("read", ORDER)?;
    let order: Order = serde_json::from_slice(&order)
        .map_err(io::Error::other)
        .doing("read", ORDER)?;
    let limit = Duration::from_secs(order.timeout_s);
    thread::spawn(move || {
        sleep(limit);
        power_off()
    });
    mount_all()?;
    load_modules()?;
    bring_loopback_up();

    let (boot_ns, mut child) = (monotonic_ns(), start(&order)?);
    let carriers = [
        carry(child.stdout.take(), Port::Stdout)?,
        carry(child.stderr.take(), Port::Stderr)?,
    ];
    let code = wait_for(&child)?;
    let ended_ns = monotonic_ns();
    // Daemons it left behind would keep its output open.
    best_effort(kill(Pid::from_raw(-1), Signal::SIGKILL));
    for carrier in carriers {
        best_effort(carrier.join());
    }
    if order.archive {
        archive_out()?;
    }
    let milliseconds = |ns: u64| ns / 1_000_000;
    let outcome = Outcome {
        code,
        boot_ms: milliseconds(boot_ns),
        run_ms: milliseconds(ended_ns.saturating_sub(boot_ns)),
    };
    let outcome = serde_json::to_vec(&outcome).map_err(io::Error::other);
    let sent = outcome.and_then(|outcome| Port::Outcome.open()?.write_all(&outcome));
    sent.doing("send", "the outcome")
}

fn mount_all() -> Result<(), TestbedError> {
    for (kind, place, options) in MOUNTS {
        fs::create_dir_all(place).doing("create", place)?;
        mount(
            Some(kind),
            place,
            Some(kind),
            MsFlags::empty(),
            Some(options),
        )
        .doing("mount", place)?;
    }
    for (target, link) in DEVICE_LINKS {
        symlink(target, link).doing("create", link)?;
    }
    for directory in RUNTIME_DIRECTORIES {
        fs::create_dir_all(directory).doing("create", directory)?;
    }
    Ok(())
}

fn load_modules() -> Result<(), TestbedError> {
    let entries = fs::read_dir(MODULES).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut modules: Vec<_> = entries
        .doing("list", MODULES)?
        .iter()
        .map(fs::DirEntry::path)
        .collect();
    modules.sort();
    for module in modules {
        let loaded = File::open(&module).and_then(|file| {
            finit_module(file, c"", ModuleInitFlags::empty()).map_err(io::Error::from)
        });
        // One module less is the business of who needs it.
        if let Err(error) = loaded {
            best_effort(writeln!(
                io::stderr(),
                "guest: {}: {error}",
                module.display()
            ));
        }
    }
    // Their memory is of use.
    best_effort(fs::remove_dir_all(MODULES));
    Ok(())
}

fn bring_loopback_up() {
    let mut ip = Command::new("/usr/bin/busybox");
    best_effort(
        ip.args(["ip", "link", "set", "lo", "up"])
            .stdin(Stdio::null())
            .status(),
    );
}

fn start(order: &Order) -> Result<Child, TestbedError> {
    let (program, arguments) = order
        .command
        .split_first()
        .ok_or(Errno::ENOENT)
        .doing("run", "an empty command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs([
            ("HOME", "/root"),
            ("USER", "root"),
            ("TERM", "dumb"),
            ("LANG", "C.UTF-8"),
        ])
        .envs(order.environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/root")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().doing("run", program)
}

/// Carries what the command writes to the host.
fn carry(
    from: Option<impl Read + Send + 'static>,
    to: Port,
) -> Result<JoinHandle<()>, TestbedError> {
    let mut port = to.open().doing("open", "a port to the host")?;
    Ok(thread::spawn(move || {
        from.into_iter().for_each(|from| copy(from, &mut port))
    }))
}

/// Waits for the command, and for all whose parents ended before them.
fn wait_for(child: &Child) -> Result<u8, TestbedError> {
    let child = i32::try_from(child.id())
        .map_err(io::Error::other)
        .doing("wait for", "the command")?;
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == child => {
                return Ok(u8::try_from(code).unwrap_or(u8::MAX));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == child => {
                return Ok(u8::try_from(128 + signal as i32).unwrap_or(u8::MAX));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).doing("wait for", "the command"),
        }
    }
}

fn archive_out() -> Result<(), TestbedError> {
    let archived = Port::Files.open().and_then(|port| {
        let mut archive = cpio::Writer::new(BufWriter::with_capacity(1 << 16, port));
        cpio::archive_tree(&mut archive, Path::new(OUT))?;
        archive.finish().map(drop)
    });
    archived.doing("send", OUT)
}
