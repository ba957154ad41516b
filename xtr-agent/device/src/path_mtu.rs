//! How large packets to somebody may be, as far as the kernel knows by now.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::AsRawFd;

use crate::sockets::connected_to;

/// Bytes that WireGuard adds to a packet: its own header and tag, UDP and IPv4 (60) or IPv6 (80).
#[must_use]
pub const fn wireguard_overhead(endpoint: IpAddr) -> u32 {
    match endpoint {
        IpAddr::V4(_) => 60,
        IpAddr::V6(_) => 80,
    }
}

/// Returns the size in bytes, IP header included, of the largest packet that reaches `destination`
/// whole, with this mark (0: none): the MTU of the link towards it, or less when a router has said so.
/// Sends nothing.
///
/// # Errors
/// There is no route to `destination`.
pub fn path_mtu(destination: IpAddr, mark: u32) -> io::Result<u32> {
    let socket = connected_to(destination, mark)?;
    let (level, option) = match destination {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let mtu = read_option(&socket, level, option)?;
    u32::try_from(mtu).map_err(io::Error::other)
}

#[expect(unsafe_code, reason = "neither std nor socket2 knows these options")]
fn read_option(socket: &UdpSocket, level: i32, option: i32) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = libc::socklen_t::try_from(size_of_val(&value)).map_err(io::Error::other)?;
    // SAFETY: value and length are valid for writing, and length is the size of the value.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    match done {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn loopback_has_a_large_one() {
        let mtu = path_mtu(Ipv4Addr::LOCALHOST.into(), 0).unwrap();
        assert!(mtu >= 16_384, "{mtu}");
    }
}
