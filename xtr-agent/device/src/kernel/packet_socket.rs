//! Sends IP packets out through an interface, past routing.

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

/// A packet socket that only sends.
///
/// Unlike a raw IP socket bound to the interface it needs no route, which matters for IPv6: there
/// the kernel finds no way out through an interface that has no route for the destination yet.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    socket: Socket,
    ipv4: SockAddr,
    ipv6: SockAddr,
}

impl PacketSocket {
    /// Opens a socket for the interface `index`.
    pub(crate) fn open(index: u32) -> io::Result<Self> {
        // Protocol 0: nothing is received.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        // Past what waits in front of the interface.
        bypass_queue(&socket)?;
        Ok(Self {
            socket,
            ipv4: link_address(index, libc::ETH_P_IP)?,
            ipv6: link_address(index, libc::ETH_P_IPV6)?,
        })
    }

    /// Sends one IP packet.
    pub(crate) fn send(&self, packet: &[u8]) -> io::Result<()> {
        let is_ipv4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
        let destination = if is_ipv4 { &self.ipv4 } else { &self.ipv6 };
        self.socket.send_to(packet, destination)?;
        Ok(())
    }
}

#[expect(unsafe_code, reason = "socket2 does not know this option")]
fn bypass_queue(socket: &Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).map_err(io::Error::other)?;
    // SAFETY: the option's value is an int that outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            length,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(
    unsafe_code,
    reason = "neither std nor socket2 has a safe constructor for link-layer addresses"
)]
fn link_address(index: u32, ethertype: libc::c_int) -> io::Result<SockAddr> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(invalid)?;
    let protocol = u16::try_from(ethertype).map_err(invalid)?;
    let ifindex = i32::try_from(index).map_err(invalid)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a zeroed `sockaddr_ll` is valid, and the storage is large and aligned enough for any
    // socket address.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = family;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = ifindex;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(invalid)?;
    // SAFETY: the first `length` bytes of the storage are an initialised `sockaddr_ll`.
    Ok(unsafe { SockAddr::new(storage, length) })
}
