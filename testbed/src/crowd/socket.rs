//! One UDP socket that has all addresses of a prefix.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::Ipv4PacketInfo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Bytes of the socket's buffers: a handshake of everybody at once fits.
const BUFFER: usize = 32 << 20;
/// Longest datagram that is taken in, bytes.
const LONGEST: usize = 2_048;

/// A datagram of the underlay.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// Which address of ours it is to, or from.
    pub own: Ipv4Addr,
    /// Who sent it, or shall get it.
    pub far: SocketAddrV4,
    /// Its payload.
    pub bytes: Vec<u8>,
}

/// A socket for all addresses of the calling thread's namespace.
pub(super) struct ManyAddresses(Socket);

impl ManyAddresses {
    /// Opens the socket.
    pub(super) fn open(port: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        socket.bind(&SockAddr::from(SocketAddr::from((
            Ipv4Addr::UNSPECIFIED,
            port,
        ))))?;
        socket.set_nonblocking(true)?;
        // Without the privilege to go beyond the limit it is as large as may be.
        socket.set_recv_buffer_size(BUFFER)?;
        socket.set_send_buffer_size(BUFFER)?;
        setsockopt(&socket, Ipv4PacketInfo, &true)?;
        Ok(Self(socket))
    }

    /// Takes a datagram in, if there is one.
    pub(super) fn receive(&self) -> io::Result<Option<Datagram>> {
        let mut buffer = [0; LONGEST];
        let mut space = nix::cmsg_space!(libc::in_pktinfo);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let descriptor = self.0.as_raw_fd();
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = match recvmsg::<SockaddrIn>(descriptor, &mut parts, Some(&mut space), flags)
        {
            Err(Errno::EAGAIN) => return Ok(None),
            received => received?,
        };
        let mut own = None;
        for message in received.cmsgs()? {
            if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
                own = Some(Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr)));
            }
        }
        let far = received.address.map(SocketAddrV4::from);
        let length = received.bytes;
        let (Some(own), Some(far)) = (own, far) else {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        };
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        Ok(Some(Datagram { own, far, bytes }))
    }

    /// Sends a datagram.
    pub(super) fn send(&self, datagram: &Datagram) -> io::Result<()> {
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: datagram.own.to_bits().to_be(),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let far = SockaddrIn::from(datagram.far);
        sendmsg(
            self.0.as_raw_fd(),
            &[IoSlice::new(&datagram.bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&far),
        )?;
        Ok(())
    }
}

impl AsFd for ManyAddresses {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
