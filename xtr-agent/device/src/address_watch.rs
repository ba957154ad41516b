//! Tells when the addresses or the routes of this host change.

use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::routes::table_of;
use crate::uplinks::is_own_table;

/// Hears of changes of addresses and routes in one network namespace.
#[derive(Debug)]
pub struct AddressWatch {
    socket: AsyncFd<Socket>,
    /// The interfaces of uplinks, if only what concerns these counts, and routes in their tables.
    uplinks: Option<Vec<String>>,
}

impl AddressWatch {
    /// Listens in the present network namespace. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The system refuses a netlink socket.
    pub fn open() -> io::Result<Self> {
        Self::of(GROUPS, None)
    }

    /// Listens for what concerns [`Uplinks`](crate::Uplinks) at these interfaces: addresses, whether they are
    /// there and have a carrier, and the routes of uplinks. Other routes, of which an overlay may have thousands,
    /// and other interfaces, which containers bring and take along, do not count.
    ///
    /// # Errors
    /// The system refuses a netlink socket.
    pub fn open_for_uplinks(interfaces: Vec<String>) -> io::Result<Self> {
        Self::of(GROUPS | LINKS, Some(interfaces))
    }

    fn of(groups: u32, uplinks: Option<Vec<String>>) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        // Routes too: a new address is of no use before there is one.
        socket.bind(&SocketAddr::new(0, groups))?;
        Ok(Self {
            socket: register(socket)?,
            uplinks,
        })
    }

    /// Waits until something has changed since the last call. Cancelling loses nothing.
    ///
    /// # Errors
    /// The socket is broken.
    pub async fn changed(&self) -> io::Result<()> {
        let mut message = Vec::with_capacity(MESSAGE_BYTES);
        let mut has_changed = false;
        while !has_changed {
            let mut ready = self.socket.readable().await?;
            for _ in 0..MESSAGES_AT_ONCE {
                message.clear();
                match self.socket.get_ref().recv(&mut message, 0) {
                    Ok(_) => has_changed |= self.concerns(&message),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    // So much has changed that the kernel has dropped the details.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => has_changed = true,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Whether a message tells of what counts; one that was cut off does.
    fn concerns(&self, message: &[u8]) -> bool {
        let Some(interfaces) = &self.uplinks else {
            return true;
        };
        let payload = NetlinkMessage::deserialize(message).map(|message| message.payload);
        if let Ok(NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        )) = &payload
        {
            return is_own_table(table_of(route));
        }
        let Ok(NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
        )) = &payload
        else {
            return true;
        };
        link.attributes.iter().any(|attribute| {
            matches!(attribute, LinkAttribute::IfName(name) if interfaces.contains(name))
        })
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

/// Enough for what tells of one change; a longer message is cut off.
const MESSAGE_BYTES: usize = 8_192;

/// Messages taken at once; the rest is for the next call.
const MESSAGES_AT_ONCE: usize = 256;
