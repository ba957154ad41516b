//! Tells when the addresses or the routes of this host change.

use std::io;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Hears of every change of addresses and routes in one network namespace.
#[derive(Debug)]
pub struct AddressWatch(AsyncFd<Socket>);

impl AddressWatch {
    /// Listens in the present network namespace. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The system refuses a netlink socket.
    pub fn open() -> io::Result<Self> {
        Self::of(GROUPS)
    }

    /// The same, and hears of interfaces that come and go, and of their carriers.
    ///
    /// # Errors
    /// The system refuses a netlink socket.
    pub fn open_with_links() -> io::Result<Self> {
        Self::of(GROUPS | LINKS)
    }

    fn of(groups: u32) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // Routes too: a new address is of no use before there is one.
        socket.bind(&SocketAddr::new(0, groups))?;
        register(socket).map(Self)
    }

    /// Waits until something has changed since the last call. Cancelling loses nothing.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn changed(&self) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut message = Vec::with_capacity(MESSAGE_BYTES);
        for _ in 0..MESSAGES_AT_ONCE {
            message.clear();
            match self.0.get_ref().recv(&mut message, 0) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break;
                }
                // So much has changed that the kernel has dropped the details.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[expect(
    unsafe_code,
    reason = "tokio cannot see that a socket keeps its descriptor"
)]
fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor, which is open until the socket is dropped and is
    // never replaced.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    Ok(registered?)
}

/// What is heard of: addresses and routes of both families (`rtnetlink(7)`).
const GROUPS: u32 = (libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE) as u32;

/// Interfaces (`rtnetlink(7)`).
const LINKS: u32 = libc::RTMGRP_LINK as u32;

/// Enough for what tells of one change; a longer message is cut off, and nobody reads it.
const MESSAGE_BYTES: usize = 1_024;

/// Messages taken at once; the rest is for the next call.
const MESSAGES_AT_ONCE: usize = 256;
