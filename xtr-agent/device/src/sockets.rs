//! Sockets that belong to one interface, and the address the kernel would send from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};
use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::netns::NetNs;

/// Returns the source address the kernel would use towards `destination` for packets with this mark
/// (0: none); sends nothing.
///
/// # Errors
/// There is no route to `destination`, or a mark needs CAP_NET_ADMIN.
pub fn local_address_towards(destination: IpAddr, mark: u32) -> io::Result<IpAddr> {
    Ok(connected_to(destination, mark)?.local_addr()?.ip())
}

/// A UDP socket towards `destination`, which looks the route up and sends nothing.
pub(crate) fn connected_to(destination: IpAddr, mark: u32) -> io::Result<StdUdpSocket> {
    let any: IpAddr = match destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let domain = Domain::for_address(SocketAddr::new(any, 0));
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.bind(&SocketAddr::new(any, 0).into())?;
    // Any port but 0 will do.
    socket.connect(&SocketAddr::new(destination, 9).into())?;
    Ok(socket.into())
}

/// Binds a UDP socket to `addr` that sends and receives through `device` only, and whose packets have
/// this mark (0: none).
///
/// A socket bound to an inner address alone also takes plaintext packets that arrive from the
/// underlay for that address. With `device`, what it receives came out of the tunnel, and its
/// source address was checked by cryptokey routing.
///
/// # Errors
/// The address or the device is not there, the port is in use, or CAP_NET_RAW is missing. Must
/// be called within a tokio runtime.
pub fn bind_control_socket(
    addr: SocketAddr,
    device: Option<&str>,
    mark: u32,
) -> io::Result<UdpSocket> {
    let socket = udp_socket(addr)?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    // Before `bind`: else packets of the underlay could be queued in between.
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.bind(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Binds `count` UDP sockets to the same `addr`: the kernel deals what arrives out to them, always the
/// same one for the same source address and port.
///
/// # Errors
/// The address is not there, or the port is in use.
pub fn bind_shared_sockets(addr: SocketAddr, count: usize) -> io::Result<Vec<StdUdpSocket>> {
    // Whoever else has the port would get a share too, unless it is found in use now.
    let alone = udp_socket(addr)?;
    alone.bind(&addr.into())?;
    if count == 1 {
        return Ok(vec![alone.into()]);
    }
    let alone: StdUdpSocket = alone.into();
    let addr = alone.local_addr()?;
    drop(alone);
    let sockets = (0..count).map(|_| {
        let socket = udp_socket(addr)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        Ok(socket.into())
    });
    sockets.collect()
}

/// Listens for TCP connections to `addr` in `netns` (`None`: here) that come through `device` only: the
/// address of who begins one was checked by cryptokey routing.
///
/// # Errors
/// The address or the device is not there, the port is in use, or CAP_NET_RAW is missing. Must
/// be called within a tokio runtime.
pub fn listen_through(
    netns: Option<&NetNs>,
    device: &str,
    addr: SocketAddr,
) -> io::Result<TcpListener> {
    let socket = tcp_socket(netns, addr)?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Begins a TCP connection from the first of two addresses to the second, in `netns` (`None`: here). Its
/// first packet takes whatever route there is, so that it may be caught; once it has been answered, all
/// must go and come through `device`.
///
/// # Errors
/// The other end does not answer, or refuses; or as [`listen_through`].
pub async fn connect_through(
    netns: Option<&NetNs>,
    device: &str,
    [from, to]: [SocketAddr; 2],
) -> io::Result<TcpStream> {
    let socket = tcp_socket(netns, from)?;
    socket.bind(&from.into())?;
    let stream = TcpSocket::from_std_stream(socket.into())
        .connect(to)
        .await?;
    SockRef::from(&stream).bind_device(Some(device.as_bytes()))?;
    Ok(stream)
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

fn tcp_socket(netns: Option<&NetNs>, addr: SocketAddr) -> io::Result<Socket> {
    let make = move || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    };
    match netns {
        Some(netns) => netns.run(make).map_err(io::Error::other)?,
        None => make(),
    }
}

fn udp_socket(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Gives `socket` room for `bytes` of what has arrived, or as much as the system lets it have.
///
/// # Errors
/// The system refuses even that.
pub fn set_receive_room(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    let forced = setsockopt(socket, sockopt::RcvBufForce, &bytes);
    // Without CAP_NET_ADMIN there is a limit.
    forced.or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_towards_loopback_is_loopback() {
        let source = local_address_towards(Ipv4Addr::new(127, 0, 0, 9).into(), 0).unwrap();
        assert!(source.is_loopback());
    }

    #[tokio::test]
    async fn a_port_is_not_shared() {
        let first = bind_control_socket("127.0.0.1:0".parse().unwrap(), None, 0).unwrap();
        let second = bind_control_socket(first.local_addr().unwrap(), None, 0);
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn sockets_that_share_a_port_share_it_with_nobody_else() {
        let port = StdUdpSocket::bind("127.0.0.1:0").unwrap();
        let address = port.local_addr().unwrap();
        let refused = bind_shared_sockets(address, 2).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        drop(port);
        let sockets = bind_shared_sockets(address, 2).unwrap();
        assert!(
            sockets
                .iter()
                .all(|socket| socket.local_addr().unwrap() == address)
        );
        assert!(bind_shared_sockets(address, 1).is_err());
        set_receive_room(&sockets[0], 1 << 16).unwrap();
    }
}
