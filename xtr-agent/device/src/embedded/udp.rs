//! The UDP socket of the embedded data plane.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use gotatun::packet::{Packet, PacketBufPool};
use gotatun::udp::socket::{UdpSocket, UdpSocketFactory};
use gotatun::udp::{UdpRecv, UdpSend, UdpTransportFactory, UdpTransportFactoryParams};
use nix::cmsg_space;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg,
    sendmmsg, setsockopt, sockopt,
};
use tokio::io::Interest;

use super::pins::{Pins, plain};

/// Makes sockets that have room for what many far ends, or one that sends on all that it held, send
/// at once: with the usual 208 KiB that is 92 large packets, and more are lost. With `pins`, far ends
/// are answered from the address at which they reach us.
pub(crate) struct RoomySockets {
    factory: UdpSocketFactory,
    pins: Option<Arc<Pins>>,
}

impl RoomySockets {
    pub(crate) fn new(pins: Option<Arc<Pins>>) -> Self {
        let factory = UdpSocketFactory {
            recv_buffer_size: Some(RECEIVE_BUFFER),
            send_buffer_size: None,
        };
        Self { factory, pins }
    }
}

impl UdpTransportFactory for RoomySockets {
    type Send = PinnedSocket;
    type Recv = PinnedSocket;

    async fn bind(
        &mut self,
        params: &UdpTransportFactoryParams,
    ) -> io::Result<(Self::Send, Self::Recv)> {
        let (socket, receive) = self.factory.bind(params).await?;
        // Past `net.core.rmem_max`. Where that is not permitted, the factory has set what is.
        if let Err(error) = setsockopt(&receive, sockopt::RcvBufForce, &RECEIVE_BUFFER) {
            tracing::debug!(%error, "the UDP socket has a small buffer");
        }
        if self.pins.is_some() {
            // A socket for both families tells of both in the way of IPv6.
            match receive.local_addr()? {
                SocketAddr::V4(_) => setsockopt(&receive, sockopt::Ipv4PacketInfo, &true)?,
                SocketAddr::V6(_) => setsockopt(&receive, sockopt::Ipv6RecvPacketInfo, &true)?,
            }
        }
        let pins = self.pins.clone();
        let socket = PinnedSocket { socket, pins };
        Ok((socket.clone(), socket))
    }
}

/// A UDP socket that knows at which of our addresses packets arrive, if it was made to.
#[derive(Clone)]
pub(crate) struct PinnedSocket {
    socket: UdpSocket,
    pins: Option<Arc<Pins>>,
}

/// What receiving needs besides: gotatun's own, or ours.
#[derive(Default)]
pub(crate) struct ReceiveBuffer {
    usual: Option<<UdpSocket as UdpRecv>::RecvManyBuf>,
    pinned: Vec<Vec<u8>>,
}

impl UdpRecv for PinnedSocket {
    type RecvManyBuf = ReceiveBuffer;

    async fn recv_from(&mut self, pool: &mut PacketBufPool) -> io::Result<(Packet, SocketAddr)> {
        self.socket.recv_from(pool).await
    }

    async fn recv_many_from(
        &mut self,
        buffer: &mut Self::RecvManyBuf,
        pool: &mut PacketBufPool,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let Some(pins) = self.pins.clone() else {
            let usual = buffer.usual.get_or_insert_default();
            return self.socket.recv_many_from(usual, pool, packets).await;
        };
        let room = &mut buffer.pinned;
        room.resize_with(RECEIVED_AT_ONCE, || vec![0; DATAGRAM]);
        let socket = self.socket.socket();
        socket
            .async_io(Interest::READABLE, || {
                receive(socket.as_raw_fd(), room, &pins, pool, packets)
            })
            .await
    }

    fn enable_udp_gro(&self) -> io::Result<()> {
        self.socket.enable_udp_gro()
    }
}

/// Takes in what has arrived, each packet with the address of its sender and ours.
fn receive(
    descriptor: i32,
    room: &mut [Vec<u8>],
    pins: &Pins,
    pool: &mut PacketBufPool,
    packets: &mut Vec<(Packet, SocketAddr)>,
) -> io::Result<()> {
    let space = cmsg_space!(i32, libc::in6_pktinfo);
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(room.len(), Some(space));
    let mut slices: Vec<_> = room.iter_mut().map(|it| [IoSliceMut::new(it)]).collect();
    let flags = MsgFlags::MSG_DONTWAIT;
    let received = recvmmsg(descriptor, &mut headers, slices.iter_mut(), flags, None)?;
    for datagram in received {
        let Some(sender) = datagram.address.as_ref().and_then(sender) else {
            continue;
        };
        let (mut ours, mut segment) = (None, None);
        for message in datagram.cmsgs()? {
            if let ControlMessageOwned::UdpGroSegments(length) = message {
                segment = usize::try_from(length).ok().filter(|length| *length > 0);
            } else if let ControlMessageOwned::Ipv4PacketInfo(info) = message {
                ours = Some(IpAddr::from(
                    u32::from_be(info.ipi_addr.s_addr).to_be_bytes(),
                ));
            } else if let ControlMessageOwned::Ipv6PacketInfo(info) = message {
                ours = Some(IpAddr::from(info.ipi6_addr.s6_addr).to_canonical());
            }
        }
        let sender = ours.map_or(sender, |ours| pins.pinned(sender, ours));
        let bytes = datagram.iovs().next().unwrap_or_default();
        for segment in bytes.chunks(segment.unwrap_or(DATAGRAM)) {
            let mut packet = pool.get();
            packet.buf_mut().clear();
            packet.buf_mut().extend_from_slice(segment);
            packets.push((packet, sender));
        }
    }
    Ok(())
}

