//! Sends IP packets out through an interface, past routing.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

/// A packet socket that only sends.
///
/// Unlike a raw IP socket bound to the interface it needs no route, which matters for IPv6: there
/// the kernel finds no way out through an interface that has no route for the destination yet.
///
/// What was sent counts against the socket's buffer until it is encrypted and on its way; packets
/// that WireGuard keeps for a handshake do not (`skb_orphan` in its `send.c`). The buffer is what
/// holds a burst back: what finds WireGuard's own queue full is dropped, and nobody is told.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    socket: AsyncFd<Socket>,
    /// Waiting has not helped, and nothing was sent since.
    stuck: AtomicBool,
    ipv4: SockAddr,
    ipv6: SockAddr,
}

impl PacketSocket {
    /// Opens a socket for the interface `index`. Must be called within a tokio runtime.
    pub(crate) fn open(index: u32) -> io::Result<Self> {
        // Protocol 0: nothing is received.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
        socket.set_nonblocking(true)?;
        socket.set_send_buffer_size(SEND_BUFFER)?;
        // Past what waits in front of the interface.
        bypass_queue(&socket)?;
        Ok(Self {
            socket: register(socket)?,
            stuck: AtomicBool::new(false),
            ipv4: link_address(index, libc::ETH_P_IP)?,
            ipv6: link_address(index, libc::ETH_P_IPV6)?,
        })
    }

    /// Sends one IP packet, and waits a moment for room if there is none.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there still is none: then nothing leaves the host, and
    /// later packets do not wait until one was sent.
    pub(crate) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        let is_ipv4 = packet.first().is_some_and(|byte| byte >> 4 == 4);
        let destination = if is_ipv4 { &self.ipv4 } else { &self.ipv6 };
        let send = |socket: &Socket| socket.send_to(packet, destination);
        let sent = match send(self.socket.get_ref()) {
            Err(error) if is_full(&error) && !self.stuck.load(Ordering::Relaxed) => {
                let in_turn = self.socket.async_io(Interest::WRITABLE, send);
                let waited = timeout(PATIENCE, in_turn).await;
                waited.unwrap_or_else(|_| Err(io::ErrorKind::WouldBlock.into()))
            }
            sent => sent,
        };
        let stuck = sent.as_ref().is_err_and(is_full);
        self.stuck.store(stuck, Ordering::Relaxed);
        sent.map(|_| ())
    }
}

fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

#[expect(
    unsafe_code,
    reason = "tokio cannot see that a socket keeps its descriptor"
)]
fn register(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the socket owns its descriptor, which is open until the socket is dropped and is
    // never replaced.
    let registered = unsafe { AsyncFd::register_with_interest(socket, Interest::WRITABLE) };
    Ok(registered?)
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
pub(crate) fn link_address(index: u32, ethertype: libc::c_int) -> io::Result<SockAddr> {
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

/// Bytes, of which the kernel takes twice as many, and counts at least 768 for the smallest packet:
/// so half of the 1,024 packets that WireGuard keeps to be encrypted (`MAX_QUEUED_PACKETS`), whatever
/// `net.core.wmem_default` says. The other half is left to those that take the route.
const SEND_BUFFER: usize = 512 * 768 / 2;

/// How long room is waited for, once. A few hundred packets are encrypted in much less.
const PATIENCE: Duration = Duration::from_secs(1);
