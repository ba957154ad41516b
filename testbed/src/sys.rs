//! What needs `unsafe`: the TUN ioctl, code between fork and exec, the scheduler.
#![expect(
    unsafe_code,
    reason = "the kernel's interfaces used here have no safe wrapper"
)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{dup, getpid, getppid};
use socket2::{Domain, Socket, Type};

/// Frames that a TAP keeps until they are read.
const TAP_QUEUE: libc::c_int = 10_000;

/// Opens a TAP interface of the calling thread's namespace, non-blocking and without
/// offloads, so that every read is one frame as it would be on a wire.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let tap = open("/dev/net/tun", flags, Mode::empty())?;
    // SAFETY: ifreq is plain old data; all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = CString::new(name)?;
    let slots = request.ifr_name.iter_mut();
    // The last byte stays zero.
    for (slot, byte) in slots.take(libc::IFNAMSIZ - 1).zip(name.as_bytes()) {
        *slot = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).map_err(io::Error::other)?;
    // SAFETY: `tap` is open and `request` is a valid ifreq that outlives the call.
    if unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Frames that nobody has read yet must not be lost to a thread that waits for a processor.
    request.ifr_ifru.ifru_metric = TAP_QUEUE;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    // SAFETY: `socket` is open and `request` is a valid ifreq that outlives the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tap)
}

/// Starts a program in the network namespace `namespace` (`None`: the present one); the kernel
/// kills it when the calling thread ends.
pub(crate) fn spawn(command: &mut Command, namespace: Option<BorrowedFd<'_>>) -> io::Result<Child> {
    // A duplicate, so that the closure owns what it uses.
    let namespace = namespace.map(dup).transpose()?;
    let parent = getpid();
    let prepare = move || {
        if let Some(namespace) = &namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
        }
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the line above.
        if getppid() != parent {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor locks.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// Gives the calling thread a real-time priority, so that it wakes at once.
pub(crate) fn become_real_time() -> io::Result<()> {
    // SAFETY: sched_param is plain old data; all zeros is a valid value.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = 1;
    // SAFETY: pid 0 is the calling thread; `parameters` outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
