//! UDP sockets that belong to one interface, and the address the kernel would send from.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

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
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
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
}