fn sender(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|it| SocketAddr::from(*it));
    let v6 = || address.as_sockaddr_in6().map(|it| SocketAddr::from(*it));
    v4.or_else(v6).map(plain)
}

/// What sending needs besides: gotatun's own, and packets that leave from the same address.
#[derive(Default)]
pub(crate) struct SendBuffer {
    usual: <UdpSocket as UdpSend>::SendManyBuf,
    alike: Vec<(Packet, SocketAddr)>,
}

impl UdpSend for PinnedSocket {
    type SendManyBuf = SendBuffer;

    async fn send_to(&self, packet: Packet, destination: SocketAddr) -> io::Result<()> {
        let Some(pins) = &self.pins else {
            return self.socket.send_to(packet, destination).await;
        };
        let (destination, from) = pins.split(destination);
        if let Some(from) = from {
            let alike = [(packet, destination)];
            if self.send_from(from, &alike).await? == alike.len() {
                return Ok(());
            }
            let [(packet, _)] = alike;
            return self.socket.send_to(packet, destination).await;
        }
        self.socket.send_to(packet, destination).await
    }

    async fn send_many_to(
        &self,
        buffer: &mut Self::SendManyBuf,
        packets: &mut Vec<(Packet, SocketAddr)>,
    ) -> io::Result<()> {
        let Some(pins) = &self.pins else {
            return self.socket.send_many_to(&mut buffer.usual, packets).await;
        };
        let SendBuffer { usual, alike } = buffer;
        let mut rest = packets.drain(..).peekable();
        while let Some((packet, destination)) = rest.next() {
            let (destination, from) = pins.split(destination);
            alike.clear();
            alike.push((packet, destination));
            while let Some((packet, next)) = rest.next_if(|(_, next)| pins.split(*next).1 == from) {
                alike.push((packet, pins.split(next).0));
            }
            let sent = match from {
                Some(from) => self.send_from(from, alike).await?,
                None => 0,
            };
            alike.drain(..sent);
            self.socket.send_many_to(usual, alike).await?;
        }
        Ok(())
    }

    fn max_number_of_packets_to_send(&self) -> usize {
        self.socket.max_number_of_packets_to_send()
    }

    fn local_addr(&self) -> io::Result<Option<SocketAddr>> {
        UdpSend::local_addr(&self.socket)
    }

    fn set_fwmark(&self, mark: u32) -> io::Result<()> {
        self.socket.set_fwmark(mark)
    }
}

impl PinnedSocket {
    /// Sends packets from our address `from`; returns how many. It may be ours no more, or have no way
    /// out: then the others are for the routes to decide.
    async fn send_from(&self, from: IpAddr, packets: &[(Packet, SocketAddr)]) -> io::Result<usize> {
        let socket = self.socket.socket();
        let mut sent = 0;
        while let Some(rest) = packets.get(sent..).filter(|rest| !rest.is_empty()) {
            let result = socket
                .async_io(Interest::WRITABLE, || send(socket.as_raw_fd(), from, rest))
                .await;
            match result {
                Ok(count) => sent += count,
                Err(error) if is_no_way(&error) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }
}

fn send(descriptor: i32, from: IpAddr, packets: &[(Packet, SocketAddr)]) -> io::Result<usize> {
    let slices = packets.iter().map(|(packet, _)| [IoSlice::new(packet)]);
    let slices: Vec<_> = slices.collect();
    let targets = packets
        .iter()
        .map(|(_, to)| Some(SockaddrStorage::from(*to)));
    let targets: Vec<_> = targets.collect();
    let flags = MsgFlags::MSG_DONTWAIT;
    let sent = match from {
        IpAddr::V4(from) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr {
                    s_addr: u32::from(from).to_be(),
                },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let from = [ControlMessage::Ipv4PacketInfo(&info)];
            let space = cmsg_space!(libc::in_pktinfo);
            let mut headers = MultiHeaders::preallocate(slices.len(), Some(space));
            sendmmsg(descriptor, &mut headers, &slices, &targets, from, flags)?.count()
        }
        IpAddr::V6(from) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                ipi6_ifindex: 0,
            };
            let from = [ControlMessage::Ipv6PacketInfo(&info)];
            let space = cmsg_space!(libc::in6_pktinfo);
            let mut headers = MultiHeaders::preallocate(slices.len(), Some(space));
            sendmmsg(descriptor, &mut headers, &slices, &targets, from, flags)?.count()
        }
    };
    Ok(sent)
}

/// Whether an address is none of ours, or there is no way from it to where a packet goes.
fn is_no_way(error: &io::Error) -> bool {
    let codes = [
        libc::EINVAL,
        libc::EADDRNOTAVAIL,
        libc::ENETUNREACH,
        libc::EHOSTUNREACH,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// Bytes, of which the kernel takes twice as many. It counts 2,304 for a large packet, so this is room
/// for the 4,096 that an agent holds for one mapping. Memory is used for what waits only.
const RECEIVE_BUFFER: usize = 8 << 20;

/// The largest that the kernel hands over at once: one datagram, or several of the same length.
const DATAGRAM: usize = 65_536;
/// So many are taken at once.
const RECEIVED_AT_ONCE: usize = 32;
